"""Reading a layer in blocks that fit in memory, with every chunk checked.

A chunk is read only if it is in a journal; its size and checksum must be those in the journal, and its
bytes must match the checksum. Uncompressed chunks are read directly into the block: Zarr would copy
them several times, at a third of the speed (docs/benchmarks). Each piece of such a chunk is checked, and handed to
`on_rows`, while it is in a core's cache, so that memory is passed over once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zarr

from featbench.store.checked import checked_rows, damaged_chunk
from featbench.store.checksum import extended
from featbench.store.layout import Grid, RowRange
from featbench.store.records import Record
from featbench.store.regular import open_regular
from featbench.store.typing import Floats

T = TypeVar("T")

THREADS = 4
"""Chunks read at the same time; reading is limited by the disk and memory, rarely by the CPU."""

PIECE_BYTES = 2**20
"""Bytes of the pieces in which a chunk is read: fits in a core's cache."""

OnRows = Callable[[int, Floats], object]
"""Called with the first row of a piece and its features, shape (rows, D)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive rows of one layer: row `start + i` of the store is `features[i]`, flattened to (rows, D)."""

    start: int
    features: Floats


class LayerReader:
    """One layer of one split: complete, and checked as it is read."""

    def __init__(
        self,
        *,
        root: Path,
        key: str,
        array: zarr.Array[Any],
        grid: Grid,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        plain: bool,
        records: Sequence[Record],
        cure: str,
    ) -> None:
        self.key = key
        self.num_rows = grid.num_rows
        self.dim = math.prod(shape)
        self._root = root
        self._grid = grid
        self._records = records
        self._cure = cure
        # Plain chunks of float32 need no conversion on the way into the block.
        self._direct = plain and dtype == np.float32
        self._array = array

    def blocks(self, rows_per_block: int) -> Iterator[Block]:
        """Yield all rows in order, reading one block ahead; see `map_blocks`."""
        return self.map_blocks(lambda block: block, rows_per_block)

    def map_blocks(
        self,
        prepare: Callable[[Block], T],
        rows_per_block: int,
        chunks: range | None = None,
        on_rows: OnRows | None = None,
    ) -> Iterator[T]:
        """Yield `prepare(block)` for each block; it runs in the reading thread, in parallel to the caller.

        Two buffers are used in turn, so a block's features are valid until the next block is requested,
        and at most two blocks are in memory.

        Parameters
        ----------
        prepare : callable
            May change the block's features in place.
        rows_per_block : int
            Most rows of a block, but at least one chunk.
        chunks : range, optional
            Consecutive chunks to read, at least one; all by default.
        on_rows : callable, optional
            Called with every row of a block before `prepare` is, in pieces that have just been read, by several threads
            at a time. It may change the features in place, but must accept any values: those of a damaged chunk, too,
            which is only refused once all of it has been read.

        Raises
        ------
        DamagedError
            If a chunk is not what was written; the message names it.
        """
        plan = self._grid.blocks(rows_per_block, chunks)
        rows = max(len(block) for block in plan) * self._grid.rows_per_chunk
        buffers = [np.empty((min(rows, self.num_rows), self.dim), np.float32) for _ in plan[:2]]

        def read(index: int) -> T:
            return prepare(self._read_block(plan[index], buffers[index % 2], readers, on_rows))

        with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(read, 0)
            for index in range(len(plan)):
                block = upcoming.result()
                if index + 1 < len(plan):
                    upcoming = ahead.submit(read, index + 1)
                yield block

    @property
    def rows_per_chunk(self) -> int:
        return self._grid.rows_per_chunk

    def peek(self, chunk: int) -> Floats:
        """Return the rows of one chunk, shape (rows, D), read-only, to select some of them.

        For chunks that have just been read, and so checked: an uncompressed chunk is memory-mapped, so
        that only the selected rows are read, and its checksum is not computed again.
        """
        rows, record = self._grid.rows(chunk), self._records[chunk]
        path = self._root / record.key
        if self._direct and path.stat().st_size == record.size:
            return np.memmap(path, np.float32, mode="r", shape=(len(rows), self.dim))
        values = checked_rows(self._root, self._array, record, rows, chunk=chunk, cure=self._cure)
        return values.reshape(len(rows), self.dim).astype(np.float32)

    def read(self) -> Floats:
        """Return all rows, shape (N, D), for splits that fit in memory, such as the queries."""
        buffer = np.empty((self.num_rows, self.dim), np.float32)
        with ThreadPoolExecutor(THREADS) as readers:
            return self._read_block(range(self._grid.num_chunks), buffer, readers).features

    def _read_block(
        self, chunks: Sequence[int], buffer: Floats, readers: ThreadPoolExecutor, on_rows: OnRows | None = None
    ) -> Block:
        start = self._grid.rows(chunks[0]).start
        stop = self._grid.rows(chunks[-1]).stop

        def read_chunk(chunk: int) -> None:
            rows = self._grid.rows(chunk)
            self._read_chunk(chunk, rows, buffer[rows.start - start : rows.stop - start], on_rows)

        list(readers.map(read_chunk, chunks))
        return Block(start=start, features=buffer[: stop - start])

    def _read_chunk(self, chunk: int, rows: RowRange, into: Floats, on_rows: OnRows | None) -> None:
        record = self._records[chunk]
        if self._direct and len(rows) == self._grid.rows_per_chunk:
            _read_plain(self._root, record, pieces_of(rows, into), on_rows, chunk=chunk, cure=self._cure)
            return
        values = checked_rows(self._root, self._array, record, rows, chunk=chunk, cure=self._cure)
        into[:] = values.reshape(len(rows), self.dim)
        if on_rows is not None:
            for start, piece in pieces_of(rows, into):
                on_rows(start, piece)


