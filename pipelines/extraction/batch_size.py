"""`--batch-size auto`: that of the feature set, if there is one, or the smallest that is about as fast as any."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from featbench.extract.memory import is_out_of_memory
from featbench.extract.model.compiling import probe_pixels, seconds_of
from featbench.extract.model.taps import Forward, TappedTrunk
from featbench.extract.passes import autocast
from featbench.extract.transform import Transform
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.ranks import from_environment
from featbench.store import BenchError, FeatureSet

logger = logging.getLogger(__name__)

ON_CPU = (8, 16, 32, 64)
ON_GPU = (16, 32, 64, 128, 256, 512, 1024)

AS_FAST = 0.97
"""A batch size will do if it has this part of the highest rate."""

MAX_S = 30.0
"""No further size is tried after this time."""


def with_batch_size(
    pipeline: Pipeline, taps: TappedTrunk, transform: Transform, device: torch.device, *, overwrite: bool
) -> Pipeline:
    """Return the pipeline with a number for its batch size.

    Raises
    ------
    BenchError
        If it would have to be measured in several processes at once, or where the model is not going to run.
    """
    if pipeline.extract.batch_size != "auto":
        return pipeline
    path = pipeline.store / pipeline.name
    if path.exists() and not overwrite:
        size = FeatureSet.open(path).manifest.made_from.get("extract", {}).get("batch_size", 0)
        return _with(pipeline, size) if size else pipeline
    rank = from_environment()
    if pipeline.extract.slurm is not None or (rank is not None and rank.world_size > 1):
        raise BenchError(
            "--batch-size auto is measured by one process where the model will run, which tasks of SLURM and ranks of "
            "torchrun can't do for each other. Give a number: on such a machine, `bench plan --batch-size auto` says "
            "which"
        )
    given = pipeline.storage.rows_per_chunk
    sizes = [size for size in (ON_GPU if device.type == "cuda" else ON_CPU) if given is None or given % size == 0]
    if not sizes:
        raise BenchError(
            f"--batch-size auto: storage.rows_per_chunk={given} is a multiple of none of the sizes that are tried: "
            f"{', '.join(map(str, ON_GPU if device.type == 'cuda' else ON_CPU))}. Give a number"
        )
    trunk: nn.Module = taps.trunk.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    there = TappedTrunk(trunk, name=taps.name, layers=taps.specs)
    height, width = taps.image_size
    there.probe(torch.zeros(1, 3, height, width, device=device))

    def images(size: int) -> torch.Tensor:
        return transform.scale(probe_pixels(height, width, size), device)

    with autocast(device, pipeline.extract.precision):
        size, rate = fastest(there, images, sizes)
    taps.trunk.to("cpu")  # where its features are compared with those of a feature set
    logger.info("batches of %d: %.1f images/s in a test, and larger ones are hardly faster", size, rate)
    return _with(pipeline, size)


def fastest(forward: Forward, images: Callable[[int], torch.Tensor], sizes: Iterable[int]) -> tuple[int, float]:
    """Return the smallest size that is about as fast as any, and its rate in images per second.

    Sizes are tried in their order, until memory runs out or `MAX_S` have passed.
    """
    rates: dict[int, float] = {}
    start = time.perf_counter()
    for size in sizes:
        try:
            batch = images(size)
            seconds_of(forward, batch)
            rates[size] = size / min(seconds_of(forward, batch) for _ in range(2))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not rates:
                raise
            break
        if time.perf_counter() - start > MAX_S:
            break
    return next((size, rate) for size, rate in rates.items() if rate >= AS_FAST * max(rates.values()))


def _with(pipeline: Pipeline, size: int) -> Pipeline:
    return pipeline.model_copy(update={"extract": pipeline.extract.model_copy(update={"batch_size": size})})
