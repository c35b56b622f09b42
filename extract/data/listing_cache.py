"""Listings kept from run to run, so that a million files are not looked up again each time.

A kept listing counts while nothing that it was made from has changed: the folders (adding, removing
and renaming a file changes its folder), lists and archives, all of them, and a sample of the files.
A file between the samples that has got another size is noticed when it is read, by name; that also
discards the kept listing, so that the next run lists again. Other contents of the same size are for
the digests that are kept with the features (`featbench.extract.data.same_images`).
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
"""Raised when listings come to be made or stored otherwise."""

MANY = 20_000
"""Files from which on a listing is kept; fewer are listed within a second. Those of archives always are."""

SAMPLE = 10_000
"""Files of a kept listing that are looked up before it is believed."""

YOUNG_NS = 2 * 10**9
"""A folder that was changed so shortly before it was listed may change again under the same time stamp."""

DIGEST = 32
"""A kept listing begins with so many bytes, the SHA-256 of the others, which are an `.npz`."""

_ARRAYS = ("sizes", "changed", "starts", "archive", "labels", "stamps")
_PATHS = ("paths", "archives", "watched")


def place_of(folder: Path, made_from: Any) -> Path:
    """Where the listing that is made from these settings (JSON) is kept below a folder."""
    text = json.dumps([VERSION, made_from], default=str, sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.listing"


def kept_or_made(place: Path | None, make: Callable[[], Listing], *, root: Path) -> Listing:
    """Take the kept listing if it still holds, or make one and keep it if it took long.

    Parameters
    ----------
    place : Path, optional
        File of the kept listing; None neither reads nor keeps one.
    make : callable
        Lists the split.
    root : Path
        What the listing's paths are relative to.
    """
    kept = read_kept(place) if place is not None else None
    if kept is not None and still_holds(kept, root):
        return kept
    made = make()
    if place is not None and (len(made) >= MANY or len(made.archives)) and _is_settled(made):
        try:
            _keep(place, made)
        except StoreError as error:
            logger.warning("the listing is not kept, so the next run lists again: %s", error)
    return made


def read_kept(place: Path) -> Listing | None:
    """Read a kept listing; None if there is none that can be read."""
    try:
        content = place.read_bytes()
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
        logger.warning("%s: the kept listing can't be read (%s); listing again", place, error)
        return None


def still_holds(listing: Listing, root: Path) -> bool:
    """Whether the folders, lists and archives are as they were, and the sizes of a sample of the files."""
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
    """Time of the last change in ns and size of a file or folder; (0, -1) if it is not there."""
    try:
        facts = os.stat(path)  # noqa: PTH116 (a million times)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return 0, -1
    return facts.st_mtime_ns, facts.st_size


def _is_settled(listing: Listing) -> bool:
    return not len(listing.stamps) or int(listing.stamps[:, 0].max()) < time.time_ns() - YOUNG_NS


def _keep(place: Path, listing: Listing) -> None:
    values = {name: getattr(listing, name) for name in _ARRAYS}
    for name in _PATHS:
        paths: Paths = getattr(listing, name)
        values |= {f"{name}_text": paths.text, f"{name}_ends": paths.ends}
    names = json.dumps(listing.class_names).encode()  # ASCII, so that names that are not UTF-8 survive
    content = io.BytesIO()
    np.savez(content, class_names=np.frombuffer(names, np.uint8), **values)
    write_durably(place, hashlib.sha256(content.getvalue()).digest() + content.getvalue())
