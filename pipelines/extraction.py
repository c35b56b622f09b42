"""Stage one from a pipeline: sources, trunk, weights and feature set are put together and run."""

from __future__ import annotations

import logging
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from extract.config import TransformConfig
from extract.extraction import Extracted, extract_chunks
from extract.images import ImageError
from extract.loading import default_workers
from extract.sources import ImageSource, open_sources
from extract.taps import TappedTrunk
from extract.transform import Transform
from extract.trunks import NEEDS_TRANSFORM_INPUT, ModelError, build_trunk
from extract.weights import (
    WeightsError,
    download,
    load_strictly,
    poison,
    read_state_dict,
    sha256_of_file,
    sha256_of_tensors,
    torchvision_weights,
)
from pipelines.pipeline import Pipeline
from pipelines.progress import Progress
from store import BenchError, FeatureSet, LayerInfo, Manifest, Work, add_layers, open_or_create
from store.layout import rows_per_chunk_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionReport:
    """What an extraction did."""

    features: FeatureSet
    layers: dict[str, LayerInfo]
    """Those that were asked for."""

    new: tuple[str, ...]
    """Those of which something was computed; empty if all was there."""

    extracted: Extracted
    seconds: float
    weights: str


def extract(pipeline: Pipeline, *, overwrite: bool = False, progress: Progress) -> ExtractionReport:
    """Extract what is missing of a pipeline's layers.

    Raises
    ------
    BenchError
        If anything is wrong that the user can mend; what was committed before is safe.
    """
    start = time.perf_counter()
    settings = pipeline.extract
    data = pipeline.data
    sources: dict[str, ImageSource] = open_sources(
        source=data.source,
        root=data.root,
        dataset=data.dataset,
        train_split=data.train_split,
        val_split=data.val_split,
        on_class_fault=data.on_class_fault,
    )
    transform = choose_transform(pipeline)
    options = model_options(pipeline)
    trunk = build_trunk(pipeline.model.trunk, options, seed=pipeline.weights.random_seed or 0)
    taps = TappedTrunk(trunk, name=pipeline.model.trunk, layers=pipeline.layer_specs)
    image = _blank_image(sources, transform)
    layers = taps.probe(image)
    weights, notes = _fill(trunk, taps, image, pipeline)
    device = _device(settings.device)
    if device.type == "cuda" and settings.precision == "float32":
        torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions, with 10 bits of mantissa
        torch.backends.cuda.matmul.allow_tf32 = False
    chunk_rows = _rows_per_chunk(pipeline, sources, layers, overwrite=overwrite)
    manifest = _manifest(pipeline, sources, transform, options, chunk_rows, weights, notes)
    path = pipeline.store / pipeline.name
    features = open_or_create(
        path, manifest, {split: source.rows for split, source in sources.items()}, overwrite=overwrite
    )
    with features.lock():
        features.sweep()
        add_layers(features, layers)
        work = features.pending(list(layers))
        missing = tuple(name for name in layers if any(name in item.layers for item in work))
        extracted = Extracted()
        if work:
            wanted = [spec for spec in pipeline.layer_specs if spec.name in missing]
            taps = TappedTrunk(
                trunk.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
                name=pipeline.model.trunk,
                layers=wanted,
            )
            taps.probe(image.to(device))
            with progress.task("extract", _rows(features, work)) as on_rows:
                extracted = extract_chunks(
                    features,
                    work,
                    trunk=taps,
                    sources=sources,
                    transform=transform,
                    batch_size=settings.batch_size,
                    device=device,
                    precision=settings.precision,
                    workers=default_workers(sources) if settings.workers is None else settings.workers,
                    on_error=data.on_error,
                    image_size=(image.shape[2], image.shape[3]),
                    on_rows=on_rows,
                )
    return ExtractionReport(
        features=FeatureSet.open(path),
        layers=layers,
        new=missing,
        extracted=extracted,
        seconds=time.perf_counter() - start,
        weights=str(notes["weights"]),
    )


