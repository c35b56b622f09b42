"""Stage one from a pipeline: sources, trunk, weights and feature set are put together and run."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import socket
import time
from contextlib import nullcontext
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from extract.config import TransformConfig
from extract.extraction import extract_chunks
from extract.filling import Filled, fill
from extract.images import ImageError
from extract.loading import default_workers
from extract.sources import ImageSource, open_sources
from extract.tap_names import ModelError
from extract.taps import TappedTrunk
from extract.transform import Transform
from extract.trunks import NEEDS_TRANSFORM_INPUT, build_trunk, code_of
from extract.weights import torchvision_weights
from pipelines.pipeline import Pipeline
from pipelines.ranks import Rank, alone, from_environment
from pipelines.stopping import Stopped, Stopping, until_signalled
from pipelines.watch import watching
from store import (
    BenchError,
    ChunkWriter,
    FeatureSet,
    LayerInfo,
    Manifest,
    RankStatus,
    SplitRows,
    Work,
    WorkQueue,
    make_ready,
    open_or_create,
)
from store.layout import rows_per_chunk_for
from store.status import Reporter, forget_statuses

logger = logging.getLogger(__name__)

KEPT_LISTINGS = ".listings"
"""Folder beside the feature sets of a store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionReport:
    """What an extraction did, all ranks together."""

    features: FeatureSet
    layers: dict[str, LayerInfo]
    """Those that were asked for."""

    new: tuple[str, ...]
    """Those of which something was computed; empty if all was there."""

    rows: int
    """Of the splits, that were computed."""

    bytes: int
    unreadable: int
    """Images that were left out, of those."""

    seconds: float
    weights: str


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


@dataclass(slots=True, kw_only=True)
class Prepared(Checked):
    """All that a rank needs, checked; the feature set exists."""

    features: FeatureSet

    def make_ready(self) -> None:
        """Make the feature set ready for writing; under the lock, alone."""
        make_ready(self.features, self.rows, self.layers)
        forget_statuses(self.features.journals)

    def missing(self) -> tuple[str, ...]:
        """Layers of which some chunk is pending."""
        pending = self.features.pending(list(self.layers))
        return tuple(name for name in self.layers if any(name in work.layers for work in pending))


def extract(pipeline: Pipeline, *, overwrite: bool = False, quiet: bool = False) -> ExtractionReport:
    """Extract what is missing of a pipeline's layers: in this process, or in ranks that it starts.

    Raises
    ------
    BenchError
        If anything is wrong that the user can mend; what was committed before is safe.
    Stopped
        If a signal ended it before everything was done.
    """
    start = time.perf_counter()
    rank = from_environment()
    if rank is not None and overwrite:
        raise BenchError(
            "--overwrite can't be used in ranks that torchrun or srun start, since each would replace what the others "
            f"write. Remove {pipeline.store / pipeline.name} first, or take another --name"
        )
    prepared = prepare(pipeline, overwrite=overwrite)
    before = prepared.features
    known, pending = set(before.records), before.pending(list(prepared.layers))
    if rank is None and pipeline.extract.slurm:
        from pipelines.slurm import submit

        new = submit(prepared, quiet=quiet)
    elif rank is None and pipeline.extract.num_ranks > 1:
        from pipelines.launch import launch

        new = launch(prepared, quiet=quiet)
    else:
        new = extract_as(rank or alone(), prepared, quiet=quiet)
    after = FeatureSet.open(before.path)
    done = [work for work in pending if after.pending_in(work.split, work.chunk, work.layers) is None]
    return ExtractionReport(
        features=after,
        layers=prepared.layers,
        new=new,
        rows=sum(len(after.grid(work.split).rows(work.chunk)) for work in done),
        bytes=sum(record.size for key, record in after.records.items() if key not in known),
        unreadable=sum(int((~after.valid_chunk(work.split, work.chunk)).sum()) for work in done),
        seconds=time.perf_counter() - start,
        weights=prepared.weights,
    )


def prepare(pipeline: Pipeline, *, overwrite: bool = False) -> Prepared:
    """Check all that can be checked before any chunk is computed, and create the feature set."""
    checked = check(pipeline, overwrite=overwrite)
    features = open_or_create(pipeline.store / pipeline.name, checked.manifest, checked.rows, overwrite=overwrite)
    return Prepared(**{each.name: getattr(checked, each.name) for each in fields(checked)}, features=features)


