"""Checks of the machine: processor, threads, memory, BLAS, GPUs, faiss."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from featbench.evaluate.memory import free_memory, in_words
from featbench.evaluate.neighbours.backends import multiplies_bfloat16
from featbench.extract.loading import usable_cores
from featbench.pipelines.doctor.finding import Finding, good, note, problem
from featbench.pipelines.doctor.machine import (
    blas_libraries,
    core_quota,
    gpu_names,
    memory_bytes,
    processor_name,
    wide_instructions,
)

GENERIC = ("generic", "prescott", "core2", "penryn", "nehalem", "katmai", "coppermine", "armv8")
"""Kernels of OpenBLAS without AVX, by the names that it gives them."""

LITTLE_MEMORY = 2 * 2**30
SMALL_SHM = 256 * 2**20
FEW_FILES = 1024

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def hardware_findings() -> Iterator[Finding]:
    """Check what bench computes with."""
    yield _processor()
    yield _threads()
    yield _memory()
    yield from _blas()
    yield from _gpus()
    yield _shared_memory()
    yield _open_files()


def _processor() -> Finding:
    found, name = wide_instructions(), processor_name()
    said = f"{name} ({', '.join(found) or 'no wide instructions'})"
    if multiplies_bfloat16():
        return good("processor", f"{said}; the search multiplies in bfloat16")
    if os.uname().machine == "x86_64" and "avx2" not in found:
        return note("processor", f"{said}; without AVX2 everything works, several times as slowly.")
    return good("processor", f"{said}; the search multiplies in float32, since there are no bfloat16 instructions")


def _threads() -> Finding:
    cores, quota, load = usable_cores(), core_quota(), os.getloadavg()[0]
    given = [f"{name}={os.environ[name]}" for name in _THREADS if name in os.environ]
    said = f"{cores} of {os.cpu_count()} cores" + (f", {' '.join(given)}" if given else "")
    if quota is not None and quota < cores - 0.5:
        return problem(
            "threads", f"{said}, but a control group allows the time of {quota:g}, so threads wait for each other.",
            f"Set OMP_NUM_THREADS={max(1, int(quota))}, or start it with as many cores (docker --cpuset-cpus, SLURM "
            f"--cpus-per-task).",
        )  # fmt: skip
    few = [word for word in given if word.rpartition("=")[2].isdecimal() and int(word.rpartition("=")[2]) < cores]
    if few:
        return note("threads", f"{said}: fewer threads than cores.", f"Unset {few[0].partition('=')[0]} to use all.")
    if load > 1.5 * cores:
        return note("threads", f"{said}, and other processes keep them busy (load {load:.1f}).")
    return good("threads", f"{said}, load {load:.1f}")


def _memory() -> Finding:
    free, total = free_memory(), memory_bytes()
    said = f"{in_words(free)} free of {in_words(total)}"
    if free < LITTLE_MEMORY:
        return note("memory", f"{said}.", "Use a small --batch-size, few --workers, and --memory for the evaluation.")
    return good("memory", said)


def _blas() -> Iterator[Finding]:
    libraries = blas_libraries()
    for owner in sorted({each.owner for each in libraries}):
        each = next(library for library in libraries if library.owner == owner)
        slow = each.architecture.lower() in GENERIC and "avx2" in wide_instructions()
        if slow:
            forced = os.environ.get("OPENBLAS_CORETYPE")
            cure = "Unset OPENBLAS_CORETYPE." if forced else f"Install a newer {owner}."
            yield problem(f"BLAS of {owner}", f"{each}, which do not use the processor's AVX2: several times as slow.",
                          cure)  # fmt: skip
        else:
            yield good(f"BLAS of {owner}", f"{each}, {each.threads} threads")
    import torch

    kernels = torch.backends.cpu.get_cpu_capability()
    if kernels == "DEFAULT" and "avx2" in wide_instructions():
        yield problem("kernels of torch", "DEFAULT, which do not use the processor's AVX2.",
                      "Unset ATEN_CPU_CAPABILITY.")  # fmt: skip
    else:
        yield good("kernels of torch", kernels)


def _gpus() -> Iterator[Finding]:
    import torch

    from featbench.evaluate.neighbours.faiss_build import faiss_build

    names, faiss = gpu_names(), faiss_build()
    has_device = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    if names:
        yield good("GPUs", f"{len(names)}: {'; '.join(dict.fromkeys(names))} (CUDA {torch.version.cuda})")
    elif has_device and torch.version.cuda is None:
        yield problem("GPUs", f"there is one, but torch {torch.__version__} is a build without CUDA.",
                      "Install torch from https://pytorch.org/get-started for your CUDA.")  # fmt: skip
    elif has_device:
        yield problem("GPUs", f"there is one, but torch {torch.__version__} can't use it.",
                      "See what nvidia-smi says; the driver may be too old for CUDA "
                      f"{torch.version.cuda}, or CUDA_VISIBLE_DEVICES may be empty.")  # fmt: skip
    else:
        yield good("GPUs", "none; everything runs on the CPU")
    build = f"{faiss.version}, {faiss.options or 'no wide instructions'}"
    if names and not faiss.has_gpu_code:
        yield note("faiss", f"{build}, a build for the CPU: the search uses the CPU.",
                   "To search on the GPU: pip uninstall faiss-cpu; pip install faiss-gpu.")  # fmt: skip
    elif names and not faiss.num_gpus:
        yield problem("faiss", f"{build}, a build for GPUs that sees none, though torch does.",
                      "Install a faiss-gpu for the CUDA of your driver.")  # fmt: skip
    else:
        kind = f"a build for GPUs, which sees {faiss.num_gpus}" if faiss.has_gpu_code else "a build for the CPU"
        yield good("faiss", f"{build}; {kind}")


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    who = "bench does not need it; a DataLoader of yours with workers does"
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return note("/dev/shm", f"there is none. {who}.")
    if free < SMALL_SHM:
        return note("/dev/shm", f"{in_words(free)} free. {who}:", "docker run --shm-size=8g")
    return good("/dev/shm", f"{in_words(free)} free")


def _open_files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FEW_FILES:
        return note("open files", f"at most {soft:,} (hard limit {hard:,}).", "ulimit -n 4096, for many --workers.")
    return good("open files", f"at most {soft:,}")
