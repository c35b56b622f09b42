"""Exact k-nearest-neighbour search over a layer that streams from the store.

faiss proposes in float32, block by block, a few more neighbours than are wanted; then their
similarities are computed again from the stored features, in float64 and in a fixed order of
summation. Where rounding could have kept a neighbour from being proposed, the query is searched
again with a longer list. So neither the size of a block nor the number of threads changes a
result, and equal similarities are ordered by row. Memory holds the queries, two blocks and the lists.

Shape suffixes:  Q queries   K neighbours   N database rows   P pairs   R rows of a chunk   D dimension
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from evaluate.labels import EvaluationError
from evaluate.protocols import Similarity
from evaluate.selection import EPSILON, Selection, scale_to_unit_length
from store import LayerReader

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MARGIN = 32
"""Neighbours proposed beyond k at first."""

GROWTH = 4
"""How much longer the list of a query that is searched again is."""

ROUNDS = 3
"""Searches of one query at most, so with up to 16 times the neighbours. Beyond that, its list ends
in rows that are as good as equal (features that have collapsed), and it is counted as not certain."""

ROUNDING = 2.0**-24
"""Largest relative error of one float32 operation."""

MAX_GPU_K = 2048
"""faiss on a GPU keeps no longer lists."""

_ROWS = 1024
"""Rows or lists handled at a time where a temporary copy is needed."""

_BYTES = 4 * 2**20
"""Size of a temporary copy in float64 while rescoring; stays within a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """For each query, its nearest database rows, ordered by similarity (falling), then by row (rising)."""

    rows_QK: Ints
    similarities_QK: Doubles
    """Cosine, inner product, or minus the Euclidean distance."""

    queries: Ints
    """Row of each query in its own split, shape (Q,)."""

    num_uncertain: int
    """Queries whose last neighbours were too near to others to be told apart in float32."""


