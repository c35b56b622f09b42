"""Rows as k-means sees them: in float64, scaled to length 1 if requested, and near the origin where float32 needs them.

A row is the stored float32 row, divided in float64 by its length under `normalize`. Distances are defined on these
rows. Engines of lower precision get them less a center and times a power of two (`Frame`): neither changes which
centroid is the nearest, and an offset shared by all rows, or numbers whose squares float32 can't hold, cost nothing.

Shape suffixes:  N rows   D feature dimension
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from featbench.evaluate.clustering.planning import ClusterPlan
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.error_bounds import FLOAT32
from featbench.evaluate.neighbours.rescore import lengths_of_rows
from featbench.store.typing import Bools, Doubles, Floats, Ints

_BYTES_PER_PIECE = 2**18
"""Bytes of rows in float64 that are prepared together: these, and what is made of them, fit into a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Some rows, with the numbers that they are divided by."""

    positions: slice
    """Among the selected rows."""

    stored_ND: Floats
    divisors_N: Doubles | None
    """None if rows are not scaled."""

    def exact(self, chosen: Ints | Bools | slice = slice(None), columns: slice = slice(None)) -> Doubles:
        """Rows in float64, a copy."""
        exact_ND = self.stored_ND[chosen, columns].astype(np.float64)
        if self.divisors_N is not None:
            exact_ND /= self.divisors_N[chosen, None]
        return exact_ND

    def take(self, chosen: Ints) -> Tile:
        """Choose some rows by their positions in the tile, rising; these lose their positions among all rows."""
        if len(chosen) == len(self.stored_ND):
            return self
        return Tile(
            positions=slice(0, len(chosen)),
            stored_ND=self.stored_ND[chosen],
            divisors_N=None if self.divisors_N is None else self.divisors_N[chosen],
        )

    def pieces(self) -> Iterator[slice]:
        """Cut the tile into slices whose rows, in float64, stay in a core's cache."""
        rows_at_once = max(1, _BYTES_PER_PIECE // (8 * self.stored_ND.shape[1]))
        for at in range(0, len(self.stored_ND), rows_at_once):
            yield slice(at, at + rows_at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Coordinates in which float32 holds differences and squares: (row - center_D) * factor, a power of two."""

    center_D: Doubles
    factor: float
    limit: float
    """No coordinate of a row is further from the center than this, before the factor."""

    typical: float
    """Largest distance of a coordinate from the center in an ordinary row; at most `limit`."""

    @property
    def rounding(self) -> float:
        """A row this far from its centroid, squared, may equal it but for the rounding of means."""
        return len(self.center_D) * (2.0**-32 * self.typical + 2.0**-50 * float(np.abs(self.center_D).max())) ** 2

    def enter(self, rows_ND: Doubles) -> Doubles:
        """Transform rows, in place."""
        rows_ND -= self.center_D
        if self.factor != 1:
            rows_ND *= self.factor
        return rows_ND

    def enter_in_float32(self, tile: Tile, padded_ND: Floats) -> float:
        """Transform a tile in float32, into all columns but the last of `padded_ND`.

        Returns how far from the truth a row can be, besides one relative error of each number: infinite if it was not
        transformed. The center is a float32 number, so a difference is rounded once; the quotient of a scaled row is
        off by at most 3 rounding errors of its length, 1.
        """
        divisors, rows_ND = tile.divisors_N, padded_ND[:, :-1]
        off = 0.0 if divisors is None else 4 * FLOAT32 * self.factor
        if self.typical < _LEAST_FRAMED or off > _MOST_OFF:
            return np.inf
        center_D = self.center_D.astype(np.float32)
        if divisors is None:
            np.subtract(tile.stored_ND, center_D, out=rows_ND)
        elif divisors.min() < _LEAST_FRAMED or divisors.max() > 1 / _LEAST_FRAMED:
            return np.inf
        else:
            np.multiply(tile.stored_ND, (1 / divisors).astype(np.float32)[:, None], out=rows_ND)
            rows_ND -= center_D
        if self.factor != 1:
            rows_ND *= np.float32(self.factor)
        return off

    @classmethod
    def around(cls, sample_ND: Doubles, lowest_D: Doubles, highest_D: Doubles) -> Frame:
        """Choose the median of a sample, in float32, as the center: rows far from all others do not move it.

        Rows that equal the center, as most rows of zeros do, are not ordinary.
        """
        center_D = np.concatenate([np.median(each, axis=1) for each in _transposed(sample_ND)])
        center_D = np.clip(center_D, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32).astype(np.float64)
        limit = float(np.maximum(highest_D - center_D, center_D - lowest_D).max(initial=0))
        distances_N = np.array([np.abs(row_D - center_D).max() for row_D in sample_ND])
        typical = float(np.median(distances_N[distances_N > 0])) if distances_N.any() else limit
        typical = min(typical, limit)
        factor = 1.0 if typical == 0 else 2.0 ** -float(np.clip(np.round(np.log2(typical)), -_MOST, _MOST))
        return cls(center_D=center_D, factor=factor, limit=limit, typical=typical)


def _transposed(values_ND: Doubles) -> Iterator[Doubles]:
    """Columns as rows, some at a time."""
    columns_at_once = max(1, _BYTES_PER_PIECE // (8 * len(values_ND)))
    for at in range(0, values_ND.shape[1], columns_at_once):
        yield np.ascontiguousarray(values_ND[:, at : at + columns_at_once].T)


_MOST = 250
"""Largest exponent of the factor: float64 holds squares of numbers near 2^250, and of 2^-250."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)

_LEAST_FRAMED = 2.0**-100
"""Rows are transformed in float32 if their typical size is at least this, ..."""

_MOST_LENGTH = 2.0**60
"""... and their lengths are then less than this, so that float32 holds their squares."""

_MOST_OFF = 2.0**-16
"""Most that scaling in float32 may move a row whose typical size is 1; else it is scaled in float64."""

_LOST = 2.0**-60
"""More than what the square root of a number's square can lose by underflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FramedRows:
    """Rows in the coordinates of a frame: rounded to float32, and in float64 on request."""

    tile: Tile
    frame: Frame
    chosen: Ints | slice
    """Rows of the tile."""

    padded_ND: Floats
    """Rounded rows, shape (N, D + 1): the last number of each is 1."""

    lengths_N: Doubles
    """Before rounding; not too small."""

    least_lengths_N: Doubles
    """Before rounding; not too large."""

    off: float = 0.0
    """How far rounding moved a row at most, besides one relative error of each number."""

    def __len__(self) -> int:
        return len(self.padded_ND)

    def rounded(self) -> Floats:
        """Rounded rows, shape (N, D)."""
        return self.padded_ND[:, :-1]

    def exact(self) -> Doubles:
        """In float64."""
        return self.frame.enter(self.tile.exact(self.chosen))

    def take(self, chosen: Ints) -> FramedRows:
        """Choose some rows by their positions, rising."""
        if len(chosen) == len(self):
            return self
        return replace(
            self,
            chosen=chosen if isinstance(self.chosen, slice) else self.chosen[chosen],
            padded_ND=self.padded_ND[chosen],
            lengths_N=self.lengths_N[chosen],
            least_lengths_N=self.least_lengths_N[chosen],
        )

    @classmethod
    def of(cls, tile: Tile, frame: Frame) -> FramedRows:
        """Transform all rows of a tile: in float32 where that is exact enough, otherwise in float64."""
        padded_ND = np.empty((len(tile.stored_ND), len(frame.center_D) + 1), np.float32)
        padded_ND[:, -1] = 1
        rows_ND, dim = padded_ND[:, :-1], len(frame.center_D)
        with np.errstate(over="ignore"):
            off = frame.enter_in_float32(tile, padded_ND)
            if np.isfinite(off):
                lengths_N = np.sqrt(np.einsum("nd,nd->n", rows_ND, rows_ND), dtype=np.float64)
                relative, absolute = (dim + 4) * FLOAT32, off + dim * _LOST
            if not np.isfinite(off) or not lengths_N.max() < _MOST_LENGTH:
                lengths_N = _enter_in_float64(tile, frame, rows_ND)
                off, relative, absolute = 0.0, 2.0**-30, 0.0
            return cls(
                tile=tile, frame=frame, chosen=slice(None), padded_ND=padded_ND, off=off,
                lengths_N=lengths_N * (1 + relative) + absolute,
                least_lengths_N=np.maximum(lengths_N * (1 - relative) - absolute, 0),
            )  # fmt: skip


def _enter_in_float64(tile: Tile, frame: Frame, rows_ND: Floats) -> Doubles:
    """Transform a tile in float64, and round it into `rows_ND`; returns the lengths."""
    lengths_N = np.empty(len(rows_ND))
    for piece in tile.pieces():
        exact_ND = frame.enter(tile.exact(piece))
        rows_ND[piece] = exact_ND
        lengths_N[piece] = np.sqrt(np.einsum("nd,nd->n", exact_ND, exact_ND))
    return lengths_N


class RowSource:
    """The selected rows of a layer, read again in every pass, or held in memory.

    Parameters
    ----------
    data : Selection
    normalize : bool
        Whether each row is divided by its length; a row of zeros stays.
    plan : ClusterPlan
        How many rows are read at once, and whether all are held.
    held : ndarray of shape (N, D), dtype=float32, optional
        The rows, if they are in memory already and known to be finite; they are not copied.
    """

    def __init__(self, data: Selection, *, normalize: bool, plan: ClusterPlan, held: Floats | None = None) -> None:
        self.data = data
        self.normalize = normalize
        self.plan = plan
        self._held = None if held is None else [held]
        self._divisors_N: Doubles | None = np.empty(len(data)) if normalize else None
        self._is_measured = False

    def __len__(self) -> int:
        return len(self.data)

    @property
    def dim(self) -> int:
        """D."""
        return self.data.layer.dim

    def blocks(self) -> Iterator[Tile]:
        """Yield all rows, block by block; each is valid until the next one is requested.

        Raises
        ------
        EvaluationError
            If a row holds NaN or infinity.
        """
        start, held = 0, []
        for features in self._held if self._held is not None else self._read():
            if self._held is None and self.plan.hold:
                features = np.array(features)
                held.append(features)
            positions = slice(start, start := start + len(features))
            if self._divisors_N is not None and not self._is_measured:
                lengths = lengths_of_rows(features)
                self._divisors_N[positions] = np.where(lengths == 0, 1, lengths)
            divisors = None if self._divisors_N is None else self._divisors_N[positions]
            yield Tile(positions=positions, stored_ND=features, divisors_N=divisors)
        self._is_measured = True
        if self.plan.hold:
            self._held = self._held or held

    def _read(self) -> Iterable[Floats]:
        for block in self.data.blocks(self.plan.rows_per_block, unit_length=False, are_finite=self._is_measured):
            if len(block.rows):
                yield block.features


def scale_exactly(rows_ND: Doubles) -> Doubles:
    """Divide rows by their lengths, in place, and return them; a row of zeros stays."""
    lengths_N = np.sqrt(np.square(rows_ND).sum(axis=1, keepdims=True))
    rows_ND /= np.where(lengths_N == 0, 1, lengths_N)
    return rows_ND


def are_equal(lowest_D: Doubles, highest_D: Doubles) -> bool:
    """Whether rows within these limits are all equal, but for the rounding of their scaling."""
    largest = np.maximum(np.abs(lowest_D), np.abs(highest_D)).max()
    return bool((highest_D - lowest_D).max() <= 2.0**-50 * largest)


def tiles_of(block: Tile, rows_per_tile: int) -> Iterator[Tile]:
    """Cut a block."""
    for at in range(0, len(block.stored_ND), rows_per_tile):
        stop = min(at + rows_per_tile, len(block.stored_ND))
        yield Tile(
            positions=slice(block.positions.start + at, block.positions.start + stop),
            stored_ND=block.stored_ND[at:stop],
            divisors_N=None if block.divisors_N is None else block.divisors_N[at:stop],
        )
