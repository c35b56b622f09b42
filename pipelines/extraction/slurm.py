"""An extraction as a SLURM job: submitted through submitit, requeued when it is interrupted, its log followed.

Each task of the job is a rank; srun starts them. At the time limit or when preempted, submitit
requeues the job; when a node dies, SLURM does. The ranks of the next run extract what is still pending.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.job import ExtractionJob
from featbench.pipelines.extraction.rank import Outcome, raise_faults, rank_outcome
from featbench.pipelines.extraction.signals import Interrupted
from featbench.pipelines.ranks import alone, from_environment
from featbench.store import BenchError, suggest
from featbench.store.paths import SLURM

logger = logging.getLogger(__name__)

MAX_TIMEOUTS = 1000
"""How often a job may reach its time limit and be requeued: as often as it needs."""

POLL_S = 2.0

ALIASES = {"tasks_per_node": "ntasks_per_node", "ranks_per_node": "ntasks_per_node"}
NUMBERS = ("nodes", "ntasks_per_node", "gpus_per_node", "gpus_per_task", "cpus_per_task", "signal_delay_s")


class SlurmRank:
    """What each task of the job calls; submitit submits it again when the job is interrupted."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def __call__(self) -> Outcome:
        """Run this task's rank."""
        rank = from_environment() or alone()
        logging.basicConfig(level=logging.INFO if rank.rank == 0 else logging.WARNING, format="%(message)s", force=True)
        return rank_outcome(self._pipeline, rank, quiet=False)

    def checkpoint(self) -> Any:
        """Return what to submit when the job is interrupted: the same, since the store knows what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(job: ExtractionJob, *, quiet: bool = False) -> tuple[str, ...]:
    """Submit the extraction and follow its log until it ends; returns the layers that had pending chunks.

    Raises
    ------
    BenchError
        If there is no SLURM or submitit, a parameter is wrong, the job failed, or ranks report errors.
    Interrupted
        On SIGINT; the job goes on.
    """
    with job.features.lock():
        job.make_ready()
    missing = job.missing()
    if not missing:
        return ()
    folder = job.features.path.parent / SLURM
    submitted = _executor(folder, job).submit(SlurmRank(job.pipeline))
    log = Path(submitted.paths.stderr)
    logger.info("submitted SLURM job %s; its log is %s", submitted.job_id, log)
    try:
        _follow(submitted.job_id, log, quiet=quiet)
    except KeyboardInterrupt:
        logger.warning(
            "SLURM job %s keeps running; end it with `scancel %s`. The same command finds what it has done",
            submitted.job_id,
            submitted.job_id,
        )
        raise Interrupted(130) from None
    raise_faults(_outcomes(submitted))
    return missing


def parameters(options: Mapping[str, str | int]) -> dict[str, Any]:
    """Translate options of SLURM to parameters of submitit.

    Examples
    --------
    >>> parameters({"partition": "gpu", "nodes": "2", "gpus_per_node": "8", "time": "1-12:00:00"})
    {'partition': 'gpu', 'nodes': 2, 'gpus_per_node': 8, 'time': 2160, 'ntasks_per_node': 8}
    """
    known = _known_parameters()
    chosen: dict[str, Any] = {}
    for option, value in options.items():
        name = option.replace("-", "_")
        name = ALIASES.get(name, name)
        if name not in known:
            raise BenchError(f"--slurm: no parameter {option!r}. {suggest(name, known)}")
        chosen[name] = _minutes(value) if name == "time" else _number(name, value) if name in NUMBERS else value
    chosen.setdefault("ntasks_per_node", chosen.get("gpus_per_node", 1))
    return chosen


def _executor(folder: Path, job: ExtractionJob) -> Any:
    import submitit

    chosen = parameters(job.pipeline.extract.slurm or {})
    try:
        executor = submitit.SlurmExecutor(folder=folder.resolve(), max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**{"job_name": f"bench-{job.features.name}", **chosen})
    except RuntimeError as error:
        raise BenchError(f"--slurm: {error}. Run bench on a host that can submit jobs") from error
    return executor


def _known_parameters() -> list[str]:
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError as error:
        raise BenchError("--slurm needs submitit: pip install 'featbench[slurm]'") from error
    return sorted(SlurmExecutor._valid_parameters())


def _minutes(value: str | int) -> int:
    """Minutes of a SLURM time: minutes, HH:MM:SS or D-HH:MM:SS."""
    days, _, clock = str(value).rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        hours, minutes, seconds = (0, *parts, 0) if len(parts) == 1 else (*parts, 0, 0)[:3]
        return int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)
    except ValueError:
        raise BenchError(f"--slurm: time must be minutes, HH:MM:SS or D-HH:MM:SS; got {value!r}") from None


def _number(name: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise BenchError(f"--slurm: {name} must be a whole number; got {value!r}") from None


def _follow(job: str, log: Path, *, quiet: bool) -> None:
    """Copy the job's log to stderr, and log its states, until it has ended."""
    shown, state = 0, ""
    while True:
        now = _state(job)
        if now != state and now and not quiet:
            logger.info("SLURM job %s: %s", job, now)
        state = now
        if log.exists():
            with log.open(errors="replace") as file:
                file.seek(shown)
                text = file.read()
                shown = file.tell()
            if not quiet:
                sys.stderr.write(text)
                sys.stderr.flush()
        if not state:
            return
        time.sleep(POLL_S)


def _state(job: str) -> str:
    """State of a job that has not ended, such as PENDING or RUNNING; "" once it has."""
    answer = subprocess.run(
        ["squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T"],
        capture_output=True,
        text=True,
        check=False,
    )
    state = answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else ""
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
    return "" if state in over else state


def _outcomes(job: Any) -> list[Outcome]:
    """Read what the tasks returned; a task that returned nothing was killed."""
    outcomes = []
    for task in range(job.num_tasks):
        paths = job.task(task).paths
        if not paths.result_pickle.exists():
            raise BenchError(
                f"SLURM job {job.job_id} ended before its task {task} did; see {paths.stderr}. What was committed is "
                f"safe; the same command goes on from there."
            )
        try:
            outcomes.append(job.task(task).result())
        except Exception as error:  # submitit wraps whatever the task raised
            outcomes.append(Outcome(bug=str(error)))
    return outcomes
