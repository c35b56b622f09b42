"""One split as arrays, and labels of any usual type converted to one form.

That form is an integer or a name for each row, -1 or "" where there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featbench.store import BenchError, SplitRows
from featbench.store.names import clashing_names, normal_name
from featbench.store.typing import Array, Ints

LARGEST_EXACT_INTEGER = 2.0**53
"""Up to here every integer is a float64."""


class ImportingError(BenchError, ValueError):
    """Arrays that can't be imported as features and labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """One split of imported features."""

    layers: Mapping[str, Array]
    """Features by layer, each of shape (N, ...)."""

    labels: Array
    """Shape (N,) or (N, 1); integers or names of classes, -1 or "" for none. Or shape (N, C) where rows have any number
    of classes: 1, 0, or -1 for not known."""

    class_names: tuple[str, ...] | None = None
    """Names of the C classes of such labels; by default their numbers."""

    paths: tuple[str, ...] | None = None


def plain_labels(labels: Array, *, where: str) -> Array:
    """Check labels and convert them to shape (N,), as int64 or as text in Unicode's normal form NFC.

    Parameters
    ----------
    labels : ndarray of shape (N,) or (N, 1)
        Integers, booleans, floats that are whole numbers (NaN: no label), text, or bytes in UTF-8.
    where : str
        Split or file, for messages.

    Raises
    ------
    ImportingError
        If they are anything else: several labels per row, one-hot rows, fractions, numbers below -1.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if is_matrix(labels):
        return labels.astype(np.int8)
    if labels.ndim != 1:
        raise ImportingError(
            f"{where}: labels must be one integer or name for each row, shape (N,) or (N, 1); got {labels.dtype} "
            f"{labels.shape}{_several(labels)}"
        )
    if labels.dtype.kind == "b":
        return labels.astype(np.int64)
    if labels.dtype.kind == "f":
        return _whole(labels, where)
    if labels.dtype.kind == "u" and labels.max(initial=0) > np.iinfo(np.int64).max:
        raise ImportingError(f"{where}: label {labels.max()} does not fit into int64")
    if labels.dtype.kind in "iu":
        least = labels.min(initial=0)
        if least < -1:
            row = int(labels.argmin())
            raise ImportingError(f"{where}: labels must be -1 (none) or a class from 0 on; got {least} in row {row}")
        return labels.astype(np.int64)
    if labels.dtype.kind in "US":
        return _names(labels, where)
    raise ImportingError(f"{where}: labels must be one integer or name for each row; got {labels.dtype} {labels.shape}")


def is_matrix(labels: Array) -> bool:
    """Whether labels are 1, 0 or -1 for each row and class, and rows have other than exactly one class.

    Examples
    --------
    >>> is_matrix(np.array([[1, 0], [1, 1]])), is_matrix(np.array([[1, 0], [0, 1]])), is_matrix(np.array([[3, 7]]))
    (True, False, False)
    """
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "biuf" or labels.dtype == np.int8:
        return labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype == np.int8
    return bool(np.isin(labels, (-1, 0, 1)).all() and not (labels.sum(axis=1) == 1).all())


def parse_names(texts: Sequence[str], *, where: str) -> tuple[Array, tuple[str, ...]]:
    """Make a matrix of lists of names that are written as text, each `cat;dog`, `cat|dog` or `["cat", "dog"]`.

    An empty text is a row without any class.

    Raises
    ------
    ImportingError
        If a list can't be read.

    Examples
    --------
    >>> matrix, names = parse_names(["cat;dog", "", '["dog"]'], where="x.csv")
    >>> matrix.tolist(), names
    ([[1, 1], [0, 0], [0, 1]], ('cat', 'dog'))
    """
    lists = [_names_in(text, row, where) for row, text in enumerate(texts)]
    return matrix_of(lists, where=where)


def matrix_of(lists: Sequence[Sequence[str]], *, where: str) -> tuple[Array, tuple[str, ...]]:
    """Make a matrix of lists of names, and return the names in order."""
    found = {normal_name(name) for names in lists for name in names}
    if not found:
        raise ImportingError(f"{where}: no row has a class")
    class_names = tuple(sorted(found))
    place = {name: index for index, name in enumerate(class_names)}
    matrix = np.zeros((len(lists), len(class_names)), np.int8)
    for row, names in enumerate(lists):
        matrix[row, [place[normal_name(name)] for name in names]] = 1
    return matrix, class_names


def _names_in(text: str, row: int, where: str) -> list[str]:
    text = text.strip()
    if not text.startswith("["):
        return [name.strip() for name in re.split(r"[;|]", text) if name.strip()]
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ImportingError(f"{where}, row {row}: {text[:60]!r} is no list of names ({error})") from error
    if not all(isinstance(name, str) for name in names):
        raise ImportingError(f"{where}, row {row}: {text[:60]!r} is no list of names")
    return list(names)


def split_rows(
    split: str, labels: Array, paths: tuple[str, ...] | None, class_names: tuple[str, ...] | None = None
) -> SplitRows:
    """Number the classes of plain labels, and give each row a path; `class_names` are those of a matrix."""
    if paths is not None and len(paths) != len(labels):
        raise ImportingError(f"{split}: {len(paths)} paths and {len(labels)} labels")
    if labels.ndim == 2:
        numbers = labels
        class_names = class_names or tuple(map(str, range(labels.shape[1])))
        if len(class_names) != labels.shape[1]:
            raise ImportingError(
                f"{split}: labels have {labels.shape[1]:,} columns, but there are {len(class_names):,} class names"
            )
    else:
        numbers, class_names = numbered(labels)
    paths = paths or tuple(f"{split}/{row:07d}" for row in range(len(labels)))
    return SplitRows(labels=numbers, paths=paths, class_names=class_names)


def numbered(labels: Array) -> tuple[Ints, tuple[str, ...]]:
    """Number the classes of plain labels from 0, -1 for none; returns the numbers, and the names in their order.

    Examples
    --------
    >>> numbers, names = numbered(np.array([7, -1, 3]))
    >>> numbers.tolist(), names
    ([1, -1, 0], ('3', '7'))
    """
    values, numbers = np.unique(labels, return_inverse=True)
    if len(values) and values[0] in (-1, ""):  # "none" sorts first, as integer and as text
        values, numbers = values[1:], numbers - 1
    return numbers.astype(np.int64), tuple(str(value) for value in values)


def are_row_numbers(labels: Array, rows: Array | None = None) -> bool:
    """Whether the labels are just the row numbers."""
    if labels.dtype.kind not in "iu" or len(labels) < 2:
        return False
    return bool(np.array_equal(labels, np.arange(len(labels)) if rows is None else rows))


def _several(labels: Array) -> str:
    """Say how to make one label per row of several columns."""
    if labels.ndim != 2:
        return ""
    if labels.dtype.kind in "biuf" and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
        return ". They are one-hot: give labels.argmax(axis=1)"
    return (
        ". Several labels for one row must be a column of 1, 0 or -1 (not known) for each class, or lists of names "
        "with --multi-label. If the columns are different tasks, choose one, labels[:, column], and pass it with "
        "--train-labels and --val-labels"
    )


def _whole(labels: Array, where: str) -> Array:
    labels = labels.astype(np.float64)
    none = np.isnan(labels)
    known = labels[~none]
    wrong = ~(np.isfinite(known) & (np.abs(known) <= LARGEST_EXACT_INTEGER) & (known == np.trunc(known)))
    if wrong.any():
        row = int(np.flatnonzero(~none)[np.flatnonzero(wrong)[0]])
        raise ImportingError(
            f"{where}: labels must be whole numbers, or NaN for none; got {labels[row]} in row {row}. "
            f"Are these regression targets rather than classes?"
        )
    return plain_labels(np.where(none, -1, labels).astype(np.int64), where=where)


def _names(labels: Array, where: str) -> Array:
    values, numbers = np.unique(labels, return_inverse=True)
    try:
        names = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
        "".join(names).encode()
    except UnicodeError as error:
        raise ImportingError(f"{where}: labels are not text in UTF-8 ({error}); decode them first") from error
    if clash := clashing_names(names):
        raise ImportingError(
            f"{where}: two classes have the same name in two Unicode spellings, {clash[0]!a} and "
            f"{clash[1]!a}. Normalize them, as by unicodedata.normalize('NFC', name)."
        )
    return np.array([normal_name(name) for name in names], np.str_)[numbers]
