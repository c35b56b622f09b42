"""Comparing several classifiers at once: p-values corrected for their number, and groups that can't be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from featbench.store.typing import Bools, Doubles

LEVEL = 0.05
"""Level of significance of the groups."""


def holm(p_values: Sequence[float]) -> Doubles:
    """Correct p-values for their number by Holm's method, which controls the chance of any false positive.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * factors))
    return corrected


def cliques(num_ranked: int, p_values: Mapping[tuple[int, int], float], *, level: float = LEVEL) -> list[range]:
    """Find the longest runs of ranked classifiers none of which differs significantly from another of the run.

    These are the bars of a critical difference diagram; runs of one are left out if they lie within another.

    Parameters
    ----------
    num_ranked : int
        Classifiers, the best first.
    p_values : mapping of (int, int) to float
        Of each pair (i, j) with i < j.
    level : float
        Pairs with a lower p-value differ.

    References
    ----------
    Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006.

    Examples
    --------
    >>> cliques(3, {(0, 1): 0.5, (0, 2): 0.01, (1, 2): 0.2})
    [range(0, 2), range(1, 3)]
    """
    alike: Bools = np.ones((num_ranked, num_ranked), np.bool_)
    for pair, p_value in p_values.items():
        alike[pair] = p_value >= level
    runs: list[range] = []
    for start in range(num_ranked):
        stop = start + 1
        while stop < num_ranked and alike[start : stop + 1, stop].all():
            stop += 1
        if not runs or stop > runs[-1].stop:
            runs.append(range(start, stop))
    return runs
