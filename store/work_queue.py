"""The work of a run: pending chunks, each claimed by the first rank that reaches it.

The journals say which chunks are pending, the claims in the lock file which are in progress. A rank
starts with its own share of the chunks, so that ranks rarely compete, and continues with what others
have left: a slow or lost rank costs no more than the chunks that it was writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from featbench.store.feature_set import FeatureSet
from featbench.store.layout import share
from featbench.store.lock import RunLock
from featbench.store.work import Work


class WorkQueue:
    """Pending chunks, claimed one by one as they are requested."""

    def __init__(
        self, features: FeatureSet, layers: Sequence[str], lock: RunLock, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self._features = features
        self._layers = layers
        self._lock = lock
        self._rank = rank
        self._world_size = world_size
        splits = sorted(features.manifest.splits)
        starts = [sum(features.grid(split).num_chunks for split in splits[:i]) for i in range(len(splits))]
        self._first_number = dict(zip(splits, starts, strict=True))

    def __iter__(self) -> Iterator[Work]:
        """Yield chunks that this rank has claimed, until none is left."""
        found = True
        while found:  # once more, for chunks claimed by a rank that has died since
            found = False
            self._features.check()
            for item in self._own_first(self._features.pending(self._layers)):
                if self._lock.claim_chunk(self._number(item)):
                    still = self._features.pending_in(item.split, item.chunk, self._layers)
                    if still is None:  # another rank has written it in the meantime
                        self.release(item)
                    else:
                        found = True
                        yield still

    def release(self, item: Work) -> None:
        """Release a chunk: it is journalled, or will not be written."""
        self._lock.release_chunk(self._number(item))

    def _own_first(self, pending: list[Work]) -> list[Work]:
        before = sum(len(share(pending, rank=rank, world_size=self._world_size)) for rank in range(self._rank))
        return pending[before:] + pending[:before]

    def _number(self, item: Work) -> int:
        return self._first_number[item.split] + item.chunk