def check(pipeline: Pipeline, *, overwrite: bool = False) -> Checked:
    """Check all that can be checked before anything is written."""
    settings = pipeline.extract
    sources = sources_of(pipeline)
    transform = choose_transform(pipeline)
    options = model_options(pipeline)
    choose_device(settings.device)
    image = _blank_image(sources, transform)
    trunk = build_trunk(
        pipeline.model.trunk,
        options,
        heads=pipeline.model.heads,
        seed=pipeline.weights.random_seed or 0,
        image_size=(image.shape[2], image.shape[3]),
    )
    taps = TappedTrunk(trunk, name=pipeline.model.trunk, layers=pipeline.layer_specs)
    layers = taps.probe(image)
    filled = fill(taps, image, pipeline.weights)
    chunk_rows = _rows_per_chunk(pipeline, sources, layers, overwrite=overwrite)
    manifest = _manifest(pipeline, sources, transform, options, chunk_rows, filled)
    return Checked(
        pipeline=pipeline,
        sources=sources,
        transform=transform,
        trunk=trunk,
        image=image,
        layers=layers,
        manifest=manifest,
    )


def extract_as(rank: Rank, prepared: Prepared, *, quiet: bool = False) -> tuple[str, ...]:
    """Do one rank's part; returns the layers of which something was missing.

    Raises
    ------
    Stopped
        If a signal ended it before everything was done.
    """
    features, layers = prepared.features, list(prepared.layers)
    with until_signalled() as stopping, features.lock(rank.run) as lock:
        if lock.is_first:
            prepared.make_ready()
            lock.share()
        features = prepared.features = FeatureSet.open(features.path)  # with the layers that the first has added
        missing = prepared.missing()
        if not missing:
            return ()
        number = lock.claim_journal(rank.rank)
        status = RankStatus(run=rank.run, rank=number, host=socket.gethostname(), pid=os.getpid(), state="starting")
        reporter = Reporter(features.journals, status)
        queue = WorkQueue(features, layers, lock, rank=rank.rank, world_size=rank.world_size)
        with watching(features, layers, rank.run, quiet=quiet) if rank.rank == 0 else nullcontext():
            try:
                _extract(prepared, missing, rank, queue, ChunkWriter(features, rank=number), reporter, stopping)
            except Exception as error:
                reporter.change("failed", error=str(error).splitlines()[0])
                raise
            reporter.change("stopped" if stopping() else "done")
    if stopping() and features.pending(layers):
        raise Stopped(stopping.exit_code)
    return missing


def _extract(
    prepared: Prepared,
    missing: tuple[str, ...],
    rank: Rank,
    queue: WorkQueue,
    writer: ChunkWriter,
    reporter: Reporter,
    stopping: Stopping,
) -> None:
    pipeline, features = prepared.pipeline, prepared.features
    settings = pipeline.extract
    device = choose_device(settings.device, rank.local_rank)
    _make_repeatable(device, settings.precision, settings.threads)
    trunk = TappedTrunk(
        prepared.trunk.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        name=pipeline.model.trunk,
        layers=[spec for spec in pipeline.layer_specs if spec.name in missing],
    )
    trunk.probe(prepared.image.to(device))
    workers = settings.workers
    reporter.change("extracting")

    def committed(work: Work) -> None:
        queue.release(work)
        reporter.committed(len(features.grid(work.split).rows(work.chunk)))

    def is_stopping() -> bool:
        if stopping():
            reporter.change("stopping")
        return stopping()

    extract_chunks(
        features,
        queue,
        writer=writer,
        trunk=trunk,
        sources=prepared.sources,
        transform=prepared.transform,
        batch_size=settings.batch_size,
        device=device,
        precision=settings.precision,
        workers=default_workers(prepared.sources, rank.local_world_size) if workers is None else workers,
        on_error=pipeline.data.on_error,
        image_size=(prepared.image.shape[2], prepared.image.shape[3]),
        on_rows=reporter.processed,
        on_chunk=committed,
        is_stopping=is_stopping,
    )


def sources_of(pipeline: Pipeline) -> dict[str, ImageSource]:
    """List both splits; long listings are kept in the store's folder."""
    return open_sources(**pipeline.data.model_dump(exclude={"name"}), kept=pipeline.store / KEPT_LISTINGS)


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


def _make_repeatable(device: torch.device, precision: str, threads: int | None) -> None:
    """Let the same images give the same bytes in every rank, and float32 mean float32."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        if precision == "float32":
            torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions, with 10 bits of mantissa
            torch.backends.cuda.matmul.allow_tf32 = False
