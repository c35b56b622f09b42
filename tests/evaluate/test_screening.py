"""Screening by the triangle inequality: the same nearest centroids as by brute force, for fewer products."""

import numpy as np
import pytest

from featbench.evaluate.clustering.assignment import Nearest
from featbench.evaluate.clustering.planning import ClusterPlan
from featbench.evaluate.clustering.proposals import Products
from featbench.evaluate.clustering.rows import Frame, Tile
from featbench.evaluate.clustering.screening import Bounds, Screen
from featbench.store.typing import Doubles, Ints
from tests.evaluate.test_assignment import CENTROIDS, ENGINES, ROWS, brute_force, in_float64

PASSES = 6


def moved(random: np.random.Generator, centroids_KD: Doubles, spread: Doubles) -> Doubles:
    """Centroids of the next pass: most move a little, some far, some not at all, and two become equal or part."""
    size_K = random.choice([0, 1e-9, 1e-3, 1], p=[0.2, 0.2, 0.5, 0.1], size=len(centroids_KD))
    moved_KD = centroids_KD + random.standard_normal(centroids_KD.shape) * spread * size_K[:, None]
    moved_KD[random.integers(len(moved_KD))] = moved_KD[random.integers(len(moved_KD))]
    return moved_KD


def check(rows: str, centroids: str, engine: str, *, seed: int, dim: int, num_rows: int, num_clusters: int) -> None:
    """Compare several passes with brute force."""
    random = np.random.default_rng([seed, dim])
    stored_ND = ROWS[rows](random, num_rows, dim).astype(np.float32)
    for normalize in (False, True):
        rows_ND = in_float64(stored_ND, normalize=normalize)
        frame = Frame.around(rows_ND, rows_ND.min(axis=0), rows_ND.max(axis=0))
        plan = ClusterPlan(rows_per_block=num_rows, engine=ENGINES[engine])
        lengths_N = np.sqrt(np.square(stored_ND.astype(float)).sum(axis=1)) if normalize else None
        divisors_N = None if lengths_N is None else np.where(lengths_N == 0, 1, lengths_N)
        tile = Tile(positions=slice(0, num_rows), stored_ND=stored_ND, divisors_N=divisors_N)
        centroids_KD, before_KD = CENTROIDS[centroids](random, rows_ND, num_clusters), None
        clusters_N: Ints = np.full(num_rows, -1, np.int64)
        bounds = Bounds(num_rows)
        for _ in range(PASSES):
            screen = Screen(Nearest(centroids_KD, frame, plan), before_KD)
            clusters_N = screen.assign(tile, clusters_N, bounds)
            expected_N, own_N, others_N = brute_force(rows_ND, centroids_KD)
            assert np.array_equal(clusters_N, expected_N)
            spare_N = 1e-9 * frame.factor * (others_N + np.abs(rows_ND).max())
            assert (bounds.own_N >= own_N * frame.factor - spare_N).all()
            is_known_N = bounds.others_N > 0
            assert (bounds.others_N <= others_N * frame.factor + spare_N)[is_known_N].all()
            before_KD, centroids_KD = centroids_KD, moved(random, centroids_KD, rows_ND.std(axis=0))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", ROWS)
def test_clusters_are_those_of_brute_force_in_every_pass(rows: str, engine: str) -> None:
    check(rows, "rows", engine, seed=0, dim=7, num_rows=150, num_clusters=20)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["float32", "bfloat16"])
@pytest.mark.parametrize("centroids", CENTROIDS)
@pytest.mark.parametrize("rows", ROWS)
def test_clusters_of_any_shape_are_those_of_brute_force(rows: str, centroids: str, engine: str) -> None:
    random = np.random.default_rng(2)
    for seed in range(6):
        dim, num_rows, num_clusters = (int(random.integers(1, most)) for most in (80, 2000, 300))
        check(rows, centroids, engine, seed=seed, dim=dim, num_rows=1 + num_rows, num_clusters=num_clusters)


def test_few_rows_are_compared_with_all_centroids_once_these_hardly_move(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    centers_KD = random.standard_normal((320, 16)) * 3
    stored_ND = (centers_KD[random.integers(0, 320, 4000)] + random.standard_normal((4000, 16))).astype(np.float32)
    rows_ND = stored_ND.astype(float)
    frame = Frame.around(rows_ND, rows_ND.min(axis=0), rows_ND.max(axis=0))
    tile = Tile(positions=slice(0, 4000), stored_ND=stored_ND, divisors_N=None)
    compared: list[int] = []
    two_best = Products._two_best

    def counted(products: Products, rows: np.ndarray) -> tuple[Doubles, Ints, Doubles]:
        compared.append(len(rows) * len(products._reach_K))
        return two_best(products, rows)

    monkeypatch.setattr(Products, "_two_best", counted)
    bounds, clusters_N = Bounds(4000), np.full(4000, -1, np.int64)
    moves_KD = random.standard_normal((320, 16)) * np.where(np.arange(320) < 15, 1, 1e-3)[:, None]
    for before_KD, centroids_KD in ((None, centers_KD), (centers_KD, centers_KD + moves_KD)):
        compared.clear()
        screen = Screen(Nearest(centroids_KD, frame, ClusterPlan(rows_per_block=4000)), before_KD)
        clusters_N = screen.assign(tile, clusters_N, bounds)
        assert np.array_equal(clusters_N, brute_force(rows_ND, centroids_KD)[0])
    assert 0 < sum(compared) < 4000 * 320 / 4
