"""Creating feature sets, adding layers to them, removing them: what one process does before any rank writes."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from featbench.store import arrays, journal, paths
from featbench.store.durable import cannot_write, make_folder, sync_folder
from featbench.store.errors import MismatchError, StoreError
from featbench.store.feature_set import FeatureSet, looks_like_feature_set
from featbench.store.journal import record_of
from featbench.store.lock import exclusive, without_run
from featbench.store.manifest import MAX_CHUNK_BYTES, LayerInfo, Manifest, SplitInfo, differences
from featbench.store.metadata import renew_copy, save
from featbench.store.schema import ROWS_PER_LABEL_CHUNK
from featbench.store.skeleton import write_groups, write_layer, write_row_arrays
from featbench.store.typing import Ints, Json


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """What was found out about all rows of a split, so that not every process has to go through them."""

    listing: str
    """SHA-256 of labels, sizes and paths, in hexadecimal."""

    used_labels: tuple[int, ...] | None
    """Labels that rows have, in ascending order, without -1; None where a row has any number of classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRows:
    """A split without its features: labels, paths and class names."""

    labels: Ints
    """Shape (N,); an index into `class_names`, or -1 where a row has no label. Or shape (N, C), for rows of any number
    of classes: 1 for a class that the row has, 0 for one that it has not, -1 where that is not known."""

    paths: Sequence[str]
    """What the user calls each image; length N."""

    class_names: tuple[str, ...]

    sizes: Ints | Sequence[int] = ()
    """Size of each image's file in bytes, if there are files; reveals changed images with the same names."""

    facts: RowFacts | None = None
    """What is known about all rows, if it is."""

    def info(self) -> SplitInfo:
        """Return the summary for the manifest.

        Raises
        ------
        StoreError
            If two classes have the same name.
        """
        twice = [name for name, count in Counter(self.class_names).items() if count > 1]
        if twice:
            raise StoreError(f"two classes are called {twice[0]!r}; classes are matched by name, so rename one of them")
        return SplitInfo(
            num_rows=len(self.labels), class_names=self.class_names, listing=self.found().listing,
            is_multi_label=np.ndim(self.labels) == 2,
        )  # fmt: skip

    def found(self) -> RowFacts:
        """Return the facts, which a pass over all rows finds unless they are known."""
        if self.facts is not None:
            return self.facts
        listing = hashlib.sha256()
        sizes = _plain(self.sizes) if len(self.sizes) else repeat("", len(self.paths))
        for path, label, size in zip(self.paths, _plain(self.labels), sizes, strict=True):
            listing.update(f"{label}\t{size}\t{path}\n".encode("utf-8", "surrogateescape"))
        return RowFacts(listing=listing.hexdigest(), used_labels=self.used_labels())

    def used_labels(self) -> tuple[int, ...] | None:
        """Return the labels that rows have; see `RowFacts`."""
        if self.facts is not None:
            return self.facts.used_labels
        if np.ndim(self.labels) == 2:
            return None
        return tuple(label for label in np.unique(self.labels).tolist() if label >= 0)


def open_or_create(
    path: Path,
    manifest: Manifest,
    splits: Mapping[str, SplitRows],
    *,
    overwrite: bool = False,
    digests: bool = False,
) -> FeatureSet:
    """Open a feature set, if it was made with the same settings, or create it.

    Parameters
    ----------
    path : Path
        The feature set's folder.
    manifest : Manifest
        The settings, without layers.
    splits : mapping of str to SplitRows
        `train` and `val`.
    overwrite : bool
        Replace an existing feature set, whatever it was made from.
    digests : bool
        Whether a new feature set stores a digest of each image; see `create`.

    Raises
    ------
    MismatchError
        If it exists with other settings; the message lists the differences.
    StoreError
        If the folder is not a feature set, or writing fails.
    """
    if overwrite and path.exists():
        remove(path)
    if not path.exists():
        try:
            return create(path, manifest, splits, digests=digests)
        except Exception:
            if not path.exists():  # otherwise another process was faster, and may have removed this one's partial set
                raise
    existing = FeatureSet.open(path)
    faults = differences(existing.manifest, manifest)
    if faults:
        raise MismatchError(
            f"{path} was made with other settings:\n  "
            + "\n  ".join(faults)
            + "\nNothing was changed. Choose another --name, use the old settings, or replace it with --overwrite."
        )
    return existing


