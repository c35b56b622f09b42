"""Exact k-nearest-neighbour search over a layer that streams from the store.

Each pass over the database has three steps:

1. propose: an engine (`backends`) compares the queries with one block of rows after another, in low precision, and
   keeps every row that may be a neighbour;
2. rescore: the similarities of these candidates are computed again from the stored features, in float64 and in a fixed
   order of summation (`rescore`);
3. certify: a list is certified if no other row can belong in it, given the largest error that the engine's scores can
   have (`error_bounds`).

Queries whose lists are not certified fall back to an engine of higher precision, or to float64 (`float64_search`). So
block sizes, engines, threads, ranks, devices and machines change no bit of the result. Equal similarities are ordered
by row.

A row of zeros has no direction: under the cosine it comes last in every list.

Shape suffixes:  Q queries   K neighbours   C candidates   N database rows   D dimension
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from featbench.evaluate.counting import OnRows
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import Selection, scale_to_unit_length
from featbench.evaluate.neighbours.backends import MakeEngine
from featbench.evaluate.neighbours.engine import Candidates, SearchRequest
from featbench.evaluate.neighbours.error_bounds import is_finite_in_float32, score_of, similarity_of
from featbench.evaluate.neighbours.faiss_engine import MAX_GPU_K
from featbench.evaluate.neighbours.float64_search import search_in_float64
from featbench.evaluate.neighbours.planning import SearchPlan
from featbench.evaluate.neighbours.rescore import lengths_of_rows, rescore
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.evaluate.notices import warn
from featbench.store.typing import Bools, Doubles, Floats, Ints

logger = logging.getLogger(__name__)

UNDEFINED = -2.0
"""Reported as the cosine with a row of zeros: below every true cosine."""

_LISTS_PER_SORT = 1024
"""Lists sorted or compared at a time: bounds the temporary copies."""

_QUERIES_PER_RECHECK = 32
"""If fewer than one query in this many is not certified, these are searched in float64 at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """For each query, its nearest database rows, ordered by falling similarity, then by rising row."""

    rows_QK: Ints
    similarities_QK: Doubles
    """Cosine, inner product, or minus the Euclidean distance."""

    queries: Ints
    """Row of each query in its own split, shape (Q,)."""

    rechecked: Ints
    """Queries whose first lists could not be certified, so that they were searched again."""

    num_zeros: int
    """Database rows of zeros, under the cosine; they come last in every list that is long enough to hold them."""

    engine: str
    """What searched; it changes no list."""

    def first(self, k: int) -> Neighbours:
        """Return the lists of the k nearest."""
        return replace(self, rows_QK=self.rows_QK[:, :k], similarities_QK=self.similarities_QK[:, :k])


