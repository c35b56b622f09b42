"""Upper bounds of inner products from a few directions that hold most of all rows.

Let V hold m orthonormal directions. The product of q and x is that of their coordinates along V, and that of what is
left of both, which by Cauchy and Schwarz is at most the product of the two lengths. With these lengths as one more
coordinate, an upper bound is one inner product of m + 1 numbers. Where features are close to few directions, as those
of trained networks are, it rules out nearly all rows for much less than D multiplications.

V comes from a sample and is only nearly orthonormal; all of it, and all rounding errors, are part of the bound.

Shape suffixes:  Q queries   R rows   S sampled rows   D feature dimension   M directions   L = M + 1
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featbench.evaluate.neighbours.error_bounds import FLOAT32
from featbench.store.typing import Doubles, Floats

_POWER_ITERATIONS = 3
"""Multiplications of the directions by the second moments of the sample: few are enough, since any V gives a bound."""

_QUERIES_AT_ONCE = 512
"""Queries that are taken to float64 together."""

_SMALLEST = 2.0**-126

_SPARE = 1 + 2.0**-10
"""Factor on sums of bounds, since these are rounded too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Nearly orthonormal directions, those along which rows are longest first."""

    directions_DM: Floats
    off: float
    """Largest absolute value of an eigenvalue of V'V - 1, at most."""

    @classmethod
    def of(cls, sample_SD: Floats, num_directions: int) -> Rotation:
        """Find directions along which sampled rows are long, by subspace iteration (Halko, Martinsson, Tropp 2011)."""
        random = np.random.default_rng(0)
        moments_DD = sample_SD.T @ sample_SD
        moments_DD /= max(np.abs(moments_DD).max(), np.float32(_SMALLEST))
        basis_DM = random.standard_normal((len(moments_DD), num_directions), dtype=np.float32)
        for _ in range(_POWER_ITERATIONS):
            basis_DM = np.linalg.qr(moments_DD @ basis_DM)[0]
        _, turn_MM = np.linalg.eigh(basis_DM.T @ (moments_DD @ basis_DM))
        return cls.measured(basis_DM @ turn_MM[:, ::-1])

    @classmethod
    def measured(cls, directions_DM: Floats) -> Rotation:
        """Measure how far from orthonormal directions are."""
        exact_DM = directions_DM.astype(np.float64)
        off = np.linalg.norm(exact_DM.T @ exact_DM - np.eye(exact_DM.shape[1])) + 2.0**-40
        return cls(directions_DM=np.ascontiguousarray(directions_DM), off=float(off))

    def first(self, count: int) -> Rotation:
        """Keep the first directions."""
        return Rotation(directions_DM=np.ascontiguousarray(self.directions_DM[:, :count]), off=self.off)

    @property
    def num_directions(self) -> int:
        """M."""
        return int(self.directions_DM.shape[1])

    def of_queries(self, queries_QD: Floats) -> Floats:
        """Coordinates of queries, and the length of what is left of each, shape (Q, L)."""
        exact_DM = self.directions_DM.astype(np.float64)
        found_QL = np.empty((len(queries_QD), self.num_directions + 1), np.float32)
        for at in range(0, len(queries_QD), _QUERIES_AT_ONCE):
            some = slice(at, at + _QUERIES_AT_ONCE)
            exact_QD = queries_QD[some].astype(np.float64)
            found_QL[some, :-1] = along_QM = exact_QD @ exact_DM
            left_Q = np.linalg.norm(exact_QD - along_QM @ exact_DM.T, axis=1)
            found_QL[some, -1] = left_Q * _SPARE + _SMALLEST
        return found_QL

    def of_rows(self, rows_RD: Floats, out: Floats) -> None:
        """The same of rows, in float32, into an array of shape (R, L)."""
        dim, count = self.directions_DM.shape
        np.matmul(rows_RD, self.directions_DM, out=out[:, :-1])
        left_RD = rows_RD - out[:, :-1] @ self.directions_DM.T
        left_R = np.sqrt(np.einsum("rd,rd->r", left_RD, left_RD), dtype=np.float64)
        lengths_R = np.sqrt(np.einsum("rd,rd->r", rows_RD, rows_RD), dtype=np.float64)
        # The coordinates are off by sqrt(M) (D + 4) errors of the length, and what is left by sqrt(M) (M + 4) more.
        off_R = _SPARE * np.sqrt(count) * (dim + count + 8) * FLOAT32 * lengths_R + count * dim * _SMALLEST
        out[:, -1] = (left_R * (1 + (dim + 8) * FLOAT32) + off_R) * _SPARE

    def error(self, lengths_Q: Doubles, longest: float) -> Doubles:
        """How far the inner product of a query and a row can exceed that of their coordinates, computed in float32."""
        dim, count = self.directions_DM.shape
        relative = np.sqrt(count) * (dim + 4) * FLOAT32  # of a row's coordinates
        relative += 4 * (count + 16) * FLOAT32 + 2 * self.off  # of the product, and of V
        return np.asarray(_SPARE * relative * lengths_Q * longest + count * dim * _SMALLEST * (1 + lengths_Q + longest))
