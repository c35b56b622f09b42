"""The device that a setting means, and how it computes."""

from __future__ import annotations

import torch

from featbench.extract.errors import ModelError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of a setting: `cuda` is this rank's GPU, `auto` too, or the CPU if there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda", "mps"):
            raise ModelError(f"device {name!r} can't be used; expected cpu, cuda or mps. Try --device cpu")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {name!r} can't be used: {str(error).splitlines()[0]}. Try --device cpu") from error
    return device


def refuse_precision(device: torch.device, precision: str) -> None:
    """Refuse a precision that the device does not have.

    Raises
    ------
    ModelError
        If it is tf32, and the device is no GPU of NVIDIA's from Ampere on.
    """
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise ModelError(
            f"--precision tf32 is for NVIDIA's GPUs from Ampere (A100) on, and this device is {device}. Try "
            "--precision float32, or bfloat16"
        )


def make_repeatable(device: torch.device, precision: str, threads: int | None) -> None:
    """Let the same images give the same bytes in every rank, and float32 mean float32.

    Raises
    ------
    ModelError
        If the device does not have that precision.
    """
    refuse_precision(device, precision)
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        if precision in ("float32", "tf32"):
            # By default convolutions have it, with 10 bits of mantissa, and products of matrices do not.
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
