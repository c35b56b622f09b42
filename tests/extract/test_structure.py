"""`flatten` is what goes into the classifier, whatever its name, and views of tokens are what timm computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featbench.extract.errors import ModelError
from featbench.extract.model.taps import TappedTrunk, list_taps
from featbench.extract.model.trunks import build_trunk
from featbench.store.layers import LayerSpec, layers_of

OWN = "own.py:net"


class Net(nn.Module):
    """A trunk of 16 numbers; the classifiers are called as no library calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 5, 2), nn.BatchNorm2d(16)
        self.pool, self.linear, self.other = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5), nn.Linear(16, 4)
        self.weight = nn.Parameter(torch.randn(5, 16))

    def trunk(self, images: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(images))).mean((2, 3))


class Plain(Net):
    def forward(self, images: torch.Tensor) -> Any:
        return self.linear(self.trunk(images))


class ByKeyword(Net):
    def forward(self, images: torch.Tensor) -> Any:
        return {"logits": self.linear(input=self.trunk(images))}


class Scaled(Net):
    def forward(self, images: torch.Tensor) -> Any:
        return (self.linear(self.trunk(images)) * 2 + 1).log_softmax(1)


class WeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(16, 5, bias=False))

    def forward(self, images: torch.Tensor) -> Any:
        return self.linear(self.trunk(images))


