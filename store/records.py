"""The records of journals in little memory: eight bytes for each chunk.

A feature set of a billion images has millions of chunks. Of each, size and checksum are kept, in arrays that are
indexed by the number of the chunk; keys are only made when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import numpy.typing as npt

from featbench.store.paths import chunk_key
from featbench.store.typing import Bools, Ints

UInt32s = npt.NDArray[np.uint32]

MAX_NUMBER = 2**24
"""Numbers of chunks from which on records are held one by one; no feature set has as many (`manifest.MAX_CHUNKS`)."""

MAX_ARRAYS = 4096
"""Most arrays whose records are held in tables; a journal may come from anyone."""

_CHUNK = re.compile(r"([^/]+/[^/]+)/c/(0|[1-9][0-9]{0,7})((?:/0)*)")

ArrayId = tuple[str, int]
"""Key of an array, such as `train/res5`, and the number of its axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One object that is durably on disk: key, size in bytes, and the crc32c that ends it."""

    key: str
    """Path of the object below the feature set, such as `train/res5/c/0/0`."""

    size: int
    crc32c: int
    """Checksum of all bytes except the last four, which are this number in little-endian order (Zarr's codec)."""


@dataclass(slots=True)
class ChunkTable:
    """Sizes and checksums of an array's chunks, by their numbers; a size of 0 means that there is no record."""

    sizes: UInt32s = field(default_factory=lambda: np.zeros(0, np.uint32))
    checksums: UInt32s = field(default_factory=lambda: np.zeros(0, np.uint32))

    def add(self, chunks: Ints, sizes: Ints, checksums: Ints) -> None:
        """Set the records of some chunks; of several for one chunk, the last counts."""
        needed = int(chunks.max()) + 1
        if needed > len(self.sizes):
            room = max(1024, 1 << (needed - 1).bit_length())
            self.sizes, self.checksums = _grown(self.sizes, room), _grown(self.checksums, room)
        self.sizes[chunks] = sizes
        self.checksums[chunks] = checksums

    def is_committed(self, num_chunks: int) -> Bools:
        """Whether each of the first chunks has a record."""
        found = np.zeros(num_chunks, np.bool_)
        known = self.sizes[:num_chunks]
        found[: len(known)] = known > 0
        return found


class Records(Mapping[str, Record]):
    """Records by key; those of one array together, in order of their chunks."""

    def __init__(self) -> None:
        self._tables: dict[ArrayId, ChunkTable] = {}
        self._others: dict[str, Record] = {}

    def add(self, record: Record) -> None:
        """Add one record, or replace that of the same key."""
        place = _place(record.key)
        fits = 0 < record.size < 2**32 and 0 <= record.crc32c < 2**32
        if place is None or not fits or (place[0] not in self._tables and len(self._tables) >= MAX_ARRAYS):
            self._others[record.key] = record
            if place is not None and place[0] in self._tables and place[1] < len(self._tables[place[0]].sizes):
                self._tables[place[0]].sizes[place[1]] = 0
            return
        self._others.pop(record.key, None)
        array, chunk = place
        self.add_chunks(array, *(np.array([value], np.int64) for value in (chunk, record.size, record.crc32c)))

    def add_chunks(self, array: ArrayId, chunks: Ints, sizes: Ints, checksums: Ints) -> None:
        """Add records of one array's chunks, whose numbers are below `MAX_NUMBER`, sizes and checksums of 32 bits."""
        self._tables.setdefault(array, ChunkTable()).add(chunks, sizes, checksums)
        if self._others:
            for chunk in chunks.tolist():
                self._others.pop(chunk_key(array[0], chunk, array[1]), None)

    def table(self, array: str, ndim: int) -> ChunkTable:
        """Return the records of an array."""
        return self._tables.get((array, ndim), _EMPTY)

    @property
    def num_bytes(self) -> int:
        """Size of all objects."""
        return sum(int(table.sizes.sum(dtype=np.int64)) for table in self._tables.values()) + sum(
            record.size for record in self._others.values()
        )

    def has_array(self, prefixes: tuple[str, ...]) -> bool:
        """Whether there is a record of a key that begins with one of some prefixes, each of which ends with `/`."""
        return any(f"{array}/".startswith(prefixes) for array, _ in self._tables) or any(
            key.startswith(prefixes) for key in self._others
        )

    def __getitem__(self, key: str) -> Record:
        place = _place(key)
        if place is not None:
            table = self._tables.get(place[0], _EMPTY)
            if place[1] < len(table.sizes) and table.sizes[place[1]]:
                return Record(key=key, size=int(table.sizes[place[1]]), crc32c=int(table.checksums[place[1]]))
        return self._others[key]

    def __contains__(self, key: object) -> bool:
        place = _place(key) if isinstance(key, str) else None
        if place is not None:
            table = self._tables.get(place[0], _EMPTY)
            if place[1] < len(table.sizes) and table.sizes[place[1]]:
                return True
        return key in self._others

    def __iter__(self) -> Iterator[str]:
        for (array, ndim), table in self._tables.items():
            for chunk in np.flatnonzero(table.sizes).tolist():
                yield chunk_key(array, chunk, ndim)
        yield from self._others

    def __len__(self) -> int:
        return sum(int(np.count_nonzero(table.sizes)) for table in self._tables.values()) + len(self._others)


class ChunkRecords(Sequence[Record]):
    """The records of all chunks of one array, each of which must have one."""

    def __init__(self, array: str, ndim: int, table: ChunkTable, num_chunks: int) -> None:
        self._array = array
        self._ndim = ndim
        self._sizes = table.sizes[:num_chunks].copy()
        self._checksums = table.checksums[:num_chunks].copy()

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, chunk: int) -> Record: ...
    @overload
    def __getitem__(self, chunk: slice) -> list[Record]: ...
    def __getitem__(self, chunk: int | slice) -> Record | list[Record]:
        if isinstance(chunk, slice):
            return [self[each] for each in range(*chunk.indices(len(self)))]
        chunk = range(len(self))[chunk]
        return Record(
            key=chunk_key(self._array, chunk, self._ndim),
            size=int(self._sizes[chunk]),
            crc32c=int(self._checksums[chunk]),
        )

    def json_items(self) -> Iterator[bytes]:
        """Yield `"key":[size,crc32c]` of each record in the order of the keys, as JSON with sorted keys has them."""
        sizes, checksums = self._sizes.tolist(), self._checksums.tolist()
        for number in sorted(map(str, range(len(self))), key=lambda number: f"{number}/"):
            key = chunk_key(self._array, int(number), self._ndim)
            yield f'"{key}":[{sizes[int(number)]},{checksums[int(number)]}]'.encode()


_EMPTY = ChunkTable()


def _place(key: str) -> tuple[ArrayId, int] | None:
    """The array and the number of a chunk's key; None if it is not written as `chunk_key` does."""
    match = _CHUNK.fullmatch(key)
    if match is None or int(match[2]) >= MAX_NUMBER:
        return None
    return (match[1], 1 + len(match[3]) // 2), int(match[2])


def _grown(values: UInt32s, room: int) -> UInt32s:
    found = np.zeros(room, np.uint32)  # pages that are never written to take no memory
    found[: len(values)] = values
    return found