def make_ready(
    features: FeatureSet,
    splits: Mapping[str, SplitRows],
    layers: Mapping[str, LayerInfo],
    *,
    probes: Mapping[str, Json] | None = None,
    computed: Mapping[str, Json] | None = None,
) -> None:
    """Remove leftovers of killed runs, rewrite labels and paths that are pending, create the layers' arrays.

    Call it while holding the lock exclusively. `probes`, `computed` and errors are those of `add_layers`.
    """
    features.reload()
    features.sweep()
    _sweep_beside(features.path)
    renew_copy(features.folder)
    for split, rows in splits.items():
        if not all(features.is_committed(split, name).all() for name in (paths.LABELS, paths.PATHS)):
            _write_listing(features, split, rows)
    add_layers(features, layers, probes=probes, computed=computed)


def create(path: Path, manifest: Manifest, splits: Mapping[str, SplitRows], *, digests: bool = False) -> FeatureSet:
    """Create a feature set without layers, with labels, paths and class names; on failure nothing is left.

    Parameters
    ----------
    path, manifest, splits
        As for `open_or_create`.
    digests : bool
        Whether it has an array with a digest of each image, which is written with every chunk.

    Raises
    ------
    StoreError
        If it exists, or writing fails.
    """
    real = _real(path)
    partial = paths.partial_name(real)
    try:
        make_folder(partial)
        made = FeatureSet(partial, manifest)
        metadata = write_groups(made.folder, manifest) | write_row_arrays(made.folder, manifest, digests=digests)
        for split, rows in splits.items():
            _write_listing(made, split, rows)
        save(made.folder, dataclasses.replace(manifest, metadata=metadata))
        partial.rename(real)
        sync_folder(real.parent)
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return FeatureSet(path, dataclasses.replace(manifest, metadata=metadata))


def remove(path: Path) -> None:
    """Delete a feature set, even a damaged one; it is renamed first, so that it is never found half deleted.

    If the path is a symbolic link, its target is deleted; the link stays, for a new set in its place.

    Raises
    ------
    StoreError
        If the folder does not look like a feature set, or a run is writing to it, or evaluating it.
    """
    if not looks_like_feature_set(path):
        raise StoreError(
            f"{path}: not a feature set (it has neither journals nor a manifest), so it is not replaced. "
            f"Remove it yourself, or choose another --name."
        )
    real = _real(path)
    doomed = paths.partial_name(real)
    try:
        make_folder(real / paths.JOURNALS)  # for the lock
        with without_run(real / paths.LOCK):
            _refuse_evaluated(real)
            real.rename(doomed)
            sync_folder(real.parent)  # before its contents are removed
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error
    shutil.rmtree(doomed, ignore_errors=True)


def _refuse_evaluated(path: Path) -> None:
    """Refuse a feature set in which another process searches or clusters at this moment."""
    for claim in paths.claim_files(path):
        if claim.is_symlink() or not claim.is_file():  # of a damaged feature set
            continue
        with exclusive(claim) as is_free:
            if not is_free:
                raise StoreError(
                    f"{path}: another process is evaluating it ({paths.cached_key(claim.name)}). Wait for it to end, "
                    f"or stop it."
                )


def _real(path: Path) -> Path:
    """Resolve a link to the feature set, which is what is replaced; partial sets are created beside it."""
    return path.resolve() if path.is_symlink() else path


def _sweep_beside(path: Path) -> None:
    """Remove partial sets of killed runs beside a feature set, and sets that they had not finished removing."""
    real = _real(path)
    for begun in real.parent.glob(f".*{paths.PARTIAL}"):
        if paths.is_leftover_of(real.name, begun.name):
            shutil.rmtree(begun, ignore_errors=True)


