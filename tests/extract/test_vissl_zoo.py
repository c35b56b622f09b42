"""Files in the layouts of VISSL's model zoo are loaded by the keys that its own evaluation commands give for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from featbench.extract.errors import WeightsError
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.state_dicts import find_weights
from featbench.extract.weights.strict import load_strictly, names_of, poison
from featbench.pipelines.foreign.vissl import translate

State = dict[str, Tensor]
Write = Callable[[State], dict[str, Any]]

TRUNKS: dict[str, tuple[str, dict[str, Any], int]] = {  # name, options, side of the images
    "resnet": ("resnet", {"depth": 18}, 32),
    "regnet": ("regnet", {"depth": 4, "w_0": 24, "w_a": 24.0, "w_m": 2.5, "group_width": 8}, 32),
    "vit": ("vit", {"dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16}, 32),
    "xcit": ("timm:xcit_small_12_p16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}, 32),
    "alexnet_jigsaw": ("alexnet_jigsaw", {}, 128),
    "alexnet_rotnet": ("alexnet_rotnet", {}, 96),
    "alexnet_deepcluster": ("alexnet_deepcluster", {}, 96),
    "efficientnet": ("efficientnet", {"version": "b1"}, 64),
    "alexnet_bvlc": ("alexnet_bvlc", {}, 96),
    "alexnet_colorization": ("alexnet_colorization", {}, 96),
    "resnet of lightness": ("resnet", {"depth": 18, "lightness": True}, 32),
}


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def classy(trunk: State, **heads: Tensor) -> dict[str, Any]:
    return {"phase_idx": 199, "classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}}}


def extractor(state: State) -> dict[str, Any]:
    """Saved while the trunk was wrapped for feature extraction."""
    return classy(under("base_model._feature_blocks.", state))


def pretrained(state: State) -> dict[str, Any]:
    """SimCLR, MoCo v2, PIRL, NPID++, SimSiam, Barlow Twins, RotNet: the trunk, a head, and the loss's buffers."""
    head = {"0.clf.0.weight": torch.rand(8, 512), "0.clf.0.bias": torch.rand(8)}
    return {**classy(under("_feature_blocks.", state), **head), "loss": {"queue": torch.rand(4, 8)}}


def caffe2(state: State) -> dict[str, Any]:
    """Converted from Caffe2, or from the authors' AlexNets: Jigsaw, NPID, colorization, DeepCluster."""
    return {"model_state_dict": under("_feature_blocks.", state)}


def swavs_own(state: State) -> dict[str, Any]:
    """DeepClusterV2 and SwAV from their own repository: DataParallel's names, with head and prototypes."""
    head = {"projection_head.0.weight": torch.rand(8, 512), "prototypes.prototypes0.weight": torch.rand(5, 8)}
    return under("module.", state | head)


