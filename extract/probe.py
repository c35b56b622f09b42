"""Measures how fast extraction runs on this machine: loading and the forward pass, for some seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing

import torch

from featbench.extract.data.sources import ImageSource
from featbench.extract.decoders import BatchRows
from featbench.extract.loading import batches
from featbench.extract.model.taps import Forward
from featbench.extract.passes import passes_on
from featbench.extract.profile import Profile
from featbench.extract.transform import Transform
from featbench.store import Work
from featbench.store.layout import RowRange
from featbench.store.paths import TRAIN

CPU_BATCH = 16
"""Images in a batch at most: on a CPU the rate hardly depends on it, and a batch of 64 can take many seconds."""


def images_per_second(
    trunk: Forward,
    sources: Mapping[str, ImageSource],
    transform: Transform,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "float32",
    workers: int = 0,
    seconds: float = 10.0,
) -> float:
    """Measure the rate of extraction without writing; the first batch is a warm-up.

    Parameters
    ----------
    trunk : callable
        On `device`, such as a `TappedTrunk` that has been probed.
    sources, transform, batch_size, device, precision, workers
        As for `featbench.extract.extraction.extract_chunks`.
    seconds : float
        How long to measure, at least one batch.
    """
    if device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    split = TRAIN if TRAIN in sources else next(iter(sources))
    num_rows = len(sources[split].rows.labels)
    work = Work(split=split, chunk=0, layers=("",), valid=False)  # the split as one chunk
    wanted = [BatchRows(work=work, rows=rows) for rows in RowRange(start=0, stop=num_rows).batches(batch_size)]
    passes = passes_on(device, trunk, transform, precision, Profile())
    start, done = 0.0, 0
    with closing(
        batches(sources, wanted[:1] + wanted, transform=transform, workers=workers, pin_memory=device.type == "cuda")
    ) as loaded:
        for batch in loaded:
            passes.start(batch.pixels)()
            now = time.perf_counter()
            if start:
                done += len(batch.pixels)
                if now - start >= seconds:
                    break
            else:
                start = now
        return done / (time.perf_counter() - start)
