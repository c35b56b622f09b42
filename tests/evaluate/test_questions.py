"""Leave-one-out, retrieval, few-shot, per-class results and duplicates, against naive loops."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.knn.classification import evaluate_knn
from featbench.evaluate.knn.few_shot import draw, evaluate_few_shot
from featbench.evaluate.knn.per_class import class_accuracies, confusion_matrix
from featbench.evaluate.knn.predictions import predict
from featbench.evaluate.knn.protocols import PROTOCOLS, KnnProtocol
from featbench.evaluate.knn.retrieval import retrieval_metrics
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.search import search
from featbench.store import FeatureSet
from featbench.store.typing import Doubles, Floats, Ints
from tests.conftest import Bench, make_features


def around_centres(num_rows: int, seed: int, classes: int = 4, dim: int = 6) -> tuple[Floats, Ints]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, num_rows)
    centres = np.random.default_rng(9).standard_normal((classes, dim)) * 1.2
    return (centres[labels] + random.standard_normal((num_rows, dim))).astype(np.float32), labels


@pytest.fixture(scope="module")
def data() -> dict[str, tuple[Floats, Ints]]:
    return {"train": around_centres(80, 1), "val": around_centres(30, 2)}


@pytest.fixture(scope="module")
def made(data: dict[str, tuple[Floats, Ints]], tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return make_features(
        tmp_path_factory.mktemp("questions") / "f",
        {split: {"x": values} for split, (values, _) in data.items()},
        {split: labels for split, (_, labels) in data.items()},
        rows_per_chunk=16,
        made_from={"transform": {"resize": 256, "crop": 224, "interpolation": "bilinear"}},
    )


def cosines(database: Floats, queries: Floats) -> Doubles:
    database, queries = database.astype(np.float64), queries.astype(np.float64)
    return queries @ database.T / np.linalg.norm(database, axis=1) / np.linalg.norm(queries, axis=1)[:, None]


def voted(similarities: Doubles, labels: Ints, k: int, temperature: float) -> Ints:
    """Class with the largest vote, one query at a time."""
    winners = []
    for row in similarities:
        nearest = np.argsort(-row, kind="stable")[:k]
        votes = {}
        for place in nearest:
            votes[labels[place]] = votes.get(labels[place], 0) + np.exp(row[place] / temperature)
        winners.append(max(votes, key=votes.get))
    return np.array(winners)


def test_leave_one_out_never_counts_a_row_as_its_own_neighbour(
    made: FeatureSet, data: dict[str, tuple[Floats, Ints]]
) -> None:
    values, labels = data["train"]
    similarities = cosines(values, values)
    np.fill_diagonal(similarities, -np.inf)
    record = evaluate_knn(made, ["x"], k=[7], leave_one_out=True)[0]
    assert record["top1"] == pytest.approx((voted(similarities, labels, 7, 0.07) == labels).mean())
    train, _, _ = matched_labels(made)
    found = find_neighbours(
        made, stored_layer(made, "x"), database=train, queries=train, k=79, similarity="cosine"
    ).neighbours
    assert all(sorted([*row, query]) == list(range(80)) for query, row in enumerate(found.rows_QK.tolist()))


def test_leave_one_out_drops_the_query_and_not_its_copies(tmp_path: Path) -> None:
    values = np.tile(np.eye(2, dtype=np.float32), (5, 1))
    labels = np.array([0, 1] * 5)
    copies = make_features(
        tmp_path / "f", {split: {"x": values} for split in ("train", "val")}, {"train": labels, "val": labels}
    )
    train, _, _ = matched_labels(copies)
    found = find_neighbours(
        copies, stored_layer(copies, "x"), database=train, queries=train, k=2, similarity="cosine"
    ).neighbours
    assert found.rows_QK.tolist()[:4] == [[2, 4], [3, 5], [0, 4], [1, 5]]
    assert found.rows_QK.tolist()[8] == [0, 2], "the query was not among the first three"


def test_several_protocols_share_one_search_for_each_similarity(
    made: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featbench.evaluate.neighbours import cached_search as neighbours

    searches = []
    monkeypatch.setattr(neighbours, "search", lambda *a, **k: searches.append(k["similarity"]) or search(*a, **k))
    names = ["vissl", "wu2018", "moco", "dino", "dinov2", "solo", "lightly", "mmselfsup", "scan", "solo_euclidean"]
    records = evaluate_knn(made, ["x"], protocol=names, k=[61])
    assert sorted(searches) == ["cosine", "euclidean", "inner_product"]
    assert {record["protocol"] for record in records} == set(names)
    alone = {name: evaluate_knn(made, ["x"], protocol=name, k=[61])[0]["top1"] for name in names}
    assert {record["protocol"]: record["top1"] for record in records} == alone
    assert all(record["certified"] for record in records)


def test_a_protocol_whose_preprocessing_was_another_is_pointed_out(
    made: FeatureSet, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        evaluate_knn(made, ["x"], protocol=["dino", "vissl"], k=[5])
    assert "preprocessed otherwise than protocol dino does: interpolation bilinear, not bicubic" in caplog.text
    assert "protocol vissl does" not in caplog.text


def test_top5_of_a_protocol_is_counted_as_its_project_does(made: FeatureSet) -> None:
    by_name = {r["protocol"]: r for r in evaluate_knn(made, ["x"], protocol=list(PROTOCOLS), k=[3])}
    assert by_name["dino"]["top5_protocol"] <= by_name["dinov2"]["top5_protocol"]
    assert by_name["dinov2"]["top5_protocol"] == by_name["dinov2"]["top5_filled"] == 1, "four classes"
    assert by_name["vissl"]["top5_protocol"] == by_name["vissl"]["top5_filled"]
    assert by_name["majority"]["top5_protocol"] == by_name["majority"]["top5"]
    assert "top5_protocol" not in by_name["scan"]


@pytest.mark.parametrize(("num_classes", "known"), [(6, {"dino", "vissl"}), (16, {"dino", "vissl"}), (17, set())])
def test_top5_of_a_protocol_is_only_claimed_where_its_project_has_one(
    tmp_path: Path, num_classes: int, known: set[str]
) -> None:
    """Where classes without a vote can take a place, torch's own order of equal scores decides."""
    scores = torch.zeros(1, num_classes)
    assert (scores.sort(1, True)[1].tolist() == [list(range(num_classes))]) == bool(known)
    values, labels = around_centres(60, 1, classes=num_classes)
    features, each = {split: {"x": values} for split in ("train", "val")}, {"train": labels, "val": labels[::-1].copy()}
    names = dict.fromkeys(each, tuple(map(str, range(num_classes))))
    made = make_features(tmp_path / "f", features, each, class_names=names, rows_per_chunk=60)
    records = evaluate_knn(made, ["x"], protocol=["dino", "vissl", "dinov2", "majority"], k=[4])
    assert {record["protocol"] for record in records if "top5_protocol" in record} == known | {"majority"}
    sure = evaluate_knn(made, ["x"], protocol=["dino", "dinov2"], k=[60 if num_classes < 17 else 1])
    places = {record["protocol"]: record.get("top5_protocol") for record in sure}
    assert places["dino"] is not None, "every place has a vote"


