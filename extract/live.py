"""Features of a model in memory, from datasets that return tensors: no checkpoint, no image files.

The model runs as it is, in eval mode, on its device. Its feature set is identified by a digest of its parameters and
buffers, its structure, and its features of two fixed images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from featbench.extract.data.pictures import digest_of_bytes
from featbench.extract.errors import DatasetError
from featbench.extract.model.repeatability import (
    TOLERANCE,
    Summary,
    check_repeatable,
    distance,
    fixed_images,
    summaries,
)
from featbench.extract.model.taps import TappedTrunk
from featbench.store import (
    ChunkWriter,
    FeatureSet,
    LayerInfo,
    LayerSpec,
    Manifest,
    MismatchError,
    SplitRows,
    Work,
    make_ready,
    open_or_create,
)
from featbench.store.layout import rows_per_chunk_for
from featbench.store.typing import Array, Floats, UInt64s


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveModel:
    """A tapped model, with what identifies it."""

    trunk: TappedTrunk
    device: torch.device
    layers: Mapping[str, LayerInfo]
    probe: Mapping[str, Summary]
    identity: Mapping[str, Any]
    """Class, structure, and digest of all parameters and buffers."""

    def __call__(self, images: Tensor) -> dict[str, Floats]:
        """Compute the layers of a batch."""
        layers = self.trunk(images.to(self.device))
        return {name: values.float().cpu().numpy() for name, values in layers.items()}


@contextmanager
def tapped(model: nn.Module, layers: Sequence[LayerSpec], image: Tensor) -> Iterator[LiveModel]:
    """Tap a model, in eval mode within the context, and make sure that its features are repeatable.

    Parameters
    ----------
    model : nn.Module
        Wrappers (DataParallel, DistributedDataParallel, `torch.compile`) are removed.
    layers : sequence of LayerSpec
        Layers to compute.
    image : Tensor of shape (C, H, W)
        An input of the model.

    Raises
    ------
    ModelError
        If a tap does not exist, or features are random or depend on the batch.
    """
    model = _unwrapped(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        device = next((each.device for each in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        trunk = TappedTrunk(model, name=_name(model), layers=layers)
        infos = trunk.probe(torch.zeros_like(image)[None].to(device))
        height, width = image.shape[1:]
        chosen = [channel % 3 for channel in range(len(image))]
        images = (fixed_images(height, width)[:, chosen] / 255).to(device, image.dtype)
        probe = summaries(check_repeatable(trunk, images), (height, width))
        yield LiveModel(trunk=trunk, device=device, layers=infos, probe=probe, identity=_identity(model))
    finally:
        for module, is_training in modes.items():
            module.training = is_training


class TensorSource:
    """A dataset of (image, label) pairs, or that of a loader, whose order and batches are ignored.

    Parameters
    ----------
    data : Dataset or DataLoader
        Images are tensors (C, H, W), all of one size.
    split : str
        For messages.
    """

    def __init__(self, data: Any, *, split: str, num_workers: int = 0) -> None:
        is_loader = isinstance(data, DataLoader)
        self.dataset: Any = data.dataset if is_loader else data
        self.split = split
        self._collate: Callable[[list[Any]], Any] | None = data.collate_fn if is_loader else None
        self._num_workers = data.num_workers if is_loader else num_workers
        has_rows = hasattr(self.dataset, "__getitem__") and hasattr(self.dataset, "__len__")
        if not has_rows or isinstance(self.dataset, IterableDataset):
            raise DatasetError(
                f"{split}: {type(self.dataset).__name__} can't be indexed by row, so nothing can be stored; give "
                f"a dataset with __len__ and __getitem__, or extract with store=None"
            )
        if not len(self.dataset):
            raise DatasetError(f"{split}: the dataset is empty")

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self) -> Tensor:
        """Return the first image; refuses a dataset that returns another image each time."""
        first, again = (next(self.batches([[0]]))[0][0] for _ in range(2))
        if first.shape != again.shape or not torch.equal(first, again):
            raise DatasetError(
                f"{self.split}: row 0 of the dataset is another image each time it is read. Features must be of fixed "
                f"images: give a dataset without random augmentation"
            )
        return first

    def batches(self, rows: Iterable[Sequence[int]]) -> Iterator[tuple[Tensor, Any]]:
        """Yield images (B, C, H, W) and labels of each group of rows."""
        loader: DataLoader[Any] = DataLoader(
            self.dataset, batch_sampler=list(map(list, rows)), num_workers=self._num_workers, collate_fn=self._collate
        )
        return (checked_batch(batch, split=self.split) for batch in loader)

    def labels(self, batch_size: int) -> Array:
        """Labels of all rows: those that the dataset lists, or else from a pass over it."""
        listed = _listed_labels(self.dataset)
        if listed is not None and len(listed) == len(self):
            return listed
        groups = [range(at, min(at + batch_size, len(self))) for at in range(0, len(self), batch_size)]
        return np.concatenate([np.asarray(labels) for _, labels in self.batches(groups)])

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes that labels index, if the dataset has them."""
        dataset = self.dataset
        while isinstance(dataset, torch.utils.data.Subset):
            dataset = dataset.dataset
        names = getattr(dataset, "classes", None)
        return [str(name) for name in names] if isinstance(names, list | tuple) else None


