"""Trunks: those of the table are what torchvision, timm and the papers say; the user's own are not changed."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

from featbench.extract.errors import HeadError, ModelError
from featbench.extract.model.tap_names import aliases_of
from featbench.extract.model.taps import TappedTrunk, list_taps
from featbench.extract.model.trunks import TRUNKS, WithoutMemory, build_trunk, trunk_names
from featbench.extract.model.vit import ViT
from featbench.store.layers import layers_of
from tests.conftest import needs_proc
from tests.peak import forget_peak, peak_kb

SMALL = {"dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8, "image_size": 32}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def layers_at(
    trunk: torch.nn.Module, name: str, specs: list[str] | tuple[str, ...], images: torch.Tensor
) -> dict[str, torch.Tensor]:
    taps = TappedTrunk(trunk, name=name, layers=layers_of(specs))
    taps.probe(images[:1])
    return taps(images)


@pytest.mark.parametrize(
    ("options", "same_as"),
    [
        ({"depth": 18}, "resnet18"),
        ({"depth": 50}, "resnet50"),
        ({"depth": 50, "groups": 32, "width_per_group": 4}, "resnext50_32x4d"),
    ],
)
def test_a_resnet_by_its_parameters_is_torchvisions(
    images: torch.Tensor, options: dict[str, int], same_as: str
) -> None:
    theirs = build_trunk(same_as, {}, seed=1)
    ours = build_trunk("resnet", options, seed=2)
    ours.load_state_dict({name: t for name, t in theirs.state_dict().items() if not name.startswith("fc.")})
    theirs.fc = nn.Identity()
    assert torch.equal(ours(images), theirs(images))


def test_a_wide_resnet_widens_stem_and_output() -> None:
    """VISSL's width multiplier, which torchvision's wide_resnet50_2 is not: that keeps the stem and the output."""
    taps = {tap.name: tap.shape for tap in list_taps("resnet50w2")}
    assert taps["conv1"] == (128, 112, 112)
    assert taps["layer3"] == (2048, 14, 14)
    assert taps["flatten"] == (4096,)
    assert {tap.name: tap.shape for tap in list_taps("wide_resnet50_2")}["flatten"] == (2048,)


def test_a_stride_of_one_in_the_last_stage_keeps_its_map() -> None:
    taps = {tap.name: tap.shape for tap in list_taps("resnet", {"depth": 18, "layer4_stride": 1})}
    assert taps["layer4"] == (512, 14, 14)


def test_a_resnet_200_has_its_blocks() -> None:
    names = {tap.name for tap in list_taps("resnet200", image_size=64)}
    assert {"layer2.23", "layer3.35", "layer4.2"} <= names
    assert not {"layer2.24", "layer3.36"} & names


def test_a_regnet_by_its_parameters_is_torchvisions(images: torch.Tensor) -> None:
    theirs = build_trunk("regnet_y_400mf", {}, seed=1)
    options = {"depth": 16, "w_0": 48, "w_a": 27.89, "w_m": 2.09, "group_width": 8}
    ours = build_trunk("regnet", options, seed=2)
    ours.load_state_dict({name: t for name, t in theirs.state_dict().items() if not name.startswith("fc.")})
    theirs.fc = nn.Identity()
    assert torch.equal(ours(images), theirs(images))


@needs_proc
def test_the_taps_of_a_regnet_of_a_billion_parameters_are_listed_without_its_memory() -> None:
    """Its weights are 5.1 GB."""
    forget_peak()
    before = peak_kb()
    taps = {tap.name: tap for tap in list_taps("regnet_y_256gf")}
    assert peak_kb() - before < 500_000  # kB
    assert taps["flatten"].shape == (10444,)
    assert taps["trunk_output.block4"].aliases == ("res5",)


def test_every_trunk_of_the_table_can_be_built_and_has_an_output() -> None:
    for name, spec in TRUNKS.items():
        options: dict[str, Any] = {"depth": 1} if spec.build is ViT else {}
        if name == "regnet":
            options = {"depth": 27, "w_0": 48, "w_a": 20.71, "w_m": 2.65, "group_width": 24}
        if name == "anynet":  # SEER's with 3 billion parameters
            options = {"depths": [1, 4, 4, 1], "widths": [1840, 3680, 10120, 25760], "group_widths": [920] * 4,
                       "bottleneck_multipliers": [1.0] * 4, "strides": [2] * 4}  # fmt: skip
        with WithoutMemory():
            trunk = build_trunk(name, options, image_size=(224, 224))
        output = trunk.to("meta")(torch.zeros(1, 3, 224, 224, device="meta"))
        assert output.ndim == 2, name
    assert set(TRUNKS) <= set(trunk_names())


def torchvision_vit(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that torchvision gives the same parameters."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("patch_embed.proj.", "conv_proj.").replace("cls_token", "class_token")
        name = name.replace("pos_embed", "encoder.pos_embedding").replace("blocks.", "encoder.layers.encoder_layer_")
        name = name.replace("attn.qkv.", "self_attention.in_proj_").replace("attn.proj.", "self_attention.out_proj.")
        name = name.replace("norm1.", "ln_1.").replace("norm2.", "ln_2.")
        name = name.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
        renamed[re.sub(r"^norm\.", "encoder.ln.", name)] = tensor
    return renamed


def test_a_vit_is_torchvisions_under_other_names(images: torch.Tensor) -> None:
    ours = build_trunk("vit", SMALL, seed=3)
    theirs = VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=96
    ).eval()  # fmt: skip
    theirs.heads = nn.Identity()
    theirs.load_state_dict(torchvision_vit(ours.state_dict()))
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    names = ["blkCLS1", "lastMAP", "concatCLS2", "flatten"]
    mine = layers_at(ours, "vit", names, images)
    others = layers_at(theirs, "vit_b_16", names, images)
    assert all(torch.allclose(mine[name], others[name], atol=1e-5) for name in names)


def test_a_vit_with_registers_and_layer_scale_is_what_its_definition_says(images: torch.Tensor) -> None:
    """One block, written out."""
    options = {**SMALL, "depth": 1, "layer_scale": True, "register_tokens": 2, "feed_forward": "swiglu"}
    vit = build_trunk("vit", options, seed=3)
    vit.blocks[0].ls1.gamma.fill_(0.3)
    vit.blocks[0].ls2.gamma.uniform_(0, 1)
    block = vit.blocks[0]
    x = vit.patch_embed.proj(images).reshape(2, 24, 16).transpose(1, 2)
    x = torch.cat((vit.cls_token.expand(2, 1, 24), x), 1) + vit.pos_embed
    x = torch.cat((x[:, :1], vit.register_tokens.expand(2, 2, 24), x[:, 1:]), 1)
    y = F.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, 1e-6)
    heads = []
    for head in range(2):
        q, k, v = (
            y @ block.attn.qkv.weight[start + 12 * head :][:12].T + block.attn.qkv.bias[start + 12 * head :][:12]
            for start in (0, 24, 48)
        )
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 12**0.5, -1) @ v)
    x = x + 0.3 * block.attn.proj(torch.cat(heads, -1))
    y = block.mlp.w12(F.layer_norm(x, (24,), block.norm2.weight, block.norm2.bias, 1e-6))
    half = y.shape[-1] // 2
    x = x + block.ls2.gamma * block.mlp.w3(F.silu(y[..., :half]) * y[..., half:])
    expected = F.layer_norm(x, (24,), vit.norm.weight, vit.norm.bias, 1e-6)
    assert torch.allclose(vit(images), expected[:, 0], atol=1e-5)
    layers = layers_at(vit, "vit", ["lastPOOL", "lastCLSPOOL", "lastMAP:Identity"], images)
    assert torch.allclose(layers["lastPOOL"], expected[:, 3:].mean(1), atol=1e-5)
    assert torch.allclose(layers["lastCLSPOOL"], torch.cat((expected[:, 0], expected[:, 3:].mean(1)), 1), atol=1e-5)
    assert torch.allclose(layers["lastMAP.Identity"], expected[:, 3:].reshape(2, 4, 4, 24), atol=1e-5)


def test_tokens_are_those_of_the_blocks_after_the_final_norm(images: torch.Tensor) -> None:
    vit = build_trunk("vit", SMALL, seed=4)
    tokens, normed = vit.embed(images), []
    for block in vit.blocks:
        tokens = block(tokens)
        normed.append(vit.norm(tokens))
    names = [
        "blkCLS0", "blkCLS2", "blkPOOL1", "lastCLS", "lastPOOL", "concatCLS2", "concatPOOL3",
        "lastBLK:Identity", "concatBLK2:Identity", "lastMAP", "blocks.1",
    ]  # fmt: skip
    layers = layers_at(vit, "vit", names, images)
    expected = {
        "blkCLS0": normed[0][:, 0],
        "blkCLS2": normed[2][:, 0],
        "blkPOOL1": normed[1][:, 1:].mean(1),
        "lastCLS": normed[2][:, 0],
        "lastPOOL": normed[2][:, 1:].mean(1),
        "concatCLS2": torch.cat((normed[1][:, 0], normed[2][:, 0]), 1),
        "concatPOOL3": torch.cat([each[:, 1:].mean(1) for each in normed], 1),
        "lastBLK.Identity": normed[2],
        "concatBLK2.Identity": torch.cat(normed[1:], 2),
        "lastMAP": normed[2][:, 1:].mean(1),
        "blocks.1": layers["blocks.1"],
    }
    assert layers.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.allclose(layers[name], values, atol=1e-6), name
    for order in itertools.permutations(["lastCLS", "concatCLS2", "blkPOOL1"]):
        again = layers_at(vit, "vit", order, images)
        assert list(again) == list(order)
        assert all(torch.equal(again[name], layers[name]) for name in order)


@pytest.mark.parametrize("tap", ["blkCLS3", "concatCLS4", "concatCLS0", "lastCLS1", "blkMAP0", "concatMAP1", "blkCLS"])
def test_a_token_that_the_trunk_lacks_is_refused(images: torch.Tensor, tap: str) -> None:
    """VISSL's vision transformer leaves such names out without a word."""
    with pytest.raises(ModelError, match=f"no tap '{tap}'. Did you mean"):
        TappedTrunk(build_trunk("vit", SMALL), name="vit", layers=layers_of([tap]))


