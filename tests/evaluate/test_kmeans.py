"""k-means finds what scikit-learn finds or better, and the same bits whatever the memory, threads and engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Condition
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from featbench.evaluate.clustering.assignment import assign
from featbench.evaluate.clustering.evaluation import evaluate_kmeans
from featbench.evaluate.clustering.kmeans import kmeans
from featbench.evaluate.clustering.lloyd import Clustering, Iteration
from featbench.evaluate.clustering.planning import ClusterPlan
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.clustering.teamwork import Alone, Arrays
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.backends import EngineChoice
from featbench.store.typing import Array, Doubles, Ints
from tests.conftest import make_features
from tests.evaluate.test_search import Held, held

ENGINES = {
    "float32": EngineChoice(where="cpu"),
    "bfloat16": EngineChoice(where="cpu", low="bfloat16"),
    "faiss": EngineChoice(where="faiss-cpu"),
}


def plan_of(rows_per_block: int = 256, **settings: Any) -> ClusterPlan:
    return ClusterPlan(rows_per_block=rows_per_block, **settings)


def cluster(
    values: Array, num_clusters: int, *, plan: ClusterPlan | None = None, normalize: bool = False, **settings: Any
) -> Clustering:
    wanted = KmeansSettings(num_clusters=num_clusters, normalize=normalize, **settings)
    return kmeans(held(np.asarray(values, np.float32)), wanted, plan=plan or plan_of())


def clusters_of(values: Array, found: Clustering, *, normalize: bool = False) -> Ints:
    data = held(np.asarray(values, np.float32))
    return assign(data, found.centroids_KD, normalize=normalize, plan=plan_of()).clusters_N


def in_float64(values: Array, *, normalize: bool) -> Doubles:
    rows = np.asarray(values, np.float32).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows


def blobs(
    num_clusters: int, dim: int, num_rows: int, *, long_tailed: bool = False, seed: int = 0
) -> tuple[Array, Ints]:
    """Well separated groups, of equal sizes or of sizes 1, 1/2, 1/3, ..."""
    random = np.random.default_rng(seed)
    share = 1 / np.arange(1, num_clusters + 1) if long_tailed else np.ones(num_clusters)
    few = np.arange(num_clusters).repeat(3)
    labels = np.concatenate([few, random.choice(num_clusters, num_rows - len(few), p=share / share.sum())])
    values = random.standard_normal((num_clusters, dim))[labels] * 3 + random.standard_normal((num_rows, dim))
    return values.astype(np.float32), labels


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("num_clusters", "dim", "num_rows", "long_tailed"),
    [
        (30, 64, 2000, False),
        (30, 16, 2000, True),
        pytest.param(100, 32, 6000, False, marks=pytest.mark.slow),
        pytest.param(100, 128, 8000, True, marks=pytest.mark.slow),
        pytest.param(300, 16, 12000, False, marks=pytest.mark.slow),
        pytest.param(300, 64, 15000, True, marks=pytest.mark.slow),
        pytest.param(300, 512, 12000, True, marks=pytest.mark.slow),
    ],
)
def test_separated_groups_are_found_as_well_as_by_scikit_learns_best_of_ten(
    num_clusters: int, dim: int, num_rows: int, long_tailed: bool, normalize: bool
) -> None:
    values, _ = blobs(num_clusters, dim, num_rows, long_tailed=long_tailed)
    rows = in_float64(values, normalize=normalize)
    theirs = KMeans(num_clusters, n_init=10, random_state=0).fit(rows)
    ours = cluster(values, num_clusters, normalize=normalize)
    assert ours.objective <= 1.001 * theirs.inertia_


def test_thirty_groups_are_the_thirty_clusters() -> None:
    values, labels = blobs(30, 64, 2000)
    assert adjusted_rand_score(labels, clusters_of(values, cluster(values, 30))) == 1


@pytest.mark.parametrize("normalize", [False, True])
def test_the_objective_is_that_of_the_nearest_centroids(normalize: bool) -> None:
    values, _ = make_blobs(600, 8, centers=6, cluster_std=1.5, random_state=0)
    rows = in_float64(values, normalize=normalize)
    ours = cluster(values, 6, normalize=normalize)
    squares = ((rows[:, None] - ours.centroids_KD[None]) ** 2).sum(2)
    assert (clusters_of(values, ours, normalize=normalize) == squares.argmin(1)).all()
    assert ours.objective == pytest.approx(squares.min(1).sum(), rel=1e-12)
    assert ours.objective <= 1.001 * KMeans(6, n_init=10, random_state=0).fit(rows).inertia_


@pytest.mark.parametrize("settings", [{"normalize": True}, {"normalize": False}, {"spherical": True}])
def test_blocks_memory_threads_and_engines_change_no_bit(settings: dict[str, Any]) -> None:
    values = np.random.default_rng(0).standard_normal((700, 24)).astype(np.float32) + 3
    plans = [
        plan_of(64, hold=hold, num_threads=threads, engine=engine)
        for hold, threads, engine in [
            (False, 1, ENGINES["float32"]),
            (True, 2, ENGINES["float32"]),
            (True, 3, ENGINES["bfloat16"]),
            (False, 2, ENGINES["faiss"]),
        ]
    ]
    first, *others = [cluster(values, 20, plan=replace(plan, rows_per_block=64 * (1 + i)), **settings)
                      for i, plan in enumerate(plans)]  # fmt: skip
    for other in others:
        assert np.array_equal(first.centroids_KD, other.centroids_KD)
        assert (first.objective, first.iterations) == (other.objective, other.iterations)


def test_chunks_change_no_bit() -> None:
    values = np.random.default_rng(0).standard_normal((700, 24)).astype(np.float32)
    settings = KmeansSettings(num_clusters=9, restarts=2)
    found = [
        kmeans(Selection(layer=Held(values, rows_per_chunk=rows), rows=np.arange(700)), settings, plan=plan_of(100))
        for rows in (7, 64, 700)
    ]
    assert all(np.array_equal(found[0].centroids_KD, other.centroids_KD) for other in found[1:])


def test_every_row_takes_part_though_the_start_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featbench.evaluate.clustering.starts.sample_size", lambda *sizes: 100)
    values = np.random.default_rng(0).standard_normal((3000, 4))
    ours = cluster(values, 2, tolerance=0)
    clusters = clusters_of(values, ours)
    rows = in_float64(values, normalize=False)
    means = np.stack([rows[clusters == number].mean(axis=0) for number in range(2)])
    assert ours.centroids_KD == pytest.approx(means, abs=1e-9)


def test_as_many_clusters_as_rows_and_no_more() -> None:
    values = np.arange(12).reshape(6, 2) ** 2
    assert cluster(values, 6).objective == 0
    with pytest.raises(EvaluationError, match=r"clusters must be in \[1, 6\]"):
        cluster(values, 7)
    with pytest.raises(EvaluationError, match=r"clusters must be in \[1, 6\].*got 0"):
        cluster(values, 0)


def test_one_cluster_is_the_mean() -> None:
    values, _ = make_blobs(600, 8, centers=6, random_state=0)
    rows = in_float64(values, normalize=False)
    ours = cluster(values, 1)
    assert ours.centroids_KD == pytest.approx(rows.mean(axis=0)[None], rel=1e-12)
    assert ours.objective == pytest.approx(600 * rows.var(axis=0).sum(), rel=1e-12)


@pytest.mark.parametrize("iterations", [2, 3, 4])
def test_iterations_are_scikit_learns_from_the_same_start(iterations: int, tmp_path: Path) -> None:
    """The centroids that count are those of which the objective is, one step after each pass but the last."""
    values = np.random.default_rng(0).standard_normal((3000, 4))
    rows = in_float64(values, normalize=False)
    np.save(tmp_path / "start.npy", rows[:8])
    ours = cluster(values, 8, iterations=iterations, tolerance=0, init=str(tmp_path / "start.npy"))
    assert ours.iterations == iterations
    peer = KMeans(8, init=rows[:8], n_init=1, max_iter=iterations - 1, tol=0).fit(rows)
    assert ours.centroids_KD == pytest.approx(peer.cluster_centers_, abs=1e-10)
    assert ours.objective == pytest.approx(peer.inertia_, rel=1e-10)


def test_centroids_that_do_not_move_end_it() -> None:
    values = np.array([[0, 0], [0, 2], [10, 0], [10, 2]])
    ours = cluster(values, 2)
    assert (ours.objective, ours.iterations) == (4, 1)


def test_an_improvement_below_the_tolerance_ends_it(tmp_path: Path) -> None:
    """No pass after the first halves the objective."""
    values = np.random.default_rng(0).standard_normal((3000, 4))
    np.save(tmp_path / "start.npy", values[:8])
    start = str(tmp_path / "start.npy")
    assert cluster(values, 8, tolerance=0.5, init=start).iterations == 2
    assert cluster(values, 8, tolerance=0, init=start).iterations > 4


def test_a_cluster_without_rows_gets_the_row_farthest_from_its_centroid(tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 0], [8, 8], [9, 8], [30, 0]])
    np.save(tmp_path / "start.npy", np.array([[0, 0], [9, 9], [500, 500]]))
    ours = cluster(values, 3, init=str(tmp_path / "start.npy"))
    assert ours.centroids_KD.tolist() == [[0.5, 0.5], [8.5, 8], [30, 0]]
    assert (ours.objective, ours.num_reseeded) == (1.5, 1)


def test_more_clusters_than_different_rows_leave_some_without_rows() -> None:
    values = np.repeat(np.eye(3), 4, axis=0)
    ours = cluster(values, 5)
    assert ours.objective == 0
    assert len(np.unique(clusters_of(values, ours))) == 3


@pytest.mark.parametrize(("plan", "reads"), [(plan_of(4, hold=True), 1), (plan_of(3), 3)])
def test_rows_that_fit_are_read_once(plan: ClusterPlan, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they are read for the survey, and again in every pass."""

    class Counted(Held):
        num_reads = 0

        def map_blocks(self, *arguments: Any) -> Any:
            self.num_reads += 1
            return super().map_blocks(*arguments)

    layer = Counted(np.array([[0, 0], [0, 2], [10, 0], [10, 3]], np.float32), rows_per_chunk=1)
    start = np.array([[0, 0], [10, 0]], np.float64)
    data = Selection(layer=layer, rows=np.arange(4))
    settings = KmeansSettings(num_clusters=2, normalize=False, tolerance=0, iterations=2)
    monkeypatch.setattr("featbench.evaluate.clustering.kmeans.starting_centroids", lambda *args, **more: start)
    assert kmeans(data, settings, plan=plan).iterations == 2
    assert layer.num_reads == reads


