"""Clusterings that are kept in a feature set: centroids and clusters, read when they are used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from featbench.evaluate.clustering.kept import KeptClustering, LoadedClustering, load_clustering
from featbench.store import FeatureSet
from featbench.store.typing import Doubles, Ints


class StoredClustering:
    """One k-means clustering of a layer, as `bench evaluate --clusters` kept it; `features.clusterings` lists them."""

    def __init__(self, features: FeatureSet, kept: KeptClustering) -> None:
        self._features = features
        self._kept = kept
        self.layer = kept.layer
        self.clusters = kept.num_clusters
        self.objective = kept.objective
        self.iterations = kept.iterations

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of k-means; those that an earlier version did not have are missing."""
        return dict(self._kept.settings)

    @property
    def is_certified(self) -> bool:
        """Whether each row is known to be in the cluster of its nearest centroid."""
        return self._kept.certified

    @property
    def is_current(self) -> bool | None:
        """Whether the layer is still the one that was clustered; None if there is no layer of that name any more."""
        return self._kept.is_current

    @property
    def centroids(self) -> Doubles:
        """Shape (K, D), in units of the rows: of length 1, unless k-means was told not to normalize them."""
        return self._loaded.centroids_KD

    @property
    def assignments(self) -> Mapping[str, Ints]:
        """By split: the cluster of each row of `rows`, shape (n,)."""
        return {split: each.clusters_N for split, each in self._loaded.splits.items()}

    @property
    def rows(self) -> Mapping[str, Ints]:
        """By split: the rows that were clustered, rising."""
        return {split: each.rows_N for split, each in self._loaded.splits.items()}

    @property
    def distances(self) -> Mapping[str, Doubles | None]:
        """By split: Euclidean distance of each row to its centroid; None if an earlier version kept none."""
        return {split: each.distances_N for split, each in self._loaded.splits.items()}

    def __repr__(self) -> str:
        state = "" if self.is_current is not False else ", of features that have changed"
        return f"<StoredClustering of {self.layer!r}: {self.clusters} clusters, objective {self.objective:.6g}{state}>"

    @cached_property
    def _loaded(self) -> LoadedClustering:
        return load_clustering(self._features, self._kept)
