"""Exact k-nearest-neighbour search over a layer that streams from the store.

faiss proposes in float32, block by block, a few more neighbours than are wanted; then their
similarities are computed again from the stored features, in float64 and in a fixed order of summation
(`rescore`). Where rounding could have kept a neighbour from being proposed (`certificate`), the query gets
a second look in float64 (`exact`). So neither the size of a block nor threads, ranks, devices and machines
change a bit, and equal similarities are ordered by row.

A row of zeros has no direction. Under the cosine it comes last in every list.

Shape suffixes:  Q queries   K neighbours   N database rows   D dimension
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from evaluate.labels import EvaluationError
from evaluate.memory import SearchPlan
from evaluate.neighbours.certificate import ceiling, is_finite_in_float32
from evaluate.neighbours.engines import engine_for
from evaluate.neighbours.exact import search_in_float64
from evaluate.neighbours.rescore import lengths_of_rows, rescore
from evaluate.protocols import Similarity
from evaluate.selection import Selection, scale_to_unit_length

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MARGIN = 32
"""Neighbours proposed beyond k: the last of them lies so far from the k-th that rounding seldom matters."""

UNDEFINED = -2.0
"""What the cosine with a row of zeros counts as: below every cosine."""

_LISTS = 1024
"""Lists put in order at a time, where a temporary copy is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """For each query, its nearest database rows, ordered by similarity (falling), then by row (rising)."""

    rows_QK: Ints
    similarities_QK: Doubles
    """Cosine, inner product, or minus the Euclidean distance."""

    queries: Ints
    """Row of each query in its own split, shape (Q,)."""

    num_second_look: int
    """Queries that float32 could not answer with certainty, and that were searched again in float64."""

    num_zeros: int
    """Rows of zeros in the database, under the cosine; at the end of every list, if they are in it at all."""


