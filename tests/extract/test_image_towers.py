"""Files of CLIP, SigLIP, BEiT, data2vec, EVA-02, RADIO and ConvNeXt load into timm's models, or are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featbench.extract.config import WeightsConfig
from featbench.extract.errors import WeightsError
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.hub import read_config
from featbench.extract.weights.loading import load_weights
from featbench.extract.weights.preprocessing import preprocessing_of
from featbench.extract.weights.state_dicts import find_weights
from featbench.extract.weights.strict import load_strictly, names_of, poison
from featbench.store.layers import layers_of

pytest.importorskip("timm")

State = dict[str, Tensor]
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
CLIP = "timm:vit_base_patch16_clip_quickgelu_224"
SIGLIP = "timm:vit_base_patch16_siglip_224"
BEIT = "timm:beit_base_patch16_224"
CLIP_RESNET = "timm:resnet50_clip"
RADIO = "timm:naflexvit_base_patch16_radio_v3"


def built(name: str, options: dict[str, Any], seed: int) -> nn.Module:
    trunk = build_trunk(name, options, seed=seed, image_size=None if "naflex" in name or "conv" in name else (32, 32))
    random = torch.Generator().manual_seed(seed)
    for tensor in trunk.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim <= 2:
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=random))
    if "naflex" in name:
        trunk.state_dict()["embeds.proj.bias"].zero_()
    return trunk


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    made = {}
    for name, tensor in state.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        made[name] = tensor
    return made


def apart(state: State, name: str, parts: tuple[str, str, str]) -> State:
    """Queries, keys and values one by one."""
    made = {key: tensor for key, tensor in state.items() if name not in key}
    for key, tensor in state.items():
        if name in key:
            made |= {key.replace(name, part): each for part, each in zip(parts, tensor.chunk(3), strict=True)}
    return made


def transformers_tower(state: State) -> State:
    """Names of transformers 4, as most files of the hub have them."""
    made = renamed(
        state,
        (r"^cls_token$", "embeddings.class_embedding"),
        (r"^pos_embed$", "embeddings.position_embedding.weight"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
        (r"^blocks\.", "encoder.layers."),
        (r"\.attn\.proj\.", ".self_attn.out_proj."),
        (r"^norm_pre\.", "pre_layrnorm."),
        (r"^norm\.", "post_layernorm."),
        (r"^attn_pool\.latent$", "head.probe"),
        (r"^attn_pool\.proj\.", "head.attention.out_proj."),
        (r"^attn_pool\.norm\.", "head.layernorm."),
        (r"^attn_pool\.mlp\.", "head.mlp."),
    )
    made = apart(made, ".attn.qkv.", (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."))
    for end in ("weight", "bias"):
        if f"attn_pool.q.{end}" in made:
            both = made.pop(f"attn_pool.q.{end}"), made.pop(f"attn_pool.kv.{end}")
            made[f"head.attention.in_proj_{end}"] = torch.cat(both)
    for name, axes in (("embeddings.class_embedding", (0, 0)), ("embeddings.position_embedding.weight", (0,))):
        if name in made:
            made[name] = made[name][axes]
    made["embeddings.position_ids"] = torch.arange(5)
    return {f"vision_model.{name}": tensor for name, tensor in made.items()}


def transformers_both(state: State) -> State:
    other = torch.rand(3, 3)
    text = {"text_model.encoder.layers.0.self_attn.q_proj.weight": other, "logit_scale": other[0, 0]}
    return transformers_tower(state) | text | {"visual_projection.weight": torch.rand(5, 24)}


def clips_own(state: State) -> State:
    made = renamed(
        state,
        (r"^cls_token$", "class_embedding"),
        (r"^pos_embed$", "positional_embedding"),
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    )
    made["class_embedding"] = made["class_embedding"][0, 0]
    made["positional_embedding"] = made["positional_embedding"][0]
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(3), "positional_embedding": torch.ones(4, 3)}
    return {f"visual.{name}": tensor for name, tensor in made.items()} | text | {"visual.proj": torch.rand(24, 5)}


def open_clip_training(state: State) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in clips_own(state).items()}}


def open_clip_timm(state: State) -> State:
    tower = {f"visual.trunk.{name}": tensor for name, tensor in state.items()}
    return tower | {"text.ln_final.weight": torch.ones(3), "logit_bias": torch.ones(())}


def transformers_beit(state: State) -> State:
    made = renamed(
        state,
        (r"^blocks\.", "encoder.layer."),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^cls_token$", "embeddings.cls_token"),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.attn\.([qv])_bias$", lambda m: f".attention.attention.{'query' if m[1] == 'q' else 'value'}.bias"),
        (r"\.attn\.relative", ".attention.attention.relative_position_bias.relative"),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"\.gamma_([12])$", r".lambda_\1"),
        (r"^fc_norm\.", "pooler.layernorm."),
    )
    parts = tuple(f".attention.attention.{part}." for part in ("query", "key", "value"))
    return {f"data2vec_vision.{name}": each for name, each in apart(made, ".attn.qkv.", parts).items()}


def beit_shared(state: State) -> dict[str, Any]:
    """BEiT v2 before fine-tuning: one table of relative positions, and the heads of its pretraining."""
    end = ".attn.relative_position_bias_table"
    model = {name: tensor for name, tensor in state.items() if not name.endswith(end)}
    model["rel_pos_bias.relative_position_bias_table"] = state[f"blocks.0{end}"]
    model |= {"rel_pos_bias.relative_position_index": torch.zeros(5, 5), "lm_head.weight": torch.ones(3, 3)}
    return {"model": model | {"mask_token": torch.ones(1, 1, 24), "cls_pt_layers.0.norm1.weight": torch.ones(24)}}


def eva02s_own(state: State) -> dict[str, Any]:
    gated = any("fc1_g" in name for name in state)
    made = renamed(
        state,
        (r"\.mlp\.norm\.", ".mlp.ffn_ln."),
        (r"fc1_g", "w1"),
        (r"fc1_x", "w2"),
        (r"\.mlp\.fc2\.", ".mlp.w3." if gated else ".mlp.fc2."),
        (r"\.([qv])_proj\.bias$", r".\1_bias"),
    )
    return {"module": made | {"rope.freqs_cos": torch.ones(4, 4), "blocks.0.attn.rope.freqs_sin": torch.ones(4, 4),
                              "rope.freqs_sin": torch.ones(4, 4), "mask_token": torch.ones(1, 1, 24)}}  # fmt: skip


def radios_own(state: State) -> State:
    made = {f"radio_model.model.{name}": each for name, each in state.items() if name.startswith("blocks.")}
    generator = "radio_model.model.patch_generator"
    patches = state["embeds.proj.weight"].reshape(24, 16, 16, 3).permute(0, 3, 1, 2).flatten(1)
    return made | {
        f"{generator}.embedder.weight": patches,
        f"{generator}.pos_embed": state["embeds.pos_embed"].flatten(1, 2),
        f"{generator}.cls_token.token": torch.cat([state["embeds.cls_token"], state["embeds.reg_token"]], dim=1)[0],
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "radio_model.summary_idxs": torch.arange(3),
    }


def dinov3_convnext(state: State) -> State:
    return renamed(
        state,
        (r"^stem\.", "stages.0.downsample_layers."),
        (r"\.downsample\.", ".downsample_layers."),
        (r"\.blocks\.(\d+)\.norm\.", r".layers.\1.layer_norm."),
        (r"\.blocks\.", ".layers."),
        (r"\.conv_dw\.", ".depthwise_conv."),
        (r"\.mlp\.fc([12])\.", r".pointwise_conv\1."),
        (r"^head\.norm\.", "layer_norm."),
    )


def clips_resnet(state: State) -> State:
    """OpenAI's and open_clip's names, which are torchvision's; the text tower is beside it."""
    bottleneck = (("1_1x1", "1"), ("2_kxk", "2"), ("3_1x1", "3"))
    visual = renamed(
        state,
        (r"^stem\.conv(\d)\.conv\.", r"conv\1."),
        (r"^stem\.conv(\d)\.bn\.", r"bn\1."),
        *(
            (rf"\.conv{number}\.{ours}\.", f".{ours}{clips}.")
            for number, clips in bottleneck
            for ours in ("conv", "bn")
        ),
        (r"\.shortcut\.conv\.conv\.", ".downsample.0."),
        (r"\.shortcut\.conv\.bn\.", ".downsample.1."),
        *((rf"^stages\.{stage}\.", f"layer{stage + 1}.") for stage in range(4)),
        (r"^head\.pos_embed$", "attnpool.positional_embedding"),
        (r"^head\.([qkv])\.", r"attnpool.\1_proj."),
        (r"^head\.proj\.", "attnpool.c_proj."),
    )
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(4), "logit_scale": torch.ones(())}
    return {f"visual.{name}": tensor for name, tensor in visual.items()} | text


