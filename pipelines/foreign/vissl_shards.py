"""The shards that VISSL's extraction writes, `rank*_chunk*_{split}_{layer}_{features,targets,inds}.npy`, as arrays.

VISSL writes no list of its shards, so a folder may hold those of several runs. Its DistributedSampler repeats rows
so that all ranks have the same number; a repeated row is dropped if it is an exact copy, and refused otherwise.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featbench.pipelines.foreign.arrays import Arrays, ImportingError, are_row_numbers, plain_labels
from featbench.pipelines.foreign.containers import open_container
from featbench.store import suggest
from featbench.store.layers import check_name
from featbench.store.typing import Array

logger = logging.getLogger(__name__)

SHARD = re.compile(r"rank(\d+)_chunk(\d+)_(train|test|val)_(.+)_features\.npy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of features, with its targets and indices."""

    path: Path
    rank: int
    features: Array
    targets: Array
    indices: Array


def read_vissl(
    folder: Path,
    layers: Mapping[str, str],
    *,
    label_files: Mapping[str, Array] | None = None,
    unlabelled: bool = False,
    copy_tolerance: float = 0.0,
) -> dict[str, Arrays]:
    """Merge the shards of both splits, in the order of their indices.

    Parameters
    ----------
    folder : Path
        Folder of the shards.
    layers : mapping of str to str
        New name to VISSL's name of each layer to import; all layers if empty.
    label_files : mapping of str to ndarray, optional
        Labels by split, one for each index from 0 on, that replace the shards' targets.
    unlabelled : bool
        Ignore the targets.
    copy_tolerance : float
        How far two copies of a row may differ, relative to the row's norm. The first one is used.

    Raises
    ------
    ImportingError
        If the shards are of several runs, or their targets are not classes: several per row, or row numbers, which
        VISSL writes if it has no labels.
    """
    found = _shards_in(folder)
    both = [layer for layer in found["train"] if layer in found["val"]]
    if not both:
        raise ImportingError(
            f"{folder}: no layer with rank*_chunk*_train_<layer>_features.npy and the same of test; found "
            f"{len(found['train'])} layers of train and {len(found['val'])} of test"
        )
    wanted = layers or {layer: layer for layer in both}
    for name, layer in wanted.items():
        check_name(name, layer)
        if layer not in both:
            raise ImportingError(f"{folder}: no shards of layer {layer!r}. {suggest(layer, both)}")
    given = label_files or {}
    merged = {}
    for split, by_layer in found.items():
        use_targets = not unlabelled and split not in given
        rows, features, targets = _merged(
            split, {name: by_layer[layer] for name, layer in wanted.items()}, use_targets, copy_tolerance
        )
        if split in given:
            labels = _by_row(given[split], rows, split)
        else:
            labels = targets if use_targets else np.full(len(rows), -1, np.int64)
        merged[split] = Arrays(
            layers=features, labels=labels, paths=tuple(f"{split}/{row:07d}" for row in rows.tolist())
        )
    return merged


