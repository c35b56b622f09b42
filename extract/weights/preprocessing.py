"""How images are prepared for published weights: transformers' `preprocessor_config.json`, timm's `pretrained_cfg`."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from pathlib import Path
from typing import Any

from featbench.extract.errors import WeightsError
from featbench.extract.weights.hub import OPEN_CLIP, hub_folder, read_json

_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_KNOWN = ("nearest", "bilinear", "bicubic")


def preprocessing_of(path: Path) -> tuple[dict[str, Any], Path] | None:
    """Settings of the transform for the weights in a folder, and the file that has them; None if there is none.

    Raises
    ------
    WeightsError
        If the file can't be read, or has settings that no transform here supports.
    """
    folder = path if path.is_dir() else hub_folder(path)
    if folder is None:
        return None
    file = folder / "preprocessor_config.json"
    try:
        if file.is_file():
            return of_transformers(read_json(file)), file
        config = folder / "config.json"
        content = read_json(config) if config.is_file() else {}
        if "architecture" in content:
            given = content.get("pretrained_cfg", content)
            return (of_timm(given), config) if "input_size" in given else None
        if not content and (folder / OPEN_CLIP).is_file():
            config = folder / OPEN_CLIP
            return of_open_clip(read_json(config)), config
    except (TypeError, ValueError, KeyError, ZeroDivisionError, OverflowError, AttributeError) as error:
        raise WeightsError(
            f"{file if file.is_file() else config}: cannot be used ({type(error).__name__}: {error}). "
            f"Copy it again, or remove it and set transform.resize, crop, interpolation, mean, std yourself"
        ) from error
    return None


def of_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a transform from timm's `pretrained_cfg`, as `timm.data.create_transform` reads them."""
    height, width = (int(side) for side in config["input_size"][1:])
    resized = [floor(side / float(config.get("crop_pct") or 0.875)) for side in (height, width)]
    if config.get("crop_mode", "center") == "border":
        raise ValueError("crop_mode 'border' pads images, which is not supported")
    square = height == width and config.get("crop_mode", "center") == "center"
    return {
        "resize": resized[0] if square else tuple(resized),
        "crop": height if height == width else (height, width),
        "interpolation": _interpolation(config.get("interpolation", "bicubic")),
        "mean": _three(config["mean"]),
        "std": _three(config["std"]),
    }


def of_open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a transform from `open_clip_config.json`, as `open_clip.image_transform_v2` reads them."""
    given = config.get("preprocess_cfg", {})
    height, width = _pair(given.get("size") or config["model_cfg"]["vision_cfg"].get("image_size", 224))
    mode = given.get("resize_mode", "shortest")
    if mode == "longest" or (mode == "shortest" and height != width):
        raise ValueError(f"resize_mode {mode!r} for {height} x {width} pixels is not supported")
    return {
        "resize": height if mode == "shortest" else (height, width),
        "crop": height if mode == "shortest" else None,
        "interpolation": _interpolation(given.get("interpolation", "bicubic")),
        "mean": _three(given.get("mean", _CLIP_MEAN)),
        "std": _three(given.get("std", _CLIP_STD)),
    }


def of_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a transform from transformers' `preprocessor_config.json`."""
    settings: dict[str, Any] = {}
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    if kind.startswith("EfficientNet"):
        raise ValueError(f"{kind} scales images twice, which is not supported")
    size = _enlarged(config.get("size", 224), kind, config)
    crop = config.get("crop_size", 224)
    if config.get("do_resize", True):
        settings["resize"] = _size(size)
        settings["interpolation"] = _interpolation(config.get("resample", 2))
    if kind.startswith("ConvN") and isinstance(size, Mapping) and "shortest_edge" in size:
        side = int(size["shortest_edge"])
        if side < 384:  # ConvNextImageProcessor.resize
            settings |= {"resize": int(side / float(config.get("crop_pct") or 224 / 256)), "crop": side}
        else:
            settings |= {"resize": (side, side), "crop": None}
    elif config.get("do_center_crop", "crop_size" in config):
        pair = _size(crop)
        settings["crop"] = pair[0] if isinstance(pair, tuple) and pair[0] == pair[1] else pair
        settings["rounding"] = "floor"
    elif isinstance(settings.get("resize"), tuple):
        settings["crop"] = None
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    is_normalized = config.get("do_normalize", True)
    mean = _three(config.get("image_mean", (0.5, 0.5, 0.5))) if is_normalized else (0.0, 0.0, 0.0)
    std = _three(config.get("image_std", (0.5, 0.5, 0.5))) if is_normalized else (1.0, 1.0, 1.0)
    scale = 1.0 if abs(255 * factor - 1) < 1e-6 else 255 * factor  # for bytes, whereas the transform divides by 255
    return settings | {"mean": tuple(v / scale for v in mean), "std": tuple(v / scale for v in std)}


def _enlarged(size: Any, kind: str, config: Mapping[str, Any]) -> Any:
    """Size to resize to, if `size` is that of the crop."""
    if not isinstance(size, Mapping) or "shortest_edge" not in size:
        return size
    side = int(size["shortest_edge"])
    if kind.startswith("Levit"):
        return {"shortest_edge": int(256 / 224 * side)}
    if kind.startswith("PoolFormer"):
        return {"shortest_edge": int(side / float(config.get("crop_pct") or 0.9))}
    return size


def _pair(value: Any) -> tuple[int, int]:
    height, width = value if isinstance(value, list | tuple) else (value, value)
    return int(height), int(width)


def _size(value: Any) -> int | tuple[int, int]:
    """Return (height, width); a single int is a square, as older ViT processors wrote it."""
    if isinstance(value, Mapping):
        if "shortest_edge" in value:
            return int(value["shortest_edge"])
        return int(value["height"]), int(value["width"])
    if isinstance(value, list | tuple):
        return int(value[0]), int(value[1])
    return int(value), int(value)


def _interpolation(value: Any) -> str:
    name = _PILLOW.get(value, str(value)) if isinstance(value, int) else str(value)
    if name == "random":
        name = "bilinear"
    if name not in _KNOWN:
        raise ValueError(f"interpolation {name!r} is not one of {', '.join(_KNOWN)}")
    return name


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
