"""`featbench.extract`: features of a live model, into a store or into memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from featbench._arrays import labels_of
from featbench._errors import naming_arguments
from featbench._features import Features, MemoryFeatures, StoredFeatures
from featbench.extract.errors import DatasetError, ModelError
from featbench.extract.live import LiveModel, TensorSource, checked_batch, extract_live, tapped
from featbench.pipelines.config.pipeline import NAME_PATTERN
from featbench.pipelines.foreign.arrays import numbered
from featbench.store import LayerSpec, SplitRows
from featbench.store.layers import layers_of, split_layers
from featbench.store.typing import Array

Data = Dataset[Any] | DataLoader[Any] | Iterable[Any]


@naming_arguments
def extract(
    model: nn.Module,
    data: Mapping[str, Data],
    *,
    layers: str | Sequence[str],
    store: str | os.PathLike[str] | None = None,
    name: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Features:
    """Compute layers of a model in memory for every image of train and val.

    The model is run in eval mode on the device where it is, and is left in the mode that it was in.

    Parameters
    ----------
    model : nn.Module
        Takes images (B, C, H, W).
    data : mapping with the keys train and val
        Datasets of (image, label), images being tensors (C, H, W) of one size; or loaders. Of a loader with a dataset,
        the dataset is read in its own order and to its end, whatever the loader shuffles or drops. Without a store,
        any iterable of batches (images, labels) will do. Images must not be augmented at random.
    layers : str or sequence of str
        Taps, as `bench layers` names them: paths of modules such as `layer3.1`, VISSL's names such as `res4`, `flatten`
        for what goes into the classifier, `output`; with a pooling, `res4:AvgPool2d(8,3,0)`.
    store : str or path, optional
        Folder of feature sets to write into; by default features stay in memory.
    name : str, optional
        Of the feature set, with `store`.
    batch_size, num_workers : int
        Of the loading and the forward passes; a loader's own number of workers counts.
    dtype : {"float32", "float16"}
        As features are stored.
    overwrite : bool
        Replace a feature set of that name.

    Returns
    -------
    Features
        Opened, to be read and given to `knn` and `kmeans`.

    Raises
    ------
    BenchError
        If a tap does not exist, features depend on chance, or items are not images with labels; with a store, if the
        feature set of that name is of another model or other images.

    Notes
    -----
    In a store, each chunk counts as soon as it is on disk. The same call with the same model and data computes what is
    missing, so it goes on after an interruption, and adds layers that were not there. The same model is one with the
    same parameters, buffers and structure that gives the same features for two fixed images; the same data has the same
    labels, and the same images in those rows that are compared.
    """
    _check(model, batch_size, num_workers, dtype)
    if set(data) != {"train", "val"}:
        raise DatasetError(f"data must have the keys train and val; got {', '.join(map(str, data)) or 'none'}")
    specs = layers_of(split_layers(layers) if isinstance(layers, str) else layers)
    if not specs:
        raise DatasetError("layers must name at least one tap, such as 'flatten'")
    try:
        if store is None:
            return _into_memory(model, data, specs, batch_size, num_workers)
        path = Path(store).expanduser() / _checked_name(name)
        return _into_store(model, data, specs, path, batch_size, num_workers, dtype=dtype, overwrite=overwrite)
    except ModelError as error:
        raise ModelError(re.sub(r"`bench layers [^`]*`", "`model.named_modules()`", str(error))) from None


def _check(model: object, batch_size: int, num_workers: int, dtype: str) -> None:
    """Refuse settings that can't be, before anything is computed or written."""
    if not isinstance(model, nn.Module):
        raise DatasetError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for setting, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if not isinstance(value, int) or value < least:
            raise DatasetError(f"{setting} must be an integer from {least} on; got {value!r}")
    if dtype not in ("float32", "float16"):
        raise DatasetError(f"dtype must be float32 or float16, as features are stored; got {dtype!r}")


def _into_store(
    model: nn.Module,
    data: Mapping[str, Data],
    layers: Sequence[LayerSpec],
    path: Path,
    batch_size: int,
    num_workers: int,
    **settings: Any,
) -> Features:
    sources = {split: TensorSource(data[split], split=split, num_workers=num_workers) for split in ("train", "val")}
    image = {split: source.image() for split, source in sources.items()}["train"]
    rows = {split: _rows(source, batch_size) for split, source in sources.items()}
    with tapped(model, layers, image) as live:
        return StoredFeatures(extract_live(live, sources, rows, path, batch_size=batch_size, **settings))


def _into_memory(
    model: nn.Module, data: Mapping[str, Data], layers: Sequence[LayerSpec], batch_size: int, num_workers: int
) -> Features:
    batches = {split: _batches(each, split, batch_size, num_workers) for split, each in data.items()}
    first = next(iter(batches["val"]), None)
    if first is None:
        raise DatasetError("val: no images")
    image = checked_batch(first, split="val")[0][0]
    with tapped(model, layers, image) as live:
        train, train_labels = _run(live, batches["train"], "train")
        val, val_labels = _run(live, batches["val"], "val")
    return MemoryFeatures(train, train_labels, val, val_labels, name=type(model).__name__)


def _batches(data: Any, split: str, batch_size: int, num_workers: int) -> Iterable[Any]:
    """Batches of a dataset in its own order, or of an iterable of batches, which must be there a second time."""
    has_rows = (
        isinstance(data, DataLoader) and hasattr(data.dataset, "__len__") and hasattr(data.dataset, "__getitem__")
    )
    if not has_rows and not (isinstance(data, Dataset) and hasattr(data, "__len__")):
        return list(data) if iter(data) is data else data
    return _DatasetBatches(TensorSource(data, split=split, num_workers=num_workers), batch_size)


class _DatasetBatches:
    """Batches of a dataset, any number of times."""

    def __init__(self, source: TensorSource, batch_size: int) -> None:
        self._source, self._batch_size = source, batch_size

    def __iter__(self) -> Any:
        num_rows, step = len(self._source), self._batch_size
        return self._source.batches(range(at, min(at + step, num_rows)) for at in range(0, num_rows, step))


def _run(model: LiveModel, batches: Iterable[Any], split: str) -> tuple[dict[str, Array], Any]:
    """Features and labels of all batches."""
    outputs: dict[str, list[Array]] = {name: [] for name in model.layers}
    labels: list[Any] = []
    for batch in batches:
        images, of_batch = checked_batch(batch, split=split)
        for name, values in model(images).items():
            outputs[name].append(values)
        labels += of_batch.tolist() if isinstance(of_batch, Tensor) else list(of_batch)
    if not labels:
        raise DatasetError(f"{split}: no images")
    return {name: np.concatenate(each) for name, each in outputs.items()}, labels


def _rows(source: TensorSource, batch_size: int) -> SplitRows:
    numbers, names = numbered(labels_of(source.labels(batch_size), split=source.split))
    said = source.class_names
    if said is not None and all(name.isdigit() and int(name) < len(said) for name in names):
        names = tuple(said[int(name)] for name in names)
    paths = [f"{source.split}/{row:07d}" for row in range(len(numbers))]
    return SplitRows(labels=numbers, paths=paths, class_names=names)


def _checked_name(name: str | None) -> str:
    if name is None or not re.fullmatch(NAME_PATTERN, name):
        raise DatasetError(
            f"name must be letters, digits, '_', '.' and '-', not starting with '.', for features in a store; "
            f"got {name!r}"
        )
    return name
