"""Trunks that VISSL has beside ResNets, RegNets and ViTs: its files load strictly and give the features they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from featbench.extract.errors import ModelError
from featbench.extract.model.tap_names import aliases_of
from featbench.extract.model.trunks import build_trunk
from featbench.extract.transform import Transform
from featbench.extract.weights.key_mappings import laid_out
from featbench.extract.weights.state_dicts import find_weights
from featbench.extract.weights.strict import load_strictly, names_of, poison
from featbench.pipelines.config.pipeline import PipelineError
from featbench.pipelines.foreign.vissl import translate
from tests.extract.test_vissl_zoo import classy

EVA = {"depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 0}
TINY = {
    "dinov3": ("vit_small_patch16_dinov3_qkvb", EVA),
    "dinov3 gated": ("vit_small_plus_patch16_dinov3_qkvb", EVA),
    "convnext": ("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 0}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 2, 2, 2),
                                              "num_classes": 0}),
    "xcit": ("xcit_small_12_p16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}),
}  # fmt: skip

GATED = ((r"mlp\.fc1_g\.", "mlp.w1."), (r"mlp\.fc1_x\.", "mlp.w2."), (r"mlp\.fc2\.", "mlp.w3."))
DINOV3 = ((r"^reg_token$", "storage_tokens"), (r"gamma_([12])$", r"ls\1.gamma"))
TO_OFFICIAL = {
    "dinov3": DINOV3,
    "dinov3 gated": DINOV3 + GATED,
    "convnext": (
        (r"^stem\.", "downsample_layers.0."), (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."), (r"conv_dw", "dwconv"), (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
    ),
    "swin": tuple((rf"^layers\.{stage + 1}\.downsample", f"layers.{stage}.downsample") for stage in range(3)),
    "xcit": ((r"^pos_embed\.", "pos_embeder."),),
}  # fmt: skip
"""From timm's names to those of the authors, which VISSL has kept."""