def test_without_a_class_token_its_taps_are_refused_and_the_output_is_the_mean(images: torch.Tensor) -> None:
    vit = build_trunk("vit", {**SMALL, "class_token": False})
    with pytest.raises(ModelError, match="no tap 'lastCLS'"):
        TappedTrunk(vit, name="vit", layers=layers_of(["lastCLS"]))
    layers = layers_at(vit, "vit", ["lastPOOL", "flatten"], images)
    assert torch.allclose(layers["lastPOOL"], layers["flatten"], atol=1e-6)
    assert not any("CLS" in tap.name for tap in list_taps("vit", {**SMALL, "class_token": False}, image_size=32))


def test_a_vit_is_built_for_the_size_of_the_images() -> None:
    vit = build_trunk("vit_tiny_16", {"depth": 1}, image_size=(64, 32))
    assert vit.pos_embed.shape == (1, 1 + 8, 192)
    assert layers_at(vit, "vit_tiny_16", ["lastMAP:Identity"], torch.rand(2, 3, 64, 32))["lastMAP.Identity"].shape == (
        2, 4, 2, 192,
    )  # fmt: skip
    with WithoutMemory():
        assert build_trunk("vit_b_16", {}, image_size=(64, 64)).encoder.pos_embedding.shape[1] == 17
    with pytest.raises(ModelError, match="can't be cut into patches of 16"):
        build_trunk("vit_tiny_16", {}, image_size=(100, 100))
    with pytest.raises(ValueError, match=r"built for images of \(32, 32\)"):
        ViT(image_size=32, dim=12, depth=1, num_heads=2)(torch.rand(1, 3, 48, 48))