def _shards_in(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Paths by split and layer."""
    if not folder.is_dir():
        raise ImportingError(f"{folder}: no such folder")
    shards: dict[str, dict[str, list[Path]]] = {"train": defaultdict(list), "val": defaultdict(list)}
    names: set[str] = set()
    for path in sorted(folder.iterdir()):
        match = SHARD.fullmatch(path.name)
        if match:
            names.add(match[3])
            shards["train" if match[3] == "train" else "val"][match[4]].append(path)
    if {"test", "val"} <= names:
        raise ImportingError(f"{folder}: shards of both test and val. Move one of them to another folder")
    return shards


def _merged(
    split: str, by_layer: Mapping[str, Sequence[Path]], use_targets: bool, copy_tolerance: float
) -> tuple[Array, dict[str, Array], Array]:
    """Rows, features by layer, and targets of one split; all layers must have the same rows and targets."""
    reference: tuple[str, Array, Array] | None = None
    features: dict[str, Array] = {}
    for layer, paths in by_layer.items():
        shards = [_read(path, use_targets) for path in paths]
        _refuse_other_shapes(shards)
        rows, features[layer], targets = _in_order(shards, split, layer, copy_tolerance)
        if reference is None:
            reference = layer, rows, targets
        elif not (np.array_equal(rows, reference[1]) and np.array_equal(targets, reference[2])):
            raise ImportingError(f"{split}: the shards of {layer} and {reference[0]} differ in rows or labels")
    assert reference is not None
    _, rows, targets = reference
    if use_targets and are_row_numbers(targets, rows):
        raise ImportingError(
            f"{split}: the targets are the numbers of the rows, which VISSL writes where LABEL_SOURCES is not set, "
            f"not classes. Give the classes with --{split}-labels FILE, one for each row, or import without labels "
            f"with --unlabelled."
        )
    return rows, features, targets


def _read(path: Path, use_targets: bool) -> Shard:
    stem = path.name.removesuffix("_features.npy")
    features, targets, indices = (
        open_container(path.with_name(f"{stem}_{kind}.npy")).single() for kind in ("features", "targets", "inds")
    )
    if min(features.ndim, targets.ndim, indices.ndim) < 1 or not len(features) == len(targets) == len(indices):
        raise ImportingError(
            f"{path}: features {features.shape}, targets {targets.shape} and indices {indices.shape} have "
            f"different numbers of rows"
        )
    indices = np.asarray(indices)
    if indices.dtype.kind not in "iu" or indices.size != len(indices) or indices.min(initial=0) < 0:
        raise ImportingError(f"{path.with_name(f'{stem}_inds.npy')}: expected row numbers from 0 on, one for each row")
    where = str(path.with_name(f"{stem}_targets.npy"))
    labels = plain_labels(np.asarray(targets), where=where) if use_targets else np.full(len(targets), -1, np.int64)
    match = SHARD.fullmatch(path.name)
    assert match is not None
    return Shard(
        path=path, rank=int(match[1]), features=features, targets=labels, indices=indices.reshape(-1).astype(np.int64)
    )


def _refuse_other_shapes(shards: Sequence[Shard]) -> None:
    first = shards[0]
    for shard in shards[1:]:
        ours, theirs = (
            (each.features.shape[1:], each.features.dtype, (each.targets.dtype.kind, each.targets.shape[1:]))
            for each in (first, shard)
        )
        if ours != theirs:
            raise ImportingError(
                f"{first.path.name} and {shard.path.name}: rows of {ours[0]} {ours[1]} and of {theirs[0]} {theirs[1]}, "
                f"so they come from different runs. {_SEPARATE}"
            )


def _in_order(shards: Sequence[Shard], split: str, layer: str, copy_tolerance: float) -> tuple[Array, Array, Array]:
    """Sort the rows of all shards by index, without copies."""
    features = np.concatenate([shard.features for shard in shards])
    targets = np.concatenate([shard.targets for shard in shards])
    indices = np.concatenate([shard.indices for shard in shards])
    shard_of = np.repeat(np.arange(len(shards)), [len(shard.indices) for shard in shards])
    order = np.argsort(indices, kind="stable")
    is_first = np.concatenate([[True], np.diff(indices[order]) > 0]) if len(order) else np.zeros(0, bool)
    rows, first = indices[order][is_first], order[is_first]
    if not len(rows):
        raise ImportingError(f"{split} {layer}: the shards hold no rows")
    copies = order[~is_first]
    originals = first[np.searchsorted(rows, indices[copies])]
    for copy, original in zip(copies.tolist(), originals.tolist(), strict=True):
        files = [shards[shard_of[each]].path.name for each in (original, copy)]
        where = f"{split} {layer}: row {indices[copy]} is in {files[0]} and in {files[1]}"
        if not np.array_equal(targets[copy], targets[original]):
            raise ImportingError(
                f"{where}, with the targets {targets[original]} and {targets[copy]}, so these are shards of different "
                f"runs (an earlier one with more ranks?). {_SEPARATE}"
            )
        apart = _distance(features[copy], features[original])
        if not apart <= copy_tolerance:
            raise ImportingError(
                f"{where}, with different features: {apart:.2g} of their length apart. If these are shards of "
                f"different runs (an earlier one with more ranks?): {_SEPARATE} If one run computed the image twice, "
                f"with different rounding, allow it with --copy-tolerance 1e-5; the first one is used."
            )
    if len(copies):
        text = "%s %s: dropped %d %s of rows, which the sampler added as padding"
        logger.info(text, split, layer, len(copies), "copies" if copy_tolerance else "exact copies")
    _warn_of_gaps(shards, rows, split, layer)
    return rows, features[first], targets[first]


def _distance(copy: Array, original: Array) -> float:
    """Euclidean distance of two rows, relative to the length of the second; 0 only if they are equal in every bit."""
    if copy.tobytes() == original.tobytes():
        return 0.0
    distance, length = (
        float(np.linalg.norm(np.ravel(each).astype(np.float64)))
        for each in (copy.astype(np.float64) - original, original)
    )
    return max(distance / length, float(np.finfo(np.float64).tiny)) if length else np.inf


def _warn_of_gaps(shards: Sequence[Shard], rows: Array, split: str, layer: str) -> None:
    if len(rows) != rows[-1] + 1:
        text = "%s %s: %d of %d rows are missing from the shards"
        logger.warning(text, split, layer, rows[-1] + 1 - len(rows), rows[-1] + 1)
    counts: dict[int, int] = defaultdict(int)
    for shard in shards:
        counts[shard.rank] += len(shard.indices)
    if max(counts.values()) - min(counts.values()) > 1:
        listed = ", ".join(f"rank {rank}: {count}" for rank, count in sorted(counts.items())[:8])
        text = "%s %s: VISSL gives each rank the same number of rows, the shards hold %s; is it one complete run?"
        logger.warning(text, split, layer, listed)


def _by_row(labels: Array, rows: Array, split: str) -> Array:
    """Select the labels of the rows in the shards from labels for all row numbers."""
    plain = plain_labels(labels, where=f"--{split}-labels")
    if rows[-1] >= len(plain):
        raise ImportingError(
            f"--{split}-labels: {len(plain)} labels, but the shards have row {rows[-1]}; there must be one for each "
            f"row number from 0 on"
        )
    return np.asarray(plain[rows])


_SEPARATE = "Move the shards of other runs to another folder, and import again."
