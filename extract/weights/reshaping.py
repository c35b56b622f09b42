"""What renaming leaves open in another project's state dict: tensors of another shape, split or joined."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def joined_qkv(state: State) -> dict[str, Tensor]:
    """Concatenate queries, keys and values into one matrix; without a bias of the keys, name the others as timm does.

    They are `attn.query`, `attn.key` and `attn.value` here.
    """
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*\.attn)\.(query|key|value)\.(weight|bias)", name)
        if match is None:
            joined[name] = tensor
            continue
        parts = [state.get(f"{match[1]}.{part}.{match[3]}") for part in ("query", "key", "value")]
        there = [part for part in parts if part is not None]
        if match[3] == "bias" and match[2] != "key" and parts[1] is None:
            joined[f"{match[1]}.{match[2][0]}_bias"] = tensor
        elif len(there) == 3 and len({part.shape for part in there}) == 1 and tensor.ndim:
            joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat(there)
        else:
            joined[name] = tensor
    return joined


def grouped_positions(state: State) -> dict[str, Tensor]:
    """Sum up what VISSL's ConViT gives equal inputs: each of three distances comes several times, and is averaged.

    The softmax of VISSL is of `pos_proj(distances) / L`, where L is how often each distance comes.
    """
    summed = dict(state)
    for name, tensor in state.items():
        path = name.removesuffix(".pos_proj.weight")
        bias = state.get(f"{path}.pos_proj.bias")
        if path == name or tensor.ndim != 2 or tensor.shape[1] < 3 or tensor.shape[1] % 3:
            continue
        times = tensor.shape[1] // 3
        summed[name] = tensor.double().reshape(-1, 3, times).mean(2).to(tensor.dtype)
        if bias is not None:
            summed[f"{path}.pos_proj.bias"] = (bias.double() / times).to(bias.dtype)
        gate = summed.get(f"{path}.gating_param")
        if gate is not None:
            summed[f"{path}.gating_param"] = gate.flatten()
    return summed


def tokens_second(state: State) -> dict[str, Tensor]:
    """Positions as (1, T, D); ClassyVision has (T, 1, D)."""
    positions = state.get("pos_embed")
    first = positions is not None and positions.ndim == 3 and positions.shape[1] == 1
    return dict(state) | ({"pos_embed": positions.transpose(0, 1)} if positions is not None and first else {})


def without_key_bias(state: State) -> dict[str, Tensor]:
    """Biases of queries and values alone, as timm has them; none if all are zero, as in most of DINOv3's models.

    The keys have a bias in the file, which DINOv3 masks.
    """
    biases: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in joined_qkv(state).items():
        if name.endswith(".attn.qkv.bias") and tensor.ndim == 1 and len(tensor) % 3 == 0:
            query, _, value = tensor.chunk(3)
            biases |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        elif name.endswith((".attn.q_bias", ".attn.v_bias")):
            biases[name] = tensor
        else:
            others[name] = tensor
    return others | (biases if any(bool(bias.any()) for bias in biases.values()) else {})


def split_qkv(state: State) -> dict[str, Tensor]:
    """Split queries, keys and values of XCiT's class attention, which timm computes apart."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(cls_attn_blocks\.\d+\.attn)\.qkv\.(weight|bias)", name)
        if match is None or not tensor.ndim or len(tensor) % 3:
            split[name] = tensor
        else:
            split |= {f"{match[1]}.{part}.{match[2]}": each for part, each in zip("qkv", tensor.chunk(3), strict=True)}
    return split


def as_image_tower(state: State) -> dict[str, Tensor]:
    """Give tensors of CLIP and SigLIP the shapes that timm's have.

    The class token, positions and probe get an axis for the batch; in SigLIP's attention pooling, the query is apart
    from key and value; CLIP's projection becomes a linear layer without an effective bias.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in joined_qkv(state).items():
        if name in ("cls_token", "pos_embed"):
            made[name] = tensor.reshape(1, -1, tensor.shape[-1]) if tensor.ndim else tensor
        elif (match := re.fullmatch(r"attn_pool\.in_proj_(weight|bias)", name)) and len(tensor) % 3 == 0:
            dim = len(tensor) // 3
            made |= {f"attn_pool.q.{match[1]}": tensor[:dim], f"attn_pool.kv.{match[1]}": tensor[dim:]}
        elif name in ("proj", "visual_projection.weight") and tensor.ndim == 2:
            made["head.weight"] = tensor.T.contiguous() if name == "proj" else tensor
            made["head.bias"] = tensor.new_zeros(len(made["head.weight"]))
        else:
            made[name] = tensor
    return made


def with_separate_queries(state: State) -> dict[str, Tensor]:
    """Name EVA-02's biases of queries and values as timm does where their matrices are separate."""
    if not any(name.endswith(".attn.q_proj.weight") for name in state):
        return dict(state)
    return {re.sub(r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias", name): tensor for name, tensor in state.items()}


def as_any_size(state: State) -> dict[str, Tensor]:
    """Give tensors of RADIO the shapes that they have in timm's NaFlexViT.

    The first summary token becomes the class token and the others registers; patches are flattened with their
    colours last; positions keep their whole grid.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "tokens" and tensor.ndim == 2:
            made |= {"embeds.cls_token": tensor[None, :1], "embeds.reg_token": tensor[None, 1:]}
        elif name == "embeds.proj.weight" and tensor.ndim == 2 and tensor.shape[1] % 3 == 0:
            side = isqrt(tensor.shape[1] // 3)
            made[name] = tensor.reshape(len(tensor), 3, side, side).permute(0, 2, 3, 1).flatten(1)
            made["embeds.proj.bias"] = tensor.new_zeros(len(tensor))
        elif name == "embeds.pos_embed" and tensor.ndim == 3:
            side = isqrt(tensor.shape[1])
            made[name] = tensor.reshape(1, side, side, -1) if side**2 == tensor.shape[1] else tensor
        else:
            made[name] = tensor
    return made


def in_stages(state: State) -> dict[str, Tensor]:
    """Number ClassyVision's blocks of an EfficientNet within torchvision's stages, where the width changes."""
    widths = {
        int(match[1]): len(tensor)
        for name, tensor in state.items()
        if (match := re.fullmatch(r"block(\d+)\.project_conv\.weight", name))
    }
    places: dict[int, str] = {}
    stage = place = 0
    for block in sorted(widths):
        is_next = block - 1 not in widths or widths[block - 1] != widths[block]
        stage, place = (stage + 1, 0) if is_next else (stage, place + 1)
        places[block] = f"features.{stage}.{place}.block"
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"block(\d+)\.(\w+)\.(.+)", name)
        if match is None or int(match[1]) not in places or match[2] not in _OF_BLOCK:
            made[name.replace("features.last.", f"features.{stage + 1}.")] = tensor
            continue
        number, inner = _OF_BLOCK[match[2]]
        number -= f"block{match[1]}.expand_conv.weight" not in state
        made[f"{places[int(match[1])]}.{number}.{inner}.{match[3]}"] = tensor
    return made


_OF_BLOCK = {
    "expand_conv": (0, "0"), "bn0": (0, "1"), "depthwise_conv": (1, "0"), "bn1": (1, "1"), "se_reduce": (2, "fc1"),
    "se_expand": (2, "fc2"), "project_conv": (3, "0"), "bn2": (3, "1"),
}  # fmt: skip
"""For each layer in a block of ClassyVision's that expands, torchvision's number and name; without expansion, the
number is one less."""
