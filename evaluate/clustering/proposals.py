"""Scores of rows with centroids in low precision, and which centroids can be the nearest, given their largest error.

The score of a row x with a centroid c is x.c - |c|^2 / 2: the nearest centroid has the highest one. The bounds follow
from the lengths and the number format alone (see `featbench.evaluate.neighbours.error_bounds`): an inner product of D
numbers is off by at most D + 8 rounding errors of |x| |c|, rounding of its factors, of |c|^2 / 2 and of the difference
included; where factors were rounded to bfloat16, by how far that moved them, too. All terms are either of the row, of
the centroid, or a product of both: a centroid that is far away does not make scores with the others uncertain.

Shape suffixes:  N rows   K centroids   D dimension   P pairs of a row and a centroid
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from featbench.evaluate.clustering.rows import FramedRows
from featbench.evaluate.neighbours.error_bounds import FLOAT32, FLOAT64
from featbench.store.typing import Array, Bools, Doubles, Ints

CENTROIDS_AT_ONCE = 2048
"""Scores of more centroids are computed in several products, so that they stay in a core's cache."""

_SCORES_AT_ONCE, _NUMBERS_AT_ONCE = 2**19, 2**18
"""Scores, and numbers of rows, that are multiplied at a time: both fit in a core's cache, ..."""

_MIN_ROWS, _MAX_ROWS = 512, 4096
"""... unless the rows are so few that matrix products are slow."""

_BLOCKS_AT_ONCE = 4
"""Number of blocks whose rows are proposed for together, unless the blocks are large."""

_SPARE = 1 + 2.0**-10
"""Factor on bounds, since these are rounded too."""

_MOST_LOST = 0.5
"""If more than this of a product can be rounding errors, the format is not used."""

_ERRORS_AT_ONCE = 2**18
"""Errors in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Rows with every centroid that can be among the nearest, by row."""

    row_of_P: Ints
    centroid_of_P: Ints
    is_complete_N: Bools
    """Whether all such centroids of a row are listed; others must be sought with another engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """The likely nearest centroid of each row, and what is certain of distances, in the units of the frame."""

    which_N: Ints
    is_decided_N: Bools
    """Whether it is the nearest."""

    nearest_N: Doubles
    """The distance to it is at most this, ..."""

    all_N: Doubles
    """... to any centroid at least this, ..."""

    others_N: Doubles
    """... and to any other one at least this."""


class Proposals(Protocol):
    """Proposes the centroids that can be among the nearest ones of a row."""

    rows_at_once: int
    """Rows to ask for at a time."""

    def propose(self, rows: FramedRows, top: int) -> Pairs:
        """Propose the centroids, in the same frame, that can be among the `top` nearest of each row."""


class NumberFormat(Protocol):
    """A number format: converts, multiplies, and knows its errors."""

    def convert(self, values: Doubles) -> tuple[Any, Doubles]:
        """Round centroids; returns them, and how far each was moved."""

    def of_rows(self, rows: FramedRows) -> tuple[Any, Doubles]:
        """Round rows; returns them, and how far each was moved."""

    def multiply(self, rows: Any, centroids: Any, out: Array) -> None:
        """Inner products, shape (N, K)."""

    is_padded: bool
    """Whether rows end with 1, and centroids with a number that is added to their products."""

    dtype: type[np.floating[Any]]
    """Of the scores."""

    rounding: float
    """Largest relative error of one operation."""

    rounding_of_product: float
    """Relative error of rounding a product once it is summed."""

    largest: float
    """Squared distances up to this do not overflow."""

    smallest: float
    """Processors may flush smaller numbers to 0."""


class Float32:
    """numpy's BLAS in float32."""

    dtype: type[np.floating[Any]] = np.float32
    rounding, rounding_of_product = FLOAT32, 0.0
    largest, smallest = 2.0**126, 2.0**-126
    is_padded = True

    def convert(self, values: Doubles) -> tuple[Any, Doubles]:
        """See `NumberFormat`; rounding to float32 is within the bound on inner products."""
        return np.pad(values.astype(np.float32), ((0, 0), (0, 1))), np.zeros(len(values))

    def of_rows(self, rows: FramedRows) -> tuple[Any, Doubles]:
        """See `NumberFormat`."""
        return rows.padded_ND, np.full(len(rows), rows.off)

    def multiply(self, rows: Any, centroids: Any, out: Array) -> None:
        """See `NumberFormat`."""
        np.matmul(rows, centroids.T, out=out)


class Float64(Float32):
    """numpy's BLAS in float64."""

    dtype = np.float64
    rounding = FLOAT64
    largest, smallest = 2.0**1000, 2.0**-500  # so that squares of smaller ones are no matter
    is_padded = False

    def convert(self, values: Doubles) -> tuple[Any, Doubles]:
        """See `NumberFormat`."""
        return values, np.zeros(len(values))

    def of_rows(self, rows: FramedRows) -> tuple[Any, Doubles]:
        """See `NumberFormat`."""
        return rows.exact(), np.zeros(len(rows))


