"""Exact k-nearest-neighbour search over a layer that streams from the store.

An engine (`backends`) proposes, block by block, all rows that may be neighbours; then their similarities
are computed again from the stored features, in float64 and in a fixed order of summation (`rescore`).
Where the rounding of the engine's scores (`error_bounds`) could have kept a neighbour from being proposed,
the query gets a second look: by an engine of more bits, or in float64 (`float64_search`). So neither the size of a
block nor engines, threads, ranks, devices and machines change a bit, and equal similarities are ordered
by row.

A row of zeros has no direction. Under the cosine it comes last in every list.

Shape suffixes:  Q queries   K neighbours   C candidates   N database rows   D dimension
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import Selection, scale_to_unit_length
from featbench.evaluate.memory import SearchPlan
from featbench.evaluate.neighbours.backends import Choice, MakeEngine, choose
from featbench.evaluate.neighbours.engine import Candidates, SearchRequest
from featbench.evaluate.neighbours.error_bounds import is_finite_in_float32, score_of, similarity_of
from featbench.evaluate.neighbours.faiss_engine import MAX_GPU_K
from featbench.evaluate.neighbours.float64_search import search_in_float64
from featbench.evaluate.neighbours.rescore import lengths_of_rows, rescore
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store.typing import Bools, Doubles, Floats, Ints

logger = logging.getLogger(__name__)


UNDEFINED = -2.0
"""What the cosine with a row of zeros counts as: below every cosine."""

_LISTS = 1024
"""Lists put in order at a time, where a temporary copy is needed."""

_FEW = 32
"""A second look at fewer than one query in so many is done in float64 at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """For each query, its nearest database rows, ordered by similarity (falling), then by row (rising)."""

    rows_QK: Ints
    similarities_QK: Doubles
    """Cosine, inner product, or minus the Euclidean distance."""

    queries: Ints
    """Row of each query in its own split, shape (Q,)."""

    rechecked: Ints
    """Those queries that the engine could not answer with certainty, and that were searched again."""

    num_zeros: int
    """Rows of zeros in the database, under the cosine; at the end of every list, if they are in it at all."""

    engine: str
    """What searched; it changes no list."""


