"""Each family of checkpoints, with the key layout of the project that writes it, gives the features of its model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from featbench.extract.errors import WeightsError
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import WithoutMemory, build_trunk, trunk_names
from featbench.extract.weights.checkpoints import read_checkpoint
from featbench.extract.weights.families import FAMILIES
from featbench.extract.weights.key_mappings import laid_out
from featbench.extract.weights.state_dicts import CheckpointMatch, find_weights
from featbench.extract.weights.strict import load_strictly, names_of, poison
from featbench.store.layers import layers_of

IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VIT = {"dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 32}
REGNET = {"depth": 4, "w_0": 16, "w_a": 20.0, "w_m": 2.0, "group_width": 8}
MLP = [("mlp", {"dims": [512, 16, 8], "use_relu": True})]
SWAV = [("swav_head", {"dims": [512, 16, 8], "use_bn": True, "num_clusters": [5]})]
DINO = [("dino_head", {"in_dim": 24, "num_clusters": [7], "hidden_dim": 16, "bottleneck_dim": 8})]
TRUNKS = {
    "resnet18": ("resnet18", {}, (), "flatten"),
    "resnet18 + mlp": ("resnet18", {}, MLP, "heads"),
    "resnet18 + swav": ("resnet18", {}, SWAV, "heads"),
    "regnet": ("regnet", REGNET, (), "flatten"),
    "vit": ("vit", VIT, (), "lastCLS"),
    "vit + dino": ("vit", VIT, DINO, "heads"),
    "vit, layer scale": ("vit", {**VIT, "layer_scale": True, "register_tokens": 2}, (), "lastCLS"),
}


@dataclass
class Model:
    """A model with taps, which is built once and loaded many times, and the state that it should have."""

    taps: TappedTrunk
    used: set[str]
    state: dict[str, torch.Tensor]
    expected: torch.Tensor


@pytest.fixture(scope="module")
def models() -> Callable[..., Model]:
    built: dict[str, Model] = {}

    def get(kind: str) -> Model:
        if kind not in built:
            name, options, heads, layer = TRUNKS[kind]
            trunk = build_trunk(name, options, heads=heads, seed=5)
            random = torch.Generator().manual_seed(6)
            for tensor in trunk.state_dict().values():  # batch norm and layer scale that do something
                if tensor.is_floating_point() and tensor.ndim <= 1:
                    tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
            state = {key: value.clone() for key, value in trunk.state_dict().items()}
            taps = TappedTrunk(trunk, name=name, layers=layers_of([layer]))
            taps.probe(IMAGE[:1])
            built[kind] = Model(taps, taps.modules_used(IMAGE[:1]), state, taps(IMAGE)[layer])
        return built[kind]

    return get


def load(model: Model, content: dict[str, Any], **options: str) -> tuple[torch.Tensor, str]:
    """Fill the poisoned model from a checkpoint's content; return its layer, and how the file was read."""
    trunk = model.taps.trunk
    found = find_weights(content, wanted=names_of(trunk), where="w.pth", **options)
    poison(trunk)
    load_strictly(trunk, found.tensors, used=model.used, where=f"w.pth (read as: {found.read_as})")
    (layer,) = model.taps(IMAGE).values()
    return layer, found.read_as


def under(
    prefix: str, state: dict[str, torch.Tensor], *, drop: tuple[str, str] = ("fc.", "head.")
) -> dict[str, torch.Tensor]:
    """The trunk's state under a prefix, without a classifier, as self-supervised projects have it."""
    return {prefix + key: value for key, value in state.items() if not key.startswith(drop)}


def noise(*names: str, shape: tuple[int, int] = (3, 3)) -> dict[str, torch.Tensor]:
    """Tensors that belong to other parts."""
    return {name: torch.rand(shape) for name in names}


