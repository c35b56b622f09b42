"""Stage two as a whole: caching, classes by name, rows that are left out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.clustering import cached
from featbench.evaluate.clustering.evaluation import evaluate_kmeans
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import counts_of, matched_labels
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.knn import classification
from featbench.evaluate.knn.classification import evaluate_knn, uniform
from featbench.evaluate.knn.predictions import predict
from featbench.evaluate.knn.protocols import PROTOCOLS
from featbench.evaluate.neighbours import cache
from featbench.evaluate.neighbours import cached_search as neighbours
from featbench.evaluate.neighbours.search import Neighbours, search
from featbench.store import FeatureSet
from featbench.store.typing import Floats, Ints
from tests.conftest import Bench, Records, make_features


def clustered(num_rows: int, seed: int, classes: int = 3) -> tuple[Floats, Ints]:
    """Features that lie around one direction for each class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, num_rows)
    centres = np.random.default_rng(99).standard_normal((classes, 8)) * 2
    return (centres[labels] + random.standard_normal((num_rows, 8))).astype(np.float32), labels


@pytest.fixture
def made(tmp_path: Path) -> FeatureSet:
    train, val = clustered(120, 1), clustered(40, 2)
    features = {"train": {"x": train[0]}, "val": {"x": val[0]}}
    return make_features(tmp_path / "f", features, {"train": train[1], "val": val[1]}, rows_per_chunk=16)


def count_searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    searches = []
    monkeypatch.setattr(neighbours, "search", lambda *a, **k: searches.append(k["k"]) or search(*a, **k))
    return searches


def test_one_search_serves_every_smaller_k_every_temperature_and_rule(
    made: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = count_searches(monkeypatch)
    first = evaluate_knn(made, ["x"], k=[1, 5, 20], temperature=[0.07, 0.5])
    assert len(first) == 6
    again = evaluate_knn(made, ["x"], k=[20, 3], temperature=[0.07, 2.0])
    evaluate_knn(made, ["x"], protocol="majority", k=[7])
    assert searches == [20]
    assert again[0]["top1"] == next(r["top1"] for r in first if (r["k"], r["temperature"]) == (20, 0.07))
    assert again[0]["neighbours_reused"]
    assert not first[0]["neighbours_reused"]
    evaluate_knn(made, ["x"], k=[21])
    evaluate_knn(made, ["x"], protocol="solo_euclidean", k=[5])
    assert searches == [20, 21, 5]


def test_lists_of_other_features_are_never_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: FeatureSet
) -> None:
    """The same layer, extracted again with other values, is recognized by its checksums."""
    searches = count_searches(monkeypatch)
    evaluate_knn(made, ["x"], k=[5])
    kept = made.path / "neighbours"
    train, val = clustered(120, 3), clustered(40, 2)
    other = make_features(
        tmp_path / "g", {"train": {"x": train[0]}, "val": {"x": val[0]}}, {"train": train[1], "val": val[1]}
    )
    for path in kept.iterdir():
        path.rename(other.path / "neighbours" / path.name) if path.is_dir() else None
    evaluate_knn(other, ["x"], k=[5])
    assert len(searches) == 2


