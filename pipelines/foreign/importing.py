"""Import features that were computed elsewhere.

`featbench.pipelines.foreign.import_files` and `featbench.pipelines.foreign.vissl_shards` read them; this module checks
and stores them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from featbench.pipelines.config.pipeline import NAME_PATTERN
from featbench.pipelines.foreign.arrays import Arrays, ImportingError, are_row_numbers, plain_labels, split_rows
from featbench.pipelines.foreign.rounding import blocks_of, rounding_of
from featbench.store import ChunkWriter, FeatureSet, LayerInfo, Manifest, make_ready, open_or_create
from featbench.store.layers import check_name
from featbench.store.layout import rows_per_chunk_for
from featbench.store.typing import Array

__all__ = ["Arrays", "ImportingError", "import_features"]

logger = logging.getLogger(__name__)


def import_features(
    splits: Mapping[str, Arrays], *, store: Path, name: str, dtype: str = "float32", overwrite: bool = False
) -> FeatureSet:
    """Make a feature set from arrays, or add their layers to an existing one with the same rows.

    Parameters
    ----------
    splits : mapping of str to Arrays
        `train` and `val`, or one of them.
    store, name
        Where to create it.
    dtype : {"float32", "float16"}
        Stored type.
    overwrite : bool
        Replace a feature set of that name.

    Raises
    ------
    BenchError
        If lengths differ, a value is not finite or too large to be stored, labels are not classes, or a feature set
        of that name has other rows or other features.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ImportingError(f"--name must be letters, digits, '_', '.' and '-', not starting with '.'; got {name!r}")
    splits = _checked(splits, dtype)
    rows = {
        split: split_rows(split, arrays.labels, arrays.paths, arrays.class_names) for split, arrays in splits.items()
    }
    _refuse_one_and_several(splits)
    layers = {
        layer: LayerInfo(
            tap="imported:" + ",".join(_digest(arrays.layers[layer])[:12] for arrays in splits.values()),
            pooling=None,
            shape=values.shape[1:],
        )
        for layer, values in next(iter(splits.values())).layers.items()
    }
    dim = max(info.dim for info in layers.values())
    manifest = Manifest(
        made_from={"imported": True},
        dtype=dtype,
        compression="none",
        rows_per_chunk=rows_per_chunk_for(
            num_rows=max(len(split.labels) for split in rows.values()), batch_size=1, bytes_per_row=4 * dim
        ),
        splits={split: each.info() for split, each in rows.items()},
        notes={"weights": "imported features"},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _warn(splits, layers)
    path = store / name
    if path.exists() and not overwrite:
        existing = FeatureSet.open(path)
        manifest = dataclasses.replace(manifest, rows_per_chunk=existing.manifest.rows_per_chunk)
    features = open_or_create(path, manifest, rows, overwrite=overwrite)
    with features.lock():
        make_ready(features, rows, layers)
        writer = ChunkWriter(features)
        for work in features.pending(list(layers)):
            chunk = features.grid(work.split).rows(work.chunk)
            values = {layer: np.asarray(splits[work.split].layers[layer][chunk.start : chunk.stop]) for layer in layers}
            writer.write(work, values, np.ones(len(chunk), np.bool_))
    return FeatureSet.open(path)


def _checked(splits: Mapping[str, Arrays], dtype: str) -> dict[str, Arrays]:
    """Check everything before anything is written; returns the splits with plain labels."""
    checked = {}
    first, train = next((split, arrays.layers) for split, arrays in splits.items())
    for split, arrays in splits.items():
        labels = plain_labels(arrays.labels, where=split)
        for layer, values in arrays.layers.items():
            _check_features(split, layer, values, num_labels=len(labels))
            if values.shape[1:] != train[layer].shape[1:]:
                raise ImportingError(
                    f"layer {layer}: rows have shape {train[layer].shape[1:]} in {first}, {values.shape[1:]} in {split}"
                )
            _check_finite(split, layer, values)
            _check_rounding(split, layer, values, dtype)
        checked[split] = dataclasses.replace(arrays, labels=labels)
    return checked


def _refuse_one_and_several(splits: Mapping[str, Arrays]) -> None:
    kinds = {split: arrays.labels.ndim == 2 for split, arrays in splits.items()}
    if len(set(kinds.values())) > 1:
        several = next(split for split, has_several in kinds.items() if has_several)
        raise ImportingError(
            f"rows of {several} have any number of classes, rows of the other split one each: give labels of one kind"
        )


def _check_features(split: str, layer: str, values: Array, *, num_labels: int) -> None:
    check_name(layer)
    if values.dtype.kind != "f" or values.ndim < 2:
        raise ImportingError(f"{split}: features of {layer} must be floats (N, ...); got {values.dtype} {values.shape}")
    if len(values) != num_labels:
        raise ImportingError(f"{split}: {len(values)} rows of features and {num_labels} labels")
    if not len(values):
        raise ImportingError(f"{split}: no rows")
    if not values.size:
        raise ImportingError(f"{split}: features of {layer} have shape {values.shape}: rows are empty")


def _check_finite(split: str, layer: str, values: Array) -> None:
    bad: list[int] = []
    for start, rows in blocks_of(values):
        bad += (start + np.flatnonzero(~np.isfinite(rows).all(axis=1))).tolist()
    if bad:
        named = ", ".join(map(str, bad[:3])) + (", ..." if len(bad) > 3 else "")
        raise ImportingError(
            f"{split}: layer {layer!r} has NaN or infinite values in {len(bad):,} rows: row {named}. Remove these rows "
            f"from features and labels, or compute them again."
        )


def _check_rounding(split: str, layer: str, values: Array, dtype: str) -> None:
    """Refuse values that overflow the stored type, and warn of what rounding loses."""
    lost = rounding_of(values, dtype)
    if lost is None:
        return
    if lost.num_overflows:
        raise ImportingError(
            f"{split}: layer {layer!r} has values beyond {dtype}'s largest, {np.finfo(dtype).max:.3g}, in "
            f"{lost.num_overflows:,} rows: first in row {lost.first_overflow}. Scale the features of both splits by "
            f"the same number" + (", or use --dtype float32." if dtype == "float16" else ".")
        )
    if text := lost.describe():
        logger.warning(
            "%s: layer %s is %s and is stored as %s: %s. Rows that differ only in these digits become equal. "
            "If they matter, subtract the mean of train from both splits before importing (Euclidean distances stay "
            "the same, cosines change), or scale both%s.",
            split, layer, values.dtype, dtype, text, ", or use --dtype float32" if dtype == "float16" else "",
        )  # fmt: skip


def _warn(splits: Mapping[str, Arrays], layers: Mapping[str, LayerInfo]) -> None:
    for split, arrays in splits.items():
        if arrays.labels.ndim == 2:
            continue
        if are_row_numbers(arrays.labels):
            logger.warning("%s: the labels are the row numbers, so every row is its own class", split)
        num_none = int((arrays.labels == (-1 if arrays.labels.dtype.kind == "i" else "")).sum())
        if num_none:
            logger.info("%s: rows without a label: %d of %d", split, num_none, len(arrays.labels))
    for layer, info in layers.items():
        if len(splits) > 1 and len(set(info.tap.removeprefix("imported:").split(","))) == 1:
            logger.warning(
                "layer %s: train and val hold the same features, so the nearest neighbour of every query is itself; "
                "evaluate with --leave-one-out, or import the right file as val", layer,
            )  # fmt: skip


def _digest(values: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()
