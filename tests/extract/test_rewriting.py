"""Folded batch norms and weights in low precision give the features of the trunk as it was built."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featbench.extract.model.rewriting import CannotRewriteError, LowPrecision, folded
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.pipelines.extraction.forms import in_form
from featbench.store import LayerSpec


class Net(nn.Module):
    """`conv` with its batch norm, `twice` with two of them, and `plain` with one that has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.twice, self.bn_1, self.bn_2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.plain, self.bn_plain = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        first = self.bn(self.conv(images)).relu()
        second = self.bn_2(self.twice(self.bn_1(self.twice(first))))
        return self.fc(self.bn_plain(self.plain(second)).mean((2, 3)))


class UsedTwice(Net):
    def forward(self, images: Tensor) -> Tensor:
        before = self.conv(images)
        return self.fc((self.bn(before) + before).mean((2, 3)))


class Own(Net):
    """Makes tensors of float32 in its forward pass."""

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.ones(len(images), 8))


def tapped(model: nn.Module, *layers: str, name: str = "model:Net", size: int = 9) -> TappedTrunk:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.2, 3)
            if module.affine:
                module.weight.data.uniform_(-2, 2)
                module.bias.data.normal_()
    taps = TappedTrunk(model.eval(), name=name, layers=[LayerSpec.of(layer) for layer in layers])
    taps.probe(torch.zeros(1, 3, size, size))
    return taps


IMAGES = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def test_folded_batch_norms_give_the_same_features() -> None:
    taps = tapped(Net(), "bn", "bn_2", "bn_plain", "fc")
    made = folded(taps, IMAGES[:1])
    assert made is not None
    trunk: Any = taps.trunk
    assert [name for name, module in made.trunk.named_modules() if type(module) is nn.Identity] == ["bn", "bn_plain"]
    assert isinstance(trunk.bn, nn.BatchNorm2d), "the trunk itself is as it was"
    for name, expected in taps(IMAGES).items():
        torch.testing.assert_close(made(IMAGES)[name], expected, rtol=1e-5, atol=1e-5)
    theirs = fuse_conv_bn_eval(copy.deepcopy(trunk.conv), trunk.bn)
    torch.testing.assert_close(made.trunk.conv.weight, theirs.weight)
    torch.testing.assert_close(made.trunk.conv.bias, theirs.bias)


@pytest.mark.parametrize("layer", ["conv", "bn|input"])
def test_a_convolution_that_is_tapped_keeps_its_batch_norm(layer: str) -> None:
    taps = tapped(Net(), layer, "fc")
    made = folded(taps, IMAGES[:1])
    assert made is not None
    assert isinstance(made.trunk.bn, nn.BatchNorm2d)
    for name, expected in taps(IMAGES).items():
        torch.testing.assert_close(made(IMAGES)[name], expected, rtol=1e-5, atol=1e-5)


def test_there_may_be_nothing_to_fold() -> None:
    assert folded(tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "0"), IMAGES[:1]) is None
    taps = tapped(Net(), "fc")
    assert in_form(taps, "plain", IMAGES, "float32") is taps


def test_a_convolution_whose_output_is_used_twice_is_noticed() -> None:
    with pytest.raises(CannotRewriteError, match="with folded batch norms it gives other features: in layer fc"):
        in_form(tapped(UsedTwice(), "fc"), "folded", IMAGES, "float32")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_weights_in_low_precision_agree_with_float32(precision: str) -> None:
    taps = tapped(Net(), "bn_2", "fc")
    low = in_form(taps, "weights", IMAGES, precision)
    assert {each.dtype for each in low.trunk.parameters()} == {getattr(torch, precision)}
    with torch.autocast("cpu", torch.bfloat16):  # which it does not heed
        found = low(IMAGES)
    for name, expected in taps(IMAGES).items():
        assert found[name].dtype == getattr(torch, precision)
        cosine = torch.nn.functional.cosine_similarity(found[name].double(), expected.double())
        assert 0 < (1 - cosine).max() < 1e-3


def test_a_model_that_makes_float32_tensors_cannot_have_other_weights() -> None:
    with pytest.raises(CannotRewriteError, match=r"^it can't have torch.bfloat16 weights: "):
        LowPrecision(tapped(Own(), "fc"), torch.bfloat16, IMAGES[:1])


def test_a_model_that_cannot_be_copied_is_not_rewritten() -> None:
    def refuse(memo: Any) -> Any:
        raise TypeError("cannot pickle it")

    model = Net()
    model.__dict__["__deepcopy__"] = refuse
    with pytest.raises(CannotRewriteError, match="can't be folded: cannot pickle it"):
        folded(tapped(model, "fc"), IMAGES[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("trunk", "layers"), [
    ("resnet50", ("res2", "layer3.2.conv2", "layer3.2.bn2", "res5", "flatten")),
    ("mobilenet_v3_large", ("features.8",)),
    ("efficientnet_b0", ("features.5", "flatten")), ("densenet121", ("features.denseblock3", "flatten")),
    ("regnet_y_400mf", ("flatten",)), ("googlenet", ("inception4a", "flatten")),
])  # fmt: skip
def test_trunks_folded(trunk: str, layers: tuple[str, ...]) -> None:
    taps = tapped(build_trunk(trunk, {}, image_size=(64, 64)), *layers, name=trunk, size=64)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    made = in_form(taps, "folded", images, "float32")
    assert made is not taps
