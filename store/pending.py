"""Pending chunks in little memory: a few bytes for each, turned into `Work` when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from featbench.store.layout import Grid
from featbench.store.typing import Bools, Ints
from featbench.store.work import Work


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PendingChunks(Sequence[Work]):
    """Chunks of which a layer is missing, the smaller split first."""

    layers: tuple[str, ...]
    """Layers that may be missing."""

    splits: tuple[str, ...]
    grids: tuple[Grid, ...]
    """How the rows of each split are divided."""

    split_of: Ints
    """Shape (n,): index into `splits`."""

    chunks: Ints
    """Shape (n,): number of the chunk in its split."""

    missing: Bools
    """Shape (layers, n)."""

    without_flags: Bools
    """Shape (n,): whether the chunk's `valid`, or its images' digests, are missing, too."""

    def __len__(self) -> int:
        return len(self.chunks)

    @overload
    def __getitem__(self, index: int) -> Work: ...
    @overload
    def __getitem__(self, index: slice) -> PendingChunks: ...
    def __getitem__(self, index: int | slice) -> Work | PendingChunks:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        index = range(len(self))[index]
        return Work(
            split=self.splits[self.split_of[index]],
            chunk=int(self.chunks[index]),
            layers=tuple(
                name for name, is_missing in zip(self.layers, self.missing[:, index], strict=True) if is_missing
            ),
            valid=bool(self.without_flags[index]),
        )

    def __iter__(self) -> Iterator[Work]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Work.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Ints) -> PendingChunks:
        """Select some, in the given order."""
        return PendingChunks(
            layers=self.layers,
            splits=self.splits,
            grids=self.grids,
            split_of=self.split_of[indices],
            chunks=self.chunks[indices],
            missing=self.missing[:, indices],
            without_flags=self.without_flags[indices],
        )

    def without(self, others: PendingChunks) -> PendingChunks:
        """Select the chunks that are not among others of the same feature set, whatever layers are missing of them."""
        is_other = np.zeros(len(self), np.bool_)
        for number, split in enumerate(self.splits):
            mine = self.split_of == number
            theirs = others.chunks[others.split_of == others.splits.index(split)]
            is_other[mine] = np.isin(self.chunks[mine], theirs)
        return self.take(np.flatnonzero(~is_other))

    @property
    def num_rows(self) -> int:
        """Rows in these chunks."""
        return sum(grid.num_rows_of(self.chunks[self.split_of == number]) for number, grid in enumerate(self.grids))

    @property
    def missing_layers(self) -> tuple[str, ...]:
        """Layers of which a chunk is missing."""
        return tuple(name for name, chunks in zip(self.layers, self.missing, strict=True) if chunks.any())
