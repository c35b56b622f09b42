"""Clusterings kept in a feature set: which there are, what each was made from, and what it holds.

Shape suffixes:  K clusters   D feature dimension   N rows of a split that were clustered
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.clustering.teamwork import STEP
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.current import CurrentDigests, labelled_or_readable_rows, splits_of
from featbench.evaluate.results import Record
from featbench.store import FeatureSet, list_cached, load_cached
from featbench.store.paths import CLUSTERS
from featbench.store.typing import Doubles, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptClustering:
    """A kept clustering whose arrays have not been read."""

    key: str
    layer: str
    num_clusters: int
    dim: int
    settings: Mapping[str, Any]
    """Settings of k-means, without those that an earlier version did not have."""

    objective: float
    iterations: int
    """Passes made."""

    certified: bool
    """Whether every row is known to be in the cluster of its nearest centroid."""

    seconds: float | None
    made_from: tuple[str, ...]
    """Digests of the layer in train and val, or in the only split that there is."""

    is_current: bool | None
    """Whether the layer is still the one that was clustered; None if there is no layer of that name any more."""

    clusters_of: Mapping[str, Any] | None
    """Origin of the centroids, if they are those of another feature set."""

    def record(self) -> Record:
        """Return what is known as a flat dict, but for the settings, for JSON."""
        return {
            "key": self.key,
            "layer": self.layer,
            "clusters": self.num_clusters,
            "dim": self.dim,
            "settings": dict(self.settings),
            "objective": self.objective,
            "iterations": self.iterations,
            "certified": self.certified,
            "seconds": self.seconds,
            "current": self.is_current,
            "clusters_of": self.clusters_of and dict(self.clusters_of),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitClusters:
    """Clusters of the rows of one split."""

    rows_N: Ints
    """Positions in the split, rising."""

    clusters_N: Ints
    distances_N: Doubles | None
    """Euclidean distance to the centroid; None if an earlier version kept none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedClustering:
    """A kept clustering with its arrays."""

    kept: KeptClustering
    centroids_KD: Doubles
    splits: Mapping[str, SplitClusters]


def kept_clusterings(features: FeatureSet, *, with_arrays: bool = False) -> tuple[list[KeptClustering], dict[str, str]]:
    """List the kept clusterings of a feature set.

    Parameters
    ----------
    features : FeatureSet
        Has the clusterings.
    with_arrays : bool
        Read their arrays, too, so that all damage is found.

    Returns
    -------
    clusterings : list of KeptClustering
        In order of the feature set's layers, then of the number of clusters.
    faults : dict of str to str
        By key: why others can't be used.
    """
    found, faults = [], {}
    digests = CurrentDigests(features)
    for cached in list_cached(features, CLUSTERS, with_arrays=with_arrays):
        if cached.fault is not None:
            faults[cached.key] = cached.fault
            continue
        if STEP in cached.facts:  # of k-means that is running, or was interrupted
            continue
        try:
            is_current = digests.agree(cached.facts["layer"], cached.facts["made_from"])
            found.append(_described(cached.key, cached.facts, cached.shapes, is_current=is_current))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            faults[cached.key] = f"facts of another version ({type(error).__name__}: {error})"
    order = {layer: position for position, layer in enumerate(features.manifest.layers)}
    found.sort(key=lambda kept: (order.get(kept.layer, len(order)), kept.layer, kept.num_clusters, kept.key))
    return found, faults


def choose_clusterings(
    features: FeatureSet, *, layers: Sequence[str] = (), clusters: Sequence[int] = ()
) -> list[KeptClustering]:
    """Choose the kept clusterings of some layers and numbers of clusters, of features that have not changed since.

    One of an earlier version is left out if the same clustering was computed again.

    Parameters
    ----------
    features : FeatureSet
        Has the clusterings.
    layers : sequence of str
        All by default.
    clusters : sequence of int
        Numbers of clusters; all by default.

    Raises
    ------
    EvaluationError
        If none is kept, or none of a layer or of a number of clusters, or only of features that have changed since.
    """
    kept, faults = kept_clusterings(features)
    current = [each for each in kept if each.is_current is not False and not is_superseded(each, kept)]
    if not current:
        raise EvaluationError(f"{features.path}: {_why_none(kept, faults)}. {_how_to_cluster(features)}")
    chosen = [each for each in current if not layers or each.layer in layers]
    missing = [layer for layer in layers if layer not in {each.layer for each in chosen}]
    missing_counts = [str(count) for count in clusters if count not in {each.num_clusters for each in chosen}]
    if missing or missing_counts:
        wanted = [f"layer {layer}" for layer in missing] + [f"{count} clusters" for count in missing_counts]
        raise EvaluationError(
            f"{features.path}: no clustering is kept with {', '.join(wanted)}. Kept: {_listed(current)}. "
            f"{_how_to_cluster(features)}"
        )
    return [each for each in chosen if not clusters or each.num_clusters in clusters]


