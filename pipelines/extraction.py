"""Stage one from a pipeline: in this process, or in ranks that it starts."""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from featbench.extract.extraction import extract_chunks
from featbench.extract.loading import default_workers
from featbench.pipelines.pipeline import Pipeline
from featbench.pipelines.preparation import Prepared, choose_device, prepare
from featbench.pipelines.ranks import Rank, alone, from_environment
from featbench.pipelines.stopping import Stopped, Stopping, until_signalled
from featbench.pipelines.watch import watching
from featbench.store import (
    BenchError,
    ChunkWriter,
    FeatureSet,
    LayerInfo,
    RankStatus,
    Work,
    WorkQueue,
)
from featbench.store.errors import first_line
from featbench.store.status import Reporter

logger = logging.getLogger(__name__)


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
    flatten: str
    """What the layer `flatten` is, in words; "" if it is not among them."""


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
    flatten = prepared.flatten  # now, since whoever launches ranks lets go of the trunk
    before = prepared.features
    known, pending = set(before.records), before.pending(list(prepared.layers))
    if rank is None and pipeline.extract.slurm:
        from featbench.pipelines.slurm import submit

        new = submit(prepared, quiet=quiet)
    elif rank is None and pipeline.extract.num_ranks > 1:
        from featbench.pipelines.launch import launch

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
        flatten=flatten,
    )


def extract_as(rank: Rank, prepared: Prepared, *, quiet: bool = False) -> tuple[str, ...]:
    """Do one rank's part; returns the layers of which something was missing.

    Raises
    ------
    Stopped
        If a signal ended it before everything was done.
    """
    features, layers = prepared.features, list(prepared.layers)
    is_told = quiet and rank.world_size > 1  # by a process that says so
    with until_signalled(quiet=is_told) as stopping, features.lock(rank.run) as lock:
        if lock.is_first:
            prepared.make_ready()
            lock.share()
        features.reload()  # with the layers that the first has added
        prepared.refuse_another_model()
        missing = prepared.missing()
        if not missing and rank.world_size == 1:
            return ()
        number = lock.claim_journal(rank.rank)
        status = RankStatus(run=rank.run, rank=number, host=socket.gethostname(), pid=os.getpid(), state="starting")
        reporter = Reporter(features.journals, status)
        if not missing:  # the others were faster; whoever watches must not wait for this one
            reporter.change("done")
            return ()
        queue = WorkQueue(features, layers, lock, rank=rank.rank, world_size=rank.world_size)
        shown = watching(features, layers, rank.run, stopping=stopping, quiet=quiet)
        with shown if rank.rank == 0 else nullcontext():
            try:
                _extract(prepared, missing, rank, queue, ChunkWriter(features, rank=number), reporter, stopping)
            except BaseException as error:
                reporter.change("failed", error=first_line(error))
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
    trunk = prepared.tapped(device, missing)
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