CONVNEXT = {"dims": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "num_classes": 0}
BEIT_SHARED = {**SMALL, "global_pool": "token"}
FAMILIES: list[tuple[str, dict[str, Any], Callable[[State], dict[str, Any]], str]] = [
    (CLIP, SMALL, transformers_tower, "state dict; transformers' CLIP or SigLIP"),
    (CLIP, SMALL, transformers_both, "CLIP or SigLIP; transformers' CLIP or SigLIP"),
    (CLIP, SMALL, clips_own, "CLIP or SigLIP; CLIP's own"),
    (CLIP, SMALL, open_clip_training, "CLIP or SigLIP; CLIP's own"),
    (CLIP_RESNET, {"width_factor": 0.125}, clips_resnet, "CLIP or SigLIP; CLIP's ResNet"),
    (SIGLIP, SMALL, transformers_tower, "state dict; transformers' CLIP or SigLIP"),
    (SIGLIP, SMALL, open_clip_timm, "CLIP or SigLIP"),
    (BEIT, SMALL, transformers_beit, "state dict; transformers' ViT"),
    (BEIT, BEIT_SHARED, beit_shared, "BEiT; BEiT's own"),
    ("timm:eva02_base_patch14_224", {**SMALL, "patch_size": 16}, eva02s_own, "DeepSpeed; EVA-02's own"),
    ("timm:eva02_tiny_patch14_224", {**SMALL, "patch_size": 16}, eva02s_own, "DeepSpeed; EVA-02's own"),
    (RADIO, {**SMALL, "pos_embed_grid_size": (4, 4)}, radios_own, "state dict; RADIO's own"),
    ("timm:convnext_tiny", CONVNEXT, dinov3_convnext, "state dict; transformers' ConvNeXt"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "write", "read_as"), FAMILIES, ids=[f"{each[2].__name__}-{each[0][5:12]}" for each in FAMILIES]
)
def test_a_file_gives_the_features_of_the_model_that_it_was_saved_from(
    name: str, options: dict[str, Any], write: Callable[[State], dict[str, Any]], read_as: str
) -> None:
    first, trunk = built(name, options, 1), built(name, options, 2)
    state = dict(first.state_dict())
    if write is beit_shared:
        for key in [key for key in state if key.endswith("bias_table")]:
            state[key] = state["blocks.0.attn.relative_position_bias_table"]
        first.load_state_dict(state)
    poison(trunk)
    found = find_weights(write(state), wanted=names_of(trunk), where="w.pth")
    assert found.read_as == read_as
    load_strictly(trunk, found.tensors, used={path for path, _ in trunk.named_modules()}, where="w.pth")
    with torch.inference_mode():
        assert torch.equal(trunk(IMAGES), first(IMAGES))


