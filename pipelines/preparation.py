"""What a pipeline means, checked before anything is computed: sources, transform, model, weights, feature set."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from extract.data.images import ImageError
from extract.data.pictures import ImageSource
from extract.data.same_images import note_missing_digests, refuse_other_images
from extract.data.sources import open_sources
from extract.model.seeding import build_random
from extract.model.tap_names import ModelError
from extract.model.taps import TappedTrunk
from extract.model.trunks import NEEDS_TRANSFORM_INPUT, build_trunk, code_of
from extract.transform import Transform
from extract.weights.filling import Filled, fill
from pipelines.pipeline import Pipeline
from pipelines.transforming import choose_transform
from store import (
    BenchError,
    FeatureSet,
    LayerInfo,
    Manifest,
    SplitRows,
    make_ready,
    open_or_create,
)
from store.layout import rows_per_chunk_for
from store.status import forget_statuses

KEPT_LISTINGS = ".listings"
"""Folder beside the feature sets of a store."""


@dataclass(slots=True, kw_only=True)
class Checked:
    """All that an extraction needs, checked; nothing is written yet."""

    pipeline: Pipeline
    sources: dict[str, ImageSource]
    transform: Transform
    trunk: nn.Module
    image: torch.Tensor
    """A blank one, of the size that the trunk will see."""

    layers: dict[str, LayerInfo]
    manifest: Manifest

    @property
    def weights(self) -> str:
        """What the weights are, in words."""
        return str(self.manifest.notes["weights"])

    @property
    def rows(self) -> dict[str, SplitRows]:
        """Labels and paths of both splits."""
        return {split: source.rows for split, source in self.sources.items()}

    def tapped(self, device: torch.device, layers: Sequence[str]) -> TappedTrunk:
        """Return the trunk on a device, in the memory format that runs fastest, tapped at some of the layers."""
        trunk = TappedTrunk(
            self.trunk.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            name=self.pipeline.model.trunk,
            layers=[spec for spec in self.pipeline.layer_specs if spec.name in layers],
        )
        trunk.probe(self.image.to(device))
        return trunk


@dataclass(slots=True, kw_only=True)
class Prepared(Checked):
    """All that a rank needs, checked; the feature set exists."""

    features: FeatureSet

    def make_ready(self) -> None:
        """Make the feature set ready for writing; under the lock, alone."""
        make_ready(self.features, self.rows, self.layers)
        refuse_other_images(self.features, self.sources)
        if self.missing():
            note_missing_digests(self.features)
        forget_statuses(self.features.journals)

    def missing(self) -> tuple[str, ...]:
        """Layers of which some chunk is pending."""
        pending = self.features.pending(list(self.layers))
        return tuple(name for name in self.layers if any(name in work.layers for work in pending))


def prepare(pipeline: Pipeline, *, overwrite: bool = False) -> Prepared:
    """Check all that can be checked before any chunk is computed, and create the feature set."""
    checked = check(pipeline, overwrite=overwrite)
    features = open_or_create(
        pipeline.store / pipeline.name, checked.manifest, checked.rows, overwrite=overwrite, digests=True
    )
    return Prepared(**{each.name: getattr(checked, each.name) for each in fields(checked)}, features=features)


def check(pipeline: Pipeline, *, overwrite: bool = False) -> Checked:
    """Check all that can be checked before anything is written."""
    settings = pipeline.extract
    sources = sources_of(pipeline)
    transform, transform_from = choose_transform(pipeline)
    options = model_options(pipeline)
    choose_device(settings.device)
    image = _blank_image(sources, transform)
    build = build_trunk if pipeline.weights.random_seed is None else build_random
    trunk = build(
        pipeline.model.trunk,
        options,
        heads=pipeline.model.heads,
        seed=pipeline.weights.random_seed or 0,
        image_size=(image.shape[2], image.shape[3]),
    )
    taps = TappedTrunk(trunk, name=pipeline.model.trunk, layers=pipeline.layer_specs)
    layers = taps.probe(image)
    filled = fill(taps, image, pipeline.weights, options=options)
    chunk_rows = _rows_per_chunk(pipeline, sources, layers, overwrite=overwrite)
    manifest = _manifest(pipeline, sources, transform, options, chunk_rows, filled, transform_from)
    return Checked(
        pipeline=pipeline,
        sources=sources,
        transform=transform,
        trunk=trunk,
        image=image,
        layers=layers,
        manifest=manifest,
    )


def sources_of(pipeline: Pipeline) -> dict[str, ImageSource]:
    """List both splits; long listings are kept in the store's folder."""
    return open_sources(**pipeline.data.model_dump(exclude={"name"}), kept=pipeline.store / KEPT_LISTINGS)