def official(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the authors' names; in XCiT's class attention queries, keys and values are one matrix."""
    renamed = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in TO_OFFICIAL[kind]:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    for name in [name for name in renamed if re.search(r"cls_attn_blocks.*\.attn\.q\.", name)]:
        parts = [renamed.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        renamed[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    for name in [name for name in renamed if name.endswith(".q_bias")]:
        query, value = (renamed.pop(name.replace("q_bias", part)) for part in ("q_bias", "v_bias"))
        renamed[name.replace("q_bias", "qkv.bias")] = torch.cat((query + 1, torch.ones_like(query), value + 1))
    if kind.startswith("dinov3"):
        renamed |= {"mask_token": torch.ones(1, 24), "rope_embed.periods": torch.ones(3)}
    return renamed


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [(kind, prefix) for kind in TINY for prefix in ("", "base_model.") if not (prefix and kind.startswith("dinov3"))],
)
def test_the_authors_names_become_timms(kind: str, prefix: str) -> None:
    """The judge is timm's own conversion of their files."""
    timm = pytest.importorskip("timm")
    name, options = TINY[kind]
    model = timm.create_model(name, pretrained=False, **options)
    modules = {"convnext": timm.models.convnext, "swin": timm.models.swin_transformer, "xcit": timm.models.xcit}
    module = modules.get(kind, timm.models.eva)
    theirs = official(kind, model.state_dict())
    assert theirs.keys() != model.state_dict().keys()
    expected = module.checkpoint_filter_fn(dict(theirs), model)
    _, made = laid_out({prefix + name: tensor for name, tensor in theirs.items()})
    persistent = {name for name in expected if not name.endswith(("relative_position_index", "attn_mask"))}
    assert persistent == {name for name in made if not name.endswith(("relative_position_index", "attn_mask"))}
    assert all(torch.equal(made[name], expected[name]) for name in persistent)


def test_groups_of_blocks_of_a_sharded_regnet_are_no_part_of_its_names() -> None:
    trunk = build_trunk("anynet", {"depths": [1, 2, 1, 1], "widths": [8, 16, 24, 32], "group_widths": [8] * 4,
                                   "bottleneck_multipliers": [1.0] * 4, "strides": [2] * 4})  # fmt: skip
    inner = [("block1-0", 1), ("block2-0", 2), ("block2-1", 2)]
    names = [f"_feature_blocks.res{stage + 1}.block{stage}-part{i % 2}.{block}.f.a.0.weight"
             for i, (block, stage) in enumerate(inner)]  # fmt: skip
    _, made = laid_out({name: torch.zeros(1) for name in names})
    assert set(made) == {f"trunk_output.block{stage}.{block}.f.a.0.weight" for block, stage in inner}
    assert set(made) <= set(trunk.state_dict())
    assert trunk(torch.zeros(1, 3, 32, 32)).shape == (1, 32)


def selective(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """SimCLR v2's ResNet-50 of one width with selective kernels, after the papers, in float64 and without modules."""

    def conv(maps: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(maps, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(maps: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.0.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        shape = (1, -1, 1, 1)
        return (maps - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)

    maps = images
    for index, stride in ((0, 2), (2, 1), (4, 1)):
        maps = norm(conv(maps, f"net.0.{index}", stride), f"net.0.{index + 1}").relu()
    maps = F.max_pool2d(maps, 3, stride=2, padding=1)
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        for index in range(count):
            name = f"net.{stage}.blocks.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            short = maps
            if index == 0:
                padded = F.avg_pool2d(F.pad(maps, (0, 1, 0, 1)), 2, stride=stride)
                short = norm(conv(padded, f"{name}.projection.shortcut.2"), f"{name}.projection.bn")
            inner = norm(conv(maps, f"{name}.net.0"), f"{name}.net.1").relu()
            both = norm(conv(inner, f"{name}.net.2.main_conv.0", stride), f"{name}.net.2.main_conv.1").relu()
            first, second = both.chunk(2, dim=1)
            pooled = (first + second).mean(dim=(2, 3), keepdim=True)
            mixed = norm(conv(pooled, f"{name}.net.2.mixing_conv.0"), f"{name}.net.2.mixing_conv.1").relu()
            one, other = conv(mixed, f"{name}.net.2.mixing_conv.2").chunk(2, dim=1)
            share = (one - other).sigmoid()  # a softmax over two
            inner = first * share + second * (1 - share)
            maps = (short + norm(conv(inner, f"{name}.net.3"), f"{name}.net.4")).relu()
    return maps.mean(dim=(2, 3))


def test_a_resnet_with_selective_kernels_is_that_of_the_papers() -> None:
    trunk = build_trunk("resnet_sk", {"depth": 50, "width_multiplier": 1}, seed=2).double()
    images = torch.randn(2, 3, 33, 47, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(trunk(images), selective(trunk.state_dict(), images), rtol=1e-9, atol=1e-12)


ALEXNETS = {  # shapes of the first, second and fifth convolution, and of the stages at 224 pixels
    "bvlc": ((96, 3, 11, 11), (256, 48, 5, 5), (256, 192, 3, 3), (54, 26, 26, 12, 12, 12, 12, 5)),
    "jigsaw": ((96, 3, 11, 11), (256, 48, 5, 5), (256, 192, 3, 3), (107, 53, 53, 26, 26, 26, 26, 12)),
    "rotnet": ((64, 3, 11, 11), (192, 64, 5, 5), (256, 256, 3, 3), (55, 27, 27, 13, 13, 13, 13, 6)),
    "deepcluster": ((96, 2, 11, 11), (256, 96, 5, 5), (256, 384, 3, 3), (55, 27, 27, 13, 13, 13, 13, 6)),
}


@pytest.mark.parametrize("variant", ALEXNETS)
def test_alexnets_have_vissls_names_shapes_and_stages(variant: str) -> None:
    trunk = build_trunk(f"alexnet_{variant}")
    state = trunk.state_dict()
    first, second, fifth, sides = ALEXNETS[variant]
    assert (state["0.0.weight"].shape, state["2.0.weight"].shape, state["6.0.weight"].shape) == (first, second, fifth)
    assert ("sobel.0.weight" in state) == (variant == "deepcluster")
    places = aliases_of(trunk)
    assert [places[f"{kind}{number}"] for kind, number in (("conv", 1), ("pool", 2), ("conv", 5))] == ["0", "3", "6"]
    shapes = []
    for number in range(8):
        trunk.get_submodule(str(number)).register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[-1]))
    trunk(torch.zeros(1, 3, 224, 224))
    assert tuple(shapes) == sides


def test_blue_comes_first_where_the_model_expects_it() -> None:
    pixels = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    given = Transform(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), channels="bgr").scale(pixels, torch.device("cpu"))
    rgb = (pixels.numpy() / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([1.0, 2.0, 4.0])[:, None, None]
    assert np.allclose(given.numpy(), rgb[:, ::-1], atol=1e-6)
    assert "channels" not in Transform().describe(), "fingerprints of earlier versions stay"
    assert Transform(channels="bgr").describe()["channels"] == "bgr"


def translated(trunk: str, **sections: dict[str, Any]) -> nn.Module:
    """The trunk that VISSL's keys become, for images of 32 x 32 pixels."""
    evaluation = {"EVAL_MODE_ON": True, "EXTRACT_TRUNK_FEATURES_ONLY": True}
    made = translate({"MODEL": {"FEATURE_EVAL_SETTINGS": evaluation, "TRUNK": {"NAME": trunk} | sections}}, where="x")
    model = made.settings["model"]
    return build_trunk(model["trunk"], model["options"], image_size=(32, 32))


def features(trunk: nn.Module, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    poison(trunk)
    found = find_weights(classy(dict(state)), wanted=names_of(trunk), where="w")
    load_strictly(trunk, found.tensors, used={name for name, _ in trunk.named_modules()}, where="w")
    with torch.inference_mode():
        output: Tensor = trunk(images)
    return output


def stirred(trunk: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(1)
    for tensor in trunk.parameters():
        tensor.data += torch.randn(tensor.shape, generator=random) / 5
    return trunk.eval()


VIT = {"PATCH_SIZE": 8, "NUM_LAYERS": 3, "NUM_HEADS": 4, "HIDDEN_DIM": 16, "MLP_DIM": 32}


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model."])
def test_classy_visions_vit_is_torchvisions_with_other_names(prefix: str) -> None:
    expected = stirred(torchvision.models.VisionTransformer(32, 8, 3, 4, 16, 32, num_classes=1))
    expected.heads = nn.Identity()
    state = {}
    for name, tensor in expected.state_dict().items():
        new = name.replace("encoder_layer_", "layer_").replace("mlp.0.", "mlp.linear_1.")
        new = new.replace("mlp.3.", "mlp.linear_2.")
        state[prefix + new] = tensor.transpose(0, 1) if name.endswith("pos_embedding") else tensor
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = features(translated("classy_vit", VISION_TRANSFORMERS=VIT), state, images)
    with torch.inference_mode():
        torch.testing.assert_close(made, expected(images))


def test_convit_averages_what_comes_several_times() -> None:
    """VISSL repeats each of three distances, and divides the score by how often; timm has each once."""
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 4, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
    expected = stirred(timm.models.convit.ConVit(**options, num_classes=0, local_up_to_layer=2))
    for module in expected.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    random, state = torch.Generator().manual_seed(2), {}
    for name, tensor in expected.state_dict().items():
        if name.endswith("pos_proj.weight"):
            noise = torch.randn(*tensor.shape, 10, generator=random)
            tensor = (tensor[..., None] + noise - noise.mean(-1, keepdim=True)).flatten(1)
        elif name.endswith("pos_proj.bias"):
            tensor = tensor * 10
        elif name.endswith("gating_param"):
            tensor = tensor.view(1, -1, 1, 1)
        renamed = re.sub(r"mlp\.fc([12])", r"mlp.linear_\1", name).replace("gating_param", "alpha")
        state[renamed.replace("cls_token", "class_token").replace("pos_embed", "pos_embedding")] = tensor
    images = torch.randn(2, 3, 32, 32, generator=random)
    made = features(translated("convit", VISION_TRANSFORMERS=VIT, CONVIT={"N_GPSA_LAYERS": 2}), state, images)
    with torch.inference_mode():
        torch.testing.assert_close(made, expected(images))


def test_what_convit_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match=r"local_layers must be from 0 to 2"):
        build_trunk("convit", {"depth": 3, "local_layers": 3})
    with pytest.raises(ModelError, match="square images, not 32 x 64"):
        build_trunk("convit", image_size=(32, 64))
    trunk = {
        "NAME": "convit",
        "CONVIT": {"CLASS_TOKEN_IN_LOCAL_LAYERS": True},
        "VISION_TRANSFORMERS": {"CLASSIFIER": "gap"},
    }
    evaluation = {"EVAL_MODE_ON": True, "EXTRACT_TRUNK_FEATURES_ONLY": True}
    with pytest.raises(PipelineError, match=r"(?s)CLASS_TOKEN_IN_LOCAL_LAYERS: True.*CLASSIFIER: 'gap'"):
        translate({"MODEL": {"FEATURE_EVAL_SETTINGS": evaluation, "TRUNK": trunk}}, where="x")
