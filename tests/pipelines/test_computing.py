"""Each layer is computed in one way, eager or compiled, which is decided once and recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featbench.extract.model.compiling import CompiledTrunk
from featbench.extract.model.rewriting import CannotRewriteError
from featbench.pipelines.config.pipeline import load_pipeline
from featbench.pipelines.extraction import computing
from featbench.pipelines.extraction.computing import form_of, graph_of, planned
from featbench.pipelines.extraction.forms import in_form
from featbench.store import ChunkWriter, FeatureSet, Manifest, StoreError
from featbench.store.manifest import ATTRIBUTE, DIGEST, digest_of
from tests.conftest import Bench

Extract = Callable[..., subprocess.CompletedProcess[str]]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 5, 2), nn.Linear(8, 5)

    def forward(self, images):
        {first}
        return self.linear(torch.relu(self.conv(images)).mean((2, 3)))

def make():
    return Net()
"""


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traced graph runs as it is, which takes no compiler."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)


@pytest.fixture
def extract(bench: Bench, photographs: Path, tmp_path: Path) -> Extract:
    """Extract `conv` and `linear` of a small model."""
    (tmp_path / "own.py").write_text(NET.format(first=""))

    def run(*more: str, layers: str = "conv,linear") -> subprocess.CompletedProcess[str]:
        return bench("extract", "folder", "--data", photographs, "model.trunk=own.py:make", "--random-weights", "1",
                     "--layers", layers, "transform.resize=32", "transform.crop=32", "--workers", "0",
                     "--batch-size", "2", "storage.rows_per_chunk=4", *more)  # fmt: skip

    return run


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Layers of each pass of a compiled graph."""
    passes: list[set[str]] = []

    def call(self: CompiledTrunk, images: torch.Tensor) -> dict[str, torch.Tensor]:
        layers = once(self, images)
        passes.append(set(layers))
        return layers

    once = CompiledTrunk.__call__
    monkeypatch.setattr(CompiledTrunk, "__call__", call)
    return passes


def manifest_of(tmp_path: Path, name: str = "folder") -> Manifest:
    return FeatureSet.open(tmp_path / "features" / name).manifest


def rows_of(tmp_path: Path, layer: str, name: str = "folder") -> np.ndarray:
    return FeatureSet.open(tmp_path / "features" / name).layer("train", layer).read()


def fail_after_a_chunk(context: pytest.MonkeyPatch, tmp_path: Path, layer: str) -> None:
    """Let writing fail after the first chunk."""

    def write(self: ChunkWriter, *args: Any) -> None:
        if FeatureSet.open(tmp_path / "features/folder").pending([layer])[0].chunk > 0:
            raise StoreError("power cut")
        once(self, *args)

    once = ChunkWriter.write
    context.setattr(ChunkWriter, "write", write)


def test_a_compiled_layer_is_continued_by_the_same_graph(
    extract: Extract, graphs: list[set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extract("--name", "eager").returncode == 0
    assert not graphs
    assert graph_of(manifest_of(tmp_path, "eager"), "conv") == ()

    with monkeypatch.context() as context:
        fail_after_a_chunk(context, tmp_path, "conv")
        assert extract("--compile", "on").returncode == 2
    manifest = manifest_of(tmp_path)
    assert graph_of(manifest, "conv") == ("conv", "linear")
    assert manifest.notes["computed"]["conv"]["torch"] == torch.__version__
    refused = extract("--compile", "off")
    assert refused.returncode == 2
    assert "layer conv: it is computed by a compiled graph, you ask for extract.compile=off" in refused.stderr
    with monkeypatch.context() as context:
        context.setattr(torch, "compile", lambda *_, **__: 1 / 0)
        refused = extract("--compile", "auto")
        assert refused.returncode == 2
        assert "conv, linear: begun with a compiled graph, and here it can't be compiled: division" in refused.stderr
    graphs.clear()
    assert extract("--compile", "auto", layers="linear").returncode == 0
    assert {frozenset(each) for each in graphs} == {frozenset({"conv", "linear"})}
    assert extract("--compile", "on").returncode == 0
    for layer in ("conv", "linear"):
        np.testing.assert_allclose(rows_of(tmp_path, layer), rows_of(tmp_path, layer, "eager"), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_layer_added_to_eager_ones_is_compiled_by_itself(
    extract: Extract, graphs: list[set[str]], tmp_path: Path
) -> None:
    assert extract(layers="conv").returncode == 0
    assert extract("--compile", "on", layers="linear").returncode == 0
    assert {frozenset(each) for each in graphs} == {frozenset({"linear"})}
    refused = extract("--compile", "on")
    assert refused.returncode == 2
    assert "layer conv: it is computed eagerly, you ask for extract.compile=on" in refused.stderr
    assert "Nothing to do" in extract("--compile", "auto").stderr


def test_a_model_that_cannot_be_compiled_runs_eagerly(extract: Extract, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(NET.format(first="images = images if images.mean() > 0 else images + 1"))
    result = extract("--compile", "on")
    assert result.returncode == 0, result.stderr
    assert "own.py:make runs eagerly: it can't be compiled: " in result.stderr
    assert graph_of(manifest_of(tmp_path), "conv") == ()
    assert extract("--compile", "on").returncode == 0


def test_a_compiled_model_that_gives_other_features_runs_eagerly(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: Any, **_: Any) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        return lambda images: {name: values + 0.1 * (name == "linear") for name, values in graph(images).items()}

    monkeypatch.setattr(torch, "compile", wrong)
    result = extract("--compile", "on")
    assert result.returncode == 0, result.stderr
    assert "own.py:make runs eagerly: its compiled graph gives other features: in layer linear" in result.stderr
    assert graph_of(manifest_of(tmp_path), "linear") == ()


@pytest.mark.parametrize(
    ("short_s", "seconds", "graph", "reason"),
    [
        pytest.param(60.0, (2.0, 1.0), (), "0 s of eager work are too short", marks=pytest.mark.slow),
        (0.0, (2.0, 1.0), ("conv", "linear"), "2.00 times as fast as the eager pass"),
        pytest.param(0.0, (1.0, 1.0), (), "compiled, it is 1.00 times as fast", marks=pytest.mark.slow),
    ],
)
def test_auto_compiles_long_work_that_it_makes_faster(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_s: float, seconds: tuple[float, float],
    graph: tuple[str, ...], reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(computing, "SHORT_S", short_s)
    monkeypatch.setattr(computing, "paired_seconds", lambda *_: seconds)
    result = extract("--compile", "auto")
    assert result.returncode == 0, result.stderr
    assert reason in result.stderr
    manifest = manifest_of(tmp_path)
    assert graph_of(manifest, "linear") == graph
    assert manifest.notes["computed"]["linear"]["reason"].startswith(reason)


@pytest.mark.slow
def test_layers_of_earlier_versions_are_eager(extract: Extract, tmp_path: Path) -> None:
    assert extract().returncode == 0
    path = tmp_path / "features/folder/zarr.json"
    text = json.loads(path.read_text())
    del text["attributes"][ATTRIBUTE]["notes"]["computed"]
    text["attributes"][DIGEST] = digest_of(text["attributes"][ATTRIBUTE])
    path.write_text(json.dumps(text))
    assert extract("--compile", "on").returncode == 2
    assert extract("--compile", "auto").returncode == extract().returncode == 0


def test_the_plan_says_what_will_be_used(extract: Extract, tmp_path: Path) -> None:
    assert extract("--compile", "on", layers="conv").returncode == 0
    manifest = manifest_of(tmp_path)

    def said(mode: str, seconds: float | None, *layers: str) -> str:
        return planned(load_pipeline("folder", {"extract.compile": mode}), manifest, layers, seconds)

    assert said("off", None, "linear") == "eager (--compile off)"
    assert said("on", None, "linear") == "compiled; eager if it can't be, or gives other features"
    assert said("auto", 3.0, "linear") == "eager: 3 s of eager work are too short for compiling to pay"
    assert said("auto", 3000.0, "conv", "linear").startswith("conv compiled, as it was begun; compiled if")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_ranks_use_what_the_first_process_has_decided(
    bench_process: Bench, extract: Extract, photographs: Path, tmp_path: Path
) -> None:
    result = bench_process(
        "extract", "folder", "--data", photographs, "model.trunk=own.py:make", "--random-weights", "1", "--layers",
        "conv,linear", "transform.resize=32", "transform.crop=32", "--workers", "0", "--batch-size", "2",
        "storage.rows_per_chunk=4", "--ranks", "2", "--compile", "on",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert graph_of(manifest_of(tmp_path), "conv") == ("conv", "linear")
    assert extract("--name", "eager").returncode == 0
    np.testing.assert_allclose(rows_of(tmp_path, "conv"), rows_of(tmp_path, "conv", "eager"), rtol=1e-4, atol=1e-5)


BATCH_NORM = ("nn.Linear(8, 5)", "nn.Linear(8, 5)\n        self.bn = nn.BatchNorm2d(8)")
"""Makes the model one with a batch norm behind its convolution."""


@pytest.fixture
def with_norm(tmp_path: Path, extract: Extract) -> Extract:
    code = NET.format(first="").replace(*BATCH_NORM).replace("self.conv(images)", "self.bn(self.conv(images))")
    (tmp_path / "own.py").write_text(code)
    return extract


def test_batch_norms_are_folded_where_their_convolution_is_not_a_layer(with_norm: Extract, tmp_path: Path) -> None:
    assert with_norm(layers="linear").returncode == 0
    assert form_of(manifest_of(tmp_path), "linear") == "folded"
    assert with_norm("--name", "both").returncode == 0
    assert form_of(manifest_of(tmp_path, "both"), "linear") == "plain"
    folded, plain = rows_of(tmp_path, "linear"), rows_of(tmp_path, "linear", "both")
    np.testing.assert_allclose(folded, plain, rtol=1e-4, atol=1e-6)


def test_a_layer_is_continued_in_its_form(with_norm: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: Any) -> Any:
        raise CannotRewriteError("it can't be copied")

    with monkeypatch.context() as context:
        fail_after_a_chunk(context, tmp_path, "linear")
        assert with_norm(layers="linear").returncode == 2
    with monkeypatch.context() as context:
        context.setattr(computing, "in_form", cannot)
        refused = with_norm(layers="linear")
        assert refused.returncode == 2
        assert "linear: begun with a folded trunk, and here it can't be copied. What was committed" in refused.stderr
    with monkeypatch.context() as context:
        forms: list[str] = []
        context.setattr(computing, "in_form", lambda *args: (forms.append(args[1]), in_form(*args))[1])
        assert with_norm().returncode == 0, "conv, which is new, has the form of what the same pass goes on with"
        assert set(forms) == {"folded"}
    assert form_of(manifest_of(tmp_path), "conv") == "folded"


@pytest.mark.parametrize(
    ("seconds", "form", "reason"),
    [
        ((2.0, 1.0), "weights", "with bfloat16 weights it is 2.00 times as fast as in autocast"),
        pytest.param((1.0, 1.0), "folded", "with bfloat16 weights it is 1.00 times", marks=pytest.mark.slow),
        pytest.param(None, "folded", " s of eager work are too short", marks=pytest.mark.slow),
    ],
)
def test_weights_are_in_low_precision_where_that_is_faster(
    with_norm: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float] | None, form: str,
    reason: str,
) -> None:  # fmt: skip
    if seconds:
        monkeypatch.setattr(computing, "SHORT_S", 0.0)
        monkeypatch.setattr(computing, "paired_seconds", lambda *_: seconds)
    assert with_norm("--precision", "bfloat16", layers="linear").returncode == 0
    record = manifest_of(tmp_path).notes["computed"]["linear"]
    assert record["form"] == form
    assert reason in record["form_reason"]
    assert with_norm("--name", "float32", layers="linear").returncode == 0
    low, full = rows_of(tmp_path, "linear"), rows_of(tmp_path, "linear", "float32")
    cosines = (low * full).sum(1) / np.linalg.norm(low, axis=1) / np.linalg.norm(full, axis=1)
    assert 0 < np.abs(1 - cosines).max() < 1e-3
    if form == "weights":
        np.testing.assert_array_equal(low, torch.from_numpy(low).bfloat16().float().numpy())


def test_weights_in_low_precision_are_compiled_without_autocast(
    with_norm: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[set[str]]
) -> None:
    monkeypatch.setattr(computing, "SHORT_S", 0.0)
    monkeypatch.setattr(computing, "paired_seconds", lambda *_: (2.0, 1.0))
    assert with_norm("--precision", "bfloat16", layers="linear").returncode == 0
    assert not graphs
    assert (
        with_norm("--precision", "bfloat16", "--compile", "on", "--name", "compiled", layers="linear").returncode == 0
    )
    assert graphs
    record = manifest_of(tmp_path, "compiled").notes["computed"]["linear"]
    assert (record["form"], record["graph"]) == ("weights", ["linear"])
    np.testing.assert_array_equal(rows_of(tmp_path, "linear", "compiled"), rows_of(tmp_path, "linear"))


def test_a_precision_that_the_device_does_not_have_is_refused(extract: Extract, tmp_path: Path) -> None:
    refused = extract("--precision", "tf32", "--device", "cpu")
    assert refused.returncode == 2
    assert "tf32 is for NVIDIA's GPUs from Ampere (A100) on, and this device is cpu. Try --precision" in refused.stderr
    assert not (tmp_path / "features").exists()
