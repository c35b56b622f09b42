"""Reading lists of images with any number of classes each: `.txt`, `.csv` and `.json`; see `multi_label`.

Shape suffixes:  N rows   C classes
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featbench.extract.data.images import EXTENSIONS
from featbench.extract.data.list_formats import LABEL_COLUMNS, PATH_COLUMNS, refuse_special, text_of
from featbench.extract.errors import DataError
from featbench.store import abbreviate, suggest
from featbench.store.documents import DocumentError, parse_json
from featbench.store.names import normal_name
from featbench.store.typing import Int8s

NAME_COLUMNS = ("labels", "classes", "tags", "targets", "categories", *LABEL_COLUMNS)
"""Columns, and keys in JSON, that hold the names of an image's classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeveralLabels:
    """Images and the classes of each."""

    paths: Sequence[str]
    matrix_NC: Int8s
    """1 for a class that the image has, 0 for one that it has not, -1 where that is not known."""

    class_names: tuple[str, ...]


Classes = Sequence[str] | None
"""Names of all classes, if they are given."""


def read_several(where: Path, classes: Classes = None, *, label_column: str | None = None) -> SeveralLabels:
    """Read a list of images with any number of classes each; see `featbench.extract.data.multi_label.list_several`.

    Raises
    ------
    DataError
        If it can't be read, or has an unknown class.
    """
    suffix = where.suffix.lower()
    if suffix not in (".txt", ".csv", ".tsv", ".json"):
        raise DataError(f"{where}: a list of images with several classes must end in .txt, .csv, .tsv or .json")
    refuse_special(where)
    try:
        if suffix == ".txt":
            found = _read_txt(where, classes)
        elif suffix == ".json":
            found = _read_json(where, classes)
        else:
            found = _read_csv(where, classes, label_column)
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}") from error
    odd = next((path for path in found.paths if "\0" in path or not path), None)
    if odd is not None:
        raise DataError(f"{where}: {odd!r} can't be the path of an image")
    return found


Row = tuple[str, Sequence[str]]
"""Path and classes of an image."""


def matrix_of(rows: Sequence[Row], classes: Classes, *, where: object) -> SeveralLabels:
    """Make a matrix of the classes of each row.

    Examples
    --------
    >>> found = matrix_of([("1.jpg", ["dog", "cat"]), ("2.jpg", [])], None, where="x.txt")
    >>> found.class_names, found.matrix_NC.tolist()
    (('cat', 'dog'), [[1, 1], [0, 0]])
    """
    if not rows:
        raise DataError(f"{where}: lists nothing")
    names = tuple(classes or sorted({normal_name(each) for _, found in rows for each in found}))
    if not names:
        raise DataError(f"{where}: no image has a class")
    place = {normal_name(name): index for index, name in enumerate(names)}
    matrix_NC = np.zeros((len(rows), len(names)), np.int8)
    for row, (path, found) in enumerate(rows):
        for each in found:
            text = normal_name(each)
            column = place.get(text)
            if column is None and classes is not None and text.isdecimal() and int(text) < len(names):
                column = int(text)
            if column is None:
                raise DataError(f"{where}: {path}: unknown class {text!r}. {suggest(text, names)}")
            matrix_NC[row, column] = 1
    return SeveralLabels(paths=[path for path, _ in rows], matrix_NC=matrix_NC, class_names=names)


def names_in(text: str, *, where: object) -> list[str]:
    """Split the names of classes: at `;` or `|`, or as a JSON list.

    Examples
    --------
    >>> names_in("cat; dining table", where="x.csv"), names_in('["cat"]', where="x.csv"), names_in("", where="x.csv")
    (['cat', 'dining table'], ['cat'], [])
    """
    text = text.strip()
    if not text.startswith("["):
        return [name.strip() for name in re.split(r"[;|]", text) if name.strip()]
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {text[:60]!r} is no list of classes ({error})") from error
    return _texts(names, where=where)


def _texts(names: Any, *, where: object) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{where}: {str(names)[:60]!r} is no list of classes")
    return [str(name) for name in names]