def load_clustering(features: FeatureSet, kept: KeptClustering) -> LoadedClustering:
    """Read a kept clustering.

    Raises
    ------
    EvaluationError
        If it is damaged, or the rows of an earlier version's clustering are no longer known.
    """
    loaded = load_cached(features, CLUSTERS, kept.key)
    if loaded is None:
        raise EvaluationError(f"{features.path}: clustering {kept.key} is damaged or gone. {_how_to_cluster(features)}")
    arrays, _ = loaded
    try:
        splits = {split: _split(features, kept, split, arrays) for split in splits_of(features)}
        centroids_KD = arrays["centroids"].astype(np.float64)
        if centroids_KD.shape != (kept.num_clusters, kept.dim):
            raise ValueError(f"centroids have shape {centroids_KD.shape}")
    except (KeyError, ValueError) as error:
        raise EvaluationError(
            f"{features.path}: clustering {kept.key} can't be used ({error}). {_how_to_cluster(features)}"
        ) from error
    return LoadedClustering(kept=kept, centroids_KD=centroids_KD, splits=splits)


def centroid_index(loaded: LoadedClustering) -> bytes:
    """Make a flat faiss index of the centroids, in float32, and return it as faiss writes it to a file.

    Number i of the index is cluster i. Its scores are inner products if centroids and rows have length 1 (spherical
    k-means), and squared Euclidean distances otherwise.
    """
    import faiss

    kept = loaded.kept
    index = (faiss.IndexFlatIP if kept.settings.get("spherical") else faiss.IndexFlatL2)(kept.dim)
    index.add(loaded.centroids_KD.astype(np.float32))
    return bytes(faiss.serialize_index(index).data)


def is_superseded(kept: KeptClustering, others: Sequence[KeptClustering]) -> bool:
    """Whether a clustering of an earlier version was computed again, with the settings that there were."""

    def identity(each: KeptClustering) -> tuple[Any, ...]:
        had = {"normalize": True, "spherical": False, "init": "k-means++", "seed": 0} | dict(each.settings)
        named = [had[name] for name in ("normalize", "spherical", "init", "seed")]
        return each.layer, each.num_clusters, each.made_from, named, each.clusters_of

    return not kept.certified and any(each.certified and identity(each) == identity(kept) for each in others)


def _described(
    key: str, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, is_current: bool | None
) -> KeptClustering:
    num_clusters, dim = shapes["centroids"]
    seconds = facts.get("seconds")
    return KeptClustering(
        key=key,
        layer=str(facts["layer"]),
        num_clusters=num_clusters,
        dim=dim,
        settings=dict(facts["settings"]),
        objective=float(facts["objective"]),
        iterations=int(facts["iterations"]),
        certified=facts.get("certified") is True,
        seconds=None if seconds is None else float(seconds),
        made_from=tuple(map(str, facts["made_from"])),
        is_current=is_current,
        clusters_of=facts.get("clusters_of"),
    )


def _split(features: FeatureSet, kept: KeptClustering, split: str, arrays: Mapping[str, Any]) -> SplitClusters:
    clusters_N, rows_N = arrays[split], arrays.get(f"{split}_rows")
    if rows_N is None:
        rows_N = _rows_of_earlier_versions(features, split, len(clusters_N))
    num_rows = features.split(split).num_rows
    if clusters_N.dtype != np.int64 or clusters_N.shape != rows_N.shape:
        raise ValueError(f"{split} has {len(clusters_N):,} clusters for {len(rows_N):,} rows")
    if len(rows_N) and not (0 <= rows_N.min() <= rows_N.max() < num_rows and _all_in(clusters_N, kept.num_clusters)):
        raise ValueError(f"{split} has rows or clusters that do not exist")
    return SplitClusters(rows_N=rows_N, clusters_N=clusters_N, distances_N=arrays.get(f"{split}_distances"))


def _rows_of_earlier_versions(features: FeatureSet, split: str, num_clustered: int) -> Ints:
    """All readable rows, or those of them with a label, whichever there are as many of."""
    rows_N = np.flatnonzero(features.valid(split)).astype(np.int64)
    return rows_N if len(rows_N) == num_clustered else labelled_or_readable_rows(features, split)


def _all_in(values: Ints, size: int) -> bool:
    return bool(0 <= values.min() <= values.max() < size)


def _why_none(kept: Sequence[KeptClustering], faults: Mapping[str, str]) -> str:
    if kept:
        return f"its features have changed since they were clustered ({_listed(kept)})"
    if faults:
        return f"no clustering can be used: {'; '.join(f'{key}: {fault}' for key, fault in faults.items())}"
    return "no clustering is kept"


def _listed(kept: Sequence[KeptClustering]) -> str:
    return ", ".join(dict.fromkeys(f"{each.layer} with {each.num_clusters}" for each in kept))


def _how_to_cluster(features: FeatureSet) -> str:
    store = "" if features.path.parent == Path("features") else f" --store {features.path.parent}"
    return f"Cluster with `bench evaluate --features {features.name}{store} --clusters N`"
