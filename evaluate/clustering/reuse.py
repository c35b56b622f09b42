"""Assigning the rows of one feature set to centroids that are kept in another."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featbench.evaluate.cluster_results import ClusterResult
from featbench.evaluate.clustering.assignment import Assignments, assign
from featbench.evaluate.clustering.cached import samples_of
from featbench.evaluate.clustering.evaluation import results_of
from featbench.evaluate.clustering.kept import (
    KeptClustering,
    LoadedClustering,
    choose_clusterings,
    load_clustering,
)
from featbench.evaluate.clustering.metrics import sampled_silhouettes
from featbench.evaluate.clustering.planning import plan_clusters
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import (
    Labelled,
    MatchedLabels,
    matched_labels,
    refuse_if_gone,
    with_rows,
    with_unlabelled,
)
from featbench.evaluate.features.layers import EvalLayer, short, stored_layer
from featbench.evaluate.neighbours.planning import Resources
from featbench.store import FeatureSet, load_cached, save_cached
from featbench.store.manifest import digest_of
from featbench.store.paths import CLUSTERS

ALGORITHM = 1
"""Part of the keys; raised when a change gives other numbers, or stores other arrays or facts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One layer to assign, and the kept clustering with the centroids."""

    layer: EvalLayer
    kept: KeptClustering


def tasks_of(
    features: FeatureSet, origin: FeatureSet, *, layers: Sequence[tuple[str, str]] = (), clusters: Sequence[int] = ()
) -> list[Task]:
    """Choose what to assign, and refuse what is impossible before anything takes long.

    Parameters
    ----------
    features : FeatureSet
        Whose rows are assigned.
    origin : FeatureSet
        Has the kept clusterings.
    layers : sequence of (str, str)
        Layers of `features`, each with the layer of `origin` whose clusters it is assigned to; by default all clustered
        layers that both have.
    clusters : sequence of int
        Numbers of clusters; all by default.

    Raises
    ------
    EvaluationError
        If `origin` has no such clustering, or its centroids have another dimension than the rows.
    StoreError
        If a layer of `features` does not exist, or is incomplete.
    """
    if layers:
        features.find_layers([name for name, _ in layers])
    kept = choose_clusterings(origin, layers=[theirs for _, theirs in layers], clusters=clusters)
    kept = _computed_there(origin, kept)
    shared = dict.fromkeys(each.layer for each in kept if each.layer in features.manifest.layers)
    pairs = dict.fromkeys(layers or [(name, name) for name in shared])
    if not pairs:
        named = list(dict.fromkeys(each.layer for each in kept))
        raise EvaluationError(
            f"{features.path} has none of the clustered layers of {origin.name} ({', '.join(named)}); it has "
            f"{', '.join(features.manifest.layers)}. If one of these is the same under another name, give "
            f"--layers {next(iter(features.manifest.layers))}={named[0]}"
        )
    tasks = []
    for name, theirs in pairs:
        layer = stored_layer(features, name)
        tasks += [Task(layer=layer, kept=each) for each in kept if each.layer == theirs]
    for task in tasks:
        _check_dimension(task, features, origin)
    return tasks


def assign_results(
    features: FeatureSet,
    origin: FeatureSet,
    tasks: Sequence[Task],
    *,
    labels: MatchedLabels | None = None,
    resources: Resources,
    ami: bool = True,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[ClusterResult]:
    """Assign all readable rows of both splits to kept centroids, and compare the clusters with the classes.

    Rows are scaled to length 1 if those that were clustered were. The assignments are kept in `features`.

    Parameters
    ----------
    features, origin : FeatureSet
        As for `tasks_of`.
    tasks : sequence of Task
        Result of `tasks_of`.
    labels : MatchedLabels, optional
        Result of `matched_labels`, to match, and to warn of rows that are left out, only once.
    resources : Resources
        What may be used; changes no result.
    ami : bool
        Whether to compute the adjusted mutual information.
    on_rows : callable
        Called with numbers of rows that are done.

    Returns
    -------
    list of ClusterResult
        One for each task and split.

    Raises
    ------
    EvaluationError
        If a clustering is damaged, a row holds NaN or infinity, or the memory does not suffice.
    """
    train, val, _ = with_unlabelled(features, labels or matched_labels(features, needed=False))
    results = []
    for task in tasks:
        start = time.perf_counter()
        loaded = load_clustering(origin, task.kept)
        arrays, facts = find_assignments(
            features, origin, task.layer, loaded, train, val, resources=resources, on_rows=on_rows
        )
        seconds = round(time.perf_counter() - start, 3)
        results += results_of(
            task.layer, arrays, facts, train, val, count=task.kept.num_clusters, samples={}, seed=facts["seed"],
            ami=ami, seconds=seconds,
        )  # fmt: skip
    return results


def find_assignments(
    features: FeatureSet,
    origin: FeatureSet,
    layer: EvalLayer,
    loaded: LoadedClustering,
    train: Labelled,
    val: Labelled,
    *,
    resources: Resources,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return cached assignments, or assign the rows and cache them; arrays and facts are those of a clustering."""
    kept, made_from = loaded.kept, [layer.made_from[each.split] for each in with_rows(train, val)]
    centroids = hashlib.sha256(np.ascontiguousarray(loaded.centroids_KD).data).hexdigest()
    digest = digest_of([ALGORITHM, "assigned", origin.name, kept.key, centroids, made_from])[:16]
    key = f"{short(layer.name)}-{kept.num_clusters}-{digest}"
    cached = load_cached(features, CLUSTERS, key)
    if cached and all(np.array_equal(cached[0][f"{each.split}_rows"], each.rows) for each in with_rows(train, val)):
        on_rows(len(train.rows) + len(val.rows))
        return cached
    start = time.perf_counter()
    found = {each.split: _assigned(layer, each, loaded, resources, on_rows) for each in with_rows(train, val)}
    arrays: dict[str, Any] = {"centroids": loaded.centroids_KD}
    for each in with_rows(train, val):
        of = found[each.split]
        arrays |= {
            each.split: of.clusters_N, f"{each.split}_rows": each.rows,
            f"{each.split}_distances": of.distances_N, f"{each.split}_others": of.others_N,
        }  # fmt: skip
    normalize, seed = bool(kept.settings["normalize"]), int(kept.settings["seed"])
    objective = float((found["train"].distances_N ** 2).sum())
    samples = samples_of(layer, train, val, normalize=normalize, seed=seed)
    facts = {
        "layer": layer.name, "clusters": kept.num_clusters, "made_from": made_from, "settings": dict(kept.settings),
        "objective": objective, "iterations": 0, "runs": [{"seed": seed, "objective": objective, "iterations": 0}],
        "certified": True, "engine": found["train"].engine, "num_reseeded": 0, "seed": seed,
        "silhouettes": sampled_silhouettes(samples, arrays),
        "num_empty": kept.num_clusters - len(np.unique(found["train"].clusters_N)),
        "seconds": round(time.perf_counter() - start, 3),
        "clusters_of": {
            "features": origin.name, "layer": kept.layer, "key": kept.key, "fingerprint": origin.manifest.fingerprint,
        },
    }  # fmt: skip
    refuse_if_gone(features)
    save_cached(features, CLUSTERS, key, arrays, facts)
    return arrays, facts


