"""Taps and pooling give what running the model by hand gives."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featbench.extract.errors import ModelError
from featbench.extract.model.pooling import pool
from featbench.extract.model.taps import TappedTrunk, list_taps
from featbench.extract.model.trunks import build_trunk
from featbench.store import LayerSpec, Pooling
from featbench.store.layers import layers_of


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    trunk = build_trunk("resnet50", {}, seed=3)
    for module in trunk.modules():  # running statistics of its own, so that batch norm does something
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
            module.running_var.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    return trunk


def tapped(
    trunk: torch.nn.Module, name: str, specs: list[str] | tuple[str, ...], images: torch.Tensor
) -> dict[str, torch.Tensor]:
    taps = TappedTrunk(trunk, name=name, layers=layers_of(specs))
    infos = taps.probe(images[:1])
    layers = taps(images)
    assert {layer: tuple(values.shape[1:]) for layer, values in layers.items()} == {
        layer: info.shape for layer, info in infos.items()
    }
    return layers


def by_hand(trunk: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """ResNet's forward pass, step by step, with VISSL's names."""
    with torch.inference_mode():
        steps = {"conv1": trunk.relu(trunk.bn1(trunk.conv1(images))).clone()}
        x = steps["res1"] = trunk.maxpool(steps["conv1"])
        for index in range(1, 5):
            x = steps[f"res{index + 1}"] = getattr(trunk, f"layer{index}")(x)
        steps["res5avg"] = trunk.avgpool(x)
        steps["flatten"] = steps["res5avg"].flatten(1)
    return steps


def test_vissls_names_mean_vissls_activations(resnet: torch.nn.Module, images: torch.Tensor) -> None:
    expected = by_hand(resnet, images)
    names = list(expected)
    layers = tapped(resnet, "resnet50", [f"{name}:Identity" for name in names], images)
    for name in names:
        assert torch.equal(layers[f"{name}.Identity"], expected[name]), name


def test_a_bare_layer_is_the_mean_over_height_and_width(resnet: torch.nn.Module, images: torch.Tensor) -> None:
    layers = tapped(resnet, "resnet50", ["res4", "flatten"], images)
    assert torch.equal(layers["res4"], by_hand(resnet, images)["res4"].mean((2, 3)))
    assert layers["flatten"].shape == (2, 2048)


def test_every_order_of_layers_gives_the_same_arrays_by_name(resnet: torch.nn.Module, images: torch.Tensor) -> None:
    """One of VISSL's faults: asked for res5 and res4, it swaps them."""
    names = ["res5", "conv1", "res4:AvgPool2d(2,1,0)"]
    first = tapped(resnet, "resnet50", names, images)
    for order in itertools.permutations(names):
        again = tapped(resnet, "resnet50", order, images)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_a_module_that_runs_several_times_is_tapped_at_its_last_run(
    resnet: torch.nn.Module, images: torch.Tensor
) -> None:
    """A bottleneck's only ReLU runs three times; its last output is the block's."""
    layers = tapped(resnet, "resnet50", ["layer3.2.relu", "layer3.2"], images)
    assert torch.equal(layers["layer3.2.relu"], layers["layer3.2"])


def test_an_activation_is_safe_from_in_place_operations_after_it(images: torch.Tensor) -> None:
    """features.0 of SqueezeNet is followed by a ReLU that overwrites it."""
    trunk = build_trunk("squeezenet1_0", {}, seed=0)
    layer = tapped(trunk, "squeezenet1_0", ["features.0:Identity"], images)["features.0.Identity"]
    with torch.inference_mode():
        assert torch.equal(layer, trunk.features[0](images))
    assert (layer < 0).any()


def test_the_final_norm_is_tapped_at_its_own_run_and_not_where_views_of_tokens_run_it(images: torch.Tensor) -> None:
    options = {"patch_size": 16, "dim": 24, "depth": 3, "num_heads": 2}
    vit = build_trunk("vit", options, seed=1, image_size=(64, 64))
    with torch.inference_mode():
        tokens = [vit.embed(images)]
        for block in vit.blocks:
            tokens.append(block(tokens[-1]))
        expected = {
            "norm": vit.norm(tokens[3]),
            "blkPOOL0": vit.norm(tokens[1])[:, 1:].mean(1),
            "concatCLS2": torch.cat([vit.norm(each)[:, 0] for each in tokens[2:]], dim=1),
            "flatten": vit.norm(tokens[3])[:, 0],
        }
    layers = tapped(vit, "vit", ["norm:Identity", "blkPOOL0", "concatCLS2", "flatten"], images)
    for (name, want), got in zip(expected.items(), layers.values(), strict=True):
        assert torch.allclose(got, want, atol=1e-6), name