def search(
    database: Selection,
    queries: Selection,
    *,
    k: int,
    similarity: Similarity,
    rows_per_block: int,
    device: str = "auto",
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Neighbours:
    """Find the k most similar database rows of each query.

    Parameters
    ----------
    database, queries : Selection
        Rows of the same layer of two splits (or of one).
    k : int
        Neighbours, 1 <= k <= len(database).
    similarity : {"cosine", "inner_product", "euclidean"}
        Cosine treats lengths below 1e-12 as 1e-12, so a row of zeros is equally unlike everything.
    rows_per_block : int
        Database rows in memory at once.
    device : {"auto", "cpu", "gpu"}
        Where faiss searches.
    on_rows : callable
        Told the number of database rows after each block.

    Returns
    -------
    Neighbours
        Q = len(queries), K = k.

    Raises
    ------
    EvaluationError
        If k is out of range, or a row that takes part holds NaN or infinity.
    """
    if not 1 <= k <= len(database):
        raise EvaluationError(f"k must be in [1, {len(database)}], the rows of the database; got {k}")
    num_queries = len(queries)
    rows_QK = np.empty((num_queries, k), np.int64)
    similarities_QK = np.empty((num_queries, k), np.float64)
    wanted = min(k + MARGIN, len(database))
    capacity = num_queries * wanted
    uncertain = np.arange(num_queries)
    for _ in range(ROUNDS):
        left = []
        group = max(1, capacity // wanted)  # longer lists for fewer queries at a time: the same memory
        for chosen in (uncertain[at : at + group] for at in range(0, len(uncertain), group)):
            found = _nearest(database, queries, chosen, wanted, similarity, rows_per_block, device, on_rows)
            rows_QK[chosen], similarities_QK[chosen] = found.rows_QK[:, :k], found.similarities_QK[:, :k]
            if wanted < len(database):
                left.append(chosen[similarities_QK[chosen, -1] <= found.ceiling_Q])
        uncertain = np.concatenate(left) if left else uncertain[:0]
        if not len(uncertain):
            break
        logger.debug("%d queries are searched again with longer lists", len(uncertain))
        wanted = min(wanted * GROWTH, len(database))
    if len(uncertain):
        text = "%s: the lists of %d queries end among rows too near to one another to be told apart in float32"
        logger.warning(text, database.layer.key, len(uncertain))
    return Neighbours(
        rows_QK=rows_QK, similarities_QK=similarities_QK, queries=queries.rows, num_uncertain=len(uncertain)
    )


@dataclass(frozen=True, slots=True)
class _Nearest:
    """Lists in order, and the similarity that no row outside a query's list can exceed."""

    rows_QK: Ints
    similarities_QK: Doubles
    ceiling_Q: Doubles


def _nearest(
    database: Selection,
    queries: Selection,
    chosen: npt.NDArray[np.intp],
    k: int,
    similarity: Similarity,
    rows_per_block: int,
    device: str,
    on_rows: Callable[[int], None],
) -> _Nearest:
    """Propose k neighbours of the chosen queries, and put them in order."""
    queries_QD = _chosen(queries, chosen)
    lengths_Q = _lengths(queries_QD)
    if similarity == "cosine":
        scale_to_unit_length(queries_QD, lengths_Q)
    rows_QK, worst_Q, longest = _propose(database, queries_QD, k, similarity, rows_per_block, device, on_rows)
    largest = {"cosine": 1.0, "inner_product": longest * lengths_Q.max()}.get(
        similarity, 2 * (longest + lengths_Q.max()) ** 2
    )
    if largest > np.finfo(np.float32).max:
        raise EvaluationError(
            f"{database.layer.key}: rows as long as {longest:.3g} overflow float32 in a search by {similarity}. "
            f"Use a protocol with the cosine, or scale the features."
        )
    del queries_QD  # read again rather than kept unscaled: one copy in memory
    similarities_QK = _rescore(database.layer, _chosen(queries, chosen), lengths_Q, rows_QK, similarity)
    for at in range(0, len(rows_QK), _ROWS):
        piece = slice(at, at + _ROWS)
        order = np.lexsort((rows_QK[piece], -similarities_QK[piece]), axis=1)
        rows_QK[piece] = np.take_along_axis(rows_QK[piece], order, axis=1)
        similarities_QK[piece] = np.take_along_axis(similarities_QK[piece], order, axis=1)
    return _Nearest(rows_QK, similarities_QK, _ceiling(worst_Q, lengths_Q, longest, database.layer.dim, similarity))


def _chosen(queries: Selection, chosen: npt.NDArray[np.intp]) -> Floats:
    features = queries.read()
    return features if len(chosen) == len(features) else features[chosen]


def _ceiling(worst_Q: Floats, lengths_Q: Doubles, longest: float, dim: int, similarity: Similarity) -> Doubles:
    """Similarity that no row outside the list can exceed: its worst float32 score, plus the largest error of one.

    An inner product of D numbers, summed in any order, is off by at most D rounding errors of the
    product of the lengths (Higham, "Accuracy and Stability of Numerical Algorithms", sec. 3.1). A length
    is the root of one, so scaling query and row to unit length doubles that. faiss computes a squared
    distance from three of them. The constant allows for the single operations between.
    """
    count = 2 * dim + 16
    error = count * ROUNDING / (1 - count * ROUNDING)
    worst = worst_Q.astype(np.float64)
    if similarity == "cosine":
        return worst + error
    if similarity == "inner_product":
        return worst + error * lengths_Q * longest
    squared = np.maximum(worst - error * np.square(lengths_Q + longest), 0)
    return -np.sqrt(squared)


def _propose(
    database: Selection,
    queries_QD: Floats,
    k: int,
    similarity: Similarity,
    rows_per_block: int,
    device: str,
    on_rows: Callable[[int], None],
) -> tuple[Ints, Floats, float]:
    """Rows of the k best float32 scores, the worst of these scores, and the length of the longest database row."""
    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    heap = faiss.ResultHeap(len(queries_QD), k, keep_max=metric == faiss.METRIC_INNER_PRODUCT)
    search_block = _engine(device, k)
    longest = 0.0
    for part in database.parts(rows_per_block, unit_length=similarity == "cosine"):
        if len(part.rows):
            scores, places = search_block(queries_QD, part.features, min(k, len(part.rows)), metric)
            heap.add_result(scores, part.rows[places])
            longest = max(longest, part.longest)
        on_rows(part.num_read)
    heap.finalize()
    return heap.I, heap.D[:, -1], longest


def _rescore(
    database: LayerReader, queries_QD: Floats, lengths_Q: Doubles, rows_QK: Ints, similarity: Similarity
) -> Doubles:
    """Similarities of the given pairs in float64, each summed in the same order wherever it lies."""
    num_neighbours = rows_QK.shape[1]
    rows = rows_QK.reshape(-1)
    similarities = np.empty(rows.shape, np.float64)
    chunks = rows // database.rows_per_chunk
    order = np.argsort(chunks.astype(np.uint16 if chunks.max() < 2**16 else np.int64), kind="stable")
    ends = np.cumsum(np.bincount(chunks))
    pairs_at_once = max(1, _BYTES // (8 * database.dim))

    def rescore_chunk(chunk: int) -> None:
        pairs_of_chunk = order[ends[chunk - 1] if chunk else 0 : ends[chunk]]
        if not len(pairs_of_chunk):
            return
        wanted, place_of = np.unique(rows[pairs_of_chunk] - chunk * database.rows_per_chunk, return_inverse=True)
        database_RD = database.peek(chunk)[wanted].astype(np.float64)
        lengths_R = _lengths(database_RD)
        for at in range(0, len(pairs_of_chunk), pairs_at_once):
            pairs, places = pairs_of_chunk[at : at + pairs_at_once], place_of[at : at + pairs_at_once]
            query_of = pairs // num_neighbours
            found = _similarities(database_RD[places], queries_QD[query_of], similarity)
            if similarity == "cosine":
                found /= lengths_R[places] * lengths_Q[query_of]
            similarities[pairs] = found

    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        list(threads.map(rescore_chunk, range(len(ends))))
    return similarities.reshape(rows_QK.shape)


def _similarities(database_PD: Doubles, queries_PD: Floats, similarity: Similarity) -> Doubles:
    """Inner product of each pair of rows, or minus their distance; overwrites `database_PD`."""
    if similarity == "euclidean":
        database_PD -= queries_PD
        distances: Doubles = np.sqrt(np.square(database_PD, out=database_PD).sum(axis=1))
        return -distances
    products: Doubles = np.multiply(database_PD, queries_PD, out=database_PD).sum(axis=1)
    return products


def _engine(device: str, k: int) -> Callable[[Floats, Floats, int, int], tuple[Floats, Ints]]:
    """Faiss's brute-force search of one block, on the GPU where that is wanted and possible."""
    num_gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if device == "gpu" and not num_gpus:
        raise EvaluationError("faiss sees no GPU; search with --search-device cpu, or install faiss-gpu and a driver")
    if device == "cpu" or not num_gpus:
        return lambda queries_QD, block_ND, k, metric: faiss.knn(queries_QD, block_ND, k, metric=metric)
    if k > MAX_GPU_K:
        logger.warning("faiss on a GPU keeps at most %d neighbours; %d are wanted, so the CPU searches", MAX_GPU_K, k)
        return _engine("cpu", k)
    resources = faiss.StandardGpuResources()
    return lambda queries_QD, block_ND, k, metric: faiss.knn_gpu(resources, queries_QD, block_ND, k, metric=metric)


def _lengths(features_ND: npt.NDArray[Any]) -> Doubles:
    """Euclidean lengths in float64, at least EPSILON."""
    lengths = np.empty(len(features_ND), np.float64)
    for at in range(0, len(features_ND), _ROWS):
        squares = np.square(features_ND[at : at + _ROWS], dtype=np.float64)
        lengths[at : at + _ROWS] = np.sqrt(squares.sum(axis=1))
    return np.maximum(lengths, EPSILON)
