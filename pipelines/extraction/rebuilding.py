"""The model that a feature set was made with, built again from its manifest, to run it on another image.

It must be the same model: weights, code and options have the digests that the manifest records, and its features of
fixed images are those that were recorded.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featbench.extract.data.images import read_picture
from featbench.extract.data.pictures import Picture
from featbench.extract.errors import ImageError, ModelError, WeightsError
from featbench.extract.model.repeatability import TOLERANCE, distance
from featbench.extract.model.trunks import code_of
from featbench.extract.passes import autocast
from featbench.extract.transform import Transform
from featbench.pipelines.config.pipeline import Pipeline, PipelineError, make_pipeline
from featbench.pipelines.config.trust import code_settings, refuse_code
from featbench.pipelines.extraction.building import BuiltModel, build_model, model_options
from featbench.pipelines.extraction.computing import form_of
from featbench.pipelines.extraction.devices import choose_device, make_repeatable, refuse_precision
from featbench.pipelines.extraction.forms import WEIGHTS, in_form
from featbench.pipelines.extraction.same_model import probes_of, spec_of
from featbench.store import FeatureSet, MismatchError
from featbench.store.manifest import changed, flattened
from featbench.store.typing import Floats

logger = logging.getLogger(__name__)

CODE = ("model.trunk", "weights.trust")
"""Settings that run code from outside this project."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuiltModel:
    """Computes one layer of a feature set for any image."""

    features: FeatureSet
    layer: str
    built: BuiltModel
    transform: Transform
    device: torch.device
    precision: str

    def __call__(self, picture: Picture) -> Floats:
        """Return the layer of one image, as it would be stored; of the layer's shape.

        Raises
        ------
        ImageError
            If the transform gives it another size than the feature set's images had.
        """
        pixels = self.transform.pixels(picture.image, name=picture.name)
        height, width = self.built.taps.image_size
        if pixels.shape[1:] != (height, width):
            raise ImageError(
                f"{picture.name}: after the transform it has {pixels.shape[2]} x {pixels.shape[1]} pixels, and the "
                f"images of {self.features.path} have {width} x {height}"
            )
        images = self.transform.scale(pixels[None], self.device)
        form = form_of(self.features.manifest, self.layer)
        precision = "float32" if form == WEIGHTS else self.precision  # weights that have the precision need no autocast
        with autocast(self.device, precision):
            trunk = in_form(self.built.taps, form, images, self.precision)
            values = trunk(images)[self.layer]
        stored: Floats = values[0].float().cpu().numpy().astype(self.features.manifest.dtype).astype(np.float32)
        return stored


def rebuild(
    features: FeatureSet,
    layer: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> RebuiltModel:
    """Build the model of a feature set, and make sure that it is still the same.

    Parameters
    ----------
    features : FeatureSet
        Made by `bench extract`.
    layer : str
        Layer to compute.
    weights : Path, optional
        Where the checkpoint is now; by default where it was.
    device : str
        As torch names it; `auto` is the first GPU, or else the CPU.
    trust_code : bool
        Run code that the manifest refers to.

    Raises
    ------
    MismatchError
        If the feature set has no model that can be built again, or the model is another one now.
    ModelError, WeightsError
        If code or weights are gone, or can't be used.
    """
    pipeline = _pipeline_of(features, layer, weights)
    _refuse_code(features, pipeline, trust_code)
    _refuse_what_is_gone(features, pipeline)
    made_from = features.manifest.made_from
    recorded: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in made_from["transform"].items()
    }
    transform = Transform(**recorded)
    size = _image_size(features, layer, transform)
    place = choose_device(device)
    precision = _precision(place, str(made_from["extract"]["precision"]))
    make_repeatable(place, precision, pipeline.extract.threads)
    built = build_model(pipeline, model_options(pipeline), transform, torch.zeros(1, 3, *size))
    _refuse_another_model(features, layer, built)
    built.taps.trunk.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return RebuiltModel(
        features=features, layer=layer, built=built, transform=transform, device=place, precision=precision
    )  # fmt: skip


def read_alike(features: FeatureSet, path: Path) -> Picture:
    """Decode an image file as the feature set's images were.

    Raises
    ------
    ImageError
        If it can't be read.
    MismatchError
        If the feature set was not made by `bench extract`.
    """
    decoder = recorded_pipeline(features).get("data", {}).get("decoder", "pillow")
    return read_picture(path, name=str(path), decoder=decoder)


