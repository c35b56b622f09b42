"""Neighbour lists kept in a feature set: which there are, what each was computed from, and whether it is of any use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from featbench.evaluate.features.current import CurrentDigests
from featbench.evaluate.features.layers import short
from featbench.evaluate.neighbours import approximate
from featbench.evaluate.neighbours.cache import ALGORITHM, OLDER_ALGORITHM
from featbench.evaluate.results import Record
from featbench.store import FeatureSet, list_cached
from featbench.store.manifest import digest_of
from featbench.store.paths import NEIGHBOURS

State = Literal["current", "earlier version", "changed", "superseded", "outdated", "unfinished", "damaged"]

REASONS: Mapping[State, str] = {
    "changed": "the layer or its labels have changed since",
    "superseded": "lists of this version, of the same search, are kept",
    "outdated": "another version computed them, and this one can't use them",
    "damaged": "damaged",
}
"""Why lists are of no use; those in another state are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNeighbours:
    """Kept lists whose arrays have not been read."""

    key: str
    state: State
    layer: str = ""
    similarity: str = ""
    k: int | None = None
    """Length of the lists; None if it is not known without reading them."""

    num_queries: int | None = None
    queries: str = ""
    """Split of the queries."""

    index: str | None = None
    """Factory string of an approximate search; None if it was exact."""

    fault: str = ""

    @property
    def is_of_use(self) -> bool:
        """Whether an evaluation can use them."""
        return self.state not in REASONS

    @property
    def reason(self) -> str:
        """Why they are of no use; "" if they are."""
        return self.fault or REASONS.get(self.state, "")

    def record(self) -> Record:
        """Return what is known as a flat dict."""
        return {
            "key": self.key, "layer": self.layer, "similarity": self.similarity, "k": self.k, "queries": self.queries,
            "num_queries": self.num_queries, "index": self.index, "state": self.state, "of_use": self.is_of_use,
            "fault": self.fault or None,
        }  # fmt: skip


def kept_neighbours(features: FeatureSet, *, with_arrays: bool = False) -> list[KeptNeighbours]:
    """List the kept neighbours of a feature set, in order of its layers.

    Lists of queries from elsewhere count as current while train has not changed. Damage of the lists themselves is
    found only if their arrays are read, too.
    """
    digests = CurrentDigests(features)
    cached = list_cached(features, NEIGHBOURS, without_digest=True, with_arrays=with_arrays)
    keys = {each.key for each in cached if each.fault is None}
    found = []
    for each in cached:
        if each.fault is not None:
            found.append(KeptNeighbours(key=each.key, state="damaged", fault=each.fault))
            continue
        try:
            found.append(_described(each.key, each.facts, each.shapes, digests, keys))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            fault = f"facts of another version ({type(error).__name__}: {error})"
            found.append(KeptNeighbours(key=each.key, state="damaged", fault=fault))
    order = {layer: position for position, layer in enumerate(features.manifest.layers)}
    return sorted(found, key=lambda kept: (order.get(kept.layer, len(order)), kept.layer, kept.key))


def _described(
    key: str, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], digests: CurrentDigests, keys: set[str]
) -> KeptNeighbours:
    num_queries, k = shapes.get("rows", (None, None))
    layer, similarity, index = str(facts["layer"]), str(facts["similarity"]), facts.get("index")
    (bank, bank_digest, _), (queries, _, _) = facts["made_from"]
    current = digests.of(layer)
    if current is not None and not any(each.get(bank) == bank_digest for each in current):
        state: State = "changed"
    else:
        state = _state_of(key, facts, k, keys)
    return KeptNeighbours(
        key=key, state=state, layer=layer, similarity=similarity, k=k, num_queries=num_queries, queries=str(queries),
        index=None if index is None else str(index),
    )  # fmt: skip


def _state_of(key: str, facts: Mapping[str, Any], k: int | None, keys: set[str]) -> State:
    """Whether this version would find lists under their key, and under which other."""
    now = _keys_of(facts, k, ALGORITHM[facts["similarity"]])
    if key in now:
        return "current"
    if key.startswith(tuple(f"{each}." for each in now)):  # what one of several ranks has searched
        return "superseded" if now & keys else "unfinished"
    older = OLDER_ALGORITHM.get(facts["similarity"])
    if older is not None and key in _keys_of(facts, k, older):
        return "superseded" if now & keys else "earlier version"
    return "outdated"


def _keys_of(facts: Mapping[str, Any], k: int | None, algorithm: int) -> set[str]:
    """Keys that an algorithm gives a search; lists without the query itself are one shorter than was asked for."""
    index, similarity = facts.get("index"), facts["similarity"]
    requests = [None] if index is None else [[index, length, approximate.ALGORITHM] for length in (k, (k or 0) + 1)]
    digests = [digest_of([algorithm, similarity, request, *facts["made_from"]]) for request in requests]
    return {f"{short(facts['layer'])}-{similarity}-{digest[:16]}" for digest in digests}
