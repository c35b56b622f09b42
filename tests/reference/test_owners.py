"""Models of transformers and open_clip, saved by their own code, give the same features when they are loaded here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featbench.extract.config import WeightsConfig
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.loading import load_weights
from featbench.store.layers import layers_of

pytestmark = pytest.mark.slow
pytest.importorskip("timm")

IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 16}
TIMM = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
OURS = {"dim": 48, "depth": 2, "num_heads": 3}
REGISTERS = {**OURS, "patch_size": 14, "layer_scale": True, "register_tokens": 4, "position_resize": "antialias"}
CONVNEXT = {"dims": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_classes": 0}
THEIR_CONVNEXT = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
POSITIONS = {"use_relative_position_bias": True}

Pick = Callable[[Any], Tensor]
pooled: Pick = lambda out: out.pooler_output  # noqa: E731
mean: Pick = lambda out: out.last_hidden_state.mean(1)  # noqa: E731
first: Pick = lambda out: out.last_hidden_state[:, 0]  # noqa: E731

TRANSFORMERS: list[tuple[str, dict[str, Any], Pick, str, dict[str, Any], str]] = [
    ("CLIPVision", {**SIZES, "intermediate_size": 192}, pooled, "timm:vit_base_patch16_clip_quickgelu_224", TIMM,
     "lastCLS"),
    ("SiglipVision", {**SIZES, "intermediate_size": 192}, pooled, "timm:vit_base_patch16_siglip_224",
     {**TIMM, "act_layer": "gelu_tanh"}, "output"),
    ("SiglipVision", {**SIZES, "intermediate_size": 192}, mean, "timm:vit_base_patch16_siglip_224",
     {**TIMM, "act_layer": "gelu_tanh"}, "lastPOOL"),
    ("Beit", {**SIZES, "intermediate_size": 192, **POSITIONS}, pooled, "timm:beit_base_patch16_224", TIMM, "output"),
    ("Beit", {**SIZES, "intermediate_size": 192, "use_shared_relative_position_bias": True}, pooled,
     "timm:beit_base_patch16_224", TIMM, "output"),
    ("Data2VecVision", {**SIZES, "intermediate_size": 192, **POSITIONS, "use_mean_pooling": False}, first,
     "timm:beit_base_patch16_224", {**TIMM, "global_pool": "token"}, "output"),
    ("Dinov2WithRegisters", {**SIZES, "patch_size": 14, "image_size": 518}, pooled, "vit", REGISTERS, "lastCLS"),
    ("IJepa", {**SIZES, "intermediate_size": 192}, mean, "vit", {**OURS, "patch_size": 16, "class_token": False},
     "lastPOOL"),
    ("DINOv3ViT", {**SIZES, "intermediate_size": 192, "num_register_tokens": 4, "layerscale_value": 0.5}, pooled,
     "timm:vit_small_patch16_dinov3_qkvb", TIMM, "lastCLS"),
    ("DINOv3ConvNext", THEIR_CONVNEXT, pooled, "timm:convnext_tiny", CONVNEXT, "output"),
    ("ConvNext", THEIR_CONVNEXT, pooled, "timm:convnext_tiny", CONVNEXT, "output"),
]  # fmt: skip


def noisy(model: nn.Module) -> nn.Module:
    """Parameters that all matter: zeros and ones, as which many begin, would hide a wrong name."""
    random = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim:
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=random))
    return model.eval()


def features(path: Path, name: str, options: dict[str, Any], layer: str) -> Tensor:
    trunk = build_trunk(name, options, image_size=(224, 224))
    taps = TappedTrunk(trunk, name=name, layers=layers_of([layer]))
    taps.probe(IMAGES[:1])
    load_weights(taps, IMAGES[:1], WeightsConfig(file=path), options=options)
    return taps(IMAGES)[layer].flatten(1)


@pytest.mark.parametrize(("kind", "config", "pick", "name", "options", "layer"), TRANSFORMERS)
def test_transformers_models_give_the_same_features(
    tmp_path: Path, kind: str, config: dict[str, Any], pick: Pick, name: str, options: dict[str, Any], layer: str
) -> None:
    transformers = pytest.importorskip("transformers")
    model = noisy(getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)))
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = pick(model(IMAGES)).flatten(1)
    torch.testing.assert_close(features(tmp_path, name, options, layer), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("quick", [False, True])
def test_open_clips_models_give_the_same_features(tmp_path: Path, quick: bool) -> None:
    open_clip = pytest.importorskip("open_clip")
    tower = {"image_size": 224, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 20, "width": 32, "heads": 1, "layers": 1}
    model = noisy(open_clip.model.CLIP(embed_dim=24, vision_cfg=tower, text_cfg=text, quick_gelu=quick))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    name = f"timm:vit_base_patch16_clip_{'quickgelu_' * quick}224"
    with torch.inference_mode():
        expected = model.visual(IMAGES)
    made = features(tmp_path / "w.pt", name, {"embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 24}, "output")
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
