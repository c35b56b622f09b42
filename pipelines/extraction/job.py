"""What a pipeline means, checked before anything is computed: sources, transform, model, weights, feature set."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featbench.extract.data.pictures import ImageSource
from featbench.extract.data.same_images import note_missing_digests, refuse_other_images
from featbench.extract.data.sources import open_sources
from featbench.extract.errors import ImageError, ModelError, WeightsError
from featbench.extract.model.code import digests, watching_code
from featbench.extract.model.repeatability import (
    TOLERANCE,
    Summary,
    check_repeatable,
    distance,
    features_alone,
    fixed_images,
    summaries,
)
from featbench.extract.model.seeding import build_random
from featbench.extract.model.tap_names import INPUT, aliases_of, body_of
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import NEEDS_TRANSFORM_INPUT, build_trunk, check_name, code_of
from featbench.extract.transform import Transform
from featbench.extract.weights.loading import LoadedWeights, load_weights
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.transforming import choose_transform
from featbench.store import (
    BenchError,
    FeatureSet,
    LayerInfo,
    LayerSpec,
    Manifest,
    MismatchError,
    SplitRows,
    make_ready,
    open_or_create,
)
from featbench.store.layout import rows_per_chunk_for
from featbench.store.paths import LISTINGS
from featbench.store.status import forget_statuses
from featbench.store.typing import Json


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
    def flatten(self) -> str:
        """What `flatten` is, in words; "" if it is not asked for."""
        _, prefix = body_of(self.trunk)
        place = next((aliases_of(self.trunk)[info.tap] for info in self.layers.values() if info.tap == "flatten"), None)
        if place is None:
            return ""
        if place == prefix.rstrip("."):
            return "flatten is the model's output"
        verb = "goes into" if place.endswith(INPUT) else "comes out of"
        return f"flatten is what {verb} {place.removesuffix(INPUT)}"

    @property
    def rows(self) -> dict[str, SplitRows]:
        """Labels and paths of both splits."""
        return {split: source.rows for split, source in self.sources.items()}

    def tapped(self, device: torch.device, layers: Sequence[str]) -> TappedTrunk:
        """Return the trunk on a device, in the memory format that runs fastest, tapped at some of the layers."""
        trunk = TappedTrunk(
            self.trunk.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            name=self.pipeline.model.trunk,
            layers=[spec for spec in self.pipeline.layers if spec.name in layers],
        )
        trunk.probe(self.image.to(device))
        return trunk


@dataclass(slots=True, kw_only=True)
class Prepared(Checked):
    """All that a rank needs, checked; the feature set exists."""

    features: FeatureSet
    compared: Json
    """What the layers of the feature set gave for fixed images, as last compared with the model."""

    def refuse_another_model(self) -> None:
        """Compare again, under the lock, if the feature set is not the one that was compared.

        Raises
        ------
        MismatchError
            If another run has made its features with a model that gives others.
        """
        probes = probes_of(self.features.manifest)
        if probes != self.compared:
            faults = moved_layers(self, self.features.manifest)
            if faults:
                raise MismatchError(f"{self.features.path}: {NOT_THE_SAME}:\n  " + "\n  ".join(faults) + f"\n{WAYS_ON}")
            self.compared = probes

    def make_ready(self) -> None:
        """Make the feature set ready for writing; under the lock, alone."""
        self.refuse_another_model()
        make_ready(self.features, self.rows, self.layers, probes=self.manifest.notes["probe"])
        refuse_other_images(self.features, self.sources)
        if self.missing():
            note_missing_digests(self.features)
        forget_statuses(self.features.journals)

    def missing(self) -> tuple[str, ...]:
        """Layers of which some chunk is pending."""
        pending = self.features.pending(list(self.layers))
        return tuple(name for name in self.layers if any(name in work.layers for work in pending))


def prepare(pipeline: Pipeline, *, overwrite: bool = False) -> Prepared:
    """Check all that can be checked before any chunk is computed, and create the feature set.

    Raises
    ------
    MismatchError
        If there is a feature set of that name made with other settings, or with a model that gives other features.
    """
    checked = check(pipeline, overwrite=overwrite)
    path = pipeline.store / pipeline.name
    features = open_or_create(path, checked.manifest, checked.rows, overwrite=overwrite, digests=True)
    known = {each.name: getattr(checked, each.name) for each in fields(checked)}
    prepared = Prepared(**known, features=features, compared={})
    prepared.refuse_another_model()
    return prepared


def check(pipeline: Pipeline, *, overwrite: bool = False) -> Checked:
    """Check all that can be checked before anything is written: the model first, since listing images may take long."""
    settings = pipeline.extract
    transform, transform_from = choose_transform(pipeline)
    options = model_options(pipeline)
    choose_device(settings.device)
    check_name(pipeline.model.trunk)
    _check_file(pipeline)
    _check_rows_per_chunk(pipeline)
    size = transform.output_size
    sources = sources_of(pipeline) if size is None else None
    image = torch.zeros(1, 3, *size) if size is not None else _blank_image(sources or {}, transform)
    build = build_trunk if pipeline.weights.random_seed is None else build_random
    with watching_code() as ran:
        trunk = build(
            pipeline.model.trunk,
            options,
            heads=pipeline.model.heads,
            seed=pipeline.weights.random_seed or 0,
            image_size=(image.shape[2], image.shape[3]),
        )
        taps = TappedTrunk(trunk, name=pipeline.model.trunk, layers=pipeline.layers)
        layers = taps.probe(image)
        filled = load_weights(taps, image, pipeline.weights, options=options)
        probe = _probe(taps, transform, check=True)
        model = _model(pipeline, options, trunk, ran)
    sources = sources or sources_of(pipeline)
    chunk_rows = _rows_per_chunk(pipeline, sources, layers, overwrite=overwrite)
    manifest = _manifest(pipeline, sources, transform, model, chunk_rows, filled, transform_from, probe)
    return Checked(
        pipeline=pipeline,
        sources=sources,
        transform=transform,
        trunk=trunk,
        image=image,
        layers=layers,
        manifest=manifest,
    )


NOT_THE_SAME = "its features are not what the model gives now"

WAYS_ON = (
    "The settings are the same, so the code of the model, a version of a library, or weights that the code loads by "
    "itself must have changed. Nothing was changed here. Go back to what it was made with (`bench info` shows the "
    "versions), choose another --name, or replace it with --overwrite."
)


def moved_layers(checked: Checked, manifest: Manifest) -> list[str]:
    """Say which layers of a feature set with the same settings are not what the model gives now, and by how much."""
    kept = probes_of(manifest)
    mine: dict[str, Summary] = dict(checked.manifest.notes["probe"])
    asked = {spec.name: spec for spec in checked.pipeline.layers}
    faults = []
    others: list[LayerSpec] = []
    for name in kept:
        info = manifest.layers[name]
        spec = LayerSpec.of(f"{name}={info.tap}" + (f":{info.pooling}" if info.pooling else ""))
        if name not in asked:
            others.append(spec)
        elif asked[name] != spec:
            mine.pop(name, None)  # refused as another layer under that name
    if others:
        try:
            taps = TappedTrunk(checked.trunk, name=checked.pipeline.model.trunk, layers=others)
            taps.probe(checked.image)
        except ModelError as error:
            return [str(error)]
        mine |= _probe(taps, checked.transform, check=False)
    for name, probe in kept.items():
        apart = distance(probe, mine[name]) if name in mine else 0.0
        if apart > TOLERANCE:
            faults.append(
                f"layer {name}: for a fixed image it differs by {apart:.2g} of its norm; {TOLERANCE:g} may come from "
                f"another processor or number of threads"
            )
    return faults


def probes_of(manifest: Manifest) -> dict[str, Summary]:
    """What the layers of a feature set gave for fixed images, as far as it is known."""
    return {name: probe for name, probe in manifest.notes.get("probe", {}).items() if name in manifest.layers}


def _probe(taps: TappedTrunk, transform: Transform, *, check: bool) -> dict[str, Summary]:
    """Run the fixed images, at the size that the trunk sees; with `check`, refuse what is not repeatable."""
    height, width = taps.image_size
    images = transform.scale(fixed_images(height, width), torch.device("cpu"))
    features = check_repeatable(taps, images) if check else features_alone(taps, images)
    return summaries(features, (height, width))


def _check_file(pipeline: Pipeline) -> None:
    """Whether the weights are there: read later, since the model has to be built first."""
    file = pipeline.weights.file
    if file is not None and not file.exists():
        raise WeightsError(f"{file}: no such file, given as weights")


def sources_of(pipeline: Pipeline) -> dict[str, ImageSource]:
    """List both splits; long listings are kept in the store's folder."""
    return open_sources(**pipeline.data.model_dump(exclude={"name"}), kept=pipeline.store / LISTINGS)


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


