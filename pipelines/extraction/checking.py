"""A pipeline, checked before anything is written: images, transform, model, weights, layers, manifest."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from featbench.extract.data.pictures import ImageSource
from featbench.extract.errors import ImageError, WeightsError
from featbench.extract.model.tap_names import INPUT, aliases_of, body_of
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import check_name
from featbench.extract.transform import Transform
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.batch_size import with_batch_size
from featbench.pipelines.extraction.building import BuiltModel, build_model, model_options
from featbench.pipelines.extraction.devices import choose_device, refuse_precision
from featbench.pipelines.extraction.sources import sources_of
from featbench.pipelines.extraction.transforming import choose_transform
from featbench.store import BenchError, FeatureSet, LayerInfo, LayerSpec, Manifest, SplitRows
from featbench.store.layout import rows_per_chunk_for


@dataclass(slots=True, kw_only=True)
class CheckedPipeline:
    """What a pipeline means; nothing is written yet."""

    pipeline: Pipeline
    sources: dict[str, ImageSource]
    transform: Transform
    trunk: nn.Module | None
    """With its weights; None once `release_model` was called."""

    image: torch.Tensor
    """A blank image, of the size that the trunk gets."""

    layers: dict[str, LayerInfo]
    manifest: Manifest
    flatten: str
    """In words, where the layer `flatten` is tapped; "" if it is not extracted."""

    @property
    def weights(self) -> str:
        """In words, which weights were loaded."""
        return str(self.manifest.notes["weights"])

    @property
    def rows(self) -> dict[str, SplitRows]:
        """Labels and paths of both splits."""
        return {split: source.rows for split, source in self.sources.items()}

    @property
    def model(self) -> nn.Module:
        """The trunk, which must not have been released."""
        assert self.trunk is not None, "the model was released"
        return self.trunk

    def release_model(self) -> None:
        """Free the model's memory, before ranks start that load their own."""
        self.trunk = None

    def tapped(self, device: torch.device, layers: Sequence[LayerSpec]) -> TappedTrunk:
        """Return the trunk on a device, in the memory format that runs fastest, tapped at layers."""
        trunk = TappedTrunk(
            self.model.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            name=self.pipeline.model.trunk,
            layers=layers,
        )
        trunk.probe(self.image.to(device))
        return trunk


def check(pipeline: Pipeline, *, overwrite: bool = False) -> CheckedPipeline:
    """Check everything that can be checked before anything is written: the model first, since listing may take long."""
    settings = pipeline.extract
    transform, transform_from = choose_transform(pipeline)
    options = model_options(pipeline)
    device = choose_device(settings.device)
    if settings.slurm is None:  # otherwise it runs elsewhere
        refuse_precision(device, settings.precision)
    check_name(pipeline.model.trunk)
    _check_file(pipeline)
    _check_rows_per_chunk(pipeline)
    size = transform.output_size
    sources = sources_of(pipeline) if size is None else None
    image = torch.zeros(1, 3, *size) if size is not None else _blank_image(sources or {}, transform)
    built = build_model(pipeline, options, transform, image)
    pipeline = with_batch_size(pipeline, built.taps, transform, device, overwrite=overwrite)
    sources = sources or sources_of(pipeline)
    chunk_rows = _rows_per_chunk(pipeline, sources, built.layers, overwrite=overwrite)
    manifest = _manifest(pipeline, sources, transform, built, chunk_rows, transform_from)
    return CheckedPipeline(
        pipeline=pipeline,
        sources=sources,
        transform=transform,
        trunk=built.taps.trunk,
        image=image,
        layers=built.layers,
        manifest=manifest,
        flatten=_flatten_in_words(built.taps.trunk, built.layers),
    )


def _flatten_in_words(trunk: nn.Module, layers: dict[str, LayerInfo]) -> str:
    """Say where the layer `flatten` is tapped; "" if it is not extracted."""
    tap = next((aliases_of(trunk)[info.tap] for info in layers.values() if info.tap == "flatten"), None)
    if tap is None:
        return ""
    _, prefix = body_of(trunk)
    if tap == prefix.rstrip("."):
        return "flatten is the model's output"
    verb = "goes into" if tap.endswith(INPUT) else "comes out of"
    return f"flatten is what {verb} {tap.removesuffix(INPUT)}"


