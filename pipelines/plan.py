"""What a pipeline needs (disk, memory, time), and whether it can run, before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featbench.evaluate.clustering.planning import plan_clusters
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.neighbours.planning import plan_search
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.extract.data.sources import used_classes
from featbench.extract.loading import default_workers
from featbench.extract.probe import images_per_second
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.extraction.checking import CheckedPipeline, check
from featbench.pipelines.extraction.computing import conflicts, planned
from featbench.pipelines.extraction.devices import choose_device
from featbench.pipelines.extraction.same_model import changed_layers
from featbench.pipelines.terminal.progress import duration
from featbench.store import FeatureSet, SplitRows
from featbench.store.layout import Grid
from featbench.store.manifest import differences
from featbench.store.typing import Bools

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer, of all rows of both splits."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    """On disk; the last chunk of a split is stored at full size."""

    there: bool
    """Whether it is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a pipeline needs."""

    name: str
    images: dict[str, int]
    """By split."""

    classes: dict[str, int]
    """Classes that have an image, by split."""

    shared_classes: int
    unlabelled: int
    layers: tuple[LayerPlan, ...]
    rows_per_chunk: int
    chunks: int
    disk_needed: int
    """Bytes that are still to be written."""

    disk_free: int
    memory: int
    """Memory budget of stage two, in bytes."""

    rate: float | None
    """Images per second of one process, eager; None if it was not measured."""

    forward: str
    """What computes the layers: the eager pass, or a compiled graph."""

    ranks: int
    pending: int
    """Images whose layers are not all complete."""

    search: str
    """The search and its engine."""

    clusters: str
    """Numbers of clusters, and the engine of k-means; empty if there is none."""

    weights: str
    problems: tuple[str, ...]
    """Why it can't run; empty if it can."""

    @property
    def seconds(self) -> float | None:
        """Time of stage one, if each rank is as fast as a single one."""
        return None if not self.rate else self.pending / (self.rate * self.ranks)


def plan(pipeline: Pipeline, *, probe_seconds: float = 10.0) -> Plan:
    """Check a pipeline, measure its model for some seconds, and return what it needs.

    Raises
    ------
    BenchError
        If data, model, layers or weights are wrong.
    """
    checked = check(pipeline)
    path = pipeline.store / pipeline.name
    existing = FeatureSet.open(path) if path.exists() else None
    mismatches = differences(existing.manifest, checked.manifest) if existing else []
    if existing and not mismatches:
        mismatches = changed_layers(checked, existing.manifest)
    if existing and not mismatches:
        mismatches = conflicts(pipeline, existing.manifest)
    rows = checked.rows
    images = {split: len(each.labels) for split, each in rows.items()}
    per_chunk = checked.manifest.rows_per_chunk
    grids = {split: Grid(num_rows=count, rows_per_chunk=per_chunk) for split, count in images.items()}
    missing = _missing(existing if not mismatches else None, grids, list(checked.layers))
    chunks = sum(grid.num_chunks for grid in grids.values())
    chunk_bytes = per_chunk * np.dtype(pipeline.storage.dtype).itemsize
    layers = tuple(
        LayerPlan(
            name=name,
            shape=info.shape,
            bytes=chunks * chunk_bytes * info.dim,
            there=not _num_missing(missing[name]),
        )
        for name, info in checked.layers.items()
    )
    needed = sum(_num_missing(missing[name]) * chunk_bytes * info.dim for name, info in checked.layers.items())
    pending = _num_rows(missing, grids)
    used = {split: used_classes(each) for split, each in rows.items()}
    disk_free = shutil.disk_usage(_existing_folder(path)).free
    problems = [f"{path} was made with other settings: {fault}" for fault in mismatches]
    problems += _problems(pipeline, rows, needed=needed, disk_free=disk_free)
    search, too_little = _searches(pipeline, images, checked)
    clusters, too_large = _clusterings(pipeline, images, len(used["train"]), checked)
    problems += [*too_little, *too_large]
    is_measured = pipeline.extract.batch_size == "auto"
    rate = _rate(checked, probe_seconds) if probe_seconds > 0 and pending and not problems else None
    seconds = pending / (rate * pipeline.extract.num_ranks) if rate else None
    return Plan(
        name=pipeline.name,
        images=images,
        classes={split: len(names) for split, names in used.items()},
        shared_classes=len(used["train"] & used["val"]),
        unlabelled=sum(map(_num_unlabelled, rows.values())),
        layers=layers,
        rows_per_chunk=per_chunk,
        chunks=chunks,
        disk_needed=needed,
        disk_free=disk_free,
        memory=resources_of(pipeline.evaluate).bytes,
        rate=rate,
        forward=planned(pipeline, existing.manifest if existing else None, list(checked.layers), seconds)
        + (f", in batches of {checked.pipeline.extract.images_per_batch}" if is_measured else ""),
        ranks=pipeline.extract.num_ranks,
        pending=pending,
        search=search,
        clusters=clusters,
        weights=checked.weights,
        problems=tuple(problems),
    )


