"""What the layers of a feature set are at present, to tell which cached results were computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from featbench.evaluate.features.derived import Recipe, digests_of, origins_of
from featbench.store import FeatureSet, StoreError
from featbench.store.paths import TRAIN, VAL
from featbench.store.typing import Ints


class CurrentDigests:
    """Digests of the layers, stored and derived, each computed once."""

    def __init__(self, features: FeatureSet) -> None:
        self._features = features
        self._splits = splits_of(features)
        self._known: dict[str, dict[str, str] | None] = {}

    def of(self, layer: str) -> list[Mapping[str, str]] | None:
        """Digests that a layer of this name can have, by split; None if it is neither stored nor can be derived."""
        if layer in self._features.manifest.layers:  # a single layer that is concatenated keeps its name
            found = [self._stored(layer), self._derived([layer], Recipe())]
        elif origins := [each for each in origins_of(layer) if self._has_all(each[0])]:
            found = [self._derived(*origin) for origin in origins]
        else:
            return None
        return [each for each in found if each is not None]

    def agree(self, layer: str, made_from: Sequence[str]) -> bool | None:
        """Whether a layer, stored or derived, has these digests; None if it is neither."""
        found = self.of(layer)
        if found is None:
            return None
        return any([each[split] for split in self._splits] == list(made_from) for each in found)

    def _has_all(self, layers: Sequence[str]) -> bool:
        return all(layer in self._features.manifest.layers for layer in layers)

    def _stored(self, layer: str) -> dict[str, str] | None:
        if layer not in self._known:
            try:
                self._known[layer] = {split: self._features.digest(split, layer) for split in self._splits}
            except StoreError:  # incomplete: being extracted again
                self._known[layer] = None
        return self._known[layer]

    def _derived(self, names: Sequence[str], recipe: Recipe) -> dict[str, str] | None:
        sources = [each for each in map(self._stored, names) if each is not None]
        if len(sources) < len(names):
            return None
        try:
            return digests_of(names, sources, recipe, labelled_or_readable_rows(self._features, TRAIN))
        except StoreError:  # damaged labels
            return None


def splits_of(features: FeatureSet) -> list[str]:
    """Splits that a feature set has, train first."""
    return [split for split in (TRAIN, VAL) if split in features.manifest.splits]


def labelled_or_readable_rows(features: FeatureSet, split: str) -> Ints:
    """Readable rows with a label, or all readable ones if none has a label."""
    valid = features.valid(split)
    is_labelled = valid & (features.labels(split) >= 0)
    return np.flatnonzero(is_labelled if is_labelled.any() else valid).astype(np.int64)
