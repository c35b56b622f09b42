"""Top-1 at many k and temperatures from the same lists of neighbours, in a time that does not grow with the classes.

Shape suffixes:  Q queries   K neighbours   C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featbench.evaluate.knn.protocols import Vote
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.metrics import Estimate, proportion
from featbench.store.typing import Bools, Doubles, Ints

GRID_K = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
GRID_TEMPERATURES = (0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)

_CLASSES_AT_ONCE = 2**22
"""Numbers in memory while places are found (16 MiB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell:
    """Top-1 accuracy at one k and temperature."""

    k: int
    temperature: float | None
    top1: Estimate


def first_places(labels_QK: Ints, *, num_classes: int) -> Ints:
    """Place of the nearest neighbour of each neighbour's class, which can stand for the class in a vote.

    There are as many such numbers as neighbours, not as classes: with many classes, votes are counted much faster.

    Examples
    --------
    >>> first_places(np.array([[7, 3, 7, 5, 3]]), num_classes=8).tolist()
    [[0, 1, 0, 3, 1]]
    """
    places_QK = np.empty_like(labels_QK)
    step = max(1, _CLASSES_AT_ONCE // max(1, num_classes))
    for start in range(0, len(labels_QK), step):
        labels = labels_QK[start : start + step]
        everyone = np.arange(len(labels))
        first_QC = np.full((len(labels), num_classes), labels.shape[1], np.int32)
        for place in reversed(range(labels.shape[1])):
            first_QC[everyone, labels[:, place]] = place
        places_QK[start : start + step] = first_QC[everyone[:, None], labels]
    return places_QK


def votes_by_place(places_QK: Ints, k: int) -> ClassVotes:
    """Prepare the k nearest for counting, with classes numbered by the places of their nearest."""
    nearest_QK = places_QK[:, :k]
    return ClassVotes(nearest_QK, nearest_QK == np.arange(k), k)


def grid_of(
    is_right_QK: Bools,
    places_QK: Ints,
    similarities_QK: Doubles,
    *,
    vote: Vote,
    ks: Sequence[int],
    temperatures: Sequence[float | None],
) -> list[GridCell]:
    """Compute top-1 at many k and temperatures.

    Parameters
    ----------
    is_right_QK : ndarray of shape (Q, K), dtype=bool
        Whether each neighbour is of the query's class.
    places_QK : ndarray of shape (Q, K), dtype=int64
        Result of `first_places`.
    similarities_QK : ndarray of shape (Q, K), dtype=float64
    vote : {"exponential", "inverse_distance", "uniform"}
    ks, temperatures : sequence
        To be in the grid besides the usual ones.
    """
    length = similarities_QK.shape[1]
    every_k = sorted({*ks, *(k for k in GRID_K if k <= length)})
    every_t: list[float | None] = [None]
    if vote == "exponential":
        every_t = [*sorted({*GRID_TEMPERATURES, *(each for each in temperatures if each is not None)})]
    votes = {k: votes_by_place(places_QK, k) for k in every_k}
    cells = []
    for temperature in every_t:
        weights_QK = vote_weights(similarities_QK[:, : every_k[-1]], vote=vote, temperature=temperature)
        for k in every_k:
            best_Q = votes[k].ranking(weights_QK, k=k, top=1)
            is_right_Q: Bools = np.take_along_axis(is_right_QK, best_Q, axis=1)[:, 0]
            cells.append(GridCell(k=k, temperature=temperature, top1=proportion(is_right_Q)))
    return cells
