"""k-means of a feature set's layers (cached), and how well the clusters match the classes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from featbench.evaluate.cluster_results import ClusterMetrics, ClusterResult, KmeansRun, Silhouettes
from featbench.evaluate.clustering.cached import ClusterRequest, Kept, Unwatched, Watcher, find_clusters, samples_of
from featbench.evaluate.clustering.metrics import (
    cluster_metrics,
    cluster_sizes,
    is_alone,
    labelled_contingency,
    sampled_silhouettes,
    simplified_silhouette,
)
from featbench.evaluate.clustering.settings import DEFAULT_SETTINGS, KmeansSettings
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import (
    Labelled,
    MatchedLabels,
    counts_of,
    matched_labels,
    with_rows,
    with_unlabelled,
)
from featbench.evaluate.features.layers import EvalLayer, layers_of
from featbench.evaluate.neighbours.planning import DEFAULT, Resources
from featbench.evaluate.results import Record
from featbench.store import FeatureSet
from featbench.store.typing import Doubles, Ints

logger = logging.getLogger(__name__)

FindClusters = Callable[[ClusterRequest], Kept]


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
        Has the layers, complete, in each of its splits; clusterings are cached there.
    layers : sequence of str or EvalLayer
        Layers to cluster.
    clusters : sequence of int or "classes"
        Numbers of clusters.
    labels : MatchedLabels, optional
        Result of `matched_labels`, to match, and to warn of rows that are left out, only once.
    **settings
        As for `cluster`: `settings`, `num_seeds`, `ami`, `resources`, `watcher`.

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
    settings: KmeansSettings = DEFAULT_SETTINGS,
    num_seeds: int = 1,
    ami: bool = True,
    resources: Resources = DEFAULT,
    watcher: Watcher | None = None,
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
        Finds a clustering: `find_clusters` of a feature set, or `search_clusters`, which has no cache.
    settings : KmeansSettings
        Their number of clusters is replaced.
    num_seeds : int
        Whole runs, with consecutive seeds; the best one counts.
    ami : bool
        Whether to compute the adjusted mutual information.
    resources : Resources
        Memory and device; they change no result.
    watcher : Watcher, optional
        Told how far k-means is.
    """
    results = []
    for layer in layers:
        samples: dict[str, tuple[Ints, Doubles]] = {}
        for count in numbers_of_clusters(clusters, train):
            start = time.perf_counter()
            request = ClusterRequest(
                layer=layer, train=train, val=val, settings=replace(settings, num_clusters=count),
                num_seeds=num_seeds, resources=resources, watcher=watcher or Unwatched(),
            )  # fmt: skip
            arrays, facts = find(request)
            seconds = round(time.perf_counter() - start, 3)
            if "silhouettes" not in facts:
                samples = samples or samples_of(layer, train, val, normalize=settings.normalize, seed=settings.seed)
            results += results_of(
                layer, arrays, facts, train, val, count=count, samples=samples, seed=settings.seed, ami=ami,
                seconds=seconds,
            )  # fmt: skip
    return results


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
    origin = facts.get("clusters_of", {})
    sampled = facts.get("silhouettes") or sampled_silhouettes(samples, arrays)
    results = []
    for labelled in with_rows(train, val):
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
                clusters_of=origin.get("features"),
                clustering=origin.get("key"),
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
        labelled.split: labelled_contingency(clusters_of[labelled.split], labelled.labels)
        for labelled in with_rows(train, val)
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
    lacking = [labelled.split for labelled in with_rows(train, val) if not labelled.num_labelled]
    if lacking:
        text = "%s: no row of %s has a label, so k-means has no label metrics there"
        logger.warning(text, name, " and ".join(lacking))
