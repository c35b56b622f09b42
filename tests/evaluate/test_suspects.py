"""Label errors, duplicates and outliers, planted and against SelfClean's formula on all pairs of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featbench.evaluate.diagnosis.suspects import Suspicions, find_suspects, nearest_of_class
from featbench.evaluate.diagnosis.without import accuracies_without
from featbench.evaluate.features.labels import Labelled, MatchedLabels
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.features.memory_layer import layer_in_memory
from featbench.evaluate.knn.protocols import PROTOCOLS
from featbench.evaluate.neighbours.cached_search import search_neighbours
from featbench.store.typing import Doubles, Floats, Ints

NUM_CLASSES, DIM = 4, 6


def rows_at_random(num_rows: int, seed: int) -> tuple[Floats, Ints]:
    random = np.random.default_rng(seed)
    labels = random.integers(NUM_CLASSES, size=num_rows)
    centers = np.random.default_rng(99).normal(size=(NUM_CLASSES, DIM))
    return (centers[labels] + random.normal(size=(num_rows, DIM))).astype(np.float32), labels


@pytest.fixture
def rows() -> dict[str, tuple[Floats, Ints]]:
    return {"train": rows_at_random(90, 0), "val": rows_at_random(40, 1)}


def prepare(rows: dict[str, tuple[Floats, Ints]]) -> tuple[EvalLayer, MatchedLabels]:
    layer = layer_in_memory("x", {split: features for split, (features, _) in rows.items()})
    train, val = (
        Labelled(split=split, rows=np.arange(len(labels)), labels=labels) for split, (_, labels) in rows.items()
    )
    return layer, MatchedLabels(train, val, tuple("abcd"))


def suspicions(rows: dict[str, tuple[Floats, Ints]], *, k: int = 3, **settings: Any) -> Suspicions:
    layer, labels = prepare(rows)
    lists = {
        split: search_neighbours(layer, database=labels.train, queries=queries, k=k, similarity="cosine").neighbours
        for split, queries in (("train", labels.train), ("val", labels.val))
    }
    settings = {"threshold": 0.9999, "share": 1.0, "memory": 2**20} | settings
    return find_suspects(layer, labels, lists, k=k, **settings)


def distances(rows: dict[str, tuple[Floats, Ints]], split: str) -> Doubles:
    """Cosine distances to all rows of train; infinite to itself."""
    unit = {
        s: each.astype(np.float64) / np.linalg.norm(each.astype(np.float64), axis=1)[:, None]
        for s, (each, _) in rows.items()
    }
    found = 1 - unit[split] @ unit["train"].T
    if split == "train":
        np.fill_diagonal(found, np.inf)
    return found


@pytest.mark.parametrize("memory", [1, 2**20])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_label_errors_have_selfcleans_scores_however_short_the_lists(
    rows: dict[str, tuple[Floats, Ints]], k: int, memory: int
) -> None:
    found = suspicions(rows, k=k, memory=memory)
    expected = {}
    for split in ("train", "val"):
        labels = rows[split][1]
        for row, far in enumerate(distances(rows, split)):
            same = rows["train"][1] == labels[row]
            a, b = far[same].min(), far[~same].min()
            if b**2 / (a**2 + b**2) < 0.5:
                expected[split, row] = b**2 / (a**2 + b**2)
    errors = [each for each in found.result.suspects if each.kind == "label error"]
    assert {(each.split, each.row) for each in errors} == set(expected)
    assert [each.score for each in errors] == pytest.approx(sorted(expected.values()), abs=1e-12)
    assert found.result.num_closer_to_others == len(expected) > 5


def test_the_nearest_row_of_the_same_class_is_found_in_any_memory(rows: dict[str, tuple[Floats, Ints]]) -> None:
    layer, labels = prepare(rows)
    for memory in (1, 4 * 4 * DIM * 40, 2**30):
        for split, queries in (("train", labels.train), ("val", labels.val)):
            cosines, nearest = nearest_of_class(layer, labels.train, queries, memory=memory)
            far = distances(rows, split)
            far[queries.labels[:, None] != labels.train.labels] = np.inf
            assert nearest.tolist() == far.argmin(axis=1).tolist()
            assert cosines == pytest.approx(1 - far.min(axis=1), abs=1e-12)


def test_planted_copies_and_leaks_are_found(rows: dict[str, tuple[Floats, Ints]]) -> None:
    train, val = rows["train"][0], rows["val"][0]
    train[[7, 30, 55]] = train[7] * np.array([[1], [3], [0.1]], np.float32)  # positive multiples are equal directions
    val[5], val[6] = train[30], train[80]
    found = suspicions(rows, threshold=1.0)
    by_kind: dict[str, set[tuple[str, int]]] = {}
    for each in found.result.suspects:
        by_kind.setdefault(each.kind, set()).add((each.split, each.row))
    assert by_kind["leak"] == {("val", 5), ("val", 6)}
    assert by_kind["duplicate"] == {("train", 30), ("train", 55)}, "the first of a component stays"
    assert (found.result.num_duplicates, found.result.num_components, found.result.largest_component) == (3, 2, 4)
    groups = {(each.split, each.row): each.group for each in found.result.suspects if each.group is not None}
    assert groups["val", 5] == groups["train", 30] == groups["train", 55] != groups["val", 6]


def test_outliers_are_the_rows_farthest_from_their_kth_neighbour(rows: dict[str, tuple[Floats, Ints]]) -> None:
    far = np.concatenate([np.sort(distances(rows, split), axis=1)[:, 2] for split in ("train", "val")])
    outliers = [each for each in suspicions(rows, k=3, share=0.1).result.suspects if each.kind == "outlier"]
    assert [each.row + 90 * (each.split == "val") for each in outliers] == np.argsort(-far)[:13].tolist()
    assert [each.score for each in outliers] == pytest.approx(np.sort(far)[::-1][:13], abs=1e-12)


def test_a_chain_of_near_duplicates_is_one_component(rows: dict[str, tuple[Floats, Ints]]) -> None:
    """Each is close to the next only, so that no single pair has the first and the last."""
    angles = np.arange(6) * 0.1
    rows["train"][0][:6] = 0
    rows["train"][0][:6, :2] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows["train"][0][6:, 1:] *= 10
    found = suspicions(rows, k=2, threshold=float(np.cos(0.11)))
    duplicates = {each.row: each.group for each in found.result.suspects if each.kind == "duplicate"}
    assert {1, 2, 3, 4, 5} <= set(duplicates)
    assert len({duplicates[row] for row in (1, 2, 3, 4, 5)}) == 1


@pytest.mark.parametrize("k", [1, 5])
def test_accuracy_without_suspects_is_that_of_the_rows_that_stay(rows: dict[str, tuple[Floats, Ints]], k: int) -> None:
    rows["val"][0][:8] = rows["train"][0][:8]
    found = suspicions(rows, share=0.3)
    layer, labels = prepare(rows)
    results = accuracies_without(
        layer, labels, found, find=search_neighbours, name="dino", protocol=PROTOCOLS["dino"], k=k
    )
    kinds = {"duplicates": ("leak", "duplicate"), "label errors": ("label error",), "outliers": ("outlier",)}
    for result in results:
        gone: dict[str, set[int]] = {"train": set(), "val": set()}
        for each in found.result.suspects:
            if result.without == "all of them" or each.kind in kinds.get(result.without, ()):
                gone[each.split].add(each.row)
        stay = {split: np.array([r for r in range(len(rows[split][1])) if r not in gone[split]]) for split in gone}
        near = 1 - distances(rows, "val")[np.ix_(stay["val"], stay["train"])]
        right = []
        for query, similarities in zip(stay["val"], near, strict=True):
            order = np.argsort(-similarities, kind="stable")[:k]
            votes = np.zeros(NUM_CLASSES)
            np.add.at(votes, rows["train"][1][stay["train"][order]], np.exp(similarities[order] / 0.07))
            right.append(votes.argmax() == rows["val"][1][query])
        assert (result.num_train, result.num_val) == (len(stay["train"]), len(stay["val"]))
        assert result.top1.value == pytest.approx(np.mean(right), abs=1e-12), result.without
    assert len({result.num_train for result in results}) > 3


def test_rows_without_labels_have_duplicates_and_outliers_but_no_label_errors(
    rows: dict[str, tuple[Floats, Ints]],
) -> None:
    nothing = {split: (features, np.full(len(labels), -1)) for split, (features, labels) in rows.items()}
    kinds = {each.kind for each in suspicions(nothing).result.suspects}
    assert "outlier" in kinds
    assert "label error" not in kinds
