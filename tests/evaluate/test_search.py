"""Search equals a brute force in float64, whatever the block size."""

from __future__ import annotations

import numpy as np
import pytest

from evaluate.labels import EvaluationError
from evaluate.search import search
from evaluate.selection import Selection
from tests.conftest import make_features


def brute_force(database, queries, similarity, k):
    """Every pair, one by one, in float64; ordered by similarity, then by row."""
    database, queries = database.astype(np.float64), queries.astype(np.float64)
    rows, similarities = [], []
    for query in queries:
        row = []
        for index, other in enumerate(database):
            if similarity == "euclidean":
                value = -np.sqrt(np.square(other - query).sum())
            else:
                value = (other * query).sum()
                if similarity == "cosine":
                    lengths = [max(np.sqrt(np.square(v).sum()), 1e-12) for v in (other, query)]
                    value /= lengths[0] * lengths[1]
            row.append((-value, index))
        row.sort()
        rows.append([index for _, index in row[:k]])
        similarities.append([-value for value, _ in row[:k]])
    return np.array(rows), np.array(similarities)


def selections(path, database, queries, *, rows_per_chunk=7, train=None):
    features = {"train": {"x": database}, "val": {"x": queries}}
    labels = {split: np.zeros(len(layers["x"]), int) for split, layers in features.items()}
    made = make_features(path, features, labels, rows_per_chunk=rows_per_chunk)
    rows = np.arange(len(database)) if train is None else train
    return (
        Selection(layer=made.layer("train", "x"), rows=rows.astype(np.int64)),
        Selection(layer=made.layer("val", "x"), rows=np.arange(len(queries), dtype=np.int64)),
    )


