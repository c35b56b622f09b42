"""What a pipeline will take: disk, memory and time, and whether it can work, before anything is written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.protocols import PROTOCOLS
from extract.loading import default_workers
from extract.probe import images_per_second
from extract.taps import TappedTrunk
from pipelines.extraction import Checked, check, choose_device
from pipelines.pipeline import Pipeline
from store import FeatureSet, SplitRows
from store.layout import Grid
from store.manifest import differences

GIB = 2**30

BLOCK = 512 * 2**20
"""Size of a block of the database in stage two, where there is room for it."""

BYTES_PER_NEIGHBOUR = 28
"""Of a neighbour list's entry while lists of two blocks are merged: row and similarity, found and kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer, of all rows of both splits."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    """On disk, where the last chunk of a split is whole."""

    there: bool
    """Whether it is complete already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a pipeline will take."""

    name: str
    images: dict[str, int]
    """By split."""

    classes: dict[str, int]
    """Those that have an image, by split."""

    shared_classes: int
    unlabelled: int
    layers: tuple[LayerPlan, ...]
    rows_per_chunk: int
    chunks: int
    disk_needed: int
    """Bytes yet to be written."""

    disk_free: int
    memory_needed: int
    """Bytes of stage two: queries, two blocks and the lists, of the largest layer."""

    memory_free: int
    rate: float | None
    """Images a second of one process; None if it was not measured."""

    ranks: int
    pending: int
    """Images of which a layer is missing."""

    index: str
    weights: str
    problems: tuple[str, ...]
    """Why it can't work; empty if it can."""

    @property
    def seconds(self) -> float | None:
        """Time of stage one, if each rank runs as fast as one alone."""
        return None if not self.rate else self.pending / (self.rate * self.ranks)


def plan(pipeline: Pipeline, *, probe_seconds: float = 10.0) -> Plan:
    """Check a pipeline, measure its model for some seconds, and say what it will take.

    Raises
    ------
    BenchError
        If data, model, layers or weights do not allow it at all.
    """
    checked = check(pipeline)
    path = pipeline.store / pipeline.name
    existing = FeatureSet.open(path) if path.exists() else None
    mismatches = differences(existing.manifest, checked.manifest) if existing else []
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
            there=not missing[name],
        )
        for name, info in checked.layers.items()
    )
    needed = sum(len(missing[name]) * chunk_bytes * info.dim for name, info in checked.layers.items())
    pending = sum(len(grids[split].rows(chunk)) for split, chunk in set().union(*missing.values()))
    used = {split: _class_names(each) for split, each in rows.items()}
    memory = _memory(pipeline, images, max(info.dim for info in checked.layers.values()))
    disk_free, memory_free = shutil.disk_usage(_first_there(path)).free, free_memory()
    problems = [f"{path} was made with other settings: {fault}" for fault in mismatches]
    problems += _problems(pipeline, rows, needed=needed, disk_free=disk_free, memory=memory, memory_free=memory_free)
    measure = probe_seconds > 0 and pending and not problems
    return Plan(
        name=pipeline.name,
        images=images,
        classes={split: len(names) for split, names in used.items()},
        shared_classes=len(used["train"] & used["val"]),
        unlabelled=sum(int((each.labels < 0).sum()) for each in rows.values()),
        layers=layers,
        rows_per_chunk=per_chunk,
        chunks=chunks,
        disk_needed=needed,
        disk_free=disk_free,
        memory_needed=memory,
        memory_free=memory_free,
        rate=_rate(checked, probe_seconds) if measure else None,
        ranks=pipeline.extract.num_ranks,
        pending=pending,
        index=_index(pipeline),
        weights=checked.weights,
        problems=tuple(problems),
    )


def plan_lines(made: Plan) -> Iterator[tuple[str, str]]:
    """Say a plan: what, and how much."""
    images = ", ".join(f"{count:,} {split}" for split, count in made.images.items())
    yield "images", images + (f" ({made.unlabelled:,} without a label)" if made.unlabelled else "")
    yield "classes", f"{made.classes['train']:,} train, {made.classes['val']:,} val, {made.shared_classes:,} in both"
    yield "weights", made.weights
    for layer in made.layers:
        shape = " x ".join(map(str, layer.shape))
        yield f"layer {layer.name}", f"{shape}, {_size(layer.bytes)}" + (", is there" if layer.there else "")
    yield "chunks", f"{made.chunks:,} of {made.rows_per_chunk:,} rows for each layer"
    yield "disk", f"{_size(made.disk_needed)} to write, {_size(made.disk_free)} free"
    yield "memory of stage two", f"{_size(made.memory_needed)}, {_size(made.memory_free)} free"
    yield "search", made.index
    if made.seconds is not None:
        ranks = f" x {made.ranks} ranks" if made.ranks > 1 else ""
        yield (
            "stage one",
            f"{made.rate:,.1f} images/s{ranks} (measured), {_time(made.seconds)} for {made.pending:,} images",
        )
    elif not made.pending:
        yield "stage one", "nothing to do: all layers are complete"


