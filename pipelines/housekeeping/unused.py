"""What is kept in feature sets and is of no use any more; never features, labels or results."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featbench.evaluate.clustering.kept import is_superseded, kept_clusterings
from featbench.evaluate.neighbours.kept import kept_neighbours
from featbench.evaluate.results import Record
from featbench.store import FeatureSet, StoreError, claimed, drop_cached, has_cached, paths
from featbench.store.durable import last_change, leftovers, remove_leftover
from featbench.store.usage import size_on_disk

logger = logging.getLogger(__name__)

OLD_S = 3600.0
"""Half-written files are left alone until they are this old, since their writer may still run."""

HALF_WRITTEN = "half-written"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """Something that can be removed."""

    features: str
    """Name of the feature set; "" if it is in the store itself."""

    kind: str
    """Folder of cached results, or `half-written`."""

    what: str
    """Key of a cached result, or the path of what is half-written."""

    why: str
    bytes: int
    path: Path

    def record(self) -> Record:
        """Return it as a flat dict."""
        return {
            "features": self.features, "kind": self.kind, "what": self.what, "why": self.why, "bytes": self.bytes,
        }  # fmt: skip


def unused_in(features: FeatureSet) -> list[Unused]:
    """Find what is of no use in a feature set; all that is kept is read, to find what is damaged."""

    def cached(kind: str, key: str, why: str) -> Unused:
        path = paths.cached_folder(features.path, kind, key)
        size = size_on_disk(path)
        return Unused(features=features.name, kind=kind, what=key, why=why, bytes=size, path=path)

    found = [
        cached(paths.NEIGHBOURS, each.key, each.reason)
        for each in kept_neighbours(features, with_arrays=True)
        if not each.is_of_use
    ]
    kept, faults = kept_clusterings(features, with_arrays=True)
    found += [cached(paths.CLUSTERS, key, why) for key, why in faults.items()]
    for each in kept:
        if each.is_current is False:
            found.append(cached(paths.CLUSTERS, each.key, "the layer or its labels have changed since"))
        elif is_superseded(each, kept):
            found.append(cached(paths.CLUSTERS, each.key, "the same clustering was computed by this version"))
    folders = [features.path / kind for kind in (*paths.CACHES, paths.RESULTS)]
    return found + [
        _half_written(path, features.name, path.relative_to(features.path))
        for folder in folders
        for path in leftovers(folder)
        if _is_old(path)
    ]


def unused_beside(store: Path) -> list[Unused]:
    """Find what is left half-written or half-removed in a store, beside its feature sets."""
    found = leftovers(store, only_direct=True)
    return [_half_written(path, "", path.relative_to(store)) for path in found if _is_old(path)]


def remove_unused(found: Sequence[Unused]) -> Iterator[Unused]:
    """Remove what `unused_in` and `unused_beside` have found, and yield what was removed.

    What another process is computing at this moment stays.
    """
    for each in found:
        try:
            if each.kind == HALF_WRITTEN:
                remove_leftover(each.path)
            else:
                features = FeatureSet.open(each.path.parent.parent)
                with claimed(features, each.kind, each.what) as is_mine:
                    if is_mine:
                        drop_cached(features, each.kind, each.what)
                if not is_mine or has_cached(features, each.kind, each.what):
                    raise StoreError("in use, or can't be written")
        except (OSError, StoreError) as error:
            logger.warning("%s: not removed: %s", each.path, error)
            continue
        yield each


def _half_written(path: Path, name: str, what: Path) -> Unused:
    size = size_on_disk(path)
    why = "left by a process that was killed"
    return Unused(features=name, kind=HALF_WRITTEN, what=str(what), why=why, bytes=size, path=path)


def _is_old(path: Path) -> bool:
    """Whether nothing in it was written to for a while."""
    try:
        return last_change(path) < time.time() - OLD_S
    except OSError:  # its writer has just renamed or removed it
        return False