def checked_batch(batch: Any, *, split: str) -> tuple[Tensor, Any]:
    """Return images and labels of a batch.

    Raises
    ------
    DatasetError
        If it is not a pair of images (B, C, H, W) and labels.
    """
    if not isinstance(batch, Sequence) or len(batch) < 2 or not isinstance(batch[0], Tensor) or batch[0].ndim != 4:
        got = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in batch][:3]
        raise DatasetError(
            f"{split}: each item must be a pair of an image, a tensor of shape (C, H, W), and a label; a batch of them "
            f"is {got}. Add a transform such as torchvision.transforms.ToTensor"
        )
    return batch[0], batch[1]


def extract_live(
    model: LiveModel,
    sources: Mapping[str, TensorSource],
    rows: Mapping[str, SplitRows],
    path: Path,
    *,
    batch_size: int,
    dtype: str = "float32",
    overwrite: bool = False,
) -> FeatureSet:
    """Write the missing chunks of a model's layers; if it is interrupted, the same call continues.

    Parameters
    ----------
    model : LiveModel
        As `tapped` gives it.
    sources, rows
        Images and labels, by split.
    path : Path
        The feature set's folder.
    batch_size : int
        Images in a forward pass.
    dtype : {"float32", "float16"}
        Type of the stored features.
    overwrite : bool
        Replace an existing feature set.

    Raises
    ------
    MismatchError
        If the existing feature set is of another model, other labels, or other images.
    """
    dim = max(info.dim for info in model.layers.values())
    chunk_rows = rows_per_chunk_for(
        num_rows=max(map(len, sources.values())), batch_size=batch_size, bytes_per_row=4 * dim
    )
    if path.exists() and not overwrite:
        chunk_rows = FeatureSet.open(path).manifest.rows_per_chunk
    manifest = Manifest(
        made_from={
            "model": {"trunk": model.identity["class"], "structure_sha256": model.identity["structure"]},
            "weights": {"state_sha256": model.identity["state"]},
            "extract": {"precision": "float32", "batch_size": batch_size},
        },
        dtype=dtype,
        compression="none",
        rows_per_chunk=chunk_rows,
        splits={split: each.info() for split, each in rows.items()},
        software={package: version(package) for package in ("torch", "zarr")},
        notes={"weights": f"in memory, {model.identity['state'][:12]}", "probe": dict(model.probe)},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    features = open_or_create(path, manifest, rows, overwrite=overwrite, digests=True)
    _refuse_another_code(model, features)
    with features.lock():
        make_ready(features, rows, model.layers, probes=model.probe)
        _refuse_other_images(features, sources, batch_size)
        writer = ChunkWriter(features)
        pending = features.pending(list(model.layers))
        for split, source in sources.items():
            works = [work for work in pending if work.split == split]
            for work, layers, digests in _computed(model, source, features, works, batch_size):
                writer.write(work, layers, np.ones(len(digests), np.bool_), digests)
    return FeatureSet.open(path)


def _computed(
    model: LiveModel, source: TensorSource, features: FeatureSet, works: Sequence[Work], batch_size: int
) -> Iterator[tuple[Work, dict[str, Array], UInt64s]]:
    """Yield the layers of each chunk, with the digests of its images."""
    chunks = [features.grid(work.split).rows(work.chunk) for work in works]
    cut = [[range(rows.start, rows.stop) for rows in chunk.batches(batch_size)] for chunk in chunks]
    loaded = source.batches([rows for batches in cut for rows in batches])
    for work, batches in zip(works, cut, strict=True):
        outputs: dict[str, list[Array]] = {name: [] for name in work.layers}
        digests: list[int] = []
        for _ in batches:
            images, _ = next(loaded)
            computed = model(images)
            for name in work.layers:
                outputs[name].append(computed[name])
            digests += _digests(images)
        yield work, {name: np.concatenate(each) for name, each in outputs.items()}, np.array(digests, np.uint64)


def _refuse_another_code(model: LiveModel, features: FeatureSet) -> None:
    """Compare features of fixed images with those of the earlier run: detects changed code with equal weights."""
    known = features.manifest.notes.get("probe", {})
    for name, probe in model.probe.items():
        if name in known and name in features.manifest.layers and distance(known[name], probe) > TOLERANCE:
            raise MismatchError(
                f"{features.path}: the model has the same parameters, but gives other features for layer {name}, so "
                f"its code has changed. Choose another name, or replace the feature set with overwrite=True."
            )


def _refuse_other_images(features: FeatureSet, sources: Mapping[str, TensorSource], batch_size: int) -> None:
    """Compare the digests of evenly spaced images of each split with the stored ones."""
    for split, source in sources.items():
        stored = features.written_digests(split)
        written = np.flatnonzero(stored)
        chosen = written[np.unique(np.linspace(0, len(written) - 1, num=min(16, len(written))).astype(int))].tolist()
        for images, _ in source.batches([chosen]) if chosen else ():
            changed = [row for row, digest in zip(chosen, _digests(images), strict=True) if digest != stored[row]]
            if changed:
                raise MismatchError(
                    f"{features.path}: {split} has other images than its features were made from: row "
                    f"{', '.join(map(str, changed[:3]))}. Choose another name, or replace the feature set with "
                    f"overwrite=True."
                )


def _digests(images: Tensor) -> list[int]:
    return [digest_of_bytes(image.contiguous().numpy().tobytes()) for image in images.cpu()]


def _identity(model: nn.Module) -> dict[str, str]:
    kind = type(model)
    structure, state = hashlib.sha256(), hashlib.sha256()
    for path, module in model.named_modules():
        structure.update(f"{path}\t{type(module).__qualname__}\t{module.extra_repr()}\n".encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        state.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "structure": structure.hexdigest(),
        "state": state.hexdigest(),
    }


def _unwrapped(model: nn.Module) -> nn.Module:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        inner: Any = model.module if isinstance(model, wrappers) else model._orig_mod
        model = inner
    return model


def _name(model: nn.Module) -> str:
    """Name of the model for taps: its family, if known, which decides the channel axis of its maps."""
    package, _, module = type(model).__module__.rpartition(".")
    if package == "torchvision.models":
        return module
    return f"timm:{module}" if package.startswith("timm.models") else f"model:{type(model).__name__}"


def _listed_labels(dataset: Any) -> Array | None:
    """Labels that a dataset lists: `targets` or `labels`, the last tensor, or the labels of a subset's rows."""
    if isinstance(dataset, torch.utils.data.Subset):
        of_all = _listed_labels(dataset.dataset)
        return None if of_all is None else of_all[np.asarray(dataset.indices, np.int64)]
    if isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1].cpu().numpy()
    for name in ("targets", "labels"):
        listed = getattr(dataset, name, None)
        if isinstance(listed, list | tuple | np.ndarray | Tensor):
            array = np.asarray(listed)
            return array if array.ndim == 1 else None
    return None
