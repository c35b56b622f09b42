"""Which rank this process is: one that torchrun or srun started, or the only one.

Ranks share nothing but the feature set, so a rank is only a name for the run, a number for its journal and
GPU, and a chunk to begin with.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process of a run."""

    run: str
    """The same in all processes that work together, and different in any other run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the ranks of this host; the number of its GPU."""

    local_world_size: int = 1
    """Ranks that share this host's cores."""


def alone() -> Rank:
    """Return the only rank of a new run."""
    return Rank(run=uuid.uuid4().hex)


def from_environment(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """Return the rank that torchrun or srun has made this process; None if neither started it.

    Examples
    --------
    >>> from_environment({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4",
    ...                   "SLURM_LOCALID": "1"})
    Rank(run='slurm-7.0.0', rank=3, world_size=4, local_rank=1, local_world_size=4)
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        run = "-".join(environment.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))
        rank, world_size, local_rank = "RANK", "WORLD_SIZE", "LOCAL_RANK"
        sharing = int(environment["LOCAL_WORLD_SIZE"])
    elif "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        keys = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        run = "slurm-" + ".".join(environment.get(key, "0") for key in keys)
        rank, world_size, local_rank = "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"
        is_bound = "SLURM_CPUS_PER_TASK" in environment  # each task has its own cores
        sharing = 1 if is_bound else -(-int(environment[world_size]) // int(environment.get("SLURM_NNODES", "1")))
    else:
        return None
    return Rank(
        run=run,
        rank=int(environment[rank]),
        world_size=int(environment[world_size]),
        local_rank=int(environment[local_rank]),
        local_world_size=sharing,
    )
