"""Out-of-distribution detection by the distance to the k-th neighbour.

Shape suffixes:  P queries of the distribution   N queries from elsewhere
"""

from __future__ import annotations

import math

import numpy as np

from featbench.evaluate.metrics import Estimate, auroc, fraction
from featbench.evaluate.other_results import OodMetrics
from featbench.store.typing import Bools, Doubles

RECALL = 0.95
"""Fraction of the positives that are found, at least, where the false positive rate is taken."""


def ood_metrics(inside_P: Doubles, outside_N: Doubles) -> OodMetrics:
    """Measure how well scores tell queries of the distribution, which have high scores, from others.

    Parameters
    ----------
    inside_P, outside_N : ndarray of shape (P,) and (N,), dtype=float64
        Scores, such as the similarity to the k-th neighbour; P >= 2 and N >= 1.

    References
    ----------
    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, arXiv:2204.06507; the metrics as
    in OpenOOD, arXiv:2306.09301, whose FPR takes the others as positives: `fpr_at_95_out`.

    Examples
    --------
    >>> ood_metrics(np.array([0.9, 0.8]), np.array([0.1])).fpr_at_95.value
    0.0
    """
    is_inside = np.repeat([True, False], [len(inside_P), len(outside_N)])
    scores = np.concatenate([inside_P, outside_N])
    return OodMetrics(
        auroc=auroc(inside_P, outside_N),
        aupr_in=_area(is_inside, scores),
        aupr_out=_area(~is_inside, -scores),
        fpr_at_95=false_positives(inside_P, outside_N),
        fpr_at_95_out=false_positives(-outside_N, -inside_P),
    )


def false_positives(positive_P: Doubles, negative_N: Doubles) -> Estimate:
    """Fraction of the negatives whose scores are at least the highest threshold that `RECALL` of the positives reach.

    Examples
    --------
    >>> false_positives(np.arange(20.0), np.array([0.5, 1.0, 2.0])).value
    0.6666666666666666
    """
    count = len(positive_P)
    needed = math.ceil(RECALL * count)
    needed -= (needed - 1) / count >= RECALL  # the product may be rounded up
    threshold = np.sort(positive_P)[count - needed]
    return fraction(int((negative_N >= threshold).sum()), len(negative_N))


def _area(is_positive: Bools, scores: Doubles) -> float:
    """Area under the precision-recall curve, which begins at precision 1 and ends at full recall."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_positive[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision = np.concatenate([[1.0], hits[ends] / (ends + 1)])
    recall = np.concatenate([[0.0], hits[ends] / hits[-1]])
    return float(np.diff(recall) @ (precision[1:] + precision[:-1]) / 2)
