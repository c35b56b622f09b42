"""VISSL's `DISTRIBUTED`, `MACHINE` and `SLURM`: how many processes on how many machines, which changes no result."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from featbench.pipelines.foreign.vissl_keys import Keys

_SLURM = {
    "PARTITION": "partition", "CONSTRAINT": "constraint", "COMMENT": "comment", "NAME": "job_name",
    "NUM_CPU_PER_PROC": "cpus_per_task",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Processes that VISSL would have started, one for each GPU."""

    nodes: int = 1
    processes: int | None = None
    """On each machine; None if nothing says."""

    on_cpu: bool = False
    is_typed: bool = False
    """Whether the command line says how many processes, not only a file."""

    rendezvous: str | None = None
    """HOST:PORT of the first of several machines."""

    slurm: dict[str, str | int] | None = None
    """Parameters of a SLURM job, if it is to be one."""

    @property
    def ranks(self) -> int | None:
        """Ranks to start on a CPU: as many as the command line says."""
        return self.processes if self.on_cpu and self.is_typed and self.slurm is None else None

    @property
    def gpus(self) -> int | None:
        """GPUs to use on each machine, if there are that many."""
        return None if self.on_cpu or self.slurm is not None else self.processes

    @property
    def advice(self) -> str:
        """What to add to a command for as many processes; "" for none."""
        if self.nodes > 1 and self.slurm is None:
            return f"For {self.nodes} machines: {self.torchrun} -m featbench extract THIS_FILE, on each of them."
        options = [f"--gpus {self.gpus}"] * ((self.gpus or 1) > 1) + [f"--ranks {self.ranks}"] * ((self.ranks or 1) > 1)
        return f"For as many processes as there: {options[0]}" if options else ""

    @property
    def torchrun(self) -> str:
        """The beginning of the line that starts the ranks of one of several machines."""
        return (
            f"torchrun --nnodes={self.nodes} --nproc-per-node={self.processes or 1} --rdzv-backend=c10d "
            f"--rdzv-endpoint={self.rendezvous or 'FIRST_HOST:29500'}"
        )


def translate_launch(keys: Keys, typed: Collection[str]) -> Launch:
    """Take the keys that say how many processes VISSL would have started."""
    where = "DISTRIBUTED."
    nodes, processes = keys.take(where + "NUM_NODES", 1), keys.take(where + "NUM_PROC_PER_NODE")
    for key, value in (("NUM_NODES", nodes), ("NUM_PROC_PER_NODE", 1 if processes is None else processes)):
        if type(value) is not int or not 1 <= value <= 1024:
            keys.fault(f"{where}{key}: must be a whole number from 1 to 1024; got {value!r}")
            nodes, processes = 1, None
    run = str(keys.left.get(where + "RUN_ID", ""))
    settings = keys.section("SLURM")
    on_cpu = keys.take("MACHINE.DEVICE", "gpu") == "cpu"
    slurm = _slurm(keys, settings, nodes, processes, on_cpu=on_cpu) if settings.get("USE_SLURM") else None
    return Launch(
        nodes=nodes,
        processes=processes,
        on_cpu=on_cpu,
        is_typed=where + "NUM_PROC_PER_NODE" in typed,
        rendezvous=run if ":" in run and not run.startswith("localhost") else None,
        slurm=slurm,
    )


def _slurm(
    keys: Keys, settings: dict[str, Any], nodes: int, processes: int | None, *, on_cpu: bool
) -> dict[str, str | int]:
    """Translate VISSL's SLURM settings to those of `extract.slurm`."""
    job: dict[str, str | int] = {"nodes": nodes}
    job["ntasks_per_node" if on_cpu else "gpus_per_node"] = processes or 1
    job |= {name: settings[key] for key, name in _SLURM.items() if settings.get(key)}
    hours, minutes = settings.get("TIME_HOURS", 72), settings.get("TIME_MINUTES", 0)
    try:
        job["time"] = int(hours) * 60 + int(minutes)
        job["mem"] = f"{int(settings.get('MEM_GB', 250))}GB"
    except (TypeError, ValueError):
        keys.fault("SLURM: TIME_HOURS, TIME_MINUTES and MEM_GB must be whole numbers")
    more = {key: value for key, value in settings.items() if key.startswith("ADDITIONAL_PARAMETERS.")}
    return job | {key.removeprefix("ADDITIONAL_PARAMETERS."): value for key, value in more.items()}
