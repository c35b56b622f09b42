"""Lists of images: files of paths, with labels in the same file or in a second list.

Formats are `.npy` of strings (as in VISSL's `disk_filelist`), `.txt` (a path on each line, or a path
and a label), `.csv` (with or without a header) and `.json` (images and annotations, as in COCO and
iNaturalist). Labels are numbers or names of classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featbench.extract.data.list_formats import FileList, Labels, read_classes, read_list
from featbench.extract.data.listing import Listing, first_duplicate
from featbench.extract.data.looked_up import look_up
from featbench.extract.errors import DataError
from featbench.store import abbreviate, suggest
from featbench.store.typing import Ints

_WHOLE_NUMBER = re.compile(r"-?[0-9]+")


def list_files(
    where: Path,
    *,
    root: Path | None = None,
    labels: Path | None = None,
    classes: Path | None = None,
    label_column: str | None = None,
    on_missing: str = "stop",
) -> Listing:
    """List the images in a file of paths.

    Parameters
    ----------
    where : Path
        The list.
    root : Path, optional
        Folder that contains the images, to which paths are relative; without it they are absolute,
        or relative to the list.
    labels : Path, optional
        A second list, of labels.
    classes : Path, optional
        Names of the classes, one a line; numeric labels index them from 0.
    label_column : str, optional
        Which column of a `.csv` holds the labels; `none` reads none.
    on_missing : {"stop", "skip"}
        What to do about missing images.

    Raises
    ------
    DataError
        If a list can't be read, the lists differ in length, or a label or path is invalid.
    """
    listed = read_list(where, label_column="none" if labels is not None else label_column)
    if isinstance(listed.paths, np.ndarray):
        raise DataError(f"{where}: holds numbers; expected paths of images")
    known = read_classes(classes) if classes is not None else None
    found = labels_beside(listed, read_list(labels, label_column=label_column) if labels is not None else None)
    numbers, names = numbered(found, known, where=labels or where) if found is not None else (None, known or ())
    listing = look_up(
        inner_paths(listed.paths, root, where=where), root if root is not None else where.parent.resolve(),
        where=where, labels=numbers, class_names=names,
        files=[path for path in (where, labels, classes) if path is not None], on_missing=on_missing,
    )  # fmt: skip
    twice = first_duplicate(listing.paths)
    if twice is not None:
        raise DataError(f"{where}: {twice} is listed twice. Remove one of the two: each row is one image.")
    return listing


def labels_beside(listed: FileList, second: FileList | None) -> Labels | None:
    """Labels in the list itself, or in a second one of the same length."""
    if second is None:
        return listed.labels
    found = second.labels if second.labels is not None else second.paths
    if len(found) != len(listed.paths):
        raise DataError(
            f"{second.where} has {len(found):,} labels, {listed.where} has {len(listed.paths):,} paths. "
            f"They must be of the same length: label i belongs to path i."
        )
    return found


def numbered(labels: Labels, classes: Sequence[str] | None, *, where: Path) -> tuple[Ints, tuple[str, ...]]:
    """Turn labels into indices of classes, and return the classes' names.

    A label that is the name of a class is that class; other numbers index the classes from 0. An empty
    label, or -1, means no label. Without names of classes, the classes are the labels that occur, sorted.

    Raises
    ------
    DataError
        If a label is not a class, or numbers may be either names or indices of classes.
    """
    if classes is not None and (by_name := _by_class_name(labels, classes, where=where)) is not None:
        return by_name, tuple(classes)
    values = _as_numbers(labels)
    if values is None:
        unique, numbers = np.unique(np.asarray(labels, np.str_), return_inverse=True)
        names = [str(name) for name in unique]
        if classes is not None:
            unknown = next((name for name in names if name and name not in classes), "")
            raise DataError(f"{where}: unknown class {unknown!r}. {suggest(unknown, classes)}")
        none = int(names[0] == "")
        return numbers.astype(np.int64) - none, tuple(names[none:])
    if values.min() < -1:
        raise DataError(f"{where}: label {values.min()} in row {values.argmin()}: must be 0 or more, or -1 for none")
    if classes is not None:
        if values.max() >= len(classes):
            from_one = " Do they count from 1?" if values.max() == len(classes) and values.min() == 1 else ""
            raise DataError(
                f"{where}: label {values.max()} in row {values.argmax()} is out of range: there are {len(classes)} "
                f"classes, numbered from 0.{from_one}"
            )
        return values, tuple(classes)
    unique = np.unique(values[values >= 0])
    numbers = np.where(values < 0, -1, np.searchsorted(unique, values))
    return numbers.astype(np.int64), tuple(str(value) for value in unique)


def _by_class_name(labels: Labels, classes: Sequence[str], *, where: Path) -> Ints | None:
    """Indices of the classes that labels name; None if labels are not names, so they index the classes."""
    texts = [str(label) for label in labels]
    if isinstance(labels, np.ndarray):
        texts = ["" if text == "-1" else text for text in texts]
    place = {name: number for number, name in enumerate(classes)}
    if all(name.isdecimal() for name in classes) and len({int(name) for name in classes}) == len(classes):
        # Folders 001, 002, ... are what labels 1, 2, ... mean.
        place |= {str(int(name)): number for number, name in enumerate(classes)}
        texts = [str(int(text)) if text.isdecimal() and text not in place else text for text in texts]
    used = {text for text in texts if text and not (text == "-1" and text not in place)}
    unknown = sorted(used - place.keys())
    if unknown and (len(unknown) == len(used) or not all(text.isdecimal() for text in unknown)):
        return None
    if unknown:
        one, other = next(text for text in sorted(used) if text in place), unknown[0]
        raise DataError(
            f"{where}: do the labels name the classes, or index them from 0? {one!r} is the name of a class, {other!r} "
            f"is not (classes: {abbreviate(list(classes), show=5)}). Write the classes' names as labels."
        )
    return np.array([place.get(text, -1) for text in texts], np.int64)


def _as_numbers(labels: Labels) -> Ints | None:
    if isinstance(labels, np.ndarray):
        return labels
    if not all(_WHOLE_NUMBER.fullmatch(label) for label in labels if label):  # `int` would also accept 1_12 and 11_2
        return None
    try:
        return np.array([int(label) if label else -1 for label in labels], np.int64)
    except (ValueError, OverflowError):
        return None


def inner_paths(paths: Sequence[str], root: Path | None, *, where: Path) -> Sequence[str]:
    """Paths of a list, relative to the root.

    In lists such as Places365's each path begins with a slash that means the root.
    """
    if root is None:
        return paths
    prefix = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118 (links are not to be resolved)
    slash_means_root = paths[0].startswith("/") and not paths[0].startswith(prefix)
    inner = []
    for row, path in enumerate(paths):
        if slash_means_root:
            short = path.lstrip("/")
        else:
            short = path[len(prefix) :] if path.startswith(prefix) else path
        if ".." in short or short.startswith("/"):
            short = os.path.normpath(short)
            if short.startswith(("/", "../")) or short == "..":
                raise DataError(f"{where}: {path} in row {row} leads out of the root, {root}")
        inner.append(short)
    return inner
