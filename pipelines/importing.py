"""Features computed elsewhere become a feature set: .npz, .npy, VISSL's folders, DINO's .pth files."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.pipeline import NAME_PATTERN
from store import (
    BenchError,
    ChunkWriter,
    FeatureSet,
    LayerInfo,
    Manifest,
    SplitRows,
    make_ready,
    nearest,
    open_or_create,
)
from store.layout import rows_per_chunk_for

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]


class ImportingError(BenchError):
    """Arrays that can't be taken for features and labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """One split from elsewhere."""

    layers: Mapping[str, Array]
    """Features by layer, each of shape (N, ...)."""

    labels: Array
    """Shape (N,); integers or names of classes."""

    paths: tuple[str, ...] | None = None


def import_features(
    splits: Mapping[str, Arrays], *, store: Path, name: str, dtype: str = "float32", overwrite: bool = False
) -> FeatureSet:
    """Make a feature set of arrays, or add their layers to the one that has the same rows.

    Parameters
    ----------
    splits : mapping of str to Arrays
        `train` and `val`.
    store, name
        Where to put it.
    dtype : {"float32", "float16"}
        As they are stored.
    overwrite : bool
        Replace a feature set of that name.

    Raises
    ------
    BenchError
        If lengths disagree, a value is not finite, or a feature set of that name has other rows or other features.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ImportingError(f"--name must be letters, digits, '_', '.' and '-', not starting with '.'; got {name!r}")
    _check(splits)
    rows = _rows(splits)
    layers = {
        layer: LayerInfo(
            tap="imported:" + ",".join(_digest(arrays.layers[layer])[:12] for arrays in splits.values()),
            pooling=None,
            shape=values.shape[1:],
        )
        for layer, values in splits["train"].layers.items()
    }
    dim = max(info.dim for info in layers.values())
    manifest = Manifest(
        made_from={"imported": True},
        dtype=dtype,
        compression="none",
        rows_per_chunk=rows_per_chunk_for(
            num_rows=max(len(split.labels) for split in rows.values()), batch_size=1, bytes_per_row=4 * dim
        ),
        splits={split: part.info() for split, part in rows.items()},
        notes={"weights": "imported features"},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
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


def read_npz(path: Path, *, layer: str, features_key: str = "features", labels_key: str = "labels") -> Arrays:
    """Read one split from an .npz file."""
    content = _load(path)
    if isinstance(content, np.ndarray):
        raise ImportingError(f"{path}: a single array; give its labels too, with --train-labels and --val-labels")
    for key in (features_key, labels_key):
        if key not in content:
            option = "--features-key" if key == features_key else "--labels-key"
            raise ImportingError(f"{path}: no array {key!r}. {nearest(key, list(content))} Choose with {option}.")
    paths = tuple(str(value) for value in content["paths"]) if "paths" in content else None
    return Arrays(layers={layer: content[features_key]}, labels=content[labels_key], paths=paths)


def read_npy(path: Path, labels: Path, *, layer: str) -> Arrays:
    """Read one split from a pair of .npy files."""
    return Arrays(layers={layer: _single(path)}, labels=_single(labels))


def read_vissl(folder: Path, layers: list[str]) -> dict[str, Arrays]:
    """Read the shards that VISSL's extraction leaves, `rank*_chunk*_{split}_{layer}_{features,targets,inds}.npy`.

    Rows come in the order of their indices. VISSL's sampler repeats rows to give every rank as many:
    each index is taken once.

    Parameters
    ----------
    folder : Path
        Where they lie.
    layers : list of str
        Those wanted; all that are found if empty.
    """
    pattern = re.compile(r"rank\d+_chunk\d+_(train|test|val)_(.+)_features\.npy")
    shards: dict[str, dict[str, list[Path]]] = {"train": defaultdict(list), "val": defaultdict(list)}
    names: set[str] = set()
    for path in sorted(_files(folder)):
        match = pattern.fullmatch(path.name)
        if match:
            names.add(match[1])
            shards["train" if match[1] == "train" else "val"][match[2]].append(path)
    if {"test", "val"} <= names:
        raise ImportingError(f"{folder}: shards of both test and val; put those of one of them elsewhere")
    found = [layer for layer in shards["train"] if layer in shards["val"]]
    if not found:
        raise ImportingError(
            f"{folder}: no layer with rank*_chunk*_train_<layer>_features.npy and the same of test; found "
            f"{len(shards['train'])} layers of train and {len(shards['val'])} of test"
        )
    for layer in layers:
        if layer not in found:
            raise ImportingError(f"{folder}: no shards of layer {layer!r}. {nearest(layer, found)}")
    return {split: _merged(split, by_layer, layers or found) for split, by_layer in shards.items()}


def read_dino(folder: Path, *, layer: str) -> dict[str, Arrays]:
    """Read what DINO's eval_knn.py dumps: trainfeat.pth, testfeat.pth, trainlabels.pth, testlabels.pth."""
    import torch

    def load(name: str) -> Array:
        path = folder / name
        if not path.is_file():
            raise ImportingError(
                f"{path}: no such file; DINO's --dump_features writes trainfeat, testfeat and their labels"
            )
        try:
            tensor = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged files
            raise ImportingError(f"{path}: cannot be read as a tensor ({type(error).__name__}: {error})") from error
        if not isinstance(tensor, torch.Tensor):
            raise ImportingError(f"{path}: holds a {type(tensor).__name__}, not a tensor")
        return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()

    return {
        split: Arrays(layers={layer: load(f"{part}feat.pth")}, labels=load(f"{part}labels.pth"))
        for split, part in (("train", "train"), ("val", "test"))
    }