class Pointwise(Net):
    """Scores at each position, then their mean, as SqueezeNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Conv2d(16, 5, 1)

    def forward(self, images: torch.Tensor) -> Any:
        return F.relu(self.scores(F.relu(self.norm(self.conv(images))))).mean((2, 3))


class AfterAModule(Net):
    """The classifier is no module, but a module gives what goes in."""

    def forward(self, images: torch.Tensor) -> Any:
        return F.linear(self.pool(F.relu(self.norm(self.conv(images)))).flatten(1), self.weight)


class Embedding(Net):
    def forward(self, images: torch.Tensor) -> Any:
        return F.normalize(self.linear(self.trunk(images)))


class Rectified(Net):
    """The last layer but one of VGG, say."""

    def forward(self, images: torch.Tensor) -> Any:
        return F.relu(self.linear(self.trunk(images)))


class Projected(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.BatchNorm1d(5)

    def forward(self, images: torch.Tensor) -> Any:
        return self.last(self.linear(self.trunk(images)))


class Residual(Net):
    def forward(self, images: torch.Tensor) -> Any:
        features = self.trunk(images)
        return features + features @ torch.eye(16)


class Functional(Net):
    def forward(self, images: torch.Tensor) -> Any:
        return F.linear(self.trunk(images), self.weight)


class Twice(Net):
    def forward(self, images: torch.Tensor) -> Any:
        return self.linear(self.trunk(images)) + self.linear(self.trunk(images.flip(3)))


class Averaged(Net):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> Any:
        features = self.trunk(images)
        return (self.linear(features) + self.third(features)) / 2


class TwoOutputs(Net):
    def forward(self, images: torch.Tensor) -> Any:
        features = self.trunk(images)
        return {"colour": self.linear(features), "shape": self.other(features)}


@dataclasses.dataclass
class Results:
    colour: torch.Tensor
    shape: torch.Tensor


class TwoFields(TwoOutputs):
    def forward(self, images: torch.Tensor) -> Results:
        return Results(**super().forward(images))


class Complex(Net):
    def forward(self, images: torch.Tensor) -> Any:
        return torch.fft.fft(self.trunk(images))


class ThroughNumpy(Net):
    def forward(self, images: torch.Tensor) -> Any:
        return torch.from_numpy(self.linear(self.trunk(images)).numpy().copy())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def made(kind: type[Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    net = kind().eval().requires_grad_(False)
    net.norm.running_var.uniform_(0.5, 1.5)
    return net


def layer(net: torch.nn.Module, tap: str, images: torch.Tensor, name: str = OWN) -> torch.Tensor:
    taps = TappedTrunk(net, name=name, layers=[LayerSpec.of(f"x={tap}")])
    taps.probe(images[:1])
    return taps(images)["x"]


@pytest.mark.parametrize("kind", [Plain, ByKeyword, Scaled, WeightNorm, Pointwise, AfterAModule])
def test_flatten_is_the_input_of_the_classifier_whatever_its_name(kind: type[Any], images: torch.Tensor) -> None:
    net = made(kind)
    assert torch.allclose(layer(net, "flatten", images), net.trunk(images), atol=1e-6)


@pytest.mark.parametrize("kind", [Embedding, Rectified, Projected, Residual])
def test_flatten_is_the_output_of_a_model_without_a_classifier(kind: type[Any], images: torch.Tensor) -> None:
    net = made(kind)
    assert torch.equal(layer(net, "flatten", images), net(images))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Functional, "its forward computes the output from weight itself"),
        (Twice, "its classifier linear runs 2 times"),
        (Averaged, r"several classifiers. Tap the input of one of them: 'linear\|input', 'third\|input'"),
        (TwoOutputs, r"returns 2 tensors. Tap the input of one of them: 'linear\|input', 'other\|input'"),
        (TwoFields, r"returns 2 tensors. Tap the input of one of them: 'linear\|input', 'other\|input'"),
        (Complex, "gives complex numbers"),
        (ThroughNumpy, "could not be followed back to the image"),
    ],
)
def test_ambiguous_flatten_is_refused_with_what_can_be_tapped(
    kind: type[Any], message: str, images: torch.Tensor
) -> None:
    with pytest.raises(ModelError, match=message):
        layer(made(kind), "flatten", images)


def test_a_modules_input_is_tapped_also_where_it_is_called_by_keyword(images: torch.Tensor) -> None:
    for kind in (Plain, ByKeyword, TwoOutputs):
        net = made(kind)
        assert torch.equal(layer(net, "linear|input", images), net.trunk(images))
    assert torch.equal(layer(made(Plain), "output", images), made(Plain)(images))
    (spec,) = layers_of(["linear|input"])
    assert (spec.name, spec.tap) == ("linear.input", "linear|input")
    with pytest.raises(ModelError, match=r"no tap 'lin\|input'"):
        layer(made(Plain), "lin|input", images)


SMALL = {
    "vit_tiny_patch16_224": {"depth": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "xcit_nano_12_p16_224": {"depth": 2, "cls_attn_layers": 2},
    "cait_xxs24_224": {"depth": 2},
    "convit_tiny": {"depth": 4, "local_up_to_layer": 2},
    "vit_small_patch14_reg4_dinov2": {"depth": 1, "embed_dim": 96, "num_heads": 2},
}


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    return pytest.importorskip("timm", reason="timm is an extra")


@pytest.mark.parametrize("name", SMALL)
def test_final_tokens_are_those_of_timms_forward_features(timm: ModuleType, name: str) -> None:
    """facebookresearch/xcit#27: XCiT's and CaiT's class token joins after `blocks`, ConViT's after some of them."""
    side = 56 if "patch14" in name else 64
    trunk = build_trunk(f"timm:{name}", {**SMALL[name], "img_size": side}, seed=1, image_size=(side, side))
    random = torch.Generator().manual_seed(0)
    for key, parameter in trunk.named_parameters():
        if "gamma" in key or "cls_token" in key or "ls" in key:
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.5)
    images = torch.randn(2, 3, side, side, generator=random)
    with torch.inference_mode():
        tokens = trunk.forward_features(images)
    taps = TappedTrunk(
        trunk, name=f"timm:{name}", layers=layers_of(["lastCLS", "lastPOOL", "lastBLK:Identity", "blkPOOL0"])
    )
    taps.probe(images[:1])
    layers = taps(images)
    prefix = trunk.num_prefix_tokens
    assert torch.allclose(layers["lastCLS"], tokens[:, 0], atol=1e-5)
    assert torch.allclose(layers["lastPOOL"], tokens[:, prefix:].mean(1), atol=1e-5)
    assert torch.allclose(layers["lastBLK.Identity"], torch.cat((tokens[:, :1], tokens[:, prefix:]), 1), atol=1e-5)


