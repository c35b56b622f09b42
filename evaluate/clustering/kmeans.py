"""k-means over a layer that streams from the store.

Initial centroids come from faiss on a sample that fits in memory, the best of several starts. Then every iteration
passes once over all rows (Lloyd's algorithm, no subsampling): faiss assigns each block, sums are in float64. Memory
holds the centroids, the sample while it is needed, and two blocks.

faiss computes distances in float32, from squares. So rows that lie far from the origin are moved near it first, and
numbers whose squares float32 can't hold are scaled: neither changes which centroid is the nearest.

Shape suffixes:  N rows   K clusters   D feature dimension
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import faiss
import numpy as np
from scipy.sparse import csr_matrix

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import RowBlock, Selection
from featbench.store.typing import Doubles, Floats, Ints

logger = logging.getLogger(__name__)


POINTS_PER_CENTROID = 256
"""Rows of the sample for each cluster, as in faiss."""

_ROWS_PER_SUM = 4096
"""Rows summed in float32 before they are added to the float64 sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering:
    """Centroids and their objective."""

    centroids_KD: Floats
    """In the units of the rows (of length 1, if they were scaled)."""

    objective: float
    """Sum over rows of the squared Euclidean distance to the nearest centroid, for these centroids."""

    iterations: int
    """Passes over all rows; the last one found nothing to improve, or the limit was reached."""


