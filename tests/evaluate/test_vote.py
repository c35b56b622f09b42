"""Votes against a loop written from the paper, and the rules for ties."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from featbench.evaluate.knn.protocols import Vote
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.store.typing import Doubles, Ints


def neighbours(seed: int = 0, queries: int = 40, k: int = 30, classes: int = 6) -> tuple[Doubles, Ints]:
    random = np.random.default_rng(seed)
    return -np.sort(-random.uniform(-1, 1, (queries, k)), axis=1), random.integers(0, classes, (queries, k))


def ranking_by_hand(similarities: Doubles, labels: Ints, weigh: Callable[..., Any], k: int) -> list[list[int]]:
    """Score, then nearest neighbour: one neighbour at a time."""
    ranked = []
    for row, classes in zip(similarities, labels, strict=True):
        scores = {}
        for similarity, label in list(zip(row, classes.tolist(), strict=True))[:k]:
            scores[label] = scores.get(label, 0.0) + weigh(similarity)
        first = {label: classes.tolist().index(label) for label in scores}
        ranked.append(sorted(scores, key=lambda label: (-scores[label], first[label])))
    return ranked


@pytest.mark.parametrize("k", [1, 2, 7, 30])
@pytest.mark.parametrize(
    ("vote", "temperature", "weigh"),
    [
        ("exponential", 0.07, lambda s: np.exp(np.longdouble(s) / 0.07)),
        ("exponential", 1.0, lambda s: np.exp(np.longdouble(s))),
        ("uniform", None, lambda s: 1.0),
        ("inverse_distance", None, lambda s: 1 / (1e-5 - s)),
    ],
)
def test_classes_are_ranked_as_by_hand(
    k: int, vote: Vote, temperature: float | None, weigh: Callable[..., Any]
) -> None:
    similarities, labels = neighbours()
    if vote == "inverse_distance":
        similarities = similarities - 1
    votes = ClassVotes.of(labels, num_classes=6)
    ranked = votes.ranking(vote_weights(similarities, vote=vote, temperature=temperature), k=k)
    expected = ranking_by_hand(similarities, labels, weigh, k)
    for got, wanted in zip(ranked.tolist(), expected, strict=True):
        assert [label for label in got if label >= 0] == wanted[:5]
    assert votes.num_voted(k=k).tolist() == [len(wanted) for wanted in expected]


def test_vote_stays_finite_and_right_where_peers_overflow() -> None:
    """exp(s / T) is infinite in float32 from s / T = 89 on; unnormalised features reach that at once."""
    similarities = np.array([[5000.0, 4999.0, 4999.0, 10.0]])
    labels = np.array([[2, 1, 1, 0]])
    for temperature in (1e-6, 0.01, 0.07, 1e6):
        weights = vote_weights(similarities, vote="exponential", temperature=temperature)
        assert np.isfinite(weights).all()
        ranked = ClassVotes.of(labels, num_classes=3).ranking(weights, k=4)
        assert ranked[0, 0] == (1 if temperature > 2 else 2)


def test_equal_scores_go_to_the_class_of_the_nearer_neighbour() -> None:
    similarities = np.array([[0.5, 0.5, 0.5, 0.5]])
    weights = vote_weights(similarities, vote="exponential", temperature=0.07)
    assert ClassVotes.of(np.array([[3, 0, 0, 3]]), num_classes=4).ranking(weights, k=4)[0].tolist() == [
        3,
        0,
        -1,
        -1,
        -1,
    ]
    assert ClassVotes.of(np.array([[0, 3, 3, 0]]), num_classes=4).ranking(weights, k=4)[0].tolist() == [
        0,
        3,
        -1,
        -1,
        -1,
    ]


def test_repeated_classes_add_up() -> None:
    """`scores[rows, labels] += w` would count each class once."""
    votes = ClassVotes.of(np.array([[1, 0, 0, 0]]), num_classes=2)
    assert votes.ranking(np.array([[1.0, 0.5, 0.5, 0.5]]), k=4)[0, 0] == 0


@pytest.mark.parametrize("num_classes", [3, 50_000, 3_000_000])
def test_slices_of_queries_change_nothing(num_classes: int) -> None:
    similarities, labels = neighbours(classes=3)
    weights = vote_weights(similarities, vote="exponential", temperature=0.1)
    few = ClassVotes.of(labels, num_classes=3).ranking(weights, k=9)
    assert np.array_equal(ClassVotes.of(labels, num_classes=num_classes).ranking(weights, k=9), few)


def test_classes_without_a_vote_have_their_place_behind_the_others() -> None:
    votes = ClassVotes.of(np.array([[4, 2, 4]]), num_classes=7)  # without a vote, in order: 0 1 3 5 6
    assert [int(votes.places_among_unvoted(np.array([c]), k=3)[0]) for c in range(7)] == [0, 1, -1, 2, -1, 3, 4]
    assert votes.places_among_unvoted(np.array([2]), k=1)[0] == 2


def scikit_learns_votes(k: int) -> tuple[ClassVotes, Doubles, Doubles]:
    """Ballot, weights, and the probabilities of scikit-learn's classifier with the same weights."""
    random = np.random.default_rng(5)
    rows, queries, labels = random.standard_normal((60, 3)), random.standard_normal((25, 3)), np.arange(60) % 7
    peer = KNeighborsClassifier(k, weights=lambda distances: 1 / (distances + 1e-5)).fit(rows, labels)
    distances, neighbours = peer.kneighbors(queries, n_neighbors=12)  # more than vote
    votes = ClassVotes.of(labels[neighbours], num_classes=7)
    return votes, vote_weights(-distances, vote="inverse_distance"), peer.predict_proba(queries)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_probabilities_are_scikit_learns(k: int) -> None:
    votes, weights, expected = scikit_learns_votes(k)
    assert votes.probabilities(weights, k=k) == pytest.approx(expected, rel=1e-12)
    ranked, probabilities = votes.ranking_with_probabilities(weights, k=k, top=3)
    assert np.array_equal(ranked, votes.ranking(weights, k=k, top=3))
    assert probabilities == pytest.approx(-np.sort(-expected, axis=1)[:, :3], rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_a_complete_ranking_puts_classes_without_a_vote_last_by_number(k: int) -> None:
    votes, weights, expected = scikit_learns_votes(k)
    by_number = np.argsort(-expected, axis=1, kind="stable")  # two classes with a vote never tie here
    assert np.array_equal(votes.complete_ranking(weights, k=k), by_number)


@pytest.mark.parametrize(("num_queries", "num_classes"), [(400, 100_000), (4, 6_000_000)])
def test_memory_for_votes_does_not_grow_with_classes_and_queries(num_queries: int, num_classes: int) -> None:
    """400 queries of 100,000 classes have 320 MB of scores in float64; of 6 million, one query has 48 MB."""
    labels = np.random.default_rng(0).integers(0, num_classes, (num_queries, 3))
    tracemalloc.start()
    try:
        ClassVotes.of(labels, num_classes=num_classes).ranking(np.ones((num_queries, 3)), k=3)
        assert tracemalloc.get_traced_memory()[1] < 120e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("k", [0, 31])
def test_k_beyond_the_neighbours_is_refused(k: int) -> None:
    similarities, labels = neighbours()
    with pytest.raises(ValueError, match=r"k must be in \[1, 30\]"):
        ClassVotes.of(labels, num_classes=6).ranking(similarities, k=k)


@pytest.mark.parametrize("temperature", [None, 0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float | None) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        vote_weights(np.zeros((1, 1)), vote="exponential", temperature=temperature)
