"""Several ranks on this host, started by torchrun's elastic agent.

A rank that dies (killed, out of memory, a crash in a driver) makes the agent stop the others, which
finish the chunk in hand, and start all of them anew: they go on with what is missing. A fault that
the user must mend is no death: that rank reports it and ends, and the others go on.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import uuid
from dataclasses import dataclass, replace

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipelines.extraction import extract_as
from pipelines.pipeline import Pipeline
from pipelines.preparation import Prepared, prepare
from pipelines.ranks import Rank, alone, from_environment
from pipelines.stopping import Stopped
from pipelines.watch import watching
from store import BenchError

RESTARTS = 3
"""How often dead ranks are started again before the run is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a rank that did not die ended: at most one of these is said."""

    fault: str = ""
    """What the user must mend."""

    bug: str = ""
    """A traceback."""


def launch(prepared: Prepared, *, quiet: bool = False) -> tuple[str, ...]:
    """Extract in several ranks; returns the layers of which something was missing.

    Raises
    ------
    BenchError
        If ranks report a fault, each different one once, or died too often.
    Stopped
        If a signal ended it.
    """
    settings = prepared.pipeline.extract
    if settings.gpus is not None and settings.gpus > torch.cuda.device_count():
        raise BenchError(f"--gpus {settings.gpus}: this host has {torch.cuda.device_count()} that torch can use")
    run = uuid.uuid4().hex
    with prepared.features.lock(run) as lock:
        prepared.make_ready()
        missing = prepared.missing()
        if not missing:
            return ()
        del prepared.trunk  # the ranks have their own
        lock.share()
        with watching(prepared.features, list(prepared.layers), run, quiet=quiet):
            outcomes = _run_ranks(prepared.pipeline, run)
    raise_faults(outcomes)
    return missing


def _run_ranks(pipeline: Pipeline, run: str) -> list[Outcome]:
    for name in logging.root.manager.loggerDict:
        if name.startswith(("torch.distributed", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they tell of each signal that the agent sends
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait must not take the cores of other ranks
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=pipeline.extract.num_ranks,
        run_id=run,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        return list(elastic_launch(config, _start)(pipeline, run).values())
    except SignalException as signalled:
        raise Stopped(128 + signalled.sigval) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise BenchError(
            f"rank {rank} died ({failure.message.splitlines()[0]}), and ranks had died {RESTARTS} times before. "
            f"If they were killed, memory may be short: try fewer --ranks or --workers, or a smaller --batch-size. "
            f"What was committed is safe; the same command goes on from there."
        ) from None


def _start(pipeline: Pipeline, run: str) -> Outcome:
    """Entry of a rank that the agent has started."""
    rank = replace(from_environment() or alone(), run=run)
    logging.basicConfig(level=logging.WARNING, format=f"rank {rank.rank}: %(message)s")
    return work(pipeline, rank, quiet=True)


def work(pipeline: Pipeline, rank: Rank, *, quiet: bool) -> Outcome:
    """Be one of the ranks."""
    try:
        extract_as(rank, prepare(pipeline), quiet=quiet)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)  # one that returns waits for the others
    except BenchError as error:
        return Outcome(fault=str(error))
    except Exception:  # a restart would not mend it
        return Outcome(bug=traceback.format_exc())
    return Outcome()


def raise_faults(outcomes: list[Outcome]) -> None:
    """Raise what ranks report: a bug as such, else each different fault once."""
    bugs = [outcome.bug for outcome in outcomes if outcome.bug]
    if bugs:
        raise RuntimeError(f"{len(bugs)} of {len(outcomes)} ranks failed; the first:\n{bugs[0]}")
    faults = list(dict.fromkeys(outcome.fault for outcome in outcomes if outcome.fault))
    if faults:
        raise BenchError("\n".join(faults))
