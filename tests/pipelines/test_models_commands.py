"""`bench layers` and `bench models`, and models and checkpoints from the command line to the manifest."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest
import torch

from featbench.extract.model.trunks import build_trunk
from featbench.store import FeatureSet
from tests.conftest import Bench

SMALL = ("transform.resize=32", "transform.crop=32", "extract.workers=0", "--quiet")
VIT = ("model.trunk=vit", "model.options.dim=24", "model.options.depth=3", "model.options.num_heads=2",
       "model.options.patch_size=8")  # fmt: skip


def rows(result: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """The rows of a table, by the tap's name."""
    assert result.returncode == 0, result.stderr
    return {line.split()[0]: line.split() for line in result.stdout.splitlines()[1:] if line.strip()}


def test_layers_lists_taps_with_vissls_names_shapes_numbers_and_gigabytes(bench: Bench) -> None:
    table = rows(bench("layers", "resnet50", "--images", "1281167"))
    assert table["layer3"] == ["layer3", "res4", "1024", "x", "14", "x", "14", "200,704", "1,024", "1,028.54", "5.25"]
    assert table["relu"][1] == "conv1"
    assert table["flatten"] == ["flatten", "fc|input", "2048", "2,048", "2,048", "10.50", "10.50"]


def test_layers_lists_tokens_and_heads_of_the_model_that_is_meant(bench: Bench) -> None:
    table = rows(bench("layers", "vit", *VIT[1:], "--image-size", "32"))
    assert table["blkCLS2"][1:] == ["24", "24", "24"]
    assert table["lastMAP"][1:] == ["4", "x", "4", "x", "24", "384", "24"]
    assert table["concatCLS3"][1:] == ["72", "72", "72"]
    table = rows(bench("layers", "resnet18", "model.heads=[[mlp, {dims: [512, 64]}], [mlp, {dims: [64, 8]}]]"))
    assert (table["heads.0"][1], table["heads"][1], table["layer4"][1]) == ("64", "8", "res5")
    bad = bench("layers", "resnet18", "model.heads=[[mpl, {}]]")
    assert bad.returncode == 2
    assert "unknown head 'mpl'. Did you mean mlp" in bad.stderr


def test_models_lists_names_that_contain_a_part(bench: Bench) -> None:
    assert {"resnet50", "regnet_y_256gf", "dinov2_vits14", "swin_t"} <= set(bench("models").stdout.split())
    found = set(bench("models", "50w").stdout.split())
    assert {"resnet50w2", "resnet50w4"} <= found
    assert all("50w" in name for name in found)


def test_how_a_checkpoint_was_read_is_in_the_manifest(bench: Bench, photographs: Path, tmp_path: Path) -> None:
    """A DINO checkpoint of another image size: the teacher, with interpolated positions."""
    options = {"dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8, "image_size": 48}
    state = build_trunk("vit", options, seed=4).state_dict()
    teacher = {f"backbone.{key}": value for key, value in state.items()}
    student = {f"module.{key}": value + 1 for key, value in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 1}, tmp_path / "dino.pth")
    command = ("extract", "folder", "--data", photographs, "--weights", "dino.pth", *VIT, *SMALL)
    result = bench(*command, "--layers", "lastCLS,concatCLS2", "--name", "teacher")
    assert result.returncode == 0, result.stderr
    made_from = FeatureSet.open(tmp_path / "features/teacher").manifest.made_from
    assert made_from["weights"]["read_as"] == "DINO, teacher"
    assert made_from["weights"]["positions"] == ["pos_embed 6 x 6 -> 4 x 4, bicubic"]
    other = bench(*command, "--layers", "lastCLS", "--name", "teacher", "weights.branch=student")
    assert other.returncode == 2
    assert "weights.read_as" in other.stderr, "another encoder is another feature set"


def test_a_file_that_runs_code_is_loaded_only_when_it_is_trusted(
    bench: Bench, photographs: Path, tmp_path: Path
) -> None:
    state = build_trunk("resnet18", {}, seed=4).state_dict()
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    command = ("extract", "folder", "--data", photographs, "--weights", "w.pth", "model.trunk=resnet18",
               "--layers", "res3", *SMALL)  # fmt: skip
    refused = bench(*command)
    assert refused.returncode == 2
    assert "it needs argparse.Namespace" in refused.stderr
    assert "--trust-checkpoint" in refused.stderr
    assert not (tmp_path / "features").exists()
    assert bench(*command, "--trust-checkpoint").returncode == 0


@pytest.mark.parametrize("kept", [0, 30, 118])
def test_a_half_loaded_model_gives_no_features(bench: Bench, photographs: Path, tmp_path: Path, kept: int) -> None:
    """Whatever part of the parameters is missing."""
    state = build_trunk("resnet18", {}, seed=4).state_dict()
    torch.save(dict(list(state.items())[:kept]), tmp_path / "part.pth")
    command = ("extract", "folder", "--data", photographs, "model.trunk=resnet18", "--layers", "res5", *SMALL)
    result = bench(*command, "--weights", "part.pth")
    assert result.returncode == 2
    assert "does not fit the model" in result.stderr or "no tensors" in result.stderr
    assert not (tmp_path / "features").exists()
    assert bench(*command).returncode == 2, "nor is a random one taken unless it is asked for"


def test_the_code_of_ones_own_model_is_in_the_fingerprint(bench: Bench, photographs: Path, tmp_path: Path) -> None:
    code = "from torchvision.models import resnet18\n\n\ndef make():\n    return resnet18()\n"
    (tmp_path / "own.py").write_text(code)
    command = ("extract", "folder", "--data", photographs, "model.trunk=own.py:make", "--layers", "res3", *SMALL)
    result = bench(*command, "--random-weights", "1")
    assert result.returncode == 0, result.stderr
    assert "running the code of own.py" in result.stderr
    (tmp_path / "own.py").write_text(code + "# changed\n")
    changed = bench(*command, "--random-weights", "1")
    assert changed.returncode == 2
    assert "model.code_sha256" in changed.stderr
    loaded = bench(*command, "weights.as_built=true", "--name", "built")
    assert loaded.returncode == 0, loaded.stderr
    refused = bench("extract", "folder", "--data", photographs, "model.trunk=resnet18", "weights.as_built=true", *SMALL)
    assert refused.returncode == 2
    assert "weights.as_built is for your own function" in refused.stderr
