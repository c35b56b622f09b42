"""Kept clusterings: size, classes and purity of their clusters, and the images that are nearest to each centroid.

Shape suffixes:  N clustered rows of train   K clusters   C classes
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from featbench.evaluate.clustering.kept import (
    KeptClustering,
    LoadedClustering,
    choose_clusterings,
    kept_clusterings,
    load_clustering,
)
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.results import Record
from featbench.pipelines.report.evaluations import Evaluated, Source
from featbench.pipelines.report.pictures import Pictures
from featbench.store.typing import Ints

logger = logging.getLogger(__name__)

MOST_PICTURES = 640
"""Images of all clusters together."""

IMAGES = 10
"""Images of one cluster."""

MOST_CLUSTERS, FEWEST_CLUSTERS = 60, 6
CLASSES = 5
"""Largest classes of a cluster that are listed."""

METRICS = ("nmi", "ami", "ari", "purity", "hungarian", "many_to_one")
"""Keys of recorded numbers that are shown."""


def clusterings_of(source: Source, layers: Collection[str]) -> dict[str, list[LoadedClustering]]:
    """Load the kept clusterings of some layers, by layer; a damaged one is left out with a warning."""
    features = source.features
    for key, fault in kept_clusterings(features)[1].items():
        logger.warning("%s: the report is without clustering %s: %s", features.name, key, fault)
    loaded: dict[str, list[LoadedClustering]] = {}
    with suppress(EvaluationError):  # there is none
        for each in choose_clusterings(features):
            if each.layer not in layers:
                continue
            try:
                loaded.setdefault(each.layer, []).append(load_clustering(features, each))
            except EvaluationError as error:
                logger.warning("the report is without a clustering: %s", error)
    return loaded


def clusters_content(
    evaluated: Sequence[Evaluated], loaded: Mapping[int, Sequence[LoadedClustering]], pictures: Pictures
) -> list[dict[str, Any]]:
    """Describe clusterings: those of the view of each number."""
    number = sum(len(each) for each in loaded.values())
    if not number:
        return []
    most = max(FEWEST_CLUSTERS, min(MOST_CLUSTERS, MOST_PICTURES // (number * IMAGES)))
    return [
        _clustering(view, evaluated[view].view.source, each, most, pictures)
        for view, clusterings in loaded.items()
        for each in clusterings
    ]


def _clustering(view: int, source: Source, loaded: LoadedClustering, most: int, pictures: Pictures) -> dict[str, Any]:
    kept, train = loaded.kept, loaded.splits["train"]
    labels_N = source.labels.train.by_row(source.features.split("train").num_rows)[train.rows_N]
    sizes_K = np.bincount(train.clusters_N, minlength=kept.num_clusters)
    val = loaded.splits.get("val")
    val_sizes = None if val is None else np.bincount(val.clusters_N, minlength=kept.num_clusters).tolist()
    shown = np.argsort(-sizes_K, kind="stable")[:most]
    return {
        "view": view,
        "name": f"{kept.num_clusters:,} clusters",
        "count": kept.num_clusters,
        "metrics": _metrics(kept, source.recorded),
        "sizes": sizes_K.tolist() if kept.num_clusters <= 20_000 else [],
        "clusters": [
            {
                "number": int(number), "size": int(sizes_K[number]),
                "val": None if val_sizes is None else val_sizes[number],
                **_classes(labels_N[train.clusters_N == number]),
                "places": [pictures.place(source, "train", row) for row in _central(loaded, int(number))],
            }
            for number in shown
            if sizes_K[number]
        ],
    }  # fmt: skip


def _classes(labels_N: Ints) -> dict[str, Any]:
    """Largest classes of a cluster with their rows, and the fraction of the labelled rows in the largest."""
    known = labels_N[labels_N >= 0]
    if not len(known):
        return {"classes": [], "purity": None, "others": 0}
    classes, counts = np.unique(known, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {
        "classes": [[int(classes[place]), int(counts[place])] for place in order[:CLASSES]],
        "purity": round(float(counts[order[0]] / len(known)), 4),
        "others": max(0, len(order) - CLASSES),
    }


def _central(loaded: LoadedClustering, number: int) -> list[int]:
    """Rows of train that are nearest to the centroid; the first ones if distances are not kept."""
    train = loaded.splits["train"]
    members = np.flatnonzero(train.clusters_N == number)
    if train.distances_N is not None:
        members = members[np.argsort(train.distances_N[members], kind="stable")]
    return [int(row) for row in train.rows_N[members[:IMAGES]]]


def _metrics(kept: KeptClustering, recorded: Sequence[Record]) -> list[list[Any]]:
    """Numbers that an evaluation recorded of this clustering: split, metric, value."""
    ours = [
        record
        for record in recorded
        if record["task"] == "kmeans"
        and record.get("layer") == kept.layer
        and record.get("clusters") == kept.num_clusters
        and record.get("objective") == kept.objective
    ]
    latest = {record.get("split"): record for record in ours}
    return [
        [split, name, record[name]]
        for split, record in latest.items()
        for name in METRICS
        if isinstance(record.get(name), float)
    ]