def awkward(kind, num_rows, dim, seed):
    """Features that break careless searches."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((num_rows, dim)).astype(np.float32)
    if kind == "duplicates":
        values = values[random.integers(0, 9, num_rows)]
    if kind == "ties":
        values = random.integers(-1, 2, (num_rows, dim)).astype(np.float32)
    if kind == "zeros":
        values[::3] = 0
    if kind == "huge and tiny":
        values *= np.float32(10.0) ** random.integers(-12, 13, (num_rows, 1)).astype(np.float32)
    if kind == "collapsed":
        values = (1 + 1e-3 * values).astype(np.float32)
    return values


@pytest.mark.parametrize("similarity", ["cosine", "inner_product", "euclidean"])
@pytest.mark.parametrize("kind", ["random", "duplicates", "ties", "zeros", "huge and tiny", "collapsed"])
def test_neighbours_are_those_of_a_brute_force_in_float64(tmp_path, similarity, kind):
    database, queries = awkward(kind, 60, 5, 1), awkward(kind, 9, 5, 2)
    if similarity != "cosine" and kind == "huge and tiny":
        queries = awkward("random", 9, 5, 2)
    chosen = selections(tmp_path / "f", database, queries)
    expected_rows, expected = brute_force(database, queries, similarity, 20)
    for rows_per_block in (1, 20, 1000):
        found = search(*chosen, k=20, similarity=similarity, rows_per_block=rows_per_block)
        assert np.allclose(found.similarities_QK, expected, rtol=1e-12, atol=1e-14)
        # Similarities that differ by rounding alone may change places: compare what the rows are worth.
        swapped = found.rows_QK != expected_rows
        gaps = np.abs(np.diff(expected, axis=1)).min(axis=1, keepdims=True) > 1e-12 * np.abs(expected).max()
        assert not (swapped & gaps).any()


@pytest.mark.parametrize("similarity", ["cosine", "inner_product", "euclidean"])
@pytest.mark.parametrize("dim", [1, 64, 515])
def test_block_size_changes_no_bit(tmp_path, similarity, dim):
    chosen = selections(tmp_path / "f", awkward("duplicates", 300, dim, 1), awkward("random", 40, dim, 2))
    first = search(*chosen, k=50, similarity=similarity, rows_per_block=1000)
    for rows_per_block in (1, 49, 128):
        again = search(*chosen, k=50, similarity=similarity, rows_per_block=rows_per_block)
        assert np.array_equal(first.rows_QK, again.rows_QK)
        assert np.array_equal(first.similarities_QK, again.similarities_QK)


def test_equal_similarities_are_ordered_by_row(tmp_path):
    database = np.tile(np.eye(3, dtype=np.float32), (8, 1))
    found = search(*selections(tmp_path / "f", database, database[:3]), k=8, similarity="cosine", rows_per_block=5)
    assert found.rows_QK.tolist() == [list(range(i, 24, 3)) for i in range(3)]
    assert (found.similarities_QK == 1).all()


def test_rows_that_take_no_part_are_never_neighbours(tmp_path):
    database = awkward("random", 50, 6, 1)
    database[10] = np.nan_to_num(database[10])
    chosen = selections(tmp_path / "f", database, database[:5], train=np.flatnonzero(np.arange(50) % 4 != 1))
    found = search(*chosen, k=37, similarity="cosine", rows_per_block=9)
    assert sorted(found.rows_QK[0].tolist()) == np.flatnonzero(np.arange(50) % 4 != 1).tolist()


def test_k_can_be_all_rows_and_no_more(tmp_path):
    chosen = selections(tmp_path / "f", awkward("random", 12, 3, 1), awkward("random", 2, 3, 2))
    assert search(*chosen, k=12, similarity="cosine", rows_per_block=5).rows_QK.shape == (2, 12)
    for k in (0, 13):
        with pytest.raises(EvaluationError, match=r"k must be in \[1, 12\]"):
            search(*chosen, k=k, similarity="cosine", rows_per_block=5)


def test_rows_of_nan_that_take_part_are_refused_by_number(tmp_path):
    """They reach a store only by other programs: the writer refuses them."""
    database = awkward("random", 30, 4, 1)
    features = {"train": {"x": database}, "val": {"x": database[:4]}}
    labels = {split: np.zeros(len(layers["x"]), int) for split, layers in features.items()}
    valid = {"train": np.arange(30) != 17, "val": np.ones(4, bool)}
    made = make_features(tmp_path / "f", features, labels, valid=valid)
    chosen = (
        Selection(layer=made.layer("train", "x"), rows=np.arange(30)),
        Selection(layer=made.layer("val", "x"), rows=np.arange(4)),
    )
    with pytest.raises(EvaluationError, match=r"train/x: 1 rows hold NaN or infinity: row 17"):
        search(*chosen, k=3, similarity="cosine", rows_per_block=9)


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    import faiss

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    chosen = selections(tmp_path / "f", awkward("random", 12, 3, 1), awkward("random", 2, 3, 2))
    with pytest.raises(EvaluationError, match="faiss sees no GPU"):
        search(*chosen, k=2, similarity="cosine", rows_per_block=5, device="gpu")


@pytest.mark.gpu
@pytest.mark.parametrize("similarity", ["cosine", "inner_product", "euclidean"])
def test_a_gpu_finds_the_same_neighbours(tmp_path, similarity):
    import faiss

    if not getattr(faiss, "get_num_gpus", int)():
        pytest.skip("faiss sees no GPU")
    chosen = selections(tmp_path / "f", awkward("random", 5000, 64, 1), awkward("random", 100, 64, 2))
    cpu, gpu = (
        search(*chosen, k=100, similarity=similarity, rows_per_block=999, device=device) for device in ("cpu", "gpu")
    )
    assert np.array_equal(cpu.rows_QK, gpu.rows_QK)
    assert np.array_equal(cpu.similarities_QK, gpu.similarities_QK)


@pytest.mark.parametrize("similarity", ["inner_product", "euclidean"])
def test_lengths_whose_products_overflow_float32_are_refused(tmp_path, similarity):
    """Faiss would return no neighbours at all, and every vote would be counted as certain."""
    values = awkward("random", 30, 4, 1) * np.float32(1e20)
    chosen = selections(tmp_path / "f", values, values[:3])
    with pytest.raises(EvaluationError, match=f"overflow float32 in a search by {similarity}"):
        search(*chosen, k=3, similarity=similarity, rows_per_block=9)
    assert search(*chosen, k=3, similarity="cosine", rows_per_block=9).rows_QK[:, 0].tolist() == [0, 1, 2]


def test_collapsed_features_are_counted_as_uncertain_and_said(tmp_path, caplog):
    """A thousand copies of one point have no nearest ones."""
    values = np.ones((3000, 4), np.float32)
    found = search(*selections(tmp_path / "f", values, values[:2]), k=1, similarity="cosine", rows_per_block=1000)
    assert found.num_uncertain == 2
    assert "too near to one another" in caplog.text
