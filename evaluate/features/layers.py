"""Layers to evaluate: stored in a feature set, derived from stored ones, or in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled
from featbench.evaluate.features.selection import Layer, Selection
from featbench.evaluate.results import LayerFacts
from featbench.store import FeatureSet

_MAX_NAME_BYTES = 100
"""Most bytes of a layer's name in a folder's name; file systems allow 255, including digests and suffixes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalLayer:
    """One layer of both splits."""

    name: str
    layers: Mapping[str, Layer]
    """By split."""

    made_from: Mapping[str, str]
    """By split: digest of everything that the features are computed from."""

    facts: LayerFacts
    """Description of the layer for results."""

    @property
    def dim(self) -> int:
        """Numbers in one row."""
        return next(iter(self.layers.values())).dim

    def select(self, labelled: Labelled) -> Selection:
        """Select the rows that are used."""
        return Selection(layer=self.layers[labelled.split], rows=labelled.rows)


def stored_layer(features: FeatureSet, layer: str) -> EvalLayer:
    """Open a stored layer; refuses one that is incomplete.

    Raises
    ------
    StoreError
        If there is no such layer, or it is incomplete or damaged.
    EvaluationError
        If its rows hold no number.
    """
    info = features.layer_info(layer)
    if not info.dim:
        raise EvaluationError(
            f"{features.path}: a row of {layer} has the shape {' x '.join(map(str, info.shape))}, so it holds no "
            f"number to evaluate. Extract or import the layer again."
        )
    splits = tuple(features.manifest.splits)
    return EvalLayer(
        name=layer,
        layers={split: features.layer(split, layer) for split in splits},
        made_from={split: features.digest(split, layer) for split in splits},
        facts=LayerFacts(
            features=features.name,
            layer=layer,
            tap=info.tap,
            pooling=info.pooling or "mean",
            dim=info.dim,
            weights=features.manifest.notes.get("weights", "unknown"),
            fingerprint=features.manifest.fingerprint,
        ),
    )


def layers_of(features: FeatureSet, layers: Sequence[str | EvalLayer]) -> list[EvalLayer]:
    """Open layers that are given by name."""
    return [layer if isinstance(layer, EvalLayer) else stored_layer(features, layer) for layer in layers]


def short(name: str) -> str:
    """Return a name that fits a folder: the name itself, or its beginning and a digest.

    Examples
    --------
    >>> short("res4+res5")
    'res4+res5'
    >>> len(short("+".join(["blocks.11.norm1"] * 12)))
    100
    """
    if len(name.encode()) <= _MAX_NAME_BYTES:
        return name
    beginning = name.encode()[: _MAX_NAME_BYTES - 17].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
