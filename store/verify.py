"""Checking everything that a feature set has on disk, chunk by chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from store import journal
from store.errors import StoreError
from store.feature_set import FeatureSet, open_checked
from store.reader import checked_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong: where, what, and the key of the chunk if extraction can write it anew."""

    where: str
    what: str
    key: str | None = None


def verify(features: FeatureSet) -> Iterator[Fault]:
    """Yield every fault: of metadata, journals and chunks (presence, size, checksum), of values and of labels.

    Chunks that were never journalled are reported as pending, one fault per array.
    """
    yield from _metadata_faults(features)
    damaged = journal.damaged_lines(features.journals)
    for line in damaged:
        yield Fault(where=f"journals/{line}", what="not what was written (its checksum differs)")
    if damaged:
        return  # which chunks count is not known until `repair` has dropped these lines
    for split in features.manifest.splits:
        for name in ("labels", "paths", "valid", *features.manifest.layers):
            yield from _array_faults(features, split, name)


def repair(features: FeatureSet, faults: list[Fault]) -> list[str]:
    """Set damaged chunks back to pending, so that the next extraction writes just those; return what was dropped."""
    keys = {fault.key for fault in faults if fault.key}
    with features.lock():
        features.sweep()
        dropped = journal.rewrite_journals(features.journals, keep=lambda record: record.key not in keys)
    features.reread()
    return dropped


def _metadata_faults(features: FeatureSet) -> Iterator[Fault]:
    for key, digest in features.manifest.metadata.items():
        path = features.path / key / "zarr.json"
        if not path.is_file():
            yield Fault(where=f"{key}/zarr.json", what="missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield Fault(where=f"{key}/zarr.json", what="not what was written (its sha256 differs)")


def _array_faults(features: FeatureSet, split: str, name: str) -> Iterator[Fault]:
    keys = features.chunk_keys(split, name)
    grid = features.grid(split, name)
    missing = [chunk for chunk, key in enumerate(keys) if key not in features.records]
    if missing:
        what = f"{len(missing)} of {len(keys)} chunks are pending, the first is {missing[0]}"
        yield Fault(where=f"{split}/{name}", what=what)
    try:
        array = open_checked(features, f"{split}/{name}")
    except StoreError:
        return  # reported with the metadata
    usable = _usable(features, split) if name in features.manifest.layers else None
    for chunk, key in enumerate(keys):
        if key not in features.records:
            continue
        try:
            rows = grid.rows(chunk)
            values = checked_rows(features.path, array, features.records[key], rows, chunk=chunk, cure="")
        except StoreError as error:
            yield Fault(where=f"{split}/{name} chunk {chunk}", what=str(error).rstrip(), key=key)
            continue
        if usable is not None:
            bad = usable[rows.start : rows.stop] & ~np.isfinite(values.reshape(len(rows), -1)).all(axis=1)
            if bad.any():
                first = rows.start + int(np.flatnonzero(bad)[0])
                yield Fault(
                    where=f"{split}/{name} chunk {chunk}",
                    what=f"{int(bad.sum())} rows hold NaN or infinity, the first is row {first}",
                    key=key,
                )
        if name == "labels":
            num_classes = len(features.split(split).class_names)
            bad = (values < -1) | (values >= num_classes)
            if bad.any():
                yield Fault(
                    where=f"{split}/labels", what=f"{int(bad.sum())} labels are not in [-1, {num_classes})", key=key
                )


def _usable(features: FeatureSet, split: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Rows that must be finite; none while it is not known which images could be read, a fault of its own."""
    try:
        return features.valid(split)
    except StoreError:
        return np.zeros(features.split(split).num_rows, np.bool_)