def _check_file(pipeline: Pipeline) -> None:
    """Refuse a missing file now; it is read later, since the model has to be built first."""
    file = pipeline.weights.file
    if file is not None and not file.exists():
        raise WeightsError(f"{file}: no such file, given as weights")


def _check_rows_per_chunk(pipeline: Pipeline) -> None:
    given, batch_size = pipeline.storage.rows_per_chunk, pipeline.extract.batch_size
    if given is not None and batch_size != "auto" and given % batch_size:
        raise BenchError(
            f"storage.rows_per_chunk must be a multiple of extract.batch_size, so that a chunk is always cut into the "
            f"same batches; got {given} and {batch_size}"
        )


def _blank_image(sources: dict[str, ImageSource], transform: Transform) -> torch.Tensor:
    """A blank image of shape (1, 3, H, W), sized as the first readable image of val is after the transform."""
    source = sources["val"]
    for row in range(len(source.rows.labels)):
        try:
            return torch.zeros(1, *transform.pixels(source.open(row)).shape)
        except ImageError:
            continue
    raise ImageError("none of the images of the val split can be read")


def _manifest(
    pipeline: Pipeline,
    sources: dict[str, ImageSource],
    transform: Transform,
    built: BuiltModel,
    rows_per_chunk: int,
    transform_from: str,
) -> Manifest:
    return Manifest(
        made_from={
            "model": built.identity,
            "weights": built.weights.identity,
            "transform": transform.describe(),
            "extract": {"precision": pipeline.extract.precision, "batch_size": pipeline.extract.images_per_batch},
            **_of_data(pipeline),
        },
        dtype=pipeline.storage.dtype,
        compression=pipeline.storage.compression,
        rows_per_chunk=rows_per_chunk,
        splits={split: source.rows.info() for split, source in sources.items()},
        software={
            "python": platform.python_version(),
            **{package: version(package) for package in _packages(pipeline)},
        },
        notes={
            "weights": built.weights.text,
            **({"weights_load": built.weights.load} if built.weights.load else {}),
            **({"transform": transform_from} if transform_from else {}),
            "pipeline": pipeline.model_dump(mode="json"),
            "probe": built.probe,
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _packages(pipeline: Pipeline) -> list[str]:
    """Packages whose versions may matter to the features or the store."""
    decoder = [pipeline.data.decoder] if pipeline.data.decoder == "simplejpeg" else []
    return ["featbench", "torch", "torchvision", "pillow", "zarr", *decoder]


def _of_data(pipeline: Pipeline) -> dict[str, Any]:
    """The subset of the data set, if it is not all of it, and the decoder, if it is not Pillow."""
    data = pipeline.data
    facts: dict[str, Any] = {} if data.decoder == "pillow" else {"decoder": data.decoder}
    if data.limit is not None or data.per_class is not None:
        facts |= {"limit": data.limit, "per_class": data.per_class, "seed": data.seed}
    return {"data": facts} if facts else {}


def _rows_per_chunk(
    pipeline: Pipeline, sources: dict[str, ImageSource], layers: dict[str, LayerInfo], *, overwrite: bool
) -> int:
    """Rows of a chunk: as given, as in the existing feature set, or as suits the layers."""
    given, batch_size = pipeline.storage.rows_per_chunk, pipeline.extract.images_per_batch
    path = pipeline.store / pipeline.name
    if given is not None:
        return given
    if path.exists() and not overwrite:
        return FeatureSet.open(path).manifest.rows_per_chunk
    return rows_per_chunk_for(
        num_rows=max(len(source.rows.labels) for source in sources.values()),
        batch_size=batch_size,
        bytes_per_row=max(info.dim for info in layers.values()) * np.dtype(pipeline.storage.dtype).itemsize,
    )
