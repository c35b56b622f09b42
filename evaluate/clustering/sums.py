"""Sums of rows by cluster that do not depend on the order of the rows: bit for bit the same, however they are divided.

Floating-point sums depend on their order, so blocks, threads and ranks would change the last bits of a centroid, and
then the nearest centroid of some row. Here each number is cut into integers of at most 40 bits, its digits above 2^-s
and, where numbers of very different size occur, the digits below. Integers add up exactly in any order, and rows that
change their cluster are subtracted from one sum and added to another without a trace. (The idea is that of reproducible
summation: Demmel and Nguyen, "Parallel reproducible summation", IEEE Transactions on Computers 2015.)

Shape suffixes:  N rows   K clusters   D dimension   L levels of digits   U clusters that occur
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
from scipy.sparse import csr_matrix

from featbench.evaluate.clustering.rows import Frame
from featbench.store.typing import Doubles, Ints

_BITS = 40
"""Most bits of one integer: float64 adds up 2^13 of them exactly."""

ROWS_AT_ONCE = 2**12
"""Most rows that are added together, in float64."""

_NUMBERS_AT_ONCE = 2**17
"""Numbers of rows that are cut and added together."""

_LEAST_COLUMNS = 64
"""Fewest columns that are cut together."""

_SUM_BITS = 62
"""Bits of the sum of all integers of one level."""

_DIGITS = 34
"""Bits that are kept of an ordinary number."""

MAX_LEVELS = 8
"""Enough for all of float32."""

_LEVELS_OF_SQUARES = 2 * MAX_LEVELS

_LARGEST_EXPONENT = 1000
"""Float64 holds 2^-1000."""

_CERTAIN = 2.0**-10
"""Part of the squares that must be left in an objective for its first digits to be certain: sums have 34 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPoint:
    """How numbers are cut into integers: level l holds multiples of 2^-exponents[l]."""

    exponents: tuple[int, ...]

    @classmethod
    def of(cls, *, limit: float, typical: float, count: int, max_levels: int = MAX_LEVELS) -> FixedPoint:
        """Choose the exponents for sums of `count` numbers of at most `limit`, most of about `typical`.

        Examples
        --------
        >>> FixedPoint.of(limit=1.0, typical=0.5, count=1000).exponents
        (39,)
        """
        bits = min(_BITS, _SUM_BITS - max(1, count).bit_length())
        first = min(_LARGEST_EXPONENT, bits - (math.frexp(limit)[1] if limit else 0))
        wanted = _DIGITS + (math.log2(limit / typical) if typical else 0)
        most = min(max_levels, 1 + (_LARGEST_EXPONENT - first) // (bits - 1))
        levels = min(most, max(1, math.ceil(wanted / bits)))
        return cls(exponents=tuple(first + level * (bits - 1) for level in range(levels)))

    def cut(self, numbers: Doubles) -> list[Doubles]:
        """Cut numbers, overwriting them; returns whole numbers of each level, in float64."""
        digits = []
        for exponent in self.exponents:
            whole = numbers * 2.0**exponent
            digits.append(np.rint(whole, out=whole))
            if exponent != self.exponents[-1]:
                numbers -= whole * 2.0**-exponent
        return digits

    def join(self, sums: Ints) -> Doubles:
        """Return the numbers that sums of integers of shape (L, ...) stand for, in float64."""
        total = np.zeros(sums.shape[1:])
        for exponent, level in zip(reversed(self.exponents), sums[::-1], strict=True):  # smallest first
            total += level * 2.0**-exponent
        return total


class ClusterSums:
    """Sums, numbers and squares of rows by cluster; rows are relative to the center of a frame.

    Attributes
    ----------
    sums_LKD : ndarray of shape (L, K, D), dtype=int64
    counts_K : ndarray of shape (K,), dtype=int64
    """

    def __init__(self, frame: Frame, *, num_clusters: int, num_rows: int, dim: int) -> None:
        self.frame = frame
        self._digits = FixedPoint.of(limit=frame.limit, typical=frame.typical, count=num_rows)
        self.sums_LKD = np.zeros((len(self._digits.exponents), num_clusters, dim), np.int64)
        self.counts_K = np.zeros(num_clusters, np.int64)
        self._lock = Lock()

    def move(self, rows_ND: Doubles, old_N: Ints, new_N: Ints) -> None:
        """Move rows from one cluster to another; -1 is none. Called by many threads."""
        self.move_columns(lambda rows, columns: rows_ND[rows, columns].copy(), old_N, new_N)

    def move_columns(self, read: Callable[[slice, slice], Doubles], old_N: Ints, new_N: Ints) -> None:
        """Move rows of which `read` copies some columns at a time, so that these stay in a core's cache."""
        for at in range(0, len(new_N), ROWS_AT_ONCE):
            some = slice(at, at + ROWS_AT_ONCE)
            self._move(partial(read, some), old_N[some], new_N[some])

    def _move(self, read: Callable[[slice], Doubles], old_N: Ints, new_N: Ints) -> None:
        leaving, coming = np.flatnonzero(old_N >= 0), np.flatnonzero(new_N >= 0)
        clusters = np.concatenate([old_N[leaving], new_N[coming]])
        signs = np.repeat([-1.0, 1.0], [len(leaving), len(coming)])
        members, member_of = np.unique(clusters, return_inverse=True)
        shape = (len(members), len(new_N))
        table = csr_matrix((signs, (member_of, np.concatenate([leaving, coming]))), shape)
        with self._lock:
            self.counts_K[members] += np.bincount(member_of, signs, len(members)).astype(np.int64)
        columns_at_once = max(_LEAST_COLUMNS, _NUMBERS_AT_ONCE // len(new_N))
        for at in range(0, len(self.frame.center_D), columns_at_once):
            columns = slice(at, at + columns_at_once)
            numbers = read(columns)
            numbers -= self.frame.center_D[columns]
            for level, digits in enumerate(self._digits.cut(numbers)):
                sums = (table @ digits).astype(np.int64)
                with self._lock:
                    self.sums_LKD[level, members, columns] += sums

    def add(self, sums_LKD: Ints, counts_K: Ints) -> None:
        """Add the sums of other rows."""
        self.sums_LKD += sums_LKD
        self.counts_K += counts_K

    def means(self, clusters: Ints) -> Doubles:
        """Mean of each of some clusters, none of them empty, shape (n, D)."""
        totals = self._digits.join(self.sums_LKD[:, clusters])
        return np.asarray(self.frame.center_D + totals / self.counts_K[clusters, None])

    def objective(self, centroids_KD: Doubles, squares: float) -> float | None:
        """Sum of squared distances of all rows to the centroids of their clusters.

        None if it is so small beside the squares that these, less what the centroids explain of them, do not tell.

        Parameters
        ----------
        centroids_KD : ndarray of shape (K, D)
        squares : float
            Sum of squared distances of all rows to the center.
        """
        crossed = lengths = 0.0
        for at in range(0, len(centroids_KD), _CLUSTERS_AT_ONCE):
            some = slice(at, at + _CLUSTERS_AT_ONCE)
            moved_KD = centroids_KD[some] - self.frame.center_D
            crossed += float((moved_KD * self._digits.join(self.sums_LKD[:, some])).sum(axis=1).sum())
            lengths += float((np.square(moved_KD).sum(axis=1) * self.counts_K[some]).sum())
        found = squares - 2 * crossed + lengths
        return found if found > _CERTAIN * (squares + 2 * abs(crossed) + lengths) else None


_CLUSTERS_AT_ONCE = 256
"""Bounds temporary copies."""


class NumberSum:
    """Sum of numbers, none of them negative, that does not depend on their order.

    Parameters
    ----------
    limit : float
        No number is larger.
    typical : float
        Numbers of this size are kept to 74 bits.
    count : int
        Most numbers.
    """

    def __init__(self, *, limit: float, typical: float, count: int) -> None:
        self._digits = FixedPoint.of(
            limit=limit, typical=min(limit, typical) * 2.0**-_BITS, count=count, max_levels=_LEVELS_OF_SQUARES
        )
        self.sums_L = np.zeros(len(self._digits.exponents), np.int64)
        self._lock = Lock()

    def add(self, numbers_N: Doubles) -> None:
        """Add numbers; called by many threads."""
        for at in range(0, len(numbers_N), ROWS_AT_ONCE):
            sums = [int(level.sum()) for level in self._digits.cut(np.array(numbers_N[at : at + ROWS_AT_ONCE]))]
            with self._lock:
                self.sums_L += sums

    def total(self) -> float:
        """The sum."""
        return float(self._digits.join(self.sums_L[:, None])[0])