def test_the_forward_pass_stops_after_the_last_tap(resnet: torch.nn.Module, images: torch.Tensor) -> None:
    taps = TappedTrunk(resnet, name="resnet50", layers=layers_of(["res2", "conv1"]))
    taps.probe(images[:1])
    ran = []
    handles = [
        getattr(resnet, name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in ("layer1", "layer2", "fc")
    ]
    taps(images)
    for handle in handles:
        handle.remove()
    assert ran == ["layer1"]


def test_batches_do_not_leak_into_one_another(resnet: torch.nn.Module, images: torch.Tensor) -> None:
    taps = TappedTrunk(resnet, name="resnet50", layers=layers_of(["res3"]))
    taps.probe(images[:1])
    first = taps(images)["res3"]
    taps(images.flip(0))
    assert torch.equal(taps(images)["res3"], first)


def test_regnets_and_squeezenets_have_taps(images: torch.Tensor) -> None:
    layers = tapped(
        build_trunk("regnet_y_400mf", {}), "regnet_y_400mf", ["conv1", "res3", "res5", "avgpool", "flatten"], images
    )
    assert layers["flatten"].shape == (2, 440)
    assert layers["avgpool"].shape == (2, 440)
    assert {tap.name for tap in list_taps("squeezenet1_0", image_size=64)} >= {"features.12", "features.3.expand3x3"}
    assert ("layer3", ("res4",)) in {(tap.name, tap.aliases) for tap in list_taps("resnet18", image_size=64)}


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("swin_t", {"features.0.0": 96, "features.0": 96, "features.1": 96, "features.7": 768, "norm": 768}),
        ("swin_t", {"permute": 768, "avgpool": 768, "flatten": 768}),
        ("convnext_tiny", {"features.0": 96, "features.1.0.block.0": 96, "features.1.0.block.2": 96}),
        ("convnext_tiny", {"features.1.0.block.3": 384, "features.1.0.block.6": 96, "features.7": 768, "avgpool": 768}),
    ],
)
def test_the_channel_axis_is_found(name: str, dims: dict[str, int]) -> None:
    """Some maps are (B, H, W, C): a mean over the last two axes would mix channels."""
    image = torch.rand(1, 3, 224, 224)
    trunk = build_trunk(name)
    layers = tapped(trunk, name, list(dims), image)
    assert {layer: values.shape[1] for layer, values in layers.items()} == dims
    with torch.inference_mode():
        features = trunk.features[:2](image)
    axes = (1, 2) if name == "swin_t" else (2, 3)
    expected = tapped(trunk, name, ["features.1"], image)["features.1"]
    assert torch.allclose(expected, features.mean(axes), atol=1e-6)


def test_a_map_of_unknown_axes_is_refused_except_with_identity() -> None:
    image = torch.rand(1, 3, 224, 224)
    tap = "blocks.0.layers.0.layers.window_attention.attn_layer.1.to_qkv"
    with pytest.raises(ModelError, match="which of its axes are height and width is not known"):
        TappedTrunk(build_trunk("maxvit_t"), name="maxvit_t", layers=layers_of([tap])).probe(image)
    assert tapped(build_trunk("maxvit_t"), "maxvit_t", [f"{tap}:Identity"], image)


def test_only_what_the_layers_need_counts_as_used(resnet: torch.nn.Module, images: torch.Tensor) -> None:
    taps = TappedTrunk(resnet, name="resnet50", layers=layers_of(["res4"]))
    taps.probe(images[:1])
    used = taps.modules_used(images[:1])
    assert {"conv1", "bn1", "layer1.0.conv1", "layer3.5.bn3"} <= used
    assert not {"fc", "layer4", "layer4.0.conv1"} & used


def test_the_weights_of_attention_count_as_used_though_never_called() -> None:
    """Attention reads the weights of `out_proj` without calling the module."""
    trunk = build_trunk("vit_b_32", {})
    taps = TappedTrunk(trunk, name="vit_b_32", layers=layers_of(["encoder.layers.encoder_layer_1"]))
    image = torch.rand(1, 3, 224, 224)
    taps.probe(image)
    used = taps.modules_used(image)
    assert "encoder.layers.encoder_layer_0.self_attention.out_proj" in used
    assert "encoder.layers.encoder_layer_5.self_attention.out_proj" not in used


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("resnet18", "res6", "no tap 'res6'. Did you mean res5"),
        ("resnet18", "layer3.2", "no tap"),
        ("resnet18", "res5:AvgPool2d(9,1,0)", "at least 9 x 9; it is 2 x 2"),
        ("resnet18", "fc:AvgPool2d(2)", r"needs a map of shape \(C, H, W\); got \(1000,\)"),
        ("vit_b_32", "encoder.layers.encoder_layer_0.self_attention", "gives a tuple"),
        ("vit_b_32", "encoder.layers.encoder_layer_0.self_attention.out_proj", "never runs"),
    ],
)
def test_a_tap_or_pooling_that_does_not_fit_is_refused(name: str, spec: str, message: str) -> None:
    image = torch.zeros(1, 3, 64, 64) if name == "resnet18" else torch.zeros(1, 3, 224, 224)
    with pytest.raises(ModelError, match=message):
        TappedTrunk(build_trunk(name, {}), name=name, layers=[LayerSpec.of(spec)]).probe(image)


