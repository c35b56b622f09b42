"""Hubs: database rows that are in far more lists of neighbours than others.

Shape suffixes:  Q queries   K neighbours   N database rows
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featbench.store.typing import Ints

HUB_SIZE = 2
"""A row is a hub if it is in at least this many times k lists, as in scikit-hubness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hubness:
    """How unevenly the places in the lists are distributed among the database rows."""

    skewness: float
    """Skewness of the k-occurrence, the number of lists that a row is in: 0 if symmetric, large if there are hubs."""

    robin_hood: float
    """Fraction of all places that would have to change hands for every row to have the same number."""

    num_antihubs: int
    """Rows in no list."""

    antihub_rate: float
    num_hubs: int
    hub_occurrence: float
    """Fraction of all places that hubs have."""


def occurrences(rows_QK: Ints, database_N: Ints, *, k: int) -> Ints:
    """Count the lists of the k nearest that each database row is in, shape (N,).

    Examples
    --------
    >>> occurrences(np.array([[3, 5], [5, 3]]), np.array([3, 4, 5]), k=1).tolist()
    [1, 0, 1]
    """
    counts = np.bincount(rows_QK[:, :k].ravel(), minlength=int(database_N[-1]) + 1)
    return counts[database_N].astype(np.int64)


def hubness(occurrences_N: Ints, *, k: int) -> Hubness:
    """Measure hubness from the number of lists that each database row is in.

    Parameters
    ----------
    occurrences_N : ndarray of shape (N,), dtype=int64
        Result of `occurrences`; not all 0.
    k : int
        Length of the lists.

    References
    ----------
    Radovanovic et al., "Hubs in Space", JMLR 2010; Feldbauer et al., "Fast approximate hubness reduction for large
    high-dimensional data", ICBK 2018 (Robin Hood index); definitions as in scikit-hubness.

    Examples
    --------
    >>> hubness(np.array([4, 0, 0, 0]), k=1).robin_hood
    0.75
    """
    from scipy.stats import skew

    counts = occurrences_N.astype(np.float64)
    total, is_even = counts.sum(), bool((occurrences_N == occurrences_N[0]).all())
    is_hub_N = occurrences_N >= HUB_SIZE * k
    return Hubness(
        skewness=0.0 if is_even else float(skew(counts)),
        robin_hood=float(np.abs(counts - counts.mean()).sum() / 2 / total),
        num_antihubs=int((occurrences_N == 0).sum()),
        antihub_rate=float((occurrences_N == 0).mean()),
        num_hubs=int(is_hub_N.sum()),
        hub_occurrence=float(counts[is_hub_N].sum() / total),
    )


def largest_hubs(occurrences_N: Ints, *, most: int) -> Ints:
    """Positions of the database rows in most lists, the most frequent first, then by row; none that is in no list."""
    order = np.argsort(-occurrences_N, kind="stable")[:most]
    return order[occurrences_N[order] > 0].astype(np.int64)
