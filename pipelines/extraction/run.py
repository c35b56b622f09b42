"""Stage one of a pipeline: in this process, or in ranks that it starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from featbench.extract.profile import Profile
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.job import ExtractionJob, prepare
from featbench.pipelines.extraction.launch import launch
from featbench.pipelines.extraction.rank import run_rank
from featbench.pipelines.extraction.slurm import submit
from featbench.pipelines.ranks import alone, from_environment
from featbench.store import BenchError, FeatureSet, LayerInfo
from featbench.store.lock import exclusive
from featbench.store.paths import LOCK

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two looks at what other ranks have written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionReport:
    """What an extraction did, all ranks together."""

    features: FeatureSet
    layers: dict[str, LayerInfo]
    """The layers of the pipeline."""

    new: tuple[str, ...]
    """Layers of which a chunk was computed; empty if all were complete."""

    rows: int
    """Rows computed, of both splits."""

    bytes: int
    unreadable: int
    """Rows among them whose image could not be read."""

    seconds: float
    weights: str
    profiles: tuple[Profile, ...]
    """Where the time of each rank went that this process started; empty if none computed anything."""

    flatten: str
    """In words, where the layer `flatten` is tapped; "" if it is not extracted."""


def extract(pipeline: Pipeline, *, overwrite: bool = False, quiet: bool = False) -> ExtractionReport:
    """Extract the pending chunks of a pipeline's layers: in this process, or in ranks that it starts.

    Raises
    ------
    BenchError
        If anything is wrong that the user can fix; committed chunks are safe.
    Interrupted
        If a signal ended it before everything was done.
    """
    start = time.perf_counter()
    rank = from_environment()
    if rank is not None and overwrite:
        raise BenchError(
            "--overwrite can't be used in ranks that torchrun or srun start, since each would replace what the others "
            f"write. Remove {pipeline.store / pipeline.name} first, or choose another --name"
        )
    job = prepare(pipeline, overwrite=overwrite)
    before = job.features
    pending, bytes_before = before.pending(list(job.layers)), before.records.num_bytes
    new = run_job(job, quiet=quiet)
    after = FeatureSet.open(before.path)
    done = pending.without(after.pending(list(job.layers)))
    return ExtractionReport(
        features=after,
        layers=job.layers,
        new=new,
        rows=done.num_rows,
        bytes=after.records.num_bytes - bytes_before,
        unreadable=sum(int((~after.valid_chunk(work.split, work.chunk)).sum()) for work in done),
        seconds=time.perf_counter() - start,
        weights=job.checked.weights,
        profiles=tuple(job.profiles),
        flatten=job.checked.flatten,
    )


def run_job(job: ExtractionJob, *, quiet: bool = False) -> tuple[str, ...]:
    """Do a job as its pipeline says: as the rank that a launcher has made this process, in a SLURM job, or in ranks.

    Returns
    -------
    tuple of str
        Layers that had pending chunks.
    """
    rank, settings = from_environment(), job.pipeline.extract
    if rank is None and settings.slurm:
        return submit(job, quiet=quiet)
    if rank is None and settings.num_ranks > 1:
        return launch(job, quiet=quiet)
    return run_rank(rank or alone(), job, quiet=quiet)


def wait_for_others(features: FeatureSet, layers: Sequence[str]) -> None:
    """Wait until the other ranks of a launcher have written what they have claimed, or none of them is left."""
    while features.pending(list(layers)):
        with exclusive(features.path / LOCK) as is_mine:
            if is_mine:  # whoever reads it then says what is missing
                return
        time.sleep(POLL_S)
        features.reread()
