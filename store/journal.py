"""Journals: the record of which chunks are durably written, and their checksums.

One append-only file per rank, one line per chunk: eight hexadecimal digits of the line's own
crc32c, a space, and a JSON record. A chunk counts when a journal says so, never because a file is
there. A last line without its line feed was torn by a crash and does not count; any other line
that does not match its checksum is damage and is refused.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c

from store.durable import cannot_write, sync_folder, write_durably
from store.errors import DamagedError, StoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One object that is durably on disk: key, size in bytes, and the crc32c that ends it."""

    key: str
    """Path of the object below the feature set, such as `train/res5/c/0/0`."""

    size: int
    crc32c: int
    """Of all bytes but the last four, which hold this very number, little-endian (Zarr's crc32c codec)."""


class Journal:
    """One rank's journal, open for appending; `append` returns once the records are on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mend_torn_tail()

    def append(self, records: list[Record]) -> None:
        """Add records that belong together.

        Raises
        ------
        StoreError
            If the file system refuses.
        """
        lines = "".join(_line(record) for record in records)
        try:
            is_new = not self._path.exists()
            with self._path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                sync_folder(self._path.parent)
        except OSError as error:
            raise StoreError(cannot_write(self._path, error)) from error

    def _mend_torn_tail(self) -> None:
        if self._path.exists():
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                write_durably(self._path, whole)


class JournalReader:
    """The records of every journal in a folder, by key; reading again reads only what was added."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes_read: Counter[Path] = Counter()
        self._lines_read: Counter[Path] = Counter()
        self.records: dict[str, Record] = {}

    def update(self) -> dict[str, Record]:
        """Read what was added since the last time, and return all records.

        Raises
        ------
        DamagedError
            If a line is not what was written.
        """
        for path in journals(self._folder):
            with path.open("rb") as file:
                file.seek(self._bytes_read[path])
                lines = _whole_lines(file.read())
            for record in _records(lines, path, on_damage=_refuse, lines_before=self._lines_read[path]):
                self.records[record.key] = record
            self._bytes_read[path] += sum(map(len, lines))
            self._lines_read[path] += len(lines)
        return self.records


def rewrite_journals(folder: Path, keep: Callable[[Record], bool]) -> list[str]:
    """Drop damaged lines and the records that are not to be kept; return what was dropped."""
    dropped: list[str] = []
    for path in journals(folder):
        kept = []
        for record in _read(path, on_damage=lambda path, number: dropped.append(f"{path.name} line {number}")):
            if keep(record):
                kept.append(record)
            else:
                dropped.append(record.key)
        write_durably(path, "".join(map(_line, kept)).encode())
    return dropped


def journals(folder: Path) -> list[Path]:
    """Return the journals in a folder, in order of rank."""
    return sorted(folder.glob("*.jsonl"))


def damaged_lines(folder: Path) -> list[str]:
    """Name the lines that are not what was written."""
    found: list[str] = []
    for path in journals(folder):
        for _ in _read(path, on_damage=lambda path, number: found.append(f"{path.name} line {number}")):
            pass
    return found


def _read(path: Path, *, on_damage: Callable[[Path, int], object]) -> Iterator[Record]:
    return _records(_whole_lines(path.read_bytes()), path, on_damage=on_damage)


def _whole_lines(content: bytes) -> list[bytes]:
    """Lines with their line feeds; what follows the last one was torn by a crash."""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _records(
    lines: list[bytes], path: Path, *, on_damage: Callable[[Path, int], object], lines_before: int = 0
) -> Iterator[Record]:
    for number, line in enumerate(lines, start=lines_before + 1):
        check, _, text = line.removesuffix(b"\n").partition(b" ")
        if check != _check(text):
            on_damage(path, number)
        else:
            yield Record(**json.loads(text))


def _refuse(path: Path, number: int) -> None:
    raise DamagedError(
        f"{path}: line {number} is not what was written (its checksum differs). "
        f"Run `bench verify {path.parent.parent} --repair`, then `bench extract` again: it mends what is missing."
    )


def _line(record: Record) -> str:
    text = json.dumps(asdict(record), separators=(",", ":"))
    return f"{_check(text.encode()).decode()} {text}\n"


def _check(text: bytes) -> bytes:
    return f"{google_crc32c.value(text):08x}".encode()
