"""Weights that are called random are drawn from the seed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from featbench.extract.errors import ModelError
from featbench.extract.model.seeding import build_random
from featbench.extract.model.trunks import build_trunk

OWN = """
import pathlib, random, numpy as np, torch, torchvision
HERE = pathlib.Path(__file__).parent

def loads(weights=None, pretrained=False, start_from=""):
    model = torchvision.models.resnet18()
    given = weights or start_from or (pretrained and "w.pth")
    if given:
        model.load_state_dict(torch.load(HERE / given))
    return model

def loads_a_part():
    model = loads("w.pth")
    model.fc = torch.nn.Linear(512, 3)
    return model

def loads_by_numpy():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(np.load(HERE / "w.npy")))
    return model

def sets_its_seed():
    torch.manual_seed(7)
    return torchvision.models.resnet18()

def random_by_other_means():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(np.random.rand(8, 3, 3, 3)))
        model[1].weight.fill_(random.random()).add_(torch.rand(8, 8, 3, 3))
    return model

class Computed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = torch.nn.Parameter(torch.arange(24.0).sin().reshape(1, 6, 4))
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 4))
        self.mix = torch.nn.Parameter(torch.eye(4))
        self.blur = torch.nn.Conv2d(3, 3, 3, groups=3, bias=False)
        self.blur.weight.data[:] = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(self.blur(images))
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(OWN)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    import numpy as np

    np.save(tmp_path / "w.npy", np.random.default_rng(0).random((8, 8, 3, 3), np.float32))
    return f"{tmp_path / 'net.py'}:"


@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("loads", {"weights": "w.pth"}),
        ("loads", {"pretrained": True}),
        ("loads", {"start_from": "w.pth"}),
        ("loads_a_part", {}),
        ("loads_by_numpy", {}),
        ("sets_its_seed", {}),
    ],
)
def test_a_function_whose_weights_do_not_come_from_the_seed_is_refused(
    own: str, function: str, options: dict[str, bool | str]
) -> None:
    with pytest.raises(ModelError, match=r"the same for every seed.*weights\.as_built=true"):
        build_random(own + function, options)


@pytest.mark.parametrize("function", ["loads", "random_by_other_means", "Computed"])
def test_a_function_that_draws_or_computes_its_weights_is_random(own: str, function: str) -> None:
    first, again, other = (build_random(own + function, {}, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"weights": "DEFAULT"}),
        ("resnet18", {"pretrained": True}),
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"checkpoint_path": "w.pth"}),
        ("timm:resnet18", {"pretrained_cfg_overlay": {"file": "w.pth"}}),
        ("timm:resnet18", {"pretrained_cfg": "a1_in1k"}),
    ],
)
def test_options_of_a_library_that_load_weights_are_refused(
    name: str, options: dict[str, bool | dict[str, str] | str]
) -> None:
    with pytest.raises(ModelError, match=rf"model\.options\.{next(iter(options))}=.* would load weights"):
        build_trunk(name, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {"weights": None, "num_classes": 3}), ("timm:resnet18", {"pretrained": False, "num_classes": 3})],
)
def test_options_that_load_nothing_are_left_to_the_library(name: str, options: dict[str, int | None]) -> None:
    assert build_random(name, options).fc.out_features == 3


def test_a_tag_of_timms_names_preprocessing_and_loads_nothing() -> None:
    trunk = build_random("timm:vit_tiny_patch16_224.augreg_in21k", {"depth": 1})
    assert trunk.pretrained_cfg["tag"] == "augreg_in21k"
    with pytest.raises(ModelError, match=r"timm has no weights 'augreg_in21' for vit_tiny_patch16_224.*augreg_in21k"):
        build_trunk("timm:vit_tiny_patch16_224.augreg_in21")


@pytest.mark.parametrize("name", ["convnext_atto", "deit_tiny_distilled_patch16_224"])
def test_timms_random_models_are_not_refused(name: str) -> None:
    build_random(f"timm:{name}", {"num_classes": 3})
