"""What the machine is: processor and its instructions, cores, memory, kernels of the BLAS libraries, GPUs."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

WIDE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")
"""Instructions that decide how fast products are; `bf16` is ARM's."""


@dataclass(frozen=True, slots=True)
class Blas:
    """One BLAS library that is loaded."""

    owner: str
    """The package that brought it, such as numpy."""

    name: str
    version: str
    architecture: str
    """What its kernels were written for; "unknown" if it does not say."""

    threads: int

    def __str__(self) -> str:
        return f"{self.name} {self.version}, kernels for {self.architecture}"


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor is called."""
    found = re.search(r"^model name\s*:\s*(.*)$", _text_of(cpuinfo), re.M)
    return found[1] if found else platform.processor() or platform.machine()


def wide_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return those of `WIDE` that the processor has."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _text_of(cpuinfo), re.M)
    flags = set(found[1].split()) if found else set()
    return tuple(each for each in WIDE if each in flags)


def core_quota(root: Path = Path("/")) -> float | None:
    """Return how many cores' time the control groups of this process allow; None if there is no limit."""
    limits = []
    for line in _text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/cpu" if controllers else "sys/fs/cgroup")
        folder = top / path.lstrip("/")
        limits += [_quota(group) for group in (folder, *folder.parents) if group.is_relative_to(top)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def memory_bytes() -> int:
    """Return the bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def blas_libraries() -> list[Blas]:
    """Return the BLAS libraries that NumPy, SciPy, faiss and torch have loaded."""
    import scipy.linalg
    import torch  # noqa: F401 (loaded, so that it is listed)
    from threadpoolctl import threadpool_info

    from featbench.evaluate.neighbours.faiss_build import faiss_build

    faiss_build()
    assert scipy.linalg
    return [
        Blas(
            Path(info["filepath"]).parent.name.removesuffix(".libs"),
            info["internal_api"],
            str(info["version"]),
            info.get("architecture", "unknown"),
            info["num_threads"],
        )
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]


def gpu_names() -> list[str]:
    """Return name and memory of each GPU that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{each.name}, {each.total_memory / 2**30:.0f} GiB" for each in found]


def _quota(group: Path) -> float | None:
    try:
        quota, period = _text_of(group / "cpu.max").split()
    except ValueError:
        quota, period = (_text_of(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if not quota.isdecimal() or not period.isdecimal():  # "max", -1, or no such file
        return None
    return int(quota) / int(period)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