def four_groups(seed: int = 0) -> tuple[Ints, Doubles]:
    """Four groups of rows, far apart."""
    random = np.random.default_rng(seed)
    labels = np.arange(400) % 4
    return labels, random.standard_normal((4, 16))[labels] * 3 + random.standard_normal((400, 16)) * 0.3


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("offset", [0, 1000, 10_000])
def test_an_offset_of_all_rows_costs_no_accuracy(offset: int, normalize: bool) -> None:
    values, _ = blobs(30, 64, 1500)
    stored = (values + offset).astype(np.float32)
    rows = in_float64(stored, normalize=normalize)
    ours = cluster(stored, 30, normalize=normalize)
    squares = np.stack([((rows - centroid) ** 2).sum(1) for centroid in ours.centroids_KD])
    assert (clusters_of(stored, ours, normalize=normalize) == squares.argmin(0)).all()
    assert ours.objective == pytest.approx(squares.min(0).sum(), rel=1e-9)
    assert ours.objective <= 1.001 * KMeans(30, n_init=3, random_state=0).fit(rows).inertia_


FACTORS = (1e-30, 1e-18, 1e-9, 1, 1e9, 1e20, 1e37)
"""Units of the numbers; with an offset the last would be beyond float32."""


@pytest.mark.parametrize(
    ("factor", "offset"),
    [*((factor, 0) for factor in FACTORS), *((factor, 1000) for factor in FACTORS if 1000 * factor < 1e38)],
)
def test_numbers_whose_squares_float32_cannot_hold_are_clustered_like_any_others(factor: float, offset: int) -> None:
    labels, values = four_groups()
    stored = ((values + offset) * factor).astype(np.float32)
    ours = cluster(stored, 4)
    assert adjusted_rand_score(labels, clusters_of(stored, ours)) == 1
    exact = stored.astype(np.float64) / factor
    theirs = KMeans(4, n_init=5, random_state=0).fit(exact)
    assert ours.objective / factor / factor == pytest.approx(theirs.inertia_, rel=1e-9)


