"""One rank of an extraction: in this process, in one that `launch` starts, or in a task of a SLURM job."""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from featbench.extract.extraction import extract_chunks
from featbench.extract.loading import default_workers
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.job import Prepared, choose_device, prepare
from featbench.pipelines.extraction.monitor import watching
from featbench.pipelines.extraction.signals import Interrupted, StopRequest, graceful_shutdown
from featbench.pipelines.ranks import Rank
from featbench.store import (
    BenchError,
    ChunkWriter,
    RankStatus,
    Work,
    WorkQueue,
)
from featbench.store.errors import first_line
from featbench.store.status import Reporter


def run_rank(rank: Rank, prepared: Prepared, *, quiet: bool = False) -> tuple[str, ...]:
    """Do one rank's part; returns the layers of which something was missing.

    Raises
    ------
    Interrupted
        If a signal ended it before everything was done.
    """
    features, layers = prepared.features, list(prepared.layers)
    is_told = quiet and rank.world_size > 1  # by a process that says so
    with graceful_shutdown(quiet=is_told) as stopping, features.lock(rank.run) as lock:
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
        raise Interrupted(stopping.exit_code)
    return missing


def _extract(
    prepared: Prepared,
    missing: tuple[str, ...],
    rank: Rank,
    queue: WorkQueue,
    writer: ChunkWriter,
    reporter: Reporter,
    stopping: StopRequest,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a rank that did not die ended: at most one of these is said."""

    fault: str = ""
    """What the user must remove."""

    bug: str = ""
    """A traceback."""


def work(pipeline: Pipeline, rank: Rank, *, quiet: bool) -> Outcome:
    """Be one of the ranks."""
    try:
        with _unheard() if quiet else nullcontext():
            prepared = prepare(pipeline)
        run_rank(rank, prepared, quiet=quiet)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
    except BenchError as error:
        return Outcome(fault=str(error))
    except Exception:  # starting it again would not help
        return Outcome(bug=traceback.format_exc())
    return Outcome()


@contextmanager
def _unheard() -> Iterator[None]:
    """Leave out warnings, which the process that started the ranks has given already."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def raise_faults(outcomes: list[Outcome]) -> None:
    """Raise what ranks report: a bug as such, else each different fault once."""
    bugs = [outcome.bug for outcome in outcomes if outcome.bug]
    if bugs:
        raise RuntimeError(f"{len(bugs)} of {len(outcomes)} ranks failed; the first:\n{bugs[0]}")
    faults = list(dict.fromkeys(outcome.fault for outcome in outcomes if outcome.fault))
    if faults:
        raise BenchError("\n".join(faults))