def search(
    database: Selection,
    queries: Selection,
    *,
    k: int,
    similarity: Similarity,
    plan: SearchPlan,
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
        The cosine of a query of zeros is 0 with every row; rows of zeros come last.
    plan : SearchPlan
        How many rows of both are in memory at once, and what searches; it changes no result.
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
    multiplications = len(queries) * len(database) * database.layer.dim
    choice = choose(plan.device, plan.precision, k=k, similarity=similarity, multiplications=multiplications)
    if choice.too_long:
        text = "faiss on a GPU lists at most %d neighbours; %d are wanted, so the CPU searches"
        logger.warning(text, MAX_GPU_K, choice.too_long)
    rows_QK = np.empty((len(queries), k), np.int64)
    similarities_QK = np.empty((len(queries), k), np.float64)
    rechecked, num_zeros = [], 0
    starts = range(0, len(queries), plan.queries_at_once)
    for at in starts:
        group = slice(at, at + plan.queries_at_once)
        report = lambda rows: on_rows(rows // len(starts))  # noqa: E731
        found = _search(database, queries[group], k, similarity, choice, plan.rows_per_block, report)
        rows_QK[group], similarities_QK[group] = found.rows_QK, found.similarities_QK
        rechecked.append(found.rechecked)
        num_zeros = found.num_zeros
    return Neighbours(
        rows_QK=rows_QK,
        similarities_QK=similarities_QK,
        queries=queries.rows,
        rechecked=np.concatenate(rechecked),
        num_zeros=num_zeros,
        engine=str(choice),
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
        rechecked=reduce(np.union1d, [part.rechecked for part in found]),
        num_zeros=sum(part.num_zeros for part in found),
        engine="; ".join(dict.fromkeys(part.engine for part in found)),
    )


def put_in_order(rows_QK: Ints, similarities_QK: Doubles) -> None:
    """Sort lists in place: by similarity, falling, then by row, rising."""
    for at in range(0, len(rows_QK), _LISTS):
        piece = slice(at, at + _LISTS)
        order = np.lexsort((rows_QK[piece], -similarities_QK[piece]), axis=1)
        rows_QK[piece] = np.take_along_axis(rows_QK[piece], order, axis=1)
        similarities_QK[piece] = np.take_along_axis(similarities_QK[piece], order, axis=1)


def _search(
    database: Selection,
    queries: Selection,
    k: int,
    kind: Similarity,
    choice: Choice,
    rows_per_block: int,
    on_rows: Callable[[int], None],
) -> Neighbours:
    """Search for queries that fit in memory."""
    engines = iter(choice.engines())
    queries_QD = queries.read()
    lengths_Q = lengths_of_rows(queries_QD)
    rows_QK = np.empty((len(queries), k), np.int64)
    similarities_QK = np.full((len(queries), k), UNDEFINED)
    looked = _search_once(next(engines), database, queries_QD, lengths_Q, k, kind, rows_per_block, on_rows)
    wanted, num_zeros = looked.rows_QK.shape[1], len(looked.zeros)
    rows_QK[:, :wanted], similarities_QK[:, :wanted] = looked.rows_QK, looked.similarities_QK
    rows_QK[:, wanted:] = looked.zeros[: k - wanted]
    rechecked = undecided = np.flatnonzero(~looked.certain_Q)
    for make_engine in engines:
        if len(undecided) * _FEW < len(queries):
            break
        some_QD, some_lengths_Q = queries_QD[undecided], lengths_Q[undecided]
        looked = _search_once(make_engine, database, some_QD, some_lengths_Q, k, kind, rows_per_block)
        rows_QK[undecided, :wanted], similarities_QK[undecided, :wanted] = looked.rows_QK, looked.similarities_QK
        undecided = undecided[~looked.certain_Q]
    del looked
    if len(undecided):
        logger.debug("%s: %d queries are searched in float64", database.layer.key, len(undecided))
        rows_QK[undecided, :wanted], similarities_QK[undecided, :wanted] = search_in_float64(
            database, queries_QD[undecided], k=wanted, kind=kind, floor_Q=similarities_QK[undecided, wanted - 1],
            rows_per_block=rows_per_block,
        )  # fmt: skip
    return Neighbours(
        rows_QK=rows_QK,
        similarities_QK=similarities_QK,
        queries=queries.rows,
        rechecked=queries.rows[rechecked],
        num_zeros=num_zeros,
        engine=str(choice),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What an engine finds: the k nearest, or all rows that are not zeros if those are fewer."""

    rows_QK: Ints
    similarities_QK: Doubles
    """-inf where the engine proposed too few."""

    certain_Q: Bools
    """Whether no other row can belong into the list."""

    zeros: Ints
    """Rows that were left out."""


def _search_once(
    make_engine: MakeEngine,
    database: Selection,
    queries_QD: Floats,
    lengths_Q: Doubles,
    k: int,
    kind: Similarity,
    rows_per_block: int,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> _Look:
    """Have an engine propose neighbours, compute their similarities anew, and judge the lists."""
    is_cosine = kind == "cosine"
    asked = SearchRequest(queries_QD=queries_QD, lengths_Q=lengths_Q, k=k, similarity=kind)
    if is_cosine:
        asked = SearchRequest(queries_QD=queries_QD.copy(), lengths_Q=np.ones(len(lengths_Q)), k=k, similarity=kind)
        scale_to_unit_length(asked.queries_QD, lengths_Q)
    engine = make_engine(asked)
    longest, zeros = 0.0, []
    for part in database.parts(rows_per_block, unit_length=is_cosine, without_zeros=is_cosine):
        longest = max(longest, part.longest)
        zeros.append(part.zeros)
        if len(part.rows):
            engine.add(part.rows, part.features, longest=1.0 if is_cosine else longest)
        on_rows(part.num_read)
    proposed = engine.close()
    del engine

    left_out = np.concatenate(zeros)
    num_others = len(database) - len(left_out)
    wanted = min(k, num_others)
    rows_QC = proposed.rows_QC
    similarities_QC = rescore(database.layer, queries_QD, lengths_Q, rows_QC, kind)
    has_all_Q = (rows_QC >= 0).sum(axis=1) == num_others
    usable_Q = is_finite_in_float32(lengths_Q, longest, kind)
    is_as_promised = _is_within_error(proposed, similarities_QC, asked.lengths_Q, usable_Q, kind)
    if not is_as_promised:
        text = "%s: scores of the engine are further off than its arithmetic allows, so its lists are not used"
        logger.warning(text, database.layer.key)
    put_in_order(rows_QC, similarities_QC)
    rows_QK = np.full((len(queries_QD), wanted), -1, np.int64)
    similarities_QK = np.full(rows_QK.shape, -np.inf)
    rows_QK[:, : rows_QC.shape[1]] = rows_QC[:, :wanted]
    similarities_QK[:, : rows_QC.shape[1]] = similarities_QC[:, :wanted]
    ceiling_Q = similarity_of(proposed.ceiling(), asked.lengths_Q, kind)
    exceeds_Q = similarities_QK.min(axis=1, initial=np.inf) > ceiling_Q
    return _Look(rows_QK, similarities_QK, has_all_Q | (exceeds_Q & usable_Q & is_as_promised), left_out)


def _is_within_error(
    proposed: Candidates, similarities_QC: Doubles, lengths_Q: Doubles, usable_Q: Bools, kind: Similarity
) -> bool:
    """Whether all scores are as near to the true ones as the engine promises."""
    for at in range(0, len(usable_Q), _LISTS):
        some = slice(at, at + _LISTS)
        counts_QC = (proposed.rows_QC[some] >= 0) & usable_Q[some, None]
        scores_QC = proposed.scores_QC[some]
        with np.errstate(invalid="ignore"):
            true_QC = score_of(similarities_QC[some], lengths_Q[some], kind) - proposed.shift_Q[some, None]
            within_QC = np.abs(scores_QC - true_QC) <= proposed.error[some].of(scores_QC)
        if not within_QC[counts_QC].all():
            return False
    return True
