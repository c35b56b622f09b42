"""Copies and passes overlap on a GPU, in an order that no data is read in before it is written; and what is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featbench.extract import passes
from featbench.extract.errors import ImageError, OutOfMemoryError
from featbench.extract.extraction import _in_flight
from featbench.extract.passes import CudaPasses, DirectPasses, passes_on
from featbench.extract.profile import Profile, mean_of
from featbench.extract.transform import Transform

CPU = torch.device("cpu")
PIXELS = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)


def trunk(images: Tensor) -> dict[str, Tensor]:
    return {"mean": images.mean((2, 3)), "half": images.amax((2, 3)).half()}


class FakeCuda:
    """CUDA streams and events that run at once, and note what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self._streams = iter(["in", "out"])
        self.running = ["compute"]
        outer = self

        class Stream:
            def __init__(self, name: str) -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                outer.log.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self, **_: Any) -> None:
                self.at = 0.0

            def record(self, stream: Stream) -> None:
                self.at, self.stream = time.perf_counter(), stream.name

            def synchronize(self) -> None:
                outer.log.append(f"loop waits for {self.stream}")

            def elapsed_time(self, end: Event) -> float:
                return 1000 * (end.at - self.at)

        @contextmanager
        def entered(stream: Stream) -> Iterator[None]:
            self.running.append(stream.name)
            yield
            self.running.pop()

        monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream(next(self._streams)))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("compute"))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", entered)

        def pinned(values: Tensor) -> Tensor:
            self.log.append(f"copied on {self.running[-1]}")
            return torch.empty_like(values)

        monkeypatch.setattr(passes, "pinned_like", pinned)

    def trunk(self, images: Tensor) -> dict[str, Tensor]:
        self.log.append(f"pass on {self.running[-1]}")
        return trunk(images)


def test_a_gpu_waits_for_each_copy_before_it_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, profile = FakeCuda(monkeypatch), Profile()
    on_gpu = CudaPasses(CPU, cuda.trunk, Transform(), "float32", profile)
    results = [on_gpu.start(PIXELS), on_gpu.start(PIXELS.flip(0))]
    once = ["compute waits for in", "pass on compute", "out waits for compute", "copied on out", "copied on out"]
    assert cuda.log == 2 * once
    found = [result() for result in results]
    assert cuda.log[10:] == 2 * ["loop waits for out"]
    direct = DirectPasses(CPU, trunk, Transform(), "float32", Profile())
    for pixels, features in zip((PIXELS, PIXELS.flip(0)), found, strict=True):
        for name, expected in direct.start(pixels)().items():
            assert features[name].dtype == np.float32
            np.testing.assert_array_equal(features[name], expected)
    assert min(profile.copying, profile.forward, profile.copying_back, profile.waited_for_device) > 0


def test_batches_are_started_before_the_one_before_is_waited_for() -> None:
    log: list[str] = []

    def start(batch: int) -> Callable[[], Any]:
        log.append(f"start {batch}")
        return lambda: log.append(f"wait {batch}")

    for _, result in _in_flight(iter([0, 1, 2]), start, 1):
        result()
    assert log == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]


def test_an_image_that_cannot_be_read_does_not_cost_the_batches_before_it() -> None:
    def loaded() -> Iterator[int]:
        yield from (0, 1)
        raise ImageError("b.jpg")

    finished: list[int] = []

    def extract() -> None:
        for batch, _ in _in_flight(loaded(), lambda batch: batch, 1):
            finished.append(batch)

    with pytest.raises(ImageError, match=r"b\.jpg"):
        extract()
    assert finished == [0, 1]


@pytest.mark.parametrize("kind", [CudaPasses, DirectPasses])
def test_memory_that_runs_out_is_one_message(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)

    def full(_: Tensor) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError, match="in the forward pass of 2 images on cpu.*--batch-size lower"):
        kind(CPU, full, Transform(), "float32", Profile()).start(PIXELS)


def test_a_pass_on_the_cpu_is_timed_and_done_at_once() -> None:
    profile = Profile()
    slow = passes_on(CPU, lambda images: (time.sleep(0.02), trunk(images))[1], Transform(), "float32", profile)
    assert slow.ahead == 0
    slow.start(PIXELS)
    assert 0.02 <= profile.forward <= profile.waited_for_device


def test_the_slowest_step_is_the_one_that_the_loop_waits_for() -> None:
    busy = {"decoding": 100.0, "forward": 50.0, "copying": 1.0, "writing": 60.0}
    waits = {"waited_for_images": 1.0, "waited_for_device": 45.0, "waited_for_writing": 3.0}
    assert Profile(**busy, **waits).slowest == "forward"
    assert Profile(**{**busy, "copying": 60.0}, **waits).slowest == "copy"
    assert Profile(**busy, **{**waits, "waited_for_images": 46.0}).slowest == "decode"
    assert Profile(**busy, **{**waits, "waited_for_writing": 46.0}).slowest == "write"
    both = mean_of([Profile(rows=10, seconds=4.0, decoders=2), Profile(rows=30, seconds=6.0, decoders=2)])
    assert (both.rows, both.seconds, both.decoders) == (40, 5.0, 2)
