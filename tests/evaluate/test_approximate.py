"""An approximate search says how approximate it is, and returns exact similarities of what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.knn.classification import evaluate_knn
from featbench.evaluate.neighbours.approximate import num_training_rows, recalls, search_approximately
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.search import UNDEFINED, search
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store import FeatureSet
from tests.conftest import Bench, Records, make_features
from tests.evaluate.test_questions import cosines
from tests.evaluate.test_search import awkward, cut, held, with_threads


@pytest.mark.parametrize("similarity", ["cosine", "inner_product", "euclidean"])
def test_an_index_that_looks_everywhere_finds_everything(similarity: Similarity) -> None:
    chosen = held(awkward("random", 500, 8, 1)), held(awkward("random", 30, 8, 2))
    exact = search(*chosen, k=10, similarity=similarity, plan=cut(99))
    found, truth = search_approximately(
        *chosen, k=10, similarity=similarity, index="IVF4,Flat:nprobe=4", plan=cut(99, 7), memory=2**20
    )
    assert recalls(found, truth).tolist() == [1] * 10
    assert np.array_equal(found.rows_QK, exact.rows_QK)
    assert np.array_equal(found.similarities_QK, exact.similarities_QK)


def test_the_recall_is_the_part_of_the_true_neighbours_that_was_found() -> None:
    chosen = held(awkward("random", 3000, 16, 1)), held(awkward("random", 200, 16, 2))
    truth = search(*chosen, k=20, similarity="cosine", plan=cut(5000))
    found, sample = search_approximately(
        *chosen, k=20, similarity="cosine", index="IVF32,Flat", plan=cut(5000), memory=2**20
    )
    for k in (1, 3, 20):
        pairs = zip(found.rows_QK[:, :k], truth.rows_QK[:, :k], strict=True)
        expected = np.mean([len(set(a) & set(b)) / k for a, b in pairs])
        assert recalls(found, sample)[k - 1] == pytest.approx(expected)
        assert 0.1 < expected < 0.9


def test_queries_for_which_the_index_finds_too_few_are_searched_exactly() -> None:
    values = awkward("random", 300, 4, 1)
    chosen = held(values), held(values[:20])
    found, _ = search_approximately(
        *chosen, k=250, similarity="euclidean", index="IVF8,Flat", plan=cut(999), memory=2**20
    )
    exact = search(*chosen, k=250, similarity="euclidean", plan=cut(999))
    assert np.array_equal(found.rows_QK, exact.rows_QK)


def test_rows_of_zeros_come_last_here_too() -> None:
    values = awkward("random", 200, 4, 1)
    values[:3] = 0
    found, truth = search_approximately(
        held(values), held(values[50:60]), k=200, similarity="cosine", index="HNSW16", plan=cut(999), memory=2**20
    )
    assert (found.rows_QK[:, -3:] == [0, 1, 2]).all()
    assert (found.similarities_QK[:, -3:] == UNDEFINED).all()
    assert recalls(found, truth)[-1] == 1


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_a_database_of_zeros_alone_has_lists_too(similarity: Similarity) -> None:
    chosen = held(np.zeros((20, 4), np.float32)), held(awkward("random", 3, 4, 2))
    found, _ = search_approximately(*chosen, k=5, similarity=similarity, index="Flat", plan=cut(), memory=2**20)
    assert found.rows_QK.tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("IVF4,Flt", r"faiss makes no such index for 4 numbers \(could not parse"),
        ("Flat:nprob=3", "faiss makes no such index for 4 numbers"),
        ("", "must be a factory string"),
        ("Fl\0at", "must be a factory string"),
        ("IVF٤,Flat", "must be a factory string"),
        ("IVF99999999,Flat", r"IVF99999999 is too large: at most 100, the rows that it is trained on"),
        ("IVF" + "9" * 50 + ",Flat", "is too large: at most 100"),
        ("IVF8,PQ2x20", "x20 is too large: at most 6, bits that 100 rows can train"),
        ("HNSW9999999", "HNSW9999999 alone would take 7.5 GiB of memory; 1 MiB are left"),
        ("PCA999999999,Flat", "alone would take 15 GiB"),
        ("Pad99999999,Flat", "alone would take 37 GiB"),
        ("IVF8,Flat:nprobe=100000000000", "nprobe=100000000000 is too large: at most 100"),
        ("IVF8,Flat:nprobe=1e30", "nprobe=1e30 is too large"),
        ("IVF8,Flat:nprobe=0", "faiss can't search it"),
        ("IVF8,Flat:nprobe=-1", "must be a name and a number"),
        ("IVF8,Flat:nprobe=nan", "must be a name and a number"),
        ("IVF8,Flat:nprobe", "must be a name and a number"),
        ("HNSW8:efSearch=2147483648", "efSearch=2147483648 is too large"),
        ("SQ8,RFlat:k_factor_rf=1e9", "k_factor_rf=1e9 is too large: at most 20"),
        ("IVF8,Flat:verbose=9", "must be a name and a number"),
        ("PQ3", "faiss makes no such index|can't train"),
    ],
)
def test_an_index_that_faiss_does_not_know_is_refused(index: str, message: str) -> None:
    chosen = held(awkward("random", 100, 4, 1)), held(awkward("random", 3, 4, 2))
    with pytest.raises(EvaluationError, match=message):
        search_approximately(*chosen, k=5, similarity="cosine", index=index, plan=cut(), memory=2**20)


def test_a_database_that_cannot_train_the_index_is_refused() -> None:
    chosen = held(awkward("random", 10, 4, 1)), held(awkward("random", 3, 4, 2))
    with pytest.raises(EvaluationError, match="IVF64 is too large: at most 10, the rows that it is trained on"):
        search_approximately(*chosen, k=5, similarity="cosine", index="IVF64,Flat", plan=cut(), memory=2**20)


def test_rows_whose_squares_float32_cannot_hold_are_refused() -> None:
    """By faiss's k-means the process would end."""
    chosen = held(awkward("random", 100, 4, 1) * np.float32(1e20)), held(awkward("random", 3, 4, 2))
    for database, queries in (chosen, chosen[::-1]):
        with pytest.raises(EvaluationError, match="whose square faiss's float32 can't hold"):
            search_approximately(database, queries, k=2, similarity="euclidean", index="Flat", plan=cut(), memory=2**20)