def other(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Another encoder of the same shapes and other values."""
    return {key: torch.full_like(value, 0.123) for key, value in under(prefix, state).items()}


def split(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The trunk's and the heads' state of a model with heads."""
    trunk = {key.removeprefix("trunk."): value for key, value in state.items() if key.startswith("trunk.")}
    heads = {key.removeprefix("heads."): value for key, value in state.items() if key.startswith("heads.")}
    return trunk, heads


def vissl(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    trunk, heads = split(state) if any(key.startswith("trunk.") for key in state) else (state, {})
    model = {"trunk": under("_feature_blocks.", trunk), "heads": heads}
    return {
        "phase_idx": 99,
        "iteration": 1000,
        "loss": {"info_criterion.pos_mask": torch.ones(2)},
        "classy_state_dict": {"base_model": {"model": model, "meters": {}}, "optimizer": {"lr": 0.1}},
    }


def vissl_dino(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    trunk, heads = split(state)
    teacher = under("momentum_teacher.module.trunk.", trunk) | under("momentum_teacher.module.heads.", heads)
    student = {"trunk": other("", trunk), "heads": other("", heads)}
    return {
        "loss": {**teacher, "dino_criterion.center": torch.ones(1, 7)},
        "classy_state_dict": {"base_model": {"model": student}},
    }


def classy_regnet(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """VISSL names the stages res2 to res5, ClassyVision names the parts of a block otherwise than torchvision."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.", "_feature_blocks.conv1.stem.", key)
        key = re.sub(r"^trunk_output\.block(\d)\.", lambda m: f"_feature_blocks.res{int(m[1]) + 1}.", key)
        key = key.replace(".proj.0.weight", ".proj.weight").replace(".proj.1.", ".bn.")
        key = key.replace(".se.fc1.", ".se.excitation.0.").replace(".se.fc2.", ".se.excitation.2.")
        key = key.replace(".f.c.0.weight", ".f.c.weight").replace(".f.c.1.", ".f.final_bn.")
        renamed[key] = value
    return {"classy_state_dict": {"base_model": {"model": {"trunk": renamed, "heads": {}}}}}


def moco(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    trunk, heads = split(state)
    query = under("module.encoder_q.", trunk) | {
        f"module.encoder_q.fc.{key.removeprefix('0.clf.')}": value for key, value in heads.items()
    }
    key_encoder = other("module.encoder_k.", trunk) | noise("module.encoder_k.fc.0.weight")
    rest = noise("module.queue") | {"module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": query | key_encoder | rest, "optimizer": {"state": {}}}


def moco_v1(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    content = under("module.encoder_q.", state) | noise("module.encoder_q.fc.weight", "module.encoder_q.fc.bias")
    return {"state_dict": content | other("module.encoder_k.", state) | noise("module.queue")}


def moco_v3(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    base = under("module.base_encoder.", state) | noise("module.base_encoder.head.0.weight")
    return {"state_dict": base | other("module.momentum_encoder.", state) | noise("module.predictor.0.weight")}


def simsiam(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    encoder = under("module.encoder.", state) | noise("module.encoder.fc.0.weight", "module.encoder.fc.6.bias")
    return {"epoch": 100, "state_dict": encoder | noise("module.predictor.0.weight")}


def simclr(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    trunk, heads = split(state)
    head = {f"backbone.fc.{key.removeprefix('0.clf.')}": value for key, value in heads.items()}
    return {"epoch": 9, "arch": "resnet18", "state_dict": under("backbone.", trunk) | head}


def simclr_encoder(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return under("encoder.", state) | noise("projector.0.weight", "projector.2.weight")


def byol(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    online = under("online_encoder.net.", state) | noise("online_encoder.projector.net.0.weight")
    return online | other("target_encoder.net.", state) | noise("online_predictor.net.0.weight")


def byol_networks(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    online = under("module.online_network.encoder.", state) | noise("module.online_network.projetion.net.0.weight")
    return {"model": online | other("module.target_network.encoder.", state) | noise("module.predictor.net.0.weight")}


def barlow_twins(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    model = under("module.backbone.", state) | noise("module.projector.0.weight", "module.bn.running_mean")
    return {"epoch": 300, "model": model, "optimizer": {"state": {}}}


def vicreg(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"epoch": 300, "model": under("module.backbone.", state) | noise("module.projector.0.weight")}


def swav(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    trunk, heads = split(state)
    head = {
        "module." + key.removeprefix("0.").replace("prototypes0.", "prototypes."): value for key, value in heads.items()
    }
    return under("module.", trunk) | head


def deepcluster(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    trunk, heads = split(state)
    head = {
        "module." + key.removeprefix("0.").replace("prototypes0.", "prototypes.prototypes0."): value
        for key, value in heads.items()
    }
    return {"epoch": 1, "state_dict": under("module.", trunk) | head, "optimizer": {}}


def dino(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    trunk, heads = split(state)
    names = {key: key.removeprefix("0.").replace("prototypes0.", "last_layer.") for key in heads}
    teacher = under("backbone.", trunk) | {f"head.{names[key]}": value for key, value in heads.items()}
    student = other("module.backbone.", trunk) | noise("module.head.mlp.0.weight")
    return {"student": student, "teacher": teacher, "optimizer": {"state": {}}, "epoch": 100, "dino_loss": {}}


def ibot(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    teacher = under("module.backbone.", state) | noise(
        "module.backbone.masked_embed", "module.head.last_layer.weight_v"
    )
    return {"student": other("module.backbone.", state) | noise("module.head.mlp.0.weight"), "teacher": teacher}


def dinov2_training(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The backbone's blocks lie in chunks for FSDP."""
    teacher = {}
    for key, value in under("backbone.", state).items():
        teacher[re.sub(r"blocks\.(\d+)\.", r"blocks.0.\1.", key)] = value
    return {"teacher": teacher | noise("dino_head.mlp.0.weight", "ibot_head.mlp.0.weight", "backbone.mask_token")}


def mae(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    model = under("", state) | noise("mask_token", "decoder_pos_embed", "decoder_blocks.0.attn.qkv.weight")
    return {"model": model | noise("decoder_pred.weight"), "epoch": 800, "scaler": {"scale": 1.0}}


def solo_learn(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    content = under("backbone.", state) | noise("classifier.weight", "projector.0.weight")
    return {
        "epoch": 1,
        "pytorch-lightning_version": "1.6.4",
        "state_dict": content | other("momentum_backbone.", state),
        "callbacks": {},
    }


def ijepa(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "encoder": other("module.", state),
        "predictor": noise("module.predictor_embed.weight"),
        "target_encoder": under("module.", state),
        "epoch": 3,
    }


def lightly(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A LightningModule with the children of a ResNet, but for the last, as a sequence."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    names = {key: re.sub(r"^\w+", lambda m: str(numbers.get(m[0])), key) for key in under("", state)}
    content = {f"backbone.{new}": state[key] for key, new in names.items()} | noise("projection_head.layers.0.weight")
    return {"state_dict": content, "pytorch-lightning_version": "2.0"}


def transformers_vit(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    content = {}
    for key, value in under("", state).items():
        key = key.replace("blocks.", "encoder.layer.").replace("attn.proj.", "attention.output.dense.")
        key = key.replace("norm1.", "layernorm_before.").replace("norm2.", "layernorm_after.")
        key = key.replace("mlp.fc1.", "intermediate.dense.").replace("mlp.fc2.", "output.dense.")
        key = key.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        key = re.sub(r"^norm\.", "layernorm.", key).replace("pos_embed", "embeddings.position_embeddings")
        key = key.replace("cls_token", "embeddings.cls_token")
        if "attn.qkv." in key:
            for part, matrix in zip(("query", "key", "value"), value.chunk(3), strict=True):
                content["vit." + key.replace("attn.qkv.", f"attention.attention.{part}.")] = matrix
        else:
            content["vit." + key] = value
    return content | noise("classifier.weight", "vit.pooler.dense.weight")


def transformers_dinov2(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    content = {}
    for key, value in under("", state).items():
        key = key.replace("blocks.", "encoder.layer.").replace("attn.proj.", "attention.output.dense.")
        key = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", key)
        key = key.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        key = re.sub(r"^norm\.", "layernorm.", key).replace("pos_embed", "embeddings.position_embeddings")
        key = re.sub(r"^(cls_token|register_tokens)", r"embeddings.\1", key)
        if "attn.qkv." in key:
            for part, matrix in zip(("query", "key", "value"), value.chunk(3), strict=True):
                content[key.replace("attn.qkv.", f"attention.attention.{part}.")] = matrix
        else:
            content[key] = value
    return content | noise("embeddings.mask_token")


def transformers_resnet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    content = {}
    for key, value in under("", state).items():
        key = key.replace("conv1.", "embedder.embedder.convolution.", 1) if key.startswith("conv1") else key
        key = key.replace("bn1.", "embedder.embedder.normalization.", 1) if key.startswith("bn1") else key
        key = re.sub(r"^layer(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.", key)
        key = key.replace("downsample.0.", "shortcut.convolution.").replace("downsample.1.", "shortcut.normalization.")
        key = re.sub(r"(layers\.\d+)\.conv(\d)\.", lambda m: f"{m[1]}.layer.{int(m[2]) - 1}.convolution.", key)
        key = re.sub(r"(layers\.\d+)\.bn(\d)\.", lambda m: f"{m[1]}.layer.{int(m[2]) - 1}.normalization.", key)
        content[f"resnet.{key}"] = value
    return content | noise("classifier.1.weight", "classifier.1.bias")


CASES = [
    (vissl, "resnet18", "VISSL; VISSL's blocks"),
    (vissl, "resnet18 + mlp", "VISSL; VISSL's blocks"),
    (lambda state: {"model_state_dict": under("_feature_blocks.", state)}, "resnet18",
     "VISSL, converted; VISSL's blocks"),
    (vissl_dino, "vit + dino", "VISSL, DINO, teacher"),
    (classy_regnet, "regnet", "VISSL; VISSL's RegNet"),
    (lambda state: state, "resnet18", "state dict"),
    (lambda state: {"state_dict": under("module.", state), "arch": "resnet18"}, "resnet18", "state dict"),
    (lambda state: {"model": state, "args": {"lr": 1.0}}, "vit", "state dict"),
    (lambda state: under("_orig_mod.module.", state), "resnet18", "state dict"),
    (lambda state: {"state_dict": other("", state), "state_dict_ema": state}, "vit", "with moving average, average"),
    (moco, "resnet18 + mlp", "MoCo, query"),
    (moco_v1, "resnet18", "MoCo, query"),
    (moco_v3, "vit", "MoCo v3, base"),
    (simsiam, "resnet18", "SimSiam"),
    (simclr, "resnet18 + mlp", "SimCLR"),
    (simclr_encoder, "resnet18", "SimCLR"),
    (byol, "resnet18", "BYOL, online"),
    (byol_networks, "resnet18", "BYOL, online"),
    (barlow_twins, "resnet18", "Barlow Twins"),
    (vicreg, "resnet18", "VICReg"),
    (swav, "resnet18 + swav", "SwAV or DeepCluster"),
    (deepcluster, "resnet18 + swav", "SwAV or DeepCluster"),
    (dino, "vit + dino", "DINO, teacher"),
    (ibot, "vit", "iBOT, teacher"),
    (dinov2_training, "vit, layer scale", "DINOv2, teacher; blocks in chunks"),
    (lambda state: under("", state) | noise("mask_token"), "vit, layer scale", "state dict"),
    (mae, "vit", "MAE"),
    (solo_learn, "resnet18", "solo-learn, online"),
    (lambda state: {"state_dict": under("model.", state), "hparams": {}}, "resnet18", "Lightning"),
    (ijepa, "vit", "I-JEPA, target"),
    (lambda state: {"module": state, "ds_version": "0.14"}, "resnet18", "DeepSpeed"),
    (lambda state: under("ema_model.", state) | other("online_model.", state), "resnet18",
     "with moving average, average"),
    (lightly, "resnet18", "Lightning; ResNet as a sequence of its children"),
    (transformers_vit, "vit", "state dict; transformers' ViT"),
    (transformers_dinov2, "vit, layer scale", "state dict; transformers' ViT"),
    (transformers_resnet, "resnet18", "state dict; transformers' ResNet"),
]  # fmt: skip
IDS = [f"{number}-{read_as}-{kind}" for number, (_, kind, read_as) in enumerate(CASES)]


@pytest.mark.parametrize(("write", "kind", "read_as"), CASES, ids=IDS)
def test_a_checkpoint_gives_the_features_of_the_model_that_it_was_saved_from(
    models: Callable[..., Model], tmp_path: Path, write: Callable[..., Any], kind: str, read_as: str
) -> None:
    model = models(kind)
    torch.save(write(model.state), tmp_path / "w.pth")
    layer, how = load(model, read_checkpoint(tmp_path / "w.pth"))
    assert how == read_as
    assert torch.equal(layer, model.expected)


@pytest.mark.parametrize(("write", "kind", "read_as"), CASES, ids=IDS)
def test_a_checkpoint_with_one_mismatch_is_refused(
    models: Callable[..., Model], write: Callable[..., Any], kind: str, read_as: str
) -> None:
    model = models(kind)
    first = next(key for key in model.state if key.endswith("weight") and model.state[key].ndim == 4)
    broken = {
        "prefix": {f"odd.{key}" if not key.startswith(("trunk.", "heads.")) else key.replace(".", ".odd.", 1): value
                   for key, value in model.state.items()},
        "missing": {key: value for key, value in model.state.items() if key != first},
        "shape": model.state | {first: model.state[first][1:]},
        "more": model.state | {first.replace("weight", "extra"): torch.ones(3)},
    }  # fmt: skip
    for state in broken.values():
        with pytest.raises(WeightsError, match="does not fit the model|no family"):
            load(model, write(state))


@pytest.mark.parametrize(
    ("write", "kind"),
    [(vissl, "resnet18 + mlp"), (moco, "resnet18 + mlp"), (swav, "resnet18 + swav"), (dino, "vit + dino")],
)
def test_a_checkpoint_without_the_head_that_is_evaluated_is_refused(
    models: Callable[..., Model], write: Callable[..., Any], kind: str
) -> None:
    model = models(kind)
    headless = {key: value for key, value in model.state.items() if not key.startswith("heads.")}
    with pytest.raises(WeightsError, match=r"missing +\d+  heads\.0\."):
        load(model, write(headless))


def student_only(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "teacher"}


def without(content: dict[str, Any], *beginnings: str) -> dict[str, Any]:
    state = content.get("state_dict", content)
    kept = {key: value for key, value in state.items() if not key.startswith(beginnings)}
    return {"state_dict": kept} if "state_dict" in content else kept


@pytest.mark.parametrize(
    ("make", "kind", "evaluated", "held"),
    [
        (lambda state: student_only(dino(state)), "vit + dino", "teacher", "student"),
        (lambda state: student_only(ibot(state) | {"student": ibot(state)["teacher"]}), "vit", "teacher", "student"),
        (lambda state: without(moco_v1(state), "module.encoder_q."), "resnet18", "query", "key"),
        (lambda state: without(byol(state), "online_encoder.net."), "resnet18", "online", "target"),
        (lambda state: without(solo_learn(state), "backbone."), "resnet18", "online", "momentum"),
    ],
)
def test_the_student_is_not_loaded_as_the_teacher(
    models: Callable[..., Model], make: Callable[..., Any], kind: str, evaluated: str, held: str
) -> None:
    """The same shapes and other features: the other encoder is taken only if it is asked for."""
    model = models(kind)
    with pytest.raises(WeightsError, match=rf"expected the branch {evaluated}.*only {held}.*branch={held}"):
        load(model, make(model.state))


def test_the_other_encoder_is_loaded_on_request(models: Callable[..., Model]) -> None:
    model = models("resnet18")
    layer, how = load(model, moco_v1(model.state), branch="key")
    assert how == "MoCo, key"
    assert layer.isfinite().all()
    assert not torch.equal(layer, model.expected)
    with pytest.raises(WeightsError, match="no branch 'teacher'. Known: query, key"):
        load(model, moco_v1(model.state), branch="teacher")


def test_a_deeper_model_of_the_same_shapes_is_refused(models: Callable[..., Model]) -> None:
    """Name by name, ResNet-101 holds a whole ResNet-50; its features would be computed with 17 blocks missing."""
    trunk = build_trunk("resnet50", {})
    taps = TappedTrunk(trunk, name="resnet50", layers=layers_of(["res4"]))
    taps.probe(IMAGE[:1])
    used = taps.modules_used(IMAGE[:1])
    poison(trunk)
    with pytest.raises(WeightsError, match=r"layer3\.6\.conv1\.weight(.|\n)*it belongs to another model"):
        load_strictly(trunk, build_trunk("resnet101", {}).state_dict(), used=used, where="w.pth")


def test_registers_that_the_model_lacks_are_refused(models: Callable[..., Model]) -> None:
    model = models("vit")
    more = {"register_tokens": torch.ones(1, 4, 24)}
    with pytest.raises(WeightsError, match=r"register_tokens(.|\n)*weights.ignore=\[register_tokens\]"):
        load(model, model.state | more)


def test_a_given_location_is_used_and_nothing_else(models: Callable[..., Model]) -> None:
    model = models("resnet18")
    content = {"nets": {"a": {f"x.{key}": value for key, value in model.state.items()} | noise("y.w")}}
    layer, how = load(model, content, key="nets.a", remove_prefix="x.")
    assert how == "told by hand"
    assert CheckpointMatch(tensors={}, read_as=f"{how}; x").description == "key as configured; x"
    assert torch.equal(layer, model.expected)
    shortened = {key.removeprefix("layer"): value for key, value in model.state.items() if key.startswith("layer")}
    rest = {key: value for key, value in model.state.items() if not key.startswith("layer")}
    with pytest.raises(WeightsError, match="does not fit"):
        load(model, {"state_dict": shortened | rest}, add_prefix="layer")
    with pytest.raises(WeightsError, match="unknown kind of checkpoint"):
        load(model, content)
    with pytest.raises(WeightsError, match="weights.branch=student has no effect"):
        load(model, content, key="nets.a", branch="student")


def test_a_file_with_colliding_names_is_refused(models: Callable[..., Model]) -> None:
    """One of the two would overwrite the other."""
    model = models("resnet18")
    content = {"state_dict": under("model.", model.state) | other("backbone.", model.state)}
    with pytest.raises(WeightsError, match=r"occur twice, such as state_dict/model\.conv1\.weight and"):
        load(model, content)
    layer, _ = load(model, content, remove_prefix="model.")
    assert torch.equal(layer, model.expected)


def test_the_names_of_torchvisions_densenet_weights_are_todays() -> None:
    state = build_trunk("densenet121", {}).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor for name, tensor in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    name, renamed = laid_out(old)
    assert name == "torchvision's first DenseNet"
    assert renamed.keys() == state.keys()


def test_a_given_location_with_vissls_names_finds_trunk_and_heads(models: Callable[..., Model]) -> None:
    model = models("vit + dino")
    layer, _ = load(model, vissl_dino(model.state), key="loss", remove_prefix="momentum_teacher.module.")
    assert torch.equal(layer, model.expected)


@pytest.mark.parametrize("position_resize", ["bicubic", "offset", "antialias"])
def test_position_embeddings_are_interpolated_for_another_size(
    models: Callable[..., Model], position_resize: str
) -> None:
    """A ramp of positions stays one; the class token's position stays as it is; and it is reported."""
    state = dict(models("vit").state)
    ramp = torch.linspace(0, 1, 4)
    grid = ramp[:, None, None] + torch.zeros(4, 4, 24)
    state["pos_embed"] = torch.cat((torch.full((1, 1, 24), 7.0), grid.reshape(1, 16, 24)), dim=1)
    trunk = build_trunk("vit", {**VIT, "image_size": (64, 32), "position_resize": position_resize})
    taps = TappedTrunk(trunk, name="vit", layers=layers_of(["lastCLS"]))
    image = torch.rand(1, 3, 64, 32)
    taps.probe(image)
    poison(trunk)
    report = load_strictly(trunk, state, used=taps.modules_used(image), where="w.pth")
    assert report.interpolated == (f"pos_embed 4 x 4 -> 8 x 4, {position_resize}",)
    made = trunk.pos_embed[0]
    assert made.shape == (33, 24)
    assert (made[0] == 7).all()
    rows = made[1:].reshape(8, 4, 24)
    assert torch.allclose(rows, rows[:, :1, :1].expand(8, 4, 24), atol=1e-5)
    assert (rows[:, 0, 0].diff() > 0).all(), "the ramp goes from top to bottom"
    assert rows[0, 0, 0].item() == pytest.approx(0, abs=0.1)
    assert rows[-1, 0, 0].item() == pytest.approx(1, abs=0.1)


def test_position_embeddings_of_another_width_are_refused(models: Callable[..., Model]) -> None:
    model = models("vit")
    state = model.state | {"pos_embed": torch.rand(1, 17, 25)}
    with pytest.raises(WeightsError, match=r"pos_embed is \(1, 17, 25\), the model has \(1, 17, 24\)"):
        load(model, state)


ELSEWHERE = ("CLIP or SigLIP", "BEiT", "stable-pretraining")
"""Tried in test_image_towers.py."""


def test_every_family_is_tried_by_a_test() -> None:
    tried = {read_as.partition(";")[0] for *_, read_as in CASES}
    for family in FAMILIES:
        names = {family.name, *(f"{family.name}, {branch}" for branch in family.branches)}
        assert names & tried or family.name in ("teacher and student", *ELSEWHERE), family.name


@pytest.mark.slow
def test_no_models_file_can_be_loaded_into_another_model() -> None:
    """All pairs of trunks are tried; those left out are too large, or the same under another name."""
    alike = ("vit", "regnet", "anynet", "resnet", "mocov3_vit_small_16", "googlenet", "inception_v3")
    large = ("dinov2_vitg", "vit_h", "vit_huge", "efficientnet_v2", "maxvit")
    image = torch.zeros(1, 3, 224, 224, device="meta")
    built = {}
    for name in trunk_names():
        if name not in alike and not name.startswith(large):
            with WithoutMemory():
                trunk = build_trunk(name, image_size=(224, 224))
            taps = TappedTrunk(trunk.to("meta"), name=name, layers=layers_of(["flatten"]))
            taps.probe(image)
            built[name] = (taps.trunk, taps.modules_used(image), dict(trunk.state_dict()))
    loaded = []
    for file, name in itertools.permutations(built, 2):
        trunk, used, own = built[name]
        state = built[file][2]
        if own.keys() & state.keys():
            try:
                found = find_weights(state, wanted=names_of(trunk), where=file)
                load_strictly(trunk, found.tensors, used=used, where=file)
                loaded.append((file, name))
            except WeightsError:
                pass
    assert len(built) > 90
    assert loaded == []
