"""The table of other projects' names for the parameters of the same trunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from featbench.extract.weights.reshaping import (
    State,
    as_any_size,
    as_image_tower,
    grouped_positions,
    in_stages,
    joined_qkv,
    split_qkv,
    tokens_second,
    with_separate_queries,
    without_key_bias,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Another project's names for the same parameters."""

    name: str
    mark: str
    """Must match the start of some name."""

    renames: tuple[tuple[str, str], ...] = ()
    """Patterns and replacements, all applied in order; a name with "/" afterwards is dropped."""

    reshape: Callable[[State], dict[str, Tensor]] = joined_qkv
    """Applied to the renamed tensors."""


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
        name="VISSL's EfficientNet",
        mark=r"(base_model\.)?_feature_blocks\.block0\.depthwise_conv\.",
        renames=(
            (r"^(base_model\.)?_feature_blocks\.", ""),
            (r"^conv1\.", "features.0."),
            (r"^conv_final\.", "features.last."),
        ),
        reshape=in_stages,
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
        reshape=split_qkv,
    ),
    Layout(
        name="VISSL's ConViT",
        mark=r"(base_model\.)?blocks\.0\.attn\.pos_proj\.weight$",
        renames=(
            (r"^base_model\.", ""),
            (r"^class_token$", "cls_token"),
            (r"^pos_embedding$", "pos_embed"),
            (r"\.attn\.alpha$", ".attn.gating_param"),
            (r"\.mlp\.linear_([12])\.", r".mlp.fc\1."),
        ),
        reshape=grouped_positions,
    ),
    Layout(
        name="ClassyVision's ViT",
        mark=r"(base_model\.)?(model\.)?encoder\.layers\.layer_0\.",
        renames=(
            (r"^(base_model\.)?(model\.)?", ""),
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.ln\.", "norm."),
            (r"^encoder\.layers\.layer_", "blocks."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.linear_([12])\.", r".mlp.fc\1."),
        ),
        reshape=tokens_second,
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
        reshape=without_key_bias,
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
        reshape=without_key_bias,
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
            (r"^(vit|deit|dinov2|dinov2_with_registers|vit_mae|ijepa|beit|data2vec_vision)\.", ""),
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
            (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
            (r"^encoder\.(shared_position|relative_position)_bias\.", "rel_pos_bias."),
            (r"\.lambda_([12])$", r".gamma_\1"),
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
            (r"\.mlp\.weights_in\.", ".mlp.w12."),
            (r"\.mlp\.weights_out\.", ".mlp.w3."),
            (r"^layernorm\.", "norm."),
            (r"^pooler\.layernorm\.", "fc_norm."),  # of BEiT and data2vec, after the mean of the patches
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
    Layout(
        name="transformers' CLIP or SigLIP",
        mark=r"(vision_model\.)?encoder\.layers\.0\.self_attn\.q_proj\.",
        renames=(
            (r"^vision_model\.", ""),
            (r"^embeddings\.position_ids$", "/position_ids"),
            (r"^embeddings\.class_embedding$", "cls_token"),
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
            (r"^encoder\.layers\.", "blocks."),
            (r"\.layer_norm([12])\.", r".norm\1."),
            (r"\.self_attn\.q_proj\.", ".attn.query."),
            (r"\.self_attn\.k_proj\.", ".attn.key."),
            (r"\.self_attn\.v_proj\.", ".attn.value."),
            (r"\.self_attn\.out_proj\.", ".attn.proj."),
            (r"^pre_layrnorm\.", "norm_pre."),
            (r"^post_layernorm\.", "norm."),
            (r"^head\.probe$", "attn_pool.latent"),
            (r"^head\.attention\.in_proj_", "attn_pool.in_proj_"),
            (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
            (r"^head\.layernorm\.", "attn_pool.norm."),
            (r"^head\.mlp\.", "attn_pool.mlp."),
        ),
        reshape=as_image_tower,
    ),
    Layout(
        name="transformers' ConvNeXt",
        mark=r"((convnext|model)\.)?(encoder\.)?stages\.1\.downsampl(e|ing)_layers?\.",
        renames=(
            (r"^(convnext|model)\.", ""),
            (r"^(embeddings\.patch_embeddings|stages\.0\.downsample_layers\.0)\.", "stem.0."),
            (r"^(embeddings\.layernorm|stages\.0\.downsample_layers\.1)\.", "stem.1."),
            (r"^(encoder\.)?stages\.(\d)\.downsampl(e|ing)_layers?\.", r"stages.\2.downsample."),
            (r"^(encoder\.)?stages\.(\d)\.layers\.", r"stages.\2.blocks."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"\.(depthwise_conv|dwconv)\.", ".conv_dw."),
            (r"(blocks\.\d+)\.layer_?norm\.", r"\1.norm."),
            (r"\.(?:pointwise_|pw)conv([12])\.", r".mlp.fc\1."),
            (r"^layer_?norm\.", "head.norm."),
            (r"^classifier\.", "head.fc."),
        ),
    ),
    Layout(
        name="CLIP's own",
        mark=r"transformer\.resblocks\.0\.",
        renames=(
            (r"^class_embedding$", "cls_token"),
            (r"^positional_embedding$", "pos_embed"),
            (r"^conv1\.", "patch_embed.proj."),
            (r"^ln_pre\.", "norm_pre."),
            (r"^ln_post\.", "norm."),
            (r"^transformer\.resblocks\.", "blocks."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.ls_([12])\.gamma$", r".ls\1.gamma"),
            (r"\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        ),
        reshape=as_image_tower,
    ),
    Layout(
        name="CLIP's ResNet",
        mark=r"attnpool\.k_proj\.",
        renames=(
            (r"^conv([123])\.", r"stem.conv\1.conv."),
            (r"^bn([123])\.", r"stem.conv\1.bn."),
            *((rf"^layer{stage}\.(\d+)\.", rf"stages.{stage - 1}.\1.") for stage in range(1, 5)),
            *(
                (rf"^(stages\.\d\.\d+)\.{theirs}{number}\.", rf"\1.conv{number}_{size}.{ours}.")
                for number, size in ((1, "1x1"), (2, "kxk"), (3, "1x1"))
                for theirs, ours in (("conv", "conv"), ("bn", "bn"))
            ),
            (r"\.downsample\.0\.", ".shortcut.conv.conv."),
            (r"\.downsample\.1\.", ".shortcut.conv.bn."),
            (r"^attnpool\.positional_embedding$", "head.pos_embed"),
            (r"^attnpool\.([qkv])_proj\.", r"head.\1."),
            (r"^attnpool\.c_proj\.", "head.proj."),
        ),
    ),
    Layout(
        name="EVA-02's own",
        mark=r"(blocks\.0\.attn\.)?rope\.freqs_cos$",
        renames=(
            (r"^(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)$", r"/\1\2"),
            (r"^(mask_token$|lm_head\.)", r"/\1"),
            (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
            (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
            (r"\.mlp\.w1\.", ".mlp.fc1_g."),
            (r"\.mlp\.w2\.", ".mlp.fc1_x."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
        reshape=with_separate_queries,
    ),
    Layout(
        name="BEiT's own",
        mark=r"(rel_pos_bias|lm_head|cls_pt_layers)\.",
        renames=((r"^(mask_token$|lm_head\.|cls_pt_layers\.)", r"/\1"),),
    ),
    Layout(
        name="RADIO's own",
        mark=r"radio_model\.model\.patch_generator\.embedder\.",
        renames=(
            (r"^radio_model\.model\.patch_generator\.embedder\.", "embeds.proj."),
            (r"^radio_model\.model\.patch_generator\.pos_embed$", "embeds.pos_embed"),
            (r"^radio_model\.model\.patch_generator\.cls_token\.token$", "tokens"),
            (r"^radio_model\.model\.blocks\.", "blocks."),
            (r"\.grandma$", ".gamma"),
            (r"^radio_model\.(?!model\.)", "/"),  # its preprocessing, its adaptors
        ),
        reshape=as_any_size,
    ),
)
"""Tried in this order once the family is known; the first that fits is applied."""
