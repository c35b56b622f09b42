"""k-means of a feature set's layers (cached), and how well the clusters match the classes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from featbench.evaluate.clustering.kmeans import Clustering, assign, kmeans
from featbench.evaluate.clustering.metrics import (
    cluster_metrics,
    cluster_sizes,
    is_alone,
    labelled_contingency,
    sample_of,
    sampled_silhouettes,
    simplified_silhouette,
)
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import (
    Labelled,
    MatchedLabels,
    counts_of,
    matched_labels,
    refuse_if_gone,
    with_unlabelled,
)
from featbench.evaluate.features.layers import EvalLayer, layers_of, short
from featbench.evaluate.memory import free_memory, rows_per_block
from featbench.evaluate.results import (
    ClusterMetrics,
    ClusterResult,
    KmeansRun,
    Record,
    Silhouettes,
)
from featbench.store import FeatureSet, load_cached, save_cached
from featbench.store.manifest import digest_of
from featbench.store.paths import CLUSTERS
from featbench.store.typing import Doubles, Ints

logger = logging.getLogger(__name__)

ALGORITHM = 6
"""Part of the keys; raised when a change gives other numbers, or stores other arrays or facts."""

OLDER_ALGORITHM = 5
"""Gives the same clusters if rows are not scaled, or all have ordinary lengths."""

FindClusters = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


def evaluate_kmeans(features: FeatureSet, layers: Sequence[str | EvalLayer], **settings: Any) -> list[Record]:
    """Cluster train by k-means and return flat records; see `kmeans_results`."""
    return [result.record() for result in kmeans_results(features, layers, **settings)]


def kmeans_results(
    features: FeatureSet,
    layers: Sequence[str | EvalLayer],
    *,
    clusters: Sequence[int | str],
    labels: MatchedLabels | None = None,
    **settings: Any,
) -> list[ClusterResult]:
    """Cluster train by k-means and compare the clusters of both splits with the classes.

    All readable rows are clustered, with a label or not.

    Parameters
    ----------
    features : FeatureSet
        Has the layers, complete, in both splits; clusterings are cached there.
    layers : sequence of str or EvalLayer
        Layers to cluster.
    clusters : sequence of int or "classes"
        Numbers of clusters.
    labels : MatchedLabels, optional
        Result of `matched_labels`, to match, and to warn of rows that are left out, only once.
    **settings
        As for `cluster`: `normalize`, `iterations`, `restarts`, `seed`, `ami`, `memory`.

    Returns
    -------
    list of ClusterResult
        One for each layer, number of clusters and split.

    Raises
    ------
    EvaluationError
        If there are more clusters than rows, or the number of classes is asked for and train has no labels.
    """
    train, val, _ = with_unlabelled(features, labels or matched_labels(features, needed=False))
    if clusters:
        _warn_without_labels(features.name, train, val)
    find = partial(find_clusters, features)
    return cluster(layers_of(features, layers), train, val, clusters=clusters, find=find, **settings)


def cluster(
    layers: Sequence[EvalLayer],
    train: Labelled,
    val: Labelled,
    *,
    clusters: Sequence[int | str],
    find: FindClusters,
    normalize: bool = True,
    iterations: int = 100,
    restarts: int = 10,
    seed: int = 0,
    ami: bool = True,
    memory: int | None = None,
) -> list[ClusterResult]:
    """Cluster layers of a feature set, or in memory.

    Parameters
    ----------
    layers : sequence of EvalLayer
        The layers.
    train, val : Labelled
        Rows to cluster, with their class; those without one (-1) count in no label metric.
    clusters : sequence of int or "classes"
        Numbers of clusters.
    find : callable
        `find_clusters` of a feature set, or `search_clusters`, which has no cache.
    normalize, iterations, restarts, seed
        As for `featbench.evaluate.clustering.kmeans.kmeans`.
    ami : bool
        Whether to compute the adjusted mutual information.
    memory : int, optional
        Bytes; half of what is free by default.
    """
    counts = numbers_of_clusters(clusters, train)
    settings = {"normalize": normalize, "iterations": iterations, "restarts": restarts, "seed": seed}
    results = []
    for layer in layers:
        samples: dict[str, tuple[Ints, Doubles]] = {}
        for count in counts:
            start = time.perf_counter()
            rows = rows_per_block(memory or free_memory() // 2, dim=layer.dim)
            arrays, facts = find(layer, count, train, val, settings, rows)
            seconds = round(time.perf_counter() - start, 3)
            if "silhouettes" not in facts:
                samples = samples or samples_of(layer, train, val, normalize=normalize, seed=seed)
            results += results_of(
                layer, arrays, facts, train, val, count=count, samples=samples, seed=seed, ami=ami, seconds=seconds
            )
    return results


def samples_of(
    layer: EvalLayer, train: Labelled, val: Labelled, *, normalize: bool, seed: int
) -> dict[str, tuple[Ints, Doubles]]:
    """Read a sample of the rows of each split, for the exact silhouette."""
    return {
        labelled.split: sample_of(layer.select(labelled), normalize=normalize, seed=seed) for labelled in (train, val)
    }


def results_of(
    layer: EvalLayer,
    arrays: Mapping[str, Any],
    facts: Mapping[str, Any],
    train: Labelled,
    val: Labelled,
    *,
    count: int,
    samples: Mapping[str, tuple[Ints, Doubles]],
    seed: int,
    ami: bool,
    seconds: float,
) -> list[ClusterResult]:
    """Describe one clustering: one result for each split.

    Parameters
    ----------
    layer, train, val
        What was clustered.
    arrays, facts
        The clustering, as it is cached.
    count : int
        Number of clusters.
    samples : mapping
        Result of `samples_of`; not used if the facts have the `silhouettes` of samples.
    seed : int
        Of the run, if the facts do not say it.
    ami : bool
        Whether to compute the adjusted mutual information.
    seconds : float
        What it took to find.
    """
    metrics = _against_classes(arrays, train, val, count=count, ami=ami)
    sampled = facts.get("silhouettes") or sampled_silhouettes(samples, arrays)
    results = []
    for labelled in (train, val):
        clusters_N, distances_N = arrays[labelled.split], arrays.get(f"{labelled.split}_distances")
        results.append(
            ClusterResult(
                layer=layer.facts,
                counts=counts_of(train, val),
                split=labelled.split,
                clusters=count,
                seed=facts.get("seed", seed),
                num_labelled=labelled.num_labelled,
                metrics=metrics[labelled.split],
                sizes=cluster_sizes(clusters_N, count),
                silhouettes=_silhouettes(arrays, labelled.split, sampled[labelled.split]),
                objective=facts["objective"],
                mean_squared_distance=None if distances_N is None else float((distances_N**2).mean()),
                iterations=facts["iterations"],
                runs=_runs(facts, seed),
                num_reseeded=facts.get("num_reseeded"),
                certified=facts.get("certified", False),
                engine=facts.get("engine"),
                seconds=seconds,
                assignments=clusters_N,
            )
        )
    return results


def numbers_of_clusters(wanted: Sequence[int | str], train: Labelled) -> list[int]:
    """Resolve the numbers of clusters, and refuse impossible ones before anything takes long.

    Raises
    ------
    EvaluationError
        As `evaluate_kmeans`.
    """
    if "classes" in wanted and not train.num_labelled:
        raise EvaluationError(
            "as many clusters as classes are wanted, but no row of train has a label: give a number, such as 100"
        )
    num_classes = len(np.unique(train.labels[train.labels >= 0]))
    counts = [num_classes if each == "classes" else int(each) for each in wanted]
    refused = [count for count in counts if not 1 <= count <= len(train.rows)]
    if refused:
        raise EvaluationError(
            f"clusters must be in [1, {len(train.rows)}], the rows to cluster; got {', '.join(map(str, refused))}"
        )
    return counts


def _against_classes(
    clusters_of: Mapping[str, Ints], train: Labelled, val: Labelled, *, count: int, ami: bool
) -> dict[str, ClusterMetrics | None]:
    """Label metrics of each split; None for one without labels. Clusters are named by the majority of train."""
    tables = {
        labelled.split: labelled_contingency(clusters_of[labelled.split], labelled.labels) for labelled in (train, val)
    }
    class_of_cluster_K = tables["train"].majority_classes(count) if tables["train"] else None
    return {
        split: cluster_metrics(table, class_of_cluster_K=class_of_cluster_K, ami=ami) if table else None
        for split, table in tables.items()
    }


def _silhouettes(arrays: Mapping[str, Any], split: str, sampled: Mapping[str, Any]) -> Silhouettes:
    """Silhouettes of one split; a row of train that is its cluster's only one is the centroid itself."""
    clusters_N, distances_N, others_N = (arrays.get(f"{split}{suffix}") for suffix in ("", "_distances", "_others"))
    simplified = None
    if clusters_N is not None and distances_N is not None and others_N is not None:
        alone_N = is_alone(clusters_N) if split == "train" else None
        simplified = simplified_silhouette(distances_N, others_N, is_alone_N=alone_N)
    return Silhouettes(simplified=simplified, sampled=sampled["silhouette"], num_sampled=sampled["num_rows"])


