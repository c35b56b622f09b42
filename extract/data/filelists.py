"""Lists of images: files of paths, with labels beside them or in a second list.

`.npy` of strings (as VISSL's `disk_filelist` reads them), `.txt` (a path a line, or a path and a
label), `.csv` (with or without a head) and `.json` (images and annotations, as COCO and iNaturalist
write them). Labels are numbers or names of classes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extract.data.images import EXTENSIONS
from extract.data.kept import stamp_of
from extract.data.listing import DataError, Entries, Ints, Listing, first_duplicate
from store import nearest, some

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "imageid", "image_id", "name", "id")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "wnid", "predictionstring")

Labels = npt.NDArray[np.int64] | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileList:
    """What a list says: texts of its first column, and labels, if it has any."""

    where: Path
    paths: Sequence[str]
    labels: Labels | None


def list_files(
    where: Path,
    *,
    root: Path | None = None,
    labels: Path | None = None,
    classes: Path | None = None,
    on_missing: str = "stop",
) -> Listing:
    """List the images that a file names.

    Parameters
    ----------
    where : Path
        The list.
    root : Path, optional
        What its paths are relative to, and may not lead out of; without it they are absolute, or
        relative to the list.
    labels : Path, optional
        A second list, of labels.
    classes : Path, optional
        Names of the classes, one a line; numbers count them from 0.
    on_missing : {"stop", "skip"}
        What images that are not there do.

    Raises
    ------
    DataError
        If a list can't be read, the lists differ in length, a label or path is not as it must be.
    """
    listed = read_list(where)
    known = read_classes(classes) if classes is not None else None
    found = labels_beside(listed, read_list(labels) if labels is not None else None)
    numbers, names = numbered(found, known, where=labels or where) if found is not None else (None, known or ())
    entries = Entries()
    base = root if root is not None else where.parent.resolve()
    missing: list[str] = []
    for row, path in enumerate(_within(listed, root)):
        changed, size = stamp_of(os.path.join(base, path))  # noqa: PTH118 (a million times)
        entries.add(path, size=size, changed=changed, label=-1 if numbers is None else int(numbers[row]))
        if size < 0:
            missing.append(path)
    listing = entries.listing(
        class_names=names,
        watched=[(str(path), *stamp_of(path)) for path in (where, labels, classes) if path is not None],
    )
    if missing and (on_missing == "stop" or len(missing) == len(listing)):
        raise DataError(
            f"{where}: images that are not there: {len(missing):,} of {len(listing):,}, such as {base / missing[0]}. "
            f"Say which folder the paths are relative to with --data, or leave them out with --on-error skip."
        )
    twice = first_duplicate(listing.paths)
    if twice is not None:
        raise DataError(f"{where}: {twice} is listed twice. Remove the repetition: each row is one image.")
    return listing


def read_list(where: Path) -> FileList:
    """Read a list of paths, of labels, or of both.

    Raises
    ------
    DataError
        If there is none, or it is of no known kind.
    """
    readers = {".npy": _read_npy, ".txt": _read_txt, ".csv": _read_csv, ".tsv": _read_csv, ".json": _read_json}
    if where.suffix not in readers:
        raise DataError(f"{where}: a list must end in {', '.join(readers)}; got {where.suffix or 'no ending'!r}")
    try:
        listed = readers[where.suffix](where)
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}") from error
    if not len(listed.paths):
        raise DataError(f"{where}: lists nothing")
    return listed


def read_classes(where: Path) -> tuple[str, ...]:
    """Read names of classes, one a line, or each with its number, as Places365 writes them."""
    try:
        lines = [line.strip() for line in _text(where).split("\n") if line.strip()]
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


def labels_beside(listed: FileList, second: FileList | None) -> Labels | None:
    """Labels of the list itself, or of a second one of the same length."""
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
    """Turn labels into numbers of classes, and give the classes' names.

    Without names of classes, they are the labels that occur, in order.

    Raises
    ------
    DataError
        If a label is no class.
    """
    values = _as_numbers(labels)
    if values is None:
        unique, numbers = np.unique(np.asarray(labels, np.str_), return_inverse=True)
        names = [str(name) for name in unique]
        if classes is None:
            return numbers.astype(np.int64), tuple(names)
        place = {name: number for number, name in enumerate(classes)}
        unknown = [name for name in names if name not in place]
        if unknown:
            raise DataError(f"{where}: unknown class {unknown[0]!r}. {nearest(unknown[0], classes)}")
        return np.array([place[name] for name in names], np.int64)[numbers], tuple(classes)
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


def _as_numbers(labels: Labels) -> Ints | None:
    if isinstance(labels, np.ndarray):
        return labels
    try:
        return np.array([int(label) for label in labels], np.int64)
    except (ValueError, OverflowError):
        return None


def _within(listed: FileList, root: Path | None) -> Sequence[str]:
    """Paths as they are below the root.

    Lists such as Places365's begin each path with a slash that means the root.
    """
    if root is None:
        return listed.paths
    prefix = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118 (links are not to be resolved)
    slash_means_root = listed.paths[0].startswith("/") and not listed.paths[0].startswith(prefix)
    inner = []
    for row, path in enumerate(listed.paths):
        if slash_means_root:
            short = path.lstrip("/")
        else:
            short = path[len(prefix) :] if path.startswith(prefix) else path
        if ".." in short or short.startswith("/"):
            short = os.path.normpath(short)
            if short.startswith(("/", "../")) or short == "..":
                raise DataError(f"{listed.where}: {path} in row {row} leads out of the root, {root}")
        inner.append(short)
    return inner


def _read_npy(where: Path) -> FileList:
    try:
        values = np.load(where, allow_pickle=False)
    except ValueError as error:
        raise DataError(
            f"{where}: not a plain .npy ({error}). Save the list as strings: np.save(path, np.array(paths, dtype=str))"
        ) from error
    values = values.reshape(-1)
    if values.dtype.kind in "iu":
        return FileList(where=where, paths=values, labels=values.astype(np.int64))
    if values.dtype.kind == "S":
        texts = [value.decode("utf-8", "surrogateescape") for value in values.tolist()]
    elif values.dtype.kind == "U":
        texts = values.tolist()
    else:
        raise DataError(f"{where}: expected strings or whole numbers; got {values.dtype}")
    return FileList(where=where, paths=texts, labels=None)


def _read_txt(where: Path) -> FileList:
    return _of_lines(where, _text(where).split("\n"))


def _of_lines(where: Path, lines: Sequence[str]) -> FileList:
    return _columns(where, [_path_and_label(line.strip()) for line in lines if line.strip()])


def _path_and_label(line: str) -> list[str]:
    if "\t" in line:
        return line.split("\t")
    path, space, last = line.rpartition(" ")
    is_label = space and path.rstrip().lower().endswith(EXTENSIONS) and not last.lower().endswith(EXTENSIONS)
    return [path.rstrip(), last] if is_label else [line]


def _read_csv(where: Path) -> FileList:
    text = _text(where)
    first = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    if delimiter not in first:  # one column, or separated by spaces as Places205's are
        is_head = first.strip().lower() in (*PATH_COLUMNS, *LABEL_COLUMNS)
        return _of_lines(where, text.split("\n")[is_head:])
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    head = [name.strip().lower() for name in rows[0]]
    path_column = next((head.index(name) for name in PATH_COLUMNS if name in head), None)
    label_column = next((head.index(name) for name in LABEL_COLUMNS if name in head), None)
    if path_column is None and label_column is None:
        return _columns(where, rows)
    columns = [column for column in (path_column, label_column) if column is not None]
    short = next((row for row, cells in enumerate(rows) if len(cells) <= max(columns)), None)
    if short is not None:
        raise DataError(f"{where}: line {short + 1} has {len(rows[short])} columns, the head has {len(head)}")
    chosen = [[row[column].strip() for column in columns] for row in rows[1:]]
    if label_column is not None and head[label_column] == "predictionstring":  # class, then boxes
        chosen = [[*row[:-1], row[-1].split()[0]] for row in chosen]
    return _columns(where, chosen, first_line=2)


def _columns(where: Path, rows: Sequence[Sequence[str]], *, first_line: int = 1) -> FileList:
    width = len(rows[0]) if rows else 1
    odd = next((row for row, cells in enumerate(rows) if len(cells) != width or len(cells) > 2), None)
    if odd is not None:
        raise DataError(
            f"{where}: line {odd + first_line} is {some(rows[odd], show=4)!r}: expected a path"
            f"{' and a label' if width == 2 else ', or a path and a label'}, as in the other lines. Paths with a comma "
            f"need quotes."
        )
    labels = [row[1].strip() for row in rows] if width == 2 else None
    return FileList(where=where, paths=[row[0] for row in rows], labels=labels)


def _read_json(where: Path) -> FileList:
    try:
        content: dict[str, Any] = json.loads(where.read_bytes())
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
        classes = {each["image_id"]: each["category_id"] for each in content.get("annotations", [])}
        if len(set(names.values())) < len(names):
            names = {}
        labels = [str(names.get(classes[image], classes[image])) for image in files] if classes else None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{where}: expected images (id, file_name) and annotations (image_id, category_id), one for each image, as "
            f"COCO and iNaturalist have them; {type(error).__name__} at {error}"
        ) from error
    return FileList(where=where, paths=list(files.values()), labels=labels)


def _text(where: Path) -> str:
    return where.read_bytes().decode("utf-8-sig", "surrogateescape")
