"""k-means over a layer that streams from the store.

Initial centroids come from faiss on a sample that fits in memory, the best of several starts. Then
every iteration passes once over all rows (Lloyd's algorithm, no sub-sampling): faiss assigns each
block, sums are kept in float64. Memory holds the centroids, the sample while it is needed, and two blocks.

Shape suffixes:  N rows   K clusters   D feature dimension
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import faiss
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from evaluate.labels import EvaluationError
from evaluate.selection import Part, Selection

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

POINTS_PER_CENTROID = 256
"""Rows of the sample for each cluster, as faiss takes them."""

_ROWS = 4096
"""Rows summed in float32 before they join the float64 sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering:
    """Centroids and what they cost."""

    centroids_KD: Floats
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
        What to cluster.
    num_clusters : int
        1 <= num_clusters <= len(data).
    rows_per_block : int
        Rows in memory at once.
    normalize : bool
        Whether each row is scaled to length 1 first.
    iterations : int
        Passes over all rows at most.
    restarts : int
        Initialisations on the sample; the best one is kept.
    seed : int
        Of the sample and the initialisations.
    tolerance : float
        Stop when an iteration lowers the objective by less than this fraction of it.

    Raises
    ------
    EvaluationError
        If there are more clusters than rows, or a value is not finite.

    Notes
    -----
    A cluster that loses all its rows keeps its centroid.
    """
    if not 1 <= num_clusters <= len(data):
        raise EvaluationError(f"clusters must be in [1, {len(data)}], the rows to cluster; got {num_clusters}")
    parts: Callable[[], Iterable[Part]] = partial(data.parts, rows_per_block, unit_length=normalize)
    if data.layer.num_rows <= rows_per_block:
        held = list(parts())  # one block: no need to read it again in every iteration
        parts = lambda: held  # noqa: E731
    size = min(len(data), POINTS_PER_CENTROID * num_clusters)
    chosen = np.sort(np.random.default_rng(seed).choice(data.rows, size, replace=False))
    centroids_KD = _initial_centroids(_sample(parts(), chosen), num_clusters, restarts=restarts, seed=seed)
    objective = np.inf
    for iteration in range(1, iterations + 1):
        sums_KD = np.zeros(centroids_KD.shape, np.float64)
        counts_K = np.zeros(num_clusters, np.int64)
        distances = sum(_add_up(part.features, centroids_KD, sums_KD, counts_K) for part in parts() if len(part.rows))
        logger.debug("k-means iteration %d: objective %.6g", iteration, distances)
        if distances >= objective * (1 - tolerance):
            return Clustering(centroids_KD=centroids_KD, objective=distances, iterations=iteration)
        objective = distances
        if iteration < iterations:
            filled = counts_K > 0
            centroids_KD = centroids_KD.copy()
            centroids_KD[filled] = sums_KD[filled] / counts_K[filled, None]
    return Clustering(centroids_KD=centroids_KD, objective=objective, iterations=iterations)


def assign(data: Selection, clustering: Clustering, *, rows_per_block: int, normalize: bool = True) -> Ints:
    """Return the nearest centroid of each row that takes part, shape (len(data),)."""
    clusters = [
        faiss.knn(part.features, clustering.centroids_KD, 1)[1][:, 0]
        for part in data.parts(rows_per_block, unit_length=normalize)
        if len(part.rows)
    ]
    return np.concatenate(clusters)


def _add_up(features: Floats, centroids_KD: Floats, sums_KD: npt.NDArray[np.float64], counts_K: Ints) -> float:
    """Add each row to its cluster's sum and count; returns the sum of squared distances."""
    distances, nearest = faiss.knn(features, centroids_KD, 1)
    clusters = nearest[:, 0]
    counts_K += np.bincount(clusters, minlength=len(counts_K))

    def sums_of(at: int) -> Floats:
        piece, places = features[at : at + _ROWS], clusters[at : at + _ROWS]
        ones = np.ones(len(piece), np.float32)
        membership = csr_matrix((ones, (places, np.arange(len(piece)))), (len(counts_K), len(piece)))
        sums: Floats = membership @ piece
        return sums

    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        for sums in threads.map(sums_of, range(0, len(features), _ROWS)):
            sums_KD += sums
    return float(distances.sum(dtype=np.float64))


def _sample(parts: Iterable[Part], chosen: Ints) -> Floats:
    """Copy the chosen rows (rising) out of the blocks."""
    copies = []
    for part in parts:
        _, within, _ = np.intersect1d(part.rows, chosen, assume_unique=True, return_indices=True)
        copies.append(part.features[within])
    return np.concatenate(copies)


def _initial_centroids(sample: Floats, num_clusters: int, *, restarts: int, seed: int) -> Floats:
    """The best of several runs of faiss's k-means on a sample."""
    trained = faiss.Kmeans(
        sample.shape[1],
        num_clusters,
        niter=25,
        nredo=restarts,
        seed=seed + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=max(POINTS_PER_CENTROID, len(sample)),
    )
    trained.train(sample)
    return np.array(trained.centroids, np.float32)
