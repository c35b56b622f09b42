"""Rows that each class and each cluster have in common, as a sparse table, and what can be computed from it.

With thousands of classes and clusters nearly all pairs share no row, and a dense table would take gigabytes.

Shape suffixes:  R classes   K clusters   M pairs with a row in common   U distinct sizes
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_matrix, csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from featbench.store.typing import Doubles, Ints

_MAX_DENSE_PAIRS = 2**20
"""Most pairs for which a dense table is faster."""

_EPSILON = float(np.finfo(np.float64).eps)

_TERMS_AT_ONCE = 2**20
"""Terms of an expectation in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contingency:
    """Rows that each class and each cluster have in common; only pairs with such rows are listed."""

    counts_M: Ints
    """Rows of each pair, at least 1; pairs are in order of their cluster, then of their class."""

    class_of_M: Ints
    """Class of each pair, an index into `classes_R`."""

    cluster_of_M: Ints
    """Cluster of each pair, an index into `clusters_K`."""

    classes_R: Ints
    """Numbers of the classes that have rows, rising."""

    clusters_K: Ints
    """Numbers of the clusters that have rows, rising."""

    class_sizes_R: Ints
    cluster_sizes_K: Ints

    @classmethod
    def of(cls, clusters_N: Ints, labels_N: Ints) -> Contingency:
        """Count rows by their class and cluster.

        Parameters
        ----------
        clusters_N, labels_N : ndarray of shape (N,), dtype=int64
            Cluster and class of each row, not negative; N >= 1.
        """
        table = csc_matrix((np.ones(len(labels_N), np.int64), (labels_N, clusters_N)))
        table.sort_indices()
        pairs_per_cluster = np.diff(table.indptr)
        return cls.of_pairs(table.data, table.indices, np.repeat(np.arange(len(pairs_per_cluster)), pairs_per_cluster))

    @classmethod
    def of_pairs(cls, counts_M: Ints, labels_M: Ints, clusters_M: Ints) -> Contingency:
        """Make the table of its pairs, in order of their cluster, then of their class."""
        classes_R, class_of_M = np.unique(labels_M, return_inverse=True)
        clusters_K, cluster_of_M = np.unique(clusters_M, return_inverse=True)
        return cls(
            counts_M=counts_M,
            class_of_M=class_of_M,
            cluster_of_M=cluster_of_M,
            classes_R=classes_R,
            clusters_K=clusters_K,
            class_sizes_R=np.bincount(class_of_M, counts_M).astype(np.int64),
            cluster_sizes_K=np.bincount(cluster_of_M, counts_M).astype(np.int64),
        )

    @property
    def num_rows(self) -> int:
        """Rows in the table."""
        return int(self.counts_M.sum())

    @property
    def shape(self) -> tuple[int, int]:
        """Classes and clusters that have rows."""
        return len(self.classes_R), len(self.clusters_K)

    def majority_classes(self, num_clusters: int) -> Ints:
        """Class with the most rows of each cluster: the lowest of several, -1 for a cluster without rows.

        Parameters
        ----------
        num_clusters : int
            Length of the result; more than the largest number of a cluster.
        """
        order = np.lexsort((self.class_of_M, -self.counts_M, self.cluster_of_M))
        first = np.searchsorted(self.cluster_of_M, np.arange(len(self.clusters_K)))
        majority = np.full(num_clusters, -1, np.int64)
        majority[self.clusters_K] = self.classes_R[self.class_of_M[order[first]]]
        return majority

    def num_in_majority(self) -> int:
        """Rows of the largest class of their cluster."""
        first = np.searchsorted(self.cluster_of_M, np.arange(len(self.clusters_K)))
        return int(np.maximum.reduceat(self.counts_M, first).sum())

    def num_in_classes(self, class_of_cluster: Ints) -> int:
        """Rows whose class is the given one of their cluster, -1 for none."""
        given_M = class_of_cluster[self.clusters_K][self.cluster_of_M]
        return int(self.counts_M[self.classes_R[self.class_of_M] == given_M].sum())