def recorded_pipeline(features: FeatureSet) -> dict[str, Any]:
    """Return the settings that a feature set was extracted with.

    Raises
    ------
    MismatchError
        If it was not made by `bench extract`.
    """
    notes, made_from = features.manifest.notes, features.manifest.made_from
    if "pipeline" in notes:
        return dict(notes["pipeline"])
    if "state_sha256" in made_from.get("weights", {}):
        how = "it was made from a model in memory, by featbench.extract, which does not record how to build the model"
    else:
        how = "it was imported, so it has features but no model"
    raise MismatchError(f"{features.path}: {how}. Name an image of val; only its neighbours are known.")


def _pipeline_of(features: FeatureSet, layer: str, weights: Path | None) -> Pipeline:
    """Return the recorded pipeline, for one layer."""
    settings = recorded_pipeline(features)
    spec = spec_of(layer, features.layer_info(layer))
    overrides: dict[str, Any] = {"layers": [str(spec)]}
    if weights is not None:
        if settings.get("weights", {}).get("file") is None:
            raise WeightsError(f"--weights {weights}: {features.path} was not made with weights from a file")
        overrides["weights.file"] = str(weights)
    data = settings.get("data", {}) | {"name": None}  # what the catalogue said is recorded
    try:
        return make_pipeline(settings | {"data": data}, overrides, where=f"the manifest of {features.path}")
    except PipelineError as error:
        raise MismatchError(f"{error}\nAnother version of bench wrote it. Extract again with this one.") from error


def _refuse_code(features: FeatureSet, pipeline: Pipeline, trust_code: bool) -> None:
    """A feature set may come from someone else; what it says must not decide which code runs."""
    if not trust_code:
        refuse_code(
            {key: what for key, what in code_settings(pipeline).items() if key in CODE},
            why=f"{features.path}: to build its model again, code from outside bench has to run",
            cure="If you know it, add --trust-code.",
        )


def _refuse_what_is_gone(features: FeatureSet, pipeline: Pipeline) -> None:
    """Say where code and weights were looked for."""
    here = f"(looked for from {Path.cwd()})"
    file = pipeline.weights.file
    if file is not None and not file.exists():
        raise WeightsError(
            f"{file}: the weights that {features.path} was made with are gone "
            f"{'' if file.is_absolute() else here}".rstrip()
            + ". Say where they are now with --weights FILE"
        )
    trunk = pipeline.model.trunk
    code = code_of(trunk) if ":" in trunk else None
    if code is not None and not code.is_file():
        raise ModelError(
            f"{trunk}: the code of the model that {features.path} was made with is gone "
            f"{'' if code.is_absolute() else here}".rstrip()
            + ". Run this where it is"
        )


def _image_size(features: FeatureSet, layer: str, transform: Transform) -> tuple[int, int]:
    """Height and width of the images that the model got."""
    if transform.output_size is not None:
        return transform.output_size
    probe = probes_of(features.manifest).get(layer)
    if probe is None:
        raise MismatchError(f"{features.path}: an earlier version of bench made it, which did not record how large its "
                            f"images are. Extract it again.")  # fmt: skip
    height, width = probe["image"]
    return int(height), int(width)


def _precision(device: torch.device, recorded: str) -> str:
    """Return the recorded precision; float32 where the device has no tf32."""
    try:
        refuse_precision(device, recorded)
    except ModelError:
        logger.warning("the features are of precision %s, which %s does not have; this image's are float32",
                       recorded, device)  # fmt: skip
        return "float32"
    return recorded


def _refuse_another_model(features: FeatureSet, layer: str, built: BuiltModel) -> None:
    made_from = features.manifest.made_from
    changes = []
    for section, now in (("model", built.identity), ("weights", built.weights.identity)):
        found = changed(dict(flattened(made_from[section])), dict(flattened(now)))
        changes += [f"{section}.{key}: {before} then, {after} now" for key, before, after in found]
    recorded = probes_of(features.manifest).get(layer)
    if recorded is not None and not changes:
        apart = distance(recorded, built.probe[layer])
        if apart > TOLERANCE:
            changes.append(
                f"layer {layer}: for a fixed image it differs by {apart:.2g} of its norm, so the model's code or a "
                f"library has changed (`bench info {features.path}` shows the versions)"
            )
    if changes:
        raise MismatchError(
            f"{features.path}: its model is another one now, so the image can't be compared with its features:\n  "
            + "\n  ".join(changes)
            + "\nGo back to what it was made with, or extract again under another --name."
        )
