"""Feature sets to measure on, and how two ways of doing something are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from featbench.store import ChunkWriter, FeatureSet, LayerInfo, Manifest, SplitRows, add_layers, open_or_create
from featbench.store.typing import Floats


def in_turns(
    ours: Callable[[], object], yardstick: Callable[[], object], *, repeats: int
) -> tuple[float, float, float]:
    """Return the median seconds of both, and the median ratio, after one warm-up run of each."""
    seconds = []
    for _ in range(repeats + 1):
        pair = []
        for run in (ours, yardstick):
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        seconds.append(pair)
    first, second = zip(*seconds[1:], strict=True)
    ratio = statistics.median(a / b for a, b in seconds[1:])
    return statistics.median(first), statistics.median(second), ratio


def clustered(num_rows: int, dim: int, seed: int) -> Floats:
    """Make features with some structure: 100 centers and noise."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((100, dim), dtype=np.float32)
    values = random.standard_normal((num_rows, dim), dtype=np.float32)
    values += centers[np.arange(num_rows) % 100]
    return values


def made_features(path: Path, train: Floats, val: Floats, *, compression: str = "none") -> FeatureSet:
    """Make a feature set of two arrays."""
    arrays = {"train": train, "val": val}
    rows = {
        split: SplitRows(
            labels=np.arange(len(values)) % 100,
            paths=[str(i) for i in range(len(values))],
            class_names=tuple(map(str, range(100))),
        )
        for split, values in arrays.items()
    }
    manifest = Manifest(
        made_from={},
        dtype="float32",
        compression=compression,
        rows_per_chunk=1024,
        splits={split: each.info() for split, each in rows.items()},
    )
    features = open_or_create(path, manifest, rows)
    add_layers(features, {"x": LayerInfo(tap="x", pooling=None, shape=train.shape[1:])})
    writer = ChunkWriter(features)
    for work in features.pending(["x"]):
        chunk = features.grid(work.split).rows(work.chunk)
        writer.write(work, {"x": arrays[work.split][chunk.start : chunk.stop]}, np.ones(len(chunk), bool))
    return FeatureSet.open(path)