def largest_matching(table: Contingency) -> int:
    """Number of rows on which the best one-to-one matching of classes and clusters agrees.

    A class may stay unmatched: an extra cluster of weight 1 for each class stands for that, and every true pair weighs
    one more than its rows. So a matching of all classes exists, and its weight is the number of rows plus R.
    """
    num_classes, num_clusters = table.shape
    if num_classes * num_clusters <= _MAX_DENSE_PAIRS:
        dense = np.zeros(table.shape, np.int64)
        dense[table.class_of_M, table.cluster_of_M] = table.counts_M
        return int(dense[linear_sum_assignment(dense, maximize=True)].sum())
    alone = np.arange(num_classes)
    weights: Any = csr_matrix(
        (
            np.concatenate([table.counts_M + 1.0, np.ones(num_classes)]),
            (np.concatenate([table.class_of_M, alone]), np.concatenate([table.cluster_of_M, num_clusters + alone])),
        ),
        (num_classes, num_clusters + num_classes),
    )
    chosen = min_weight_full_bipartite_matching(weights, maximize=True)
    return int(weights[chosen].sum()) - num_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    """Pairs of rows, ordered, by whether they share their class and their cluster."""

    both: int
    only_class: int
    only_cluster: int
    neither: int

    @classmethod
    def of(cls, table: Contingency) -> PairCounts:
        """Count pairs, exactly, however many there are."""
        both, of_class, of_cluster = map(_sum_of_squares, (table.counts_M, table.class_sizes_R, table.cluster_sizes_K))
        num_rows = table.num_rows
        return cls(
            both=both - num_rows,
            only_class=of_class - both,
            only_cluster=of_cluster - both,
            neither=num_rows**2 - of_class - of_cluster + both,
        )


def _sum_of_squares(counts: Ints) -> int:
    """Sum in Python's integers: squares of large counts are beyond 64 bits."""
    sizes, how_many = np.unique(counts, return_counts=True)
    return sum(size * size * number for size, number in zip(sizes.tolist(), how_many.tolist(), strict=True))


def adjusted_rand_index(pairs: PairCounts) -> float:
    """Agreement of pairs beyond chance; 1 for a perfect match.

    References
    ----------
    Hubert and Arabie, "Comparing partitions", 1985. scikit-learn's `adjusted_rand_score` is the same number.
    """
    if pairs.only_class == pairs.only_cluster == 0:
        return 1.0
    found = 2 * (pairs.both * pairs.neither - pairs.only_class * pairs.only_cluster)
    of_class, of_cluster = pairs.both + pairs.only_class, pairs.both + pairs.only_cluster
    not_of_class, not_of_cluster = pairs.only_cluster + pairs.neither, pairs.only_class + pairs.neither
    return found / (of_class * not_of_cluster + of_cluster * not_of_class)


def fowlkes_mallows_index(pairs: PairCounts) -> float:
    """Geometric mean of precision and recall of pairs in one cluster; 0 if none of them shares its class.

    References
    ----------
    Fowlkes and Mallows, "A method for comparing two hierarchical clusterings", JASA 1983. scikit-learn's
    `fowlkes_mallows_score` is the same number.
    """
    if pairs.both == 0:
        return 0.0
    precision, recall = (pairs.both / (pairs.both + other) for other in (pairs.only_cluster, pairs.only_class))
    return math.sqrt(precision) * math.sqrt(recall)


@dataclass(frozen=True, slots=True, kw_only=True)
class Information:
    """Entropies of classes and clusters, and their mutual information, in nats."""

    of_classes: float
    of_clusters: float
    mutual: float

    @classmethod
    def of(cls, table: Contingency) -> Information:
        """Compute them from the counts."""
        of_classes, of_clusters = _entropy(table.class_sizes_R), _entropy(table.cluster_sizes_K)
        if 1 in table.shape:
            return cls(of_classes=of_classes, of_clusters=of_clusters, mutual=0.0)
        num_rows = table.num_rows
        pairs_M = table.counts_M / num_rows
        by_chance_M = (table.class_sizes_R / num_rows)[table.class_of_M] * (table.cluster_sizes_K / num_rows)[
            table.cluster_of_M
        ]
        mutual = float((pairs_M * np.log(pairs_M / by_chance_M)).sum())
        # Independent ones differ from 0 by rounding alone.
        return cls(of_classes=of_classes, of_clusters=of_clusters, mutual=mutual if mutual > _EPSILON else 0.0)