def test_rows_of_very_different_lengths_are_added_up_exactly() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((300, 5)) * 10.0 ** random.integers(-12, 13, (300, 1))
    rows = in_float64(values, normalize=False)
    ours = cluster(values, 12, tolerance=0)
    clusters = clusters_of(values, ours)
    for number in np.unique(clusters):
        mean = rows[clusters == number].mean(axis=0)
        assert ours.centroids_KD[number] == pytest.approx(mean, rel=1e-9, abs=1e-9 * np.abs(mean).max())


def test_spherical_centroids_have_length_one() -> None:
    values = np.random.default_rng(0).standard_normal((300, 5)) + 1
    ours = cluster(values, 6, normalize=True, spherical=True)
    assert np.linalg.norm(ours.centroids_KD, axis=1) == pytest.approx(1, abs=1e-12)
    rows = in_float64(values, normalize=True)
    assert (clusters_of(values, ours, normalize=True) == (rows @ ours.centroids_KD.T).argmax(1)).all()


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_seeds_give_different_starts_and_equal_seeds_equal_ones(init: str) -> None:
    values = np.random.default_rng(0).standard_normal((500, 16))
    first, again, other = (cluster(values, 25, seed=seed, init=init) for seed in (0, 0, 1))
    assert np.array_equal(first.centroids_KD, again.centroids_KD)
    assert not np.array_equal(first.centroids_KD, other.centroids_KD)