def test_the_trunks_output_is_the_input_of_its_classifier(images: torch.Tensor) -> None:
    for name in ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "efficientnet_b0"):
        trunk = build_trunk(name)
        seen = {}
        classifier = [module for module in trunk.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        handle = classifier.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0].clone()))
        with torch.inference_mode():
            trunk(images)
        handle.remove()
        expected = seen["x"] if seen["x"].ndim == 2 else seen["x"].mean((2, 3))
        assert torch.equal(layers_at(trunk, name, ["flatten"], images)["flatten"], expected), name


def test_the_classifier_does_not_count_as_used_where_only_its_input_is(images: torch.Tensor) -> None:
    """A self-supervised checkpoint has none."""
    taps = TappedTrunk(build_trunk("resnet18"), name="resnet18", layers=layers_of(["flatten"]))
    taps.probe(images)
    assert "fc" not in taps.modules_used(images)
    assert "layer4.1.conv2" in taps.modules_used(images)


def test_vissls_names_hold_for_efficientnet_and_alexnet() -> None:
    taps = {alias: tap.shape for tap in list_taps("efficientnet_b0") for alias in tap.aliases}
    assert taps["conv1"] == (32, 112, 112)
    assert taps["block15"] == (320, 7, 7)
    assert taps["conv_final"] == (1280, 7, 7)
    assert "block16" not in taps
    taps = {alias: tap.shape for tap in list_taps("alexnet") for alias in tap.aliases}
    assert (taps["conv1"], taps["conv5"], taps["pool5"]) == ((64, 55, 55), (256, 13, 13), (256, 6, 6))


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))

