"""Accuracies with 95% intervals.

Shape suffixes:  Q queries
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from featbench.store.typing import Bools, Doubles, Ints

Z95 = 1.959963984540054
"""Standard normal quantile of 0.975."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A fraction with its 95% interval."""

    value: float
    low: float
    high: float


def proportion(correct_Q: Bools) -> Estimate:
    """Fraction of True, with Wilson's score interval.

    Parameters
    ----------
    correct_Q : ndarray of shape (Q,), dtype=bool
        Q >= 1.

    References
    ----------
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Examples
    --------
    >>> proportion(np.array([True] * 50 + [False] * 50))
    Estimate(value=0.5, low=0.403..., high=0.596...)
    """
    return fraction(int(correct_Q.sum()), len(correct_Q))


def fraction(num_correct: int, count: int) -> Estimate:
    """Fraction of counts, with Wilson's score interval as `proportion`; 0 <= num_correct <= count, count >= 1."""
    value = num_correct / count
    scale = 1 + Z95**2 / count
    center = (value + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(value * (1 - value) / count + Z95**2 / (4 * count**2))
    return Estimate(value, max(0.0, min(value, center - half)), min(1.0, max(value, center + half)))


def mean_per_class(correct_Q: Bools, labels_Q: Ints, *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Mean over classes of the fraction of True in each, with a bootstrap interval.

    The bootstrap resamples queries within each class. The number of True is then binomial, and so is its sum over
    classes of equal size and rate, which is drawn directly.

    Parameters
    ----------
    correct_Q : ndarray of shape (Q,), dtype=bool
    labels_Q : ndarray of shape (Q,), dtype=int64
        Class of each query; classes without queries do not count.
    draws, seed : int
        Number of samples, and seed, of the bootstrap.
    """
    _, positions, counts = np.unique(labels_Q, return_inverse=True, return_counts=True)
    rates = np.bincount(positions, correct_Q, len(counts)) / counts
    random = np.random.default_rng(seed)
    means = np.zeros(draws)
    alike, num_alike = np.unique(np.stack([counts, rates]), axis=1, return_counts=True)
    for count, rate, number in zip(*alike, num_alike, strict=True):
        means += random.binomial(number * int(count), rate, draws) / count
    low, high = np.quantile(means / len(counts), (0.025, 0.975))
    return Estimate(float(rates.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference of two accuracies on the same queries: second minus first."""

    value: float
    low: float
    high: float
    only_first: int
    """Queries that only the first gets right."""

    only_second: int
    p_value: float
    """p-value of McNemar's exact test, of equal accuracies."""


def paired_difference(first_Q: Bools, second_Q: Bools) -> PairedDifference:
    """Compare two classifiers on the same queries.

    Parameters
    ----------
    first_Q, second_Q : ndarray of shape (Q,), dtype=bool
        Whether each is right; Q >= 1.

    References
    ----------
    McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact, by
    the binomial distribution.  Interval: Bonett and Price, "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data", 2012.

    Examples
    --------
    >>> paired_difference(np.array([True] * 5 + [False] * 5), np.array([True] * 10)).p_value
    0.0625
    """
    from scipy.stats import binomtest

    count = len(first_Q)
    only_first, only_second = int((first_Q & ~second_Q).sum()), int((second_Q & ~first_Q).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    rates = (only_second + 1) / (count + 2), (only_first + 1) / (count + 2)
    center = rates[0] - rates[1]
    half = Z95 * math.sqrt((sum(rates) - center**2) / (count + 2))
    return PairedDifference(
        value=(only_second - only_first) / count,
        low=max(-1.0, center - half),
        high=min(1.0, center + half),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
    )


def mean_of(values_Q: Doubles, *, least: float, most: float) -> Estimate:
    """Mean, with the normal interval of its standard error, within the least and the most that it can be; Q >= 1.

    Examples
    --------
    >>> mean_of(np.array([1.0, 1.0, 1.0]), least=0, most=2)
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    count = len(values_Q)
    value = float(values_Q.mean())
    half = Z95 * float(values_Q.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(value, max(least, value - half), min(most, value + half))


def auroc(positives_P: Doubles, negatives_N: Doubles) -> Estimate:
    """Area under the ROC curve: how often a positive scores higher than a negative, ties counting half.

    Parameters
    ----------
    positives_P, negatives_N : ndarray of shape (P,) and (N,), dtype=float64
        Scores, P >= 1 and N >= 1.

    References
    ----------
    Interval: DeLong et al., "Comparing the areas under two or more correlated receiver operating characteristic
    curves", Biometrics 1988; its ranks as in Sun and Xu, IEEE Signal Processing Letters 2014.

    Examples
    --------
    >>> auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0])).value
    0.875
    """
    from scipy.stats import rankdata

    num_positives, num_negatives = len(positives_P), len(negatives_N)
    ranks = rankdata(np.concatenate([positives_P, negatives_N]))
    below_P = (ranks[:num_positives] - rankdata(positives_P)) / num_negatives
    above_N = 1 - (ranks[num_positives:] - rankdata(negatives_N)) / num_positives
    value = float(below_P.mean())
    variance = sum(float(each.var(ddof=1)) / len(each) for each in (below_P, above_N) if len(each) > 1)
    half = Z95 * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def within(value: float, influences_Q: Doubles, *, least: float = 0.0, most: float = 1.0) -> Estimate:
    """Interval of a statistic of queries by its influence function, within the least and the most that it can be.

    Parameters
    ----------
    value : float
        The statistic.
    influences_Q : ndarray of shape (Q,), dtype=float64
        Its derivative with respect to each query's weight, at equal weights of 1; Q >= 1.
    least, most : float
        Bounds of the statistic.

    References
    ----------
    Infinitesimal jackknife, which is what the standard error of a bootstrap over the queries tends to: Efron, "The
    Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 6.

    Examples
    --------
    The mean of 0 and 1, whose derivatives are (x - 0.5) / 2:

    >>> within(0.5, np.array([-0.25, 0.25]), most=2)
    Estimate(value=0.5, low=0.0, high=1.19...)
    """
    half = Z95 * math.sqrt(float(influences_Q @ influences_Q))
    return Estimate(value, max(least, value - half), min(most, value + half))
