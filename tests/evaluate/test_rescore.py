"""Similarities of given pairs are those of float64 one by one, in pieces that stay small."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.neighbours.rescore import lengths_of_rows, rescore, similarities
from featbench.store.typing import Doubles, Floats, Ints
from tests.evaluate.test_search import Held

KINDS = ["cosine", "inner_product", "euclidean"]


def one_by_one(database: Floats, queries: Floats, rows_QK: Ints, kind: str) -> Doubles:
    """Every pair alone, in float64; -inf where there is no row."""
    found = np.full(rows_QK.shape, -np.inf)
    for (query, place), row in np.ndenumerate(rows_QK):
        if row >= 0:
            x, y = database[row].astype(np.float64), queries[query].astype(np.float64)
            value = -np.sqrt(np.square(x - y).sum()) if kind == "euclidean" else (x * y).sum()
            if kind == "cosine":
                value /= (np.sqrt(np.square(x).sum()) * np.sqrt(np.square(y).sum())) or 1
            found[query, place] = value
    return found


def peak_of(call: Callable[..., Any]) -> int:
    """Bytes that numpy and Python hold at once during a call, besides what they hold already."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def rows_of(num_rows: int, dim: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)


@pytest.mark.parametrize("num_rows", [0, 1, 255, 256, 257, 700])
def test_lengths_are_those_of_float64_however_many_rows(num_rows: int) -> None:
    values = rows_of(num_rows, 1024)  # 256 rows of float64 are 2 MiB
    expected = [np.sqrt(np.square(row.astype(np.float64)).sum()) for row in values]
    assert lengths_of_rows(values).tolist() == expected


def test_lengths_need_little_memory() -> None:
    values = rows_of(4096, 1024)  # 32 MiB in float64
    assert peak_of(lambda: lengths_of_rows(values)) < 6 * 2**20
    long = np.ones((4, 2**19), np.float32)  # a row has 4 MiB in float64, and the one before is still there
    assert peak_of(lambda: lengths_of_rows(long)) < 12 * 2**20


def test_similarities_are_those_of_their_definitions() -> None:
    database, queries = np.array([[3, 4], [0, 0]], np.float32), np.array([[4, 3], [1, 0]], np.float32)
    lengths, query_lengths = np.array([5.0, 0.0]), np.array([5.0, 1.0])
    assert similarities(database, queries, lengths, query_lengths, "cosine").tolist() == [24 / 25, 0]
    assert similarities(database, queries, lengths, query_lengths, "inner_product").tolist() == [24, 0]
    assert similarities(database, queries, lengths, query_lengths, "euclidean").tolist() == [-np.sqrt(2), -1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [3, 1024])
@pytest.mark.parametrize("rows_per_chunk", [1, 7, 400])
def test_lists_are_scored_as_one_by_one(kind: str, dim: int, rows_per_chunk: int) -> None:
    random = np.random.default_rng(1)
    database, queries = rows_of(400, dim), rows_of(6, dim, seed=2)
    database[3] = 0
    rows_QK = random.integers(-1, 400, (6, 90))
    rows_QK[0, :4] = 0, 3, 399, -1
    layer = Held(database, rows_per_chunk=rows_per_chunk)
    found = rescore(layer, queries, lengths_of_rows(queries), rows_QK, kind)
    assert np.array_equal(found, one_by_one(database, queries, rows_QK, kind))


def test_lists_without_any_row_have_no_similarity() -> None:
    queries = rows_of(2, 3)
    found = rescore(Held(rows_of(5, 3)), queries, lengths_of_rows(queries), np.full((2, 4), -1), "cosine")
    assert (found == -np.inf).all()


def test_chunks_are_told_apart_whatever_their_number() -> None:
    """16 bits count to 2^15 - 1."""
    last = 2**15
    database, queries = rows_of(last + 1, 2), rows_of(3, 2, seed=2)
    rows_QK = np.array([[last, 0], [1, last], [last - 1, last // 2]])
    found = rescore(Held(database, rows_per_chunk=1), queries, lengths_of_rows(queries), rows_QK, "inner_product")
    assert np.array_equal(found, one_by_one(database, queries, rows_QK, "inner_product"))


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_lists_needs_little_memory(kind: str) -> None:
    """4,096 pairs of one chunk are 32 MiB in float64, and a copy of both sides another 32."""
    database, queries = rows_of(1024, 1024), rows_of(4, 1024, seed=2)
    layer, lengths = Held(database, rows_per_chunk=1024), lengths_of_rows(queries)
    rows_QK = np.tile(np.arange(1024), (4, 1))
    assert peak_of(lambda: rescore(layer, queries, lengths, rows_QK, kind)) < 10 * 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_two_megabytes_are_scored_pair_by_pair(kind: str) -> None:
    """A pair is copied, 2 MiB each, and multiplied in float64, 4 MiB."""
    layer, queries = Held(np.ones((4, 2**19), np.float32)), np.ones((2, 2**19), np.float32)
    lengths, rows_QK = lengths_of_rows(queries), np.array([[0, 1], [2, 3]])
    assert peak_of(lambda: rescore(layer, queries, lengths, rows_QK, kind)) < 11 * 2**20
