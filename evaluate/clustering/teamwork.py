"""Who does which part of k-means, and what is saved until it is done: one process, or several ranks through the store.

Ranks need no connection, only the same store and the same command. The rows are divided into as many shards as there
are ranks. Each step (a pass, a look for far rows) gives one small result for each shard, which is saved in the feature
set; a rank goes on when it has the results of all shards. A rank keeps to the shards that it has begun with, whose rows
and clusters it may hold. If the rank of a shard dies, its claim ends; if it is late, nobody has claimed its shard: then
another rank takes the shard. Results are sums of integers (`sums`), so their division into shards changes no bit.

The centroids are saved after every pass that took longer than a second, so a run that is killed or interrupted goes on
after its last pass, and a rank that comes late, or falls behind, goes on where the others are. All of it is removed
once the clustering is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.distributed import shards_of
from featbench.store import (
    FeatureSet,
    StoreError,
    cached_keys,
    claimed,
    drop_all_cached,
    drop_cached,
    drop_half_written,
    has_cached,
    load_cached,
    save_cached,
)
from featbench.store.paths import CLUSTERS
from featbench.store.typing import Array

Arrays = dict[str, Array]
Saved = tuple[Arrays, dict[str, Any]]

STEP = "step"
"""Fact of everything that is saved on the way, and of no clustering."""

_POLL_S = 0.05
"""Seconds between looks for the results of other ranks."""

_PATIENCE_S = 1.0
"""Least seconds for which a rank leaves a shard that nobody has claimed to the rank that did it before."""

_STEPS_KEPT = 2
"""Steps whose results stay: a rank that is behind by one still needs them."""

_UNSAVED_S = 1.0
"""Seconds of work that may be lost."""

_ATTEMPTS = 3
"""Looks for the newest state; another rank may remove it, for a newer one, while it is read."""


class Team(Protocol):
    """Divides the work, and remembers what is done."""

    def begin(self, name: str) -> None:
        """Start on another part of the work, whose steps have names of their own."""

    def shards(self, data: Selection) -> list[Selection]:
        """Divide rows, in order."""

    def gather(self, step: str, num_shards: int, compute: Callable[[int], Arrays]) -> Iterator[Arrays]:
        """Yield the result of every shard, in order, whoever computes it; all are to be read."""

    def once(self, step: str, compute: Callable[[], Arrays]) -> Arrays:
        """Return a result that one rank computes."""

    def saved(self, after: int = -1) -> Saved | None:
        """Return what was saved with the highest number, in this process or another, if it is more than `after`."""

    def save(self, number: int, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """Save how far the work is, unless hardly any would be lost."""


class Alone:
    """One process, which saves nothing."""

    def begin(self, name: str) -> None:
        """See `Team`."""

    def shards(self, data: Selection) -> list[Selection]:
        """See `Team`."""
        return [data]

    def gather(self, step: str, num_shards: int, compute: Callable[[int], Arrays]) -> Iterator[Arrays]:
        """See `Team`."""
        return map(compute, range(num_shards))

    def once(self, step: str, compute: Callable[[], Arrays]) -> Arrays:
        """See `Team`."""
        return compute()

    def saved(self, after: int = -1) -> Saved | None:
        """See `Team`."""
        return None

    def save(self, number: int, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
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
        self._mine: set[int] = set()
        self._last_save = time.monotonic()
        self._can_save = True

    def begin(self, name: str) -> None:
        """See `Team`."""
        self._name = name
        self._mine = set()
        self._last_save = time.monotonic()

    def shards(self, data: Selection) -> list[Selection]:
        """See `Team`."""
        return shards_of(data, self._num_ranks)

    def gather(self, step: str, num_shards: int, compute: Callable[[int], Arrays]) -> Iterator[Arrays]:
        """See `Team`.

        Raises
        ------
        AlreadyDoneError
            If the clustering is kept meanwhile.
        StoreError
            If the store can't be written.
        """
        if self._num_ranks == 1:
            yield from map(compute, range(num_shards))
            return
        keys = [self._step_key(f"{step}.{shard}-of-{num_shards}") for shard in range(num_shards)]
        own = self._compute_missing(keys, compute)
        self._mine = set(own)
        for shard, key in enumerate(keys):
            yield own[shard] if shard in own else self._load_or_compute(key, shard, compute)
        self._forget(keys)

    def once(self, step: str, compute: Callable[[], Arrays]) -> Arrays:
        """See `Team`."""
        mine, self._mine = self._mine, set()
        (result,) = self.gather(step, 1, lambda shard: compute())
        self._mine = mine
        return result

    def saved(self, after: int = -1) -> Saved | None:
        """See `Team`."""
        if self._num_ranks == 1 and after >= 0:
            return None
        for _ in range(_ATTEMPTS):
            newest = max(self._states(), default=-1)
            if newest <= after:
                return None
            if state := load_cached(self._features, CLUSTERS, self._state_key(newest)):
                return state
            drop_cached(self._features, CLUSTERS, self._state_key(newest))  # damaged, or gone anyway
        return None

    def save(self, number: int, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """See `Team`."""
        if time.monotonic() - self._last_save < _UNSAVED_S or not self._can_save:
            return
        key = self._state_key(number)
        try:
            with claimed(self._features, CLUSTERS, key) as is_mine:
                if is_mine and not has_cached(self._features, CLUSTERS, key):
                    save_cached(self._features, CLUSTERS, key, arrays, {STEP: "state", **facts})
                    self._can_save = max(self._states(), default=-1) >= number
                    for older in (each for each in self._states() if each < number and self._can_save):
                        drop_cached(self._features, CLUSTERS, self._state_key(older))
        except StoreError:  # read-only: keeping the clustering will say so
            self._can_save = False
        self._last_save = time.monotonic()

    def finish(self) -> None:
        """Remove everything that was saved on the way, by any rank and any earlier run, once the clustering is kept."""
        drop_all_cached(self._features, CLUSTERS, f"{self._key}.")
        drop_half_written(self._features, CLUSTERS, self._key)

    def is_done(self) -> bool:
        """Whether the clustering is kept."""
        return has_cached(self._features, CLUSTERS, self._key)

    def _compute_missing(self, keys: list[str], compute: Callable[[int], Arrays]) -> dict[int, Arrays]:
        """Wait until all results are saved; returns those that this rank has computed."""
        own: dict[int, Arrays] = {}
        began = since = time.monotonic()
        patience_s = _PATIENCE_S
        while missing := [shard for shard in self._missing(keys) if shard not in own]:
            is_late = not self._mine or time.monotonic() - since > patience_s
            for shard in [each for each in missing if is_late or each in self._mine]:
                if (result := self._compute(keys[shard], shard, compute)) is not None:
                    own[shard] = result
                    since = time.monotonic()
                    patience_s = max(_PATIENCE_S, (since - began) / 2)
                    self._mine = self._mine or {shard}
                    break
            else:
                if self.is_done():
                    raise AlreadyDoneError
                time.sleep(_POLL_S)
        return own

    def _missing(self, keys: list[str]) -> list[int]:
        cached_keys(self._features, CLUSTERS)  # opening the folder makes NFS look for new names
        return [shard for shard, key in enumerate(keys) if not has_cached(self._features, CLUSTERS, key)]

    def _compute(self, key: str, shard: int, compute: Callable[[int], Arrays]) -> Arrays | None:
        """Compute and save a result, unless another rank does, or has done it."""
        with claimed(self._features, CLUSTERS, key) as is_mine:
            if not is_mine or has_cached(self._features, CLUSTERS, key):
                return None
            if self.is_done():
                raise AlreadyDoneError
            result = compute(shard)
            save_cached(self._features, CLUSTERS, key, result, {STEP: key})
            return result

    def _load_or_compute(self, key: str, shard: int, compute: Callable[[int], Arrays]) -> Arrays:
        """Load what was saved; if it is damaged, or gone because this rank is behind, compute it."""
        while True:
            if saved := load_cached(self._features, CLUSTERS, key):
                return saved[0]
            if self.is_done():
                raise AlreadyDoneError
            with claimed(self._features, CLUSTERS, key) as is_mine:
                if is_mine and not load_cached(self._features, CLUSTERS, key):
                    result = compute(shard)
                    save_cached(self._features, CLUSTERS, key, result, {STEP: key})
                    return result
            time.sleep(_POLL_S)

    def _states(self) -> list[int]:
        """Numbers of the states that are saved."""
        prefix = self._step_key("state-")
        found = (key.removeprefix(prefix) for key in cached_keys(self._features, CLUSTERS) if key.startswith(prefix))
        return [int(number) for number in found if number.isdecimal()]

    def _state_key(self, number: int) -> str:
        return self._step_key(f"state-{number}")

    def _step_key(self, step: str) -> str:
        return f"{self._key}.{self._name}{step}"

    def _forget(self, keys: list[str]) -> None:
        """Remove the results of the step before the last one, which every rank has."""
        self._steps.append(keys)
        if len(self._steps) > _STEPS_KEPT:
            for key in self._steps.pop(0):
                drop_cached(self._features, CLUSTERS, key)