@pytest.mark.parametrize(
    ("specs", "messages"),
    [
        (["res6", "res5", "lay3"], ["no tap 'res6'", "no tap 'lay3'"]),
        (["res5:AvgPool2d(9,1,0)", "res5", "flatten:MaxPool2d(1,1,0)"], ["a map of at least", "a map of shape"]),
    ],
)
def test_all_wrong_taps_and_poolings_are_refused_together(
    resnet: torch.nn.Module, images: torch.Tensor, specs: list[str], messages: list[str]
) -> None:
    with pytest.raises(ModelError) as refusal:
        tapped(resnet, "resnet50", specs, images)
    for message in messages:
        assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == len(messages)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5", {}, "unknown trunk 'resnet5'. Did you mean resnet50"),
        ("resnet18", {"colour": 1}, r"cannot be built with model.options=\{'colour': 1\}"),
    ],
)
def test_an_unknown_trunk_or_option_is_refused(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_trunk(name, options)


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("AvgPool2d(3,2,1)", nn.AvgPool2d(3, 2, 1)),
        ("AvgPool2d(2)", nn.AvgPool2d(2)),
        ("MaxPool2d((3,2),(2,1),(1,0))", nn.MaxPool2d((3, 2), (2, 1), (1, 0))),
        ("AdaptiveAvgPool2d((2,3))", nn.AdaptiveAvgPool2d((2, 3))),
        ("AdaptiveMaxPool2d(2)", nn.AdaptiveMaxPool2d(2)),
        ("Identity()", nn.Identity()),
    ],
)
@pytest.mark.parametrize("axis", [1, 3])
def test_poolings_are_torchs_modules_of_that_name(text: str, module: torch.nn.Module, axis: int) -> None:
    activation = torch.rand(2, 5, 7, 6)
    pooling = LayerSpec.of(f"x:{text}").pooling
    given = activation.permute(0, 2, 3, 1) if axis == 3 and pooling.op != "Identity" else activation
    assert torch.equal(pool(given, pooling, channel_axis=axis), module(activation))


SEQUENCES = """
from torch import nn

def net():
    sequence = nn.Unfold(4, stride=4), nn.Conv1d(48, 7, 1), nn.BatchNorm1d(7)
    return nn.Sequential(*sequence, nn.Flatten(), nn.Linear(448, 3))
"""


def test_the_mean_of_a_sequence_is_over_its_positions_where_channels_come_first(tmp_path: Path) -> None:
    """As in timm's NextViT, whose keys are pooled as (channels, positions)."""
    (tmp_path / "own.py").write_text(SEQUENCES)
    name = f"{tmp_path}/own.py:net"
    images = torch.rand(2, 3, 32, 32)
    net = build_trunk(name)
    layers = tapped(net, name, ["0", "1", "2", "2|input", "1:Identity"], images)
    unfolded = F.unfold(images, 4, stride=4)
    mapped = torch.einsum("bcl,dc->bdl", unfolded, net[1].weight[:, :, 0]) + net[1].bias[:, None]
    assert torch.allclose(layers["0"], unfolded.mean(2), atol=1e-6)
    assert torch.allclose(layers["1"], mapped.mean(2), atol=1e-5)
    assert torch.allclose(layers["2"], mapped.mean(2) / (1 + 1e-5) ** 0.5, atol=1e-5)
    assert torch.allclose(layers["2.input"], mapped.mean(2), atol=1e-5)
    assert torch.allclose(layers["1.Identity"], mapped, atol=1e-5)
    assert {tap.name: tap.pooled for tap in list_taps(name, image_size=32)} == {
        "0": 48, "1": 7, "2": 7, "3": 448, "4": 3, "flatten": 448,
    }  # fmt: skip


def test_default_pooling_is_the_mean_of_maps_and_tokens() -> None:
    assert torch.equal(pool(torch.ones(2, 3), None), torch.ones(2, 3))
    tokens = torch.rand(2, 4, 3)
    assert torch.equal(pool(tokens, None), tokens.mean(1))
    with pytest.raises(ValueError, match="pool a map"):
        pool(torch.rand(2, 3, 4, 5, 6), None)
    assert torch.equal(
        F.adaptive_avg_pool2d(torch.ones(1, 2, 3, 3), 1),
        pool(torch.ones(1, 2, 3, 3), Pooling.of("AdaptiveAvgPool2d", [1])),
    )
