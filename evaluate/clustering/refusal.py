"""Refuse clusterings that can't be made, before anything that takes long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from featbench.evaluate.clustering.cached import ClusterRequest
from featbench.evaluate.clustering.evaluation import numbers_of_clusters
from featbench.evaluate.clustering.kmeans import refuse_equal_rows
from featbench.evaluate.clustering.planning import ClusterPlan
from featbench.evaluate.clustering.rows import RowSource, are_equal
from featbench.evaluate.clustering.seeding import read_centroids
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.features.labels import Labelled
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.neighbours.planning import Resources
from featbench.store import FeatureSet, has_cached
from featbench.store.paths import CLUSTERS


def refuse_impossible(
    features: FeatureSet,
    layers: Sequence[EvalLayer],
    train: Labelled,
    val: Labelled,
    *,
    clusters: Sequence[int | str],
    settings: KmeansSettings,
    num_seeds: int,
    resources: Resources,
) -> None:
    """Read each layer once that is not clustered yet, and refuse what k-means would refuse.

    Parameters
    ----------
    features : FeatureSet
        Where clusterings are cached.
    layers : sequence of EvalLayer
        Layers to cluster.
    train, val : Labelled
        Rows that will be clustered.
    clusters : sequence of int or "classes"
        Numbers of clusters.
    settings : KmeansSettings
        Their number of clusters is replaced.
    num_seeds : int
        Whole runs.
    resources : Resources
        Memory and device.

    Raises
    ------
    EvaluationError
        If there are more clusters than rows, or less than one; if initial centroids in a file do not fit; if k-means
        does not fit into the memory; or if a row holds NaN or infinity, or all are equal.
    """
    counts = numbers_of_clusters(clusters, train)
    for layer in layers:
        requests = [
            ClusterRequest(
                layer=layer, train=train, val=val, settings=replace(settings, num_clusters=count), num_seeds=num_seeds,
                resources=resources,
            )
            for count in counts
        ]  # fmt: skip
        requests = [request for request in requests if not has_cached(features, CLUSTERS, request.key())]
        for request in requests:
            plan = _planned(request)
        if requests:
            _refuse_rows(max(requests, key=lambda request: request.settings.num_clusters), plan)


def _planned(request: ClusterRequest) -> ClusterPlan:
    """Refuse what can be refused without reading the layer; returns the plan."""
    settings = request.settings
    if settings.init.endswith(".npy"):
        read_centroids(
            Path(settings.init), dim=request.layer.dim, num_clusters=settings.num_clusters,
            normalize=settings.normalize,
        )  # fmt: skip
    for labelled in request.splits:
        request.plan(labelled)
    return request.plan(request.train)


def _refuse_rows(request: ClusterRequest, plan: ClusterPlan) -> None:
    """Read all rows, and refuse NaN and infinity; rows of train that are all equal, too."""
    for labelled in request.splits:
        data = request.layer.select(labelled)
        source = RowSource(data, normalize=request.settings.normalize, plan=replace(plan, hold=False))
        lowest_D, highest_D = np.full(source.dim, np.inf), np.full(source.dim, -np.inf)
        for block in source.blocks():
            for piece in block.pieces():
                if not block.positions.start + piece.start or are_equal(lowest_D, highest_D):
                    exact_ND = block.exact(piece)
                    lowest_D = np.minimum(lowest_D, exact_ND.min(axis=0))
                    highest_D = np.maximum(highest_D, exact_ND.max(axis=0))
        if labelled is request.train:
            refuse_equal_rows(lowest_D, highest_D, data, request.settings)