def test_a_class_token_is_offered_only_of_blocks_that_have_it(timm: ModuleType) -> None:
    def views(name: str) -> set[str]:
        return {tap.name for tap in list_taps(f"timm:{name}", SMALL[name]) if tap.name.startswith(("blk", "concat"))}

    assert views("xcit_nano_12_p16_224") == {"blkPOOL0", "blkPOOL1", "concatPOOL2", "concatBLK2"}
    assert views("cait_xxs24_224") == {"blkPOOL0", "blkPOOL1", "concatPOOL2", "concatBLK2"}
    of_convit = views("convit_tiny")
    assert {"blkCLS2", "blkCLS3", "blkPOOL0", "blkPOOL3", "concatCLS2", "concatPOOL4"} <= of_convit
    assert not {"blkCLS0", "blkCLS1", "concatCLS4"} & of_convit
    trunk = build_trunk("timm:xcit_nano_12_p16_224", SMALL["xcit_nano_12_p16_224"])
    with pytest.raises(ModelError, match="no tap 'blkCLS0'"):
        TappedTrunk(trunk, name="timm:xcit_nano_12_p16_224", layers=layers_of(["blkCLS0"])).probe(
            torch.zeros(1, 3, 224, 224)
        )


def test_patches_after_a_block_are_all_of_them(timm: ModuleType) -> None:
    """Not one fewer, where the class token is not among them yet."""
    name = "cait_xxs24_224"
    trunk = build_trunk(f"timm:{name}", {**SMALL[name], "img_size": 56}, seed=1, image_size=(56, 56))
    seen = {}
    trunk.blocks[0].register_forward_hook(lambda _m, _i, output: seen.update(tokens=output.clone()))
    images = torch.rand(2, 3, 56, 56)
    got = layer(trunk, "blkPOOL0", images, f"timm:{name}")
    with torch.inference_mode():
        trunk(images)
        assert torch.allclose(got, trunk.norm(seen["tokens"]).mean(1), atol=1e-6)


def test_a_model_with_two_classifiers_of_timms_has_no_flatten(timm: ModuleType) -> None:
    name = "deit_tiny_distilled_patch16_224"
    taps = list_taps(f"timm:{name}", SMALL[name])
    assert "flatten" not in {tap.name for tap in taps}
    with pytest.raises(ModelError, match=r"'head\|input', 'head_dist\|input'"):
        layer(build_trunk(f"timm:{name}", SMALL[name]), "flatten", torch.zeros(2, 3, 224, 224), f"timm:{name}")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crossvit_tiny_240", {"depth": [[1, 1, 0]]}),
        ("efficientformer_l1", {"depths": [1, 1, 1, 1]}),
        ("efficientvim_m1", {"depths": [1, 1, 1]}),
    ],
)
def test_the_layers_of_a_model_with_several_classifiers_are_listed_without_flatten(
    timm: ModuleType, name: str, options: dict[str, list[int | list[int]]]
) -> None:
    side = 240 if "crossvit" in name else 224
    taps = list_taps(f"timm:{name}", options, image_size=side)
    assert taps
    assert "flatten" not in {tap.name for tap in taps}


COMPUTING = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5)
        if {in_constructor}:
            self.scale = float((torch.ones(5, 6) * self.last.weight.detach()).sum())

    def forward(self, images):
        features = self.conv(images).mean((2, 3))
        return self.last(features / (1.0 + features.abs().max().item()))
"""


@pytest.mark.parametrize("in_constructor", [True, False])
def test_the_layers_of_a_model_that_computes_with_values_are_listed(tmp_path: Path, in_constructor: bool) -> None:
    """Such as timm's ViTamin, whose constructor does; tensors without memory have no values."""
    (tmp_path / "own.py").write_text(COMPUTING.format(in_constructor=in_constructor))
    taps = {tap.name: tap.shape for tap in list_taps(f"{tmp_path}/own.py:Net", image_size=32)}
    assert taps == {"conv": (6, 8, 8), "last": (5,), "flatten": (6,)}
