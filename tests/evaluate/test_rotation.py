"""Bounds from few directions: never below the inner product; and searches that use them find the same lists."""

import numpy as np
import pytest

from featbench.evaluate.neighbours import rotated_engine
from featbench.evaluate.neighbours.engine import SearchRequest
from featbench.evaluate.neighbours.planning import SearchPlan
from featbench.evaluate.neighbours.rotated_engine import RotatedEngine
from featbench.evaluate.neighbours.rotation import Rotation
from featbench.evaluate.neighbours.search import search
from featbench.store.typing import Floats
from tests.evaluate.test_search import held


def spread(random: np.random.Generator, num_rows: int, dim: int, *, power: float = 1.0) -> Floats:
    """Rows along few directions, as features are: the j-th has a share that falls as j^-power; and an offset."""
    turn_DD = np.linalg.qr(np.random.default_rng(7).standard_normal((dim, dim)))[0]
    values_ND = random.standard_normal((num_rows, dim)) * np.arange(1, dim + 1) ** -power + 0.5 / np.arange(1, dim + 1)
    return (values_ND @ turn_DD).astype(np.float32)


ROWS = {
    "few directions": lambda random, n, d: spread(random, n, d),
    "no direction": lambda random, n, d: random.standard_normal((n, d)).astype(np.float32),
    "lengths from 1e-30 to 1e15": lambda random, n, d: (
        spread(random, n, d) * np.float32(10) ** random.integers(-30, 16, (n, 1)).astype(np.float32)
    ),
    "equal rows": lambda random, n, d: spread(random, 9, d)[random.integers(0, 9, n)],
    "half zeros": lambda random, n, d: spread(random, n, d) * random.integers(0, 2, (n, 1)).astype(np.float32),
    "other directions at the end": lambda random, n, d: np.concatenate(
        [spread(random, n - n // 3, d), spread(random, n // 3, d)[:, ::-1]]
    ),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("dim", [128, 200])
def test_no_inner_product_exceeds_its_bound(kind: str, dim: int) -> None:
    random = np.random.default_rng(dim)
    rows_RD = ROWS[kind](random, 300, dim)
    queries_QD = ROWS[kind](random, 50, dim)
    true_QR = queries_QD.astype(float) @ rows_RD.astype(float).T
    lengths_Q = np.linalg.norm(queries_QD.astype(float), axis=1)
    for count in (3, dim // 4, dim // 2):
        rotation = Rotation.of(spread(random, 400, dim), count)
        coordinates_RL = np.empty((300, count + 1), np.float32)
        rotation.of_rows(rows_RD, coordinates_RL)
        bounds_QR = (rotation.of_queries(queries_QD) @ coordinates_RL.T).astype(float)
        longest = float(np.linalg.norm(rows_RD.astype(float), axis=1).max())
        assert (true_QR <= bounds_QR + rotation.error(lengths_Q, longest)[:, None]).all()


def test_few_directions_bound_rows_that_lie_along_them_closely() -> None:
    random = np.random.default_rng(0)
    rows_RD, queries_QD = spread(random, 500, 256), spread(random, 60, 256)
    rotation = Rotation.of(rows_RD, 64)
    coordinates_RL = np.empty((500, 65), np.float32)
    rotation.of_rows(rows_RD, coordinates_RL)
    above_QR = rotation.of_queries(queries_QD) @ coordinates_RL.T - queries_QD @ rows_RD.T
    products = np.linalg.norm(queries_QD, axis=1)[:, None] * np.linalg.norm(rows_RD, axis=1)
    assert np.median(above_QR / products) < 0.03


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the engine use bounds early, and whatever it costs; returns the pairs whose products it computed alone."""
    monkeypatch.setattr(rotated_engine, "_ROUNDS_BEFORE", 0)
    monkeypatch.setattr(rotated_engine, "_COMPARED", 64)
    monkeypatch.setattr(rotated_engine, "_SAMPLED_NUMBERS", 2**14)
    monkeypatch.setattr(rotated_engine, "_MOST_COST", np.inf)
    monkeypatch.setattr(rotated_engine, "_MOST_LEFT", 2.0)
    pairs: list[int] = []
    products = rotated_engine._products

    def counted(queries_QD: Floats, query_of_P: Floats, rows_RD: Floats, row_of_P: Floats) -> Floats:
        pairs.append(len(query_of_P))
        return products(queries_QD, query_of_P, rows_RD, row_of_P)

    monkeypatch.setattr(rotated_engine, "_products", counted)
    return pairs


@pytest.mark.parametrize("similarity", ["cosine", "inner_product", "euclidean"])
@pytest.mark.parametrize("kind", ROWS)
def test_lists_are_those_of_float64(kind: str, similarity: str, at_once: list[int]) -> None:
    random = np.random.default_rng(3)
    train_ND = ROWS[kind](random, 6000, 128)
    val_QD = ROWS[kind](random, 80, 128)
    found = search(
        held(train_ND), held(val_QD), k=10, similarity=similarity,
        plan=SearchPlan(rows_per_block=4000, queries_at_once=80),
    )  # fmt: skip
    rows, queries = train_ND.astype(float), val_QD.astype(float)
    if similarity == "euclidean":
        true_QN = np.stack([-np.sqrt(np.square(rows - query).sum(axis=1)) for query in queries])
    else:
        true_QN = np.stack([(rows * query).sum(axis=1) for query in queries])
    if similarity == "cosine":
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
        true_QN /= np.where(lengths == 0, 1, lengths)
        true_QN[:, (train_ND == 0).all(axis=1)] = -2  # rows of zeros come last
    best_QK = -np.sort(-true_QN, axis=1)[:, :10]
    assert np.allclose(found.similarities_QK, best_QK, rtol=1e-12, atol=1e-12 * np.abs(best_QK).max())
    assert len(at_once), "bounds were used"


def test_bounds_are_used_only_where_they_leave_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotated_engine, "_SAMPLED_NUMBERS", 2**18)
    random = np.random.default_rng(0)
    for kind, is_used in (("few directions", True), ("no direction", False)):
        train_ND, val_QD = ROWS[kind](random, 20_000, 128), ROWS[kind](random, 1000, 128)
        for values in (train_ND, val_QD):
            values /= np.linalg.norm(values, axis=1, keepdims=True)
        asked = SearchRequest(queries_QD=val_QD, lengths_Q=np.ones(1000), k=5, similarity="cosine")
        engine = RotatedEngine(asked)
        engine.add(np.arange(20_000), train_ND, longest=1.0)
        assert (engine._rotation is not None) == is_used
