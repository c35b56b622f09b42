"""Reading lists of paths and labels: `.npy`, `.txt`, `.csv` and `.json`; see `featbench.extract.data.filelists`."""

from __future__ import annotations

import csv
import io
import stat
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.extract.data.images import EXTENSIONS, kind_of
from featbench.extract.errors import DataError
from featbench.store import abbreviate, suggest
from featbench.store.documents import DocumentError, parse_json
from featbench.store.typing import Ints

MAX_LIST_BYTES = 2**33
"""A list of a hundred million paths is smaller."""

PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "file_path", "filepath", "image", "image_path", "image_file", "image_name",
    "img", "img_path", "img_name", "imageid", "image_id", "name", "id",
)  # fmt: skip
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "wnid", "predictionstring")

Labels = Ints | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileList:
    """Contents of a list: its first column, and labels, if it has any."""

    where: Path
    paths: Sequence[str]
    labels: Labels | None


def read_list(where: Path, *, label_column: str | None = None) -> FileList:
    """Read a list of paths, of labels, or of both; `label_column` is for a `.csv` with a head.

    Raises
    ------
    DataError
        If there is none, or it is of no known kind.
    """
    read_csv = partial(_read_csv, label_column=label_column)
    readers: dict[str, Callable[[Path], FileList]] = {
        ".npy": _read_npy,
        ".txt": _read_txt,
        ".csv": read_csv,
        ".tsv": read_csv,
        ".json": _read_json,
    }
    if where.suffix not in readers:
        raise DataError(f"{where}: a list must end in {', '.join(readers)}; got {where.suffix or 'no ending'!r}")
    refuse_special(where)
    try:
        listed = readers[where.suffix](where)
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{where}: cannot be read: it is larger than memory") from error
    odd = next((str(path) for path in listed.paths if not _can_be_path(str(path))), None)
    if odd is not None:
        raise DataError(f"{where}: the path {odd!r} contains a NUL character or an invalid character")
    if not len(listed.paths):
        raise DataError(f"{where}: lists nothing")
    return listed


def _can_be_path(text: str) -> bool:
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def refuse_special(where: Path) -> None:
    """Refuse files that are not regular (a FIFO might block forever) or too large."""
    try:
        facts = where.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{where}: cannot be read as a list: {kind_of(facts.st_mode)}, not a regular file")
    if facts.st_size > MAX_LIST_BYTES:
        raise DataError(f"{where}: {facts.st_size / 2**30:.1f} GiB, too large for a list")


def read_classes(where: Path) -> tuple[str, ...]:
    """Read class names, one a line, or each with its number, as in Places365."""
    refuse_special(where)
    try:
        lines = [line.strip() for line in text_of(where).split("\n") if line.strip()]
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}") from error
    pairs = [line.rpartition(" ") for line in lines]
    numbers = [number for _, _, number in pairs]
    if lines and all(number.isdecimal() for number in numbers) and all(name for name, _, _ in pairs):
        if sorted(map(int, numbers)) != list(range(len(lines))):
            raise DataError(f"{where}: classes must be numbered from 0 to {len(lines) - 1}, each once")
        lines = [name.strip() for name, _, _ in sorted(pairs, key=lambda pair: int(pair[2]))]
    if not lines or len(set(lines)) < len(lines):
        twice = next((name for name in lines if lines.count(name) > 1), None)
        raise DataError(f"{where}: " + (f"the class {twice!r} is listed twice" if lines else "lists no class"))
    return tuple(lines)


def _read_npy(where: Path) -> FileList:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values: Any = np.load(where, allow_pickle=False, mmap_mode="r")  # refuses a shape beyond the file's bytes
        values = np.array(values) if isinstance(values, np.ndarray) else None
    except MemoryError:
        raise
    except Exception as error:  # numpy's header parser raises errors of many kinds
        raise DataError(
            f"{where}: not a plain .npy ({error}). Save the list as strings: np.save(path, np.array(paths, dtype=str))"
        ) from error
    if values is None:
        raise DataError(f"{where}: an archive of arrays; expected one array of strings: np.save(path, np.array(paths))")
    values = values.reshape(-1)
    if values.dtype.kind in "iu":
        return FileList(where=where, paths=values, labels=values.astype(np.int64))
    if values.dtype.kind == "S":
        texts = [value.decode("utf-8", "surrogateescape") for value in values.tolist()]
    elif values.dtype.kind == "U":
        if (
            values.dtype.itemsize
            and np.ascontiguousarray(values).view(values.dtype.str[0] + "u4").max(initial=0) > 0x10FFFF
        ):
            raise DataError(f"{where}: damaged: it contains invalid text")
        texts = values.tolist()
    else:
        raise DataError(f"{where}: expected strings or integers; got {values.dtype}")
    return FileList(where=where, paths=texts, labels=None)


def _read_txt(where: Path) -> FileList:
    return _of_lines(where, text_of(where).split("\n"))


def _of_lines(where: Path, lines: Sequence[str]) -> FileList:
    return _columns(where, [_path_and_label(line.strip()) for line in lines if line.strip()])


def _path_and_label(line: str) -> list[str]:
    if "\t" in line:
        return line.split("\t")
    path, space, last = line.rpartition(" ")
    is_label = space and path.rstrip().lower().endswith(EXTENSIONS) and not last.lower().endswith(EXTENSIONS)
    return [path.rstrip(), last] if is_label else [line]


