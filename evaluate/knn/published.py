"""VISSL's vote in its own arithmetic: exp(s / T) in float32 as it is, which overflows for s / T above 88.7.

VISSL multiplies a one-hot matrix of the neighbours' classes by these weights and sums over the neighbours. Where a
weight is infinite, every class other than that neighbour's gets 0 * inf = NaN, which torch sorts before every number:
the prediction is then the class with the lowest number that is NaN, whatever the features say.

Shape suffixes:  Q queries   K neighbours   C classes
"""

from __future__ import annotations

import numpy as np

from featbench.store.typing import Bools, Doubles, Floats, Ints

LARGEST_EXPONENT = float(np.log(np.finfo(np.float32).max))
"""The largest s / T whose exponential float32 can hold: 88.72."""

_SCORES_AT_ONCE = 1 << 24


def overflows(similarities_QK: Doubles, *, temperature: float) -> Bools:
    """Whether any neighbour's weight is infinite in float32, for each query."""
    with np.errstate(over="ignore"):
        weights_Q = np.exp(_exponents(similarities_QK[:, :1], temperature))
    infinite: Bools = np.isinf(weights_Q[:, 0])
    return infinite


def published_ranking(
    labels_QK: Ints, similarities_QK: Doubles, *, k: int, temperature: float, num_classes: int, top: int = 5
) -> Ints:
    """Rank the classes of each query as VISSL does; equal scores, and NaN, are in the order of their numbers.

    torch's sort keeps that order for up to 16 classes on a CPU; beyond that it is not defined.

    Parameters
    ----------
    labels_QK : ndarray of shape (Q, K), dtype=int64
        Class of each neighbour, in [0, num_classes).
    similarities_QK : ndarray of shape (Q, K), dtype=float64
        Inner products, each row sorted from high to low.
    k : int
        Neighbours that vote, 1 <= k <= K.
    temperature : float
        T > 0.
    num_classes : int
        C.
    top : int
        Classes to return.

    Returns
    -------
    ndarray of shape (Q, min(top, C)), dtype=int64
        Best first; classes without a vote are included, as in VISSL.

    Examples
    --------
    Two neighbours of class 2 at s / T = 100: class 2 has an infinite score, all others NaN, and VISSL predicts class 0.

    >>> published_ranking(np.array([[2, 2]]), np.array([[10.0, 10.0]]), k=2, temperature=0.1, num_classes=3).tolist()
    [[0, 1, 2]]
    """
    num_queries = len(labels_QK)
    ranked = np.empty((num_queries, min(top, num_classes)), np.int64)
    step = max(1, _SCORES_AT_ONCE // num_classes)
    for start in range(0, num_queries, step):
        rows = slice(start, start + step)
        scores_QC = _scores(labels_QK[rows, :k], similarities_QK[rows, :k], temperature, num_classes)
        # NaN before infinity before numbers; argmax takes the first of equals.
        keys_QC = np.nan_to_num(scores_QC.astype(np.float64), nan=np.inf, posinf=np.finfo(np.float64).max)
        for place in range(ranked.shape[1]):
            best_Q = keys_QC.argmax(axis=1)
            ranked[rows, place] = best_Q
            keys_QC[np.arange(len(best_Q)), best_Q] = -np.inf
    return ranked


def _exponents(similarities_QK: Doubles, temperature: float) -> Floats:
    exponents: Floats = similarities_QK.astype(np.float32) / np.float32(temperature)
    return exponents


def _scores(labels_QK: Ints, similarities_QK: Doubles, temperature: float, num_classes: int) -> Floats:
    """Sums of weights of every class, shape (Q, C), with what infinite weights do to the other classes."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights_QK = np.exp(_exponents(similarities_QK, temperature))
        scores_QC: Floats = np.zeros((len(labels_QK), num_classes), np.float32)
        everyone = np.arange(len(labels_QK))
        for place in range(labels_QK.shape[1]):
            scores_QC[everyone, labels_QK[:, place]] += weights_QK[:, place]
        for place in range(labels_QK.shape[1]):
            infinite = np.flatnonzero(np.isinf(weights_QK[:, place]))
            if not len(infinite):
                break  # similarities fall from left to right
            kept = scores_QC[infinite, labels_QK[infinite, place]]
            scores_QC[infinite] = np.nan
            scores_QC[infinite, labels_QK[infinite, place]] = kept
    return scores_QC
