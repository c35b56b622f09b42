"""k-means finds what scikit-learn finds, whatever the block size."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from evaluate.kmeans import assign, kmeans
from evaluate.labels import EvaluationError
from evaluate.metrics import cluster_metrics
from evaluate.selection import Selection
from tests.conftest import make_features


@pytest.fixture
def blobs(tmp_path):
    values, labels = make_blobs(600, 8, centers=6, cluster_std=1.5, random_state=0)
    values = values.astype(np.float32)
    features = {"train": {"x": values}, "val": {"x": values[:50]}}
    made = make_features(tmp_path / "f", features, {"train": labels, "val": labels[:50]}, rows_per_chunk=64)
    return values, Selection(layer=made.layer("train", "x"), rows=np.arange(600))


@pytest.mark.parametrize("normalize", [False, True])
def test_the_objective_is_within_a_hundredth_of_scikit_learns(blobs, normalize):
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


def test_block_size_changes_nothing_but_rounding(blobs):
    _, data = blobs
    first, again = (kmeans(data, 6, rows_per_block=rows, normalize=False) for rows in (64, 600))
    assert first.objective == pytest.approx(again.objective, rel=1e-6)
    clusters = [assign(data, each, rows_per_block=64, normalize=False) for each in (first, again)]
    assert cluster_metrics(*clusters)["hungarian"] == 1


def test_every_row_takes_part_though_the_start_is_a_sample(tmp_path):
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


def test_as_many_clusters_as_rows_and_no_more(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(6, 2) ** 2
    features = {"train": {"x": values}, "val": {"x": values}}
    made = make_features(tmp_path / "f", features, {s: np.zeros(6, int) for s in features}, rows_per_chunk=4)
    data = Selection(layer=made.layer("train", "x"), rows=np.arange(6))
    assert kmeans(data, 6, rows_per_block=4, normalize=False).objective == pytest.approx(0, abs=1e-3)
    with pytest.raises(EvaluationError, match=r"clusters must be in \[1, 6\]"):
        kmeans(data, 7, rows_per_block=4)
