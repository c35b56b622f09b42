"""Running the members of a suite, one after the other; one that fails does not keep the others from running."""

from __future__ import annotations

import gc
import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import typer

from featbench.evaluate.results import Record
from featbench.extract.errors import WeightsError
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.suites.suite import Member
from featbench.store import BenchError
from featbench.store.documents import brief_text
from featbench.store.errors import first_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one member ended."""

    member: Member
    records: list[Record]
    error: str | None = None
    """Why it failed, in one line; None if it did not."""

    is_of_weights: bool = False
    """Whether the checkpoint is to blame."""


def run_all(members: Sequence[Member], run: Callable[[Pipeline], list[Record]]) -> list[Outcome]:
    """Run each member; errors are logged as they come, and returned.

    Parameters
    ----------
    members : sequence of Member
    run : callable
        Runs a pipeline, computing only what is missing, and returns the records of its evaluation.
    """
    outcomes = []
    for number, member in enumerate(members, start=1):
        logger.info("[%d/%d] %s", number, len(members), member.title)
        outcomes.append(run_one(member, run))
    return outcomes


def run_one(member: Member, run: Callable[[Pipeline], list[Record]]) -> Outcome:
    """Run a member; any error but a request to stop is its outcome."""
    start = time.perf_counter()
    try:
        records = run(member.pipeline)
    except typer.Exit:  # a signal asked to stop
        raise
    except BenchError as error:
        message, line, is_of_weights = str(error), first_line(error), isinstance(error, WeightsError)
    except Exception as error:  # of the model's code, of the host's memory, or a bug: the others can still run
        message = "".join(traceback.format_exception(error)).rstrip()
        line, is_of_weights = f"{type(error).__name__}: {first_line(error)}", False
    else:
        logger.info("%s: done in %.0f s", member.title, time.perf_counter() - start)
        return Outcome(member=member, records=records)
    logger.error("%s failed: %s", member.title, message)
    free_memory()
    return Outcome(member=member, records=[], error=line, is_of_weights=is_of_weights)


def free_memory() -> None:
    """Give back the memory of a model that is no longer used."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def failed(outcomes: Sequence[Outcome]) -> list[str]:
    """Members that failed and why, one line each, after a line with their number."""
    lines = [
        f"  {each.member.title}: {brief_text(each.error, most=160)}" for each in outcomes if each.error is not None
    ]
    return [f"{len(lines)} of {len(outcomes)} failed:", *lines] if lines else []
