"""Whether a feature set with the same settings was made by the same model, judged by its features of fixed images."""

from __future__ import annotations

from collections.abc import Sequence

from featbench.extract.errors import ModelError
from featbench.extract.model.repeatability import TOLERANCE, Summary, distance
from featbench.extract.model.taps import TappedTrunk
from featbench.pipelines.extraction.building import probe_layers
from featbench.pipelines.extraction.checking import CheckedPipeline
from featbench.store import LayerInfo, LayerSpec, Manifest

NOT_THE_SAME = "its features are not those that the model gives now"

WAYS_ON = (
    "The settings are the same, so the model's code, the version of a library, or weights that the code loads itself "
    "must have changed. Nothing was written. Go back to what the feature set was made with (`bench info` shows the "
    "versions), choose another --name, or replace it with --overwrite."
)


def changed_layers(checked: CheckedPipeline, manifest: Manifest) -> list[str]:
    """Say which layers of a feature set with the same settings differ from the model's now, and by how much."""
    recorded = probes_of(manifest)
    specs = {name: spec_of(name, manifest.layers[name]) for name in recorded}
    wanted = {spec.name: spec for spec in checked.pipeline.layers}
    redefined = {name for name, spec in specs.items() if wanted.get(name, spec) != spec}  # refused elsewhere
    try:
        others = _probe_others(checked, [spec for name, spec in specs.items() if name not in wanted])
    except ModelError as error:
        return [str(error)]
    current: dict[str, Summary] = {**checked.manifest.notes["probe"], **others}
    apart = {name: distance(recorded[name], current[name]) for name in recorded if name not in redefined}
    return [
        f"layer {name}: for a fixed image it differs by {relative:.2g} of its norm; {TOLERANCE:g} may come from "
        f"another processor or number of threads"
        for name, relative in apart.items()
        if relative > TOLERANCE
    ]


def probes_of(manifest: Manifest) -> dict[str, Summary]:
    """Return the recorded features of fixed images, for the layers that have them."""
    return {name: probe for name, probe in manifest.notes.get("probe", {}).items() if name in manifest.layers}


def spec_of(name: str, info: LayerInfo) -> LayerSpec:
    """Where a stored layer is tapped."""
    return LayerSpec.of(f"{name}={info.tap}" + (f":{info.pooling}" if info.pooling else ""))


def _probe_others(checked: CheckedPipeline, layers: Sequence[LayerSpec]) -> dict[str, Summary]:
    """Run the fixed images for layers that the pipeline does not extract."""
    if not layers:
        return {}
    taps = TappedTrunk(checked.model, name=checked.pipeline.model.trunk, layers=layers)
    taps.probe(checked.image)
    return probe_layers(taps, checked.transform, check=False)
