"""k-means of a feature set's layers (cached) and how well the clusters match the classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluate import metrics
from evaluate.kmeans import Clustering, assign, kmeans
from evaluate.labels import Labelled, matched_labels
from evaluate.memory import free_memory, rows_per_block
from evaluate.neighbours.kept import ALGORITHM
from evaluate.views import Record, View, views_of
from store import FeatureSet, load_cached, save_cached
from store.manifest import digest_of


def evaluate_kmeans(
    features: FeatureSet,
    layers: Sequence[str | View],
    *,
    clusters: Sequence[int | str],
    normalize: bool = True,
    iterations: int = 100,
    restarts: int = 10,
    seed: int = 0,
    memory: int | None = None,
) -> list[Record]:
    """Cluster train by k-means and compare the clusters of both splits with the classes.

    Parameters
    ----------
    features : FeatureSet
        Has the layers, complete, in both splits.
    layers : sequence of str or View
        What to cluster.
    clusters : sequence of int or "classes"
        Numbers of clusters.
    normalize, iterations, restarts, seed
        As for `evaluate.kmeans.kmeans`.
    memory : int, optional
        Bytes; half of what is free by default.

    Returns
    -------
    list of dict
        One for each layer, number of clusters and split, with the metrics of `evaluate.metrics.cluster_metrics`.

    Raises
    ------
    EvaluationError
        If there are more clusters than rows.
    """
    train, val, _ = matched_labels(features)
    settings = {"normalize": normalize, "iterations": iterations, "restarts": restarts, "seed": seed}
    records = []
    for view in views_of(features, layers):
        for wanted in clusters:
            count = len(np.unique(train.labels)) if wanted == "classes" else int(wanted)
            start = time.perf_counter()
            rows = rows_per_block(memory or free_memory() // 2, dim=view.dim)
            clusters_of, facts = _find_clusters(features, view, count, train, val, settings, rows)
            seconds = round(time.perf_counter() - start, 3)
            for part in (train, val):
                records.append(
                    view.facts
                    | counts_of(train, val)
                    | {"task": "kmeans", "protocol": "kmeans", "split": part.split, "clusters": count}
                    | metrics.cluster_metrics(clusters_of[part.split], part.labels)
                    | {"objective": facts["objective"], "iterations": facts["iterations"], "seconds": seconds}
                )
    return records


def counts_of(train: Labelled, val: Labelled) -> Record:
    """What every record says of the rows that took part."""
    return {
        "num_train": len(train.rows),
        "num_val": len(val.rows),
        "num_left_out": train.left_out + val.left_out,
        "num_classes": len(np.union1d(train.labels, val.labels)),
    }


def _find_clusters(
    features: FeatureSet,
    view: View,
    count: int,
    train: Labelled,
    val: Labelled,
    settings: dict[str, Any],
    rows: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    made_from = [view.made_from[split] for split in ("train", "val")]
    key = f"{view.name}-{count}-{digest_of([ALGORITHM, count, settings, *made_from])[:16]}"
    kept = load_cached(features, "clusters", key)
    if kept:
        return kept
    data = {part.split: view.select(part) for part in (train, val)}
    found: Clustering = kmeans(data["train"], count, rows_per_block=rows, **settings)
    clusters_of = {
        split: assign(part, found, rows_per_block=rows, normalize=settings["normalize"]) for split, part in data.items()
    }
    facts = {
        "objective": found.objective,
        "iterations": found.iterations,
        "layer": view.name,
        "made_from": made_from,
    } | settings
    save_cached(features, "clusters", key, clusters_of | {"centroids": found.centroids_KD}, facts)
    return dict(clusters_of), facts