def _model(pipeline: Pipeline, options: dict[str, Any], trunk: nn.Module, ran: Iterable[Path]) -> dict[str, Any]:
    """What identifies the model: with the heads, and the digests of the user's code, where there is any."""
    model: dict[str, Any] = {"trunk": pipeline.model.trunk, "options": options}
    if pipeline.model.heads:
        model["heads"] = [list(head) for head in pipeline.model.heads]
    code = code_of(pipeline.model.trunk)
    if code is not None:
        model["code_sha256"] = hashlib.sha256(code.read_bytes()).hexdigest()
        beside = digests(code, trunk, ran)
        if beside:
            model["code"] = beside
    return model


def _manifest(
    pipeline: Pipeline,
    sources: dict[str, ImageSource],
    transform: Transform,
    model: dict[str, Any],
    rows_per_chunk: int,
    filled: LoadedWeights,
    transform_from: str,
    probe: dict[str, Summary],
) -> Manifest:
    return Manifest(
        made_from={
            "model": model,
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
            "probe": probe,
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
    if asked is not None:
        return asked
    if path.exists() and not overwrite:
        return FeatureSet.open(path).manifest.rows_per_chunk
    return rows_per_chunk_for(
        num_rows=max(len(source.rows.labels) for source in sources.values()),
        batch_size=batch_size,
        bytes_per_row=max(info.dim for info in layers.values()) * np.dtype(pipeline.storage.dtype).itemsize,
    )


def _check_rows_per_chunk(pipeline: Pipeline) -> None:
    asked, batch_size = pipeline.storage.rows_per_chunk, pipeline.extract.batch_size
    if asked is not None and asked % batch_size:
        raise BenchError(
            f"storage.rows_per_chunk must be a multiple of extract.batch_size, so that a chunk is always cut into the "
            f"same batches; got {asked} and {batch_size}"
        )


def _blank_image(sources: dict[str, ImageSource], transform: Transform) -> torch.Tensor:
    """An image of the size that the first readable one of val has after the transform, shape (1, 3, H, W)."""
    source = sources["val"]
    for row in range(len(source.rows.labels)):
        try:
            return torch.zeros(1, *transform.pixels(source.open(row)).shape)
        except ImageError:
            continue
    raise ImageError("none of the images of the val split can be read")
