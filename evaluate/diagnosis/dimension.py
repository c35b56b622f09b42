"""Intrinsic dimension: how many directions the features vary in, near a row.

Shape suffixes:  Q queries
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featbench.evaluate.metrics import Estimate
from featbench.store.typing import Bools, Doubles

DISCARDED = 0.1
"""Fraction of the largest ratios that is left out, as in Facco et al. 2017."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntrinsicDimension:
    """TwoNN's estimates; None where fewer than two rows are left."""

    mle: Estimate | None
    """Maximum likelihood, unbiased, where the largest ratios are censored; the interval takes rows as independent."""

    linear: float | None
    """Slope of the line through the empirical distribution, the paper's own estimate."""

    num_used: int
    """Queries whose ratio counts, before the largest are left out."""

    num_duplicates: int
    """Queries at distance 0 from their nearest neighbour, whose ratio is not defined; left out."""


def twonn(first_Q: Doubles, second_Q: Doubles, *, is_duplicate_Q: Bools | None = None) -> IntrinsicDimension:
    """Estimate the intrinsic dimension from the distances to the two nearest neighbours.

    Parameters
    ----------
    first_Q, second_Q : ndarray of shape (Q,), dtype=float64
        Euclidean distances, 0 <= first <= second.
    is_duplicate_Q : ndarray of shape (Q,), dtype=bool, optional
        Queries to leave out, where rounding hides that a distance is 0; by default those where it is 0.

    References
    ----------
    Facco et al., "Estimating the intrinsic dimension of datasets by a minimal neighborhood information", Scientific
    Reports 2017. Of the interval: 2 d times the total of the logarithms has a chi-squared distribution under Type II
    censoring (Lawless, "Statistical Models and Methods for Lifetime Data", sec. 4.1).

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> ratios = random.uniform(size=10_000) ** (-1 / 5)
    >>> round(twonn(np.ones(10_000), ratios).linear)
    5
    """
    from scipy.stats import chi2

    left_out_Q = (first_Q <= 0) | (False if is_duplicate_Q is None else is_duplicate_Q)
    logs = np.sort(np.log(second_Q[~left_out_Q] / first_Q[~left_out_Q]))
    count = len(logs)
    kept = int(count * (1 - DISCARDED))
    duplicates = int(left_out_Q.sum())
    if kept < 2 or logs[kept - 1] <= 0:
        return IntrinsicDimension(mle=None, linear=None, num_used=count, num_duplicates=duplicates)
    total = logs[:kept].sum() + (count - kept) * logs[kept - 1]
    low, high = chi2.ppf((0.025, 0.975), 2 * kept) / (2 * total)
    heights = -np.log(1 - np.arange(1, kept + 1) / count)
    return IntrinsicDimension(
        mle=Estimate(float((kept - 1) / total), float(low), float(high)),
        linear=float(logs[:kept] @ heights / (logs[:kept] @ logs[:kept])),
        num_used=count,
        num_duplicates=duplicates,
    )
