"""k-means finds what scikit-learn finds, whatever the block size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

import featbench.evaluate.clustering.kmeans
from featbench.evaluate.clustering.evaluation import evaluate_kmeans
from featbench.evaluate.clustering.kmeans import assign, kmeans
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import Selection
from featbench.store.typing import Doubles, Floats, Ints
from tests.conftest import make_features
from tests.evaluate.test_search import Held, held


@pytest.fixture
def blobs(tmp_path: Path) -> tuple[Floats, Selection]:
    values, labels = make_blobs(600, 8, centers=6, cluster_std=1.5, random_state=0)
    values = values.astype(np.float32)
    features = {"train": {"x": values}, "val": {"x": values[:50]}}
    made = make_features(tmp_path / "f", features, {"train": labels, "val": labels[:50]}, rows_per_chunk=64)
    return values, Selection(layer=made.layer("train", "x"), rows=np.arange(600))


@pytest.mark.parametrize("normalize", [False, True])
def test_the_objective_is_within_a_hundredth_of_scikit_learns(blobs: tuple[Floats, Selection], normalize: bool) -> None:
    values, data = blobs
    if normalize:
        values = values / np.linalg.norm(values, axis=1, keepdims=True)
    peer = KMeans(6, n_init=10, random_state=0).fit(values)
    ours = kmeans(data, 6, rows_per_block=100, normalize=normalize)
    assert ours.objective <= 1.01 * peer.inertia_
    clusters = assign(data, ours, rows_per_block=100, normalize=normalize)
    distances = ((values[:, None] - ours.centroids_KD[None]) ** 2).sum(2)
    assert (clusters == distances.argmin(1)).all()
    assert ours.objective == pytest.approx(distances.min(1).sum(), rel=1e-5)


def test_block_size_changes_nothing_but_rounding(blobs: tuple[Floats, Selection]) -> None:
    _, data = blobs
    first, again = (kmeans(data, 6, rows_per_block=rows, normalize=False) for rows in (64, 600))
    assert first.objective == pytest.approx(again.objective, rel=1e-6)
    clusters = [assign(data, each, rows_per_block=64, normalize=False) for each in (first, again)]
    assert adjusted_rand_score(*clusters) == 1


def test_every_row_takes_part_though_the_start_is_a_sample(tmp_path: Path) -> None:
    """Faiss alone would train on 256 rows a cluster and leave the others out."""
    random = np.random.default_rng(0)
    values = random.standard_normal((3000, 4)).astype(np.float32)
    features = {"train": {"x": values}, "val": {"x": values[:5]}}
    labels = {"train": np.zeros(3000, int), "val": np.zeros(5, int)}
    made = make_features(tmp_path / "f", features, labels, rows_per_chunk=500)
    data = Selection(layer=made.layer("train", "x"), rows=np.arange(3000))
    ours = kmeans(data, 2, rows_per_block=1000, normalize=False, tolerance=0)
    clusters = assign(data, ours, rows_per_block=1000, normalize=False)
    means = np.stack([values[clusters == cluster].mean(axis=0) for cluster in range(2)])
    assert np.allclose(ours.centroids_KD, means, atol=1e-4)


def test_as_many_clusters_as_rows_and_no_more(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2
    features = {"train": {"x": values}, "val": {"x": values}}
    made = make_features(tmp_path / "f", features, {s: np.zeros(6, int) for s in features}, rows_per_chunk=4)
    data = Selection(layer=made.layer("train", "x"), rows=np.arange(6))
    assert kmeans(data, 6, rows_per_block=4, normalize=False).objective == pytest.approx(0, abs=1e-3)
    with pytest.raises(EvaluationError, match=r"clusters must be in \[1, 6\]"):
        kmeans(data, 7, rows_per_block=4)
    with pytest.raises(EvaluationError, match=r"clusters must be in \[1, 6\].*got 0"):
        kmeans(data, 0, rows_per_block=4)


def test_one_cluster_is_the_mean(blobs: tuple[Floats, Selection]) -> None:
    values, data = blobs
    ours = kmeans(data, 1, rows_per_block=100, normalize=False)
    assert ours.centroids_KD == pytest.approx(values.mean(axis=0, dtype=np.float64)[None], rel=1e-5)
    assert ours.objective == pytest.approx(600 * values.var(axis=0, dtype=np.float64).sum(), rel=1e-5)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_start_is_faiss_k_means_of_the_sample(seed: int) -> None:
    """Results of one seed stay the same: faiss gets the next number."""
    values = np.random.default_rng(0).standard_normal((900, 4)).astype(np.float32)
    peer = faiss.Kmeans(4, 8, niter=25, nredo=10, seed=seed + 1, min_points_per_centroid=1)
    peer.train(values)
    start = kmeans(held(values), 8, rows_per_block=250, normalize=False, iterations=1, seed=seed)
    assert start.centroids_KD == pytest.approx(peer.centroids, abs=1e-4)


@pytest.mark.parametrize("iterations", [2, 3, 4])
def test_iterations_are_scikit_learns_from_the_same_start(iterations: int) -> None:
    """The centroids that count are those of which the objective is, one step after each pass but the last."""
    values = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    start, ours = (
        kmeans(held(values), 8, rows_per_block=1000, normalize=False, iterations=passes, tolerance=0)
        for passes in (1, iterations)
    )
    assert (start.iterations, ours.iterations) == (1, iterations)
    inertia = ((values[:, None] - start.centroids_KD[None].astype(np.float64)) ** 2).sum(2).min(1).sum()
    assert start.objective == pytest.approx(inertia, rel=1e-6)
    peer = KMeans(8, init=start.centroids_KD, n_init=1, max_iter=iterations - 1, tol=0).fit(values.astype(np.float64))
    assert ours.centroids_KD == pytest.approx(peer.cluster_centers_, abs=1e-5)
    assert ours.objective == pytest.approx(peer.inertia_, rel=1e-6)
    assert ours.objective < start.objective


@pytest.mark.parametrize("tolerance", [0, 1e-6, 0.5])
def test_a_pass_that_finds_nothing_to_improve_is_the_last(tolerance: float) -> None:
    values = np.array([[0, 0], [0, 2], [10, 0], [10, 2]], np.float32)
    ours = kmeans(held(values), 2, rows_per_block=4, normalize=False, tolerance=tolerance)
    assert (ours.objective, ours.iterations) == (4, 2)


def test_an_improvement_below_the_tolerance_ends_it() -> None:
    """No pass after the first halves the objective."""
    values = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    assert kmeans(held(values), 8, rows_per_block=1000, normalize=False, tolerance=0.5).iterations == 2
    assert kmeans(held(values), 8, rows_per_block=1000, normalize=False, tolerance=0).iterations > 4


def test_a_cluster_of_one_row_moves_onto_it_and_one_of_none_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([[0, 1], [1, 0], [8, 8]], np.float32)
    start = np.array([[0, 0], [9, 9], [50, 50]], np.float32)
    monkeypatch.setattr(featbench.evaluate.clustering.kmeans, "_initial_centroids", lambda *args, **settings: start)
    ours = kmeans(held(values), 3, rows_per_block=2, normalize=False)
    assert ours.centroids_KD.tolist() == [[0.5, 0.5], [8, 8], [50, 50]]
    assert ours.objective == 1


@pytest.mark.parametrize(("rows_per_block", "reads"), [(4, 1), (5, 1), (3, 3)])
def test_rows_that_fit_into_one_block_are_read_once(rows_per_block: int, reads: int) -> None:
    """Else they are read for the sample, and again in every pass."""

    class Counted(Held):
        num_reads = 0

        def map_blocks(self, *arguments: Any) -> Iterator[Any]:
            self.num_reads += 1
            return super().map_blocks(*arguments)

    layer = Counted(np.array([[0, 0], [0, 2], [10, 0], [10, 2]], np.float32), rows_per_chunk=1)
    data = Selection(layer=layer, rows=np.arange(4))
    assert kmeans(data, 2, rows_per_block=rows_per_block, normalize=False).iterations == 2
    assert layer.num_reads == reads


def test_few_rows_for_each_cluster_are_no_reason_for_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    kmeans(held(np.eye(8, dtype=np.float32)), 8, rows_per_block=4)
    assert capfd.readouterr() == ("", "")


def four_groups(seed: int = 0) -> tuple[Ints, Doubles]:
    """Four groups of rows, far apart."""
    random = np.random.default_rng(seed)
    labels = np.arange(400) % 4
    return labels, random.standard_normal((4, 16))[labels] * 3 + random.standard_normal((400, 16)) * 0.3


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("offset", [0, 1000, 100_000])
def test_an_offset_of_all_rows_changes_no_clustering(offset: int, normalize: bool) -> None:
    """Squares of 100,000 hide differences of 1 in float32; scikit-learn answers in float64."""
    _, values = four_groups()
    stored = (values + offset).astype(np.float32)
    rows = stored.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1)[:, None] if normalize else rows
    theirs = KMeans(4, n_init=5, random_state=0).fit(rows)
    for rows_per_block in (100, 400):
        ours = kmeans(held(stored), 4, rows_per_block=rows_per_block, normalize=normalize)
        assert ours.objective == pytest.approx(theirs.inertia_, rel=0.02 if normalize and offset > 1000 else 1e-4)
        clusters = assign(held(stored), ours, rows_per_block=rows_per_block, normalize=normalize)
        if not (normalize and offset > 1000):
            assert adjusted_rand_score(theirs.labels_, clusters) == 1


@pytest.mark.parametrize("factor", [1e-30, 1e-18, 1e-9, 1, 1e9, 1e20, 1e37])
def test_numbers_whose_squares_float32_cannot_hold_are_clustered_like_any_others(factor: float) -> None:
    labels, values = four_groups()
    stored = (values * factor).astype(np.float32)
    ours = kmeans(held(stored), 4, rows_per_block=150, normalize=False)
    assert adjusted_rand_score(labels, assign(held(stored), ours, rows_per_block=150, normalize=False)) == 1
    theirs = KMeans(4, n_init=5, random_state=0).fit(values)
    assert ours.objective / factor / factor == pytest.approx(theirs.inertia_, rel=1e-4)


@pytest.mark.parametrize("seed", [-1, 2**31 - 1, 10**30])
def test_seeds_that_faiss_cannot_count_are_refused(seed: int) -> None:
    with pytest.raises(EvaluationError, match="seed must be in"):
        kmeans(held(np.eye(3, dtype=np.float32)), 2, rows_per_block=3, seed=seed)


def test_records_say_how_many_passes_were_made(tmp_path: Path) -> None:
    labels, values = four_groups()
    features = {split: {"x": values.astype(np.float32)} for split in ("train", "val")}
    made = make_features(tmp_path / "f", features, {"train": labels, "val": labels}, rows_per_chunk=400)
    data = Selection(layer=made.layer("train", "x"), rows=np.arange(400))
    passes = kmeans(data, 4, rows_per_block=400, iterations=50).iterations
    for _ in range(2):  # the second time from what was kept
        records = evaluate_kmeans(made, ["x"], clusters=[4], iterations=50)
        assert [record["iterations"] for record in records] == [passes] * 2
    assert passes < 10


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_numbers_far_from_0_in_units_that_float32_cannot_square_are_clustered_too(factor: float) -> None:
    labels, values = four_groups()
    stored = ((values + 1000) * factor).astype(np.float32)
    ours = kmeans(held(stored), 4, rows_per_block=150, normalize=False)
    assert adjusted_rand_score(labels, assign(held(stored), ours, rows_per_block=150, normalize=False)) == 1


@pytest.mark.filterwarnings("error")
def test_rows_of_zeros_are_one_cluster_at_0() -> None:
    ours = kmeans(held(np.zeros((5, 3), np.float32)), 1, rows_per_block=2, normalize=False)
    assert (ours.objective, ours.centroids_KD.tolist()) == (0, [[0, 0, 0]])


def test_the_largest_seed_that_faiss_can_count_is_taken() -> None:
    assert kmeans(held(np.eye(3, dtype=np.float32)), 3, rows_per_block=3, seed=2**31 - 2).objective == 0
