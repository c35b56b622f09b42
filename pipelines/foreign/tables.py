"""Text tables (.csv, .tsv): which columns are features, labels and paths, and how their cells are read.

The columns of numbers are the features, except row numbers, such as the index that pandas writes; a first line of
column numbers is skipped.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from featbench.pipelines.foreign.arrays import ImportingError
from featbench.store.names import visible
from featbench.store.typing import Array

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("labels", "label", "target", "targets", "class", "y")
PATH_COLUMNS = ("paths", "path", "files", "file", "filenames", "filename", "images", "image")
ROW_NUMBERS = ("id", "index", "idx", "row", "row_id")

_UNNAMED = re.compile(r"|unnamed: \d+", re.IGNORECASE)
"""How pandas names a column without a name, such as an index that was written and read again."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,15}\.0*|[+-]?[0-9](\.[0-9]+)?e[+-][0-9]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table file, and the meaning of its columns."""

    path: Path
    delimiter: str
    num_header_lines: int
    header: tuple[str, ...]
    features: tuple[int, ...]
    labels: int | None
    paths: int | None

    def read_features(self) -> Array:
        """Read the columns of numbers, shape (N, D)."""
        try:
            values = np.loadtxt(
                self.path, delimiter=self.delimiter, skiprows=self.num_header_lines, usecols=self.features, ndmin=2,
                encoding="utf-8-sig", comments=None, quotechar='"',
            )  # fmt: skip
        except ValueError as error:
            text = visible(" ".join(str(error).split())).removesuffix(".")
            raise ImportingError(
                f"{self.path}: {text[:200]}. Expected numbers, with a decimal point, in every column but label and path"
            ) from error
        counts = [place for place, index in enumerate(self.features) if self._numbers_rows(index, values[:, place])]
        return np.delete(values, counts, axis=1) if counts else values

    def read_text(self, index: int) -> Array:
        """Read one column as integers, floats or text."""
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, delimiter=self.delimiter)
            return values_of([row[index].strip() for row in islice(rows, self.num_header_lines, None) if row])

    def _numbers_rows(self, index: int, values: Array) -> bool:
        if self.header[index].lower() not in ROW_NUMBERS:
            return False
        is_number = bool((values == np.trunc(values)).all()) and len(np.unique(values)) == len(values)
        if is_number:
            logger.info("%s: column %r holds row numbers and is not a feature", self.path, self.header[index])
        return is_number


def open_table(path: Path) -> Table:
    """Find delimiter, header and meaning of the columns from the first line.

    Raises
    ------
    ImportingError
        If it can't be read, the first line is neither a header nor a row, or several columns could be the labels.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            line = file.readline()
            delimiter = _delimiter(line, path.suffix)
            file.seek(0)
            first = [cell.strip() for cell in next(csv.reader(file, delimiter=delimiter), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        text = visible(" ".join(str(error).split()))[:200]
        raise ImportingError(f"{path}: cannot be read as a UTF-8 text table ({text})") from error
    has_header = _has_header(path, first)
    header = first if has_header else [f"column {index}" for index in range(len(first))]
    labels, paths = (
        [index for index, name in enumerate(header) if name.lower() in known] for known in (LABEL_COLUMNS, PATH_COLUMNS)
    )
    if len(labels) > 1:
        names = ", ".join(header[index] for index in labels)
        raise ImportingError(
            f"{path}: several columns could be the labels: {names}. Remove or rename those that are not."
        )
    unnamed = [index for index, name in enumerate(header) if _UNNAMED.fullmatch(name)]
    if unnamed:
        logger.info("%s: skipping columns without a name: %s", path, ", ".join(str(i + 1) for i in unnamed))
    taken = {*labels, *paths, *unnamed}
    return Table(
        path=path,
        delimiter=delimiter,
        num_header_lines=int(has_header),
        header=tuple(header),
        features=tuple(index for index in range(len(header)) if index not in taken),
        labels=labels[0] if labels else None,
        paths=paths[0] if paths else None,
    )


def values_of(cells: Sequence[str]) -> Array:
    """Convert text to integers, or to whole floats (empty or nan: NaN), unless distinct texts would become equal.

    Examples
    --------
    >>> values_of(["1", "-1", "20"]).tolist()
    [1, -1, 20]
    >>> values_of(["1.0", "", "3.0"]).tolist()
    [1.0, nan, 3.0]
    >>> values_of(["1", "01", "1_0"]).tolist()
    ['1', '01', '1_0']
    """
    texts = set(cells)
    if all(map(_INTEGER.fullmatch, texts)) and len({int(text) for text in texts}) == len(texts):
        try:
            return np.array([int(cell) for cell in cells], np.int64)
        except OverflowError:
            return np.array(cells, np.str_)
    known = {text for text in texts if text.lower() not in ("", "nan")}
    if known and all(_WHOLE.fullmatch(text) or _INTEGER.fullmatch(text) for text in known):
        numbers = {text: float(text) for text in known}
        if len(set(numbers.values())) == len(known) and all(value.is_integer() for value in numbers.values()):
            return np.array([numbers.get(cell, np.nan) for cell in cells])
    return np.array(cells, np.str_)


def _delimiter(line: str, suffix: str) -> str:
    if suffix.lower() == ".tsv":
        return "\t"
    cells = {mark: len(next(csv.reader([line], delimiter=mark), [])) for mark in (",", ";", "\t")}
    return max((";", ",", "\t"), key=lambda mark: cells[mark]) if max(cells.values()) > 1 else ","


def _has_header(path: Path, first: Sequence[str]) -> bool:
    numbers = [cell for cell in first if _is_number(cell)]
    if len(numbers) == len(first):
        counts_columns = len(first) > 1 and list(first) == [str(index) for index in range(len(first))]
        if counts_columns:
            logger.info("%s: skipping the first line, which numbers the columns, as pandas writes them", path)
        return counts_columns
    if not all(_INTEGER.fullmatch(cell) for cell in numbers):
        raise ImportingError(
            f"{path}: its first line has names and numbers, so it is neither a header nor a row of numbers: "
            f"{', '.join(first[:4])}{', ...' if len(first) > 4 else ''}. Write a header such as label,0,1,2 before it."
        )
    return True


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