def search(
    database: Selection,
    queries: Selection,
    *,
    k: int,
    similarity: Similarity,
    plan: SearchPlan,
    on_rows: OnRows = lambda rows: None,
) -> Neighbours:
    """Find the k most similar database rows of each query.

    Parameters
    ----------
    database, queries : Selection
        Rows of the same layer of two splits, or of one split.
    k : int
        Neighbours, 1 <= k <= len(database).
    similarity : {"cosine", "inner_product", "euclidean"}
        The cosine of a query of zeros is 0 with every row; rows of zeros come last.
    plan : SearchPlan
        How many rows and queries are in memory at once, and which engine searches; changes no result.
    on_rows : callable
        Called after each block with its number of rows; with a fraction of it where queries are searched in groups.

    Returns
    -------
    Neighbours
        Q = len(queries), K = k.

    Raises
    ------
    EvaluationError
        If k is out of range, or a selected row holds NaN or infinity.
    """
    if not 1 <= k <= len(database):
        raise EvaluationError(f"k must be in [1, {len(database)}], the rows of the database; got {k}")
    if plan.engine.too_long:
        text = "faiss on a GPU lists at most %d neighbours; %d are needed, so the CPU searches"
        warn(logger, text, MAX_GPU_K, plan.engine.too_long)
    lists, num_zeros = _Lists.empty(len(queries), k), 0
    starts = range(0, len(queries), plan.queries_at_once)
    for start in starts:
        group = slice(start, start + plan.queries_at_once)
        report = lambda rows: on_rows(rows // len(starts))  # noqa: E731
        num_zeros = _search_group(database, queries[group], similarity, plan, lists[group], report)
    return Neighbours(
        rows_QK=lists.rows_QK,
        similarities_QK=lists.similarities_QK,
        queries=queries.rows,
        rechecked=queries.rows[lists.is_rechecked_Q],
        num_zeros=num_zeros,
        engine=str(plan.engine),
    )


def merged(found: Sequence[Neighbours], k: int) -> Neighbours:
    """Merge the lists of several shards of a database into those of the whole database."""
    rows_QK = np.concatenate([shard.rows_QK for shard in found], axis=1)
    similarities_QK = np.concatenate([shard.similarities_QK for shard in found], axis=1)
    put_in_order(rows_QK, similarities_QK)
    return Neighbours(
        rows_QK=rows_QK[:, :k],
        similarities_QK=similarities_QK[:, :k],
        queries=found[0].queries,
        rechecked=reduce(np.union1d, [shard.rechecked for shard in found]),
        num_zeros=sum(shard.num_zeros for shard in found),
        engine="; ".join(dict.fromkeys(shard.engine for shard in found)),
    )


def put_in_order(rows_QK: Ints, similarities_QK: Doubles) -> None:
    """Sort lists in place: by falling similarity, then by rising row."""
    for start in range(0, len(rows_QK), _LISTS_PER_SORT):
        lists = slice(start, start + _LISTS_PER_SORT)
        order = np.lexsort((rows_QK[lists], -similarities_QK[lists]), axis=1)
        rows_QK[lists] = np.take_along_axis(rows_QK[lists], order, axis=1)
        similarities_QK[lists] = np.take_along_axis(similarities_QK[lists], order, axis=1)


def _search_group(
    database: Selection, queries: Selection, kind: Similarity, plan: SearchPlan, lists: _Lists, on_rows: OnRows
) -> int:
    """Fill the lists of queries that fit in memory together; returns how many database rows are zeros."""
    queries_QD, open_Q = queries.read(), np.ones(len(queries), np.bool_)
    lengths_Q = lengths_of_rows(queries_QD)
    for number, make_engine in enumerate(plan.engine.engines()):
        where = np.flatnonzero(open_Q) if number else slice(None)  # a slice copies no query
        asked_QD, lengths = queries_QD[where], lengths_Q[where]
        proposal = _propose(make_engine, database, asked_QD, lengths, lists.k, kind, plan.rows_per_block, on_rows)
        similarities_QC = rescore(database.layer, asked_QD, lengths, proposal.candidates.rows_QC, kind)
        bound_Q = _bound_of_others(proposal, similarities_QC, lengths, database)
        kth_Q = lists.put(where, proposal.candidates.rows_QC, similarities_QC, proposal.zeros, len(database))
        open_Q[where] = ~(kth_Q > bound_Q)  # certified: no other row can be as similar as the last of the list
        if not number:
            lists.is_rechecked_Q[:], on_rows = open_Q, _ignore
        if open_Q.sum() * _QUERIES_PER_RECHECK < len(queries):
            break
    num_zeros = len(proposal.zeros)
    del proposal, similarities_QC, asked_QD
    if open_Q.any():
        _search_in_float64(database, queries_QD[open_Q], np.flatnonzero(open_Q), kind, plan, lists, num_zeros)
    return num_zeros


@dataclass(frozen=True, slots=True)
class _Lists:
    """Lists that are being filled, in place."""

    rows_QK: Ints
    similarities_QK: Doubles
    is_rechecked_Q: Bools

    @classmethod
    def empty(cls, num_queries: int, k: int) -> _Lists:
        return cls(np.empty((num_queries, k), np.int64), np.empty((num_queries, k)), np.zeros(num_queries, np.bool_))

    def __getitem__(self, queries: slice) -> _Lists:
        """View some of the lists."""
        return _Lists(self.rows_QK[queries], self.similarities_QK[queries], self.is_rechecked_Q[queries])

    @property
    def k(self) -> int:
        return int(self.rows_QK.shape[1])

    def put(self, where: slice | Ints, rows_QC: Ints, similarities_QC: Doubles, zeros: Ints, num_rows: int) -> Doubles:
        """Sort candidates, store the nearest, then the rows of zeros.

        Returns the similarity of the last row that is not zeros; -inf where there are too few candidates.
        """
        put_in_order(rows_QC, similarities_QC)
        length = min(self.k, num_rows - len(zeros))
        rows_QK = np.full((len(rows_QC), length), -1, np.int64)
        similarities_QK = np.full(rows_QK.shape, -np.inf)
        rows_QK[:, : rows_QC.shape[1]] = rows_QC[:, :length]
        similarities_QK[:, : rows_QC.shape[1]] = similarities_QC[:, :length]
        self.rows_QK[where, :length], self.similarities_QK[where, :length] = rows_QK, similarities_QK
        self.rows_QK[where, length:], self.similarities_QK[where, length:] = zeros[: self.k - length], UNDEFINED
        kth_Q: Doubles = similarities_QK.min(axis=1, initial=np.inf)
        return kth_Q


@dataclass(frozen=True, slots=True)
class _Proposal:
    """What one pass over the database proposes."""

    candidates: Candidates
    request: SearchRequest
    longest: float
    """Largest length of a database row, before scaling."""

    zeros: Ints
    """Database rows of zeros, which were left out; none unless the similarity is the cosine."""


def _propose(
    make_engine: MakeEngine,
    database: Selection,
    queries_QD: Floats,
    lengths_Q: Doubles,
    k: int,
    kind: Similarity,
    rows_per_block: int,
    on_rows: OnRows,
) -> _Proposal:
    """Stream the database through an engine."""
    is_cosine = kind == "cosine"
    request = SearchRequest(queries_QD=queries_QD, lengths_Q=lengths_Q, k=k, similarity=kind)
    if is_cosine:
        request = SearchRequest(queries_QD=queries_QD.copy(), lengths_Q=np.ones(len(lengths_Q)), k=k, similarity=kind)
        scale_to_unit_length(request.queries_QD, lengths_Q)
    engine = make_engine(request)
    longest, zeros = 0.0, []
    for block in database.blocks(rows_per_block, unit_length=is_cosine, without_zeros=is_cosine):
        longest = max(longest, block.longest)
        zeros.append(block.zeros)
        if len(block.rows):
            engine.add(block.rows, block.features, longest=1.0 if is_cosine else longest)
        on_rows(block.num_read)
    return _Proposal(engine.close(), request, longest, np.concatenate(zeros))


def _bound_of_others(proposal: _Proposal, similarities_QC: Doubles, lengths_Q: Doubles, database: Selection) -> Doubles:
    """Similarity that no row outside a query's candidates exceeds, shape (Q,); inf where nothing can be said.

    It is -inf where every row is a candidate. Call this before the candidates are sorted.
    """
    candidates, request = proposal.candidates, proposal.request
    is_usable_Q = is_finite_in_float32(lengths_Q, proposal.longest, request.similarity)
    if not _is_within_error(proposal, similarities_QC, is_usable_Q):
        text = "%s: scores of the engine are further off than its arithmetic allows, so its lists are not used"
        warn(logger, text, database.layer.key)
        is_usable_Q[:] = False
    bound_Q = similarity_of(candidates.ceiling(), request.lengths_Q, request.similarity)
    bound_Q = np.where(is_usable_Q, bound_Q, np.inf)
    has_all_Q = (candidates.rows_QC >= 0).sum(axis=1) == len(database) - len(proposal.zeros)
    return np.where(has_all_Q, -np.inf, bound_Q)


def _is_within_error(proposal: _Proposal, similarities_QC: Doubles, is_usable_Q: Bools) -> bool:
    """Whether all scores are as close to the true ones as the engine's error bound says."""
    candidates, request = proposal.candidates, proposal.request
    for start in range(0, len(is_usable_Q), _LISTS_PER_SORT):
        lists = slice(start, start + _LISTS_PER_SORT)
        counts_QC = (candidates.rows_QC[lists] >= 0) & is_usable_Q[lists, None]
        scores_QC = candidates.scores_QC[lists]
        with np.errstate(invalid="ignore"):
            true_QC = score_of(similarities_QC[lists], request.lengths_Q[lists], request.similarity)
            true_QC = true_QC - candidates.shift_Q[lists, None]
            within_QC = np.abs(scores_QC - true_QC) <= candidates.error[lists].of(scores_QC)
        if not within_QC[counts_QC].all():
            return False
    return True


def _search_in_float64(
    database: Selection,
    queries_QD: Floats,
    where: Ints,
    kind: Similarity,
    plan: SearchPlan,
    lists: _Lists,
    num_zeros: int,
) -> None:
    """Fill the lists that no engine could certify."""
    logger.debug("%s: %d queries are searched in float64", database.layer.key, len(where))
    length = min(lists.k, len(database) - num_zeros)
    lists.rows_QK[where, :length], lists.similarities_QK[where, :length] = search_in_float64(
        database, queries_QD, k=length, kind=kind, floor_Q=lists.similarities_QK[where, length - 1],
        rows_per_block=plan.rows_per_block,
    )  # fmt: skip


def _ignore(rows: int) -> None:
    """Report no progress: the database counts once, however often it is read."""