def _merged(split: str, by_layer: Mapping[str, list[Path]], layers: list[str]) -> Arrays:
    merged: dict[str, Array] = {}
    reference: tuple[Array, Array] | None = None
    for layer in layers:
        parts = []
        for path in by_layer[layer]:
            stem = path.name.removesuffix("_features.npy")
            one = [_single(path.with_name(f"{stem}_{kind}.npy")) for kind in ("features", "targets", "inds")]
            if not len(one[0]) == len(one[1]) == len(one[2]):
                raise ImportingError(f"{path}: {len(one[0])} features, {len(one[1])} targets and {len(one[2])} indices")
            parts.append(one)
        features, targets, indices = (np.concatenate([part[kind] for part in parts]) for kind in range(3))
        rows, first = np.unique(indices.reshape(-1), return_index=True)
        repeated = len(indices) - len(rows)
        if repeated:
            logger.info("%s %s: %d rows that the sampler repeated are left out", split, layer, repeated)
        if len(rows) != rows[-1] + 1:
            logger.warning(
                "%s %s: %d of %d rows are not among the shards", split, layer, rows[-1] + 1 - len(rows), rows[-1] + 1
            )
        labels = targets.reshape(len(targets), -1)[first, 0]
        if reference is not None and not (np.array_equal(rows, reference[0]) and np.array_equal(labels, reference[1])):
            raise ImportingError(f"{split}: the shards of {layer} hold other rows or labels than those of {layers[0]}")
        reference = (rows, labels)
        merged[layer] = features[first]
    assert reference is not None
    return Arrays(
        layers=merged, labels=reference[1], paths=tuple(f"{split}/{row:07d}" for row in reference[0].tolist())
    )


def _check(splits: Mapping[str, Arrays]) -> None:
    for split, arrays in splits.items():
        labels = arrays.labels
        if labels.ndim != 1 or labels.dtype.kind not in "iuUS":
            raise ImportingError(
                f"{split}: labels must be one integer or name for each row; got {labels.dtype} {labels.shape}"
            )
        for layer, values in arrays.layers.items():
            if values.dtype.kind != "f" or values.ndim < 2:
                raise ImportingError(
                    f"{split}: features of {layer} must be floats (N, ...); got {values.dtype} {values.shape}"
                )
            if len(values) != len(labels):
                raise ImportingError(f"{split}: {len(values)} rows of features and {len(labels)} labels")
            if not len(values):
                raise ImportingError(f"{split}: no rows")
        other = splits["train"].layers
        for layer, values in arrays.layers.items():
            if values.shape[1:] != other[layer].shape[1:]:
                raise ImportingError(
                    f"layer {layer}: a row has shape {other[layer].shape[1:]} in train, {values.shape[1:]} in {split}"
                )


def _rows(splits: Mapping[str, Arrays]) -> dict[str, SplitRows]:
    rows = {}
    for split, arrays in splits.items():
        if arrays.labels.dtype.kind in "iu" and arrays.labels.min() < -1:
            raise ImportingError(f"{split}: labels must be -1 (none) or a class from 0 on; got {arrays.labels.min()}")
        if arrays.paths is not None and len(arrays.paths) != len(arrays.labels):
            raise ImportingError(f"{split}: {len(arrays.paths)} paths and {len(arrays.labels)} labels")
        values, labels = np.unique(arrays.labels, return_inverse=True)
        if values.dtype.kind in "iu" and values[0] == -1:
            values, labels = values[1:], labels - 1
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        rows[split] = SplitRows(
            labels=labels.astype(np.int64),
            paths=arrays.paths or tuple(f"{split}/{row:07d}" for row in range(len(labels))),
            class_names=tuple(str(value) for value in values),
        )
    return rows


def _load(path: Path) -> Any:
    try:
        content = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        return content if isinstance(content, np.ndarray) else {key: content[key] for key in content.files}
    except OSError as error:
        raise ImportingError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise ImportingError(f"{path}: not a plain .npy or .npz file ({type(error).__name__}: {error})") from error


def _single(path: Path) -> Array:
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise ImportingError(f"{path}: holds several arrays, not one")
    return array


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ImportingError(f"{folder}: no such folder")
    return [path for path in folder.iterdir() if path.is_file()]


def _digest(values: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