def _assigned(
    layer: EvalLayer, rows: Labelled, loaded: LoadedClustering, resources: Resources, on_rows: Callable[[int], None]
) -> Assignments:
    selection = layer.select(rows)
    plan = plan_clusters(
        resources, num_rows=len(rows.rows), rows_per_chunk=selection.layer.rows_per_chunk, dim=layer.dim,
        num_clusters=loaded.kept.num_clusters,
    )  # fmt: skip
    normalize = bool(loaded.kept.settings["normalize"])
    return assign(selection, loaded.centroids_KD, normalize=normalize, plan=plan, on_rows=on_rows)


def _computed_there(origin: FeatureSet, kept: Sequence[KeptClustering]) -> list[KeptClustering]:
    """Leave out assignments to the centroids of a third feature set."""
    computed = [each for each in kept if not each.clusters_of]
    if not computed:
        third = dict.fromkeys(str(each.clusters_of["features"]) for each in kept if each.clusters_of)
        raise EvaluationError(
            f"{origin.path}: it has only clusters of {', '.join(third)}. Give --clusters-of {next(iter(third))}"
        )
    return computed


def _check_dimension(task: Task, features: FeatureSet, origin: FeatureSet) -> None:
    if task.layer.dim != task.kept.dim:
        raise EvaluationError(
            f"{features.path}: rows of {task.layer.name} have {task.layer.dim:,} numbers, centroids of "
            f"{task.kept.layer} in {origin.name} have {task.kept.dim:,}. Only features of the same model and layer can "
            f"be assigned to them; choose layers with --layers."
        )