def make(width=4):
    return Net(width)

def nothing():
    return 3

def lazy():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4))
"""


def test_a_users_model_is_loaded_from_a_file_and_running_its_code_is_announced(
    tmp_path: Path, images: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name = f"{tmp_path}/own.py:make"
    trunk = build_trunk(name, {"width": 5}, seed=1)
    build_trunk(name, {"width": 5}, seed=2)
    assert caplog.text.count("running the code of") == 1
    layers = layers_at(trunk, name, ["conv:Identity", "conv", "flatten"], images)
    assert layers["conv.Identity"].shape == (2, 5, 30, 30)
    assert torch.allclose(layers["conv"], layers["flatten"], atol=1e-6)


def test_a_users_model_is_loaded_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert build_trunk("my_nets:make", {"width": 6}).conv.out_channels == 6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own.py:mak", {}, "has no function 'mak'. Did you mean make"),
        ("own.py:nothing", {}, "returned a int, not a torch.nn.Module"),
        ("own.py:lazy", {}, "2 of its parameters have no shape yet.*let its function run the model once"),
        ("own.py:make", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("missing.py:make", {}, "no file missing.py"),
        ("no.such.package:make", {}, "cannot be imported: ModuleNotFoundError"),
        ("broken.py:make", {}, "cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_users_model_that_fails_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, int], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ModelError, match=message):
        build_trunk(name, options)


class Odd(nn.Module):
    """Channels last, and a tap whose first axis is not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 7)
        self.windows = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.last(images.permute(0, 2, 3, 1))
        self.windows(maps.reshape(-1, 4, 4, 7))
        return maps.mean((1, 2))


def test_the_channel_axis_of_a_users_model_is_the_one_unequal_to_the_others(images: torch.Tensor) -> None:
    trunk = Odd().eval()
    layer = layers_at(trunk, "own.py:odd", ["last"], images)["last"]
    assert torch.allclose(layer, trunk(images), atol=1e-6)
    with pytest.raises(ModelError, match="which of its axes are height and width is not known"):
        layers_at(trunk, "own.py:odd", ["last"], torch.rand(1, 3, 32, 16))
    with pytest.raises(ModelError, match="its first axis is not the batch"):
        layers_at(trunk, "own.py:odd", ["windows"], images)


def test_without_timm_its_models_are_refused_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'featbench\[timm\]'"):
        build_trunk("timm:resnet18")


def test_timms_models_are_built_by_name_and_have_vissls_taps(images: torch.Tensor) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra, and not installed")
    ours = layers_at(build_trunk("timm:resnet18", {}, seed=3), "timm:resnet18", ["conv1", "res4", "flatten"], images)
    torch.manual_seed(3)
    theirs = timm.create_model("resnet18", pretrained=False).eval()
    with torch.inference_mode():
        maps = theirs.maxpool(theirs.act1(theirs.bn1(theirs.conv1(images))))
        assert torch.allclose(ours["res4"], theirs.layer3(theirs.layer2(theirs.layer1(maps))).mean((2, 3)), atol=1e-6)
        pooled = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    assert torch.allclose(ours["flatten"], pooled, atol=1e-6)
    assert aliases_of(timm.create_model("xception41p", pretrained=False))["flatten"] == "head.fc|input"
    assert aliases_of(timm.create_model("nasnetalarge", pretrained=False))["flatten"] == "last_linear|input"
    with pytest.raises(ModelError, match="Did you mean resnet51q or resnet50"):
        build_trunk("timm:resnet51")


