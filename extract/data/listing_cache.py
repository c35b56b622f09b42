"""Cached listings, so that a million files are not looked up again in every run.

A cached listing is valid while nothing that it was made from has changed: all folders (adding, removing
and renaming a file changes its folder), lists and archives, and a sample of the files. If the size of
another file has changed, this is noticed when it is read, and the cached listing is discarded, so that
the next run lists again. Changed contents of the same size are found by the digests that are stored
with the features (`featbench.extract.data.same_images`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featbench.extract.data.listing import Listing, Paths
from featbench.store import StoreError
from featbench.store.durable import write_durably

logger = logging.getLogger(__name__)

VERSION = 2
"""Incremented when listings are made or stored in another way."""

MANY = 20_000
"""Files from which on a listing is cached; fewer are listed within a second. Listings of archives are always cached."""

SAMPLE = 10_000
"""Files of a cached listing that are checked before it is used."""

YOUNG_NS = 2 * 10**9
"""A folder that changed this shortly before it was listed may change again without a new time stamp."""

DIGEST = 32
"""Bytes of the SHA-256 with which a cached listing begins; the rest is an `.npz`."""

_ARRAYS = ("sizes", "changed", "starts", "archive", "labels", "stamps")
_PATHS = ("paths", "archives", "watched")


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
            _keep(file, made)
        except StoreError as error:
            logger.warning("the listing is not cached, so the next run lists again: %s", error)
    return made


def read_cached(file: Path) -> Listing | None:
    """Read a cached listing; None if there is none that can be read."""
    try:
        content = file.read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            raise ValueError("it is not what was written")
        with np.load(io.BytesIO(content[DIGEST:]), allow_pickle=False) as stored:
            values: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
            values |= {name: Paths(stored[f"{name}_text"], stored[f"{name}_ends"]) for name in _PATHS}
            values["class_names"] = tuple(json.loads(stored["class_names"].tobytes()))
            return Listing(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
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


def _keep(file: Path, listing: Listing) -> None:
    values = {name: getattr(listing, name) for name in _ARRAYS}
    for name in _PATHS:
        paths: Paths = getattr(listing, name)
        values |= {f"{name}_text": paths.text, f"{name}_ends": paths.ends}
    names = json.dumps(listing.class_names).encode()  # ASCII, so that names that are not UTF-8 are preserved
    content = io.BytesIO()
    np.savez(content, class_names=np.frombuffer(names, np.uint8), **values)
    write_durably(file, hashlib.sha256(content.getvalue()).digest() + content.getvalue())
