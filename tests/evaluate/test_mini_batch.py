"""Mini-batch k-means follows scikit-learn's rule, with the same bits for any memory, threads and engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

import featbench.evaluate.clustering.mini_batch
import featbench.evaluate.clustering.planning
from featbench.evaluate.clustering import teamwork
from featbench.evaluate.clustering.kmeans import kmeans
from featbench.evaluate.clustering.lloyd import Clustering, Iteration
from featbench.evaluate.clustering.mini_batch import PATIENCE, Smoothed
from featbench.evaluate.clustering.planning import ClusterPlan, rows_drawn_together
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.store.typing import Array, Doubles, Floats
from tests.cluster_ranks import assert_same, cluster, finish, make_clustered, start_rank
from tests.evaluate.test_kmeans import ENGINES, blobs, in_float64, plan_of
from tests.evaluate.test_search import held
from tests.evaluate.test_teamwork import StopsAfter, interrupt


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Doubles]:
    """The batches that are drawn, in float64."""
    batches: list[Doubles] = []
    original = featbench.evaluate.clustering.mini_batch._batches

    def recorded(*arguments: Any) -> Any:
        for tile in original(*arguments):
            batches.append(tile.exact())
            yield tile

    monkeypatch.setattr(featbench.evaluate.clustering.mini_batch, "_batches", recorded)
    return batches


def by_mini_batches(
    values: Array, start_KD: Array, tmp_path: Any, *, batch: int, plan: ClusterPlan | None = None, **settings: Any
) -> Clustering:
    np.save(tmp_path / "start.npy", start_KD)
    wanted = KmeansSettings(
        num_clusters=len(start_KD),
        init=str(tmp_path / "start.npy"),
        mini_batch=batch,
        **{"normalize": False} | settings,
    )
    return kmeans(held(np.asarray(values, np.float32)), wanted, plan=plan or plan_of())


def slowly(batches: list[Doubles], start_KD: Doubles) -> Doubles:
    """Sculley 2010, algorithm 1, one row at a time."""
    centroids_KD, counts_K = start_KD.astype(np.float64).copy(), np.zeros(len(start_KD))
    for rows_BD in batches:
        nearest = [int(np.square(centroids_KD - row).sum(axis=1).argmin()) for row in rows_BD]
        for row, number in zip(rows_BD, nearest, strict=True):
            counts_K[number] += 1
            rate = 1 / counts_K[number]
            centroids_KD[number] = (1 - rate) * centroids_KD[number] + rate * row
    return centroids_KD


@pytest.mark.parametrize("normalize", [False, True])
def test_centroids_are_those_of_the_rule_written_slowly_and_of_scikit_learn(
    normalize: bool, drawn: list[Doubles], tmp_path: Any
) -> None:
    values, _ = blobs(8, 5, 700)
    start_KD = in_float64(values[:8], normalize=normalize)
    found = by_mini_batches(values, start_KD, tmp_path, batch=60, iterations=4, tolerance=0, normalize=normalize)
    assert found.iterations == len(drawn) <= 4 * 700 // 60
    assert np.allclose(found.centroids_KD, slowly(drawn, start_KD), rtol=0, atol=1e-9)
    theirs = MiniBatchKMeans(8, init=start_KD, n_init=1, reassignment_ratio=0)
    for rows_BD in drawn:
        theirs.partial_fit(rows_BD)
    assert np.allclose(found.centroids_KD, theirs.cluster_centers_, rtol=0, atol=1e-9)
    rows_ND = in_float64(values, normalize=normalize)
    squares_NK = np.square(rows_ND[:, None] - found.centroids_KD).sum(axis=2)
    assert np.isclose(found.objective, squares_NK.min(axis=1).sum(), rtol=1e-9)


def test_batches_are_rows_of_the_whole_set_drawn_without_replacement(drawn: list[Doubles], tmp_path: Any) -> None:
    values = np.arange(1000.0)[:, None]
    by_mini_batches(values, values[:3], tmp_path, batch=100, iterations=2, tolerance=0)
    first = np.concatenate(drawn[:10]).ravel()
    assert np.array_equal(np.sort(first), values.ravel())
    assert all(np.ptp(batch) > 700 for batch in drawn)
    assert not np.array_equal(first, np.concatenate(drawn[10:20]).ravel())


@pytest.mark.parametrize("engine", ["float32", "faiss", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_memory_threads_and_engine_change_no_bit(engine: str, tmp_path: Any) -> None:
    values, _ = blobs(6, 7, 500)
    found = [
        by_mini_batches(values, values[:6], tmp_path, batch=70, plan=plan, iterations=3)
        for plan in (
            plan_of(1000),
            plan_of(64, num_threads=2, engine=ENGINES[engine]),
            plan_of(128, hold=True, engine=ENGINES[engine]),
        )
    ]
    for each in found[1:]:
        assert np.array_equal(each.centroids_KD, found[0].centroids_KD)
        assert (each.objective, each.iterations) == (found[0].objective, found[0].iterations)


def test_a_few_batches_come_close_to_the_objective_of_all_rows() -> None:
    values, _ = blobs(30, 16, 3000)
    full, quick = (
        kmeans(held(values), KmeansSettings(num_clusters=30, normalize=False, mini_batch=batch), plan=plan_of())
        for batch in (None, 500)
    )
    assert quick.objective <= 1.02 * full.objective


def test_it_stops_after_ten_batches_without_improvement() -> None:
    smoothed = Smoothed(weight=1.0, tolerance=0.01)
    for objective in (9.0, 5.0, 4.0):
        smoothed = smoothed.add(objective)
    assert (smoothed.mean, smoothed.num_failures) == (4.0, 0)
    for number in range(PATIENCE):
        smoothed = smoothed.add(3.99)
        assert smoothed.num_failures == number + 1
    assert smoothed.add(3.9).num_failures == 0


def test_smoothing_is_scikit_learns() -> None:
    """The first batch does not count; the weight of a batch is 2 B / (N + 1)."""
    theirs = MiniBatchKMeans(2, batch_size=10)
    theirs._batch_size, theirs._tol, theirs.max_no_improvement = 10, 0.0, 1000
    theirs._ewa_inertia = theirs._ewa_inertia_min = None
    theirs._no_improvement = 0
    smoothed = Smoothed(weight=20 / 101, tolerance=0)
    for step, objective in enumerate(np.random.default_rng(0).random(30).tolist()):
        theirs._mini_batch_convergence(step, 1000, 100, 0.0, objective * 10)
        smoothed = smoothed.add(objective)
        if step:
            assert np.isclose(smoothed.mean, theirs._ewa_inertia, rtol=1e-12)
            assert smoothed.num_failures == theirs._no_improvement


def test_a_batch_larger_than_the_set_is_the_whole_set(drawn: list[Doubles], tmp_path: Any) -> None:
    values, _ = blobs(3, 4, 50)
    found = by_mini_batches(values, values[:3], tmp_path, batch=10_000, iterations=2, tolerance=0)
    assert [len(batch) for batch in drawn] == [50, 50]
    assert found.iterations == 2


def test_progress_tells_of_batches(tmp_path: Any) -> None:
    values, _ = blobs(3, 4, 200)
    told: list[Iteration] = []
    settings = KmeansSettings(num_clusters=3, mini_batch=50, iterations=2, tolerance=0)
    kmeans(held(values), settings, plan=plan_of(), on_iteration=told.append)
    assert [each.number for each in told] == [4, 8]
    assert all(each.moved is None and each.objective > 0 for each in told)


def test_the_rows_that_are_drawn_together_fit_and_are_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featbench.evaluate.clustering.planning, "_DRAWN_NUMBERS", 1000)
    for num_rows, dim, batch in [(10_000, 10, 30), (50, 10, 30), (50, 10, 80), (10_000, 2000, 30)]:
        drawn = rows_drawn_together(num_rows, dim, batch)
        assert drawn % min(batch, num_rows) == 0 < drawn <= num_rows
        assert drawn * dim <= 1000 or drawn == min(batch, num_rows)


def test_a_drawing_that_reads_only_some_rows_changes_no_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A set larger than what is drawn together: rows lie in all blocks, some of which have none."""
    monkeypatch.setattr(featbench.evaluate.clustering.planning, "_DRAWN_NUMBERS", 40)
    values: Floats = blobs(3, 4, 300)[0]
    found = [
        by_mini_batches(values, values[:3], tmp_path, batch=5, plan=plan, iterations=1, normalize=True)
        for plan in (plan_of(1000), plan_of(32, num_threads=2))
    ]
    assert np.array_equal(found[0].centroids_KD, found[1].centroids_KD)