def model_options(pipeline: Pipeline) -> dict[str, Any]:
    """Options of the trunk's constructor, with those that its weights imply."""
    options = dict(pipeline.model.options)
    if pipeline.weights.torchvision is not None and pipeline.model.trunk in NEEDS_TRANSFORM_INPUT:
        options.setdefault("transform_input", True)
    return options


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that a setting means; `auto` and `cuda` are the GPU of this rank, `auto` else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda", "mps"):
            raise ModelError(f"device {name!r} can't be used: it must be cpu, cuda or mps. Try --device cpu")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {name!r} can't be used: {str(error).splitlines()[0]}. Try --device cpu") from error
    return device


def _model(pipeline: Pipeline, options: dict[str, Any]) -> dict[str, Any]:
    """What identifies the model: with the heads, and the digest of code of one's own, where there are any."""
    model: dict[str, Any] = {"trunk": pipeline.model.trunk, "options": options}
    if pipeline.model.heads:
        model["heads"] = [list(head) for head in pipeline.model.heads]
    code = code_of(pipeline.model.trunk)
    if code is not None:
        model["code_sha256"] = hashlib.sha256(code.read_bytes()).hexdigest()
    return model


def _manifest(
    pipeline: Pipeline,
    sources: dict[str, ImageSource],
    transform: Transform,
    options: dict[str, Any],
    rows_per_chunk: int,
    filled: Filled,
    transform_from: str,
) -> Manifest:
    return Manifest(
        made_from={
            "model": _model(pipeline, options),
            "weights": filled.identity,
            "transform": transform.describe(),
            "extract": {"precision": pipeline.extract.precision, "batch_size": pipeline.extract.batch_size},
            **_subset(pipeline),
        },
        dtype=pipeline.storage.dtype,
        compression=pipeline.storage.compression,
        rows_per_chunk=rows_per_chunk,
        splits={split: source.rows.info() for split, source in sources.items()},
        software={
            "python": platform.python_version(),
            **{package: version(package) for package in ("featbench", "torch", "torchvision", "pillow", "zarr")},
        },
        notes={
            "weights": filled.text,
            **({"weights_load": filled.load} if filled.load else {}),
            **({"transform": transform_from} if transform_from else {}),
            "pipeline": pipeline.model_dump(mode="json"),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _subset(pipeline: Pipeline) -> dict[str, Any]:
    """Which part of the data set is taken; nothing if it is all."""
    data = pipeline.data
    if data.limit is None and data.per_class is None:
        return {}
    return {"data": {"limit": data.limit, "per_class": data.per_class, "seed": data.seed}}


def _rows_per_chunk(
    pipeline: Pipeline, sources: dict[str, ImageSource], layers: dict[str, LayerInfo], *, overwrite: bool
) -> int:
    """Rows of a chunk: as asked for, as the feature set has it, or as suits the layers."""
    asked, batch_size = pipeline.storage.rows_per_chunk, pipeline.extract.batch_size
    path = pipeline.store / pipeline.name
    if asked is not None and asked % batch_size:
        raise BenchError(
            f"storage.rows_per_chunk must be a multiple of extract.batch_size, so that a chunk is always cut into the "
            f"same batches; got {asked} and {batch_size}"
        )
    if asked is not None:
        return asked
    if path.exists() and not overwrite:
        return FeatureSet.open(path).manifest.rows_per_chunk
    return rows_per_chunk_for(
        num_rows=max(len(source.rows.labels) for source in sources.values()),
        batch_size=batch_size,
        bytes_per_row=max(info.dim for info in layers.values()) * np.dtype(pipeline.storage.dtype).itemsize,
    )


def _blank_image(sources: dict[str, ImageSource], transform: Transform) -> torch.Tensor:
    """An image of the size that the trunk will see, shape (1, 3, H, W)."""
    if transform.crop is not None:
        size = (transform.crop, transform.crop) if isinstance(transform.crop, int) else transform.crop
        return torch.zeros(1, 3, *size)
    source = sources["val"]
    for row in range(len(source.rows.labels)):
        try:
            return torch.zeros(1, *transform.pixels(source.open(row)).shape)
        except ImageError:
            continue
    raise ImageError("none of the images of the val split can be read")