def _read_csv(where: Path, label_column: str | None) -> FileList:
    text = text_of(where)
    first = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    if delimiter not in first:  # one column, or separated by spaces as in Places205
        is_head = first.strip().lower() in (*PATH_COLUMNS, *LABEL_COLUMNS)
        return _of_lines(where, text.split("\n")[is_head:])
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error as error:
        raise DataError(f"{where}: not a .csv: {error}") from error
    if not rows:
        raise DataError(f"{where}: lists nothing")
    head = [name.strip().lower() for name in rows[0]]
    path_column = next((head.index(name) for name in PATH_COLUMNS if name in head), None)
    no_labels = label_column is not None and label_column.lower() == "none"
    if path_column is None and (no_labels or label_column is None) and not any(name in head for name in LABEL_COLUMNS):
        listed = _columns(where, rows)
        return replace(listed, labels=None) if no_labels else listed
    chosen_column = _label_column(where, rows, head, path_column, label_column)
    columns = [column for column in (path_column, chosen_column) if column is not None]
    if not columns:
        raise DataError(f"{where}: no column of paths or labels; it has {abbreviate(head, show=8)}")
    short = next((row for row, cells in enumerate(rows) if len(cells) <= max(columns)), None)
    if short is not None:
        raise DataError(f"{where}: line {short + 1} has {len(rows[short])} columns, the head has {len(head)}")
    chosen = [[row[column].strip() for column in columns] for row in rows[1:]]
    if chosen_column is not None and head[chosen_column] == "predictionstring":  # class, then boxes
        chosen = [[*row[:-1], _only_class(row, where)] for row in chosen]
    return _columns(where, chosen, first_line=2)


def _label_column(
    where: Path, rows: Sequence[Sequence[str]], head: Sequence[str], path_column: int | None, named: str | None
) -> int | None:
    """Return the column of labels; None if there are none."""
    choose = "Say which with data.label_column=NAME, or continue without labels with data.label_column=none."
    if named is not None:
        if named.lower() == "none":
            return None
        if named.lower() not in head:
            raise DataError(f"{where}: no column {named!r}. {suggest(named, head)}")
        return head.index(named.lower())
    known = [head.index(name) for name in LABEL_COLUMNS if name in head]
    differing = [
        column
        for column in known[1:]
        if any(row[column : column + 1] != row[known[0] : known[0] + 1] for row in rows[1:])
    ]
    if differing:
        both = " or ".join(head[column] for column in (known[0], *differing))
        raise DataError(f"{where}: which column holds the labels: {both}? {choose}")
    if not known and len(head) > 1:
        raise DataError(
            f"{where}: no column of labels is recognized; it has {abbreviate(list(head), show=8)}. {choose}"
        )
    return known[0] if known else None


def _only_class(row: Sequence[str], where: Path) -> str:
    """Return the class of Kaggle's `class x y x y class x y x y ...`."""
    names = sorted(set(row[-1].split()[::5]))
    if len(names) > 1:
        raise DataError(
            f"{where}: {row[0]} has several labels: {abbreviate(names)}. Each image counts as one class here."
        )
    return names[0] if names else ""


def _columns(where: Path, rows: Sequence[Sequence[str]], *, first_line: int = 1) -> FileList:
    width = len(rows[0]) if rows else 1
    odd = next((row for row, cells in enumerate(rows) if len(cells) != width or len(cells) > 2), None)
    if odd is not None:
        raise DataError(
            f"{where}: line {odd + first_line} is {abbreviate(rows[odd], show=4)!r}: expected a path"
            f"{' and a label' if width == 2 else ', or a path and a label'}, as in the other lines. Paths with a comma "
            f"need quotes."
        )
    labels = [row[1].strip() for row in rows] if width == 2 else None
    return FileList(where=where, paths=[row[0] for row in rows], labels=labels)


def _read_json(where: Path) -> FileList:
    try:
        content: dict[str, Any] = parse_json(where.read_bytes(), where=str(where))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
        pairs = [(each["image_id"], each["category_id"]) for each in content.get("annotations", [])]
        classes = dict(pairs)
        unknown = next((category for _, category in pairs if names and category not in names), None)
        several = next(((image, category) for image, category in pairs if classes[image] != category), None)
        known = {image: category for image, category in pairs if category is not None}
        if len(set(names.values())) < len(names):
            names = {}
        labels = [str(names.get(known.get(image), known.get(image, ""))) for image in files] if classes else None
    except (DocumentError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{where}: expected images (id, file_name) and annotations (image_id, category_id), one for each image, as "
            f"COCO and iNaturalist have them; {type(error).__name__} at {error}"
        ) from error
    if unknown is not None:
        raise DataError(
            f"{where}: category {unknown!r} is none of its categories: {abbreviate(list(map(str, names)), show=8)}"
        )
    if several is not None:
        image, category = several
        both = " and ".join(repr(names.get(each, each)) for each in (category, classes[image]))
        raise DataError(
            f"{where}: {files.get(image, image)} has several labels: {both}. Each image counts as one class here: keep "
            f"one annotation of each image, or give the labels in a list of their own (data.train_labels, "
            f"data.val_labels)."
        )
    return FileList(where=where, paths=list(files.values()), labels=labels)


def text_of(where: Path) -> str:
    """Text of a file; bytes that are not UTF-8 are kept."""
    return where.read_bytes().decode("utf-8-sig", "surrogateescape")
