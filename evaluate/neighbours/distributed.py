"""One search by several ranks: each searches shards of the database, and the store carries the lists.

Ranks need no connection, only the same store and the same command. Each claims shards that no other rank has claimed,
searches them and saves their lists; the first rank to find all of them merges them. If a rank dies, its claim ends and
another rank takes the shard. Lists of shards are exact and sorted by (similarity, row), so the merged lists are those
of a single search, bit for bit. The index of an approximate search is built by one rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.cache import NeighbourCache, SearchResult
from featbench.evaluate.neighbours.search import Neighbours, merged
from featbench.store.layout import share

_POLL_S = 0.2
"""Seconds between looks for the lists of other ranks."""


def search_shards(
    whole: Selection,
    search_among: Callable[[Selection], Neighbours],
    finish: Callable[[Neighbours], SearchResult],
    lists: NeighbourCache,
    *,
    k: int,
    length: int,
    num_shards: int,
) -> SearchResult:
    """Search together with other ranks.

    Parameters
    ----------
    whole : Selection
        The database.
    search_among : callable
        Searches a shard of it, for at most `length` neighbours.
    finish : callable
        Saves the merged lists.
    lists : NeighbourCache
        Where `finish` saves them.
    k : int
        Length that cached lists must have.
    length : int
        Length of the lists to search for.
    num_shards : int
        Number of shards; the same on every rank.

    Raises
    ------
    StoreError
        If the store can't be written.
    """
    shards = shards_of(whole, num_shards)
    entries = [lists.shard(f"{length}-{index}-of-{len(shards)}") for index in range(len(shards))]
    while True:
        for shard, entry in zip(shards, entries, strict=True):
            with entry.claim() as is_mine:
                if is_mine and not entry.exists() and not lists.load(k):
                    entry.save(SearchResult(neighbours=search_among(shard), reused=False, seconds=0))
        with lists.claim() as is_mine:
            if is_mine and (done := lists.load(k) or _merge(entries, finish, length)):
                for entry in entries:
                    entry.drop()
                return done
        time.sleep(_POLL_S)


def by_one_rank(lists: NeighbourCache, k: int, search: Callable[[], SearchResult]) -> SearchResult:
    """Search on one rank, while the others wait for its lists."""
    while True:
        with lists.claim() as is_mine:
            if is_mine:
                return lists.load(k) or search()
        time.sleep(_POLL_S)


def _merge(
    entries: list[NeighbourCache], finish: Callable[[Neighbours], SearchResult], length: int
) -> SearchResult | None:
    """Merge the lists of all shards, if all of them are there."""
    if not all(entry.exists() for entry in entries):
        return None
    found = []
    for entry in entries:
        lists = entry.load(1)
        if lists is None:  # damaged: search it again
            entry.drop()
            return None
        found.append(lists.neighbours)
    return finish(merged(found, length))


def shards_of(whole: Selection, num_shards: int) -> list[Selection]:
    """Cut a database into shards of whole chunks, none of them empty.

    Raises
    ------
    ValueError
        If `num_shards` is not positive.
    """
    if num_shards < 1:
        raise ValueError(f"num_shards must be positive; got {num_shards}")
    chunks = [share(whole.chunks, rank=rank, world_size=num_shards) for rank in range(num_shards)]
    starts = [int(np.searchsorted(whole.rows, each[0] * whole.layer.rows_per_chunk)) for each in chunks if len(each)]
    pairs = zip(starts, [*starts[1:], len(whole)], strict=True)
    return [whole[start:stop] for start, stop in pairs if start < stop]