def dino(state: State) -> dict[str, Any]:
    """The loss has the teacher; the model is the student."""
    official = {name.replace("pos_embed.", "pos_embeder."): tensor for name, tensor in state.items()}
    for name in [name for name in official if re.search(r"cls_attn_blocks.*\.attn\.q\.", name)]:
        parts = [official.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        official[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    teacher = under("momentum_teacher.module.trunk.", official)
    student = {name: torch.zeros_like(tensor) for name, tensor in official.items()}
    return {**classy(student), "loss": {**teacher, "momentum_teacher.module.heads.0.mlp.0.weight": torch.rand(3, 3)}}


def seer(state: State) -> dict[str, Any]:
    """RegNets have ClassyVision's names within a block; those trained by FSDP have groups of blocks, too."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^stem\.", "_feature_blocks.conv1.stem.", name)
        name = re.sub(
            r"^trunk_output\.block(\d)\.", lambda m: f"_feature_blocks.res{int(m[1]) + 1}.block{m[1]}-part0.", name
        )
        name = name.replace(".proj.0.weight", ".proj.weight").replace(".proj.1.", ".bn.")
        name = name.replace(".se.fc1.", ".se.excitation.0.").replace(".se.fc2.", ".se.excitation.2.")
        name = re.sub(r"\.f\.c\.0\.weight$", ".f.c.weight", name)
        renamed[re.sub(r"\.f\.c\.1\.", ".f.final_bn.", name)] = tensor
    return classy(renamed)


def classys_efficientnet(state: State) -> dict[str, Any]:
    """Blocks are numbered through; ClassyVision names the parts of a block."""
    blocks = list(dict.fromkeys(name.partition(".block.")[0] for name in state if ".block." in name))
    renamed = {}
    for name, tensor in state.items():
        if ".block." not in name:
            new = re.sub(r"^features\.0\.", "conv1.", name)
            renamed["_feature_blocks." + re.sub(r"^features\.8\.", "conv_final.", new)] = tensor
            continue
        before, inner = name.split(".block.")
        number, part, rest = inner.split(".", 2)
        place = int(number) + (f"{before}.block.3.0.weight" not in state)
        parts = {"0": "expand_conv depthwise_conv - project_conv", "1": "bn0 bn1 - bn2", "fc1": "- - se_reduce -",
                 "fc2": "- - se_expand -"}  # fmt: skip
        renamed[f"_feature_blocks.block{blocks.index(before)}.{parts[part].split()[place]}.{rest}"] = tensor
    return classy(renamed)


CLASSY = {"STATE_DICT_KEY_NAME": "classy_state_dict"}
CAFFE2 = {"STATE_DICT_KEY_NAME": "model_state_dict", "APPEND_PREFIX": "trunk.base_model."}
FLAT = {"STATE_DICT_KEY_NAME": "", "APPEND_PREFIX": "trunk.base_model._feature_blocks."}
TEACHER = {"STATE_DICT_KEY_NAME": "loss", "REMOVE_PREFIX": "momentum_teacher.module."}

ZOO: list[tuple[str, Write, str, dict[str, Any]]] = [
    ("simclr, moco, pirl, npid++, barlow, simsiam, swav, rotnet", pretrained, "resnet", CLASSY),
    ("clusterfit, semi-supervised, semi-weakly", extractor, "resnet", CLASSY),
    ("jigsaw and npid from Caffe2", caffe2, "resnet", CAFFE2),
    ("byol, supervised", dict, "resnet", FLAT),
    ("deepclusterv2, swav's own", swavs_own, "resnet", {**FLAT, "REMOVE_PREFIX": "module."}),
    ("jigsaw", caffe2, "alexnet_jigsaw", CAFFE2),
    ("rotnet", caffe2, "alexnet_rotnet", CAFFE2),
    ("deepcluster", caffe2, "alexnet_deepcluster", CAFFE2),
    ("supervised", caffe2, "alexnet_bvlc", CAFFE2),
    ("colorization", caffe2, "alexnet_colorization", CAFFE2),
    ("colorization", caffe2, "resnet of lightness", CAFFE2),
    ("seer", seer, "regnet", CLASSY),
    ("swav", classys_efficientnet, "efficientnet", CLASSY),
    ("vit", classy, "vit", {**CLASSY, "APPEND_PREFIX": "trunk.base_model."}),
    ("dino", dino, "vit", TEACHER),
    ("dino", dino, "xcit", TEACHER),
]


def weights_of(keys: dict[str, Any]) -> dict[str, Any]:
    """Settings of the weights that VISSL's keys are translated to."""
    evaluation = {"EVAL_MODE_ON": True, "EXTRACT_TRUNK_FEATURES_ONLY": True}
    model = {"FEATURE_EVAL_SETTINGS": evaluation, "TRUNK": {"NAME": "resnet"}, "WEIGHTS_INIT": keys}
    made = translate({"MODEL": model}, where="x").settings.get("weights", {})
    return {key: made[key] for key in ("key", "remove_prefix", "add_prefix") if key in made}


def built(kind: str, seed: int) -> torch.nn.Module:
    name, options, side = TRUNKS[kind]
    trunk = build_trunk(name, options, seed=seed, image_size=(side, side))
    random = torch.Generator().manual_seed(seed)
    for tensor in trunk.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim <= 1:
            tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    return trunk


@pytest.mark.parametrize(("method", "write", "kind", "keys"), ZOO, ids=[f"{each[0]}-{each[2]}" for each in ZOO])
def test_a_file_of_the_zoo_gives_the_features_of_the_model_that_it_was_saved_from(
    method: str, write: Write, kind: str, keys: dict[str, Any]
) -> None:
    if kind == "xcit":
        pytest.importorskip("timm")
    side = TRUNKS[kind][2]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(9))
    first, trunk = built(kind, 1), built(kind, 2)
    state = {
        name: tensor
        for name, tensor in first.state_dict().items()
        if not name.startswith(("fc.", "head.", "classifier."))
    }
    content = write(state)
    used = {name for name, _ in trunk.named_modules() if name not in ("fc", "head")}
    poison(trunk)
    found = find_weights(content, wanted=names_of(trunk), where="w.torch", **weights_of(keys))
    load_strictly(trunk, found.tensors, used=used, where="w.torch")
    with torch.inference_mode():
        assert torch.equal(trunk(images), first(images))


@pytest.mark.parametrize(("method", "write", "kind", "keys"), ZOO[:2] + ZOO[7:8], ids=lambda each: str(each)[:20])
def test_a_file_of_the_zoo_that_lacks_a_tensor_is_refused(
    method: str, write: Write, kind: str, keys: dict[str, Any]
) -> None:
    trunk = built(kind, 1)
    state = dict(trunk.state_dict())
    state.pop(next(name for name in reversed(state) if name.endswith("weight")))
    content = write(state)
    found = find_weights(content, wanted=names_of(trunk), where="w.torch", **weights_of(keys))
    with pytest.raises(WeightsError, match="missing"):
        load_strictly(trunk, found.tensors, used={name for name, _ in trunk.named_modules()}, where="w.torch")
