"""The work of a run: pending chunks, each claimed by the first rank that reaches it.

The journals say which chunks are pending, the claims in the lock file which are in progress. A rank
starts with its own share of the chunks, so that ranks rarely compete, and continues with what others
have left: a slow or lost rank costs no more than the chunks that it was writing.

The journals of all ranks are read once in each pass over the pending chunks. A claim costs the same however many
chunks and ranks there are: one lock, and one byte that says whether a rank has begun to journal the chunk since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from featbench.store.feature_set import FeatureSet
from featbench.store.layout import share
from featbench.store.lock import RunLock
from featbench.store.pending import PendingChunks
from featbench.store.typing import Bools
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

    def __iter__(self) -> Iterator[Work]:
        """Yield chunks that this rank has claimed, until none is left."""
        found = True
        while found:  # once more, for chunks claimed by a rank that has died since
            found = False
            for item in self._claimed():
                found = True
                yield item

    def release(self, item: Work) -> None:
        """Release a chunk: it is journalled, or will not be written."""
        self._lock.release_chunk(self._number(item))

    def _claimed(self) -> Iterator[Work]:
        """Yield the chunks that this rank can claim in one pass: first those without a mark."""
        self._features.check()
        pending = self._own_first(self._features.pending(self._layers))
        yield from self._unmarked(pending)
        if self._marks_of(pending).any():
            # Journalled since, or by a rank that died before it could: to know which, the journals are read.
            self._features.check()
            pending = self._own_first(self._features.pending(self._layers))
            yield from self._marked(pending.take(np.flatnonzero(self._marks_of(pending))))

    def _unmarked(self, pending: PendingChunks) -> Iterator[Work]:
        is_marked, at = self._marks_of(pending), 0
        while True:
            free = np.flatnonzero(~is_marked[at:])
            if not len(free):
                return
            at += int(free[0])
            item, number = pending[at], self._number(pending[at])
            if self._lock.claim_chunk(number):
                if not self._lock.has_marks:
                    yield from self._if_pending(item)
                elif self._lock.is_marked(number):
                    self.release(item)
                    is_marked |= self._marks_of(pending)
                else:
                    yield item
            at += 1

    def _marked(self, pending: PendingChunks) -> Iterator[Work]:
        for item in pending:
            if self._lock.claim_chunk(self._number(item)):
                yield from self._if_pending(item)

    def _if_pending(self, item: Work) -> Iterator[Work]:
        """Read the journals again; yield the claimed chunk, or release it if it has been written."""
        still = self._features.pending_in(item.split, item.chunk, self._layers)
        if still is None:
            self.release(item)
        else:
            yield still

    def _own_first(self, pending: PendingChunks) -> PendingChunks:
        order = range(len(pending))
        before = sum(len(share(order, rank=rank, world_size=self._world_size)) for rank in range(self._rank))
        return pending.take(np.roll(np.array(order, np.int64), -before))

    def _marks_of(self, pending: PendingChunks) -> Bools:
        """Whether each chunk is marked, as far as is known without locking it."""
        if not self._lock.has_marks or not len(pending):
            return np.zeros(len(pending), np.bool_)
        first = np.array([self._features.chunk_number(split, 0) for split in pending.splits])
        numbers = first[pending.split_of] + pending.chunks
        return self._lock.marks(int(numbers.max()) + 1)[numbers]

    def _number(self, item: Work) -> int:
        return self._features.chunk_number(item.split, item.chunk)