def kmeans(
    data: Selection,
    num_clusters: int,
    *,
    rows_per_block: int,
    normalize: bool = True,
    iterations: int = 100,
    restarts: int = 10,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> Clustering:
    """Cluster rows with Euclidean k-means.

    Parameters
    ----------
    data : Selection
        Rows to cluster.
    num_clusters : int
        1 <= num_clusters <= len(data).
    rows_per_block : int
        Rows in memory at once.
    normalize : bool
        Whether each row is scaled to length 1 first.
    iterations : int
        Most passes over all rows.
    restarts : int
        Initializations on the sample; the best one is kept.
    seed : int
        Seed of the sample and of the initializations.
    tolerance : float
        Stop when an iteration lowers the objective by less than this fraction of it.

    Raises
    ------
    EvaluationError
        If there are more clusters than rows, a value is not finite, or the seed is negative or beyond 31 bits.

    Notes
    -----
    A cluster that loses all its rows keeps its centroid.
    """
    if not 1 <= num_clusters <= len(data):
        raise EvaluationError(f"clusters must be in [1, {len(data)}], the rows to cluster; got {num_clusters}")
    if not 0 <= seed < 2**31 - 1:
        raise EvaluationError(f"seed must be in [0, {2**31 - 2}]; got {seed}")
    stored: Callable[[], Iterable[RowBlock]] = partial(data.blocks, rows_per_block, unit_length=normalize)
    is_one_block = data.layer.num_rows <= rows_per_block
    if is_one_block:
        held = list(stored())  # no need to read it again in every iteration
        stored = lambda: held  # noqa: E731
    size = min(len(data), POINTS_PER_CENTROID * num_clusters)
    chosen = np.sort(np.random.default_rng(seed).choice(data.rows, size, replace=False))
    sample, frame = _survey(stored(), chosen, data.layer.dim)
    blocks = (lambda: held) if is_one_block else (lambda: map(frame.enter, stored()))
    if is_one_block:
        held = [frame.enter(block) for block in held]
    centroids_KD = _initial_centroids(frame.enter_array(sample), num_clusters, restarts=restarts, seed=seed)
    objective = np.inf
    for iteration in range(1, iterations + 1):
        sums_KD = np.zeros(centroids_KD.shape, np.float64)
        counts_K = np.zeros(num_clusters, np.int64)
        distances = sum(
            _add_up(block.features, centroids_KD, sums_KD, counts_K) for block in blocks() if len(block.rows)
        )
        logger.debug("k-means iteration %d: objective %.6g", iteration, distances)
        if distances >= objective * (1 - tolerance):
            return frame.leave(centroids_KD, distances, iterations=iteration)
        objective = distances
        if iteration < iterations:
            filled = counts_K > 0
            centroids_KD = centroids_KD.copy()
            centroids_KD[filled] = sums_KD[filled] / counts_K[filled, None]
    return frame.leave(centroids_KD, objective, iterations=iterations)


def assign(data: Selection, clustering: Clustering, *, rows_per_block: int, normalize: bool = True) -> Ints:
    """Return the nearest centroid of each selected row, shape (len(data),)."""
    centroids_KD = clustering.centroids_KD
    around = _Frame.around(centroids_KD)
    clusters = []
    for block in data.blocks(rows_per_block, unit_length=normalize):
        if len(block.rows):
            largest = max(_largest(block.features), _largest(centroids_KD))
            frame = replace(around, factor=_factor(largest))
            moved_KD = frame.enter_array(centroids_KD.copy())
            clusters.append(_nearest(frame.enter_array(block.features), moved_KD)[1])
    return np.concatenate(clusters)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """Coordinates in which float32 holds squared distances: rows less `shift_D`, times `factor`, a power of two."""

    shift_D: Floats | None
    factor: float

    @classmethod
    def around(cls, centroids_KD: Floats) -> _Frame:
        """Choose the shift for some centroids."""
        mean_D = centroids_KD.mean(axis=0, dtype=np.float64)
        squares = np.einsum("kd,kd->", centroids_KD, centroids_KD, dtype=np.float64) / len(centroids_KD)
        return cls(shift_D=_shift(mean_D, float(squares)), factor=1.0)

    def enter(self, block: RowBlock) -> RowBlock:
        """Change a block's features, in place."""
        self.enter_array(block.features)
        return block

    def enter_array(self, features: Floats) -> Floats:
        """Change rows in place, and return them."""
        if self.factor != 1:
            np.multiply(features, np.float32(self.factor), out=features)
        if self.shift_D is not None:
            np.subtract(features, self.shift_D * np.float32(self.factor), out=features)
        return features

    def leave(self, centroids_KD: Floats, objective: float, *, iterations: int) -> Clustering:
        """Transform a result back to the units of the rows."""
        original_KD = centroids_KD.astype(np.float64) / self.factor
        if self.shift_D is not None:
            original_KD += self.shift_D
        return Clustering(
            centroids_KD=original_KD.astype(np.float32), objective=objective / self.factor**2, iterations=iterations
        )


_FAR = 15 / 16
"""Fraction of the mean squared length above which an offset costs float32 more than two bits."""

_SMALLEST, _LARGEST = 1e-6, 1e15
"""Numbers between them have squares, and sums of squares, within float32."""


def _shift(mean_D: Doubles, mean_square: float) -> Floats | None:
    return mean_D.astype(np.float32) if float(mean_D @ mean_D) > _FAR * mean_square else None


def _factor(largest: float) -> float:
    if largest == 0 or _SMALLEST <= largest <= _LARGEST:
        return 1.0
    return float(2.0 ** np.clip(-np.floor(np.log2(largest)), -126, 126))


def _largest(features: Floats) -> float:
    return max(float(features.max(initial=0)), -float(features.min(initial=0)))


def _nearest(features: Floats, centroids_KD: Floats) -> tuple[Floats, Ints]:
    """Squared distance to the nearest centroid, and which it is."""
    distances, nearest = faiss.knn(features, centroids_KD, 1)
    if nearest.min(initial=0) < 0:
        raise EvaluationError("k-means: the rows lie so far apart that float32 can't hold their squared distances")
    return distances[:, 0], nearest[:, 0]


def _add_up(features: Floats, centroids_KD: Floats, sums_KD: Doubles, counts_K: Ints) -> float:
    """Add each row to its cluster's sum and count; returns the sum of squared distances."""
    distances, clusters = _nearest(features, centroids_KD)
    counts_K += np.bincount(clusters, minlength=len(counts_K))

    def sums_of(at: int) -> Floats:
        piece, places = features[at : at + _ROWS_PER_SUM], clusters[at : at + _ROWS_PER_SUM]
        ones = np.ones(len(piece), np.float32)
        membership = csr_matrix((ones, (places, np.arange(len(piece)))), (len(counts_K), len(piece)))
        sums: Floats = membership @ piece
        return sums

    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        for sums in threads.map(sums_of, range(0, len(features), _ROWS_PER_SUM)):
            sums_KD += sums
    return float(distances.sum(dtype=np.float64))


def _survey(blocks: Iterable[RowBlock], chosen: Ints, dim: int) -> tuple[Floats, _Frame]:
    """Copy the chosen rows (rising) out of the blocks, and choose a frame for all rows."""
    copies = []
    sums_D, squares, count, largest = np.zeros(dim), 0.0, 0, 0.0
    for block in blocks:
        _, within, _ = np.intersect1d(block.rows, chosen, assume_unique=True, return_indices=True)
        copies.append(block.features[within])
        sums_D += block.features.sum(axis=0, dtype=np.float64)
        squares += float(np.einsum("nd,nd->", block.features, block.features, dtype=np.float64))
        count += len(block.rows)
        largest = max(largest, _largest(block.features))
    frame = _Frame(shift_D=_shift(sums_D / count, squares / count), factor=_factor(largest))
    return np.concatenate(copies), frame


def _initial_centroids(sample: Floats, num_clusters: int, *, restarts: int, seed: int) -> Floats:
    """Run faiss's k-means on a sample several times, and return the best centroids."""
    trained = faiss.Kmeans(
        sample.shape[1],
        num_clusters,
        niter=25,
        nredo=restarts,
        seed=seed + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=max(POINTS_PER_CENTROID, len(sample)),
    )
    try:
        trained.train(sample)
    except RuntimeError as error:
        raise EvaluationError(f"k-means: faiss finds no {num_clusters:,} centroids ({error})") from error
    return np.array(trained.centroids, np.float32)
