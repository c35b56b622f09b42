"""Journals: the record of which chunks are durably written, and their checksums.

One append-only file per rank, one line per chunk: the crc32c of the record in eight hexadecimal digits,
a space, and the record in JSON. A chunk counts when it is in a journal, never because its file exists.
A last line without its line feed was torn by a crash and does not count; any other line that does not
match its checksum is damaged and is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import google_crc32c
import numpy as np

from featbench.store.errors import DamagedError
from featbench.store.folder import Folder, checked_key
from featbench.store.paths import JOURNALS, journals_in
from featbench.store.records import Record, Records
from featbench.store.regular import open_regular

BATCH_BYTES = 2**22
"""Bytes of a journal that are parsed at a time."""

THREADS = 16
"""Journals that are opened at a time: on a network file system, opening one takes a round trip or more."""

FEW = 8
"""Journals that are opened one by one."""

_LINE = re.compile(
    rb'(?m)^([0-9a-f]{8}) (\{"key":"([^"/\\\n]+/[^"/\\\n]+)/c/(0|[1-9][0-9]{0,6})((?:/0)*)",'
    rb'"size":([1-9][0-9]{0,8}),"crc32c":(0|[1-9][0-9]{0,9})\})\n'
)
"""A line as `Journal` writes it; any other JSON of the same meaning is parsed as such."""


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
        self.records = Records()

    def update(self, *, trust_sizes: bool = False) -> Records:
        """Read what has been added since, and return all records.

        Parameters
        ----------
        trust_sizes : bool
            Do not open a journal whose size is the same as before. On network file systems, sizes may be some
            seconds old, so this is only for showing how far a run is.

        Raises
        ------
        DamagedError
            If a line is not what was written.
        """
        paths = journals_in(self._folder)
        if trust_sizes:
            paths = [path for path in paths if path.stat().st_size > self._bytes_read[path]]
        if len(paths) <= FEW:
            self._take_all(paths, map(self._read_on, paths))
            return self.records
        with ThreadPoolExecutor(THREADS) as readers:
            for at in range(0, len(paths), 4 * THREADS):  # not all at once, since they may be long
                some = paths[at : at + 4 * THREADS]
                self._take_all(some, readers.map(self._read_on, some))
        return self.records

    def _take_all(self, paths: Sequence[Path], contents: Iterator[bytes]) -> None:
        for path, content in zip(paths, contents, strict=True):
            while content:
                self._take(path, content)
                content = self._read_on(path) if len(content) > BATCH_BYTES // 2 else b""

    def _read_on(self, path: Path) -> bytes:
        return _some_lines(path, self._bytes_read[path])

    def _take(self, path: Path, content: bytes) -> None:
        if not _add_lines(content, self.records):
            lines = content.splitlines(keepends=True)
            for record in _records(lines, path, on_damage=_refuse, lines_before=self._lines_read[path]):
                self.records.add(record)
        self._bytes_read[path] += len(content)
        self._lines_read[path] += content.count(b"\n")


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
        number = 0
        for content in _batches(path):
            if not _add_lines(content, Records()):
                lines = content.splitlines(keepends=True)
                for _ in _records(
                    lines,
                    path,
                    on_damage=lambda path, line: found.append(f"{path.name} line {line}"),
                    lines_before=number,
                ):
                    pass
            number += content.count(b"\n")
    return found


def journalled(folder: Path) -> set[str]:
    """Names of the arrays with a chunk in a journal; damaged lines are ignored."""
    records = (record for path in journals_in(folder) for record in _read(path, on_damage=lambda path, number: None))
    return {record.key.split("/")[1] for record in records if "/" in record.key}


def _read(path: Path, *, on_damage: Callable[[Path, int], object]) -> Iterator[Record]:
    number = 0
    for content in _batches(path):
        lines = content.splitlines(keepends=True)
        yield from _records(lines, path, on_damage=on_damage, lines_before=number)
        number += len(lines)


def _batches(path: Path) -> Iterator[bytes]:
    """Yield all whole lines, some at a time."""
    start = 0
    while content := _some_lines(path, start):
        yield content
        start += len(content)


def _some_lines(path: Path, start: int) -> bytes:
    """Return the next whole lines, about `BATCH_BYTES` of them; a rest without a line feed was torn by a crash."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            file.seek(start)
            content = file.read(BATCH_BYTES)
            if len(content) == BATCH_BYTES and b"\n" not in content:
                content += file.read()
    except OSError as error:
        raise DamagedError(
            f"{path}: cannot be read ({error.strerror}). Restore its permissions, or if it is not a file, remove it "
            f"and run `bench verify {path.parent.parent} --repair`."
        ) from error
    return content[: content.rfind(b"\n") + 1]


def _add_lines(content: bytes, records: Records) -> bool:
    """Add the records of lines that are all written as usual and intact; else add none and return False."""
    found = _LINE.findall(content)
    if len(found) != content.count(b"\n"):
        return False
    checks, texts, arrays, chunks, axes, sizes, checksums = zip(*found, strict=True)
    stated = np.frombuffer(bytes.fromhex(b"".join(checks).decode()), ">u4")
    if not np.array_equal(stated, np.fromiter(map(google_crc32c.value, texts), np.uint32, len(texts))):
        return False
    columns = [np.fromiter(map(int, each), np.int64, len(each)) for each in (chunks, sizes, checksums)]
    numbers: dict[tuple[bytes, bytes], int] = {}
    array_of = np.fromiter(
        (numbers.setdefault(each, len(numbers)) for each in zip(arrays, axes, strict=True)), np.int64
    )
    try:
        names = [(checked_key(array.decode()), 1 + len(zeros) // 2) for array, zeros in numbers]
    except (DamagedError, UnicodeDecodeError):
        return False
    if columns[2].max() >= 2**32 or any("zarr.json" in name for name, _ in names):
        return False
    for number, name in enumerate(names):
        chosen = array_of == number
        records.add_chunks(name, *(column[chosen] for column in columns))
    return True


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