@pytest.mark.parametrize(
    ("name", "same_as", "side"),
    [("vit_tiny_16", "vit_tiny_patch16_224", 32), ("dinov2_vits14", "vit_small_patch14_dinov2", 42)],
)
def test_a_vit_is_timms_under_the_same_names(name: str, same_as: str, side: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra, and not installed")
    theirs = timm.create_model(same_as, pretrained=False, img_size=side, depth=2, num_classes=0).eval()
    ours = build_trunk(name, {"depth": 2, "image_size": side})
    for tensor in theirs.state_dict().values():
        tensor.add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(2, 3, side, side)
    with torch.inference_mode():
        assert torch.allclose(ours(image), theirs(image), atol=1e-4)


def test_a_vit_of_timms_is_built_for_the_size_of_the_images() -> None:
    pytest.importorskip("timm", reason="timm is an optional extra, and not installed")
    sized = build_trunk("timm:vit_tiny_patch16_224", {"depth": 1}, image_size=(64, 64))
    names = ["lastCLS", "lastMAP:Identity"]
    layers = layers_at(sized, "timm:vit_tiny_patch16_224", names, torch.rand(1, 3, 64, 64))
    assert layers["lastMAP.Identity"].shape == (1, 4, 4, 192)


def test_heads_are_taps_each_by_its_name(images: torch.Tensor) -> None:
    heads = [("mlp", {"dims": [512, 16], "use_relu": True}), ("identity", {}), ("mlp", {"dims": [16, 8]})]
    trunk = build_trunk("resnet18", {}, heads=heads, seed=2)
    names = ["heads", "res4", "heads.0", "heads.1", "flatten", "heads.2.clf.0"]
    layers = layers_at(trunk, "resnet18", names, images)
    output = layers["flatten"]
    first = output @ trunk.heads[0].clf[0].weight.T + trunk.heads[0].clf[0].bias
    second = first @ trunk.heads[2].clf[0].weight.T + trunk.heads[2].clf[0].bias
    assert torch.allclose(layers["heads.0"], first, atol=1e-5)
    assert torch.equal(layers["heads.1"], layers["heads.0"])
    assert torch.allclose(layers["heads"], second, atol=1e-5)
    assert torch.equal(layers["heads"], layers["heads.2.clf.0"])
    alone = layers_at(build_trunk("resnet18", {}, seed=2), "resnet18", ["res4", "flatten"], images)
    assert all(torch.equal(layers[name], alone[name]) for name in alone)


def test_a_head_that_does_not_fit_the_trunk_is_refused(images: torch.Tensor) -> None:
    trunk = build_trunk("resnet18", {}, heads=[("mlp", {"dims": [2048, 128]})])
    with pytest.raises(ModelError, match=r"2x512 and 2048x128|1x512 and 2048x128"):
        layers_at(trunk, "resnet18", ["heads"], images)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (("mpl", {"dims": [8, 4]}), "unknown head 'mpl'. Did you mean mlp"),
        (("mlp", {"dims": [8]}), "dims must contain"),
        (("mlp", {"dims": [8, 4], "use_gelu": True}), "unexpected keyword argument 'use_gelu'"),
        (("dino_head", {"in_dim": 8, "num_clusters": []}), "num_clusters must contain one number"),
        (("swav_head", {"dims": [8, 4], "use_bn": False, "num_clusters": [], "return_embeddings": False}), "nothing"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused(head: tuple[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        build_trunk("resnet18", {}, heads=[head])


def test_a_model_that_imports_a_file_beside_it_is_refused_with_the_path_to_set(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "net.py").write_text("import beside\n")
    with pytest.raises(ModelError, match=f"No module named 'beside'. It is beside net.py.*PYTHONPATH={tmp_path}$"):
        build_trunk(f"{tmp_path}/net.py:make", {})
    (tmp_path / "net.py").write_text("import elsewhere_\n")
    with pytest.raises(ModelError, match="No module named 'elsewhere_'$"):
        build_trunk(f"{tmp_path}/net.py:make", {})