def normalized_mutual_information(information: Information) -> float:
    """Mutual information as a fraction of the mean of the entropies; 1 if neither has any.

    References
    ----------
    Vinh et al., "Information theoretic measures for clusterings comparison", JMLR 2010. scikit-learn's
    `normalized_mutual_info_score` is the same number.
    """
    possible = (information.of_classes + information.of_clusters) / 2
    return information.mutual / possible if possible else 1.0


def adjusted_mutual_information(table: Contingency, information: Information | None = None) -> float:
    """Mutual information beyond chance, as a fraction of the largest possible; 1 for a perfect match.

    Parameters
    ----------
    table : Contingency
    information : Information, optional
        Of the same table, if it was computed before.

    References
    ----------
    Vinh et al., "Information theoretic measures for clusterings comparison", JMLR 2010, with the arithmetic mean of
    the entropies. scikit-learn's `adjusted_mutual_info_score` is the same number.

    Examples
    --------
    >>> adjusted_mutual_information(Contingency.of(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])))
    1.0
    """
    if 1 in table.shape:
        return float(table.shape == (1, 1))
    information = information or Information.of(table)
    expected = expected_mutual_information(table.class_sizes_R, table.cluster_sizes_K)
    possible = (information.of_classes + information.of_clusters) / 2
    # 1 where nothing is beyond chance.
    return _not_zero(information.mutual - expected) / _not_zero(possible - expected)


def _not_zero(value: float) -> float:
    return math.copysign(max(abs(value), _EPSILON), value)


def expected_mutual_information(classes_R: Ints, clusters_K: Ints) -> float:
    """Mutual information in nats, on average over all ways to put rows into classes and clusters of these sizes.

    The rows that a class and a cluster share are hypergeometric, and only the two sizes matter: so each pair of
    distinct sizes is computed once, and of few sizes there are fewer than the square root of twice the rows.
    Its probabilities come from the ratios of neighbouring ones, scaled to add up to 1; those beyond the bounds
    are less than 1e-26 together (Hoeffding, "Probability inequalities for sums of bounded random variables",
    1963, secs. 2 and 6).

    Examples
    --------
    >>> round(expected_mutual_information(np.array([2, 2]), np.array([2, 2])), 6)
    0.231049
    """
    num_rows = float(classes_R.sum())
    few, many = sorted((np.unique(sizes, return_counts=True) for sizes in (classes_R, clusters_K)), key=_num_sizes)
    total = 0.0
    for size, how_many in zip(*few, strict=True):
        mean_U = float(size) * many[0] / num_rows
        first_U = np.maximum(np.maximum(0, size + many[0] - num_rows), np.floor(mean_U - np.sqrt(120 * mean_U)))
        last_U = np.minimum(np.minimum(size, many[0]), np.ceil(mean_U + 20 + np.sqrt(400 + 120 * mean_U)))
        step = max(1, int(_TERMS_AT_ONCE // ((last_U - first_U).max() + 1)))
        for at in range(0, len(mean_U), step):
            some = slice(at, at + step)
            means = _mean_terms(float(size), many[0][some].astype(np.float64), first_U[some], last_U[some], num_rows)
            total += float(how_many * (many[1][some] * means).sum())
    return total


def _num_sizes(sizes: tuple[Ints, Ints]) -> int:
    return len(sizes[0])


def _mean_terms(size: float, others_U: Doubles, first_U: Doubles, last_U: Doubles, num_rows: float) -> Doubles:
    """Mean of n / N * log(N n / (a b)) over the rows n that two groups of a and b rows share by chance."""
    shared = first_U[:, None] + np.arange((last_U - first_U).max() + 1)
    others, is_possible = others_U[:, None], shared <= last_U[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (size - shared) * (others - shared) / ((shared + 1) * (num_rows - size - others + shared + 1))
        terms = shared / num_rows * np.log(num_rows * shared / (size * others))
    logs = np.zeros(shared.shape)
    logs[:, 1:] = np.log(np.where(is_possible[:, 1:], ratios[:, :-1], 1)).cumsum(axis=1)
    chances = np.where(is_possible, np.exp(logs - np.where(is_possible, logs, -np.inf).max(axis=1, keepdims=True)), 0)
    weighted = chances * np.where(is_possible & (shared > 0), terms, 0)
    return np.asarray(weighted.sum(axis=1) / chances.sum(axis=1))


def _entropy(sizes: Ints) -> float:
    parts = sizes / sizes.sum()
    return float(-(parts * np.log(parts)).sum())
