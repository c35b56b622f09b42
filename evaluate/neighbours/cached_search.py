"""Neighbour search with a cache in the feature set.

Cached lists serve every k up to their length; a larger k searches again. Lists of an approximate search serve only the
length that was searched for. The cache key covers everything they were computed from, down to the checksum of every
chunk, so lists of other features never match.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, refuse_if_gone
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.memory import rows_per_block
from featbench.evaluate.neighbours.approximate import MEMORY_SHARES, recalls, search_approximately
from featbench.evaluate.neighbours.cache import NeighbourCache, SearchResult
from featbench.evaluate.neighbours.distributed import by_one_rank, search_shards
from featbench.evaluate.neighbours.planning import DEFAULT, Resources, SearchPlan, plan_search
from featbench.evaluate.neighbours.search import Neighbours, search
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.evaluate.notices import warn
from featbench.store import FeatureSet

logger = logging.getLogger(__name__)


def find_neighbours(
    features: FeatureSet,
    layer: EvalLayer,
    *,
    database: Labelled,
    queries: Labelled,
    k: int,
    similarity: Similarity,
    index: str | None = None,
    resources: Resources = DEFAULT,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> SearchResult:
    """Return cached neighbours, or search for them and cache them.

    Parameters
    ----------
    features : FeatureSet
        Holds the cache.
    layer : EvalLayer
        The layer to search.
    database, queries : Labelled
        Rows to use. If both are of one split, no query is its own neighbour (leave-one-out).
    k : int
        Neighbours.
    similarity : {"cosine", "inner_product", "euclidean"}
    index : str, optional
        Factory string of a faiss index, for an approximate search; see
        `featbench.evaluate.neighbours.approximate`.
    resources : Resources
        Memory, device and ranks.
    on_rows : callable
        Called after each block with its number of rows.

    Returns
    -------
    SearchResult
        Lists of at least k neighbours, more if the cache has them; exactly k if the search is approximate.

    Raises
    ------
    EvaluationError
        If k is out of range, a row is not finite, or the search does not fit into the memory.
    """
    search = _Search(layer, database, queries, k, similarity, resources, on_rows)
    lists = NeighbourCache.of(features, layer, database, queries, similarity, index, search.length)
    if kept := lists.load(k):
        return kept
    search.refuse_too_long()

    def keep(found: SearchResult) -> SearchResult:
        refuse_if_gone(features)
        lists.save(found)
        return found

    if (older := lists.load_older(k)) and search.has_ordinary_lengths():
        return keep(older)
    if resources.num_shards == 1:
        return keep(search.run(index))
    if index is not None:
        return by_one_rank(lists, k, lambda: keep(search.run(index)))
    return search_shards(
        search.whole, search.among, lambda neighbours: keep(search.finish(neighbours)), lists, k=k,
        length=search.length, num_shards=resources.num_shards,
    )  # fmt: skip


def search_neighbours(
    layer: EvalLayer,
    *,
    database: Labelled,
    queries: Labelled,
    k: int,
    similarity: Similarity,
    index: str | None = None,
    resources: Resources = DEFAULT,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> SearchResult:
    """Search for neighbours without a cache; parameters and errors are those of `find_neighbours`."""
    search = _Search(layer, database, queries, k, similarity, resources, on_rows)
    search.refuse_too_long()
    return search.run(index)


class _Search:
    """One search among the rows of a layer."""

    def __init__(
        self,
        layer: EvalLayer,
        database: Labelled,
        queries: Labelled,
        k: int,
        similarity: Similarity,
        resources: Resources,
        on_rows: Callable[[int], None],
    ) -> None:
        self.whole = layer.select(database)
        self.is_leave_one_out = database.split == queries.split
        self.length = k + self.is_leave_one_out
        self._queries = layer.select(queries)
        self._layer, self._split, self._similarity = layer, database.split, similarity
        self._resources, self._on_rows = resources, on_rows
        self._start = time.perf_counter()

    def refuse_too_long(self) -> None:
        """Refuse a k larger than the database."""
        if not 1 <= self.length <= len(self.whole):
            raise EvaluationError(
                f"k must be in [1, {len(self.whole) - self.is_leave_one_out}], the rows of the database; "
                f"got {self.length - self.is_leave_one_out}"
            )

    def has_ordinary_lengths(self) -> bool:
        """Whether older versions compute the same cosines; reads all rows."""
        size = rows_per_block(self._resources.bytes, dim=self._layer.dim)
        return all(rows.has_ordinary_lengths(size) for rows in (self.whole, self._queries))

    def run(self, index: str | None) -> SearchResult:
        """Search the whole database, with an index if one is given."""
        return self.finish(self.among(self.whole)) if index is None else self._by_index(index)

    def among(self, shard: Selection) -> Neighbours:
        """Search a shard of the database, exactly."""
        return search(
            shard, self._queries, k=min(self.length, len(shard)), similarity=self._similarity, plan=self._plan(shard),
            on_rows=self._on_rows,
        )  # fmt: skip

    def finish(self, neighbours: Neighbours, truth: Neighbours | None = None) -> SearchResult:
        """Remove queries from their own lists, and add time and recall."""
        if neighbours.num_zeros:
            text = "%s: rows of %s that are all zeros have no direction and come last in every list: %d"
            warn(logger, text, self._layer.name, self._split, neighbours.num_zeros)
        if self.is_leave_one_out:
            neighbours = without_themselves(neighbours)
            truth = truth and without_themselves(truth)
        seconds = round(time.perf_counter() - self._start, 3)
        recall_of_k = None if truth is None else recalls(neighbours, truth)
        return SearchResult(neighbours=neighbours, reused=False, seconds=seconds, recalls=recall_of_k)

    def _by_index(self, index: str) -> SearchResult:
        found = search_approximately(
            self.whole, self._queries, k=self.length, similarity=self._similarity, index=index,
            plan=self._plan(self.whole, memory_shares=MEMORY_SHARES), memory=self._resources.bytes // MEMORY_SHARES,
            on_rows=self._on_rows,
        )  # fmt: skip
        return self.finish(*found)

    def _plan(self, database: Selection, memory_shares: int = 1) -> SearchPlan:
        return plan_search(
            self._resources,
            num_rows=len(database),
            rows_per_chunk=database.layer.rows_per_chunk,
            dim=self._layer.dim,
            num_queries=len(self._queries),
            k=min(self.length, len(database)),
            similarity=self._similarity,
            memory_shares=memory_shares,
        )


def without_themselves(neighbours: Neighbours) -> Neighbours:
    """Remove each query from its own list; if it is not in it, remove the last neighbour.

    Examples
    --------
    >>> import numpy as np
    >>> lists = np.array([[0, 1], [0, 2]]), np.array([[1.0, 0.5], [1.0, 0.9]])
    >>> both = Neighbours(
    ...     rows_QK=lists[0], similarities_QK=lists[1], queries=np.array([0, 1]),
    ...     rechecked=lists[0][0, :0], num_zeros=0, engine="",
    ... )
    >>> without_themselves(both).rows_QK.tolist()
    [[1], [0]]
    """
    rows_QK = neighbours.rows_QK
    others_QK = rows_QK != neighbours.queries[:, None]
    others_QK[others_QK.all(axis=1), -1] = False
    shape = (len(rows_QK), rows_QK.shape[1] - 1)
    return replace(
        neighbours,
        rows_QK=rows_QK[others_QK].reshape(shape),
        similarities_QK=neighbours.similarities_QK[others_QK].reshape(shape),
    )
