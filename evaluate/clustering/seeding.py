"""Initial centroids: rows chosen by k-means++ or at random on a sample, or numbers from a file.

Shape suffixes:  N sampled rows   K clusters   D dimension   T trials
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from featbench.evaluate.clustering.rows import scale_exactly
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.neighbours.error_bounds import FLOAT32
from featbench.evaluate.neighbours.tiled_engine import one_blas_thread
from featbench.store.typing import Doubles, Floats, Ints

_ROWS_PER_PIECE = 2048
"""Rows that a thread compares at a time: fixed, so that threads change no sum."""


def kmeans_plus_plus(rows_ND: Floats, num_clusters: int, *, seed: Sequence[int], num_threads: int) -> Ints:
    """Choose K rows by greedy k-means++.

    Each next row is the best of 2 + log(K) rows that were drawn with a probability proportional to the squared
    distance to the nearest row chosen so far.

    Parameters
    ----------
    rows_ND : ndarray of shape (N, D), dtype=float32
        Near the origin; squares must not overflow.
    num_clusters : int
        K <= N.
    seed : sequence of int
    num_threads : int
        Changes nothing.

    Returns
    -------
    ndarray of shape (K,)
        Positions of the chosen rows, all different.

    References
    ----------
    Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007; with the greedy choice that
    their implementation and scikit-learn make.
    """
    random = np.random.default_rng(seed)
    trials = 2 + int(math.log(num_clusters))
    squares_N = np.einsum("nd,nd->n", rows_ND, rows_ND)
    pieces = [slice(at, at + _ROWS_PER_PIECE) for at in range(0, len(rows_ND), _ROWS_PER_PIECE)]
    nearest_N = np.full(len(rows_ND), np.inf, np.float32)
    distances_TN = np.empty((trials, len(rows_ND)), np.float32)
    is_chosen_N = np.zeros(len(rows_ND), np.bool_)
    noise_N = 16 * FLOAT32 * squares_N

    def compare(piece: slice, candidates_T: Ints) -> Doubles:
        """Fill distances to the candidates or to what is nearer; returns their sums."""
        found = distances_TN[: len(candidates_T), piece]
        _fill_squared_distances(found, rows_ND, squares_N, candidates_T, piece)
        found[found < noise_N[piece] + noise_N[candidates_T, None]] = 0  # equal rows
        np.minimum(found, nearest_N[piece], out=found)
        sums: Doubles = found.sum(axis=1, dtype=np.float64)
        return sums

    chosen = np.empty(num_clusters, np.int64)
    with one_blas_thread(), ThreadPoolExecutor(num_threads) as workers:
        for number in range(num_clusters):
            candidates = _draw(random, nearest_N, is_chosen_N, 1 if number == 0 else trials)
            totals_T = sum(workers.map(compare, pieces, [candidates] * len(pieces)))
            best = int(np.argmin(totals_T))
            chosen[number] = candidates[best]
            is_chosen_N[chosen[number]] = True
            nearest_N[:] = distances_TN[best]
            nearest_N[chosen[number]] = 0
    return chosen


def swapped(rows_ND: Floats, centroids_KD: Floats, *, seed: Sequence[int], num_threads: int) -> Floats:
    """Move centroids that are hardly needed to rows that are far from all of them, while that lowers the objective.

    Lloyd's algorithm can't do this: where two centroids share one group of rows and another has none, it stays so.
    Candidates are drawn as by `kmeans_plus_plus`. The best pair of a candidate and a centroid to remove is taken, until
    several draws in a row find none.

    Parameters
    ----------
    rows_ND : ndarray of shape (N, D), dtype=float32
        Near the origin; squares must not overflow.
    centroids_KD : ndarray of shape (K, D), dtype=float32
    seed, num_threads
        As for `kmeans_plus_plus`.

    Returns
    -------
    ndarray of shape (K, D), dtype=float32
        Equal to `centroids_KD` if no exchange helps.

    References
    ----------
    Lattanzi and Sohler, "A better k-means++ algorithm via local search", ICML 2019.
    """
    random = np.random.default_rng(seed)
    centroids_KD = centroids_KD.copy()
    with one_blas_thread(), ThreadPoolExecutor(num_threads) as workers:
        nearest = _TwoNearest(rows_ND, centroids_KD, workers)
        failures, trials = 0, 2 + int(math.log(len(centroids_KD)))
        nothing_N = np.zeros(len(rows_ND), np.bool_)
        for _ in range(MOST_SWAPS_PER_CLUSTER * len(centroids_KD)):
            candidates = _draw(random, nearest.first_N, nothing_N, trials)
            failures = 0 if nearest.swap_best(candidates) else failures + 1
            if failures == _PATIENCE:
                break
    return centroids_KD


MOST_SWAPS_PER_CLUSTER = 2

_PATIENCE = 16
"""Draws without a better pair before the search ends."""

_LEAST_GAIN = 1e-6
"""Part of the objective that an exchange must save."""


class _TwoNearest:
    """Squared distances of all rows to the two nearest centroids, kept while centroids are moved."""

    def __init__(self, rows_ND: Floats, centroids_KD: Floats, workers: ThreadPoolExecutor) -> None:
        self._rows_ND, self._centroids_KD, self._workers = rows_ND, centroids_KD, workers
        self._squares_N = np.einsum("nd,nd->n", rows_ND, rows_ND)
        self._pieces = [slice(at, at + _ROWS_PER_PIECE) for at in range(0, len(rows_ND), _ROWS_PER_PIECE)]
        self.first_N, self._second_N = np.empty(len(rows_ND), np.float32), np.empty(len(rows_ND), np.float32)
        self._first_of_N, self._second_of_N = np.zeros(len(rows_ND), np.int64), np.zeros(len(rows_ND), np.int64)
        self._compute(np.arange(len(rows_ND)))

    def swap_best(self, candidates_T: Ints) -> bool:
        """Replace a centroid by one of the candidate rows, if that lowers the objective."""
        distances_TN = np.empty((len(candidates_T), len(self._rows_ND)), np.float32)

        def weigh(piece: slice) -> tuple[Doubles, Doubles]:
            found = distances_TN[:, piece]
            _fill_squared_distances(found, self._rows_ND, self._squares_N, candidates_T, piece)
            np.maximum(found, 0, out=found)
            best_TN = np.minimum(found, self.first_N[piece])
            lost_TN = np.minimum(found, self._second_N[piece]) - best_TN
            lost = [np.bincount(self._first_of_N[piece], each, len(self._centroids_KD)) for each in lost_TN]
            return best_TN.sum(axis=1, dtype=np.float64), np.stack(lost)

        totals_T, lost_TK = np.zeros(len(candidates_T)), np.zeros((len(candidates_T), len(self._centroids_KD)))
        for total, lost in self._workers.map(weigh, self._pieces):
            totals_T += total
            lost_TK += lost
        costs_TK = totals_T[:, None] + lost_TK
        chosen, removed = np.unravel_index(int(costs_TK.argmin()), costs_TK.shape)
        if not costs_TK[chosen, removed] < self.first_N.sum(dtype=np.float64) * (1 - _LEAST_GAIN):
            return False
        self._replace(int(removed), self._rows_ND[candidates_T[chosen]], distances_TN[chosen])
        return True

    def _replace(self, number: int, centroid_D: Floats, distances_N: Floats) -> None:
        self._centroids_KD[number] = centroid_D
        lost_one = (self._first_of_N == number) | (self._second_of_N == number)
        is_first = (distances_N < self.first_N) & ~lost_one
        is_second = (distances_N < self._second_N) & ~is_first & ~lost_one
        self._second_N[is_first], self._second_of_N[is_first] = self.first_N[is_first], self._first_of_N[is_first]
        self.first_N[is_first], self._first_of_N[is_first] = distances_N[is_first], number
        self._second_N[is_second], self._second_of_N[is_second] = distances_N[is_second], number
        self._compute(np.flatnonzero(lost_one))

    def _compute(self, rows: Ints) -> None:
        """Find the two nearest centroids of some rows among all."""
        squares_K = np.einsum("kd,kd->k", self._centroids_KD, self._centroids_KD)
        at_once = max(1, min(_ROWS_PER_PIECE, 2**22 // len(self._centroids_KD)))

        def compute(at: int) -> None:
            chosen = rows[at : at + at_once]
            found = self._rows_ND[chosen] @ self._centroids_KD.T
            found *= -2
            found += squares_K
            everywhere = np.arange(len(chosen))
            for values_N, number_N in ((self.first_N, self._first_of_N), (self._second_N, self._second_of_N)):
                number_N[chosen] = which = found.argmin(axis=1)
                values_N[chosen] = np.maximum(found[everywhere, which] + self._squares_N[chosen], 0)
                found[everywhere, which] = np.inf

        list(self._workers.map(compute, range(0, len(rows), at_once)))


def _fill_squared_distances(
    found_TN: Floats, rows_ND: Floats, squares_N: Floats, candidates_T: Ints, piece: slice
) -> None:
    """Fill squared distances of some rows to candidates, given the squared lengths of all rows."""
    np.matmul(rows_ND[candidates_T], rows_ND[piece].T, out=found_TN)
    found_TN *= -2
    found_TN += squares_N[piece]
    found_TN += squares_N[candidates_T, None]


def _draw(random: np.random.Generator, nearest_N: Floats, is_chosen_N: np.ndarray, count: int) -> Ints:
    """Draw rows by their distances; any that are not chosen, if all distances are 0 or none is known."""
    if not np.isfinite(nearest_N[0]):
        return random.integers(len(nearest_N), size=count)
    cumulated = nearest_N.cumsum(dtype=np.float64)
    if cumulated[-1] == 0:
        return random.choice(np.flatnonzero(~is_chosen_N), size=count)
    drawn = np.searchsorted(cumulated, random.random(count) * cumulated[-1], side="right")
    rows: Ints = np.minimum(drawn, np.searchsorted(cumulated, cumulated[-1]))
    return rows


def read_centroids(path: Path, *, dim: int, num_clusters: int, normalize: bool) -> Doubles:
    """Read initial centroids from a .npy file.

    Parameters
    ----------
    path : Path
        K x D numbers.
    dim, num_clusters : int
        D and K.
    normalize : bool
        Whether each is divided by its length, as the rows are.

    Raises
    ------
    EvaluationError
        If there is no such file, or it holds anything else.
    """
    wanted = f"expected {num_clusters:,} x {dim:,} finite numbers, one centroid a row"
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile, TokenError, SyntaxError) as error:
        raise EvaluationError(f"{path}: can't be read as initial centroids ({error}); {wanted}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or values.shape != (num_clusters, dim):
        shape = " x ".join(map(str, values.shape)) if isinstance(values, np.ndarray) else "an archive"
        raise EvaluationError(
            f"{path}: initial centroids: {wanted}; got {shape} of {getattr(values, 'dtype', 'arrays')}. Give a file "
            f"that fits the layer, or leave --init out."
        )
    centroids_KD = values.astype(np.float64)
    if not np.isfinite(centroids_KD).all():
        raise EvaluationError(f"{path}: initial centroids hold NaN or infinity; {wanted}")
    if np.abs(centroids_KD).max() > np.finfo(np.float32).max:
        raise EvaluationError(f"{path}: initial centroids hold numbers beyond float32, as no row does; {wanted}")
    return scale_exactly(centroids_KD) if normalize else centroids_KD
