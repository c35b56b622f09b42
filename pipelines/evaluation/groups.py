"""Groups of images, as a CSV file lists them: cameras, domains, patients."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featbench.evaluate.diagnosis.diagnosis import Groups
from featbench.store import BenchError, suggest
from featbench.store.names import normal_name
from featbench.store.typing import Ints

PATH = "path"
"""Column of the images' names."""


class GroupsError(BenchError):
    """A file of groups that can't be used."""


def read_groups(file: Path, paths: Sequence[str], *, what: str) -> Groups:
    """Read the groups of images.

    Parameters
    ----------
    file : Path
        CSV with a header: a column `path`, and one for each grouping. An image without a line, or with an empty cell,
        is in no group.
    paths : sequence of str
        What the feature set calls each row.
    what : str
        Name of these rows in messages.

    Raises
    ------
    GroupsError
        If the file can't be read, has no such columns, lists a path twice with different groups, or lists no image.
    """
    header, lines = _lines(file)
    if PATH not in header:
        raise GroupsError(
            f"{file}: expected a column {PATH!r} with the names of the images; got the columns {', '.join(header)}. "
            f"{suggest(PATH, header)}"
        )
    groupings = [name for name in header if name != PATH]
    if not groupings:
        raise GroupsError(f"{file}: expected a column of groups beside {PATH!r}, such as camera")
    by_path: dict[str, dict[str, str]] = {}
    for number, line in lines:
        path = normal_name(line[PATH])
        if by_path.setdefault(path, line) != line:
            raise GroupsError(f"{file}, line {number}: {line[PATH]} was listed before, in other groups")
    found = [by_path.get(normal_name(path), {}) for path in paths]
    if not any(found):
        example = f" (such as {next(iter(by_path))!r})" if by_path else ""
        raise GroupsError(
            f"{file}: none of its {len(by_path):,} paths{example} is an image of {what}, whose names are such as "
            f"{paths[0]!r}. Write the paths as `bench export --what features` does"
        )
    return {name: numbered_groups([line.get(name, "") for line in found]) for name in groupings}


def numbered_groups(values: Sequence[str]) -> tuple[Sequence[str], Ints]:
    """Names of groups in order, and the number of each row's; -1 for an empty name, which is none."""
    names = sorted({value for value in values if value})
    number = {name: index for index, name in enumerate(names)}
    return names, np.array([number.get(value, -1) for value in values], np.int64)


def _lines(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and lines of the file, with their numbers."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, strict=True)
            header = next(rows, [])
            listed = [(rows.line_num, row) for row in rows if row]
    except OSError as error:
        raise GroupsError(f"{file}: can't be read ({error.strerror}). Give a CSV file of paths and groups") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise GroupsError(f"{file}: can't be read as CSV ({error})") from error
    if not header:
        raise GroupsError(f"{file}: is empty; expected a header with {PATH!r} and a column of groups")
    if len(set(header)) < len(header):
        raise GroupsError(f"{file}: a column is named twice in its header: {', '.join(header)}")
    for number, row in listed:
        if len(row) != len(header):
            raise GroupsError(f"{file}, line {number}: expected {len(header)} cells, as in the header; got {len(row)}")
    return header, [(number, dict(zip(header, row, strict=True))) for number, row in listed]
