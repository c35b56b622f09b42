"""Scores in bfloat16 by torch: several times as fast as float32 on processors with instructions for it.

Shape suffixes:  N rows   K centroids   D feature dimension
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from featbench.evaluate.neighbours.error_bounds import BFLOAT16, FLOAT32
from featbench.store.typing import Array, Doubles


class Bfloat16:
    """A `featbench.evaluate.clustering.proposals.NumberFormat`: factors rounded to bfloat16, sums in float32."""

    dtype: type[np.floating[Any]] = np.float32
    rounding, rounding_of_product = FLOAT32, BFLOAT16
    largest, smallest = 2.0**126, 2.0**-126

    def convert(self, values: Doubles) -> tuple[torch.Tensor, Doubles]:
        """See `NumberFormat`; how far rounding moves each row is measured."""
        rounded = torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
        moved = rounded.float().numpy() - values
        off_N: Doubles = np.sqrt(np.square(moved, out=moved).sum(axis=1))
        return rounded, off_N

    def multiply(self, rows: torch.Tensor, centroids: torch.Tensor, out: Array) -> None:
        """See `NumberFormat`."""
        torch.set_num_threads(1)  # of this thread
        torch.from_numpy(out).copy_(rows @ centroids.T)