def test_a_file_that_lacks_a_tensor_is_refused() -> None:
    trunk = built(CLIP, SMALL, 1)
    content = transformers_both(dict(trunk.state_dict()))
    del content["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    found = find_weights(content, wanted=names_of(trunk), where="w.pth")
    with pytest.raises(WeightsError, match=r"qkv\.bias"):
        load_strictly(trunk, found.tensors, used={path for path, _ in trunk.named_modules()}, where="w.pth")


def load(path: Path, name: str, **options: Any) -> None:
    trunk = build_trunk(name, SMALL | options, image_size=(32, 32))
    taps = TappedTrunk(trunk, name=name, layers=layers_of(["output"]))
    taps.probe(IMAGES[:1])
    load_weights(taps, IMAGES[:1], WeightsConfig(file=path), options=options)


def hub_folder(path: Path, config: dict[str, Any], content: State, *, file: str = "config.json") -> Path:
    path.mkdir()
    (path / file).write_text(json.dumps(config))
    torch.save(content, path / ("pytorch_model.bin" if file == "config.json" else "open_clip_pytorch_model.bin"))
    return path


GELU = "timm:vit_base_patch16_clip_224"
VISION = {"num_attention_heads": 2, "hidden_size": 24, "patch_size": 16, "image_size": 32}
OPEN_CLIP = {"vision_cfg": {"width": 24, "head_width": 12, "patch_size": 16, "image_size": 32, "layers": 2}}


def test_another_activation_than_the_files_is_refused(tmp_path: Path) -> None:
    """The shapes agree, the features don't; transformers leaves CLIP's usual activation out of config.json."""
    state = dict(build_trunk(CLIP, SMALL, image_size=(32, 32)).state_dict())
    both = hub_folder(tmp_path / "a", {"model_type": "clip", "vision_config": VISION}, transformers_both(state))
    config = {"model_cfg": {**OPEN_CLIP, "quick_gelu": True}}
    theirs = hub_folder(tmp_path / "b", config, clips_own(state), file="open_clip_config.json")
    openai = tmp_path / "openai.pt"
    sizes = ("input_resolution", "context_length", "vocab_size")
    torch.save(clips_own(state) | {name: torch.tensor(32) for name in sizes}, openai)
    for path in (both, theirs, openai):
        load(path, CLIP)
        load(path, GELU, act_layer="quick_gelu")
        with pytest.raises(WeightsError, match=r"quick_gelu.*act_layer: quick_gelu"):
            load(path, GELU)
    with pytest.raises(WeightsError, match="num_heads: 2 in config.json, 3 in the trunk"):
        load(both, CLIP, num_heads=3)


def test_open_clips_resnet_has_heads_of_attention_64_wide(tmp_path: Path) -> None:
    """The 2048 channels of a ResNet-50 are 32 heads; `quick_gelu` is the text tower's."""
    vision = {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}
    config = {"model_cfg": {"vision_cfg": vision, "quick_gelu": True}}
    found = read_config(hub_folder(tmp_path / "a", config, {}, file="open_clip_config.json"))
    assert found is not None
    assert (found.num_heads, found.activation, found.patch_size) == (32, "relu", None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"resize": 32, "crop": 32, "interpolation": "bicubic"}),
        ({"resize_mode": "squash", "size": [48, 40]}, {"resize": (48, 40), "crop": None}),
        ({"mean": [0.5] * 3, "interpolation": "bilinear"}, {"mean": (0.5, 0.5, 0.5), "interpolation": "bilinear"}),
    ],
)
def test_open_clips_preprocessing_is_read(tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": given}
    folder = hub_folder(tmp_path / "a", config, {}, file="open_clip_config.json")
    found = preprocessing_of(folder)
    assert found is not None
    assert expected.items() <= found[0].items()
    if "mean" not in given:
        assert found[0]["mean"] == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_stable_pretrainings_teacher_is_loaded() -> None:
    trunk = build_trunk("resnet18", {}, seed=1)
    state = dict(trunk.state_dict())
    content = {f"backbone.teacher.{name}": tensor for name, tensor in state.items()}
    content |= {f"backbone.student.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    content |= {"projector.student.0.weight": torch.ones(2, 2), "callbacks_modules.probe.weight": torch.ones(2, 2)}
    found = find_weights({"state_dict": content, "epoch": 1}, wanted=names_of(trunk), where="last.ckpt")
    assert found.read_as == "stable-pretraining, teacher"
    assert torch.equal(found.tensors["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