def test_each_pass_is_told() -> None:
    values = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    told: list[Iteration] = []
    rows: list[int] = []
    found = kmeans(
        held(values), KmeansSettings(num_clusters=25), plan=plan_of(), on_iteration=told.append, on_rows=rows.append
    )
    assert [each.number for each in told] == list(range(1, found.iterations + 1))
    assert told[-1].objective == found.objective
    assert told[0].moved == 500
    assert sum(rows) == 500 * found.iterations
    assert [each.objective for each in told] == sorted((each.objective for each in told), reverse=True)


def save_start(path: Path, content: Any) -> Path:
    np.save(path, content)
    return path


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: save_start(path, np.zeros((3, 4))), r"expected 2 x 4 finite numbers.*got 3 x 4 of float64"),
        (lambda path: save_start(path, np.zeros((2, 5))), r"got 2 x 5 of float64"),
        (lambda path: save_start(path, np.full((2, 4), np.nan)), "hold NaN or infinity"),
        (lambda path: save_start(path, np.array([["a"] * 4] * 2)), "got 2 x 4 of <U1"),
        (lambda path: save_start(path, np.full((2, 4), 1e39)), "numbers beyond float32"),
        (lambda path: path.write_bytes(b"\x93NUMPY"), "can't be read as initial centroids"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no archive"), "can't be read as initial centroids"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x06\x00{'a':("), "can't be read as initial centroids"),
        (lambda path: None, "can't be read as initial centroids"),
    ],
)
def test_given_centroids_that_do_not_fit_are_refused(
    write: Callable[[Path], object], text: str, tmp_path: Path
) -> None:
    write(tmp_path / "start.npy")
    with pytest.raises(EvaluationError, match=text):
        cluster(np.random.default_rng(0).standard_normal((50, 4)), 2, init=str(tmp_path / "start.npy"))


def test_records_say_how_many_passes_were_made(tmp_path: Path) -> None:
    labels, values = four_groups()
    features = {split: {"x": values.astype(np.float32)} for split in ("train", "val")}
    made = make_features(tmp_path / "f", features, {"train": labels, "val": labels}, rows_per_chunk=400)
    passes = cluster(values, 4, normalize=True).iterations
    for _ in range(2):  # the second time from what was kept
        records = evaluate_kmeans(made, ["x"], clusters=[4], settings=KmeansSettings(num_clusters=1, iterations=50))
        assert [record["iterations"] for record in records] == [passes] * 2
    assert passes < 10


@pytest.mark.filterwarnings("error")
def test_rows_of_zeros_are_one_cluster_at_0() -> None:
    ours = cluster(np.zeros((5, 3)), 1)
    assert (ours.objective, ours.centroids_KD.tolist()) == (0, [[0, 0, 0]])


