"""What the `config.json` of a folder from Hugging Face's hub says about its weights.

Shapes don't show how many heads attention has, which activation follows a layer, or the epsilon of a norm. Both
transformers' and timm's configurations are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featbench.extract.errors import WeightsError
from featbench.extract.weights.checkpoints import HUB_FILES
from featbench.store.documents import DocumentError, parse_json

ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""transformers' names of activations, and the ones used here."""

OPEN_CLIP = "open_clip_config.json"

_CLIP_RESNET = "open_clip's resnet"
_EPS_1E6 = ("dinov2", "dinov2_with_registers", "vit_msn", "dinov3_vit")
_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "patch_size": 16},
}
"""What transformers' configurations of image towers leave out."""

_VITS = ("vit", "deit", "vit_mae", "vit_msn", "ijepa", "beit", "data2vec-vision", "dinov2", "dinov2_with_registers")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """A configuration beside the weights; None for what it does not say."""

    file: Path
    kind: str
    """transformers' `model_type`, or `timm`."""

    content: Mapping[str, Any] = field(repr=False)
    num_heads: int | None = None
    activation: str | None = None
    layer_norm_eps: float | None = None
    patch_size: int | None = None
    grid: tuple[int, int] | None = None
    """Grid of patches (height, width) of its position embeddings."""

    stride_in_first: bool | None = None
    """For a ResNet: whether in bottlenecks the first convolution has the stride, rather than the second."""

    def as_vit(self) -> str:
        """Settings that build this vision transformer, as typed on the command line; "" if no trunk matches it."""
        if self.kind == _CLIP_RESNET:
            return "one of timm's models that are named resnet..._clip"
        if self.kind in _TOWERS:
            return f"one of timm's models with 'model.options={{act_layer: {self.activation}}}'"
        if self.kind not in _VITS or self.kind in ("beit", "data2vec-vision") or self.activation is None:
            return ""
        dim, depth = self.content.get("hidden_size", 768), self.content.get("num_hidden_layers", 12)
        mlp_ratio = self.content.get("mlp_ratio") or self.content.get("intermediate_size", 3072) / dim
        options = {
            "patch_size": self.patch_size,
            "dim": dim,
            "depth": depth,
            "num_heads": self.num_heads,
            "mlp_ratio": mlp_ratio,
            "activation": self.activation,
        }
        if self.kind.startswith("dinov2"):
            options |= {"layer_scale": "true", "position_resize": "offset"}
        if self.content.get("use_swiglu_ffn"):
            options["feed_forward"] = "swiglu"
        if self.kind == "dinov2_with_registers":
            options |= {
                "register_tokens": self.content.get("num_register_tokens", 4),
                "position_resize": "antialias",
            }
        if self.kind == "ijepa":
            options["class_token"] = "false"
        if self.content.get("qkv_bias") is False:
            options["qkv_bias"] = "false"
        return (
            "model.trunk=vit 'model.options={" + ", ".join(f"{key}: {value}" for key, value in options.items()) + "}'"
        )


def hub_folder(path: Path) -> Path | None:
    """Return the folder whose configuration belongs to these weights, if there is one."""
    folder = path if path.is_dir() else path.parent if path.name in HUB_FILES else None
    there = folder is not None and any((folder / name).is_file() for name in ("config.json", OPEN_CLIP))
    return folder if there else None


def read_config(path: Path) -> HubConfig | None:
    """Read `config.json` beside weights; None if there is none, or it is not transformers' or timm's.

    Raises
    ------
    WeightsError
        If it can't be read.
    """
    folder = hub_folder(path)
    if folder is None:
        return None
    file = folder / "config.json"
    if not file.is_file():
        return _of_open_clip(folder / OPEN_CLIP)
    content = read_json(file)
    if "architecture" in content:
        return HubConfig(file=file, kind="timm", content=content)
    kind = content.get("model_type")
    family = str(kind).removesuffix("_vision_model")
    if family in _TOWERS:
        kind, content = family, {**_TOWERS[family], **_section(content, "vision_config", file)}
    if kind == "resnet":
        activation = str(content.get("hidden_act", "relu"))
        return HubConfig(
            file=file,
            kind=kind,
            content=content,
            activation=ACTIVATIONS.get(activation, activation),
            stride_in_first=bool(content.get("downsample_in_bottleneck", False)),
        )
    if kind not in (*_VITS, *_TOWERS):
        return None
    activation = str(content.get("hidden_act", "gelu"))
    patch = _pair(content.get("patch_size", 14 if kind.startswith("dinov2") else 16), file, "patch_size")
    image = _pair(content.get("image_size", 224), file, "image_size")
    return HubConfig(
        file=file,
        kind=kind,
        content=content,
        num_heads=_number(content.get("num_attention_heads", 12), file, "num_attention_heads", int),
        activation=ACTIVATIONS.get(activation, activation),
        layer_norm_eps=_number(
            content.get("layer_norm_eps", 1e-6 if kind in _EPS_1E6 else 1e-12), file, "layer_norm_eps", float
        ),
        patch_size=patch[0],
        grid=(image[0] // patch[0], image[1] // patch[1]),
    )


def _of_open_clip(file: Path) -> HubConfig:
    content = read_json(file)
    model = _section(content, "model_cfg", file)
    vision = _section(model, "vision_cfg", file)
    if "timm_model_name" in vision:
        return HubConfig(file=file, kind="timm", content={"architecture": vision["timm_model_name"]})
    if isinstance(vision.get("layers"), list):  # a ResNet, whose heads of attention are 64 wide
        width = _number(vision.get("width", 64), file, "width", int)
        return HubConfig(file=file, kind=_CLIP_RESNET, content=content, num_heads=width // 2, activation="relu")
    patch = _pair(vision.get("patch_size", 16), file, "patch_size")
    image = _pair(vision.get("image_size", 224), file, "image_size")
    width, of_head = (
        _number(vision.get(key, usual), file, key, int) for key, usual in (("width", 768), ("head_width", 64))
    )
    return HubConfig(
        file=file,
        kind="clip",
        content=content,
        num_heads=width // of_head,
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        patch_size=patch[0],
        grid=(image[0] // patch[0], image[1] // patch[1]),
    )


def _section(content: Mapping[str, Any], key: str, file: Path) -> Mapping[str, Any]:
    section = content.get(key, content)
    if not isinstance(section, Mapping):
        raise WeightsError(f"{file}: {key} must be an object, got {section!r}. Copy the file again")
    return section


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that must contain an object.

    Raises
    ------
    WeightsError
        If it can't be read, or contains something else.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"), where=file.name)
    except (OSError, ValueError, DocumentError) as error:
        raise WeightsError(
            f"{file}: cannot be read as JSON ({type(error).__name__}: {error}). Copy it again"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: holds a {type(content).__name__}, not the settings of a model. Copy it again")
    return content


def _number(value: Any, file: Path, key: str, kind: type) -> Any:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    if not usable or kind(value) != value:
        raise WeightsError(f"{file}: {key} must be a positive number, got {value!r}. Copy the file again")
    return kind(value)


def _pair(value: Any, file: Path, key: str) -> tuple[int, int]:
    both = value if isinstance(value, list) and len(value) == 2 else [value, value]
    return _number(both[0], file, key, int), _number(both[1], file, key, int)
