"""Which transform an extraction takes: what the pipeline says, what belongs to the weights, ImageNet's usual."""

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
    """Choose the transform, and say in words where it is from if not from the pipeline alone.

    What belongs to the weights is what torchvision says of its own, `preprocessor_config.json` or timm's
    `pretrained_cfg` beside them, or timm's of the tag in `timm:NAME.TAG`. `resize` and `crop` go together there: if
    the pipeline says either, both are the pipeline's.

    Raises
    ------
    WeightsError
        If what is beside the weights can't be read, or is nothing that a transform does.
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
        texts.append(f"transform from {where}: {_listed(taken)}")
        logger.info("%s", texts[-1])
    if other:
        here = _listed({key: getattr(chosen, key) for key in other})
        texts.append(f"{where} says {_listed(other)}; the pipeline, which counts, says {here}")
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
    """Settings that certainly belong to the weights, and where they are from."""
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
        raise WeightsError(f"{trunk}: timm's preprocessing can't be followed: {error}") from error


def _of_timms_own_weights(pipeline: Pipeline, usual: dict[str, Any], said: set[str]) -> str:
    """Warn where timm prepares images for its own weights of this name otherwise: the file may be these, or may not."""
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
        f"timm prepares images for its own weights of {trunk.removeprefix(TIMM)} with "
        f"{_listed({key: theirs[key] for key in differ})}; here it is {_listed({key: usual[key] for key in differ})}. "
        f"If {pipeline.weights.file} is those weights: model.trunk={trunk}{'.' + tag if tag else ''}; otherwise "
        f"say the transform that it was trained with, transform.mean=[...] and so on"
    )
    logger.warning("%s", text)
    return text


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _listed(settings: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return "[" + ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value) + "]"
        return "null" if value is None else str(value)

    return ", ".join(f"{key}={shown(value)}" for key, value in settings.items())
