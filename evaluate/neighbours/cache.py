"""Neighbour lists cached in the feature set, under a key derived from what they were computed from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from featbench.evaluate.features.labels import Labelled
from featbench.evaluate.features.layers import EvalLayer, short
from featbench.evaluate.neighbours import approximate
from featbench.evaluate.neighbours.search import Neighbours
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.evaluate.results import SearchFacts
from featbench.store import FeatureSet, claimed, drop_cached, has_cached, load_cached, save_cached
from featbench.store.manifest import digest_of
from featbench.store.paths import NEIGHBOURS
from featbench.store.typing import Array, Doubles

logger = logging.getLogger(__name__)

ALGORITHM: Mapping[Similarity, int] = {"cosine": 5, "inner_product": 4, "euclidean": 4}
"""Part of the keys; raised when a change gives other numbers, or stores other arrays or facts."""

OLDER_ALGORITHM: Mapping[Similarity, int] = {"cosine": 4}
"""One that gives the same lists where all rows have ordinary lengths; see `Selection.has_ordinary_lengths`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Neighbours, and how they were obtained."""

    neighbours: Neighbours
    reused: bool
    seconds: float
    recalls: Doubles | None = None
    """Fraction of the true k nearest among the first k listed, for every k from 1; None if the search was exact."""

    def facts(self, k: int | None = None) -> SearchFacts:
        """Facts of the search for a result, with the recall at k; by default, at the length of the lists."""
        k = k or self.neighbours.rows_QK.shape[1]
        return SearchFacts(
            certified=self.recalls is None,
            recall=None if self.recalls is None else float(self.recalls[k - 1]),
            num_rechecked=len(self.neighbours.rechecked),
            num_zero_rows=self.neighbours.num_zeros,
            engine=self.neighbours.engine,
            seconds=self.seconds,
            neighbours_reused=self.reused,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourCache:
    """The cache entry of one search, whether it exists or not."""

    features: FeatureSet
    key: str
    origin: dict[str, Any]
    """Saved with the lists: layer, similarity, digests."""

    older_key: str | None = None
    """Key under which `OLDER_ALGORITHM` saved them."""

    @classmethod
    def of(
        cls,
        features: FeatureSet,
        layer: EvalLayer,
        database: Labelled,
        queries: Labelled,
        similarity: Similarity,
        index: str | None = None,
        length: int | None = None,
    ) -> NeighbourCache:
        """Return the cache entry of a search.

        Exact lists serve every smaller k. What an index finds depends on the length that is asked for, so the key of
        its lists includes `length`.
        """
        made_from = [
            [labelled.split, layer.made_from[labelled.split], hashlib.sha256(labelled.rows.tobytes()).hexdigest()]
            for labelled in (database, queries)
        ]
        request = None if index is None else [index, length, approximate.ALGORITHM]

        def key_of(algorithm: int) -> str:
            digest = digest_of([algorithm, similarity, request, *made_from])
            return f"{short(layer.name)}-{similarity}-{digest[:16]}"

        older = OLDER_ALGORITHM.get(similarity)
        return cls(
            features=features,
            key=key_of(ALGORITHM[similarity]),
            older_key=None if older is None else key_of(older),
            origin={"layer": layer.name, "similarity": similarity, "index": index, "made_from": made_from},
        )

    def shard(self, name: str) -> NeighbourCache:
        """Return the cache entry of one shard of this search."""
        return replace(self, key=f"{self.key}.{name}", older_key=None)

    def exists(self) -> bool:
        """Whether the entry exists; it may be damaged."""
        return has_cached(self.features, NEIGHBOURS, self.key)

    def load(self, k: int) -> SearchResult | None:
        """Return the lists if they exist, are intact, and are long enough."""
        is_exact = self.origin["index"] is None
        # Version 0.1.0 saved facts without a digest; for exact lists they are informational only.
        kept = load_cached(self.features, NEIGHBOURS, self.key, without_digest=is_exact)
        if not kept:
            return None
        found = _checked(*kept, is_approximate=not is_exact)
        if found is None:
            logger.warning("%s: cached lists are not in the expected form; searched again", self.key)
            return None
        return found if found.neighbours.rows_QK.shape[1] >= k else None

    def load_older(self, k: int) -> SearchResult | None:
        """Return lists that an older algorithm saved; the caller must check that they are still right."""
        return None if self.older_key is None else replace(self, key=self.older_key, older_key=None).load(k)

    def save(self, found: SearchResult) -> None:
        """Save lists; if that fails, warn and go on."""
        lists = found.neighbours
        arrays: dict[str, Array] = {
            "rows": lists.rows_QK, "similarities": lists.similarities_QK, "queries": lists.queries,
            "second_look": lists.rechecked,
        }  # fmt: skip
        if found.recalls is not None:
            arrays["recalls"] = found.recalls
        facts = {"num_zeros": lists.num_zeros, "engine": lists.engine, "seconds": found.seconds}
        save_cached(self.features, NEIGHBOURS, self.key, arrays, self.origin | facts)

    def drop(self) -> None:
        """Remove the entry."""
        drop_cached(self.features, NEIGHBOURS, self.key)

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Claim the search; yields False if another live process has claimed it."""
        with claimed(self.features, NEIGHBOURS, self.key) as is_mine:
            yield is_mine


def _checked(arrays: dict[str, Array], facts: dict[str, Any], *, is_approximate: bool) -> SearchResult | None:
    """Return what was saved; None if the arrays or facts are not of the expected form."""
    names = ("rows", "similarities", "queries", "second_look")
    if not all(name in arrays for name in names):
        return None
    rows_QK, similarities_QK, queries, rechecked = (arrays[name] for name in names)
    num_zeros, engine, seconds = (facts.get(name) for name in ("num_zeros", "engine", "seconds"))
    recalls = arrays.get("recalls")
    is_of_form = (
        [each.dtype.name for each in (rows_QK, similarities_QK, queries, rechecked)]
        == ["int64", "float64", "int64", "int64"]
        and rows_QK.shape == similarities_QK.shape == (len(queries), *rows_QK.shape[1:2])
        and queries.ndim == rechecked.ndim == 1
        and rows_QK.ndim == 2
        and (recalls.shape == rows_QK.shape[1:] if recalls is not None else not is_approximate)
    )
    if not is_of_form:
        return None
    if not (isinstance(num_zeros, int) and isinstance(engine, str) and isinstance(seconds, int | float)):
        return None
    neighbours = Neighbours(
        rows_QK=rows_QK, similarities_QK=similarities_QK, queries=queries, rechecked=rechecked,
        num_zeros=num_zeros, engine=engine,
    )  # fmt: skip
    return SearchResult(neighbours=neighbours, reused=True, seconds=seconds, recalls=recalls)