def pieces_of(rows: RowRange, features: Floats) -> Iterator[tuple[int, Floats]]:
    """Cut rows into pieces: the first row of each, and its features."""
    rows_at_once = max(1, PIECE_BYTES // max(1, features[0].nbytes))
    for piece in rows.batches(rows_at_once):
        yield piece.start, features[piece.start - rows.start : piece.stop - rows.start]


def _read_plain(
    root: Path,
    record: Record,
    pieces: Iterable[tuple[int, Floats]],
    on_rows: OnRows | None,
    *,
    chunk: int,
    cure: str,
) -> None:
    """Read an uncompressed chunk directly into the block, piece by piece: values, then their crc32c."""
    path = root / record.key
    tail, checksum = bytearray(4), 0
    try:
        descriptor = open_regular(path)
        try:
            size = os.fstat(descriptor).st_size
            if size == record.size:
                offset = 0
                for start, piece in pieces:
                    _fill(descriptor, memoryview(piece.view(np.uint8).ravel().data), offset)
                    checksum = extended(checksum, piece)
                    offset += piece.nbytes
                    if on_rows is not None:
                        on_rows(start, piece)
                os.preadv(descriptor, [tail], offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise damaged_chunk(path, chunk, f"cannot be read ({error.strerror})", cure) from error
    if size != record.size:
        raise damaged_chunk(path, chunk, f"has {size:,} bytes, {record.size:,} were written", cure)
    if int.from_bytes(tail, "little") != record.crc32c:
        raise damaged_chunk(path, chunk, "does not end with the checksum that was journalled", cure)
    if checksum != record.crc32c:
        raise damaged_chunk(path, chunk, "does not match its checksum", cure)


def _fill(descriptor: int, values: memoryview, offset: int) -> None:
    """Read until the buffer is full; one system call may return less."""
    done = 0
    while done < len(values):
        got = os.preadv(descriptor, [values[done:]], offset + done)
        if got == 0:
            raise OSError(5, "the file ends early")
        done += got
