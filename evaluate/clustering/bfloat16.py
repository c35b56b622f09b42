"""Scores in bfloat16 by torch: several times as fast as float32 on processors with instructions for it.

Shape suffixes:  N rows   K centroids   D feature dimension
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from featbench.evaluate.clustering.rows import FramedRows
from featbench.evaluate.neighbours.error_bounds import BFLOAT16, FLOAT32
from featbench.store.typing import Array, Doubles

_NUMBERS_AT_ONCE = 2**15
"""Numbers whose rounding is measured together: they stay in a core's cache."""


class Bfloat16:
    """A `featbench.evaluate.clustering.proposals.NumberFormat`: factors rounded to bfloat16, sums in float32."""

    dtype: type[np.floating[Any]] = np.float32
    rounding, rounding_of_product = FLOAT32, BFLOAT16
    largest, smallest = 2.0**126, 2.0**-126
    is_padded = False

    def convert(self, values: Doubles) -> tuple[torch.Tensor, Doubles]:
        """See `NumberFormat`; how far rounding moves each row is measured."""
        rounded = torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
        moved = rounded.float().numpy() - values
        off_N: Doubles = np.sqrt(np.square(moved, out=moved).sum(axis=1))
        return rounded, off_N

    def of_rows(self, rows: FramedRows) -> tuple[torch.Tensor, Doubles]:
        """See `NumberFormat`; rounding to float32 is within the bound on inner products, as in `Float32`."""
        values = rows.rounded()
        rounded = torch.from_numpy(values).to(torch.bfloat16)
        off_N = np.empty(len(values))
        rows_at_once = max(1, _NUMBERS_AT_ONCE // values.shape[1])
        for at in range(0, len(values), rows_at_once):
            piece = slice(at, at + rows_at_once)
            moved = rounded[piece].float().numpy() - values[piece].astype(np.float64)
            off_N[piece] = np.sqrt(np.einsum("nd,nd->n", moved, moved))
        return rounded, off_N + rows.off

    def multiply(self, rows: torch.Tensor, centroids: torch.Tensor, out: Array) -> None:
        """See `NumberFormat`."""
        torch.set_num_threads(1)  # of this thread
        torch.from_numpy(out).copy_(rows @ centroids.T)
