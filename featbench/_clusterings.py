"""Clusterings that are kept in a feature set: centroids and clusters, read when they are used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from featbench._arrays import ArrayError, layers_of
from featbench.evaluate.clustering.assignment import assign
from featbench.evaluate.clustering.kept import KeptClustering, LoadedClustering, load_clustering
from featbench.evaluate.clustering.planning import plan_clusters
from featbench.evaluate.features.memory_layer import MemoryLayer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.memory import parse_memory
from featbench.evaluate.neighbours.planning import Resources
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

    def assign(self, features: object, *, memory: int | str | None = None) -> Ints:
        """Return the cluster of each row of an array or tensor: that of its nearest centroid, exact as float64 says.

        Parameters
        ----------
        features : array or tensor of shape (N, ...)
            Rows of the clustered layer's dimension D, of any length: they are scaled as those that were clustered.
        memory : int or str, optional
            Bytes, or a text such as "8GiB"; half of what is free by default.

        Returns
        -------
        ndarray of shape (N,), dtype=int64
            The lowest number of several centroids that are equally near.

        Raises
        ------
        BenchError
            If the rows have another dimension, or hold NaN or infinity.
        """
        (values,) = layers_of(features, split="the rows to assign").values()
        layer = MemoryLayer(values, key="the rows to assign")
        centroids_KD = self.centroids
        if layer.dim != centroids_KD.shape[1]:
            raise ArrayError(
                f"rows to assign have {layer.dim:,} numbers, centroids of {self.layer} have {centroids_KD.shape[1]:,}"
            )
        rows = Selection(layer=layer, rows=np.arange(len(values)))
        budget = parse_memory(memory) if isinstance(memory, str) else memory
        plan = plan_clusters(
            Resources(memory=budget), num_rows=len(rows), rows_per_chunk=layer.rows_per_chunk,
            dim=layer.dim, num_clusters=self.clusters,
        )  # fmt: skip
        normalize = bool(self.settings["normalize"])
        return assign(rows, centroids_KD, normalize=normalize, plan=plan).clusters_N

    def __repr__(self) -> str:
        state = "" if self.is_current is not False else ", of features that have changed"
        return f"<StoredClustering of {self.layer!r}: {self.clusters} clusters, objective {self.objective:.6g}{state}>"

    @cached_property
    def _loaded(self) -> LoadedClustering:
        return load_clustering(self._features, self._kept)
