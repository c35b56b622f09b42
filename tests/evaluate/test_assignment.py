"""Every engine assigns each row to the centroid that float64 brute force finds, with the same distances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from featbench.evaluate.clustering.assignment import Nearest, assign, for_all_tiles
from featbench.evaluate.clustering.planning import ClusterPlan
from featbench.evaluate.clustering.proposals import Float32, Float64, Products
from featbench.evaluate.clustering.rows import Frame, FramedRows, RowSource, Tile
from featbench.evaluate.neighbours.backends import EngineChoice
from featbench.store.typing import Doubles, Floats, Ints
from tests.evaluate.test_search import held

pytestmark = pytest.mark.filterwarnings("error")

Random = np.random.Generator

ENGINES = {
    "float32": EngineChoice(where="cpu"),
    "bfloat16": EngineChoice(where="cpu", low="bfloat16"),
    "faiss": EngineChoice(where="faiss-cpu"),
}

ROWS: dict[str, Callable[[Random, int, int], Doubles]] = {
    "normal": lambda random, n, d: random.standard_normal((n, d)),
    "integers": lambda random, n, d: random.integers(-2, 3, (n, d)).astype(float),
    "offset": lambda random, n, d: random.standard_normal((n, d)) + 10.0 ** random.integers(0, 7),
    "lengths from 1e-45 to 1e38": lambda random, n, d: (
        np.tanh(random.standard_normal((n, d))) * 10.0 ** random.integers(-45, 39, (n, 1))
    ),
    "tiny": lambda random, n, d: random.standard_normal((n, d)) * 10.0 ** random.integers(-45, -30),
    "huge": lambda random, n, d: np.tanh(random.standard_normal((n, d))) * 3e38,
    "float16": lambda random, n, d: random.standard_normal((n, d)).astype(np.float16).astype(float),
    "duplicates": lambda random, n, d: random.standard_normal((max(1, n // 5), d))[
        random.integers(0, max(1, n // 5), n)
    ],
    "one row far away": lambda random, n, d: np.vstack(
        [random.standard_normal((n - 1, d)), np.full((1, d), 10.0 ** random.integers(3, 39))]
    ),
    "all equal": lambda random, n, d: np.tile(random.standard_normal((1, d)), (n, 1)),
    "half zeros": lambda random, n, d: random.standard_normal((n, d)) * random.integers(0, 2, (n, 1)),
}


def means(random: Random, rows_ND: Doubles, count: int) -> Doubles:
    return np.stack([rows_ND[random.integers(0, len(rows_ND), 8)].mean(axis=0) for _ in range(count)])


def middles(random: Random, rows_ND: Doubles, count: int) -> Doubles:
    """Points between two rows, which are equally far from them."""
    pairs = random.integers(0, len(rows_ND), (2, count))
    return rows_ND[pairs[0]] / 2 + rows_ND[pairs[1]] / 2


def one_ulp_apart(random: Random, rows_ND: Doubles, count: int) -> Doubles:
    """Few rows, with a number of each moved to the next one above or below."""
    centroids_KD = rows_ND[random.integers(0, min(3, len(rows_ND)), count)]
    column_K = random.integers(0, rows_ND.shape[1], count)
    with np.errstate(under="ignore"):
        chosen = centroids_KD[np.arange(count), column_K]
        centroids_KD[np.arange(count), column_K] = np.nextafter(chosen, random.choice([-9e99, 9e99], count))
    return centroids_KD


def one_far_away(random: Random, rows_ND: Doubles, count: int) -> Doubles:
    centroids_KD = means(random, rows_ND, count)
    centroids_KD[-1] = random.choice([-1, 1], rows_ND.shape[1]) * 10.0 ** random.integers(0, 38)
    return centroids_KD


CENTROIDS: dict[str, Callable[[Random, Doubles, int], Doubles]] = {
    "rows": lambda random, rows_ND, count: rows_ND[random.integers(0, len(rows_ND), count)],
    "means": means,
    "middles of rows": middles,
    "one ulp apart": one_ulp_apart,
    "anywhere": lambda random, rows_ND, count: random.standard_normal((count, rows_ND.shape[1])) * np.ptp(rows_ND),
    "one far away": one_far_away,
}


def in_float64(stored_ND: Floats, *, normalize: bool) -> Doubles:
    rows_ND = stored_ND.astype(np.float64)
    if not normalize:
        return rows_ND
    lengths_N = np.sqrt(np.square(rows_ND).sum(axis=1))
    return rows_ND / np.where(lengths_N == 0, 1, lengths_N)[:, None]


def brute_force(rows_ND: Doubles, centroids_KD: Doubles) -> tuple[Ints, Doubles, Doubles]:
    """Nearest centroid of each row, the lowest of equally near ones, and distances to it and to the next one."""
    squares_NK = np.stack([np.square(rows_ND - centroid).sum(axis=1) for centroid in centroids_KD], axis=1)
    nearest_N = squares_NK.argmin(axis=1)
    sorted_NK = np.sort(np.pad(squares_NK, ((0, 0), (0, 1)), constant_values=np.inf), axis=1)
    return nearest_N, np.sqrt(sorted_NK[:, 0]), np.sqrt(sorted_NK[:, 1])


def nearest_alone(stored_ND: Floats, centroids_KD: Doubles, plan: ClusterPlan, *, normalize: bool) -> Ints:
    """The nearest centroids as Lloyd's algorithm finds them, which needs no distances."""
    source = RowSource(held(stored_ND), normalize=normalize, plan=plan)
    rows_ND = in_float64(stored_ND, normalize=normalize)
    nearest = Nearest(centroids_KD, Frame.around(rows_ND, rows_ND.min(axis=0), rows_ND.max(axis=0)), plan)
    clusters_N = np.full(len(stored_ND), -1)

    def find(tile: Tile) -> None:
        clusters_N[tile.positions] = nearest.one(tile)

    for_all_tiles(source, nearest, find)
    return clusters_N


