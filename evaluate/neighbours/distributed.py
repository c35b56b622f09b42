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


def search_shares(
    whole: Selection,
    search_among: Callable[[Selection], Neighbours],
    finish: Callable[[Neighbours], SearchResult],
    lists: NeighbourCache,
    *,
    k: int,
    length: int,
    num_shares: int,
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
    num_shares : int
        Number of shards; the same on every rank.

    Raises
    ------
    StoreError
        If the store can't be written.
    """
    shares = shares_of(whole, num_shares)
    kept = [lists.part(f"{length}-{index}-of-{len(shares)}") for index in range(len(shares))]
    while True:
        for part, place in zip(shares, kept, strict=True):
            with place.claim() as is_mine:
                if is_mine and not place.exists() and not lists.load(k):
                    place.save(SearchResult(neighbours=search_among(part), reused=False, seconds=0))
        with lists.claim() as is_mine:
            if is_mine and (done := lists.load(k) or _merge(kept, finish, length)):
                for place in kept:
                    place.drop()
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
    kept: list[NeighbourCache], finish: Callable[[Neighbours], SearchResult], length: int
) -> SearchResult | None:
    """Merge the lists of all shards, if all of them are there."""
    if not all(place.exists() for place in kept):
        return None
    found = []
    for place in kept:
        lists = place.load(1)
        if lists is None:  # damaged: search it again
            place.drop()
            return None
        found.append(lists.neighbours)
    return finish(merged(found, length))


def shares_of(whole: Selection, num_shares: int) -> list[Selection]:
    """Cut a database into shards of whole chunks, none of them empty.

    Raises
    ------
    ValueError
        If `num_shares` is not positive.
    """
    if num_shares < 1:
        raise ValueError(f"num_shares must be positive; got {num_shares}")
    parts = [share(whole.chunks, rank=rank, world_size=num_shares) for rank in range(num_shares)]
    starts = [int(np.searchsorted(whole.rows, part[0] * whole.layer.rows_per_chunk)) for part in parts if len(part)]
    pairs = zip(starts, [*starts[1:], len(whole)], strict=True)
    return [whole[start:stop] for start, stop in pairs if start < stop]
