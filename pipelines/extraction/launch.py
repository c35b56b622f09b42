"""Several ranks on this host, each a process that this one starts, supervises and restarts.

A rank that dies (killed, out of memory, a crash in a driver) is restarted while the others go on; after
`RESTARTS` restarts in all, the others do its work. A rank that meets an error that only the user can fix
reports it and ends; it is not restarted. Ranks share nothing but the feature set, and end with this
process. They report through pipes, so no port is opened; torch's elastic agent would listen on all
interfaces.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from featbench.extract.lifetime import end_with_parent
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.devices import choose_device
from featbench.pipelines.extraction.job import ExtractionJob
from featbench.pipelines.extraction.monitor import watching
from featbench.pipelines.extraction.rank import Outcome, raise_faults, rank_outcome
from featbench.pipelines.extraction.signals import Interrupted, StopRequest, graceful_shutdown
from featbench.pipelines.ranks import Rank
from featbench.store import BenchError

logger = logging.getLogger(__name__)

RESTARTS = 3
"""How often dead ranks are restarted, all of them together."""

POLL_S = 0.5
"""A signal is passed on to the ranks within this time."""

DIED = (
    "If they were killed, memory may be short: lower --ranks, --workers or --batch-size. "
    "What was committed is safe; the same command goes on from there."
)


def launch(job: ExtractionJob, *, quiet: bool = False) -> tuple[str, ...]:
    """Extract in several ranks; returns the layers that had pending chunks.

    Raises
    ------
    BenchError
        If ranks report errors, each different one once, or died too often.
    Interrupted
        If a signal ended it.
    """
    settings = job.pipeline.extract
    if settings.gpus is not None and settings.gpus > torch.cuda.device_count():
        raise BenchError(f"--gpus {settings.gpus}: torch can use {torch.cuda.device_count()} GPUs on this host")
    run = uuid.uuid4().hex
    with job.features.lock(run) as lock:
        job.make_ready()
        missing = job.missing()
        if not missing:
            return ()
        layers = list(job.layers)
        with graceful_shutdown() as stopping:
            job.decide(choose_device(settings.device), ranks=settings.num_ranks, stopping=stopping)
            job.release_model()
            lock.share()
            with watching(job.features, layers, run, stopping=stopping, quiet=quiet):
                ranks = supervise(job.pipeline, run, stopping)
    raise_faults(ranks.outcomes)
    job.profiles += [outcome.profile for outcome in ranks.outcomes if outcome.profile is not None]
    if job.missing():
        if stopping():
            raise Interrupted(stopping.exit_code)
        raise BenchError(f"{'; '.join(ranks.given_up) or 'the ranks ended before all was done'}. {DIED}")
    return missing


@dataclass(slots=True)
class Supervised:
    """How the ranks of a run ended."""

    outcomes: list[Outcome] = field(default_factory=list)
    """Results of the ranks that did not die."""

    restarts: int = 0
    given_up: list[str] = field(default_factory=list)
    """Deaths after which the rank was not restarted."""


class _Child:
    """One rank's process, as its parent sees it."""

    def __init__(self, pipeline: Pipeline, rank: Rank) -> None:
        self.rank = rank
        self.outcome: Outcome | None = None
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe(duplex=False)
        self._connection: Connection | None = connection
        self.process: BaseProcess = context.Process(
            target=_start, args=(pipeline, rank, theirs), name=f"rank {rank.rank}"
        )
        with _spawning():
            self.process.start()
        theirs.close()

    @property
    def events(self) -> list[Connection | int]:
        """What to wait for: its end, and its messages."""
        return [self.process.sentinel, *([self._connection] if self._connection else [])]

    def has_ended(self) -> bool:
        """Read what it has sent; returns whether it has ended."""
        ended = not self.process.is_alive()
        try:
            while self._connection and self._connection.poll():
                sent = self._connection.recv()
                if isinstance(sent, Outcome):
                    self.outcome = sent
                else:
                    logger.warning("%s", sent)
        except (EOFError, OSError):
            self._connection = None
        return ended

    def death(self) -> str:
        """Say how it died."""
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"rank {self.rank.rank} died ({how})"


def supervise(pipeline: Pipeline, run: str, stopping: StopRequest) -> Supervised:
    """Run ranks until all have ended; a signal makes each stop after its chunk."""
    ended = Supervised()
    size = pipeline.extract.num_ranks
    running: list[_Child] = []
    is_told_to_stop = False
    try:
        for number in range(size):
            rank = Rank(run=run, rank=number, world_size=size, local_rank=number, local_world_size=size)
            running.append(_Child(pipeline, rank))
        while running:
            wait([event for child in running for event in child.events], POLL_S)
            if stopping() and not is_told_to_stop:
                is_told_to_stop = True
                for child in running:
                    child.process.terminate()
            for child in [child for child in running if child.has_ended()]:
                running.remove(child)
                if child.outcome is not None:
                    ended.outcomes.append(child.outcome)
                elif not stopping():
                    running += _after_death(child, pipeline, ended)
    finally:
        for child in running:
            child.process.kill()
            child.process.join()
    return ended


def _after_death(child: _Child, pipeline: Pipeline, ended: Supervised) -> list[_Child]:
    """Restart a rank that died, unless ranks have died too often."""
    if ended.restarts == RESTARTS:
        ended.given_up.append(f"{child.death()}, after {RESTARTS} restarts of ranks")
        logger.warning("%s; it is not restarted", ended.given_up[-1])
        return []
    ended.restarts += 1
    logger.warning("%s; restarting it (%d of %d)", child.death(), ended.restarts, RESTARTS)
    return [_Child(pipeline, child.rank)]


@contextmanager
def _spawning() -> Iterator[None]:
    """Keep Ctrl-C from a new process until it ignores it, and modules of the working folder from its imports."""
    settings = {"PYTHONSAFEPATH": "1", "OMP_WAIT_POLICY": "passive"}  # waiting threads leave the cores to other ranks
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    resource_tracker.ensure_running()  # else the first process starts it, and unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name in added:
            del os.environ[name]


class _ToParent(logging.Handler):
    """Sends log messages to the parent, which draws on the terminal."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._connection.send(self.format(record))


def _start(pipeline: Pipeline, rank: Rank, connection: Connection) -> None:
    """Entry point of a rank's process."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent sends SIGTERM
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    logging.basicConfig(
        level=logging.WARNING, format=f"rank {rank.rank}: %(message)s", handlers=[_ToParent(connection)], force=True
    )
    connection.send(rank_outcome(pipeline, rank, quiet=True))