def check(stored_ND: Floats, centroids_KD: Doubles, engine: str, *, normalize: bool = False, threads: int = 1) -> None:
    """Compare an engine with brute force."""
    plan = ClusterPlan(rows_per_block=70, engine=ENGINES[engine], num_threads=threads)
    expected = brute_force(in_float64(stored_ND, normalize=normalize), centroids_KD)
    found = assign(held(stored_ND), centroids_KD, normalize=normalize, plan=plan)
    for ours, theirs in zip((found.clusters_N, found.distances_N, found.others_N), expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(nearest_alone(stored_ND, centroids_KD, plan, normalize=normalize), expected[0])


def check_kind(rows: str, engine: str, *, dim: int, num_rows: int, num_clusters: int, seed: int = 0) -> None:
    """Compare an engine with brute force on one kind of rows, with all kinds of centroids."""
    random = np.random.default_rng([seed, dim])
    stored_ND = ROWS[rows](random, num_rows, dim).astype(np.float32)
    for normalize in (False, True):
        rows_ND = in_float64(stored_ND, normalize=normalize)
        for make in CENTROIDS.values():
            check(stored_ND, make(random, rows_ND, num_clusters), engine, normalize=normalize)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", ROWS)
def test_rows_are_assigned_as_by_brute_force(rows: str, engine: str) -> None:
    for dim in (1, 24):
        check_kind(rows, engine, dim=dim, num_rows=60, num_clusters=13)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", ROWS)
def test_rows_of_any_shape_are_assigned_as_by_brute_force(rows: str, engine: str) -> None:
    random = np.random.default_rng(1)
    for seed in range(15):
        dim, num_rows, num_clusters = (int(random.integers(1, most)) for most in (80, 200, 60))
        check_kind(rows, engine, dim=dim, num_rows=1 + num_rows, num_clusters=num_clusters, seed=seed)
    check_kind(rows, engine, dim=5000, num_rows=40, num_clusters=12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dim", [1, 3, 400])
@pytest.mark.parametrize("offset", [0, 1000])
def test_centroids_that_low_precision_cannot_tell_apart_are_told_apart(offset: int, dim: int, engine: str) -> None:
    """Rows midway between two centroids, but for less than the rounding errors of a score."""
    random = np.random.default_rng(dim)
    centers_KD = random.standard_normal((6, dim)) + offset
    apart_KD = random.standard_normal((6, dim)) * 0.1
    pair_N = random.integers(0, 6, 400)
    rows_ND = centers_KD[pair_N] + apart_KD[pair_N] * 10.0 ** random.uniform(-8, -2, (400, 1))
    check(rows_ND.astype(np.float32), np.vstack([centers_KD - apart_KD, centers_KD + apart_KD]), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_row_may_have_as_many_candidates_as_there_are_rows(engine: str) -> None:
    """Eight rows, of which one is equally near to eight centroids, but for the last bits of float64."""
    random = np.random.default_rng(0)
    stored_ND = 10 * np.eye(8, 16, dtype=np.float32)
    close_KD = stored_ND[:1] + random.standard_normal((8, 16)) * 1e-13
    check(stored_ND, np.vstack([stored_ND[1:], close_KD]), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_more_centroids_than_are_compared_at_once(engine: str) -> None:
    random = np.random.default_rng(0)
    centroids_KD = random.integers(-3, 4, (4500, 3)).astype(float)  # all but 343 are copies
    centroids_KD[::2] += random.standard_normal((2250, 3))
    check(random.integers(-3, 4, (300, 3)).astype(np.float32), centroids_KD, engine, threads=2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("num_clusters", [1, 2])
def test_one_centroid_has_no_other(num_clusters: int, engine: str) -> None:
    random = np.random.default_rng(0)
    stored_ND = random.standard_normal((20, 4)).astype(np.float32)
    check(stored_ND, random.standard_normal((num_clusters, 4)), engine)
    found = assign(
        held(stored_ND),
        np.tile(stored_ND[:1].astype(float), (3, 1)),
        normalize=False,
        plan=ClusterPlan(rows_per_block=7, engine=ENGINES[engine]),
    )
    assert (found.clusters_N == 0).all()
    assert np.array_equal(found.others_N, found.distances_N), "a copy of the nearest centroid is as far away"


def test_a_centroid_far_away_does_not_make_the_others_uncertain() -> None:
    """Otherwise one outlier would make all rows as slow as brute force."""
    random = np.random.default_rng(0)
    centroids_KD = random.standard_normal((40, 16))
    stored_ND = random.standard_normal((200, 16)).astype(np.float32)
    centroids_KD[0] *= 1e12
    frame = Frame(center_D=np.zeros(16), factor=1.0, limit=10.0, typical=1.0)
    rows = FramedRows.of(Tile(positions=slice(0, 200), stored_ND=stored_ND, divisors_N=None), frame)
    for number_format in (Float32(), Float64()):
        pairs = Products(centroids_KD, number_format).propose(rows, 1)
        assert len(pairs.row_of_P) < 210


@pytest.mark.parametrize("engine", ENGINES)
def test_many_rows_are_proposed_for_in_pieces(engine: str) -> None:
    random = np.random.default_rng(0)
    stored_ND = random.integers(0, 3, (3000, 2)).astype(np.float32)
    plan = ClusterPlan(rows_per_block=3000, engine=ENGINES[engine], num_threads=2)
    centroids_KD = random.integers(0, 5, (30, 2)) / 2
    expected, *_ = brute_force(stored_ND.astype(float), centroids_KD)
    assert np.array_equal(nearest_alone(stored_ND, centroids_KD, plan, normalize=False), expected)
