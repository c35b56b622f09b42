"""Where the time of an extraction goes: how long each step was busy, and how long the loop waited for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass(slots=True, kw_only=True)
class Profile:
    """Seconds of one rank, while it extracted; several steps are busy at the same time."""

    device: str = "cpu"
    rows: int = 0
    seconds: float = 0.0
    """From the first batch that was asked for to the last chunk that was written."""

    decoders: int = 0
    """Processes that decode; 0 if the loop itself does."""

    decoding: float = 0.0
    """Of all decoding processes together."""

    copying: float = 0.0
    """To the device, and scaling to floats there."""

    forward: float = 0.0
    """The forward pass, with taps and poolings."""

    copying_back: float = 0.0
    """From the device, as float32."""

    writing: float = 0.0

    waited_for_images: float = 0.0
    waited_for_device: float = 0.0
    """With the time to start passes. On a CPU, the loop itself computes them."""

    waited_for_writing: float = 0.0

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time that a block takes to a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, step, getattr(self, step) + time.perf_counter() - start)

    @property
    def slowest(self) -> str:
        """What the loop spent most time on or waited longest for: `decode`, `forward`, `copy` or `write`."""
        on_device = {"forward": self.forward, "copy": self.copying + self.copying_back}
        lost = {
            "decode": self.waited_for_images,
            max(on_device, key=lambda step: on_device[step]): self.waited_for_device,
            "write": self.waited_for_writing,
        }
        return max(lost, key=lambda step: lost[step])


def mean_of(profiles: Sequence[Profile]) -> Profile:
    """Return the mean over ranks; rows are those of all of them."""
    mean = Profile(device=profiles[0].device, decoders=profiles[0].decoders)
    for each in fields(Profile):
        if each.type == "float":
            setattr(mean, each.name, sum(getattr(profile, each.name) for profile in profiles) / len(profiles))
    mean.rows = sum(profile.rows for profile in profiles)
    return mean
