"""How well clusters match classes, how far apart they are, and how large.

Label metrics are computed from one sparse contingency table of each split. Silhouettes need no labels.

Shape suffixes:  N rows   K clusters   D feature dimension
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from featbench.evaluate.cluster_results import ClusterMetrics, ClusterSizes
from featbench.evaluate.clustering.contingency import (
    Contingency,
    Information,
    PairCounts,
    adjusted_mutual_information,
    adjusted_rand_index,
    fowlkes_mallows_index,
    largest_matching,
    normalized_mutual_information,
)
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.metrics import fraction
from featbench.store.typing import Bools, Doubles, Ints

SAMPLED_ROWS = 2048
"""Most rows of a sample for the exact silhouette, which needs the distances of all pairs."""

_SAMPLE_BYTES = 2**27
"""Most bytes of such a sample: fewer rows than `SAMPLED_ROWS` if they have more than 8,192 dimensions."""

_BLOCK_BYTES = 2**25
"""Bytes of the blocks in which rows are read to choose some of them."""


def cluster_metrics(table: Contingency, *, class_of_cluster_K: Ints | None = None, ami: bool = True) -> ClusterMetrics:
    """Compute how well a clustering matches the classes.

    Parameters
    ----------
    table : Contingency
        Of the labelled rows of one split.
    class_of_cluster_K : ndarray of shape (K,), dtype=int64, optional
        Class that each cluster stands for, -1 for none, for the many-to-one accuracy: `majority_classes` of train.
    ami : bool
        Whether to compute the adjusted mutual information, which takes longest.

    References
    ----------
    Rosenberg and Hirschberg, "V-measure: a conditional entropy-based external cluster evaluation measure", EMNLP 2007.
    Kuhn, "The Hungarian method for the assignment problem", 1955. Johnson, "Why doesn't EM find good HMM POS-taggers?",
    EMNLP 2007 (one-to-one and many-to-one accuracy). Manning et al., "Introduction to information
    retrieval", 2008, sec. 16.3 (purity). Others: see `featbench.evaluate.clustering.contingency`.

    Examples
    --------
    >>> table = Contingency.of(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))
    >>> cluster_metrics(table, class_of_cluster_K=np.array([1, 1])).many_to_one.value
    0.5
    """
    information, pairs, num_rows = Information.of(table), PairCounts.of(table), table.num_rows
    homogeneity = information.mutual / information.of_classes if information.of_classes else 1.0
    completeness = information.mutual / information.of_clusters if information.of_clusters else 1.0
    both = homogeneity + completeness
    return ClusterMetrics(
        nmi=normalized_mutual_information(information),
        ami=adjusted_mutual_information(table, information) if ami else None,
        ari=adjusted_rand_index(pairs),
        homogeneity=homogeneity,
        completeness=completeness,
        v_measure=2 * homogeneity * completeness / both if both else 0.0,
        fowlkes_mallows=fowlkes_mallows_index(pairs),
        hungarian=fraction(largest_matching(table), num_rows),
        many_to_one=None
        if class_of_cluster_K is None
        else fraction(table.num_in_classes(class_of_cluster_K), num_rows),
        purity=table.num_in_majority() / num_rows,
    )


def labelled_contingency(clusters_N: Ints, labels_N: Ints) -> Contingency | None:
    """Count the labelled rows by class and cluster; None if no row has a label (all are -1)."""
    is_labelled_N = labels_N >= 0
    return Contingency.of(clusters_N[is_labelled_N], labels_N[is_labelled_N]) if is_labelled_N.any() else None


def cluster_sizes(clusters_N: Ints, num_clusters: int) -> ClusterSizes:
    """Count the rows of each cluster.

    Examples
    --------
    >>> cluster_sizes(np.array([0, 0, 0, 2]), 3)
    ClusterSizes(smallest=0, median=1.0, largest=3, num_empty=1)
    """
    sizes_K = np.bincount(clusters_N, minlength=num_clusters)
    return ClusterSizes(
        smallest=int(sizes_K.min()),
        median=float(np.median(sizes_K)),
        largest=int(sizes_K.max()),
        num_empty=int((sizes_K == 0).sum()),
    )


def is_alone(clusters_N: Ints) -> Bools:
    """Whether a row is the only one of its cluster, for each row."""
    is_alone_N: Bools = (np.bincount(clusters_N) == 1)[clusters_N]
    return is_alone_N


def simplified_silhouette(distances_N: Doubles, others_N: Doubles, *, is_alone_N: Bools | None = None) -> float | None:
    """Mean silhouette with distances to centroids in place of mean distances to the rows of clusters.

    Parameters
    ----------
    distances_N, others_N : ndarray of shape (N,), dtype=float64
        Euclidean distance to the nearest centroid, and to the nearest other one.
    is_alone_N : ndarray of shape (N,), dtype=bool, optional
        Rows that are a centroid on their own: their silhouette is 0 by definition.

    Returns
    -------
    float or None
        In [0, 1]; None if there is one centroid only, which has no other.

    References
    ----------
    Hruschka et al., "Evolving clusters in gene-expression data", Information Sciences 2006; Vendramin et al., "Relative
    clustering validity criteria: a comparative overview", 2010.

    Examples
    --------
    >>> simplified_silhouette(np.array([1.0, 0.0]), np.array([2.0, 3.0]))
    0.75
    """
    if np.isinf(others_N).any():
        return None
    larger_N = np.maximum(distances_N, others_N)
    silhouettes_N = np.divide(others_N - distances_N, larger_N, out=np.zeros(len(larger_N)), where=larger_N > 0)
    if is_alone_N is not None:
        silhouettes_N[is_alone_N] = 0
    return float(silhouettes_N.mean())


def sample_of(data: Selection, *, normalize: bool, seed: int) -> tuple[Ints, Doubles]:
    """Read some rows at random: all of them, if they are few; one pass over the layer.

    Parameters
    ----------
    data : Selection
        Rows to choose from.
    normalize : bool
        Whether each row is scaled to length 1.
    seed : int
        Equal seeds choose equal rows.

    Returns
    -------
    positions : ndarray of shape (S,), dtype=int64
        Positions of the chosen rows in `data.rows`, rising.
    features : ndarray of shape (S, D), dtype=float64
    """
    size = min(len(data), SAMPLED_ROWS, max(2, _SAMPLE_BYTES // (8 * data.layer.dim)))
    positions = np.sort(np.random.default_rng(seed).choice(len(data), size, replace=False))
    chosen = Selection(layer=data.layer, rows=data.rows[positions])
    features_SD, filled = np.empty((size, data.layer.dim)), 0
    for block in chosen.blocks(max(1, _BLOCK_BYTES // (4 * data.layer.dim)), unit_length=normalize):
        features_SD[filled : filled + len(block.rows)] = block.features
        filled += len(block.rows)
    return positions, features_SD


def sampled_silhouettes(
    samples: Mapping[str, tuple[Ints, Doubles]], clusters_of: Mapping[str, Ints]
) -> dict[str, dict[str, Any]]:
    """Compute the exact silhouette of a sample of each split.

    Parameters
    ----------
    samples : mapping
        What `sample_of` returns, by split.
    clusters_of : mapping of str to ndarray of shape (n,), dtype=int64
        Cluster of each row, by split.

    Returns
    -------
    dict of str to dict
        By split: `silhouette`, a float or None as `silhouette` returns it, and `num_rows` of the sample.
    """
    return {
        split: {"silhouette": silhouette(features_SD, clusters_of[split][positions]), "num_rows": len(positions)}
        for split, (positions, features_SD) in samples.items()
    }


def silhouette(features_ND: Doubles, clusters_N: Ints) -> float | None:
    """Mean silhouette from the Euclidean distances of all pairs of rows.

    Parameters
    ----------
    features_ND : ndarray of shape (N, D), dtype=float64
    clusters_N : ndarray of shape (N,), dtype=int64

    Returns
    -------
    float or None
        In [-1, 1]; None if all rows are in one cluster, or none shares its cluster with another.

    References
    ----------
    Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", 1987.
    """
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(clusters_N)) < len(clusters_N):
        return None
    centered_ND = features_ND - features_ND.mean(axis=0)  # an offset would cost accuracy
    return float(silhouette_score(centered_ND, clusters_N))
