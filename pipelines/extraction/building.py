"""The model of a pipeline: built, its weights loaded, its features of fixed images summarized; no data are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featbench.extract.model.code import digests, watching_code
from featbench.extract.model.repeatability import (
    Summary,
    check_repeatable,
    features_alone,
    fixed_images,
    summaries,
)
from featbench.extract.model.seeding import build_random
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import NEEDS_TRANSFORM_INPUT, build_trunk, code_of
from featbench.extract.transform import Transform
from featbench.extract.weights.loading import LoadedWeights, load_weights
from featbench.pipelines.config.pipeline import Pipeline
from featbench.store import LayerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A tapped model with its weights, on the CPU."""

    taps: TappedTrunk
    layers: dict[str, LayerInfo]
    weights: LoadedWeights
    probe: dict[str, Summary]
    """Summaries of the features of fixed images, by layer."""

    identity: Mapping[str, Any]
    """What identifies the model in the fingerprint: trunk, heads, options, and digests of the user's own code."""


def build_model(
    pipeline: Pipeline, options: Mapping[str, Any], transform: Transform, image: torch.Tensor
) -> BuiltModel:
    """Build the model of a pipeline, tap its layers and load its weights.

    Parameters
    ----------
    pipeline : Pipeline
        Model, weights and layers.
    options : mapping
        Result of `model_options`.
    transform : Transform
        Scales the fixed images.
    image : Tensor of shape (1, 3, H, W)
        An image of the size that the trunk gets.

    Raises
    ------
    ModelError
        If the model can't be built, a layer does not exist, or features are not repeatable.
    WeightsError
        If the weights can't be read, or don't fit.
    """
    build = build_trunk if pipeline.weights.random_seed is None else build_random
    with watching_code() as ran:
        trunk = build(
            pipeline.model.trunk,
            options,
            heads=pipeline.model.heads,
            seed=pipeline.weights.random_seed or 0,
            image_size=(image.shape[2], image.shape[3]),
        )
        taps = TappedTrunk(trunk, name=pipeline.model.trunk, layers=pipeline.layers)
        layers = taps.probe(image)
        loaded = load_weights(taps, image, pipeline.weights, options=options)
        probe = probe_layers(taps, transform, check=True)
        identity = _identity(pipeline, options, trunk, ran)
    return BuiltModel(taps=taps, layers=layers, weights=loaded, probe=probe, identity=identity)


def model_options(pipeline: Pipeline) -> dict[str, Any]:
    """Return the options of the trunk's constructor, with those that its weights imply."""
    options = dict(pipeline.model.options)
    if pipeline.weights.torchvision is not None and pipeline.model.trunk in NEEDS_TRANSFORM_INPUT:
        options.setdefault("transform_input", True)
    return options


def probe_layers(taps: TappedTrunk, transform: Transform, *, check: bool) -> dict[str, Summary]:
    """Summarize the features of fixed images of the size that the trunk gets.

    With `check`, a model is refused whose features are not repeatable.
    """
    height, width = taps.image_size
    images = transform.scale(fixed_images(height, width), torch.device("cpu"))
    features = check_repeatable(taps, images) if check else features_alone(taps, images)
    return summaries(features, (height, width))


def _identity(pipeline: Pipeline, options: Mapping[str, Any], trunk: nn.Module, ran: Iterable[Path]) -> dict[str, Any]:
    """What identifies the model: trunk, heads, options, and digests of the user's own code."""
    model: dict[str, Any] = {"trunk": pipeline.model.trunk, "options": dict(options)}
    if pipeline.model.heads:
        model["heads"] = [list(head) for head in pipeline.model.heads]
    code = code_of(pipeline.model.trunk)
    if code is not None:
        model["code_sha256"] = hashlib.sha256(code.read_bytes()).hexdigest()
        imported = digests(code, trunk, ran)
        if imported:
            model["code"] = imported
    return model
