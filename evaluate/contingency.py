"""Comparison of clusters and classes by their sparse contingency table.

With thousands of classes and clusters nearly all pairs share no row, and a dense table would take gigabytes.

Shape suffixes:  R classes   K clusters   M pairs with a row in common   U distinct sizes
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from featbench.store.typing import Doubles, Ints

_MAX_DENSE_PAIRS = 2**20
"""Most pairs for which a dense table is faster."""

_TERMS_AT_ONCE = 2**20
"""Terms of an expectation in memory at a time."""


def largest_matching(counts_RK: coo_matrix) -> int:
    """Number of rows on which the best one-to-one matching of classes and clusters agrees.

    A class may stay unmatched: an extra cluster of weight 1 for each class stands for that, and every true pair weighs
    one more than its rows. So a matching of all classes exists, and its weight is the number of rows plus R.
    """
    num_classes, num_clusters = (int(size) for size in counts_RK.shape)
    if num_classes * num_clusters <= _MAX_DENSE_PAIRS:
        table: Any = counts_RK.toarray()
        return int(table[linear_sum_assignment(table, maximize=True)].sum())
    alone = np.arange(num_classes)
    weights: Any = csr_matrix(
        (
            np.concatenate([counts_RK.data + 1.0, np.ones(num_classes)]),
            (np.concatenate([counts_RK.row, alone]), np.concatenate([counts_RK.col, num_clusters + alone])),
        ),
        (num_classes, num_clusters + num_classes),
    )
    chosen = min_weight_full_bipartite_matching(weights, maximize=True)
    return int(weights[chosen].sum()) - num_classes


def adjusted_mutual_information(counts_RK: coo_matrix) -> float:
    """Mutual information beyond chance, as a fraction of the largest possible; 1 for a perfect match.

    Parameters
    ----------
    counts_RK : sparse matrix of shape (R, K)
        Rows of each class in each cluster; no class and no cluster is empty.

    References
    ----------
    Vinh et al., "Information theoretic measures for clusterings comparison", JMLR 2010, with the arithmetic mean of
    the entropies. scikit-learn's `adjusted_mutual_info_score` is the same number.

    Examples
    --------
    >>> adjusted_mutual_information(coo_matrix([[2, 0], [0, 2]]))
    1.0
    """
    classes_R, clusters_K = (np.asarray(counts_RK.sum(axis=axis), np.int64).reshape(-1) for axis in (1, 0))
    if len(classes_R) == 1 or len(clusters_K) == 1:
        return float(len(classes_R) == len(clusters_K))
    num_rows = int(classes_R.sum())
    pairs_M = counts_RK.data / num_rows
    by_chance_M = (classes_R[counts_RK.row] / num_rows) * (clusters_K[counts_RK.col] / num_rows)
    found = max(0.0, float((pairs_M * np.log(pairs_M / by_chance_M)).sum()))
    expected = expected_mutual_information(classes_R, clusters_K)
    possible = (_entropy(classes_R) + _entropy(clusters_K)) / 2
    return _not_zero(found - expected) / _not_zero(possible - expected)  # 1 where nothing is beyond chance


def _not_zero(value: float) -> float:
    return math.copysign(max(abs(value), float(np.finfo(np.float64).eps)), value)


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
    num_rows = int(classes_R.sum())
    few, many = sorted((np.unique(sizes, return_counts=True) for sizes in (classes_R, clusters_K)), key=_num_sizes)
    total = 0.0
    for size, how_many in zip(*few, strict=True):
        mean_U = size * many[0] / num_rows
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


def _mean_terms(size: float, others_U: Doubles, first_U: Doubles, last_U: Doubles, num_rows: int) -> Doubles:
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
