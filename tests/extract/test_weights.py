"""Weights: what fits is loaded, and whatever does not fit can't give a number."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from featbench.extract.errors import WeightsError
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.checkpoints import read_checkpoint, sha256_of_files, sha256_of_tensors
from featbench.extract.weights.state_dicts import find_weights
from featbench.extract.weights.strict import LoadReport, load_strictly, names_of, poison
from featbench.extract.weights.torchvision import torchvision_weights
from featbench.store.layers import layers_of

WANTED = names_of(build_trunk("resnet18", {}))
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return build_trunk("resnet18", {}, seed=11).state_dict()


def read_state_dict(path: Path, **options: str) -> Mapping[str, torch.Tensor]:
    """The tensors of a file for a ResNet-18."""
    return find_weights(read_checkpoint(path), wanted=WANTED, where=str(path), **options).tensors


def features_of(
    state: dict[str, torch.Tensor], *, layers: tuple[str, ...] = ("res4",), where: str = "weights.pth"
) -> tuple[torch.Tensor, LoadReport]:
    """Load into a poisoned ResNet-18 and return its features, as the pipeline does."""
    trunk = build_trunk("resnet18", {}, seed=99)
    taps = TappedTrunk(trunk, name="resnet18", layers=layers_of(layers))
    taps.probe(IMAGE)
    poison(trunk)
    report = load_strictly(trunk, state, used=taps.modules_used(IMAGE), where=where)
    return taps(IMAGE)[layers[0]], report


@pytest.fixture(scope="module")
def expected(state: dict[str, torch.Tensor]) -> torch.Tensor:
    trunk = build_trunk("resnet18", {}, seed=11)
    taps = TappedTrunk(trunk, name="resnet18", layers=layers_of(["res4"]))
    taps.probe(IMAGE)
    return taps(IMAGE)["res4"]


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        (lambda state: state, {}),
        (lambda state: {"state_dict": state, "epoch": 3}, {}),
        (lambda state: {"model": state}, {}),
        (lambda state: {"loss": {"teacher": state}}, {"key": "loss.teacher"}),
        (lambda state: {f"module.backbone.{name}": t for name, t in state.items()} | {"module.head.w": torch.ones(1)},
         {"remove_prefix": "module.backbone."}),
    ],
)  # fmt: skip
def test_a_file_gives_the_features_of_the_model_that_it_was_saved_from(
    tmp_path: Path,
    state: dict[str, torch.Tensor],
    expected: torch.Tensor,
    wrap: Callable[..., Any],
    options: dict[str, str],
) -> None:
    torch.save(wrap(state), tmp_path / "w.pth")
    features, report = features_of(read_state_dict(tmp_path / "w.pth", **options))
    assert torch.equal(features, expected)
    assert report.missing == ()


def test_safetensors_give_the_same(tmp_path: Path, state: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "w.safetensors")
    assert torch.equal(features_of(read_state_dict(tmp_path / "w.safetensors"))[0], expected)


def test_weights_after_the_last_tap_may_be_missing_or_different(
    state: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    """A self-supervised checkpoint has no classifier, a fine-tuned one has another."""
    without = {name: t for name, t in state.items() if not name.startswith("fc.")}
    features, report = features_of(without)
    assert torch.equal(features, expected)
    assert report.missing == ("fc.weight", "fc.bias")
    other = state | {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}
    features, report = features_of(other)
    assert torch.equal(features, expected)
    assert report.reshaped == ("fc.weight", "fc.bias")


def test_a_missing_parameter_that_is_used_is_refused(state: dict[str, torch.Tensor]) -> None:
    broken = {name: t for name, t in state.items() if name != "layer2.1.bn2.running_var"}
    with pytest.raises(WeightsError, match=r"99 of its 102 .*|101 of its 102 .*matched") as error:
        features_of(broken)
    assert "layer2.1.bn2.running_var" in str(error.value)


def test_a_parameter_of_another_shape_is_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"conv1\.weight is \(64, 3, 3, 3\), the model has \(64, 3, 7, 7\)"):
        features_of(state | {"conv1.weight": torch.ones(64, 3, 3, 3)})


def test_quantized_numbers_do_not_stand_for_floats(state: dict[str, torch.Tensor]) -> None:
    small = torch.ones(64, 3, 7, 7, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"conv1\.weight is \(64, 3, 7, 7\) torch\.int8, the model has"):
        features_of(state | {"conv1.weight": small})


def test_half_precision_does(state: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    assert torch.allclose(features_of(half)[0], expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "module.encoder_q.", "some.odd.wrapper."])
def test_an_extra_prefix_is_named(state: dict[str, torch.Tensor], prefix: str) -> None:
    with pytest.raises(WeightsError) as error:
        features_of({prefix + name: t for name, t in state.items()})
    assert "0 of its 102 parameters and buffers were matched" in str(error.value)
    assert f"weights.remove_prefix={prefix}" in str(error.value)


def test_a_refusal_is_a_table_of_what_matched_and_what_did_not(state: dict[str, torch.Tensor]) -> None:
    """Counts of all four kinds, and names."""
    broken = {name: t for name, t in state.items() if not name.startswith("layer1.0.bn1.")}
    broken |= {"conv1.weight": torch.ones(64, 3, 3, 3), "layer2.0.extra": torch.ones(1)}
    with pytest.raises(WeightsError) as error:
        features_of(broken)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[0] == "weights.pth does not fit the model: 97 of its 102 parameters and buffers were matched"
    assert lines[1].split() == ["matched", "97"]
    assert lines[2].split()[:2] == ["missing", "4"]
    assert "layer1.0.bn1.weight" in lines[2]
    assert lines[3].split()[:3] == ["other", "shape", "1"]
    assert lines[4].split()[:3] == ["left", "over", "1"]
    assert "layer2.0.extra" in lines[4]


def test_another_models_file_is_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match="Is it another model's file"):
        features_of(build_trunk("squeezenet1_0", {}).state_dict())


def test_weights_that_were_not_loaded_would_show_as_nan(state: dict[str, torch.Tensor]) -> None:
    """The second line of defence, should a module use what the first line thinks unused."""
    trunk = build_trunk("resnet18", {})
    taps = TappedTrunk(trunk, name="resnet18", layers=layers_of(["res4"]))
    taps.probe(IMAGE)
    poison(trunk)
    partial = {name: t for name, t in state.items() if name != "layer1.0.conv1.weight"}
    load_strictly(trunk, partial, used=set(), where="x")
    assert taps(IMAGE)["res4"].isnan().all()


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        import os

        return os.system, ("touch EXECUTED",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (b"import torch", "a text file, not weights; it starts with 'import torch"),
        (b"PK\x03\x04 this is no archive", "damaged, truncated or not a checkpoint"),
        ({"args": argparse.Namespace(a=1)}, r"it needs argparse\.Namespace"),
        ({"evil": Evil()}, r"it needs posix\.system"),
        ([1, 2], "holds a list"),
        ({"epoch": 1}, "no tensors"),
        ("truncate", "damaged, truncated"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_file_without_a_state_dict_is_refused_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor], content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "truncate":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.filterwarnings("ignore")
def test_code_within_a_file_is_named_first_and_run_only_when_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": dict(state), "args": Evil(), "more": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        read_checkpoint(tmp_path / "w.pth")
    assert "it needs argparse.Namespace, posix.system" in str(error.value)
    assert "--trust-checkpoint loads it and executes that code" in str(error.value)
    assert not (tmp_path / "EXECUTED").exists()
    content = read_checkpoint(tmp_path / "w.pth", trust=True)
    assert torch.equal(content["state_dict"]["fc.bias"], state["fc.bias"])
    assert (tmp_path / "EXECUTED").exists()


def test_code_within_a_legacy_file_is_named_too(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"it needs argparse\.Namespace"):
        read_checkpoint(tmp_path / "w.pth")


def test_all_files_of_a_hub_folder_are_read(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """One file, or several with an index; the digest is that of all of them."""
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir()
    several.mkdir()
    tensors = {name: t.contiguous() for name, t in state.items()}
    save_file(tensors, one / "model.safetensors")
    assert read_checkpoint(one).keys() == tensors.keys()
    assert sha256_of_files(one) == hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    names = list(tensors)
    shards = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, several / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (several / "model.safetensors.index.json").write_text(json.dumps(index))
    merged = read_checkpoint(several)
    assert all(torch.equal(merged[name], tensors[name]) for name in names)
    before = sha256_of_files(several)
    (several / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"b\.safetensors: missing, one of the 2 files"):
        read_checkpoint(several)
    save_file({name: tensors[name] + 1 for name in names[40:]}, several / "b.safetensors")
    assert sha256_of_files(several) != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"a folder without model\.safetensors"):
        read_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"key": "modle"}, "Did you mean model"), ({"remove_prefix": "zzz."}, "no name begins with 'zzz.'")],
)
def test_a_missing_key_or_prefix_is_refused(
    tmp_path: Path, state: dict[str, torch.Tensor], options: dict[str, str], message: str
) -> None:
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "w.pth", **options)


def test_unknown_torchvision_weights_are_refused_with_a_suggestion() -> None:
    with pytest.raises(WeightsError, match="Did you mean IMAGENET1K_V2"):
        torchvision_weights("resnet50", "IMAGENET1K_V3")
    assert str(torchvision_weights("resnet50", "DEFAULT")) == "ResNet50_Weights.IMAGENET1K_V2"


def test_the_digest_of_tensors_sees_every_value(state: dict[str, torch.Tensor]) -> None:
    other = {name: t.clone() for name, t in state.items()}
    assert sha256_of_tensors(other) == sha256_of_tensors(state)
    other["fc.bias"][3] += 1e-6
    assert sha256_of_tensors(other) != sha256_of_tensors(state)


def test_random_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    first = sha256_of_tensors(build_trunk("resnet18", {}, seed=1).state_dict())
    assert torch.equal(torch.rand(1), before), "the caller's generator is left alone"
    assert sha256_of_tensors(build_trunk("resnet18", {}, seed=1).state_dict()) == first
    assert sha256_of_tensors(build_trunk("resnet18", {}, seed=2).state_dict()) != first


def test_a_model_that_reads_the_version_of_its_state_dict_is_loaded() -> None:
    state = build_trunk("mnasnet0_5", seed=1).state_dict()
    trunk = build_trunk("mnasnet0_5", seed=2)
    poison(trunk)
    load_strictly(trunk, dict(state), used={name for name, _ in trunk.named_modules()}, where="x")
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())


@pytest.mark.parametrize("kept", ["0.", "1."])
def test_a_shared_parameter_is_loaded_under_any_of_its_names(kept: str) -> None:
    """As safetensors' `save_model` writes it: once."""
    block = torch.nn.Conv2d(3, 3, 1)
    trunk = torch.nn.Sequential(block, block)
    whole = {name: torch.rand(tensor.shape) for name, tensor in trunk.state_dict().items()}
    once = {name: tensor for name, tensor in whole.items() if name.startswith(kept)}
    poison(trunk)
    report = load_strictly(trunk, once, used={"", "0", "1"}, where="shared.safetensors")
    assert report.missing == ()
    assert torch.equal(block.weight, once[f"{kept}weight"])
    assert torch.equal(block.bias, once[f"{kept}bias"])
    with pytest.raises(WeightsError, match="does not fit the model"):
        load_strictly(trunk, {f"{kept}weight": once[f"{kept}weight"]}, used={"", "0", "1"}, where="x")
