"""How much of a disk feature sets take, by what it is for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from featbench.store import paths
from featbench.store.feature_set import FeatureSet
from featbench.store.manifest import Manifest

BLOCK = 512
"""Bytes of the blocks in which file systems count."""

FEATURES, ROWS, OTHER = "layers", "labels and paths", "other"
"""Parts of a feature set besides its caches and results."""

PARTS = (FEATURES, ROWS, *paths.CACHES, paths.QUERIES, paths.RESULTS, OTHER)


_BESIDES = (*paths.CACHES, paths.QUERIES, paths.RESULTS, paths.JOURNALS)


def usage_of(features: FeatureSet) -> dict[str, int]:
    """Bytes on disk of each part of a feature set; reads the size of every file."""
    found = dict.fromkeys(PARTS, 0)
    for part, size in _entries(features.path, features.manifest):
        found[part] += size
    return found


def usage_of_layers(features: FeatureSet) -> dict[str, int]:
    """Bytes on disk of each layer, both splits together."""
    splits = features.manifest.splits
    return {
        name: sum(size_on_disk(features.path / paths.array_key(split, name)) for split in splits)
        for name in features.manifest.layers
    }


def quick_size(features: FeatureSet) -> int:
    """Bytes of a feature set: of its chunks as the journals record them, and of all else as files."""
    cached = sum(size_on_disk(features.path / part) for part in _BESIDES)
    return features.records.num_bytes + cached


def size_on_disk(path: Path) -> int:
    """Bytes that a file takes, or a folder with all in it; 0 if it does not exist. Links are not followed."""
    try:
        own = path.lstat()
    except OSError:
        return 0
    if not path.is_dir() or path.is_symlink():
        return own.st_blocks * BLOCK
    return own.st_blocks * BLOCK + sum(size_on_disk(Path(entry.path)) for entry in _scan(path))


def _entries(root: Path, manifest: Manifest) -> Iterator[tuple[str, int]]:
    for entry in _scan(root):
        path = Path(entry.path)
        if entry.name in (*paths.CACHES, paths.QUERIES, paths.RESULTS):
            yield entry.name, size_on_disk(path)
        elif entry.name in manifest.splits:
            for array in _scan(path):
                part = FEATURES if array.name in manifest.layers else ROWS
                yield part, size_on_disk(Path(array.path))
        else:
            yield OTHER, size_on_disk(path)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # removed meanwhile, or not readable
        return []
