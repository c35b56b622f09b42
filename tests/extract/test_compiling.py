"""The compiled forward pass gives the eager one's features, in full and in smaller batches, or says why it can't."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featbench.extract.model import compiling
from featbench.extract.model.compiling import CannotCompileError, CompiledTrunk, probe_pixels, refuse_disagreement
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.passes import autocast
from featbench.extract.transform import Transform
from featbench.store import LayerSpec

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), reason="needs a C++ compiler"
)


class Net(nn.Module):
    """The activation of `bn` is overwritten by the next module, and `relu` runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.relu(self.relu(self.bn(self.conv(images))) - 0.5).mean((2, 3)))


class Deciding(Net):
    """What runs depends on the values of the images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.mean() > 0 else images + 1)


def tapped(model: nn.Module, *layers: str, name: str = "model:Net", size: int = 32) -> tuple[TappedTrunk, Tensor]:
    """A probed trunk with random statistics of its batch norms, and a batch of 4 images."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    taps = TappedTrunk(
        model.eval().to(memory_format=torch.channels_last), name=name, layers=[LayerSpec.of(layer) for layer in layers]
    )
    taps.probe(torch.zeros(1, 3, size, size))
    return taps, Transform().scale(probe_pixels(size, size, 4), CPU)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traced graph runs as it is, which takes no compiler."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)


@pytest.mark.usefixtures("uncompiled")
def test_the_graph_has_all_taps_and_poolings_and_takes_smaller_batches() -> None:
    taps, images = tapped(Net(), "bn", "relu", "all=conv:Identity", "max=relu:AdaptiveMaxPool2d(2)")
    compiled = CompiledTrunk(taps, images)
    for batch in (images, images[:3], images[:1]):
        expected, found = taps(batch), compiled(batch)
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])


def test_a_model_whose_path_depends_on_the_images_cannot_be_compiled() -> None:
    taps, images = tapped(Deciding(), "relu")
    with pytest.raises(CannotCompileError, match=r"^it can't be compiled: .+$"):
        CompiledTrunk(taps, images)


def test_the_reason_is_that_of_the_innermost_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        error: Any = RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: ...")
        error.inner_exception = OSError("No working C++ compiler found\nin any place")
        raise error

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(CannotCompileError, match=r"^it can't be compiled: No working C\+\+ compiler found$"):
        CompiledTrunk(*tapped(Net(), "bn"))


@pytest.mark.parametrize(("angle", "precision", "agrees"), [
    (1e-3, "float32", True), (2e-3, "float32", False), (2e-3, "bfloat16", True), (0.1, "bfloat16", False),
])  # fmt: skip
def test_features_agree_up_to_a_cosine(angle: float, precision: str, agrees: bool) -> None:
    """1 - cos(1e-3) is 5e-7."""
    eager = {"x": torch.tensor([[0.0, 0.0], [1.0, 0.0]])}
    turned = {"x": torch.tensor([[0.0, 0.0], [math.cos(angle), math.sin(angle)]])}
    if agrees:
        refuse_disagreement(eager, turned, precision)
    else:
        with pytest.raises(CannotCompileError, match="in layer x the cosine with the eager ones is 1 - "):
            refuse_disagreement(eager, turned, precision)


@pytest.mark.parametrize("other", [[[math.nan, 1.0]], [[0.0, 0.0]], [[1.0, 0.0, 0.0]]])
def test_features_that_are_zero_or_not_finite_in_one_pass_only_disagree(other: list[list[float]]) -> None:
    with pytest.raises(CannotCompileError, match="gives other features"):
        refuse_disagreement({"x": torch.tensor([[1.0, 0.0]])}, {"x": torch.tensor(other)}, "bfloat16")


def test_images_of_the_probe_differ() -> None:
    pixels = probe_pixels(20, 30, 9)
    assert pixels.shape == (9, 3, 20, 30)
    assert len({bytes(image.numpy()) for image in pixels}) == 9


def test_the_cache_is_the_users_unless_another_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compiling.CACHE, "mine")
    compiling.use_cache()
    assert os.environ[compiling.CACHE] == "mine"
    monkeypatch.delenv(compiling.CACHE)
    compiling.use_cache()
    folder = Path(os.environ[compiling.CACHE])
    assert folder.is_dir()
    assert folder.parent == tmp_path / "featbench" / "inductor"


@needs_compiler
@pytest.mark.slow
def test_batch_norm_is_folded_into_the_convolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variance is no longer in the code, as it is where the weights are inputs of the graph."""
    from torch._inductor.utils import run_and_get_code

    monkeypatch.setenv(compiling.CACHE, str(tmp_path))  # what comes from a cache has no code
    _, code = run_and_get_code(CompiledTrunk, *tapped(Net(), "bn"))
    assert code
    assert not any("sqrt" in each for each in code)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_small_model_compiled(precision: str) -> None:
    taps, images = tapped(Net(), "bn", "relu", "all=conv:Identity")
    with autocast(CPU, precision):
        compiled = CompiledTrunk(taps, images)
        for batch in (images, images[:3]):
            refuse_disagreement(taps(batch), compiled(batch), precision)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("trunk", "layers"), [
    ("resnet50", ("res4", "res5", "flatten")),
    ("squeezenet1_0", ("features.7", "features.12")),
    ("vit_b_16", ("blkCLS10", "lastPOOL", "concatCLS4")),
])  # fmt: skip
def test_trunks_compiled(trunk: str, layers: tuple[str, ...]) -> None:
    taps, images = tapped(build_trunk(trunk, {}, image_size=(224, 224)), *layers, name=trunk, size=224)
    refuse_disagreement(taps(images), CompiledTrunk(taps, images)(images), "float32")
