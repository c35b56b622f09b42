"""Whatever goes wrong while images are decoded, an extraction ends: with one message, and no process left over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from featbench.__main__ import main
from featbench.extract.transform import Transform
from featbench.store import ChunkWriter, FeatureSet
from tests.conftest import Bench

MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 7, 4)
        self.fc = torch.nn.Linear(4, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += len(x) == 2
        if self.calls > {calls}:
            raise {error}
        return self.fc(self.conv(x).mean((2, 3)))

def net():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def extract(bench: Bench, photographs: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Extract the photographs with two decoding processes and a model that may fail."""

    def run(*arguments: Any, error: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "net.py").write_text(
            MODEL.format(error=error or "AssertionError", calls=3 if error else 99), encoding="utf-8"
        )
        return bench(
            "extract", "folder", "--data", photographs, "model.trunk=net.py:net", "weights.as_built=true", "--layers",
            "fc", "transform.resize=32", "transform.crop=32", "extract.batch_size=2", "storage.rows_per_chunk=2",
            "--workers", "2", "--quiet", *arguments,
        )  # fmt: skip

    yield run
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", ["torch.OutOfMemoryError('Tried to allocate 2.00 GiB')", "MemoryError"])
def test_memory_that_runs_out_in_the_forward_pass_is_a_message(
    extract: Callable[..., Any], error: str, tmp_path: Path
) -> None:
    failed = extract(error=error)
    assert failed.returncode == 2
    assert "error: out of memory in the forward pass of 2 images on cpu" in failed.stderr
    assert "--batch-size" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert FeatureSet.open(tmp_path / "features/folder").records, "what was computed before is committed"


def test_a_bug_ends_the_run_with_its_traceback(extract: Callable[..., Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        extract(error="ZeroDivisionError")


def test_an_interrupt_that_nobody_handles_ends_the_run(extract: Callable[..., Any]) -> None:
    assert extract(error="KeyboardInterrupt").returncode == 130


def test_an_error_of_the_writer_ends_the_run(extract: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: ChunkWriter, *arguments: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(ChunkWriter, "write", refuses)
    with pytest.raises(LookupError):
        extract()


def test_a_decoding_process_that_is_killed_ends_the_run_with_the_rows_it_had(
    extract: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Transform.pixels

    def pixels(self: Transform, image: Image.Image, **settings: bool) -> Tensor:
        if multiprocessing.parent_process() is not None and image.size == (45, 30):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, image, **settings)

    monkeypatch.setattr(Transform, "pixels", pixels)
    failed = extract()
    assert failed.returncode == 2
    assert "a decoding process was killed (SIGKILL) while it read rows 4 to 5 of train" in failed.stderr


@pytest.mark.parametrize("error", [MemoryError("no more"), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_runs_out_anywhere_else_is_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: MemoryError | torch.OutOfMemoryError
) -> None:
    def command(**options: str) -> None:
        raise error

    monkeypatch.setattr("featbench.pipelines.cli.app.app", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "error: out of memory (" in capsys.readouterr().err
