"""What training puts into names is taken out, wherever it stands; what is advised works when it is typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featbench.extract.config import WeightsConfig
from featbench.extract.errors import WeightsError
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.loading import load_weights
from featbench.extract.weights.state_dicts import advice
from featbench.extract.weights.strict import load_strictly, names_of
from featbench.store.layers import layers_of

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_trunk("resnet18", {}, seed=3)


@pytest.fixture(scope="module")
def expected(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.avgpool(nn.Sequential(*list(model.children())[:-2])(IMAGE)).flatten(1)


def load(path: Path, **weights: str) -> torch.Tensor:
    taps = TappedTrunk(build_trunk("resnet18", {}), name="resnet18", layers=layers_of(["flatten"]))
    taps.probe(IMAGE)
    load_weights(taps, IMAGE, WeightsConfig(file=path, **weights))
    return taps(IMAGE)["flatten"]


def put(into: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {into.format(*name.split(".", 1)): tensor for name, tensor in state.items()}


def compiled(model: nn.Module) -> nn.Module:
    """As torch.compile holds a model, without the seconds that importing its compiler takes."""
    outer = nn.Module()
    outer._orig_mod = model
    return outer


def averaged(model: nn.Module) -> dict[str, Any]:
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


@pytest.mark.parametrize(
    "write",
    [
        lambda m: averaged(m),
        lambda m: {"state_dict": averaged(m)},
        lambda m: {"model_ema": averaged(m), "model": put("module.{}.{}", m.state_dict())},
        lambda m: averaged(torch.nn.DataParallel(m)),
        lambda m: compiled(m).state_dict(),
        lambda m: averaged(compiled(m)),
        lambda m: {"state_dict": put("model._orig_mod.{}.{}", m.state_dict())},
        lambda m: {"state_dict": put("backbone.module._orig_mod.{}.{}", m.state_dict())},
        lambda m: {"state_dict": put("module.{}._orig_mod.{}", m.state_dict())},
        lambda m: put("{}.module.{}", m.state_dict()),
        lambda m: {"teacher": put("backbone._orig_mod.{}.{}", m.state_dict())},
        lambda m: {"model": put("_fsdp_wrapped_module.{}._checkpoint_wrapped_module.{}", m.state_dict())},
        lambda m: {"module": m.state_dict(), "optimizer": {}, "ds_version": "0.14"},
        lambda m: (
            {f"ema_model.{n}": t for n, t in m.state_dict().items()}
            | {f"online_model.{n}": torch.zeros_like(t) for n, t in m.state_dict().items()}
            | {"initted": torch.tensor(True), "step": torch.tensor(3)}
        ),
    ],
)
def test_a_file_with_names_from_wrappers_gives_the_models_features(
    tmp_path: Path, model: torch.nn.Module, expected: torch.Tensor, write: Callable[..., Any]
) -> None:
    torch.save(write(model), tmp_path / "w.pth")
    assert torch.allclose(load(tmp_path / "w.pth"), expected, atol=1e-5)


@pytest.mark.parametrize(
    "write",
    [
        lambda s: {"nets": {"a": put("odd.wrapper.{}.{}", s)}},
        lambda s: {"state_dict": put("backbone.odd.{}.{}", s)},
        lambda s: {"net": put("x._orig_mod.{}.{}", s), "optimizer": {"state": {}}},
        lambda s: {"a": {"b": s}, "epoch": 3},
        lambda s: put("x.module.{}.{}", s) | {"other.weight": torch.ones(1)},
    ],
)
def test_following_the_advice_loads_the_file(
    tmp_path: Path, model: torch.nn.Module, expected: torch.Tensor, write: Callable[..., Any]
) -> None:
    torch.save(write(model.state_dict()), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="names would match") as refusal:
        load(tmp_path / "w.pth")
    settings = dict(re.findall(r"weights\.(key|remove_prefix)=(\S+)", str(refusal.value).rpartition("add ")[2]))
    assert torch.allclose(load(tmp_path / "w.pth", **settings), expected, atol=1e-5)


class Wrapped(nn.Module):
    """A model that itself calls a part `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.module(images).mean((2, 3)))


@pytest.mark.parametrize("wrap", [lambda m: m, torch.nn.DataParallel, compiled])
def test_a_model_with_a_module_named_like_a_wrapper_keeps_the_name(
    tmp_path: Path, wrap: Callable[..., Any] | type[Any]
) -> None:
    torch.manual_seed(0)
    source, trunk = Wrapped().eval(), Wrapped().eval()
    torch.save(wrap(source).state_dict(), tmp_path / "w.pth")
    taps = TappedTrunk(trunk, name="net.py:Wrapped", layers=layers_of(["module"]))
    taps.probe(IMAGE)
    load_weights(taps, IMAGE, WeightsConfig(file=tmp_path / "w.pth"))
    assert torch.equal(trunk.module.weight, source.module.weight)


def test_names_that_collide_without_wrappers_do_not_overwrite_each_other(
    tmp_path: Path, model: torch.nn.Module
) -> None:
    state = model.state_dict()
    twice = put("{}.module.{}", state) | put("module.{}.{}", {n: t + 1 for n, t in state.items()})
    torch.save(twice, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, model: torch.nn.Module, value: float
) -> None:
    state = model.state_dict()
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"].clone()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"NaN or infinity: layer2\.0\.conv1\.weight"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to_sparse(),
        lambda t: t.to(torch.int32),
        lambda t: t.to(torch.complex64),
    ],
)
def test_tensors_of_other_kinds_do_not_stand_for_floats(
    tmp_path: Path, model: torch.nn.Module, change: Callable[..., Any]
) -> None:
    state = model.state_dict()
    torch.save(state | {"conv1.weight": change(state["conv1.weight"])}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"conv1\.weight is \(64, 3, 7, 7\) torch\."):
        load(tmp_path / "w.pth")


def test_names_that_match_with_another_shape_are_no_reason_for_advice() -> None:
    trunk = nn.Sequential(nn.Linear(2, 3))
    content = {"model": {"trunk": {"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(4)}}}
    with pytest.raises(WeightsError, match="other shape        2") as refusal:
        load_strictly(
            trunk, content["model"]["trunk"], used={"0"}, where="w",
            cure=lambda matched: advice(content, names_of(trunk), matched=matched),
        )  # fmt: skip
    assert "names would match" not in str(refusal.value)
