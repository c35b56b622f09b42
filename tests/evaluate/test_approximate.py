"""An approximate search says how approximate it is, and returns exact similarities of what it found."""

from __future__ import annotations

import numpy as np
import pytest

from evaluate.labels import EvaluationError
from evaluate.neighbours.approximate import search_approximately
from evaluate.neighbours.search import UNDEFINED, search
from tests.conftest import make_features
from tests.evaluate.test_search import awkward, cut, held


@pytest.mark.parametrize("similarity", ["cosine", "inner_product", "euclidean"])
def test_an_index_that_looks_everywhere_finds_everything(similarity):
    chosen = held(awkward("random", 500, 8, 1)), held(awkward("random", 30, 8, 2))
    exact = search(*chosen, k=10, similarity=similarity, plan=cut(99))
    found, recall = search_approximately(
        *chosen, k=10, similarity=similarity, index="IVF4,Flat:nprobe=4", plan=cut(99, 7), memory=2**20
    )
    assert recall == 1
    assert np.array_equal(found.rows_QK, exact.rows_QK)
    assert np.array_equal(found.similarities_QK, exact.similarities_QK)


def test_the_recall_is_the_part_of_the_true_neighbours_that_was_found():
    chosen = held(awkward("random", 3000, 16, 1)), held(awkward("random", 200, 16, 2))
    truth = search(*chosen, k=20, similarity="cosine", plan=cut(5000))
    found, recall = search_approximately(
        *chosen, k=20, similarity="cosine", index="IVF32,Flat", plan=cut(5000), memory=2**20
    )
    expected = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found.rows_QK, truth.rows_QK, strict=True)])
    assert recall == pytest.approx(expected)
    assert 0.1 < recall < 0.9


def test_queries_for_which_the_index_finds_too_few_are_searched_exactly():
    values = awkward("random", 300, 4, 1)
    chosen = held(values), held(values[:20])
    found, _ = search_approximately(
        *chosen, k=250, similarity="euclidean", index="IVF8,Flat", plan=cut(999), memory=2**20
    )
    exact = search(*chosen, k=250, similarity="euclidean", plan=cut(999))
    assert np.array_equal(found.rows_QK, exact.rows_QK)


def test_rows_of_zeros_come_last_here_too():
    values = awkward("random", 200, 4, 1)
    values[:3] = 0
    found, recall = search_approximately(
        held(values), held(values[50:60]), k=200, similarity="cosine", index="HNSW16", plan=cut(999), memory=2**20
    )
    assert (found.rows_QK[:, -3:] == [0, 1, 2]).all()
    assert (found.similarities_QK[:, -3:] == UNDEFINED).all()
    assert recall == 1


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("IVF4,Flt", r"faiss makes no such index for 4 numbers \(could not parse"),
        ("Flat:nprob=3", "faiss makes no such index for 4 numbers"),
    ],
)
def test_an_index_that_faiss_does_not_know_is_refused(index, message):
    chosen = held(awkward("random", 100, 4, 1)), held(awkward("random", 3, 4, 2))
    with pytest.raises(EvaluationError, match=message):
        search_approximately(*chosen, k=5, similarity="cosine", index=index, plan=cut(), memory=2**20)


def test_a_database_that_cannot_train_the_index_is_refused():
    chosen = held(awkward("random", 10, 4, 1)), held(awkward("random", 3, 4, 2))
    with pytest.raises(EvaluationError, match=r"10 rows can't train --index IVF64,Flat \(Number of train"):
        search_approximately(*chosen, k=5, similarity="cosine", index="IVF64,Flat", plan=cut(), memory=2**20)


def test_an_index_that_would_not_fit_is_refused_after_its_first_block():
    chosen = held(awkward("random", 20_000, 32, 1), rows_per_chunk=1000), held(awkward("random", 3, 32, 2))
    added = []
    settings = {"k": 5, "similarity": "cosine", "index": "IVF4,Flat", "plan": cut(2000), "on_rows": added.append}
    with pytest.raises(EvaluationError, match="would take about 3 MiB of memory; 1 MiB are left") as refusal:
        search_approximately(*chosen, **settings, memory=2**20)
    assert "--memory 6MiB" in str(refusal.value)
    assert not added
    assert search_approximately(*chosen, **settings, memory=3 * 2**20)[1] > 0.1


def test_the_command_line_says_that_neighbours_are_approximate(tmp_path, bench, records):
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
