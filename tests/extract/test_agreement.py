"""What shapes don't show: a file is loaded only into a trunk that computes what the file was trained with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from featbench.extract.config import WeightsConfig
from featbench.extract.errors import WeightsError
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.loading import LoadedWeights, load_weights
from featbench.store.layers import layers_of

SMALL = {"dim": 24, "depth": 2, "patch_size": 8}
CONFIG = {
    "model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 32, "patch_size": 8, "qkv_bias": True,
}  # fmt: skip
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def hub(folder: Path, **changed: int | str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder as transformers' `save_pretrained` writes one, filled with random numbers."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changed))
    draw = torch.Generator().manual_seed(1)
    shapes = {
        "embeddings.cls_token": (1, 1, 24), "embeddings.position_embeddings": (1, 17, 24),
        "embeddings.patch_embeddings.projection.weight": (24, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (24,), "layernorm.weight": (24,), "layernorm.bias": (24,),
    }  # fmt: skip
    for layer in (f"encoder.layer.{index}." for index in range(2)):
        for part, size in {
            "attention.attention.query": (24, 24), "attention.attention.key": (24, 24),
            "attention.attention.value": (24, 24), "attention.output.dense": (24, 24), "intermediate.dense": (96, 24),
            "output.dense": (24, 96), "layernorm_before": (24,), "layernorm_after": (24,),
        }.items():  # fmt: skip
            shapes |= {f"{layer}{part}.weight": size, f"{layer}{part}.bias": size[:1]}
    state = {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    torch.save(state, folder / "pytorch_model.bin")
    return folder, state


def class_token(
    state: dict[str, torch.Tensor], *, num_heads: int, activation: Callable[..., Any], eps: float
) -> torch.Tensor:
    """The class token of transformers' ViTModel, from its definition, in float64."""
    s = {name: tensor.double() for name, tensor in state.items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]
        )

    patches = F.unfold(IMAGE.double(), 8, stride=8).transpose(1, 2)
    kernel = s["embeddings.patch_embeddings.projection.weight"].flatten(1)
    x = patches @ kernel.T + s["embeddings.patch_embeddings.projection.bias"]
    x = torch.cat((s["embeddings.cls_token"].expand(2, -1, -1), x), 1) + s["embeddings.position_embeddings"]
    for layer in (f"encoder.layer.{index}." for index in range(2)):
        y = norm(x, layer + "layernorm_before")
        q, k, v = (
            linear(y, f"{layer}attention.attention.{part}").unflatten(2, (num_heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = ((q @ k.transpose(2, 3)) / math.sqrt(24 / num_heads)).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), layer + "attention.output.dense")
        hidden = activation(linear(norm(x, layer + "layernorm_after"), layer + "intermediate.dense"))
        x = x + linear(hidden, layer + "output.dense")
    return norm(x, "layernorm")[:, 0]


def load(
    path: Path, options: dict[str, Any], *, trunk: str = "vit", image: torch.Tensor = IMAGE, **weights: Any
) -> tuple[torch.Tensor, LoadedWeights]:
    """Load a file or folder into a trunk, and return its class token and what was recorded."""
    model = build_trunk(trunk, options, image_size=tuple(image.shape[2:]))
    taps = TappedTrunk(model, name=trunk, layers=layers_of(["lastCLS"]))
    taps.probe(image[:1])
    filled = load_weights(taps, image[:1], WeightsConfig(file=path, **weights), options=options)
    return taps(image)["lastCLS"], filled


@pytest.mark.parametrize(
    ("says", "options", "activation"),
    [
        ({"num_attention_heads": 2}, {"num_heads": 2}, lambda x: F.gelu(x)),
        ({"num_attention_heads": 6}, {"num_heads": 6}, lambda x: F.gelu(x)),
        (
            {"hidden_act": "quick_gelu"},
            {"num_heads": 2, "activation": "quick_gelu"},
            lambda x: x * (1.702 * x).sigmoid(),
        ),
        (
            {"hidden_act": "gelu_new"},
            {"num_heads": 2, "activation": "gelu_tanh"},
            lambda x: F.gelu(x, approximate="tanh"),
        ),
        ({"layer_norm_eps": 0.5}, {"num_heads": 2}, lambda x: F.gelu(x)),
    ],
)
def test_a_hub_folder_gives_the_features_of_the_network_that_its_config_describes(
    tmp_path: Path, says: dict[str, float | str], options: dict[str, int | str], activation: Callable[..., Any]
) -> None:
    folder, state = hub(tmp_path / "hub", **says)
    features, filled = load(folder, SMALL | options)
    eps = says.get("layer_norm_eps", 1e-12)
    expected = class_token(state, num_heads=options["num_heads"], activation=activation, eps=eps)
    assert torch.allclose(features.double(), expected, atol=1e-4)
    assert filled.identity["config"] == {"layer_norm_eps": eps}


@pytest.mark.parametrize(
    ("says", "options", "message"),
    [
        ({"num_attention_heads": 6}, {"num_heads": 2}, r"num_heads: 6 in config\.json, 2 in the trunk"),
        ({"hidden_act": "quick_gelu"}, {"num_heads": 2}, r"activations: quick_gelu in config\.json, gelu in the trunk"),
        ({"layer_norm_eps": 0.5}, {"num_heads": 2, "eps": 1e-6}, r"eps: 0\.5 in config\.json, model\.options\.eps"),
        ({"num_attention_heads": "two"}, {"num_heads": 2}, r"num_attention_heads must be a positive number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["", "pytorch_model.bin"])
def test_a_hub_folder_of_another_network_is_refused_with_both_values(
    tmp_path: Path, says: dict[str, float | str], options: dict[str, float], message: str, name: str
) -> None:
    """Also where the file within the folder is named."""
    folder, _ = hub(tmp_path / "hub", **says)
    with pytest.raises(WeightsError, match=message):
        load(folder / name, SMALL | options)


def test_the_settings_that_a_refusal_gives_load_the_folder(tmp_path: Path) -> None:
    import yaml

    folder, state = hub(tmp_path / "hub", num_attention_heads=6, hidden_act="quick_gelu")
    with pytest.raises(WeightsError) as refusal:
        load(folder, SMALL | {"num_heads": 2})
    advised = str(refusal.value).partition("Use model.trunk=vit 'model.options=")[2].removesuffix("'")
    features, _ = load(folder, yaml.safe_load(advised))
    expected = class_token(state, num_heads=6, activation=lambda x: x * (1.702 * x).sigmoid(), eps=1e-12)
    assert torch.allclose(features.double(), expected, atol=1e-4)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000])
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    folder, _ = hub(tmp_path / "hub")
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json: (cannot be read|holds a)"):
        load(folder, SMALL | {"num_heads": 2})


def test_a_resnet_whose_stride_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    """ResNet v1 and v1.5 have the same shapes; torchvision's is v1.5."""
    from tests.extract.test_families import transformers_resnet

    model = build_trunk("resnet50", {})
    torch.save(transformers_resnet(model.state_dict()), tmp_path / "pytorch_model.bin")
    taps = TappedTrunk(build_trunk("resnet50", {}), name="resnet50", layers=layers_of(["res5"]))
    taps.probe(IMAGE[:1])
    config = {"model_type": "resnet", "layer_type": "bottleneck"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_weights(taps, IMAGE[:1], WeightsConfig(file=tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"downsample_in_bottleneck": True}))
    with pytest.raises(WeightsError, match=r"layer2\.0\.conv1: \(\(2, 2\).*in config\.json, \(\(1, 1\)"):
        load_weights(taps, IMAGE[:1], WeightsConfig(file=tmp_path))


def test_a_timm_folder_is_compared_with_the_architecture_that_it_names(tmp_path: Path) -> None:
    options = {"depth": 1, "embed_dim": 24, "num_heads": 6, "num_classes": 0}
    name = "timm:vit_tiny_patch16_224"
    torch.save(build_trunk(name, options, image_size=(32, 32)).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": options}))
    load(tmp_path, options, trunk=name)
    with pytest.raises(
        WeightsError, match=r"num_heads: 6 in config\.json, 2 in the trunk.*Use model\.trunk=timm:vit_tiny"
    ):
        load(tmp_path, options | {"num_heads": 2}, trunk=name)


def moco_v3_small(*, computed: bool = False) -> dict[str, torch.Tensor]:
    state = build_trunk("mocov3_vit_small_16", {"depth": 1}, image_size=(32, 32)).state_dict()
    if computed:  # `build_2d_sincos_position_embedding`: the row first, then the column
        positions = torch.zeros(1, 5, 384)
        for token, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            for index in range(96):
                omega = 1 / 10_000 ** (index / 96)
                for part, value in enumerate((row, column)):
                    positions[0, 1 + token, 192 * part + index] = math.sin(value * omega)
                    positions[0, 1 + token, 192 * part + 96 + index] = math.cos(value * omega)
        state = state | {"pos_embed": positions}
    return state


@pytest.mark.parametrize(
    ("write", "weights"),
    [
        (lambda s: {"state_dict": {f"module.base_encoder.{k}": v for k, v in s.items()}}, {}),
        (lambda s: {"state_dict": {f"module.momentum_encoder.{k}": v for k, v in s.items()}
                    | {"module.base_encoder.x": torch.ones(1)}}, {"branch": "momentum"}),
        (lambda s: {"state_dict": {f"module.base_encoder.{k}": v for k, v in s.items()}},
         {"key": "state_dict", "remove_prefix": "module.base_encoder."}),
        (lambda s: {f"base_encoder.{k}": v for k, v in s.items()}, {"remove_prefix": "base_encoder."}),
        (lambda s: {"arch": "vit_small", "state_dict": {f"module.{k}": v for k, v in s.items()}, "best_acc1": 1.0}, {}),
        (lambda s: {"model": moco_v3_small(computed=True)}, {}),
        (lambda s: moco_v3_small(computed=True), {}),
        (lambda s: {"state_dict": s, "hyper_parameters": {"backbone": {"num_heads": 12}}}, {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trunk", ["vit_small_16", "timm:vit_small_patch16_224"])
def test_moco_v3s_small_vit_is_refused_by_six_heads_however_it_is_read(
    tmp_path: Path, write: Callable[..., Any], weights: dict[str, str], trunk: str
) -> None:
    torch.save(write(moco_v3_small()), tmp_path / "w.pth")
    options = {"depth": 1} if trunk == "vit_small_16" else {"depth": 1, "num_classes": 0}
    with pytest.raises(WeightsError, match=r"12 attention heads, the trunk (has )?6"):
        load(tmp_path / "w.pth", options, trunk=trunk, image=torch.rand(2, 3, 32, 32), **weights)


def test_moco_v3s_small_vit_is_loaded_by_its_own_trunk_and_others_by_theirs(tmp_path: Path) -> None:
    torch.save(moco_v3_small(computed=True), tmp_path / "w.pth")
    load(tmp_path / "w.pth", {"depth": 1}, trunk="mocov3_vit_small_16")
    torch.save(build_trunk("vit_small_16", {"depth": 1}, image_size=(32, 32)).state_dict(), tmp_path / "six.pth")
    load(tmp_path / "six.pth", {"depth": 1}, trunk="vit_small_16")
