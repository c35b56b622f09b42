"""Initial centroids: probabilities of k-means++, exchanges that only ever help, and no trace of threads."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import kmeans_plusplus

from featbench.evaluate.clustering.seeding import kmeans_plus_plus, swapped
from featbench.store.typing import Array, Doubles, Floats

pytestmark = pytest.mark.filterwarnings("error")


def rows_of(num_rows: int, dim: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)


def squares(rows_ND: Array, centroids_KD: Array) -> Doubles:
    """Squared distance of each row to the nearest centroid, in float64."""
    differences = rows_ND[:, None].astype(np.float64) - centroids_KD[None].astype(np.float64)
    nearest: Doubles = np.square(differences).sum(axis=2).min(axis=1)
    return nearest


def test_the_second_row_is_drawn_by_its_squared_distance() -> None:
    """Of 2 candidates that were drawn independently, the better one is taken; checked over 500 seeds."""
    rows_ND = np.array([[0], [1], [2], [4], [7]], np.float32)
    counts_NN = np.zeros((5, 5))
    for seed in range(500):
        first, second = kmeans_plus_plus(rows_ND, 2, seed=[seed], num_threads=1)
        counts_NN[first, second] += 1
    expected_NN = np.zeros((5, 5))
    for first in range(5):
        weights = squares(rows_ND, rows_ND[[first]])
        weights /= weights.sum()
        costs = np.array([squares(rows_ND, rows_ND[[first, second]]).sum() for second in range(5)])
        for one in range(5):
            for other in range(5):
                better = one if costs[one] <= costs[other] else other
                expected_NN[first, better] += 500 / 5 * weights[one] * weights[other]
    deviations = (counts_NN - expected_NN) ** 2 / np.maximum(expected_NN, 1e-9)
    assert not counts_NN[expected_NN == 0].any()
    assert deviations[expected_NN > 0].sum() < 45, "chi squared with less than 20 degrees of freedom, p < 0.001"


def test_starts_are_as_good_as_scikit_learns() -> None:
    rows_ND = rows_of(20, 8)[np.arange(800) % 20] * 5 + rows_of(800, 8, seed=1)
    ours = [squares(rows_ND, rows_ND[kmeans_plus_plus(rows_ND, 20, seed=[i], num_threads=1)]).sum() for i in range(20)]
    theirs = [squares(rows_ND, kmeans_plusplus(rows_ND, 20, random_state=i)[0]).sum() for i in range(20)]
    assert np.mean(ours) < 1.15 * np.mean(theirs)


@pytest.mark.parametrize("num_clusters", [1, 2, 25, 60])
@pytest.mark.parametrize("kind", ["different", "few different", "equal", "one far away", "tight"])
def test_chosen_rows_are_all_different_ones_whatever_the_threads(kind: str, num_clusters: int) -> None:
    rows_ND = rows_of(60, 3)
    if kind == "few different":
        rows_ND = rows_ND[np.arange(60) % 7]
    elif kind == "equal":
        rows_ND[:] = rows_ND[0]
    elif kind == "one far away":
        rows_ND[11] = 2.0**50
    elif kind == "tight":
        rows_ND = rows_ND[np.arange(60) % 3] + 1e-6 * rows_ND
    first, *others = (kmeans_plus_plus(rows_ND, num_clusters, seed=[3], num_threads=threads) for threads in (1, 2, 3))
    assert len(set(first.tolist())) == num_clusters
    assert all(np.array_equal(first, other) for other in others)
    different = len(np.unique(rows_ND, axis=0))
    if kind != "tight":
        assert len(np.unique(rows_ND[first], axis=0)) == min(different, num_clusters), "copies come last"


def test_a_row_far_away_does_not_hide_the_differences_of_the_others() -> None:
    rows_ND = rows_of(6, 4)[np.arange(120) % 6] * 10 + rows_of(120, 4, seed=1) * 0.01
    rows_ND[0] = 1e9
    chosen = kmeans_plus_plus(rows_ND, 7, seed=[0], num_threads=1)
    assert sorted((chosen[chosen > 0] % 6).tolist()) == [0, 1, 2, 3, 4, 5]


def test_threads_change_no_start_of_many_rows() -> None:
    rows_ND = rows_of(5000, 6)  # several pieces
    first, *others = (kmeans_plus_plus(rows_ND, 12, seed=[0], num_threads=threads) for threads in (1, 2, 3))
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("num_clusters", [1, 2, 30])
@pytest.mark.parametrize("kind", ["different", "few different", "equal", "one far away", "offset"])
def test_exchanges_never_raise_the_objective_and_do_not_depend_on_threads(kind: str, num_clusters: int) -> None:
    rows_ND = rows_of(2500, 5)
    if kind == "few different":
        rows_ND = rows_ND[np.arange(2500) % 7]
    elif kind == "equal":
        rows_ND[:] = rows_ND[0]
    elif kind == "one far away":
        rows_ND[11] = 2.0**50
    elif kind == "offset":
        rows_ND += 30
    centroids_KD = rows_ND[:num_clusters].copy()
    first, other = (swapped(rows_ND, centroids_KD, seed=[1], num_threads=threads) for threads in (1, 3))
    assert np.array_equal(first, other)
    before, after = (squares(rows_ND, each).sum() for each in (centroids_KD, first))
    assert after <= before
    if num_clusters == 30 and kind in ("different", "offset"):
        assert after < 0.95 * before


def test_an_exchange_finds_the_group_that_has_no_centroid() -> None:
    rows_ND = np.repeat(rows_of(5, 4) * 100, 30, axis=0) + rows_of(150, 4, seed=1)
    centroids_KD = rows_ND[[0, 1, 30, 60, 90]]  # two in one group, none in the last
    better_KD = swapped(rows_ND, centroids_KD, seed=[0], num_threads=1)
    assert squares(rows_ND, better_KD).max() < 100