def test_a_damaged_list_is_computed_again(
    made: FeatureSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = evaluate_knn(made, ["x"], k=[5])
    searches = count_searches(monkeypatch)
    chunk = next(path for path in (made.path / "neighbours").rglob("c/*/*") if path.is_file() and "rows" in str(path))
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = evaluate_knn(made, ["x"], k=[5])
    assert searches == [5]
    assert "so it is not used" in caplog.text
    assert again[0]["top1"] == first[0]["top1"]


def test_classes_are_matched_by_name_and_not_by_number(tmp_path: Path) -> None:
    """Each split numbers its classes by itself; a missing class shifts all numbers."""
    values = np.eye(3, dtype=np.float32)
    features = {"train": {"x": values}, "val": {"x": values[1:]}}
    names = {"train": ("ant", "bee", "cat"), "val": ("bee", "cat")}
    made = make_features(tmp_path / "f", features, {"train": np.arange(3), "val": np.arange(2)}, class_names=names)
    assert evaluate_knn(made, ["x"], k=[1])[0]["top1"] == 1


def test_a_class_that_train_lacks_counts_as_wrong_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.eye(3, dtype=np.float32)
    features = {"train": {"x": values[:2]}, "val": {"x": values}}
    names = {"train": ("ant", "bee"), "val": ("ant", "bee", "cat")}
    made = make_features(tmp_path / "f", features, {"train": np.arange(2), "val": np.arange(3)}, class_names=names)
    with caplog.at_level(logging.WARNING):
        record = evaluate_knn(made, ["x"], k=[2])[0]
    assert record["top1"] == pytest.approx(2 / 3)
    assert record["top5"] == pytest.approx(2 / 3), "strict: a class without a vote is never among the five"
    assert record["top5_filled"] == 1, "with three classes, filling up reaches all"
    assert "(cat)" in caplog.text


def test_one_command_warns_once_of_the_rows_that_it_leaves_out(tmp_path: Path, bench: Bench) -> None:
    """kNN, few-shot and k-means match the labels together; comparing two layers of one set too."""
    data = {"train": clustered(60, 1), "val": clustered(20, 2)}
    labels = {split: np.where(np.arange(len(each)) == 3, -1, each) for split, (_, each) in data.items()}
    features = {split: {"x": rows, "y": rows[:, :4]} for split, (rows, _) in data.items()}
    names = dict.fromkeys(data, ("a", "b", "c"))
    make_features(tmp_path / "features/f", features, labels, class_names=names)
    questions = ("--k", "5", "--retrieval", "--shots", "2", "--clusters", "3")
    for command in (
        ("evaluate", "--features", "f", *questions),
        ("compare", "f", "f", "--layers", "x,y"),
        ("export", "f", "--out", "out", "--what", "predictions"),
    ):
        result = bench(*command)
        assert result.returncode == 0, result.stderr
        for split in ("train", "val"):
            assert result.stderr.count(f"rows of {split} without a label") == 1, result.stderr


def test_the_accuracies_of_many_classes_count_rows_once(made: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each class took minutes for 30,000 classes."""
    counted = []
    monkeypatch.setattr(classification, "counts_of", lambda *labels: counted.append(1) or counts_of(*labels))
    records = evaluate_knn(made, ["x"], k=[5], per_class=True)
    assert sum(record["task"] == "class" for record in records) == 3
    assert len(counted) == 1


def test_rows_without_label_or_image_are_left_out_and_counted(tmp_path: Path) -> None:
    train, val = clustered(60, 1), clustered(30, 2)
    labels = {"train": train[1].copy(), "val": val[1].copy()}
    labels["train"][5], labels["val"][3] = -1, -1
    valid = {"train": np.arange(60) != 7, "val": np.arange(30) != 9}
    features = {"train": {"x": train[0]}, "val": {"x": val[0]}}
    made = make_features(tmp_path / "f", features, labels, valid=valid)
    record = evaluate_knn(made, ["x"], k=[58])[0]
    assert (record["num_train"], record["num_val"], record["num_left_out"]) == (58, 28, 4)
    keep = {"train": (labels["train"] >= 0) & valid["train"], "val": (labels["val"] >= 0) & valid["val"]}
    clean = make_features(
        tmp_path / "g",
        {split: {"x": features[split]["x"][keep[split]]} for split in features},
        {split: labels[split][keep[split]] for split in labels},
    )
    other = evaluate_knn(clean, ["x"], k=[58])[0]
    assert {k: v for k, v in record.items() if k.startswith(("top", "mean"))} == {
        k: v for k, v in other.items() if k.startswith(("top", "mean"))
    }


@pytest.mark.parametrize("lacking", [("val",), ("train",), ("train", "val")])
def test_without_labels_neighbours_are_found_and_rows_are_clustered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lacking: tuple[str, ...]
) -> None:
    values = {split: clustered(count, seed)[0] for split, count, seed in (("train", 60, 1), ("val", 20, 2))}
    labels = {split: np.where(split in lacking, -1, np.arange(len(each)) % 3) for split, each in values.items()}
    names = {split: () if split in lacking else ("a", "b", "c") for split in labels}
    features = {split: {"x": each} for split, each in values.items()}
    made = make_features(tmp_path / "f", features, labels, class_names=names)
    with caplog.at_level(logging.WARNING):
        (record,) = evaluate_knn(made, ["x"], k=[1, 5], retrieval=True, per_class=True, duplicates=0.5)
    assert f"no row of {' and '.join(lacking)} has a label" in caplog.text
    assert "(--retrieval and --per-class need labels too)" in caplog.text
    assert (record["task"], record["k"], record["num_train"], record["num_val"]) == ("neighbours", 5, 60, 20)
    assert not any(key.startswith("top") for key in record)
    unit = {split: each / np.linalg.norm(each.astype(float), axis=1)[:, None] for split, each in values.items()}
    similarities = unit["val"] @ unit["train"].T
    assert record["num_duplicates"] == (similarities.max(axis=1) >= 0.5).sum()
    train, val, _ = matched_labels(made, needed=False)
    found = neighbours.find_neighbours(
        made, stored_layer(made, "x"), database=train, queries=val, k=5, similarity="cosine"
    )
    assert found.reused
    assert np.array_equal(found.neighbours.rows_QK, np.argsort(-similarities, axis=1, kind="stable")[:, :5])
    for part in evaluate_kmeans(made, ["x"], clusters=[3]):
        assert part["objective"] > 0
        assert (part["ami"] is None) == (part["split"] in lacking)
    with pytest.raises(EvaluationError, match=f"no row of {lacking[0]} has a label, and this needs labels"):
        matched_labels(made)
    if "train" in lacking:
        with pytest.raises(EvaluationError, match="as many clusters as classes are wanted, but no row of train"):
            evaluate_kmeans(made, ["x"], clusters=[3, "classes"])


def test_predictions_need_no_labels_of_the_queries(tmp_path: Path) -> None:
    values = {"train": np.eye(3, dtype=np.float32), "val": np.eye(3, dtype=np.float32)[[2, 0]]}
    labels = {"train": np.arange(3), "val": np.full(2, -1)}
    features = {split: {"x": each} for split, each in values.items()}
    made = make_features(tmp_path / "f", features, labels, class_names={"train": ("a", "b", "c"), "val": ()})
    found = predict(made, stored_layer(made, "x"), name="dino", protocol=PROTOCOLS["dino"], k=1)
    assert found.ranked_QT[:, 0].tolist() == [2, 0]
    assert found.labels_Q.tolist() == [-1, -1]


def test_too_many_clusters_are_refused_before_the_search(made: FeatureSet, bench: Bench) -> None:
    result = bench("evaluate", "--features", "f", "--store", made.path.parent, "--k", "1", "--clusters", "5,121")
    assert result.returncode == 2
    assert "clusters must be in [1, 120], the rows to cluster; got 121" in result.stderr
    assert not list((made.path / "neighbours").glob("x-*"))


def test_many_layers_side_by_side_are_kept_under_a_name_that_a_folder_can_have(
    tmp_path: Path, records: Records
) -> None:
    values, labels = clustered(30, 1)
    names = [f"transformer.encoder.blocks.{index}.norm1.output" for index in range(12)]
    features = {split: dict.fromkeys(names, values) for split in ("train", "val")}
    made = make_features(tmp_path / "features/f", features, {"train": labels, "val": labels}, rows_per_chunk=30)
    asked = ("--features", "f", "--k", "3", "--concat", "--clusters", "2")
    first, again = records(*asked), records(*asked)
    assert first[0]["layer"] == "+".join(names)
    assert [each["neighbours_reused"] for each in (first[0], again[0])] == [False, True]
    assert all(len(path.name.encode()) < 160 for path in made.path.glob("*/*"))


def test_a_layer_without_numbers_is_refused_by_its_shape(made: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from featbench.store import LayerInfo

    monkeypatch.setattr(type(made), "layer_info", lambda *_: LayerInfo(tap="x", pooling=None, shape=(0,)))
    with pytest.raises(EvaluationError, match="a row of x has the shape 0, so it holds no number"):
        evaluate_knn(made, ["x"], k=[1])


@pytest.mark.parametrize("what", ["renamed", "removed", "replaced"])
def test_a_feature_set_that_goes_away_meanwhile_ends_the_evaluation(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """And nothing is left under its old name."""
    values, labels = clustered(60, 1)
    features = {split: {"x": values} for split in ("train", "val")}
    made = make_features(tmp_path / "features/f", features, {"train": labels, "val": labels})
    other = make_features(
        tmp_path / "other", features, {"train": labels, "val": labels}, made_from={"model": {"trunk": "another"}}
    )

    def search_and_lose(*arguments: Selection, **settings: Any) -> Neighbours:
        found = search(*arguments, **settings)
        made.path.rename(tmp_path / "features/g")
        if what == "removed":
            shutil.rmtree(tmp_path / "features/g")
        if what == "replaced":
            other.path.rename(made.path)
        return found

    monkeypatch.setattr(neighbours, "search", search_and_lose)
    result = bench("evaluate", "--features", "f", "--k", "1")
    assert result.returncode == 2
    assert "was renamed, removed or replaced while it was evaluated" in result.stderr
    assert made.path.exists() == (what == "replaced")
    assert not any((made.path / "neighbours").glob("x-*"))


def test_k_beyond_the_database_is_refused_before_the_search(made: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = count_searches(monkeypatch)
    with pytest.raises(EvaluationError, match=r"in \[1, 120\], the rows of train that can vote; got 121, 500"):
        evaluate_knn(made, ["x"], k=[5, 121, 500])
    assert not searches


@pytest.mark.parametrize(
    ("protocol", "usual", "used"), [("dino", "[10, 20, 100, 200]", [10, 20, 100]), ("wu2018", "[200]", [120])]
)
def test_a_protocols_own_k_gives_way_to_a_small_database_and_says_so(
    made: FeatureSet, caplog: pytest.LogCaptureFixture, protocol: str, usual: str, used: list[int]
) -> None:
    records = evaluate_knn(made, ["x"], protocol=protocol)
    assert [record["k"] for record in records] == used
    assert f"at most 120 rows of train can vote, so k is {used} instead of {usual}" in caplog.text


def test_row_order_of_the_database_changes_no_accuracy(tmp_path: Path, made: FeatureSet) -> None:
    train, val = clustered(120, 1), clustered(40, 2)
    order = np.random.default_rng(0).permutation(120)
    shuffled = make_features(
        tmp_path / "g",
        {"train": {"x": train[0][order]}, "val": {"x": val[0]}},
        {"train": train[1][order], "val": val[1]},
    )
    for first, second in zip(evaluate_knn(made, ["x"], k=[1, 9]), evaluate_knn(shuffled, ["x"], k=[1, 9]), strict=True):
        assert first["top1"] == second["top1"]


def test_clusters_are_kept_and_both_splits_are_measured(made: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate_kmeans(made, ["x"], clusters=["classes", 5])
    assert [(record["clusters"], record["split"]) for record in first] == [
        (3, "train"), (3, "val"), (5, "train"), (5, "val"),
    ]  # fmt: skip
    monkeypatch.setattr(cached, "kmeans", None)
    again = evaluate_kmeans(made, ["x"], clusters=["classes", 5])
    for before, after in zip(first, again, strict=True):
        assert {k: v for k, v in before.items() if k != "seconds"} == {k: v for k, v in after.items() if k != "seconds"}


@pytest.mark.parametrize(("length", "is_reused"), [(0.0, True), (1e-11, True), (9e-13, False), (1e-30, False)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_results_of_older_versions_are_reused_unless_a_row_is_shorter_than_they_could_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, length: float, is_reused: bool
) -> None:
    """They took every length below 1e-12 to be 1e-12; without such rows their cosines are today's."""
    data = {"train": clustered(60, 1), "val": clustered(20, 2)}
    data[split][0][3] *= np.float32(length) / np.linalg.norm(data[split][0][3])
    features = make_features(
        tmp_path / "f",
        {each: {"x": rows} for each, (rows, _) in data.items()},
        {each: labels for each, (_, labels) in data.items()},
    )
    with monkeypatch.context() as older:
        older.setattr(cache, "ALGORITHM", {"cosine": 4, "inner_product": 4, "euclidean": 4})
        before = evaluate_knn(features, ["x"], protocol=["dino", "vissl"], k=[5])
    searches = count_searches(monkeypatch)
    for _ in range(2):  # the second time they are there under the key of today
        records = evaluate_knn(features, ["x"], protocol=["dino", "vissl"], k=[5])
    assert searches == ([] if is_reused else [5])
    assert not is_reused or [record["top1"] for record in records] == [record["top1"] for record in before]


def test_all_records_have_the_same_keys(made: FeatureSet) -> None:
    records = uniform(evaluate_knn(made, ["x"], k=[1]) + evaluate_kmeans(made, ["x"], clusters=[2]))
    assert len({tuple(record) for record in records}) == 1
    assert records[1]["top1"] is None