def plan_lines(made: Plan) -> Iterator[tuple[str, str]]:
    """Yield the lines of a plan: what, and how much."""
    images = ", ".join(f"{count:,} {split}" for split, count in made.images.items())
    yield "images", images + (f" ({made.unlabelled:,} without a label)" if made.unlabelled else "")
    yield "classes", f"{made.classes['train']:,} train, {made.classes['val']:,} val, {made.shared_classes:,} in both"
    yield "weights", made.weights
    for layer in made.layers:
        shape = " x ".join(map(str, layer.shape))
        yield f"layer {layer.name}", f"{shape}, {_size(layer.bytes)}" + (", complete" if layer.there else "")
    yield "chunks", f"{made.chunks:,} of {made.rows_per_chunk:,} rows for each layer"
    yield "disk", f"{_size(made.disk_needed)} to write, {_size(made.disk_free)} free"
    yield "memory of stage two", f"at most {_size(made.memory)}"
    yield "forward pass", made.forward
    yield "search", made.search
    if made.clusters:
        yield "k-means", made.clusters
    if made.seconds is not None:
        ranks = f" x {made.ranks} ranks" if made.ranks > 1 else ""
        yield (
            "stage one",
            f"{made.rate:,.1f} images/s{ranks} (measured), {duration(made.seconds)} for {made.pending:,} images",
        )
    elif not made.pending:
        yield "stage one", "nothing to do: all layers are complete"


def _missing(
    features: FeatureSet | None, grids: Mapping[str, Grid], layers: Sequence[str]
) -> dict[str, dict[str, Bools]]:
    """By layer and split, whether each chunk is not written."""
    missing = {name: {split: np.ones(grid.num_chunks, np.bool_) for split, grid in grids.items()} for name in layers}
    known = [name for name in layers if features is not None and name in features.manifest.layers]
    if features is not None and known:
        pending = features.pending(known)
        for name, is_missing in zip(known, pending.missing, strict=True):
            for number, split in enumerate(pending.splits):
                missing[name][split][:] = False
                missing[name][split][pending.chunks[is_missing & (pending.split_of == number)]] = True
    return missing


def _num_missing(chunks: Mapping[str, Bools]) -> int:
    return sum(int(np.count_nonzero(each)) for each in chunks.values())


def _num_rows(missing: Mapping[str, Mapping[str, Bools]], grids: Mapping[str, Grid]) -> int:
    """Rows of the chunks of which any layer is missing."""
    total = 0
    for split, grid in grids.items():
        chunks = np.flatnonzero(np.any([each[split] for each in missing.values()], axis=0))
        total += grid.num_rows_of(chunks)
    return total


def _num_unlabelled(rows: SplitRows) -> int:
    return int((rows.labels < 0).reshape(len(rows.labels), -1).all(axis=1).sum())


