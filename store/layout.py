"""Which rows belong to which chunk, and which chunks belong to which rank.

Pure integer arithmetic, without Zarr or files. What writer and reader must agree on is here, so that
it can be tested without a disk.

Rows are dataset positions, `0 <= row < num_rows`, in the dataset's own order. A chunk is the
unit of writing: one rank writes it, whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from featbench.store.typing import Ints

T = TypeVar("T")

BYTES_PER_CHUNK = 256 * 2**20
"""The largest chunk that `rows_per_chunk_for` chooses by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """Consecutive rows `start <= row < stop`; never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a row range needs 0 <= start < stop; got {self.start}, {self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self, batch_size: int) -> Iterator[RowRange]:
        """Split into ranges of `batch_size` rows; the last one may be shorter."""
        for start in range(self.start, self.stop, batch_size):
            yield RowRange(start=start, stop=min(start + batch_size, self.stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How rows are divided into chunks: chunk `i` starts at row `i * rows_per_chunk`."""

    num_rows: int
    rows_per_chunk: int

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.rows_per_chunk < 1:
            raise ValueError(
                f"num_rows and rows_per_chunk must be positive; got {self.num_rows}, {self.rows_per_chunk}"
            )

    @property
    def num_chunks(self) -> int:
        return -(-self.num_rows // self.rows_per_chunk)

    def rows(self, chunk: int) -> RowRange:
        """Rows of one chunk; the last chunk may have fewer."""
        if not 0 <= chunk < self.num_chunks:
            raise ValueError(f"chunk must be in [0, {self.num_chunks}); got {chunk}")
        start = chunk * self.rows_per_chunk
        return RowRange(start=start, stop=min(start + self.rows_per_chunk, self.num_rows))

    def num_rows_of(self, chunks: Ints) -> int:
        """Number of rows of some chunks, each given once.

        Examples
        --------
        >>> import numpy
        >>> Grid(num_rows=10, rows_per_chunk=4).num_rows_of(numpy.array([0, 2]))
        6
        """
        has_last = bool((chunks == self.num_chunks - 1).any())
        return len(chunks) * self.rows_per_chunk - has_last * (self.num_chunks * self.rows_per_chunk - self.num_rows)

    def blocks(self, rows_per_block: int, chunks: range | None = None) -> list[range]:
        """Divide chunks, by default all, into blocks of at most `rows_per_block` rows and at least one chunk.

        Examples
        --------
        >>> Grid(num_rows=10, rows_per_chunk=2).blocks(5)
        [range(0, 2), range(2, 4), range(4, 5)]
        """
        chunks_per_block = max(1, rows_per_block // self.rows_per_chunk)
        chunks = range(self.num_chunks) if chunks is None else chunks
        return [chunks[at : at + chunks_per_block] for at in range(0, len(chunks), chunks_per_block)]


def share(work: Sequence[T], *, rank: int, world_size: int) -> Sequence[T]:
    """Return one rank's consecutive share of `work`; shares differ in length by at most one.

    Examples
    --------
    >>> [list(share("abcde", rank=rank, world_size=2)) for rank in range(2)]
    [['a', 'b', 'c'], ['d', 'e']]
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}); got {rank}")
    short, longer = divmod(len(work), world_size)
    start = rank * short + min(rank, longer)
    return work[start : start + short + (rank < longer)]


def rows_per_chunk_for(*, num_rows: int, batch_size: int, bytes_per_row: int, wanted: int = 1024) -> int:
    """Choose the rows of a chunk: `wanted`, or fewer if rows are large or few; whole batches, or the whole split.

    Parameters
    ----------
    num_rows : int
        Rows of the larger split, the most that a chunk needs.
    batch_size : int
        The result is a multiple of it, or `num_rows`.
    bytes_per_row : int
        Size of one row of the largest layer; its chunks stay below `BYTES_PER_CHUNK` if a batch does.
    wanted : int
        The usual number of rows.

    Examples
    --------
    >>> rows_per_chunk_for(num_rows=1_281_167, batch_size=64, bytes_per_row=8192)
    1024
    >>> rows_per_chunk_for(num_rows=100, batch_size=64, bytes_per_row=8192)
    100
    """
    fitting = BYTES_PER_CHUNK // (bytes_per_row * batch_size)
    return min(num_rows, batch_size * max(1, min(wanted // batch_size, fitting)))
