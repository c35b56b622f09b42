"""Other projects' names for the parameters of the same trunks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

HEADS = "/heads/"
"""Prefix of the names of heads, which are `0.clf.0.weight` and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Another project's names for the same parameters."""

    name: str
    mark: str
    """Must match the start of some name."""

    renames: tuple[tuple[str, str], ...]
    """Patterns and replacements, all applied in order."""


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="VISSL's RegNet",
        mark=r"(base_model\.)?_feature_blocks\.res2\.",
        renames=(
            (r"\.block\d+-part\d+\.", "."),  # groups of regnet_v2 and regnet_fsdp
            (r"^(base_model\.)?_feature_blocks\.conv1\.(stem\.)?", "stem."),
            *((rf"^(base_model\.)?_feature_blocks\.res{n + 1}\.", f"trunk_output.block{n}.") for n in range(1, 5)),
            (r"\.proj\.weight$", ".proj.0.weight"),
            (r"(block\d-\d+)\.bn\.", r"\1.proj.1."),
            (r"\.se\.excitation\.0\.", ".se.fc1."),
            (r"\.se\.excitation\.2\.", ".se.fc2."),
            (r"\.f\.c\.weight$", ".f.c.0.weight"),
            (r"\.f\.final_bn\.", ".f.c.1."),
        ),
    ),
    Layout(
        name="VISSL's blocks",
        mark=r"(base_model\.)?_feature_blocks\.",
        renames=((r"^(base_model\.)?_feature_blocks\.", ""),),
    ),
    Layout(
        name="ConvNeXt's own",
        mark=r"(base_model\.)?downsample_layers\.0\.0\.",
        renames=(
            (r"^base_model\.", ""),
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
            (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv(\d)\.", r".mlp.fc\1."),
            (r"^norm\.", "head.norm."),
            (r"^norms\.", "/norms/"),  # DINOv3's: of each stage, and the final one again
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    ),
    Layout(
        name="Swin's own",
        mark=r"(base_model\.)?layers\.0\.downsample\.reduction\.",
        renames=(
            (r"^base_model\.", ""),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
            *((rf"^layers\.{stage}\.downsample\.", f"layers.{stage + 1}.downsample.") for stage in (2, 1, 0)),
        ),
    ),
    Layout(
        name="XCiT's own",
        mark=r"(base_model\.)?pos_embeder\.",
        renames=(
            (r"^base_model\.", ""),
            (r"^pos_embeder\.", "pos_embed."),
        ),
    ),
    Layout(
        name="VISSL's extractor",
        mark=r"base_model\.",
        renames=((r"^base_model\.", ""),),
    ),
    Layout(
        name="VISSL's first ViT",
        mark=r"class_token$",
        renames=((r"^class_token$", "cls_token"), (r"^pos_embedding$", "pos_embed")),
    ),
    Layout(
        name="ResNet as a sequence of its children",
        mark=r"4\.0\.conv1\.weight$",
        renames=(
            (r"^0\.", "conv1."),
            (r"^1\.", "bn1."),
            *((rf"^{index + 3}\.", f"layer{index}.") for index in range(1, 5)),
        ),
    ),
    Layout(
        name="DINOv3's own",
        mark=r"storage_tokens$",
        renames=(
            (r"^storage_tokens$", "reg_token"),
            (r"\.ls([12])\.gamma$", r".gamma_\1"),
            (r"\.mlp\.w1\.", ".mlp.fc1_g."),
            (r"\.mlp\.w2\.", ".mlp.fc1_x."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
            (r"^(rope_embed\.|local_cls_norm\.|mask_token$)", r"/\1"),
            (r"\.qkv\.bias_mask$", "/bias_mask"),
        ),
    ),
    Layout(
        name="transformers' DINOv3",
        mark=r"(model\.)?layer\.0\.attention\.q_proj\.",
        renames=(
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.mask_token$", "/mask_token"),
            (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
            (r"^embeddings\.", ""),
            (r"^(model\.)?layer\.", "blocks."),
            (r"\.attention\.q_proj\.bias$", ".attn.q_bias"),
            (r"\.attention\.v_proj\.bias$", ".attn.v_bias"),
            (r"\.attention\.q_proj\.", ".attn.query."),
            (r"\.attention\.k_proj\.", ".attn.key."),
            (r"\.attention\.v_proj\.", ".attn.value."),
            (r"\.attention\.o_proj\.", ".attn.proj."),
            (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
            (r"\.mlp\.up_proj\.", ".mlp.fc1."),
            (r"\.mlp\.down_proj\.", ".mlp.fc2."),
        ),
    ),
    Layout(
        name="blocks in chunks",
        mark=r"blocks\.\d+\.\d+\.",
        renames=((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),),
    ),
    Layout(
        name="torchvision's first DenseNet",
        mark=r"features\.denseblock\d+\.denselayer\d+\.norm\.1\.",
        renames=((r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),),
    ),
    Layout(
        name="transformers' ViT",
        mark=r"(\w+\.)?encoder\.layer\.0\.attention\.attention\.query\.",
        renames=(
            (r"^(vit|deit|dinov2|dinov2_with_registers|vit_mae|ijepa)\.", ""),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.", ""),
            (r"^encoder\.layer\.", "blocks."),
            (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
            (r"\.mlp\.weights_in\.", ".mlp.w12."),
            (r"\.mlp\.weights_out\.", ".mlp.w3."),
            (r"^layernorm\.", "norm."),
            (r"^pooler\.", "/pooler/"),
            (r"^(classifier|decoder)\.", r"/\1/"),
        ),
    ),
    Layout(
        name="transformers' ResNet",
        mark=r"(resnet\.)?embedder\.embedder\.convolution\.",
        renames=(
            (r"^resnet\.", ""),
            (r"^embedder\.embedder\.convolution\.", "conv1."),
            (r"^embedder\.embedder\.normalization\.", "bn1."),
            *((rf"^encoder\.stages\.{stage}\.layers\.", f"layer{stage + 1}.") for stage in range(4)),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            *((rf"\.layer\.{index}\.convolution\.", f".conv{index + 1}.") for index in range(3)),
            *((rf"\.layer\.{index}\.normalization\.", f".bn{index + 1}.") for index in range(3)),
            (r"^classifier\.1\.", "fc."),
        ),
    ),
)
"""Tried in this order once the family is known; the first that fits is applied."""


def laid_out(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Rename the tensors of a state dict to torchvision's, timm's and DINO's names, if it has another layout.

    Returns
    -------
    str
        The layout's name, "" for none.
    dict of str to Tensor
        Without the tensors that the layout drops (classifiers, decoders).
    """
    layout = next((layout for layout in LAYOUTS if any(re.match(layout.mark, name) for name in state)), None)
    if layout is None:
        return "", dict(state)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        if not name.startswith(HEADS):
            for pattern, replacement in layout.renames:
                new = re.sub(pattern, replacement, new)
        if new.startswith(HEADS) or "/" not in new:
            renamed[name if new in renamed else new] = (
                tensor  # a name that would collide stays as it is, and is refused as left over
            )
    if layout.name == "XCiT's own":
        return layout.name, _split_qkv(renamed)
    joined = _joined_qkv(renamed)
    return layout.name, _without_key_bias(joined) if "DINOv3" in layout.name else joined


def _without_key_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Biases of queries and values alone, as timm has them; none if all are zero, as in most of DINOv3's models.

    The keys have a bias in the file, which DINOv3 masks.
    """
    biases: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".attn.qkv.bias") and tensor.ndim == 1 and len(tensor) % 3 == 0:
            query, _, value = tensor.chunk(3)
            biases |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        elif name.endswith((".attn.q_bias", ".attn.v_bias")):
            biases[name] = tensor
        else:
            others[name] = tensor
    return others | (biases if any(bool(bias.any()) for bias in biases.values()) else {})


def _split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split queries, keys and values of class attention, which timm computes apart."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(cls_attn_blocks\.\d+\.attn)\.qkv\.(weight|bias)", name)
        if match is None or not tensor.ndim or len(tensor) % 3:
            split[name] = tensor
        else:
            split |= {f"{match[1]}.{part}.{match[2]}": each for part, each in zip("qkv", tensor.chunk(3), strict=True)}
    return split


def _joined_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate queries, keys and values into one matrix, if a layout has them separately."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*\.attn)\.(query|key|value)\.(weight|bias)", name)
        if match is None:
            joined[name] = tensor
        elif match[2] == "query":
            parts = [state.get(f"{match[1]}.{part}.{match[3]}") for part in ("query", "key", "value")]
            shapes = {part.shape for part in parts if part is not None}
            if all(part is not None for part in parts) and len(shapes) == 1 and tensor.ndim:
                joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat([part for part in parts if part is not None])
    return joined