def test_a_protocol_of_ones_own_is_taken_like_any_other(made: FeatureSet, data: dict[str, tuple[Floats, Ints]]) -> None:
    rule = KnnProtocol(k=(3,), temperature=(0.5,))
    record = evaluate_knn(made, ["x"], protocol={"mine": rule})[0]
    (values, labels), (queries, expected) = data["train"], data["val"]
    assert record["top1"] == pytest.approx((voted(cosines(values, queries), labels, 3, 0.5) == expected).mean())
    assert record["protocol"] == "mine"


def test_near_duplicates_are_counted_and_left_out(tmp_path: Path, data: dict[str, tuple[Floats, Ints]]) -> None:
    (values, labels), (queries, wanted) = data["train"], data["val"]
    queries = queries.copy()
    queries[:4] = values[:4] * 3
    wanted = np.concatenate([labels[:4], wanted[4:]])
    made = make_features(
        tmp_path / "f", {"train": {"x": values}, "val": {"x": queries}}, {"train": labels, "val": wanted}
    )
    record = evaluate_knn(made, ["x"], k=[1], duplicates=0.9999)[0]
    predicted = voted(cosines(values, queries), labels, 1, 0.07)
    assert record["num_duplicates"] == 4
    assert record["top1"] == pytest.approx((predicted == wanted).mean())
    assert record["top1_without_duplicates"] == pytest.approx((predicted == wanted)[4:].mean())
    with pytest.raises(EvaluationError, match="near-duplicates are found by the cosine"):
        evaluate_knn(made, ["x"], protocol="vissl", duplicates=0.9)