@pytest.mark.parametrize("after", [3, *(pytest.param(last, marks=pytest.mark.slow) for last in (6, 10))])
def test_an_interrupted_run_goes_on_with_the_same_bits(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teamwork, "_UNSAVED_S", 0)
    monkeypatch.setattr(featbench.evaluate.clustering.planning, "_DRAWN_NUMBERS", 5 * 60)  # three batches
    settings: dict[str, Any] = {"mini_batch": 20, "iterations": 1, "tolerance": 0}
    whole, broken = (make_clustered(tmp_path, name) for name in ("whole", "broken"))
    assert cluster(whole, **settings)[0]["iterations"] == 200 // 20
    interrupt(broken, after=after, **settings)
    watcher = StopsAfter(-1)
    cluster(broken, watcher=watcher, **settings)
    assert watcher.seen == [number for number in (3, 6, 9, 10) if number >= after]
    assert_same(whole, broken)


@pytest.mark.slow
def test_ranks_find_the_same_clusters_to_the_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mini_batch": 20, "iterations": 2, "normalize": True, "spherical": True}
    alone, together = (make_clustered(tmp_path, name) for name in ("alone", "together"))
    cluster(alone, **settings)
    finish(*(start_rank(together, num_ranks=2, **settings) for _ in range(2)))
    assert_same(alone, together)
