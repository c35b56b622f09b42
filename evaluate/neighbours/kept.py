"""Neighbour lists that are kept beside the features, under a key made of what they were computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from evaluate.labels import Labelled
from evaluate.neighbours.search import Neighbours
from evaluate.protocols import Similarity
from evaluate.views import View
from store import FeatureSet, claimed, drop_cached, has_cached, load_cached, save_cached
from store.manifest import digest_of

ALGORITHM = 4
"""Enters the keys; raised when a change gives other numbers, or keeps other arrays or facts."""

_KIND = "neighbours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Neighbours, and whether they had to be searched for."""

    neighbours: Neighbours
    reused: bool
    seconds: float
    recall: float | None = None
    """Part of the true neighbours in the lists of an approximate search; None if the search was exact."""

    @property
    def facts(self) -> dict[str, Any]:
        """What records say of the search."""
        return {
            "certified": self.recall is None,
            "recall": self.recall,
            "num_second_look": len(self.neighbours.second_look),
            "num_zero_rows": self.neighbours.num_zeros,
            "engine": self.neighbours.engine,
            "seconds": self.seconds,
            "neighbours_reused": self.reused,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLists:
    """Where the lists of one search are kept, if they are."""

    features: FeatureSet
    key: str
    origin: dict[str, Any]
    """For the record: layer, similarity, digests."""

    @classmethod
    def of(
        cls,
        features: FeatureSet,
        view: View,
        database: Labelled,
        queries: Labelled,
        similarity: Similarity,
        index: str | None = None,
    ) -> KeptLists:
        """Say where the lists of a search are, before it is done."""
        made_from = [
            [part.split, view.made_from[part.split], hashlib.sha256(part.rows.tobytes()).hexdigest()]
            for part in (database, queries)
        ]
        return cls(
            features=features,
            key=f"{view.name}-{similarity}-{digest_of([ALGORITHM, similarity, index, *made_from])[:16]}",
            origin={"layer": view.name, "similarity": similarity, "index": index, "made_from": made_from},
        )

    def part(self, name: str) -> KeptLists:
        """Say where a part of these lists is."""
        return replace(self, key=f"{self.key}.{name}")

    def exists(self) -> bool:
        """Whether something is there; it may still be damaged."""
        return has_cached(self.features, _KIND, self.key)

    def load(self, k: int) -> Found | None:
        """Return the lists, if they are there, can be trusted, and are long enough."""
        exact = self.origin["index"] is None
        kept = load_cached(self.features, _KIND, self.key, without_digest=exact)
        if not kept or not _has_their_form(*kept) or kept[0]["rows"].shape[1] < k:
            return None
        arrays, facts = kept
        neighbours = Neighbours(
            rows_QK=arrays["rows"],
            similarities_QK=arrays["similarities"],
            queries=arrays["queries"],
            second_look=arrays["second_look"],
            num_zeros=facts["num_zeros"],
            engine=facts["engine"],
        )
        recall = None if exact else facts["recall"]
        return Found(neighbours=neighbours, reused=True, seconds=facts["seconds"], recall=recall)

    def save(self, found: Found) -> None:
        """Keep lists; where that can't be, warn and go on."""
        lists = found.neighbours
        arrays = {
            "rows": lists.rows_QK, "similarities": lists.similarities_QK, "queries": lists.queries,
            "second_look": lists.second_look,
        }  # fmt: skip
        facts = {
            "num_zeros": lists.num_zeros, "engine": lists.engine, "seconds": found.seconds, "recall": found.recall,
        }  # fmt: skip
        save_cached(self.features, _KIND, self.key, arrays, self.origin | facts)

    def drop(self) -> None:
        """Remove them."""
        drop_cached(self.features, _KIND, self.key)

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Claim the search; yields False if another process that is alive has it."""
        with claimed(self.features, _KIND, self.key) as is_mine:
            yield is_mine


def _has_their_form(arrays: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Whether lists of an earlier version, in which nothing covers types, shapes and facts, are as they must be."""
    names = ("rows", "similarities", "queries", "second_look")
    if not (arrays.keys() >= set(names) and facts.keys() >= {"num_zeros", "engine", "seconds", "recall"}):
        return False
    rows, similarities, queries, second_look = (arrays[name] for name in names)
    return (
        [each.dtype.name for each in (rows, similarities, queries, second_look)]
        == ["int64", "float64", "int64", "int64"]
        and rows.shape == similarities.shape == (len(queries), *rows.shape[1:2])
        and queries.ndim == second_look.ndim == 1
        and isinstance(facts["num_zeros"], int)
        and isinstance(facts["seconds"], int | float)
    )
