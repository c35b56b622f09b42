"""Cached listings, so that a million files are not looked up again in every run.

A cached listing is valid while nothing that it was made from has changed: all folders (adding, removing
and renaming a file changes its folder), lists and archives, and a sample of the files. If the size of
another file has changed, this is noticed when it is read, and the cached listing is discarded, so that
the next run lists again. Changed contents of the same size are found by the digests that are stored
with the features (`featbench.extract.data.same_images`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featbench.extract.data.listing import Listing
from featbench.extract.data.listing_file import map_listing, write_listing
from featbench.store import RowFacts, SplitRows, StoreError

logger = logging.getLogger(__name__)

VERSION = 3
"""Incremented when listings are made or stored in another way."""

MANY = 20_000
"""Files from which on a listing is cached; fewer are listed within a second. Listings of archives are always cached."""

SAMPLE = 10_000
"""Files of a cached listing that are checked before it is used."""

YOUNG_NS = 2 * 10**9
"""A folder that changed this shortly before it was listed may change again without a new time stamp."""


def cache_file(folder: Path, made_from: Any) -> Path:
    """File of the cached listing that is made from these settings (JSON), in a folder."""
    text = json.dumps([VERSION, made_from], default=str, sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.listing"


def cached_or_made(file: Path | None, make: Callable[[], Listing], *, root: Path) -> Listing:
    """Return the cached listing if it is still valid, or make one and cache it if that took long.

    Parameters
    ----------
    file : Path, optional
        File of the cached listing; None disables the cache.
    make : callable
        Lists the split.
    root : Path
        What the listing's paths are relative to.
    """
    cached = read_cached(file) if file is not None else None
    if cached is not None and is_valid(cached, root):
        return cached
    made = make()
    if file is not None and (len(made) >= MANY or len(made.archives)) and _is_settled(made):
        try:
            write_listing(file, made, _facts_of(made))
            return read_cached(file) or made  # mapped, its memory is shared with other ranks
        except StoreError as error:
            logger.warning("the listing is not cached, so the next run lists again: %s", error)
    return made


def read_cached(file: Path) -> Listing | None:
    """Map a cached listing; None if there is none that can be read."""
    try:
        return map_listing(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: the cached listing can't be read (%s); listing again", file, error)
        return None


def is_valid(listing: Listing, root: Path) -> bool:
    """Whether the folders, lists and archives are unchanged, and the sizes of a sample of the files."""
    for path, stamp in zip(listing.watched, listing.stamps.tolist(), strict=True):
        if list(stamp_of(path)) != stamp:
            return False
    if len(listing.archives):
        return True
    for row in range(0, len(listing), max(1, len(listing) // SAMPLE)):
        path = os.path.join(root, listing.paths[row])  # noqa: PTH118 (in number)
        if stamp_of(path)[1] != int(listing.sizes[row]):
            return False
    return True


def stamp_of(path: str | Path) -> tuple[int, int]:
    """Time of last change in ns and size of a file or folder; (0, -1) if it does not exist."""
    try:
        facts = os.stat(path)  # noqa: PTH116 (a million times)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return 0, -1
    return facts.st_mtime_ns, facts.st_size


def _is_settled(listing: Listing) -> bool:
    return not len(listing.stamps) or int(listing.stamps[:, 0].max()) < time.time_ns() - YOUNG_NS


def _facts_of(listing: Listing) -> RowFacts:
    names = listing.class_names
    return SplitRows(labels=listing.labels, paths=listing.paths, class_names=names, sizes=listing.sizes).found()