@pytest.mark.parametrize("far", [1e4, 1e12, 3e38])
def test_one_row_far_away_leaves_the_others_as_they_were(far: float) -> None:
    """Its square hides the objective of all others, and in float32 their distances."""
    values, _ = blobs(12, 8, 400)
    without = cluster(values, 12)
    values[7] = far
    ours = cluster(values, 13)
    rows = in_float64(values, normalize=False)
    squares = np.stack([((rows - centroid) ** 2).sum(1) for centroid in ours.centroids_KD]).min(0)
    assert ours.objective == pytest.approx(squares.sum(), rel=1e-12)
    assert squares.sum() <= 1.001 * without.objective


@pytest.mark.parametrize("spread", [1e-3, 1e-6])
@pytest.mark.parametrize("offset", [0, 100])
def test_tight_clusters_have_their_objective(offset: int, spread: float) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((6, 8))[np.arange(300) % 6] + spread * random.standard_normal((300, 8)) + offset
    rows = in_float64(values, normalize=False)
    ours = cluster(values, 6)
    means = np.stack([rows[each::6].mean(axis=0) for each in range(6)])
    assert ours.objective == pytest.approx(((rows - means[np.arange(300) % 6]) ** 2).sum(), rel=1e-9, abs=0)


def test_most_rows_being_equal_hides_no_digit_of_the_others() -> None:
    random = np.random.default_rng(0)
    values = np.zeros((300, 4))
    values[200:] = random.standard_normal((2, 4))[np.arange(100) % 2] * 10 + random.standard_normal((100, 4))
    values[299] = 1e15
    ours = cluster(values, 4)
    means = [values[200:299:2].astype(np.float32).mean(axis=0, dtype=np.float64), np.zeros(4)]
    for mean in means:
        assert np.abs(ours.centroids_KD - mean).max(axis=1).min() < 1e-8


@pytest.mark.parametrize("num_clusters", [5, 60])
def test_copies_of_rows_are_not_divided_because_their_means_are_rounded(num_clusters: int) -> None:
    values = np.random.default_rng(0).standard_normal((20, 6)).repeat(3, axis=0)
    ours = cluster(values, num_clusters, normalize=True, tolerance=0)
    assert ours.iterations < 20
    assert ours.num_reseeded == 0
    assert len(np.unique(clusters_of(values, ours, normalize=True))) == min(20, num_clusters)


def test_a_cluster_that_loses_its_rows_in_a_pass_that_hardly_helps_gets_a_row(tmp_path: Path) -> None:
    """The second pass leaves one cluster empty, and lowers the objective from 299 to 30, by less than the tolerance."""
    values = np.array([[0, 3], [0, 4], [7, 7], [2, 3], [10, 4], [10, 9], [10, 8]])
    np.save(tmp_path / "start.npy", np.array([[4.0, 1], [1, 9], [3, 0]]))
    ours = cluster(values, 3, tolerance=0.95, init=str(tmp_path / "start.npy"))
    assert len(np.unique(clusters_of(values, ours))) == 3
    assert (ours.num_reseeded, ours.iterations) == (1, 3)


@pytest.mark.parametrize("normalize", [False, True])
def test_rows_that_are_all_equal_are_one_cluster_and_no_more(normalize: bool) -> None:
    values = np.outer(2.0 ** np.arange(8) if normalize else np.ones(8), [0.1, -0.7, 0.3])
    ours = cluster(values, 1, normalize=normalize)
    assert ours.centroids_KD == pytest.approx(in_float64(values, normalize=normalize)[:1], rel=1e-12)
    with pytest.raises(EvaluationError, match=r"held: all 8 rows are equal.*can't be divided into 2 clusters"):
        cluster(values, 2, normalize=normalize)


@pytest.mark.parametrize("normalize", [False, True])
def test_spherical_centroids_are_scaled_from_the_first_pass_on(normalize: bool, tmp_path: Path) -> None:
    """Else the objective of the first pass is that of other centroids than the later ones."""
    values = np.random.default_rng(0).standard_normal((300, 5)) * 4 + 1
    np.save(tmp_path / "start.npy", values[:6])
    start = str(tmp_path / "start.npy")
    first, last = (
        cluster(values, 6, normalize=normalize, spherical=True, iterations=limit, tolerance=0, init=start)
        for limit in (1, 100)
    )
    for found in (first, last):
        assert np.linalg.norm(found.centroids_KD, axis=1) == pytest.approx(1, abs=1e-12)
    assert last.iterations > 2
    assert last.objective < first.objective