@pytest.mark.parametrize("index", ["HNSW8", "IVF8_HNSW4,Flat", "IVF16,SQ8"])
def test_neither_blocks_nor_memory_nor_threads_change_what_an_index_finds(index: str) -> None:
    """Only a part is found, so that it shows."""
    chosen = held(awkward("random", 2000, 8, 1), rows_per_chunk=100), held(awkward("random", 600, 8, 2))
    settings = {"k": 20, "similarity": "cosine", "index": index}
    found = []
    for threads, plan, memory in ((2, cut(2000), 2**30), (2, cut(100, 300), 2**21), (1, cut(500, 600), 2**22)):
        with_threads(threads)
        found.append(search_approximately(*chosen, **settings, plan=plan, memory=memory)[0])
    assert all(np.array_equal(each.rows_QK, found[0].rows_QK) for each in found)
    exact = search(*chosen, k=20, similarity="cosine", plan=cut(2000))
    assert not np.array_equal(exact.rows_QK, found[0].rows_QK)


def test_the_rows_that_train_an_index_depend_on_the_database_alone() -> None:
    assert num_training_rows(1000, 64) == 1000
    assert num_training_rows(10**7, 64) == 262_144
    assert num_training_rows(10**7, 2048) == 65_536
    chosen = held(awkward("random", 20_000, 32, 1), rows_per_chunk=1000), held(awkward("random", 3, 32, 2))
    with pytest.raises(EvaluationError, match=r"the 20,000 rows of .* that train it take 3 MiB of memory; 2 MiB are"):
        search_approximately(*chosen, k=5, similarity="cosine", index="IVF4,Flat", plan=cut(2000), memory=2**21)