def test_retrieval_metrics_are_those_of_their_definitions(
    made: FeatureSet, data: dict[str, tuple[Floats, Ints]]
) -> None:
    (values, labels), (queries, wanted) = data["train"], data["val"]
    similarities = cosines(values, queries)
    precisions, maps, recalls = [], [], []
    for row, label in zip(similarities, wanted, strict=True):
        ranked = labels[np.argsort(-row, kind="stable")]
        num_relevant = (labels == label).sum()
        precisions.append(np.mean(ranked[:num_relevant] == label))
        hits = [np.mean(ranked[: i + 1] == label) for i in range(num_relevant) if ranked[i] == label]
        maps.append(sum(hits) / num_relevant)
        recalls.append((ranked[:5] == label).any())
    knn, record = evaluate_knn(made, ["x"], k=[5], retrieval=True)
    assert record["r_precision"] == pytest.approx(np.mean(precisions))
    assert record["map_at_r"] == pytest.approx(np.mean(maps))
    assert record["recall_at_5"] == pytest.approx(np.mean(recalls))
    assert record["precision_at_1"] == pytest.approx(evaluate_knn(made, ["x"], k=[1])[0]["top1"])
    assert knn["top1"] == evaluate_knn(made, ["x"], k=[5])[0]["top1"], "longer lists change no vote"


@pytest.mark.parametrize("factor", [1, 2, 3, 0.1])
@pytest.mark.parametrize("dim", [1, 3, 64, 2048])
def test_every_copy_has_a_cosine_of_one(tmp_path: Path, dim: int, factor: float) -> None:
    """Also of rows that were scaled: by 3, float32 rounds each number."""
    random = np.random.default_rng(dim)
    values = random.standard_normal((100, dim)).astype(np.float32)
    queries = np.concatenate([values * np.float32(factor), -random.standard_normal((20, dim)).astype(np.float32)])
    queries[100:] = -np.abs(queries[100:])
    values = np.abs(values)
    queries[:100] = np.abs(queries[:100])
    labels = {"train": np.zeros(100, int), "val": np.zeros(120, int)}
    made = make_features(tmp_path / "f", {"train": {"x": values}, "val": {"x": queries}}, labels, rows_per_chunk=120)
    assert evaluate_knn(made, ["x"], k=[1], duplicates=1)[0]["num_duplicates"] == 100


def test_a_row_that_differs_is_no_copy(tmp_path: Path) -> None:
    """By one part in ten thousand, in one of 64 numbers."""
    values = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    queries = values.copy()
    queries[10:, 3] += 1e-4 * np.linalg.norm(values[10:], axis=1)
    labels = {"train": np.zeros(50, int), "val": np.zeros(50, int)}
    made = make_features(tmp_path / "f", {"train": {"x": values}, "val": {"x": queries}}, labels, rows_per_chunk=50)
    assert evaluate_knn(made, ["x"], k=[1], duplicates=1)[0]["num_duplicates"] == 10


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_retrieval_without_a_relevant_row_says_so_and_leaves_the_rest(
    tmp_path: Path, bench: Bench, leave_one_out: bool
) -> None:
    values, _ = around_centres(30, 1)
    labels = {"train": np.arange(30) if leave_one_out else np.arange(30) % 3, "val": np.arange(30) % 3}
    names = {"train": tuple(map(str, range(30))), "val": ("x", "y", "z")}
    features = {split: {"x": values} for split in labels}
    make_features(tmp_path / "features/f", features, labels, class_names=names)
    asked = ["evaluate", "--features", "f", "--k", "5", "--retrieval", *(["--leave-one-out"] * leave_one_out)]
    result = bench(*asked, "--json", "-q")
    assert result.returncode == 0
    assert "no query has a row of its own class" in result.stderr
    knn, retrieval = json.loads(result.stdout)
    assert (knn["task"], knn["top1"]) == ("knn", 0)
    assert (retrieval["num_answerable"], retrieval["map_at_r"], retrieval["recall_at_5"]) == (0, None, None)
    assert "none" in bench(*asked).stdout