class Products:
    """`Proposals` of matrix products on the CPU, in some number format.

    Parameters
    ----------
    centroids_KD : ndarray of shape (K, D), dtype=float64
    number_format : Float32, Float64 or Bfloat16
    """

    def __init__(self, centroids_KD: Doubles, number_format: NumberFormat) -> None:
        self._format = number_format
        lengths_K = np.sqrt(np.square(centroids_KD).sum(axis=1))
        with np.errstate(over="ignore"):
            self._half_squares_K = (np.square(lengths_K) / 2).astype(number_format.dtype)
            self._centroids, off_K = number_format.convert(centroids_KD)
        if number_format.is_padded:
            self._centroids[:, -1] = -self._half_squares_K
        dim = centroids_KD.shape[1]
        lost = _SPARE * (dim + 8) * number_format.rounding
        lost = lost / (1 - lost) if lost < _MOST_LOST else np.inf
        self._lost = lost + number_format.rounding_of_product
        # The error of a score is a_N * reach_K + length_N * off_K + base_N + base_K.
        self._reach_K, self._off_K, self._dim = lengths_K + off_K, off_K, dim
        self._base_K = lost * np.square(lengths_K) + error_of_float64(self._reach_K, dim, number_format.smallest)
        rows_per_block = min(_SCORES_AT_ONCE // min(len(centroids_KD), CENTROIDS_AT_ONCE), _NUMBERS_AT_ONCE // dim)
        self._rows_per_block = int(np.clip(rows_per_block, _MIN_ROWS, _MAX_ROWS))
        most = max(self._rows_per_block, _BLOCKS_AT_ONCE * _NUMBERS_AT_ONCE // dim)
        self.rows_at_once = min(_BLOCKS_AT_ONCE * self._rows_per_block, most, _MAX_ROWS)

    def propose(self, rows: FramedRows, top: int) -> Pairs:
        """See `Proposals`; for more than `rows_at_once`, several times."""
        if len(rows) <= self.rows_at_once:
            return self._propose(rows, top)
        pieces = [np.arange(len(rows))[at : at + self.rows_at_once] for at in range(0, len(rows), self.rows_at_once)]
        found = [self._propose(rows.take(piece), top) for piece in pieces]
        return Pairs(
            row_of_P=np.concatenate([each.row_of_P + piece[0] for piece, each in zip(pieces, found, strict=True)]),
            centroid_of_P=np.concatenate([each.centroid_of_P for each in found]),
            is_complete_N=np.concatenate([each.is_complete_N for each in found]),
        )

    @property
    def reach(self) -> float:
        """Length of the longest centroid."""
        return float(self._reach_K.max())

    def some_of(self, centroids_KD: Doubles) -> Products:
        """Products with other centroids, in the same number format."""
        return Products(centroids_KD, self._format)

    def ranges(self, framed: FramedRows) -> Ranges:
        """Find the likely nearest centroid of each row, and bounds of distances."""
        num_rows = len(framed)
        if not (np.square(framed.lengths_N.max() + self.reach) < self._format.largest and np.isfinite(self._lost)):
            nothing_N = np.zeros(num_rows)
            return Ranges(
                which_N=np.zeros(num_rows, np.int64), is_decided_N=np.zeros(num_rows, np.bool_),
                nearest_N=np.full(num_rows, np.inf), all_N=nothing_N, others_N=nothing_N,
            )  # fmt: skip
        rows, off_N = self._format.of_rows(framed)
        best_N, which_N, second_N = self._two_best(rows)
        error_N = _SPARE * self._largest_error(framed.lengths_N, off_N)
        spare_N = 2.0**-40 * np.square(framed.lengths_N + self.reach)  # this arithmetic is rounded, too
        shortest_N = np.square(framed.least_lengths_N) - 2 * error_N - spare_N
        nearest_N = np.square(framed.lengths_N) - 2 * (best_N - error_N) + spare_N
        return Ranges(
            which_N=which_N,
            is_decided_N=best_N - second_N > 2 * error_N,
            nearest_N=np.sqrt(np.maximum(nearest_N, 0)),
            all_N=np.sqrt(np.maximum(shortest_N - 2 * best_N, 0)),
            others_N=np.sqrt(np.maximum(shortest_N - 2 * second_N, 0)),
        )

    def _errors_of_rows(self, lengths_N: Doubles, off_N: Doubles) -> tuple[Doubles, Doubles]:
        """The parts a_N and base_N of the error of a score."""
        return off_N + self._lost * (lengths_N + off_N), error_of_float64(lengths_N, self._dim, self._format.smallest)

    def _largest_error(self, lengths_N: Doubles, off_N: Doubles) -> Doubles:
        """Largest error of any score of each row."""
        a_N, base_N = self._errors_of_rows(lengths_N, off_N)
        return np.asarray(a_N * self.reach + lengths_N * self._off_K.max() + self._base_K.max() + base_N)

    def _propose(self, rows: FramedRows, top: int) -> Pairs:
        is_complete_N = np.square(rows.lengths_N + self.reach) < self._format.largest
        usable = np.flatnonzero(is_complete_N)
        if not len(usable) or not np.isfinite(self._lost):
            return Pairs(row_of_P=usable[:0], centroid_of_P=usable[:0], is_complete_N=np.zeros(len(rows), np.bool_))
        rows_P, centroids_P = self._of_usable(rows.take(usable), top)
        return Pairs(row_of_P=usable[rows_P], centroid_of_P=centroids_P, is_complete_N=is_complete_N)

    def _of_usable(self, framed: FramedRows, top: int) -> tuple[Ints, Ints]:
        """Pairs of rows that can't overflow, by row."""
        rows, off_N = self._format.of_rows(framed)
        lengths_N = framed.lengths_N
        if top == 1:
            best_N, which_N, second_N = self._two_best(rows)
            is_decided_N = best_N - second_N > 2 * _SPARE * self._largest_error(framed.lengths_N, off_N)
        else:
            is_decided_N, which_N = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.int64)
        undecided = np.flatnonzero(~is_decided_N)
        if not len(undecided):
            return np.arange(len(which_N)), which_N
        a_N, base_N = self._errors_of_rows(lengths_N, off_N)
        row_of, centroid_of = [np.flatnonzero(is_decided_N)], [which_N[is_decided_N]]
        step = max(1, min(self._rows_per_block, _ERRORS_AT_ONCE // len(self._reach_K)))
        for at in range(0, len(undecided), step):
            chosen = undecided[at : at + step]
            error = a_N[chosen, None] * self._reach_K + lengths_N[chosen, None] * self._off_K
            error += self._base_K + base_N[chosen, None]
            error *= _SPARE
            within, candidates = _possible(self._scores(rows[chosen], slice(None)), error, top)
            row_of.append(chosen[within])
            centroid_of.append(candidates)
        rows_P = np.concatenate(row_of)
        order = np.argsort(rows_P, kind="stable")  # the centroids of each row are rising already
        return rows_P[order], np.concatenate(centroid_of)[order]

    def _two_best(self, rows: Any) -> tuple[Doubles, Ints, Doubles]:
        """Highest score of each row, where it is, and the second highest (-inf if there is none)."""
        found = []
        for at in range(0, len(rows), self._rows_per_block):
            block = rows[at : at + self._rows_per_block]
            best_N, which_N, second_N = _two_best(self._scores(block, slice(0, CENTROIDS_AT_ONCE)))
            for first in range(CENTROIDS_AT_ONCE, len(self._reach_K), CENTROIDS_AT_ONCE):
                scores_NK = self._scores(block, slice(first, first + CENTROIDS_AT_ONCE))
                best, which, second = _two_best(scores_NK)
                second_N = np.maximum(np.maximum(second_N, second), np.minimum(best_N, best))
                which_N = np.where(best > best_N, which + first, which_N)
                best_N = np.maximum(best_N, best)
            found.append((best_N, which_N, second_N))
        best_N, which_N, second_N = (np.concatenate(each) for each in zip(*found, strict=True))
        return best_N, which_N, second_N

    def _scores(self, rows: Any, centroids: slice) -> Array:
        wanted = self._centroids[centroids]
        scores_NK = np.empty((len(rows), len(wanted)), self._format.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            self._format.multiply(rows, wanted, scores_NK)
            if not self._format.is_padded:
                scores_NK -= self._half_squares_K[centroids]
        return scores_NK


def error_of_float64(lengths: Doubles, dim: int, smallest: float) -> Doubles:
    """Error of a score by the float64 distances that decide in the end, by entering the frame, and by underflow.

    It is the sum of this function of the row's length and of this function of the centroid's. Both numbers of a
    difference are exact when the frame's center is subtracted, and each difference is off by one rounding error of
    itself, however far the center is from the origin. The distance is off by D + 2 more of |x - c|^2, and
    |x - c|^2 <= 2 |x|^2 + 2 |c|^2.
    """
    return np.asarray(2 * (dim + 16) * FLOAT64 * np.square(lengths) + 3 * dim * smallest * (1 + lengths))


def _two_best(scores_NK: Array) -> tuple[Doubles, Ints, Doubles]:
    """Highest score of each row, where it is, and the second highest (-inf if there is none)."""
    rows = np.arange(len(scores_NK))
    which_N = scores_NK.argmax(axis=1)
    best_N = scores_NK[rows, which_N]
    scores_NK[rows, which_N] = -np.inf
    second_N = scores_NK.max(axis=1)
    scores_NK[rows, which_N] = best_N
    return best_N.astype(np.float64), which_N, second_N.astype(np.float64)


def _possible(scores_NK: Array, error_NK: Doubles, top: int) -> tuple[Ints, Ints]:
    """Pairs of row and centroid whose true score can be among the `top` highest of the row."""
    if scores_NK.shape[1] <= top:
        rows, centroids = np.indices(scores_NK.shape)
        return rows.ravel(), centroids.ravel()
    lower_NK = scores_NK - error_NK
    bar_N = np.partition(lower_NK, -top, axis=1)[:, -top]
    pairs: tuple[Ints, Ints] = np.nonzero(scores_NK + error_NK >= bar_N[:, None])  # type: ignore[assignment]
    return pairs
