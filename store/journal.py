"""Journals: the record of which chunks are durably written, and their checksums.

One append-only file per rank, one line per chunk: the crc32c of the record in eight hexadecimal digits,
a space, and the record in JSON. A chunk counts when it is in a journal, never because its file exists.
A last line without its line feed was torn by a crash and does not count; any other line that does not
match its checksum is damaged and is refused.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c

from featbench.store.errors import DamagedError
from featbench.store.folder import Folder, checked_key
from featbench.store.paths import JOURNALS, journals_in
from featbench.store.regular import open_regular


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One object that is durably on disk: key, size in bytes, and the crc32c that ends it."""

    key: str
    """Path of the object below the feature set, such as `train/res5/c/0/0`."""

    size: int
    crc32c: int
    """Checksum of all bytes except the last four, which are this number in little-endian order (Zarr's codec)."""


class Journal:
    """One rank's journal, open for appending; `append` returns once the records are on disk."""

    def __init__(self, folder: Folder, key: str) -> None:
        self._folder = folder
        self._key = key
        content = folder.read(key) or b""
        whole = b"".join(_whole_lines(content))
        if len(whole) < len(content):  # torn by a crash
            folder.write(key, whole)

    def append(self, records: list[Record]) -> None:
        """Append records that belong together.

        Raises
        ------
        StoreError
            If writing fails.
        """
        self._folder.append(self._key, "".join(map(_line, records)).encode())


class JournalReader:
    """The records of all journals in a folder, by key; updates read only what was added."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes_read: Counter[Path] = Counter()
        self._lines_read: Counter[Path] = Counter()
        self.records: dict[str, Record] = {}

    def update(self) -> dict[str, Record]:
        """Read what has been added since, and return all records.

        Raises
        ------
        DamagedError
            If a line is not what was written.
        """
        for path in journals_in(self._folder):
            lines = _whole_lines(_content(path, self._bytes_read[path]))
            for record in _records(lines, path, on_damage=_refuse, lines_before=self._lines_read[path]):
                self.records[record.key] = record
            self._bytes_read[path] += sum(map(len, lines))
            self._lines_read[path] += len(lines)
        return self.records


def rewrite_journals(folder: Folder, keep: Callable[[Record], bool]) -> list[str]:
    """Remove damaged lines and the records for which `keep` is false; return what was removed.

    `folder` is the feature set's. A journal from which nothing is removed is not rewritten.
    """
    dropped: list[str] = []
    for path in journals_in(folder.path / JOURNALS):
        before = len(dropped)
        remaining = []
        for record in _read(path, on_damage=lambda path, number: dropped.append(f"{path.name} line {number}")):
            if keep(record):
                remaining.append(record)
            else:
                dropped.append(record.key)
        if len(dropped) > before:
            folder.write(f"{JOURNALS}/{path.name}", "".join(map(_line, remaining)).encode())
    return dropped


def record_of(folder: Folder, key: str) -> Record:
    """Make the record of an object that was just written, from its size and its checksum, the last four bytes."""
    size, tail = folder.tail(key, 4)
    return Record(key=key, size=size, crc32c=int.from_bytes(tail, "little"))


def damaged_lines(folder: Path) -> list[str]:
    """Name the damaged lines."""
    found: list[str] = []
    for path in journals_in(folder):
        for _ in _read(path, on_damage=lambda path, number: found.append(f"{path.name} line {number}")):
            pass
    return found


def journalled(folder: Path) -> set[str]:
    """Names of the arrays with a chunk in a journal; damaged lines are ignored."""
    records = (record for path in journals_in(folder) for record in _read(path, on_damage=lambda path, number: None))
    return {record.key.split("/")[1] for record in records if "/" in record.key}


def _read(path: Path, *, on_damage: Callable[[Path, int], object]) -> Iterator[Record]:
    return _records(_whole_lines(_content(path)), path, on_damage=on_damage)


def _content(path: Path, start: int = 0) -> bytes:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            file.seek(start)
            return file.read()
    except OSError as error:
        raise DamagedError(
            f"{path}: cannot be read ({error.strerror}). Restore its permissions, or if it is not a file, remove it "
            f"and run `bench verify {path.parent.parent} --repair`."
        ) from error


def _whole_lines(content: bytes) -> list[bytes]:
    """Lines with their line feeds; a rest without one was torn by a crash."""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _records(
    lines: list[bytes], path: Path, *, on_damage: Callable[[Path, int], object], lines_before: int = 0
) -> Iterator[Record]:
    for number, line in enumerate(lines, start=lines_before + 1):
        check, _, text = line.removesuffix(b"\n").partition(b" ")
        record = _record(text) if check == _check(text) else None
        if record is None:
            on_damage(path, number)
        else:
            yield record


def _record(text: bytes) -> Record | None:
    """Parse the record of a line; None if it is not valid."""
    try:
        content = json.loads(text)
        record = Record(key=content["key"], size=content["size"], crc32c=content["crc32c"])
        checked_key(record.key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DamagedError):
        return None
    return record if type(record.size) is int and type(record.crc32c) is int else None


def _refuse(path: Path, number: int) -> None:
    raise DamagedError(
        f"{path}: line {number} is not what was written (its checksum differs). "
        f"Run `bench verify {path.parent.parent} --repair`, then `bench extract` again: it writes what is missing."
    )


def _line(record: Record) -> str:
    text = json.dumps(asdict(record), separators=(",", ":"))
    return f"{_check(text.encode()).decode()} {text}\n"


def _check(text: bytes) -> bytes:
    return f"{google_crc32c.value(text):08x}".encode()