def test_retrieval_refuses_lists_that_are_too_short() -> None:
    with pytest.raises(ValueError, match="lists must have 3 neighbours; got 2"):
        retrieval_metrics(np.zeros((1, 2), int), np.array([0]), np.array([3]), k=[1])


def test_a_few_shot_try_is_a_search_among_the_drawn_images_alone(
    made: FeatureSet, data: dict[str, tuple[Floats, Ints]]
) -> None:
    (values, labels), (queries, wanted) = data["train"], data["val"]
    train, _, _ = matched_labels(made)
    accuracies = []
    for seed in (3, 4, 5):
        rows = draw(train, 2, seed=seed).rows
        assert np.bincount(labels[rows]).tolist() == [2, 2, 2, 2]
        accuracies.append((voted(cosines(values[rows], queries), labels[rows], 5, 0.07) == wanted).mean())
    assert len(set(accuracies)) > 1, "the tries differ"
    record = evaluate_few_shot(made, ["x"], shots=[2], tries=3, seed=3, k=[5])[0]
    assert record["top1"] == pytest.approx(np.mean(accuracies))
    assert record["top1_sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert (record["num_train"], record["shots"], record["tries"]) == (8, "2", 3)


def test_a_try_with_fewer_images_than_neighbours_is_voted_on_by_those_that_fit(
    made: FeatureSet, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {shots: evaluate_few_shot(made, ["x"], shots=[shots], tries=1, k=[5, 9, 20]) for shots in (1, 2, 3)}
    assert {shots: [r["k"] for r in records] for shots, records in asked.items()} == {1: [4], 2: [5], 3: [5, 9]}
    assert "at most 8 rows of a try with 2 per class can vote, so k is [5] instead of [5, 9, 20]" in caplog.text
    with pytest.raises(EvaluationError, match="k must be at least 1; got 0"):
        evaluate_few_shot(made, ["x"], shots=[2], k=[0])
    assert [r["k"] for r in evaluate_few_shot(made, ["x"], shots=["10%"], tries=1)] == [8]


def test_accuracies_of_classes_and_confusions_add_up(made: FeatureSet) -> None:
    records = evaluate_knn(made, ["x"], k=[5], per_class=True)
    classes = [record for record in records if record["task"] == "class"]
    assert sum(r["num_val"] * r["top1"] for r in classes) == pytest.approx(30 * records[0]["top1"])
    names = ("a", "b", "c")
    predictions, labels = np.array([0, 1, 1, 1]), np.array([0, 0, 0, 2])
    assert confusion_matrix(predictions, labels, num_classes=3).tolist() == [[1, 2, 0], [0, 0, 0], [0, 1, 0]]
    first, last = class_accuracies(predictions, labels, names)
    assert (first.name, first.most_confused_with) == ("a", "b")
    assert first.top1.value == pytest.approx(1 / 3)
    assert (last.name, last.top1.value, last.num_queries) == ("c", 0, 1)


def test_probabilities_add_up_to_one_for_every_k(made: FeatureSet, data: dict[str, tuple[Floats, Ints]]) -> None:
    (values, labels), (queries, _) = data["train"], data["val"]
    for k in (1, 4, 20):
        found = predict(made, stored_layer(made, "x"), name="dino", protocol=PROTOCOLS["dino"], k=k)
        probabilities = found.votes.probabilities(found.weights_QK, k=k)
        assert np.allclose(probabilities.sum(axis=1), 1)
        assert np.array_equal(found.ranked_QT[:, 0], voted(cosines(values, queries), labels, k, 0.07))
        best = np.take_along_axis(probabilities, found.ranked_QT[:, :1], axis=1)
        assert np.allclose(best, probabilities.max(axis=1, keepdims=True))
        assert np.allclose(best, found.probabilities_QT[:, :1])


@pytest.mark.parametrize("names", [["vissl", "solo_euclidean", "dino"], ["dino", "solo_euclidean", "vissl"]])
def test_protocols_come_in_the_order_that_was_asked_for(made: FeatureSet, names: list[str]) -> None:
    records = evaluate_knn(made, ["x"], protocol=names, k=[3, 1], retrieval=True, per_class=True)
    assert list(dict.fromkeys(r["protocol"] for r in records if r["task"] == "knn")) == names
    assert [r["k"] for r in records if r["task"] == "knn" and r["protocol"] == "dino"] == [3, 1]
    assert records[-1]["task"] == "retrieval"
