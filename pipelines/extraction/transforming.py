"""The transform of an extraction: from the pipeline, from what is saved with the weights, or ImageNet's usual one."""

from __future__ import annotations

import logging
from typing import Any

from featbench.extract.config import TransformConfig
from featbench.extract.errors import WeightsError
from featbench.extract.model.options import TIMM
from featbench.extract.model.trunks import timm_preprocessing
from featbench.extract.transform import Transform
from featbench.extract.weights.preprocessing import of_timm, preprocessing_of
from featbench.extract.weights.torchvision import torchvision_weights
from featbench.pipelines.config.pipeline import Pipeline

logger = logging.getLogger(__name__)

_GEOMETRY = ("resize", "crop")


def choose_transform(pipeline: Pipeline) -> tuple[Transform, str]:
    """Choose the transform, and say in words where it comes from, unless it is from the pipeline alone.

    Weights have a transform in torchvision's presets, in `preprocessor_config.json` or timm's `pretrained_cfg` beside
    them, or in timm by the tag in `timm:NAME.TAG`. `resize` and `crop` go together: if the pipeline sets either, both
    are the pipeline's.

    Raises
    ------
    WeightsError
        If the file beside the weights can't be read, or describes a transform that is not supported.
    """
    usual = (pipeline.transform or TransformConfig()).model_dump()
    said = pipeline.transform.model_fields_set if pipeline.transform else set()
    if pipeline.weights.torchvision is not None:
        return Transform(**usual | {key: value for key, value in _torchvision(pipeline).items() if key not in said}), ""
    found = _of_weights(pipeline)
    if found is None:
        return Transform(**usual), _of_timms_own_weights(pipeline, usual, said)
    theirs, where = found
    kept = {*said, *(_GEOMETRY if said & set(_GEOMETRY) else ())}
    chosen = Transform(**usual | {key: value for key, value in theirs.items() if key not in kept})
    taken = {key: value for key, value in theirs.items() if key not in kept}
    other = {key: value for key, value in theirs.items() if getattr(chosen, key) != _plain(value)}
    texts = []
    if taken:
        texts.append(f"transform from {where}: {_in_words(taken)}")
        logger.info("%s", texts[-1])
    if other:
        here = _in_words({key: getattr(chosen, key) for key in other})
        texts.append(f"{where} says {_in_words(other)}; the pipeline overrides it with {here}")
        logger.warning("%s", texts[-1])
    return chosen, "; ".join(texts)


def _torchvision(pipeline: Pipeline) -> dict[str, Any]:
    preset = torchvision_weights(pipeline.model.trunk, str(pipeline.weights.torchvision)).transforms()
    return {
        "resize": preset.resize_size[0],
        "crop": preset.crop_size[0],
        "interpolation": preset.interpolation.value,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
    }


def _of_weights(pipeline: Pipeline) -> tuple[dict[str, Any], str] | None:
    """Return settings that certainly belong to the weights, and where they come from."""
    if pipeline.weights.file is None:
        return None
    beside = preprocessing_of(pipeline.weights.file)
    if beside is not None:
        return beside[0], str(beside[1])
    trunk = pipeline.model.trunk
    if not trunk.startswith(TIMM) or "." not in trunk:
        return None
    own = timm_preprocessing(trunk)
    try:
        return (of_timm(own), f"timm, for {trunk.removeprefix(TIMM)}") if own else None
    except (TypeError, ValueError, KeyError) as error:
        raise WeightsError(f"{trunk}: timm's preprocessing is not supported: {error}") from error


def _of_timms_own_weights(pipeline: Pipeline, usual: dict[str, Any], said: set[str]) -> str:
    """Warn if timm preprocesses images differently for its own weights of this name, which the file may be."""
    trunk = pipeline.model.trunk
    own = timm_preprocessing(trunk) if trunk.startswith(TIMM) and pipeline.weights.file is not None else None
    if not own:
        return ""
    try:
        theirs = of_timm(own)
    except (TypeError, ValueError, KeyError):
        return ""
    differ = [key for key, value in theirs.items() if key not in said and usual[key] != _plain(value)]
    if not differ:
        return ""
    tag = str(own.get("tag") or "")
    text = (
        f"timm preprocesses images for its own weights of {trunk.removeprefix(TIMM)} with "
        f"{_in_words({key: theirs[key] for key in differ})}; here it is "
        f"{_in_words({key: usual[key] for key in differ})}. "
        f"If {pipeline.weights.file} is those weights: model.trunk={trunk}{'.' + tag if tag else ''}; otherwise "
        f"set the transform that it was trained with, transform.mean=[...] and so on"
    )
    logger.warning("%s", text)
    return text


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _in_words(settings: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return "[" + ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value) + "]"
        return "null" if value is None else str(value)

    return ", ".join(f"{key}={shown(value)}" for key, value in settings.items())