def _searches(pipeline: Pipeline, images: dict[str, int], checked: CheckedPipeline) -> tuple[str, list[str]]:
    """Say which engines would search the largest layer, or why none can."""
    kinds: dict[Similarity, int] = {}
    for protocol in find_protocols(pipeline.evaluate.knn.protocol).values():
        k = max(pipeline.evaluate.knn.k or protocol.k)
        kinds[protocol.similarity] = max(kinds.get(protocol.similarity, 0), min(k, images["train"]))
    resources, dim = resources_of(pipeline.evaluate), max(info.dim for info in checked.layers.values())
    engines, problems = [], []
    for similarity, k in kinds.items():
        try:
            cut = plan_search(
                resources,
                num_rows=images["train"],
                rows_per_chunk=checked.manifest.rows_per_chunk,
                dim=dim,
                num_queries=images["val"],
                k=k,
                similarity=similarity,
            )
        except EvaluationError as error:
            problems.append(str(error))
            continue
        engines.append(f"{similarity.replace('_', ' ')} ({cut.engine})")
    how = f"approximate by faiss {pipeline.evaluate.index}" if pipeline.evaluate.index else "exact"
    return f"{how}, {', '.join(engines)}", problems


def _clusterings(
    pipeline: Pipeline, images: dict[str, int], num_classes: int, checked: CheckedPipeline
) -> tuple[str, list[str]]:
    """Say how many clusters are sought in the largest layer, and by which engine, or why they can't be."""
    wanted = pipeline.evaluate.kmeans.clusters
    counts = [num_classes if each == "classes" else int(each) for each in wanted]
    possible = [count for count in counts if 1 <= count <= images["train"]]
    if not possible:
        return "", []
    dim = max(info.dim for info in checked.layers.values())
    resources, per_chunk = resources_of(pipeline.evaluate), checked.manifest.rows_per_chunk
    try:
        plan = plan_clusters(
            resources, num_rows=images["train"], rows_per_chunk=per_chunk, dim=dim, num_clusters=max(possible)
        )
    except EvaluationError as error:
        return "", [str(error)]
    how = "rows held in memory" if plan.hold else "rows streamed from disk"
    return f"{', '.join(f'{count:,}' for count in possible)} clusters ({plan.engine}; {how})", []


def _problems(pipeline: Pipeline, rows: dict[str, SplitRows], *, needed: int, disk_free: int) -> Iterator[str]:
    num_train = len(rows["train"].labels)
    if needed > disk_free:
        yield (
            f"the layers need {_size(needed)} of disk, {_size(disk_free)} are free in "
            f"{_existing_folder(pipeline.store)}. Use fewer layers, pool them, halve them with --dtype float16, or "
            f"choose another --store."
        )
    too_large = [k for k in pipeline.evaluate.knn.k or () if k > num_train]
    if too_large:
        yield f"evaluate.knn.k={too_large} is more than the {num_train:,} images of train. Lower it with --k."
    clusters = [count for count in pipeline.evaluate.kmeans.clusters if isinstance(count, int) and count > num_train]
    if clusters:
        yield f"evaluate.kmeans.clusters={clusters} is more than the {num_train:,} images of train."
    for split, each in rows.items():
        if not (each.labels >= 0).any():
            yield f"no image of {split} has a label, so there is nothing to evaluate. Use class folders, or a list."


def _rate(checked: CheckedPipeline, seconds: float) -> float:
    settings = checked.pipeline.extract
    device = choose_device(settings.device)
    return images_per_second(
        checked.tapped(device, checked.pipeline.layers),
        checked.sources,
        checked.transform,
        batch_size=settings.images_per_batch,
        device=device,
        precision=settings.precision,
        workers=default_workers(checked.sources) if settings.workers is None else settings.workers,
        seconds=seconds,
    )


def _existing_folder(path: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:,.1f} MiB"
