"""Selected rows of a layer, read in blocks that are checked and scaled.

Shape suffixes:  N rows   D feature dimension
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.store import Block
from featbench.store.reader import OnRows
from featbench.store.typing import Array, Bools, Doubles, Floats, Ints

T = TypeVar("T")

_SHORTEST, _LONGEST = 2.0**-40, 2.0**60
"""Range of lengths that float32 can measure and divide by; beyond it, squares may under- or overflow."""


class Layer(Protocol):
    """What an evaluation needs of a layer: a `featbench.store.LayerReader`, a derived layer, or an array."""

    key: str
    """Its name in messages."""
    num_rows: int
    dim: int

    @property
    def rows_per_chunk(self) -> int:
        """Rows that are read together."""

    def map_blocks(
        self,
        prepare: Callable[[Block], T],
        rows_per_block: int,
        chunks: range | None = None,
        on_rows: OnRows | None = None,
    ) -> Iterator[T]:
        """Yield what `prepare` makes of each block, while the next one is read.

        Before that, `on_rows` is called with every row of the block, in pieces that are in the cache, maybe by several
        threads at a time; it may change them in place.
        """

    def peek(self, chunk: int) -> Floats:
        """Return the rows of one chunk that was read before, for picking some of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """The selected rows of one block; `features` is valid until the next block is requested."""

    rows: Ints
    features: Floats
    num_read: int
    """Rows of the block, selected or not."""

    longest: float
    """Largest Euclidean length of a row, before any scaling; 0 if there is none, NaN if they were not measured."""

    zeros: Ints
    """Rows of zeros that were left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Some rows of one layer.

    Attributes
    ----------
    layer : Layer
        Layer of one split.
    rows : ndarray of int64, rising
        The selected rows.
    """

    layer: Layer
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: slice) -> Selection:
        """Select some of the selected rows."""
        return replace(self, rows=self.rows[positions])

    @property
    def chunks(self) -> range:
        """The consecutive chunks in which the rows lie."""
        return range(self.rows[0] // self.layer.rows_per_chunk, self.rows[-1] // self.layer.rows_per_chunk + 1)

    def blocks(
        self, rows_per_block: int, *, unit_length: bool, without_zeros: bool = False, are_finite: bool = False
    ) -> Iterator[RowBlock]:
        """Yield the selected rows block by block, scaled to length 1 if requested.

        Parameters
        ----------
        rows_per_block : int
            Rows that are read at once.
        unit_length : bool
            Whether rows are scaled.
        without_zeros : bool
            Whether rows of zeros are left out.
        are_finite : bool
            Whether an earlier pass has checked the rows; if neither scaled nor left out, they are not measured again.

        Raises
        ------
        EvaluationError
            If a selected row holds NaN or infinity.
        """
        keep = np.zeros(self.layer.num_rows, np.bool_)
        keep[self.rows] = True
        if are_finite and not unit_length and not without_zeros:
            return self.layer.map_blocks(lambda block: _as_read(block, keep), rows_per_block, self.chunks)
        lengths_by_row: dict[int, Doubles] = {}
        """Lengths of the rows of a piece, by its first row."""

        def measure(start: int, features: Floats) -> None:
            lengths = lengths_by_row[start] = lengths_of(features)
            if unit_length:
                scale_to_unit_length(features, lengths)

        def prepare(block: Block) -> RowBlock:
            num_read = len(block.features)
            lengths = _collected(lengths_by_row, block.start, num_read)
            mask = keep[block.start : block.start + num_read]
            self._check_finite(block.start + np.flatnonzero(mask & ~np.isfinite(lengths)))
            is_zero = mask & (lengths == 0) if without_zeros else np.zeros_like(mask)
            longest, taken = lengths[mask].max(initial=0), mask & ~is_zero
            return RowBlock(
                rows=block.start + np.flatnonzero(taken),
                features=_moved_up(block.features, taken),
                num_read=num_read,
                longest=float(longest),
                zeros=block.start + np.flatnonzero(is_zero),
            )

        return self.layer.map_blocks(prepare, rows_per_block, self.chunks, measure)

    def read(self) -> Floats:
        """Return the selected rows, in memory, shape (n, D)."""
        features = np.empty((len(self), self.layer.dim), np.float32)
        filled = 0
        for block in self.blocks(_READ_BYTES // (4 * self.layer.dim), unit_length=False):
            features[filled : filled + len(block.rows)] = block.features
            filled += len(block.rows)
        return features

    def has_ordinary_lengths(self, rows_per_block: int) -> bool:
        """Whether every row has length 0, or one for which all versions compute the same cosines."""
        return all(
            is_ordinary(lengths_of(block.features)).all()
            for block in self.blocks(rows_per_block, unit_length=False, without_zeros=True)
        )

    def _check_finite(self, bad: Ints) -> None:
        """Refuse rows whose length is not finite, as it is if any value is not; cheaper than checking each value."""
        if len(bad):
            named = ", ".join(map(str, bad[:5].tolist())) + (", ..." if len(bad) > 5 else "")
            raise EvaluationError(
                f"{self.layer.key}: {len(bad)} rows hold NaN or infinity: row {named}. Such a feature has no "
                f"neighbours. Extract or import the layer again from a model that gives finite numbers."
            )


def _collected(lengths_by_row: dict[int, Doubles], start: int, num_rows: int) -> Doubles:
    """Take the lengths of the rows of a block out of those of the pieces."""
    found, row = [], start
    while row < start + num_rows:
        found.append(lengths_by_row.pop(row))
        row += len(found[-1])
    return np.concatenate(found)


def _moved_up(features_ND: Floats, wanted: Bools) -> Floats:
    """Move the wanted rows to the front, in place, piece by piece."""
    if wanted.all():
        return features_ND
    rows_at_once, taken = max(1, _PIECE_BYTES // (4 * features_ND.shape[1])), 0
    for at in range(0, len(features_ND), rows_at_once):
        piece = features_ND[at : at + rows_at_once][wanted[at : at + rows_at_once]]
        features_ND[taken : taken + len(piece)] = piece
        taken += len(piece)
    return features_ND[:taken]


_PIECE_BYTES = 2**20
"""Bytes of the rows that are moved at a time: fits in a core's cache."""


_READ_BYTES = 2**25
"""Bytes of the blocks in which rows are read into memory: several chunks at once."""


def _as_read(block: Block, keep: Bools) -> RowBlock:
    mask = keep[block.start : block.start + len(block.features)]
    rows = block.start + np.flatnonzero(mask)
    return RowBlock(
        rows=rows, features=_moved_up(block.features, mask), num_read=len(mask), longest=np.nan, zeros=rows[:0]
    )


def lengths_of(features_ND: Floats) -> Doubles:
    """Euclidean length of each row, 0 only for a row of zeros: in float32, or in float64 beyond its range."""
    with np.errstate(all="ignore"):
        squares: Array = np.einsum("nd,nd->n", features_ND, features_ND)
        lengths: Doubles = np.sqrt(squares, dtype=np.float64)
        extreme = _is_extreme(lengths)
        if extreme.any():
            some = features_ND[extreme]
            lengths[extreme] = np.sqrt(np.einsum("nd,nd->n", some, some, dtype=np.float64))
    return lengths


def scale_to_unit_length(features_ND: Floats, lengths_N: Doubles) -> None:
    """Divide each row by its length, in place; a row of zeros stays."""
    extreme = np.flatnonzero(_is_extreme(lengths_N))
    divisors = lengths_N.copy()
    divisors[extreme] = 1
    with np.errstate(invalid="ignore"):  # rows that are not finite are refused by number
        # Three times as fast as dividing by float64.
        np.divide(features_ND, divisors.astype(np.float32)[:, None], out=features_ND)
        if len(extreme):
            lengths = np.where(lengths_N[extreme] == 0, 1, lengths_N[extreme])
            features_ND[extreme] = features_ND[extreme] / lengths[:, None]


def is_ordinary(lengths_N: Doubles) -> Bools:
    """Whether all versions scale rows of these lengths alike: early ones raised lengths to at least 1e-12."""
    return np.asarray((lengths_N >= 2 * _SHORTEST) & (lengths_N <= _LONGEST))


def _is_extreme(lengths_N: Doubles) -> Bools:
    return ~((lengths_N >= _SHORTEST) & (lengths_N <= _LONGEST))
