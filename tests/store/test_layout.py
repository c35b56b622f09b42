"""Rows, chunks and ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from featbench.store.layout import BYTES_PER_CHUNK, Grid, RowRange, rows_per_chunk_for, share


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("rows_per_chunk", [1, 3, 8, 200])
def test_chunks_partition_the_rows(num_rows: int, rows_per_chunk: int) -> None:
    grid = Grid(num_rows=num_rows, rows_per_chunk=rows_per_chunk)
    rows = [row for chunk in range(grid.num_chunks) for row in range(grid.rows(chunk).start, grid.rows(chunk).stop)]
    assert rows == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [1, 7, 64])
@pytest.mark.parametrize("rows_per_block", [1, 5, 8, 1000])
def test_blocks_partition_the_chunks_and_keep_their_size(num_rows: int, rows_per_block: int) -> None:
    grid = Grid(num_rows=num_rows, rows_per_chunk=4)
    blocks = grid.blocks(rows_per_block)
    assert [chunk for block in blocks for chunk in block] == list(range(grid.num_chunks))
    assert all(len(block) * 4 <= max(4, rows_per_block) for block in blocks)


@pytest.mark.parametrize("length", [0, 1, 5, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_all_work_once_and_evenly(length: int, world_size: int) -> None:
    shares = [share(range(length), rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [item for part in shares for item in part] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("batch_size", [1, 32, 100])
def test_a_chunk_is_whole_batches_and_not_too_large(batch_size: int) -> None:
    for bytes_per_row in (64, 8192, 2**20):
        rows = rows_per_chunk_for(num_rows=10**6, batch_size=batch_size, bytes_per_row=bytes_per_row)
        assert rows % batch_size == 0
        assert rows == batch_size or rows * bytes_per_row <= BYTES_PER_CHUNK


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "bytes_per_row", "rows"),
    [
        (10**6, 64, 8192, 1024),
        (10**6, 64, 2**20, 256),  # 256 MiB
        (10**6, 64, 2**20 + 1, 192),  # three batches, since four would be larger
        (10**6, 2000, 64, 2000),  # a batch larger than the usual chunk
        (10**6, 64, 2**30, 64),  # a batch larger than 256 MiB
        (10**6, 100, 64, 1000),
        (1000, 100, 64, 1000),
        (130, 64, 64, 130),
    ],
)
def test_a_chunk_is_about_1024_rows_or_256_mebibytes(
    num_rows: int, batch_size: int, bytes_per_row: int, rows: int
) -> None:
    assert rows_per_chunk_for(num_rows=num_rows, batch_size=batch_size, bytes_per_row=bytes_per_row) == rows


def test_a_range_is_as_long_as_it_has_rows() -> None:
    assert len(RowRange(start=3, stop=8)) == 5
    assert [len(batch) for batch in RowRange(start=3, stop=8).batches(2)] == [2, 2, 1]


def test_batches_never_straddle_a_chunk() -> None:
    batches = list(RowRange(start=8, stop=13).batches(2))
    assert [(batch.start, batch.stop) for batch in batches] == [(8, 10), (10, 12), (12, 13)]


@pytest.mark.parametrize("call", [
    lambda: RowRange(start=3, stop=3),
    lambda: Grid(num_rows=0, rows_per_chunk=1),
    lambda: Grid(num_rows=4, rows_per_chunk=2).rows(2),
    lambda: share([1], rank=1, world_size=1),
])  # fmt: skip
def test_impossible_ranges_are_refused(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|needs"):
        call()