def choose_transform(pipeline: Pipeline) -> Transform:
    """What the pipeline says of the transform; the rest from torchvision's weights, or as is usual for ImageNet."""
    chosen = (pipeline.transform or TransformConfig()).model_dump()
    if pipeline.weights.torchvision is not None:
        preset = torchvision_weights(pipeline.model.trunk, pipeline.weights.torchvision).transforms()
        of_the_weights = {
            "resize": preset.resize_size[0],
            "crop": preset.crop_size[0],
            "interpolation": preset.interpolation.value,
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
        }
        said = pipeline.transform.model_fields_set if pipeline.transform else set()
        chosen |= {name: value for name, value in of_the_weights.items() if name not in said}
    return Transform(**chosen)


def model_options(pipeline: Pipeline) -> dict[str, Any]:
    """Options of the trunk's constructor, with those that its weights imply."""
    options = dict(pipeline.model.options)
    if pipeline.weights.torchvision is not None and pipeline.model.trunk in NEEDS_TRANSFORM_INPUT:
        options.setdefault("transform_input", True)
    return options


def _fill(
    trunk: nn.Module, taps: TappedTrunk, image: torch.Tensor, pipeline: Pipeline
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the trunk its weights; returns what identifies them and what is worth knowing of the load."""
    config = pipeline.weights
    if config.random_seed is not None:
        digest = sha256_of_tensors(trunk.state_dict())
        text = f"random (seed {config.random_seed})"
        return {"source": "random", "seed": config.random_seed, "sha256": digest}, {"weights": text}
    if config.file is not None:
        state = read_state_dict(config.file, key=config.key, remove_prefix=config.remove_prefix)
        digest = sha256_of_file(config.file)
        where = str(config.file)
        identity = {"source": "file", "sha256": digest, "key": config.key, "remove_prefix": config.remove_prefix}
        text = f"{config.file.name} (sha256 {digest[:12]})"
    elif config.torchvision is not None:
        named = torchvision_weights(pipeline.model.trunk, config.torchvision)
        state = download(named)
        where = text = str(named)
        identity = {"source": "torchvision", "name": str(named), "sha256": sha256_of_tensors(state)}
    else:
        raise WeightsError(
            "no weights: give --weights FILE (a .pth, .pt or .safetensors state dict), the name of torchvision's own "
            "(--weights DEFAULT), or ask for untrained ones with --random-weights SEED"
        )
    poison(trunk)
    report = load_strictly(trunk, state, used=taps.modules_used(image), where=where)
    logger.info("%s: %s", where, report)
    return identity, {
        "weights": text,
        "weights_load": {
            "loaded": report.loaded,
            "missing": list(report.missing),
            "reshaped": list(report.reshaped),
            "unexpected": list(report.unexpected),
        },
    }


def _manifest(
    pipeline: Pipeline,
    sources: dict[str, ImageSource],
    transform: Transform,
    options: dict[str, Any],
    rows_per_chunk: int,
    weights: dict[str, Any],
    notes: dict[str, Any],
) -> Manifest:
    return Manifest(
        made_from={
            "model": {"trunk": pipeline.model.trunk, "options": options},
            "weights": weights,
            "transform": transform.describe(),
            "extract": {"precision": pipeline.extract.precision, "batch_size": pipeline.extract.batch_size},
        },
        dtype=pipeline.storage.dtype,
        compression=pipeline.storage.compression,
        rows_per_chunk=rows_per_chunk,
        splits={split: source.rows.info() for split, source in sources.items()},
        software={
            "python": platform.python_version(),
            **{package: version(package) for package in ("featbench", "torch", "torchvision", "pillow", "zarr")},
        },
        notes=notes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


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


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda", "mps"):
            raise ModelError(f"device {name!r} can't be used: it must be cpu, cuda or mps. Try --device cpu")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {name!r} can't be used: {str(error).splitlines()[0]}. Try --device cpu") from error
    return device


def _rows(features: FeatureSet, work: list[Work]) -> int:
    return sum(len(features.grid(item.split).rows(item.chunk)) for item in work)
