"""Checks everything that a feature set has on disk, chunk by chunk, and repairs it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featbench.store import journal, paths
from featbench.store.checked import checked_rows, open_checked
from featbench.store.errors import StoreError
from featbench.store.feature_set import FeatureSet, looks_like_feature_set
from featbench.store.folder import Folder
from featbench.store.lock import join_run
from featbench.store.metadata import metadata_faults, restore
from featbench.store.skeleton import expected_metadata
from featbench.store.typing import Bools


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: where, what, and the key of the chunk if extraction can rewrite it."""

    where: str
    what: str
    key: str | None = None
    is_pending: bool = False
    """Whether chunks have only not been written yet, so that nothing is damaged."""


def verify(path: Path) -> Iterator[Fault]:
    """Yield every fault in metadata, journals, chunks (presence, size, checksum), values and labels.

    Chunks that were never journalled are reported as pending, one fault per array. Kept queries are checked, too, but
    theirs that are pending are not reported.

    Raises
    ------
    StoreError
        If there is no feature set at `path`.
    """
    metadata = metadata_faults(path) if looks_like_feature_set(path) else {}
    for where, what in metadata.items():
        yield Fault(where=where, what=what)
    if paths.METADATA in metadata:
        return  # the expected contents are not known until `repair` has restored it
    features = FeatureSet.open(path)
    damaged = journal.damaged_lines(features.journals)
    for line in damaged:
        yield Fault(where=f"{paths.JOURNALS}/{line}", what="not what was written (its checksum differs)")
    if damaged:
        return  # which chunks count is not known until `repair` has removed these lines
    for split in features.manifest.splits:
        for name in (*features.row_arrays(split), *features.manifest.layers):
            yield from _array_faults(features, split, name)
    for kept in _kept_queries(path):
        for fault in verify(kept):
            if not fault.is_pending:
                yield replace(fault, where=f"{paths.QUERIES}/{kept.name}/{fault.where}", key=None)


def repair(path: Path) -> list[str]:
    """Restore damaged metadata, and mark damaged chunks as pending; the next extraction rewrites only those.

    Returns what was restored or removed; `verify` reports what is left.

    Raises
    ------
    StoreError
        If another process is writing to it, or writing fails.
    """
    if not looks_like_feature_set(path):
        FeatureSet.open(path)
    folder = Folder(path)
    folder.make(paths.JOURNALS)
    with join_run(path / paths.LOCK, uuid.uuid4().hex) as lock:
        done = restore(folder)
        if paths.METADATA in metadata_faults(path):
            return done
        features = FeatureSet.open(path)
        if metadata_faults(path):
            done += restore(folder, expected_metadata(features.manifest))
        features.sweep()
        done += journal.rewrite_journals(folder, keep=lambda record: True)
        damaged = _with_dependent_chunks(features, {fault.key for fault in verify(path) if fault.key})
        done += journal.rewrite_journals(folder, keep=lambda record: record.key not in damaged)
        if not (folder.is_here() and lock.is_current()):
            raise StoreError(
                f"{path}: the folder was renamed, removed or replaced during the repair. Repair it at its present path."
            )
    return done + [f"{paths.QUERIES}/{kept.name}/{each}" for kept in _kept_queries(path) for each in repair(kept)]


def _kept_queries(path: Path) -> list[Path]:
    """Feature sets of other queries that are kept inside this one."""
    folder = path / paths.QUERIES
    return [each for each in sorted(folder.iterdir()) if looks_like_feature_set(each)] if folder.is_dir() else []


def _with_dependent_chunks(features: FeatureSet, damaged: set[str]) -> set[str]:
    """Add the layers of chunks whose flags or digests are damaged: their images are no longer known."""
    found = set(damaged)
    for split in features.manifest.splits:
        flags = [features.chunk_keys(split, name) for name in features.flag_arrays(split)]
        layers = [features.chunk_keys(split, name) for name in features.manifest.layers]
        for chunk, keys in enumerate(zip(*flags, strict=True)):
            if not damaged.isdisjoint(keys):
                found |= {key for each in (*flags, *layers) for key in [each[chunk]]}
    return found


def _array_faults(features: FeatureSet, split: str, name: str) -> Iterator[Fault]:
    grid, is_written = features.grid(split, name), features.is_committed(split, name)
    missing = np.flatnonzero(~is_written)
    if len(missing):
        what = f"{len(missing)} of {len(is_written)} chunks are pending, the first is {missing[0]}"
        yield Fault(where=f"{split}/{name}", what=what, is_pending=True)
    try:
        array = open_checked(features.path, features.manifest, split, name)
    except StoreError:
        return  # already reported with the metadata
    for chunk in np.flatnonzero(is_written).tolist():
        key, rows = features.chunk_key(split, name, chunk), grid.rows(chunk)
        try:
            values = checked_rows(features.path, array, features.records[key], rows, chunk=chunk, cure="")
        except StoreError as error:
            yield Fault(where=f"{split}/{name} chunk {chunk}", what=str(error).rstrip(), key=key)
            continue
        if name in features.manifest.layers:
            bad = ~np.isfinite(values.reshape(len(rows), -1)).all(axis=1)
            if bad.any():
                bad &= _usable(features, split, chunk)
            if bad.any():
                first = rows.start + int(np.flatnonzero(bad)[0])
                yield Fault(
                    where=f"{split}/{name} chunk {chunk}",
                    what=f"{int(bad.sum())} rows contain NaN or infinity, the first is row {first}",
                    key=key,
                )
        if name == paths.LABELS:
            info = features.split(split)
            num_classes = 2 if info.is_multi_label else len(info.class_names)
            bad = (values < -1) | (values >= num_classes)
            if bad.any():
                yield Fault(
                    where=f"{split}/{name}", what=f"{int(bad.sum())} labels are not in [-1, {num_classes})", key=key
                )


def _usable(features: FeatureSet, split: str, chunk: int) -> Bools:
    """Rows of a chunk that must be finite; none if its `valid` is damaged, which is a separate fault."""
    try:
        return features.valid_chunk(split, chunk)
    except (StoreError, KeyError):
        return np.zeros(len(features.grid(split).rows(chunk)), np.bool_)
