"""One rank of an extraction: this process, one that `launch` starts, or a task of a SLURM job."""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from featbench.extract.extraction import extract_chunks
from featbench.extract.loading import default_workers
from featbench.extract.profile import Profile
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.devices import choose_device, make_repeatable
from featbench.pipelines.extraction.job import ExtractionJob, prepare
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


def run_rank(rank: Rank, job: ExtractionJob, *, quiet: bool = False) -> tuple[str, ...]:
    """Extract pending chunks until none is left; returns the layers that had pending chunks.

    Raises
    ------
    Interrupted
        If a signal ended it before everything was done.
    """
    features, layers = job.features, list(job.layers)
    has_launcher = quiet and rank.world_size > 1  # which shows the notice of a signal
    with graceful_shutdown(quiet=has_launcher) as stopping, features.lock(rank.run) as lock:
        if lock.is_first:
            job.make_ready()
            device = choose_device(job.pipeline.extract.device, rank.local_rank)
            job.decide(device, ranks=rank.world_size, stopping=stopping)
            lock.share()
        features.reload()  # with the layers that the first rank has added
        job.refuse_another_model()
        missing = job.missing()
        if not missing and rank.world_size == 1:
            return ()
        number = lock.claim_journal(rank.rank)
        status = RankStatus(run=rank.run, rank=number, host=socket.gethostname(), pid=os.getpid(), state="starting")
        reporter = Reporter(features.journals, status)
        if not missing:  # the others were faster; tell the monitor not to wait for this one
            reporter.change("done")
            return ()
        queue = WorkQueue(features, layers, lock, rank=rank.rank, world_size=rank.world_size)
        shown = watching(features, layers, rank.run, stopping=stopping, quiet=quiet)
        with shown if rank.rank == 0 else nullcontext():
            try:
                _extract(job, missing, rank, queue, ChunkWriter(features, rank=number), reporter, stopping)
            except BaseException as error:
                reporter.change("failed", error=first_line(error))
                raise
            reporter.change("stopped" if stopping() else "done")
    if stopping() and features.pending(layers):
        raise Interrupted(stopping.exit_code)
    return missing


def _extract(
    job: ExtractionJob,
    missing: tuple[str, ...],
    rank: Rank,
    queue: WorkQueue,
    writer: ChunkWriter,
    reporter: Reporter,
    stopping: StopRequest,
) -> None:
    checked, pipeline, features = job.checked, job.pipeline, job.features
    settings = pipeline.extract
    device = choose_device(settings.device, rank.local_rank)
    make_repeatable(device, settings.precision, settings.threads)
    trunk = job.computation.forward_pass(device, missing)
    workers = settings.workers
    reporter.change("extracting")

    def committed(work: Work) -> None:
        queue.release(work)
        reporter.committed(len(features.grid(work.split).rows(work.chunk)))

    def is_stopping() -> bool:
        if stopping():
            reporter.change("stopping")
        return stopping()

    done = extract_chunks(
        features,
        queue,
        writer=writer,
        trunk=trunk,
        sources=checked.sources,
        transform=checked.transform,
        batch_size=settings.images_per_batch,
        device=device,
        precision=settings.precision,
        workers=default_workers(checked.sources, rank.local_world_size) if workers is None else workers,
        on_error=pipeline.data.on_error,
        image_size=(checked.image.shape[2], checked.image.shape[3]),
        on_rows=reporter.processed,
        on_chunk=committed,
        is_stopping=is_stopping,
    )
    job.profiles.append(done.profile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a rank ended that did not die: with a fault, with a bug, or, if both are empty, well."""

    fault: str = ""
    """A message for the user, who can fix it."""

    bug: str = ""
    """A traceback: a bug of bench or of the model's code."""

    profile: Profile | None = None
    """Where the time went; None if there was nothing to do."""


def rank_outcome(pipeline: Pipeline, rank: Rank, *, quiet: bool) -> Outcome:
    """Run one of several ranks; errors are returned, for the process that started it to raise."""
    try:
        with _without_warnings() if quiet else nullcontext():
            job = prepare(pipeline)
        run_rank(rank, job, quiet=quiet)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
    except BenchError as error:
        return Outcome(fault=str(error))
    except Exception:  # a bug: starting the rank again would not help
        return Outcome(bug=traceback.format_exc())
    return Outcome(profile=job.profiles[0] if job.profiles else None)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress warnings, which the process that started the ranks has given already."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def raise_faults(outcomes: list[Outcome]) -> None:
    """Raise what ranks report: the first bug, or else every different fault."""
    bugs = [outcome.bug for outcome in outcomes if outcome.bug]
    if bugs:
        raise RuntimeError(f"{len(bugs)} of {len(outcomes)} ranks failed; the first:\n{bugs[0]}")
    faults = list(dict.fromkeys(outcome.fault for outcome in outcomes if outcome.fault))
    if faults:
        raise BenchError("\n".join(faults))
