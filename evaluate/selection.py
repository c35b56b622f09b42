"""Rows of a layer that take part in an evaluation, in blocks, checked and scaled on the way.

Shape suffixes:  N rows   D feature dimension
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluate.labels import EvaluationError
from store import Block, LayerReader

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

EPSILON = 1e-12
"""Lengths below it count as this, as in torch.nn.functional.normalize."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows of one block that take part; `features` is valid until the next part is asked for."""

    rows: Ints
    features: Floats
    num_read: int
    """Rows of the block, whether they take part or not."""

    longest: float
    """Largest Euclidean length of a row, before any scaling; 0 if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Some rows of one layer.

    Attributes
    ----------
    layer : LayerReader
        Of one split.
    rows : ndarray of int64, rising
        Those that take part.
    """

    layer: LayerReader
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, rows_per_block: int, *, unit_length: bool) -> Iterator[Part]:
        """Yield all rows that take part, block by block, each scaled to length 1 if asked.

        Raises
        ------
        EvaluationError
            If a row that takes part holds NaN or infinity.
        """
        keep = np.zeros(self.layer.num_rows, np.bool_)
        keep[self.rows] = True

        rows_at_once = max(1, _BYTES // (4 * self.layer.dim))

        def prepare(block: Block) -> Part:
            mask = keep[block.start : block.start + len(block.features)]
            rows = block.start + np.flatnonzero(mask).astype(np.int64)
            lengths = np.empty(len(rows), np.float64)
            taken = 0
            # Piece by piece, so that each is in the cache for every step, and what is left out is closed up in place.
            for at in range(0, len(block.features), rows_at_once):
                piece, wanted = block.features[at : at + rows_at_once], mask[at : at + rows_at_once]
                count = int(np.count_nonzero(wanted))
                if taken < at or count < len(piece):
                    block.features[taken : taken + count] = piece[wanted]
                    piece = block.features[taken : taken + count]
                lengths[taken : taken + count] = lengths_of(piece)
                if unit_length:
                    scale_to_unit_length(piece, lengths[taken : taken + count])
                taken += count
            features = block.features[:taken]
            self._check_finite(rows, features, lengths)
            longest = float(lengths.max(initial=0))
            return Part(rows=rows, features=features, num_read=len(mask), longest=longest)

        return self.layer.map_blocks(prepare, rows_per_block)

    def read(self) -> Floats:
        """Return all rows that take part, in memory, shape (n, D)."""
        features = self.layer.read()
        if len(self.rows) < len(features):
            features = features[self.rows]
        self._check_finite(self.rows, features, lengths_of(features))
        return features

    def _check_finite(self, rows: Ints, features: Floats, lengths: npt.NDArray[np.float64]) -> None:
        suspects = ~np.isfinite(lengths)  # not finite if any value is not: cheaper than looking at each value
        if suspects.any():
            bad = rows[suspects][~np.isfinite(features[suspects]).all(axis=1)]
            if len(bad):
                named = ", ".join(map(str, bad[:5].tolist())) + (", ..." if len(bad) > 5 else "")
                raise EvaluationError(
                    f"{self.layer.key}: {len(bad)} rows hold NaN or infinity: row {named}. Such a feature has no "
                    f"neighbours. Extract or import the layer again from a model that gives finite numbers."
                )


_BYTES = 2**20
"""Size of the pieces in which a block is prepared: within a core's cache."""


def lengths_of(features_ND: Floats) -> npt.NDArray[np.float64]:
    """Euclidean length of each row: in float32, or in float64 where that would overflow."""
    with np.errstate(all="ignore"):
        squares: npt.NDArray[Any] = np.einsum("nd,nd->n", features_ND, features_ND)
        if not np.isfinite(squares).all():
            squares = np.einsum("nd,nd->n", features_ND, features_ND, dtype=np.float64)
        lengths: npt.NDArray[np.float64] = np.sqrt(squares, dtype=np.float64)
    return lengths


def scale_to_unit_length(features_ND: Floats, lengths_N: npt.NDArray[np.float64]) -> None:
    """Divide each row by its length, in place; a row of zeros stays."""
    divisors = np.maximum(lengths_N, EPSILON)
    if lengths_N.max(initial=0) < np.finfo(np.float32).max:
        divisors = divisors.astype(np.float32)  # three times as fast as dividing by float64
    with np.errstate(invalid="ignore"):  # rows that are not finite are refused by number
        np.divide(features_ND, divisors[:, None], out=features_ND, casting="same_kind")


def rows_per_block(dim: int, block_mib: int) -> int:
    """Rows of float32 that fit into a block.

    Examples
    --------
    >>> rows_per_block(2048, 256)
    32768
    """
    return max(1, block_mib * 2**20 // (4 * dim))
