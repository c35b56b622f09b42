"""Results of k-means: which rows are clustered, and what records say of them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as peer

from featbench.evaluate.clustering.cached import ClusterRequest, Kept, search_clusters
from featbench.evaluate.clustering.evaluation import cluster, evaluate_kmeans, kmeans_results, numbers_of_clusters
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, matched_labels, with_unlabelled
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.features.memory_layer import layer_in_memory
from featbench.evaluate.knn.classification import evaluate_knn
from featbench.store import FeatureSet
from featbench.store.typing import Bools, Floats, Ints
from tests.conftest import make_features

NUM_ROWS = {"train": 60, "val": 24}

Partly = tuple[FeatureSet, dict[str, Ints], dict[str, Bools]]
"""A feature set, its labels, and which rows are valid."""


def rows_of(split: str, num_classes: int = 3) -> tuple[Floats, Ints]:
    """Rows in well separated groups, and the group of each."""
    random = np.random.default_rng(len(split))
    labels = np.arange(NUM_ROWS[split]) % num_classes
    return (8 * np.eye(num_classes, 6)[labels] + random.standard_normal((len(labels), 6))).astype(np.float32), labels


@pytest.fixture
def partly(tmp_path: Path) -> Partly:
    """Every other row has a label; row 7 of each split is unreadable."""
    values, labels, valid = {}, {}, {}
    for split, count in NUM_ROWS.items():
        values[split], classes = rows_of(split)
        labels[split] = np.where(np.arange(count) % 2, classes, -1)
        valid[split] = np.arange(count) != 7
        values[split][7] = np.nan
    features = {split: {"x": each, "y": each[:, :3]} for split, each in values.items()}
    return make_features(tmp_path / "f", features, labels, valid=valid), labels, valid


def test_rows_without_labels_are_clustered_and_left_out_of_label_metrics_alone(partly: Partly) -> None:
    made, labels, valid = partly
    for result in kmeans_results(made, ["x"], clusters=[3]):
        split, all_labels = result.split, labels[result.split][valid[result.split]]
        assert len(result.assignments) == valid[split].sum() == NUM_ROWS[split] - 1
        _, groups = rows_of(split)
        assert peer.adjusted_rand_score(groups[valid[split]], result.assignments) == 1
        has_label = all_labels >= 0
        assert result.num_labelled == has_label.sum()
        expected = peer.normalized_mutual_info_score(all_labels[has_label], result.assignments[has_label])
        assert result.metrics.nmi == pytest.approx(expected, abs=1e-9)
        assert (result.counts.num_train, result.counts.num_val, result.counts.num_left_out) == (59, 23, 2)
        assert result.counts.num_classes == 3


def test_knn_keeps_to_rows_with_labels(partly: Partly) -> None:
    made, labels, valid = partly
    (record,) = evaluate_knn(made, ["x"], k=[1])
    counts = [int((valid[split] & (labels[split] >= 0)).sum()) for split in NUM_ROWS]
    assert [record["num_train"], record["num_val"]] == counts == [29, 11]


def test_the_number_of_classes_is_that_of_labelled_train_rows_and_all_rows_can_be_clusters(partly: Partly) -> None:
    made, *_ = partly
    train = with_unlabelled(made, matched_labels(made)).train
    assert numbers_of_clusters(["classes", 59], train) == [3, 59]
    with pytest.raises(EvaluationError, match=r"clusters must be in \[1, 59\], the rows to cluster; got 60"):
        numbers_of_clusters([60], train)


@pytest.mark.parametrize("lacking", [("train",), ("train", "val")])
def test_a_lack_of_labels_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, lacking: str) -> None:
    values = {split: rows_of(split) for split in NUM_ROWS}
    labels = {split: np.full_like(each, -1) if split in lacking else each for split, (_, each) in values.items()}
    names = {split: () if split in lacking else ("a", "b", "c") for split in labels}
    features = {split: {"x": each, "y": each[:, :3]} for split, (each, _) in values.items()}
    made = make_features(tmp_path / "f", features, labels, class_names=names)
    with caplog.at_level(logging.WARNING):
        records = evaluate_kmeans(made, ["x", "y"], clusters=[2])
    text = f"no row of {' and '.join(lacking)} has a label, so k-means has no label metrics there"
    assert [text in message for message in caplog.messages].count(True) == 1
    assert len(records) == 4
    for record in records:
        assert (record["nmi"] is None) == (record["split"] in lacking)
        assert (record["many_to_one"] is None) == (record["split"] in lacking or "train" in lacking)
        assert record["silhouette"] > 0
        assert record["num_labelled"] == (0 if record["split"] in lacking else NUM_ROWS[record["split"]])


def labelled(split: str, labels: Ints | list[int]) -> Labelled:
    return Labelled(split=split, rows=np.arange(len(labels)), labels=np.asarray(labels))


def test_records_hold_what_the_clustering_says_of_itself() -> None:
    """A clustering in one dimension, by hand: centroids at 0, 10 and 40, of which the last is a single row."""
    values = {"train": np.array([[-1.0], [1], [9], [11], [40]]), "val": np.array([[2.0], [10], [40]])}
    arrays = {
        "train": np.array([0, 0, 1, 1, 2]), "train_distances": np.array([1.0, 1, 1, 1, 0]),
        "train_others": np.array([11.0, 9, 9, 11, 30]),
        "val": np.array([0, 1, 2]), "val_distances": np.array([2.0, 0, 0]), "val_others": np.array([8.0, 10, 30]),
    }  # fmt: skip
    runs = [{"seed": seed, "objective": objective, "iterations": 3} for seed, objective in ((0, 6.0), (1, 4.0))]
    facts = {
        "objective": 4.0, "iterations": 3, "certified": True, "engine": "some engine", "num_reseeded": 2, "seed": 1,
        "num_empty": 0, "runs": runs,
    }  # fmt: skip
    layer = layer_in_memory("x", {split: each.astype(np.float32) for split, each in values.items()}, source="f")
    parts = labelled("train", [0, 0, 1, 1, -1]), labelled("val", [0, 0, 1])
    train, val = cluster([layer], *parts, clusters=[3], find=lambda *_: (arrays, facts), ami=False)
    common = {
        "objective": 4.0, "objective_mean": 5.0, "objective_sd": 2**0.5, "runs": 2, "iterations": 3,
        "certified": True, "engine": "some engine", "num_reseeded": 2, "ami": None,
    }  # fmt: skip
    for result in (train, val):
        record = result.record()
        assert {key: record[key] for key in common} == pytest.approx(common)
        assert result.seed == 1
    of_train, of_val = train.record(), val.record()
    assert of_train["mean_squared_distance"] == 4 / 5
    assert of_val["mean_squared_distance"] == pytest.approx(4 / 3)
    assert of_train["simplified_silhouette"] == pytest.approx((10 / 11 + 8 / 9 + 8 / 9 + 10 / 11 + 0) / 5)
    assert of_val["simplified_silhouette"] == pytest.approx((6 / 8 + 1 + 1) / 3)
    unit = {split: np.sign(each) for split, each in values.items()}
    assert of_train["silhouette"] == pytest.approx(peer.silhouette_score(unit["train"], arrays["train"]))
    assert (of_train["silhouette_rows"], of_val["silhouette_rows"], of_val["silhouette"]) == (5, 3, None)
    sizes = ("smallest_cluster", "median_cluster", "largest_cluster", "num_empty")
    assert [of_train[key] for key in sizes] == [1, 2, 2, 0]
    assert (of_train["many_to_one"], of_val["many_to_one"], of_val["hungarian"]) == (1, 1 / 3, 2 / 3)
    assert (of_train["num_labelled"], of_val["num_labelled"]) == (4, 3)


def test_metrics_without_labels_are_those_of_all_distances_to_the_centroids(partly: Partly) -> None:
    made, _, valid = partly
    parts = with_unlabelled(made, matched_labels(made))
    clusterings = []

    def find(request: ClusterRequest) -> Kept:
        clusterings.append(search_clusters(request))
        return clusterings[-1]

    results = cluster([stored_layer(made, "x")], *parts[:2], clusters=[5], find=find, num_seeds=2)
    (arrays, _) = clusterings[0]
    for result in results:
        rows = rows_of(result.split)[0][valid[result.split]].astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        distances = np.sort(np.linalg.norm(rows[:, None] - arrays["centroids"][None], axis=2), axis=1)[:, :2]
        silhouettes = 1 - distances[:, 0] / distances[:, 1]
        if result.split == "train":
            silhouettes[np.bincount(result.assignments)[result.assignments] == 1] = 0
        record = result.record()
        assert record["simplified_silhouette"] == pytest.approx(silhouettes.mean(), abs=1e-9)
        assert record["mean_squared_distance"] == pytest.approx((distances[:, 0] ** 2).mean(), abs=1e-12)
        assert record["silhouette"] == pytest.approx(peer.silhouette_score(rows, result.assignments), abs=1e-6)
        assert (record["certified"], record["runs"]) == (True, 2)
    assert results[0].objective == pytest.approx(59 * results[0].record()["mean_squared_distance"])


def test_a_sampled_silhouette_is_kept_with_the_clustering(partly: Partly, monkeypatch: pytest.MonkeyPatch) -> None:
    made, *_ = partly
    first = evaluate_kmeans(made, ["x"], clusters=[3])
    monkeypatch.setattr("featbench.evaluate.clustering.cached.sampled_silhouettes", None)
    monkeypatch.setattr("featbench.evaluate.clustering.cached.sample_of", None)
    again = evaluate_kmeans(made, ["x"], clusters=[3])
    assert [record["silhouette"] for record in again] == [record["silhouette"] for record in first]
    assert [record["silhouette_rows"] for record in again] == [59, 23]


def test_a_clustering_of_an_older_version_lacks_only_what_it_did_not_keep(partly: Partly) -> None:
    made, *_ = partly
    arrays = {"train": np.arange(59) % 3, "val": np.arange(23) % 3}
    parts = with_unlabelled(made, matched_labels(made))[:2]
    found = lambda *_: (arrays, {"objective": 2.0, "iterations": 5})  # noqa: E731
    for result in cluster([stored_layer(made, "x")], *parts, clusters=[3], find=found, settings=KmeansSettings(seed=4)):
        record = result.record()
        unknown = ("simplified_silhouette", "mean_squared_distance", "num_reseeded", "engine")
        assert [record[key] for key in unknown] == [None] * 4
        assert (record["certified"], record["runs"], record["objective_mean"]) == (False, 1, 2.0)
        assert record["ami"] is not None
        assert result.seed == 4
