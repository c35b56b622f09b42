"""A feature set takes no features of a model that has changed, and what is wrong with a model is said first."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featbench.pipelines.extraction.job import ExtractionJob
from featbench.pipelines.extraction.rank import run_rank
from featbench.pipelines.ranks import Rank
from featbench.store import FeatureSet
from tests.conftest import Bench
from tests.reliability.ranks import chunks_of

SMALL = ("transform.resize=32", "transform.crop=32", "extract.workers=0", "--quiet")
NET = """
import json, pathlib
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 5, 2), nn.Linear(8, 5)

    def forward(self, images):
        scale = json.loads(pathlib.Path("scale.json").read_text())
        return self.linear(torch.relu(self.conv(images * scale)).mean((2, 3)))
"""


@pytest.fixture
def extract(
    bench: Bench, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Extract from a model of two files, each time as a new process would."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "own.py").write_text("import net\n\n\ndef make():\n    return net.Net()\n")
    (tmp_path / "scale.json").write_text("1.0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(layers: str, *more: str) -> subprocess.CompletedProcess[str]:
        sys.modules.pop("net", None)
        return bench("extract", "folder", "--data", photographs, "model.trunk=own.py:make", "--random-weights", "1",
                     "--layers", layers, *SMALL, *more)  # fmt: skip

    yield run
    sys.modules.pop("net", None)


def test_code_that_the_model_imports_is_in_the_fingerprint(extract: Callable[..., Any], tmp_path: Path) -> None:
    result = extract("conv")
    assert result.returncode == 0, result.stderr
    assert FeatureSet.open(tmp_path / "features/folder").manifest.made_from["model"]["code"].keys() == {"net.py"}
    (tmp_path / "net.py").write_text(NET.replace("torch.relu", "torch.tanh"))
    for layers in ("conv", "flatten"):
        refused = extract(layers)
        assert refused.returncode == 2
        assert "model.code.net.py: it has" in refused.stderr
    assert FeatureSet.open(tmp_path / "features/folder").manifest.layers.keys() == {"conv"}


def test_a_layer_of_a_model_that_gives_other_features_is_refused(extract: Callable[..., Any], tmp_path: Path) -> None:
    """What no digest covers: here a file that the code reads, as a version of a library would be."""
    assert extract("conv").returncode == 0
    result = extract("flatten")
    assert result.returncode == 0, result.stderr
    kept = FeatureSet.open(tmp_path / "features/folder").manifest.notes["probe"]
    assert kept.keys() == {"conv", "flatten"}
    assert len(kept["flatten"]["products"]) == 8
    (tmp_path / "scale.json").write_text("1.01")
    for layers in ("conv", "linear", "conv,linear"):
        refused = extract(layers)
        assert refused.returncode == 2
        assert "layer conv: for a fixed image it differs by 0.0" in refused.stderr
        assert "choose another --name" in refused.stderr
    assert FeatureSet.open(tmp_path / "features/folder").manifest.layers.keys() == {"conv", "flatten"}
    assert extract("linear", "--overwrite").returncode == 0


@pytest.mark.parametrize("layers", ["conv", "flatten"])
def test_a_set_that_another_model_has_replaced_before_the_lock_is_refused(
    extract: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str
) -> None:
    """Its settings are the same, so the fingerprint is."""
    assert extract("conv").returncode == 0
    path = tmp_path / "features/folder"

    def after_another(rank: Rank, job: ExtractionJob, **options: bool) -> tuple[str, ...]:
        monkeypatch.setattr("featbench.pipelines.extraction.run.run_rank", run_rank)
        (tmp_path / "scale.json").write_text("1.01")
        assert extract("conv", "--overwrite").returncode == 0
        (tmp_path / "scale.json").write_text("1.0")
        chunks.update(chunks_of(path))
        return run_rank(rank, job, **options)

    chunks: dict[str, bytes] = {}
    monkeypatch.setattr("featbench.pipelines.extraction.run.run_rank", after_another)
    refused = extract(layers)
    assert refused.returncode == 2, refused.stderr
    assert "layer conv: for a fixed image it differs by 0.0" in refused.stderr
    assert chunks_of(path) == chunks
    assert FeatureSet.open(path).manifest.layers.keys() == {"conv"}


def test_a_set_without_a_summary_can_still_be_extended(extract: Callable[..., Any], tmp_path: Path) -> None:
    assert extract("conv").returncode == 0
    path = tmp_path / "features/folder/zarr.json"
    from featbench.store.manifest import ATTRIBUTE, DIGEST, digest_of

    text = json.loads(path.read_text())
    del text["attributes"][ATTRIBUTE]["notes"]["probe"]
    text["attributes"][DIGEST] = digest_of(text["attributes"][ATTRIBUTE])
    path.write_text(json.dumps(text))
    result = extract("flatten")
    assert result.returncode == 0, result.stderr
    assert FeatureSet.open(tmp_path / "features/folder").manifest.notes["probe"].keys() == {"flatten"}


def test_the_summary_says_what_flatten_is(extract: Callable[..., Any]) -> None:
    result = extract("flatten")
    assert "flatten is what goes into linear" in result.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.trunk=missing.py:make", "--random-weights", "1"), "no file missing.py"),
        (("model.trunk=resnet81", "--random-weights", "1"), "unknown trunk 'resnet81'"),
        (("model.trunk=resnet18", "--random-weights", "1", "--layers", "res9"), "no tap 'res9'"),
        (("model.trunk=resnet18", "--weights", "missing.pth"), "missing.pth: no such file"),
        (("model.trunk=resnet18", "--random-weights", "1", "transform.crop=1000000"), "transform.crop"),
        (("model.trunk=resnet18", "--random-weights", "1", "transform.resize=[64,1000000]"), "transform.resize"),
        (("model.trunk=resnet18", "--random-weights", "1", "transform.std=[1e-30,1,1]"), "transform.std"),
        (("model.trunk=resnet18", "--random-weights", "1", "transform.mean=[.nan,0,0]"), "transform.mean"),
        (("model.trunk=resnet18", "--random-weights", str(2**70)), "weights.random_seed"),
        (("model.trunk=resnet18", "--random-weights", "1", "extract.batch_size=1000000000"), "extract.batch_size"),
        (
            ("model.trunk=resnet18", "--random-weights", "1", "--layers", "res5:AdaptiveAvgPool2d(1000000)"),
            "cannot be pooled",
        ),
        (
            ("model.trunk=resnet18", "--random-weights", "1", f"model.heads=[[mlp, {{dims: [512, {10**13}]}}]]"),
            "head mlp cannot be built",
        ),
    ],
)
def test_what_is_wrong_with_the_model_is_said_before_any_image_is_listed(
    bench: Bench, photographs: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], message: str
) -> None:
    def listed(*_: object, **__: object) -> None:
        pytest.fail("the images were listed first")

    monkeypatch.setattr("featbench.extract.data.sources.open_sources", listed)
    result = bench("extract", "folder", "--data", photographs, *SMALL, *settings)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