def _runs(facts: Mapping[str, Any], seed: int) -> tuple[KmeansRun, ...]:
    """All runs; older clusterings are of one, and hold its facts as those of the clustering."""
    return tuple(
        KmeansRun(seed=run.get("seed", seed), objective=run["objective"], iterations=run["iterations"])
        for run in facts.get("runs") or [facts]
    )


def _warn_without_labels(name: str, train: Labelled, val: Labelled) -> None:
    lacking = [labelled.split for labelled in (train, val) if not labelled.num_labelled]
    if lacking:
        text = "%s: no row of %s has a label, so k-means has no label metrics there"
        logger.warning(text, name, " and ".join(lacking))


def find_clusters(
    features: FeatureSet,
    layer: EvalLayer,
    count: int,
    train: Labelled,
    val: Labelled,
    settings: dict[str, Any],
    rows: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a cached clustering, or compute and cache it.

    Returns
    -------
    clusters_of : dict of str to ndarray
        Cluster of each selected row, by split.
    facts : dict
        With `objective` and `iterations`.
    """
    made_from = [layer.made_from[split] for split in ("train", "val")]

    def key_of(algorithm: int) -> str:
        return f"{short(layer.name)}-{count}-{digest_of([algorithm, count, settings, *made_from])[:16]}"

    def load(key: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        kept = load_cached(features, CLUSTERS, key)
        return kept if kept and _has_its_form(*kept, count=count, both=(train, val)) else None

    is_scaled = settings["normalize"]
    key = key_of(ALGORITHM if is_scaled else OLDER_ALGORITHM)
    if kept := load(key):
        return kept
    older = load(key_of(OLDER_ALGORITHM)) if is_scaled else None
    if older and all(layer.select(labelled).has_ordinary_lengths(rows) for labelled in (train, val)):
        arrays, facts = older
    else:
        arrays, facts = search_clusters(layer, count, train, val, settings, rows)
        facts |= {"layer": layer.name, "made_from": made_from, "settings": settings}
    refuse_if_gone(features)
    save_cached(features, CLUSTERS, key, arrays, facts)
    return arrays, facts


def search_clusters(
    layer: EvalLayer, count: int, train: Labelled, val: Labelled, settings: dict[str, Any], rows: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute a clustering without a cache; returns what `find_clusters` does, with the `centroids`."""
    data = {labelled.split: layer.select(labelled) for labelled in (train, val)}
    found: Clustering = kmeans(data["train"], count, rows_per_block=rows, **settings)
    clusters_of = {
        split: assign(selection, found, rows_per_block=rows, normalize=settings["normalize"])
        for split, selection in data.items()
    }
    samples = samples_of(layer, train, val, normalize=settings["normalize"], seed=settings["seed"])
    silhouettes = sampled_silhouettes(samples, clusters_of)
    facts = {"objective": found.objective, "iterations": found.iterations, "silhouettes": silhouettes}
    return clusters_of | {"centroids": found.centroids_KD}, facts


def _has_its_form(arrays: dict[str, Any], facts: dict[str, Any], *, count: int, both: Sequence[Labelled]) -> bool:
    """Whether cached arrays and facts are a clustering of these rows."""
    return (
        isinstance(facts.get("objective"), float)
        and isinstance(facts.get("iterations"), int)
        and all(
            labelled.split in arrays
            and arrays[labelled.split].shape == labelled.rows.shape
            and arrays[labelled.split].dtype == np.int64
            and 0 <= arrays[labelled.split].min() <= arrays[labelled.split].max() < count
            for labelled in both
        )
    )