def _read_txt(where: Path, classes: Classes) -> SeveralLabels:
    rows: list[Row] = []
    for number, line in enumerate(text_of(where).split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        path, tab, rest = line.partition("\t")
        if not tab:
            ends = [found.end() for found in re.finditer(r"\.\w+(?=\s|$)", line)]
            end = next((end for end in ends if line[:end].lower().endswith(EXTENSIONS)), None)
            if end is None:
                raise DataError(f"{where}: line {number} is {line[:60]!r}: expected the path of an image and classes")
            path, rest = line[:end], line[end:]
        rows.append((path.rstrip(), names_in(rest, where=f"{where}: line {number}")))
    return matrix_of(rows, classes, where=where)


def _read_csv(where: Path, classes: Classes, label_column: str | None) -> SeveralLabels:
    text = text_of(where)
    first = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else ","
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if line]
    except csv.Error as error:
        raise DataError(f"{where}: not a .csv: {error}") from error
    head = [name.strip() for name in lines[0]] if lines else []
    low = [name.lower() for name in head]
    at = next((low.index(name) for name in PATH_COLUMNS if name in low), None)
    if at is None:
        raise DataError(f"{where}: no column of paths; expected a head with one called path, got {abbreviate(head)}")
    short = next((number for number, line in enumerate(lines, start=1) if len(line) != len(head)), None)
    if short is not None:
        raise DataError(f"{where}: line {short} has {len(lines[short - 1])} columns, the head has {len(head)}")
    names = (label_column.lower(),) if label_column else NAME_COLUMNS
    column = next((low.index(name) for name in names if name in low), None)
    if label_column and column is None:
        raise DataError(f"{where}: no column {label_column!r}. {suggest(label_column, head)}")
    body = [[cell.strip() for cell in line] for line in lines[1:]]
    if column is None:
        return _columns(where, head, body, at, classes)
    rows = [
        (line[at], names_in(line[column], where=f"{where}: line {number}")) for number, line in enumerate(body, start=2)
    ]
    return matrix_of(rows, classes, where=where)


def _columns(
    where: Path, head: Sequence[str], body: Sequence[Sequence[str]], at: int, classes: Classes
) -> SeveralLabels:
    """A column of 1, 0 or -1 for each class; an empty cell is not known."""
    names = [normal_name(name) for column, name in enumerate(head) if column != at]
    if not names or not body or len(set(names)) < len(names):
        raise DataError(
            f"{where}: expected a column called labels with names such as cat;dog, or one of 1, 0 or -1 (not known) "
            f"for each class; got the columns {abbreviate(list(head), show=8)} and {len(body):,} lines"
        )
    matrix_NC = np.empty((len(body), len(names)), np.int8)
    values = {"1": 1, "0": 0, "-1": -1, "": -1, "1.0": 1, "0.0": 0, "-1.0": -1}
    for row, line in enumerate(body):
        cells = [cell for column, cell in enumerate(line) if column != at]
        if wrong := next((cell for cell in cells if cell not in values), None):
            raise DataError(
                f"{where}: line {row + 2}: expected 1, 0 or -1 (not known) for each class; got {wrong[:60]!r}. Name "
                f"the column of names with data.label_column"
            )
        matrix_NC[row] = [values[cell] for cell in cells]
    if classes is not None and {normal_name(name) for name in classes} != set(names):
        raise DataError(f"{where}: its columns {abbreviate(names, show=8)} are not the classes of data.classes")
    return SeveralLabels(paths=[line[at] for line in body], matrix_NC=matrix_NC, class_names=tuple(names))


def _read_json(where: Path, classes: Classes) -> SeveralLabels:
    try:
        content: Any = parse_json(where.read_bytes(), where=str(where))
    except DocumentError as error:
        raise DataError(str(error)) from error
    if isinstance(content, Mapping) and "images" in content:
        rows, names = _coco(where, content)
        return matrix_of(rows, classes or names, where=where)
    rows = []
    if isinstance(content, Mapping):
        rows = [(str(path), _texts(names, where=f"{where}: {path}")) for path, names in content.items()]
        return matrix_of(rows, classes, where=where)
    for each in content if isinstance(content, list) else [None]:
        lowered = {str(key).lower(): value for key, value in each.items()} if isinstance(each, Mapping) else {}
        path = next((lowered[name] for name in PATH_COLUMNS if name in lowered), None)
        labels = next((lowered[name] for name in NAME_COLUMNS if name in lowered), None)
        if not isinstance(path, str) or labels is None:
            raise DataError(
                f"{where}: expected COCO's images and annotations, an object with a list of classes for each path, or "
                f"a list of objects with path and labels; got {str(each)[:60]!r}"
            )
        rows.append((path, _texts(labels, where=f"{where}: {path}")))
    return matrix_of(rows, classes, where=where)


def _coco(where: Path, content: Mapping[str, Any]) -> tuple[list[Row], Sequence[str]]:
    """The categories of an image's annotations, all of them counted once."""
    try:
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        files = {each["id"]: str(each["file_name"]) for each in content["images"]}
        found: dict[Any, dict[str, None]] = {image: {} for image in files}
        for each in content["annotations"]:
            found[each["image_id"]][names[each["category_id"]]] = None
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: expected COCO's images (id, file_name), categories (id, name) and annotations (image_id, "
            f"category_id); {type(error).__name__} at {error}"
        ) from error
    return [(file, list(found[image])) for image, file in files.items()], list(names.values())
