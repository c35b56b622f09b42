"""Calibration of the vote: how far the fraction of the votes for a class can be read as a probability.

Shape suffixes:  Q queries   K neighbours
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from featbench.evaluate.knn.vote import ClassVotes
from featbench.evaluate.metrics import Estimate, auroc, mean_of
from featbench.store.typing import Bools, Doubles, Ints

NUM_BINS = 15
"""Bins of confidence, as in Guo et al. 2017 and torchmetrics."""

SMALLEST = 2.0**-52
"""Probabilities below this count as this in the log likelihood, as in scikit-learn's `log_loss`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Queries of similar confidence: a point of the reliability diagram."""

    low: float
    high: float
    """Ends of the bin, the upper one not included; a confidence of 1 has a bin of its own, as in torchmetrics."""

    num_queries: int
    confidence: float
    """Mean of the bin's queries."""

    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well the confidence of a vote says how often it is right."""

    ece: Estimate
    """Expected calibration error: mean over the queries of |accuracy - confidence| of their bin."""

    ece_by_chance: float
    """Its mean for a calibrated vote of the same confidences: above 0, the more the fewer queries there are."""

    rms_ce: float
    """Root mean square of the same."""

    max_ce: float
    """Largest of any bin."""

    nll: Estimate
    """Mean of minus the log of the true class's probability, natural logarithm."""

    brier: Estimate
    """Mean over the queries of the squared distance between probabilities and the true class: from 0 to 2."""

    auroc: Estimate | None
    """How often a right prediction has a higher confidence than a wrong one; None if all are right, or all wrong."""

    mean_confidence: float
    num_without_vote: int
    """Queries whose class has no vote; they count in `nll` with the smallest probability."""

    bins: tuple[ReliabilityBin, ...]
    """Bins with a query."""


def calibration(
    votes: ClassVotes, weights_QK: Doubles, labels_Q: Ints, *, k: int, num_bins: int = NUM_BINS
) -> Calibration:
    """Measure the calibration of a weighted vote whose weights are divided by their sum over the k neighbours.

    Parameters
    ----------
    votes : ClassVotes
        Classes of each query's neighbours.
    weights_QK : ndarray of shape (Q, K), dtype=float64
        Weight of each neighbour.
    labels_Q : ndarray of shape (Q,), dtype=int64
        Class of each query, Q >= 1.
    k : int
        Neighbours that vote.
    num_bins : int
        Bins of equal width.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599; Brier, "Verification of
    forecasts expressed in terms of probability", 1950.

    Examples
    --------
    >>> votes = ClassVotes.of(np.array([[0, 0], [0, 1]]), num_classes=2)
    >>> calibration(votes, np.ones((2, 2)), np.array([0, 1]), k=2).ece.value
    0.25
    """
    scores_QK = votes.scores(weights_QK, k=k)
    scores_QK[np.isneginf(scores_QK)] = 0
    scores_QK /= scores_QK.sum(axis=1, keepdims=True)  # exactly 1 where all neighbours are of one class
    best_Q = scores_QK.argmax(axis=1)
    everyone = np.arange(len(labels_Q))
    confidence_Q = scores_QK[everyone, best_Q]
    is_right_Q = votes.labels_QK[everyone, best_Q] == labels_Q
    true_Q = np.where(votes.labels_QK[:, :k] == labels_Q[:, None], scores_QK, 0).sum(axis=1)
    bins = reliability(confidence_Q, is_right_Q, num_bins=num_bins)
    shares = np.array([each.num_queries for each in bins]) / len(labels_Q)
    gaps = np.array([abs(each.accuracy - each.confidence) for each in bins])
    is_mixed = is_right_Q.any() and not is_right_Q.all()
    return Calibration(
        ece=expected_error(confidence_Q, is_right_Q, num_bins=num_bins),
        ece_by_chance=expected_error_by_chance(confidence_Q, num_bins=num_bins),
        rms_ce=float(np.sqrt(shares @ gaps**2)),
        max_ce=float(gaps.max()),
        nll=mean_of(-np.log(np.maximum(true_Q, SMALLEST)), least=0.0, most=-math.log(SMALLEST)),
        brier=mean_of((scores_QK**2).sum(axis=1) - 2 * true_Q + 1, least=0.0, most=2.0),
        auroc=auroc(confidence_Q[is_right_Q], confidence_Q[~is_right_Q]) if is_mixed else None,
        mean_confidence=float(confidence_Q.mean()),
        num_without_vote=int((true_Q == 0).sum()),
        bins=bins,
    )


def reliability(confidence_Q: Doubles, is_right_Q: Bools, *, num_bins: int = NUM_BINS) -> tuple[ReliabilityBin, ...]:
    """Count queries, their mean confidence and their accuracy in bins of equal width; empty bins are left out."""
    edges, bin_Q = _bins(confidence_Q, num_bins)
    counts = np.bincount(bin_Q, minlength=num_bins + 1)
    confidence, right = (np.bincount(bin_Q, each, num_bins + 1) for each in (confidence_Q, is_right_Q))
    return tuple(
        ReliabilityBin(
            low=float(edges[i]),
            high=float(edges[min(i + 1, num_bins)]),
            num_queries=int(counts[i]),
            confidence=float(confidence[i] / counts[i]),
            accuracy=float(right[i] / counts[i]),
        )
        for i in np.flatnonzero(counts).tolist()
    )


def expected_error(confidence_Q: Doubles, is_right_Q: Bools, *, num_bins: int = NUM_BINS) -> Estimate:
    """Expected calibration error, with the interval that its spread over the queries gives.

    It is the mean over the queries of accuracy less confidence, with the sign of their bin's.
    """
    _, bin_Q = _bins(confidence_Q, num_bins)
    gaps_Q = is_right_Q - confidence_Q
    signs = np.sign(np.bincount(bin_Q, gaps_Q))
    return mean_of(signs[bin_Q] * gaps_Q, least=0.0, most=1.0)


def expected_error_by_chance(confidence_Q: Doubles, *, num_bins: int = NUM_BINS) -> float:
    """Mean of the expected calibration error if each query is right with the probability of its confidence.

    The gap of each bin is then normal with mean 0, nearly: its absolute value is sqrt(2 / pi) standard deviations.
    """
    _, bin_Q = _bins(confidence_Q, num_bins)
    variances = np.bincount(bin_Q, np.maximum(confidence_Q * (1 - confidence_Q), 0))
    return float(math.sqrt(2 / math.pi) * np.sqrt(variances).sum() / len(confidence_Q))


def _bins(confidence_Q: Doubles, num_bins: int) -> tuple[Doubles, Ints]:
    """Edges of the bins, and the bin of each query."""
    edges = np.linspace(0, 1, num_bins + 1)
    return edges, np.searchsorted(edges, np.minimum(confidence_Q, 1), side="right") - 1