def search(
    database: Selection,
    queries: Selection,
    *,
    k: int,
    similarity: Similarity,
    plan: SearchPlan,
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
        Cosine treats lengths below 1e-12 as 1e-12.
    plan : SearchPlan
        How many rows of both are in memory at once.
    device : str
        Where faiss searches; see `evaluate.neighbours.engines.engine_for`.
    on_rows : callable
        Told the number of database rows after each block; a part of it where queries are searched in groups.

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
    rows_QK = np.empty((len(queries), k), np.int64)
    similarities_QK = np.empty((len(queries), k), np.float64)
    num_second_look, num_zeros = 0, 0
    starts = range(0, len(queries), plan.queries_at_once)
    for at in starts:
        group = slice(at, at + plan.queries_at_once)
        report = lambda rows: on_rows(rows // len(starts))  # noqa: E731
        found = _search(database, queries[group], k, similarity, plan.rows_per_block, device, report)
        rows_QK[group], similarities_QK[group] = found.rows_QK, found.similarities_QK
        num_second_look += found.num_second_look
        num_zeros = found.num_zeros
    return Neighbours(
        rows_QK=rows_QK,
        similarities_QK=similarities_QK,
        queries=queries.rows,
        num_second_look=num_second_look,
        num_zeros=num_zeros,
    )


def merged(found: Sequence[Neighbours], k: int) -> Neighbours:
    """Merge lists of the same queries from parts of a database into those of the whole."""
    rows_QK = np.concatenate([part.rows_QK for part in found], axis=1)
    similarities_QK = np.concatenate([part.similarities_QK for part in found], axis=1)
    put_in_order(rows_QK, similarities_QK)
    return Neighbours(
        rows_QK=rows_QK[:, :k],
        similarities_QK=similarities_QK[:, :k],
        queries=found[0].queries,
        num_second_look=sum(part.num_second_look for part in found),
        num_zeros=sum(part.num_zeros for part in found),
    )


def _search(
    database: Selection,
    queries: Selection,
    k: int,
    kind: Similarity,
    rows_per_block: int,
    device: str,
    on_rows: Callable[[int], None],
) -> Neighbours:
    """Search for queries that fit in memory."""
    queries_QD = queries.read()
    lengths_Q = lengths_of_rows(queries_QD)
    proposed = _propose(database, queries_QD, lengths_Q, k + MARGIN, kind, rows_per_block, device, on_rows)
    num_others = len(database) - len(proposed.zeros)  # those that are not left out
    wanted = min(k, num_others)
    rows_QK = np.empty((len(queries), k), np.int64)
    similarities_QK = np.full((len(queries), k), UNDEFINED)
    rows_QK[:, wanted:] = proposed.zeros[: k - wanted]
    if not wanted:
        return _neighbours(queries, rows_QK, similarities_QK, 0, proposed)

    usable = np.flatnonzero(is_finite_in_float32(lengths_Q, proposed.longest, kind))
    everyone = len(usable) == len(queries)
    lists_QK = proposed.rows_QK if everyone else proposed.rows_QK[usable]
    asking_QD = queries_QD if everyone else queries_QD[usable]
    scores_QK = rescore(database.layer, asking_QD, lengths_Q[usable], lists_QK, kind)
    put_in_order(lists_QK, scores_QK)
    rows_QK[usable, :wanted], similarities_QK[usable, :wanted] = lists_QK[:, :wanted], scores_QK[:, :wanted]
    del lists_QK, scores_QK

    floor_Q = np.full(len(queries), -np.inf)
    floor_Q[usable] = similarities_QK[usable, wanted - 1]
    certain = floor_Q > ceiling(proposed.worst_Q, lengths_Q, proposed.longest, database.layer.dim, kind)
    if proposed.rows_QK.shape[1] == num_others:  # no row was left out of any list
        certain[usable] = True
    second = np.flatnonzero(~certain)
    if len(second):
        logger.debug("%s: %d queries get a second look", database.layer.key, len(second))
        rows_QK[second, :wanted], similarities_QK[second, :wanted] = search_in_float64(
            database, queries_QD[second], k=wanted, kind=kind, floor_Q=floor_Q[second], rows_per_block=rows_per_block
        )
    return _neighbours(queries, rows_QK, similarities_QK, len(second), proposed)


@dataclass(frozen=True, slots=True)
class _Proposed:
    """Rows of the best float32 scores, and what is needed to judge them."""

    rows_QK: Ints
    worst_Q: Floats
    """Last score of each list."""

    longest: float
    """Length of the longest database row."""

    zeros: Ints
    """Rows that were left out."""


def _propose(
    database: Selection,
    queries_QD: Floats,
    lengths_Q: Doubles,
    k: int,
    kind: Similarity,
    rows_per_block: int,
    device: str,
    on_rows: Callable[[int], None],
) -> _Proposed:
    """Propose k neighbours of each query, or all rows if they are fewer."""
    if kind == "cosine":
        queries_QD = queries_QD.copy()
        scale_to_unit_length(queries_QD, lengths_Q)
    metric = faiss.METRIC_L2 if kind == "euclidean" else faiss.METRIC_INNER_PRODUCT
    k = min(k, len(database))
    heap = faiss.ResultHeap(len(queries_QD), k, keep_max=metric == faiss.METRIC_INNER_PRODUCT)
    search_block = engine_for(device, k)
    longest, zeros = 0.0, []
    for part in database.parts(rows_per_block, unit_length=kind == "cosine", without_zeros=kind == "cosine"):
        if len(part.rows):
            scores, places = search_block(queries_QD, part.features, min(k, len(part.rows)), metric)
            heap.add_result(scores, part.rows[places])
        longest = max(longest, part.longest)
        zeros.append(part.zeros)
        on_rows(part.num_read)
    heap.finalize()
    left_out = np.concatenate(zeros)
    k = min(k, len(database) - len(left_out))
    worst_Q = heap.D[:, k - 1].copy() if k else heap.D[:, 0]
    return _Proposed(heap.I[:, :k], worst_Q, longest, left_out)


def put_in_order(rows_QK: Ints, similarities_QK: Doubles) -> None:
    """Sort lists in place: by similarity, falling, then by row, rising."""
    for at in range(0, len(rows_QK), _LISTS):
        piece = slice(at, at + _LISTS)
        order = np.lexsort((rows_QK[piece], -similarities_QK[piece]), axis=1)
        rows_QK[piece] = np.take_along_axis(rows_QK[piece], order, axis=1)
        similarities_QK[piece] = np.take_along_axis(similarities_QK[piece], order, axis=1)


def _neighbours(
    queries: Selection, rows_QK: Ints, similarities_QK: Doubles, num_second_look: int, proposed: _Proposed
) -> Neighbours:
    return Neighbours(
        rows_QK=rows_QK,
        similarities_QK=similarities_QK,
        queries=queries.rows,
        num_second_look=num_second_look,
        num_zeros=len(proposed.zeros),
    )
