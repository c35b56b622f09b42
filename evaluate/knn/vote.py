"""Weighted votes of neighbours, and the classes that they predict.

Ties are broken in a fixed way, so that a prediction never depends on a library's sort: classes are ranked by score,
then by their nearest neighbour. Only classes with a vote are predicted.

Shape suffixes:  Q queries   K neighbours   C classes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featbench.evaluate.knn.protocols import Vote
from featbench.store.typing import Bools, Doubles, Ints

_SCORES_AT_ONCE = 2**22
"""Scores in memory at a time (32 MiB), for any number of classes."""


def vote_weights(similarities_QK: Doubles, *, vote: Vote, temperature: float | None = None) -> Doubles:
    """Weight of each neighbour's vote.

    Parameters
    ----------
    similarities_QK : ndarray of shape (Q, K), dtype=float64
        Each row sorted from high to low.
    vote : {"exponential", "inverse_distance", "uniform"}
        exp((s - s_max) / temperature): subtracting the nearest neighbour's similarity changes no
        order and keeps every weight in (0, 1], so nothing overflows at any temperature.
        1 / (d + 1e-5) for distances d = -s.  Or one vote for each neighbour.
    temperature : float, optional
        tau > 0, for the exponential vote.

    Returns
    -------
    ndarray of shape (Q, K), dtype=float64

    Raises
    ------
    ValueError
        If the exponential vote has no positive temperature.

    References
    ----------
    Exponential: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
    CVPR 2018, sec. 3.4, arXiv:1805.01978.  Inverse distance: solo-learn, solo/utils/knn.py.

    Examples
    --------
    >>> vote_weights(np.array([[0.9, 0.9, 0.2]]), vote="uniform").tolist()
    [[1.0, 1.0, 1.0]]
    """
    if vote == "uniform":
        return np.ones_like(similarities_QK)
    if vote == "inverse_distance":
        return 1.0 / (1e-5 - similarities_QK)
    if temperature is None or not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    weights: Doubles = np.exp((similarities_QK - similarities_QK[:, :1]) / temperature)
    return weights


@dataclass(frozen=True, slots=True)
class ClassVotes:
    """Classes of every query's neighbours, prepared for counting votes at several k and temperatures.

    The score of a class is stored at the position of its nearest neighbour, in an array of shape (Q, K), so memory does
    not grow with the number of classes.
    """

    labels_QK: Ints
    first_QK: Bools
    """Whether each neighbour is the nearest of its class."""

    num_classes: int

    @classmethod
    def of(cls, labels_QK: Ints, *, num_classes: int) -> ClassVotes:
        """Prepare the classes of neighbours, shape (Q, K), each in [0, num_classes)."""
        first_QK = np.zeros(labels_QK.shape, np.bool_)
        for queries in _slices(len(labels_QK), num_classes):
            labels = labels_QK[queries]
            seen = np.zeros((len(labels), num_classes), np.bool_)
            everyone = np.arange(len(labels))
            for place in range(labels.shape[1]):
                column = labels[:, place]
                first_QK[queries, place] = ~seen[everyone, column]
                seen[everyone, column] = True
        return cls(labels_QK, first_QK, num_classes)

    def scores(self, weights_QK: Doubles, *, k: int) -> Doubles:
        """Score of each class among the k nearest, at the position of its nearest neighbour; -inf elsewhere.

        Parameters
        ----------
        weights_QK : ndarray of shape (Q, K), dtype=float64
            Weight of each neighbour's vote, not negative.
        k : int
            Neighbours that vote, 1 <= k <= K.

        Returns
        -------
        ndarray of shape (Q, k), dtype=float64

        Raises
        ------
        ValueError
            If k is not in [1, K].
        """
        num_neighbours = self.labels_QK.shape[1]
        if not 1 <= k <= num_neighbours:
            raise ValueError(f"k must be in [1, {num_neighbours}], the neighbours of each query; got {k}")
        scores_QK = np.full((len(self.labels_QK), k), -np.inf)
        for queries in _slices(len(self.labels_QK), self.num_classes):
            labels = self.labels_QK[queries, :k]
            cells = np.arange(len(labels))[:, None] * self.num_classes + labels
            sums = np.bincount(cells.ravel(), weights_QK[queries, :k].ravel())
            np.copyto(scores_QK[queries], sums[cells], where=self.first_QK[queries, :k])
        return scores_QK

    def ranking(self, weights_QK: Doubles, *, k: int, top: int = 5) -> Ints:
        """Return the `top` classes of each query by score, then by nearest neighbour.

        Returns
        -------
        ndarray of shape (Q, top), dtype=int64
            Best first; -1 where fewer classes have a vote.

        Examples
        --------
        >>> votes = ClassVotes.of(np.array([[3, 1, 1, 0]]), num_classes=4)
        >>> votes.ranking(np.array([[1.0, 0.5, 0.5, 0.25]]), k=4, top=4).tolist()
        [[3, 1, 0, -1]]
        """
        scores_QK = self.scores(weights_QK, k=k)
        everyone = np.arange(len(scores_QK))
        ranked = np.full((len(scores_QK), top), -1, np.int64)
        for position in range(min(top, k)):
            best = scores_QK.argmax(axis=1)  # the first of equals, so the class with the nearest neighbour
            has_vote = scores_QK[everyone, best] > -np.inf
            ranked[has_vote, position] = self.labels_QK[everyone, best][has_vote]
            scores_QK[everyone, best] = -np.inf
        return ranked

    def ranking_with_probabilities(self, weights_QK: Doubles, *, k: int, top: int = 5) -> tuple[Ints, Doubles]:
        """Return the `top` classes of each query, and the fraction of the k neighbours' votes that each has.

        The fractions of all classes sum to 1 for every k, so they can serve as probabilities.

        Returns
        -------
        ranked_QT : ndarray of shape (Q, top), dtype=int64
            As `ranking`.
        probabilities_QT : ndarray of shape (Q, top), dtype=float64
            0 where fewer classes have a vote.

        Examples
        --------
        >>> votes = ClassVotes.of(np.array([[3, 1, 1, 0]]), num_classes=4)
        >>> votes.ranking_with_probabilities(np.array([[1.0, 0.5, 0.25, 0.25]]), k=4, top=4)[1].tolist()
        [[0.5, 0.375, 0.125, 0.0]]
        """
        ranked_QT = self.ranking(weights_QK, k=k, top=top)
        labels_QK, totals_Q = self.labels_QK[:, :k], weights_QK[:, :k].sum(axis=1)
        probabilities_QT = np.zeros(ranked_QT.shape)
        for place in range(top):
            is_of_class = labels_QK == ranked_QT[:, place, None]
            probabilities_QT[:, place] = np.where(is_of_class, weights_QK[:, :k], 0).sum(axis=1) / totals_Q
        return ranked_QT, probabilities_QT

    def probabilities(self, weights_QK: Doubles, *, k: int) -> Doubles:
        """Fraction of the k neighbours' votes for every class, shape (Q, C); each row sums to 1."""
        votes_QC = np.zeros((len(self.labels_QK), self.num_classes))
        everyone = np.arange(len(votes_QC))
        for place in range(k):  # no class twice in a column, so plain indexing adds up
            votes_QC[everyone, self.labels_QK[:, place]] += weights_QK[:, place]
        votes_QC /= weights_QK[:, :k].sum(axis=1, keepdims=True)
        return votes_QC

    def complete_ranking(self, weights_QK: Doubles, *, k: int) -> Ints:
        """Rank all classes, shape (Q, C): those with a vote as `ranking`, then the others by number.

        Examples
        --------
        >>> ClassVotes.of(np.array([[3, 1, 1, 0]]), num_classes=5).complete_ranking(np.ones((1, 4)), k=4).tolist()
        [[1, 3, 0, 2, 4]]
        """
        ranked_QT = self.ranking(weights_QK, k=k, top=min(k, self.num_classes))
        complete_QC = np.empty((len(ranked_QT), self.num_classes), np.int64)
        for row, ranked in zip(complete_QC, ranked_QT, strict=True):
            voted = ranked[ranked >= 0]
            row[: len(voted)] = voted
            row[len(voted) :] = np.delete(np.arange(self.num_classes), voted)
        return complete_QC

    def places_among_unvoted(self, classes_Q: Ints, *, k: int) -> Ints:
        """Rank of each query's class among the classes without a vote, by number; -1 if it has a vote.

        Other projects' top-5 ranks these classes after all classes with a vote.
        """
        voted = np.where(self.first_QK[:, :k], self.labels_QK[:, :k], self.num_classes)
        place = classes_Q - (voted < classes_Q[:, None]).sum(axis=1)
        has_vote = (voted == classes_Q[:, None]).any(axis=1)
        return np.where(has_vote, -1, place).astype(np.int64)

    def num_voted(self, *, k: int) -> Ints:
        """Number of classes among the k nearest neighbours of each query."""
        counts: Ints = self.first_QK[:, :k].sum(axis=1, dtype=np.int64)
        return counts


def _slices(num_queries: int, num_classes: int) -> list[slice]:
    step = max(1, _SCORES_AT_ONCE // max(1, num_classes))
    return [slice(start, min(start + step, num_queries)) for start in range(0, num_queries, step)]