def add_layers(
    features: FeatureSet,
    layers: Mapping[str, LayerInfo],
    *,
    probes: Mapping[str, Json] | None = None,
    computed: Mapping[str, Json] | None = None,
) -> FeatureSet:
    """Create the arrays of new layers; return the feature set. Call it under the lock.

    `probes`, summaries of each layer's features of fixed images, are stored for layers that have none yet; `computed`,
    what computes each layer, replaces what is stored.

    Raises
    ------
    MismatchError
        If a layer of that name exists with another tap, pooling or shape.
    StoreError
        If a chunk would be too large.
    """
    features.reload()  # another process may have added layers before this one had the lock
    manifest = features.manifest
    new = {name: info for name, info in layers.items() if name not in manifest.layers}
    for name, info in layers.items():
        if name not in new and manifest.layers[name] != info:
            raise MismatchError(
                f"{features.path}: layer {name!r} exists as {_describe(manifest.layers[name])}, you ask for "
                f"{_describe(info)}. Give the new one another name, as in 'my_{name}={info.tap}', or use --name."
            )
    for name, info in new.items():
        size = info.dim * manifest.rows_per_chunk * np.dtype(manifest.dtype).itemsize
        if size > MAX_CHUNK_BYTES:
            raise StoreError(
                f"{features.path}: a chunk of layer {name!r} would take {size / 2**30:.1f} GiB, more than "
                f"{MAX_CHUNK_BYTES / 2**30:.0f}: {manifest.rows_per_chunk} rows of {info.dim:,} values. "
                f"Pool it, or extract it into another --name with a smaller storage.rows_per_chunk."
            )
    known = {name: probe for name, probe in manifest.notes.get("probe", {}).items() if name in manifest.layers}
    notes = {**manifest.notes, "probe": {**probes, **known}} if probes else manifest.notes
    if computed:
        notes = {**notes, "computed": {**manifest.notes.get("computed", {}), **computed}}
    if not new:
        if notes != manifest.notes:
            features.manifest = dataclasses.replace(manifest, notes=notes)
            features.check()
            save(features.folder, features.manifest)
        return features
    _forget(features, tuple(paths.array_key(split, name) + "/" for split in manifest.splits for name in new))
    metadata = dict(manifest.metadata)
    for name, info in new.items():
        metadata |= write_layer(features.folder, manifest, name, info)
    features.manifest = dataclasses.replace(manifest, layers={**manifest.layers, **new}, metadata=metadata, notes=notes)
    features.check()
    save(features.folder, features.manifest)
    return features


def _forget(features: FeatureSet, prefixes: tuple[str, ...]) -> None:
    """Remove the records of arrays that are about to be created again."""
    features.reread()
    if features.records.has_array(prefixes):
        journal.rewrite_journals(features.folder, keep=lambda record: not record.key.startswith(prefixes))
        features.reread()


def _write_listing(features: FeatureSet, split: str, rows: SplitRows) -> None:
    stored = {
        name: arrays.open_array(features.folder, paths.array_key(split, name), writable=True)
        for name in (paths.LABELS, paths.PATHS)
    }
    for start in range(0, len(rows.labels), ROWS_PER_LABEL_CHUNK):  # in pieces, to save memory
        span = slice(start, start + ROWS_PER_LABEL_CHUNK)
        texts = [path.encode(errors="surrogateescape").decode(errors="replace") for path in rows.paths[span]]
        arrays.write_rows(stored[paths.LABELS], start, rows.labels[span])
        arrays.write_rows(stored[paths.PATHS], start, np.array(texts, object))
    for name in stored:
        keys = features.chunk_keys(split, name)
        features.journal(0).append([record_of(features.folder, key) for key in keys])
    features.refresh()


def _plain(values: Ints | Sequence[int]) -> Iterator[int]:
    """Yield Python integers, converting a piece at a time to save memory."""
    for start in range(0, len(values), ROWS_PER_LABEL_CHUNK):
        yield from np.asarray(values[start : start + ROWS_PER_LABEL_CHUNK]).tolist()


def _describe(info: LayerInfo) -> str:
    return f"tap {info.tap}, pooling {info.pooling or 'mean'}, shape {info.shape}"
