"""The forward pass as one compiled graph: from the input to the last tap, with all taps and poolings in it.

The eager pass is traced as it runs, hooks and poolings included (`torch.export`), and compiled for one shape of batch
(`torch.compile`). Nothing depends on what comes after the last tap, so it is not in the graph. The weights are
constants of it (inductor's freezing): batch norm is folded into the convolutions, and weights are reordered once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from featbench.extract.model.repeatability import fixed_images
from featbench.extract.model.rewriting import LowPrecision
from featbench.extract.model.taps import Forward, TappedTrunk
from featbench.store.errors import first_line

TOLERANCES: Mapping[str, float] = {"float32": 1e-6, "tf32": 1e-4, "float16": 1e-4, "bfloat16": 1e-3}
"""How far the cosine between eager and compiled features of an image may be below 1, by precision."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable by which inductor finds what it has compiled before."""

MAX_TIMED_PAIRS = 3
MAX_TIMING_S = 20.0
"""Pairs of an eager and a compiled pass to time; no further one begins after this time."""


class CannotCompileError(Exception):
    """A model that can't be compiled, or whose compiled graph gives other features; says why in one line."""


class CompiledTrunk:
    """A tapped trunk compiled for one shape of batch; smaller batches are padded.

    Parameters
    ----------
    taps : TappedTrunk or LowPrecision
        On its device; has been probed.
    images : Tensor of shape (B, 3, H, W)
        A full batch, as `Transform.scale` returns it. The model is compiled for its shape, in the autocast of the
        caller, in which it must also be called.

    Raises
    ------
    CannotCompileError
        If it can't be compiled.
    """

    def __init__(self, taps: TappedTrunk | LowPrecision, images: Tensor) -> None:
        from torch._inductor import config as inductor

        use_cache()
        self.batch_size = len(images)
        try:
            # As an option of torch.compile, freezing would come too late: the weights would be inputs of the graph.
            with _silent(), torch.no_grad(), inductor.patch(freezing=True):
                with torch.autocast(images.device.type, enabled=False):
                    graph = torch.export.export(_Whole(taps).eval(), (images,), strict=False).module()
                self._graph = torch.compile(graph, fullgraph=True, dynamic=False)
                self._graph(images)
        except Exception as error:  # of many kinds: unsupported operations, no compiler, a full disk
            raise CannotCompileError(_reason(error)) from error

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute every layer of a batch, which may be smaller than the one that it was compiled for."""
        num_images = len(images)
        if num_images < self.batch_size:
            padded = torch.zeros_like(images[:1]).repeat(self.batch_size, 1, 1, 1)
            padded = padded.contiguous(memory_format=torch.channels_last)
            padded[:num_images] = images
            images = padded
        with torch.no_grad():  # as when it was compiled; in inference mode it would be compiled again
            layers: dict[str, Tensor] = self._graph(images)
        return {name: values[:num_images] for name, values in layers.items()}


class _Whole(nn.Module):
    """The tapped trunk as a module that `torch.export` takes."""

    def __init__(self, taps: TappedTrunk | LowPrecision) -> None:
        super().__init__()
        self.trunk = taps.trunk
        self._taps = taps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self._taps.compute(images, to_the_end=True)


def probe_pixels(height: int, width: int, num_images: int) -> Tensor:
    """Return a batch of different images (B, 3, H, W), uint8: the fixed ones, shifted."""
    fixed = fixed_images(height, width)
    return torch.stack([fixed[index % 2].roll((5 * index, 3 * index), (1, 2)) for index in range(num_images)])


def refuse_disagreement(eager: Mapping[str, Tensor], compiled: Mapping[str, Tensor], precision: str) -> None:
    """Compare features of the same images.

    Raises
    ------
    CannotCompileError
        If those of an image differ by more than the tolerance of the precision in a layer.
    """
    said = disagreement(eager, compiled, precision)
    if said:
        raise CannotCompileError(f"its compiled graph gives other features: {said}")


def disagreement(eager: Mapping[str, Tensor], other: Mapping[str, Tensor], precision: str) -> str:
    """Say in which layer features of the same images differ by more than the tolerance of the precision; "" if not."""
    for name, expected in eager.items():
        apart = _one_minus_cosine(expected, other[name][: len(expected)])
        if not apart <= TOLERANCES[precision]:
            return (
                f"in layer {name} the cosine with the eager ones is 1 - {apart:.1g}, and 1 - "
                f"{TOLERANCES[precision]:g} is allowed in {precision}"
            )
    return ""


def paired_seconds(eager: Forward, compiled: Forward, images: Tensor) -> tuple[float, float]:
    """Time both on the same batch, in turn; returns the medians."""
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < MAX_TIMED_PAIRS and (not pairs or time.perf_counter() - start < MAX_TIMING_S):
        pairs.append((seconds_of(eager, images), seconds_of(compiled, images)))
    first, second = zip(*pairs, strict=True)
    return statistics.median(first), statistics.median(second)


def seconds_of(forward: Forward, images: Tensor) -> float:
    """Time one pass, until the device has finished it."""
    start = time.perf_counter()
    forward(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


def use_cache() -> None:
    """Let inductor keep what it compiles in the user's cache folder, by kind of processor and version of torch.

    A home folder may be shared by hosts whose processors differ. A folder that the user has set is kept, and so is
    inductor's own, which torch sets when it is imported, where the cache folder can't be written.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE) not in (None, default_cache_dir()):
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featbench" / "inductor" / _machine()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            os.environ[CACHE] = str(folder)


def _machine() -> str:
    """Name the processor's instructions and the version of torch, which compiled code depends on."""
    flags = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}-torch{torch.__version__}"


def _one_minus_cosine(expected: Tensor, values: Tensor) -> float:
    """Return the largest over the images; 0 where both are zero, infinite where other values are not finite."""
    first, second = expected.flatten(1).double(), values.flatten(1).double()
    if first.shape != second.shape or not torch.equal(first.isfinite(), second.isfinite()):
        return float("inf")
    first, second = first.nan_to_num(0, 0, 0), second.nan_to_num(0, 0, 0)
    norms, others = first.norm(dim=1), second.norm(dim=1)
    both = (norms > 0) & (others > 0)
    cosines = (first * second).sum(1) / torch.where(both, norms * others, 1)
    return float(torch.where(both, 1 - cosines, (norms != others).double()).max())


def _reason(error: Exception) -> str:
    """Say in one line why it can't be compiled; errors of torch's compiler wrap the one that matters."""
    inner: BaseException = error
    while isinstance(getattr(inner, "inner_exception", None), BaseException):
        inner = inner.inner_exception  # type: ignore[attr-defined]
    text = first_line(inner)
    return f"it can't be compiled: {text if len(text) <= 160 else text[:160] + '...'}"


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the compiler's warnings: what matters is raised, or found by comparing features."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch._dynamo", "torch._inductor", "torch.export")]
    loggers.append(logging.getLogger("torch.utils.cpp_extension"))
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
