"""`--batch-size auto` measures a number once, which then is the feature set's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featbench.pipelines.extraction import batch_size
from featbench.pipelines.extraction.batch_size import fastest
from featbench.store import FeatureSet
from tests.conftest import Bench

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, 2)

    def forward(self, images):
        return self.conv(images)

def make():
    return Net()
"""


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Images per second by batch size; memory runs out in batches that it does not have."""
    rates: dict[int, float] = {}

    def seconds_of(forward: Any, images: torch.Tensor) -> float:
        if len(images) not in rates:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(images) / rates[len(images)]

    monkeypatch.setattr(batch_size, "seconds_of", seconds_of)
    return rates


@pytest.mark.parametrize(
    ("measured", "size"),
    [
        ({8: 10.0, 16: 11.0, 32: 11.2, 64: 11.3}, 16),
        ({8: 10.0, 16: 11.0, 32: 15.0, 64: 16.0}, 64),
        ({8: 10.0, 16: 11.0}, 16),
        ({8: 10.0, 16: 9.0, 32: 8.0, 64: 8.0}, 8),
    ],
)
def test_the_smallest_that_is_about_as_fast_as_any_is_taken(
    rates: dict[int, float], measured: dict[int, float], size: int
) -> None:
    rates.update(measured)
    assert fastest(lambda _: {}, lambda number: torch.zeros(number), (8, 16, 32, 64)) == (size, measured[size])


def test_no_further_size_is_tried_after_some_time(rates: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "MAX_S", 0.0)
    rates.update({8: 1.0, 16: 100.0})
    assert fastest(lambda _: {}, lambda number: torch.zeros(number), (8, 16)) == (8, 1.0)


def test_memory_that_does_not_suffice_for_the_smallest_is_an_error(rates: dict[int, float]) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        fastest(lambda _: {}, lambda number: torch.zeros(number), (8, 16))


@pytest.fixture
def extract(bench: Bench, photographs: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    (tmp_path / "own.py").write_text(NET)

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return bench(
            "extract", "folder", "--data", photographs, "model.trunk=own.py:make", "--random-weights", "1", "--layers",
            "conv", "transform.resize=32", "transform.crop=32", "--workers", "0", *more
        )  # fmt: skip

    return run


def test_the_number_is_the_feature_sets(
    extract: Callable[..., subprocess.CompletedProcess[str]], rates: dict[int, float], tmp_path: Path
) -> None:
    rates.update({8: 10.0, 16: 20.0, 32: 20.0})
    result = extract("--batch-size", "auto")
    assert result.returncode == 0, result.stderr
    manifest = FeatureSet.open(tmp_path / "features/folder").manifest
    assert manifest.made_from["extract"]["batch_size"] == 16
    rates.clear()
    assert "Nothing to do" in extract("--batch-size", "auto").stderr, "it is not measured again"
    refused = extract("--batch-size", "8")
    assert refused.returncode == 2
    assert "extract.batch_size: it has 16, you ask for 8" in refused.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--slurm", "partition=gpu"), "`bench plan --batch-size auto` says which"),
        (("storage.rows_per_chunk=20",), "storage.rows_per_chunk=20 is a multiple of none of the sizes"),
    ],
)
def test_where_it_cannot_be_measured_a_number_is_asked_for(
    extract: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    refused = extract("--batch-size", "auto", *more)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (tmp_path / "features/folder").exists()


@pytest.mark.parametrize("given", ["large", "0", "1.5"])
def test_another_word_is_refused(extract: Callable[..., subprocess.CompletedProcess[str]], given: str) -> None:
    refused = extract("--batch-size", given)
    assert refused.returncode == 2
    assert "extract.batch_size" in refused.stderr
    assert "Traceback" not in refused.stderr
