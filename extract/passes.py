"""Forward passes of a rank, one batch after the other, with the copies to and from the device beside them.

On a GPU everything is asynchronous: a batch is copied in on a stream of its own while the batch before it is computed,
and its features are copied out on a third stream into pinned memory. The loop holds `ahead` batches in flight, so that
it loads, launches and writes while the device works. On other devices a pass is done when it returns.

The tensors of a batch are referred to until its last copy is done. So torch can't give their memory to another batch
while a stream still uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from featbench.extract.memory import out_of_memory_is
from featbench.extract.model.taps import Forward
from featbench.extract.profile import Profile
from featbench.extract.transform import Transform
from featbench.store.typing import Floats

OUT_OF_MEMORY = (
    "Set --batch-size lower (it belongs to the fingerprint: another --name, or --overwrite), use a device with more "
    "memory, or fewer ranks on it. What was committed is safe."
)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Features = dict[str, Floats]
"""Of a batch, by layer, as float32."""


class Passes(Protocol):
    """Runs a trunk on batches of pixels (B, 3, H, W), uint8."""

    ahead: int
    """Batches to have started, besides the oldest, before its features are asked for."""

    def start(self, pixels: Tensor) -> Callable[[], Features]:
        """Start a pass; what it returns waits for the features. To be called once, in the order of the batches."""
        ...


def passes_on(device: torch.device, trunk: Forward, transform: Transform, precision: str, profile: Profile) -> Passes:
    """Return what runs a trunk on its device."""
    kind = CudaPasses if device.type == "cuda" else DirectPasses
    return kind(device, trunk, transform, precision, profile)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass has this precision."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()


@dataclass(slots=True)
class DirectPasses:
    """Passes on a device without streams; each is done when `start` returns."""

    device: torch.device
    trunk: Forward
    transform: Transform
    precision: str
    profile: Profile
    ahead: int = 0

    def start(self, pixels: Tensor) -> Callable[[], Features]:
        with _memory(pixels, self.device), self.profile.timed("waited_for_device"):
            with self.profile.timed("copying"):
                images = self.transform.scale(pixels, self.device)
            with self.profile.timed("forward"), autocast(self.device, self.precision):
                layers = self.trunk(images)
            with self.profile.timed("copying_back"):
                features = {name: values.float().cpu().numpy() for name, values in layers.items()}
        return lambda: features


class CudaPasses:
    """Passes on a GPU, with a stream for each direction of copying."""

    ahead = 1

    def __init__(
        self, device: torch.device, trunk: Forward, transform: Transform, precision: str, profile: Profile
    ) -> None:
        self._device, self._trunk, self._transform, self._precision = device, trunk, transform, precision
        self._profile = profile
        self._copying_in = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copying_out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, pixels: Tensor) -> Callable[[], Features]:
        """Queue the copies and the pass of a batch; `pixels` is in pinned memory."""
        computing = torch.cuda.current_stream(self._device)
        marks = _Marks()
        with _memory(pixels, self._device), self._profile.timed("waited_for_device"):
            with torch.cuda.stream(self._copying_in):
                marks.add(self._copying_in)
                there = pixels.to(self._device, non_blocking=True)
                marks.add(self._copying_in)
            computing.wait_stream(self._copying_in)
            marks.add(computing)
            images = self._transform.scale(there, self._device)
            with autocast(self._device, self._precision):
                layers = {name: values.float().contiguous() for name, values in self._trunk(images).items()}
            marks.add(computing)
            self._copying_out.wait_stream(computing)
            with torch.cuda.stream(self._copying_out):
                marks.add(self._copying_out)
                copies = {name: pinned_like(values) for name, values in layers.items()}
                for name, values in layers.items():
                    copies[name].copy_(values, non_blocking=True)
                marks.add(self._copying_out)
        held = [pixels, there, images, layers]

        def features() -> Features:
            with _memory(pixels, self._device), self._profile.timed("waited_for_device"):
                marks.wait()
            held.clear()
            for step, start, end in (("copying", 0, 1), ("forward", 2, 3), ("copying_back", 4, 5)):
                setattr(self._profile, step, getattr(self._profile, step) + marks.seconds(start, end))
            return {name: values.numpy() for name, values in copies.items()}

        return features


def _memory(pixels: Tensor, device: torch.device) -> AbstractContextManager[None]:
    return out_of_memory_is(f"in the forward pass of {len(pixels)} images on {device}", OUT_OF_MEMORY)


class _Marks:
    """Moments in the streams of a batch."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def add(self, stream: Any) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        self._events.append(event)

    def wait(self) -> None:
        """Wait for the last one, which comes after all others."""
        self._events[-1].synchronize()

    def seconds(self, start: int, end: int) -> float:
        return float(self._events[start].elapsed_time(self._events[end])) / 1000


def pinned_like(values: Tensor) -> Tensor:
    """Return host memory for a tensor's values, from which a device copies without waiting."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