def free_memory() -> int:
    """Bytes of memory that are free, or could be at once; of the control group, where it sets a limit."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    of_machine = int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return of_machine
    return of_machine if limit == "max" else min(of_machine, int(limit) - int(used))


def _missing(
    features: FeatureSet | None, grids: Mapping[str, Grid], layers: Sequence[str]
) -> dict[str, set[tuple[str, int]]]:
    """Chunks of each layer, (split, number), that are not written yet."""
    missing = {
        name: {(split, chunk) for split, grid in grids.items() for chunk in range(grid.num_chunks)} for name in layers
    }
    known = [name for name in layers if features is not None and name in features.manifest.layers]
    if features is not None and known:
        missing |= {name: set() for name in known}
        for work in features.pending(known):
            for name in work.layers:
                missing[name].add((work.split, work.chunk))
    return missing


def _class_names(rows: SplitRows) -> set[str]:
    return {rows.class_names[label] for label in np.unique(rows.labels) if label >= 0}


def _memory(pipeline: Pipeline, images: dict[str, int], dim: int) -> int:
    ks = pipeline.evaluate.knn.k or PROTOCOLS[pipeline.evaluate.knn.protocol].k
    block = min(BLOCK, images["train"] * dim * 4)
    return images["val"] * (dim * 4 + max(ks) * BYTES_PER_NEIGHBOUR) + 2 * block


def _problems(
    pipeline: Pipeline, rows: dict[str, SplitRows], *, needed: int, disk_free: int, memory: int, memory_free: int
) -> Iterator[str]:
    num_train = len(rows["train"].labels)
    if needed > disk_free:
        yield (
            f"the layers need {_size(needed)} of disk, {_size(disk_free)} are free in {_first_there(pipeline.store)}. "
            f"Take fewer layers, pool them, halve them with --dtype float16, or choose another --store."
        )
    if memory > memory_free:
        yield f"stage two needs {_size(memory)} of memory, {_size(memory_free)} are free. Pool the layers."
    too_large = [k for k in pipeline.evaluate.knn.k or () if k > num_train]
    if too_large:
        yield f"evaluate.knn.k={too_large} is more than the {num_train:,} images of train. Take fewer with --k."
    clusters = [count for count in pipeline.evaluate.kmeans.clusters if isinstance(count, int) and count > num_train]
    if clusters:
        yield f"evaluate.kmeans.clusters={clusters} is more than the {num_train:,} images of train."
    for split, each in rows.items():
        if not (each.labels >= 0).any():
            yield f"no image of {split} has a label, so there is nothing to evaluate. Give class folders, or a list."


def _rate(checked: Checked, seconds: float) -> float:
    settings = checked.pipeline.extract
    device = choose_device(settings.device)
    trunk = TappedTrunk(
        checked.trunk.to(device),
        name=checked.pipeline.model.trunk,
        layers=checked.pipeline.layer_specs,
    )
    trunk.probe(checked.image.to(device))
    return images_per_second(
        trunk,
        checked.sources,
        checked.transform,
        batch_size=settings.batch_size,
        device=device,
        precision=settings.precision,
        workers=default_workers(checked.sources) if settings.workers is None else settings.workers,
        seconds=seconds,
    )


def _index(pipeline: Pipeline) -> str:
    similarity = PROTOCOLS[pipeline.evaluate.knn.protocol].similarity
    kind = "IndexFlatL2" if similarity == "euclidean" else "IndexFlatIP"
    where = {"auto": "a GPU if faiss sees one", "gpu": "a GPU", "cpu": "the CPU"}[pipeline.evaluate.device]
    return f"exact, {similarity.replace('_', ' ')}, faiss {kind} block by block, on {where}"


def _first_there(path: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:,.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