def test_an_index_that_would_not_fit_is_refused_after_its_first_block() -> None:
    chosen = held(awkward("random", 20_000, 32, 1), rows_per_chunk=1000), held(awkward("random", 3, 32, 2))
    added = []
    settings = {"k": 5, "similarity": "cosine", "index": "IVF4,Flat", "plan": cut(2000), "on_rows": added.append}
    with pytest.raises(EvaluationError, match="would take about 3 MiB of memory; 3 MiB are left") as refusal:
        search_approximately(*chosen, **settings, memory=2_600_000)
    assert "--memory 6MiB" in str(refusal.value)
    assert not added
    assert recalls(*search_approximately(*chosen, **settings, memory=3 * 2**20))[-1] > 0.1


def test_an_answer_does_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    """And each k comes with its own recall: the part of the true k nearest among the first k of one list."""
    values, queries = awkward("random", 2000, 16, 1), awkward("random", 100, 16, 2)
    labels = {"train": np.arange(2000) % 4, "val": np.arange(100) % 4}

    def make(name: str) -> FeatureSet:
        return make_features(
            tmp_path / name, {"train": {"x": values}, "val": {"x": queries}}, labels, rows_per_chunk=256
        )

    def asked(made: FeatureSet, *ks: int, **more: bool) -> list[dict[str, Any]]:
        return evaluate_knn(made, ["x"], k=ks, index="IVF16,Flat", **more)

    fresh, used = make("fresh"), make("used")
    first = asked(fresh, 10)
    asked(used, 200)
    sweep = asked(used, 1, 10, 200)
    (again,) = asked(used, 10)
    timing = ("seconds", "neighbours_reused", "features")
    for one, other in ((first[0], again), (asked(fresh, 10)[0], again)):
        assert all(one[key] == other[key] for key in one if key not in timing)
    assert again["recall"] < 0.6 < sweep[1]["recall"], "longer lists hold more of the ten nearest"
    assert [record["neighbours_reused"] for record in asked(used, 1, 10, 200)] == [True] * 3

    truth = np.argsort(-cosines(values, queries), axis=1, kind="stable")
    train, val, _ = matched_labels(used)
    kept = find_neighbours(
        used, stored_layer(used, "x"), database=train, queries=val, k=200, similarity="cosine", index="IVF16,Flat"
    )
    assert kept.reused
    for record in sweep:
        k = record["k"]
        pairs = zip(truth[:, :k], kept.neighbours.rows_QK[:, :k], strict=True)
        assert record["recall"] == pytest.approx(np.mean([len(set(a) & set(b)) / k for a, b in pairs]))

    (alone,) = asked(used, 10, leave_one_out=True)
    similarities = cosines(values, values)
    np.fill_diagonal(similarities, -np.inf)
    others = np.argsort(-similarities, axis=1, kind="stable")[:, :10]
    kept = find_neighbours(
        used, stored_layer(used, "x"), database=train, queries=train, k=10, similarity="cosine", index="IVF16,Flat"
    )
    assert kept.reused
    of_all = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(others, kept.neighbours.rows_QK, strict=True)])
    assert alone["recall"] == pytest.approx(of_all, abs=0.03), "a sample of 1,000, none its own neighbour"


def test_the_command_line_says_that_neighbours_are_approximate(tmp_path: Path, bench: Bench, records: Records) -> None:
    values = awkward("random", 400, 6, 1)
    features = {"train": {"x": values}, "val": {"x": values[:50]}}
    labels = {split: np.arange(len(each["x"])) % 4 for split, each in features.items()}
    make_features(tmp_path / "features/f", features, labels)
    (exact,) = records("--features", "f", "--k", "5")
    (found,) = records("--features", "f", "--k", "5", "--index", "IVF8,Flat")
    assert (exact["certified"], exact["recall"]) == (True, None)
    assert found["certified"] is False
    assert 0.1 < found["recall"] < 1
    shown = bench("evaluate", "--features", "f", "--k", "5", "--index", "IVF8,Flat")
    assert f"approximate neighbours, recall {100 * found['recall']:.1f} %" in " ".join(shown.stdout.split())
    (again,) = records("--features", "f", "--k", "5")
    assert again["certified"], "lists of an index are kept apart"