def test_a_spherical_centroid_whose_mean_is_zero_stays(tmp_path: Path) -> None:
    values = np.array([[1.0, 0], [-1, 0], [0, 5], [0, 6]])
    np.save(tmp_path / "start.npy", np.array([[0.0, -1], [0, 1]]))
    ours = cluster(values, 2, normalize=False, spherical=True, init=str(tmp_path / "start.npy"))
    assert np.linalg.norm(ours.centroids_KD, axis=1).tolist() == [1, 1]


class TakingTurns(Alone):
    """Two ranks in threads, each of which does another half of the rows in every step."""

    def __init__(self, rank: int, results: dict[tuple[int, int], Arrays], changed: Condition) -> None:
        self._rank, self._results, self._changed = rank, results, changed
        self._num_steps = 0

    def shards(self, data: Selection) -> list[Selection]:
        return [data[: len(data) // 3], data[len(data) // 3 :]]

    def gather(self, step: str, num_shards: int, compute: Callable[[int], Arrays]) -> list[Arrays]:
        self._num_steps += 1
        for shard in range(num_shards):
            if (self._num_steps + shard) % 2 == self._rank:
                copied = {name: np.array(each) for name, each in compute(shard).items()}
                with self._changed:
                    self._results[self._num_steps, shard] = copied
                    self._changed.notify_all()
        keys = [(self._num_steps, shard) for shard in range(num_shards)]
        with self._changed:
            assert self._changed.wait_for(lambda: all(key in self._results for key in keys), timeout=20)
            return [self._results[key] for key in keys]

    def once(self, step: str, compute: Callable[[], Arrays]) -> Arrays:
        return self.gather(step, 1, lambda shard: compute())[0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spread", [4.0, 0.01])
def test_shards_that_change_ranks_in_every_step_change_no_bit(spread: float, seed: int, tmp_path: Path) -> None:
    """A rank then meets a shard as it left it some passes ago. Clusters lose all rows on the way, or are tight."""
    random = np.random.default_rng(seed)
    groups = random.integers(0, 12, (3, 2)) * 100
    values = (groups[np.arange(90) % 3] + spread * random.standard_normal((90, 2))).astype(np.float32)
    start = values[:20].astype(np.float64) + spread * random.standard_normal((20, 2)) * 3
    np.save(tmp_path / "start.npy", start)
    settings = KmeansSettings(num_clusters=len(start), normalize=False, tolerance=0, init=str(tmp_path / "start.npy"))
    alone = kmeans(held(values), settings, plan=plan_of())
    results: dict[tuple[int, int], Arrays] = {}
    changed = Condition()
    with ThreadPoolExecutor(2) as threads:
        found = [
            threads.submit(kmeans, held(values), settings, plan=plan_of(), team=TakingTurns(rank, results, changed))
            for rank in range(2)
        ]
    for each in found:
        assert np.array_equal(each.result().centroids_KD, alone.centroids_KD)
        assert (each.result().objective, each.result().num_reseeded) == (alone.objective, alone.num_reseeded)
    assert alone.iterations > 2
    assert alone.num_reseeded


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e-40, 1e-30, 1e36])
def test_centroids_are_exchanged_at_any_scale(factor: float) -> None:
    """Two of the first centroids share a group, so that only an exchange finds the last one."""
    values, _ = blobs(12, 6, 300, seed=3)
    scaled = (values * factor).astype(np.float32)
    found, expected = (cluster(each, 12, restarts=1, seed=2) for each in (scaled, values))
    assert found.objective / factor / factor == pytest.approx(expected.objective, rel=1e-3)


def test_rows_that_no_unit_vector_is_near_end_spherical_k_means() -> None:
    """All are equally far from all centroids in float64, so clusters lose again the rows that they are given."""
    values = np.random.default_rng(119).standard_normal((143, 5)) * 1e-40
    assert cluster(values, 22, spherical=True, tolerance=0.01, restarts=1).iterations < 20
