"""Who does which part of k-means, and what is kept until it is done: one process, or several ranks through the store.

Ranks need no connection, only the same store and the same command. The rows are divided into as many shards as there
are ranks. Each step (a pass, a look for far rows) gives one small result for each shard, which is saved in the feature
set; a rank goes on when it has the results of all shards. If a rank dies, its claim ends, and another one does its
shard. Results are sums of integers (`sums`), so their division into shards changes no bit.

The centroids are saved after every pass that took longer than a second, so a run that is killed or interrupted goes on
after its last pass. All of it is removed once the clustering is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.distributed import shards_of
from featbench.store import FeatureSet, claimed, drop_cached, has_cached, list_cached, load_cached, save_cached
from featbench.store.paths import CLUSTERS
from featbench.store.typing import Array

Arrays = dict[str, Array]
Saved = tuple[Arrays, dict[str, Any]]

STEP = "step"
"""Fact of everything that is saved on the way, and of no clustering."""

_POLL_S = 0.05
"""Seconds between looks for the results of other ranks."""

_STEPS_KEPT = 2
"""Steps whose results stay: a rank that is behind by one still needs them."""

_UNSAVED_S = 1.0
"""Seconds of work that may be lost."""


class Team(Protocol):
    """Divides the work, and remembers what is done."""

    def begin(self, name: str) -> None:
        """Start on another part of the work, whose steps have names of their own."""

    def shards(self, data: Selection) -> list[Selection]:
        """Divide rows, in order."""

    def gather(self, step: str, num_shards: int, compute: Callable[[int], Arrays]) -> list[Arrays]:
        """Return the result of every shard, in order, whoever computes it."""

    def once(self, step: str, compute: Callable[[], Arrays]) -> Arrays:
        """Return a result that one rank computes."""

    def saved(self) -> Saved | None:
        """What `save` last saved, in this process or an earlier one."""

    def save(self, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """Save how far the work is, unless hardly any would be lost."""


class Alone:
    """One process, which saves nothing."""

    def begin(self, name: str) -> None:
        """See `Team`."""

    def shards(self, data: Selection) -> list[Selection]:
        """See `Team`."""
        return [data]

    def gather(self, step: str, num_shards: int, compute: Callable[[int], Arrays]) -> list[Arrays]:
        """See `Team`."""
        return [compute(shard) for shard in range(num_shards)]

    def once(self, step: str, compute: Callable[[], Arrays]) -> Arrays:
        """See `Team`."""
        return compute()

    def saved(self) -> Saved | None:
        """See `Team`."""
        return None

    def save(self, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """See `Team`."""


class AlreadyDoneError(Exception):
    """Another rank has kept the clustering that this one works on."""


class StoredTeam:
    """One or several processes that share a feature set.

    Parameters
    ----------
    features : FeatureSet
    key : str
        Key of the clustering.
    num_ranks : int
        The same in every process.
    """

    def __init__(self, features: FeatureSet, key: str, *, num_ranks: int) -> None:
        self._features, self._key, self._num_ranks = features, key, num_ranks
        self._name = ""
        self._steps: list[list[str]] = []
        self._last_save = time.monotonic()

    def begin(self, name: str) -> None:
        """See `Team`."""
        self._name = name
        self._last_save = time.monotonic()

    def shards(self, data: Selection) -> list[Selection]:
        """See `Team`."""
        return shards_of(data, self._num_ranks)

    def gather(self, step: str, num_shards: int, compute: Callable[[int], Arrays]) -> list[Arrays]:
        """See `Team`.

        Raises
        ------
        AlreadyDoneError
            If the clustering is kept meanwhile.
        """
        if self._num_ranks == 1:
            return [compute(shard) for shard in range(num_shards)]
        keys = [self._step_key(f"{step}.{shard}-of-{num_shards}") for shard in range(num_shards)]
        found: dict[int, Arrays] = {}
        while True:
            for shard, key in enumerate(keys):
                if shard not in found and (result := self._load(key) or self._compute(key, shard, compute)):
                    found[shard] = result
            if len(found) == num_shards:
                self._forget(keys)
                return [found[shard] for shard in range(num_shards)]
            if has_cached(self._features, CLUSTERS, self._key):
                raise AlreadyDoneError
            time.sleep(_POLL_S)

    def once(self, step: str, compute: Callable[[], Arrays]) -> Arrays:
        """See `Team`."""
        return self.gather(step, 1, lambda shard: compute())[0]

    def saved(self) -> Saved | None:
        """See `Team`."""
        return load_cached(self._features, CLUSTERS, self._step_key("state"))

    def save(self, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """See `Team`."""
        if time.monotonic() - self._last_save < _UNSAVED_S:
            return
        key = self._step_key("state")
        with claimed(self._features, CLUSTERS, key) as is_mine:
            if is_mine:
                save_cached(self._features, CLUSTERS, key, arrays, {STEP: "state", **facts})
        self._last_save = time.monotonic()

    def finish(self) -> None:
        """Remove everything that was saved on the way, by any rank and any earlier run."""
        for cached in list_cached(self._features, CLUSTERS):
            if cached.key.startswith(f"{self._key}."):
                drop_cached(self._features, CLUSTERS, cached.key)

    def _compute(self, key: str, shard: int, compute: Callable[[int], Arrays]) -> Arrays | None:
        """Compute and save a result, unless another rank does."""
        with claimed(self._features, CLUSTERS, key) as is_mine:
            if not is_mine:
                return None
            if (saved := self._load(key)) is not None:
                return saved
            result = compute(shard)
            save_cached(self._features, CLUSTERS, key, result, {STEP: key})
            return result

    def _load(self, key: str) -> Arrays | None:
        saved = load_cached(self._features, CLUSTERS, key) if has_cached(self._features, CLUSTERS, key) else None
        return saved[0] if saved else None

    def _step_key(self, step: str) -> str:
        return f"{self._key}.{self._name}{step}"

    def _forget(self, keys: list[str]) -> None:
        """Remove the results of the step before the last one, which every rank has."""
        self._steps.append(keys)
        if len(self._steps) > _STEPS_KEPT:
            for key in self._steps.pop(0):
                drop_cached(self._features, CLUSTERS, key)
