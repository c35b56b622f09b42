"""Search equals a brute force in float64, to the bit, however it is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import RowBlock, Selection
from featbench.evaluate.neighbours.backends import choose_engine
from featbench.evaluate.neighbours.planning import SearchPlan
from featbench.evaluate.neighbours.search import UNDEFINED, Neighbours, merged, search
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store import Block
from featbench.store.reader import OnRows
from featbench.store.typing import Doubles, Floats, Ints
from tests.conftest import make_features


def brute_force(database: Floats, queries: Floats, similarity: Similarity, k: int) -> tuple[Ints, Doubles]:
    """Every pair, one by one, in float64; ordered by similarity, then by row; cosines with zeros last."""
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
                    lengths = [np.sqrt(np.square(v).sum()) for v in (other, query)]
                    value = value / (lengths[0] * lengths[1]) if other.any() and query.any() else 0.0
                    value = value if other.any() else UNDEFINED
            row.append((-value, index))
        row.sort()
        rows.append([index for _, index in row[:k]])
        similarities.append([-value for value, _ in row[:k]])
    return np.array(rows), np.array(similarities)


def cut(
    rows_per_block: int = 1000,
    queries_at_once: int = 1000,
    device: str = "auto",
    precision: str = "auto",
    k: int = 5,
    similarity: Similarity = "cosine",
) -> SearchPlan:
    engine = choose_engine(device, precision, k=k, similarity=similarity, multiplications=1)
    return SearchPlan(rows_per_block=rows_per_block, queries_at_once=queries_at_once, engine=engine)


def assert_equal(found: Neighbours, rows: Ints, similarities: Doubles) -> None:
    """To the bit."""
    assert np.array_equal(found.rows_QK, rows)
    assert np.array_equal(found.similarities_QK, similarities)


class Held:
    """A layer in memory, as `featbench.evaluate.features.selection.Layer` wants it: quicker than a store."""

    key = "held"

    def __init__(self, values: Floats, rows_per_chunk: int = 7) -> None:
        self.values, self.rows_per_chunk = values, rows_per_chunk
        self.num_rows, self.dim = values.shape

    def map_blocks(
        self,
        prepare: Callable[..., Any],
        rows_per_block: int,
        chunks: range | None = None,
        on_rows: OnRows | None = None,
    ) -> Iterator[RowBlock]:
        chunks = chunks or range(-(-self.num_rows // self.rows_per_chunk))
        step = max(1, rows_per_block // self.rows_per_chunk) * self.rows_per_chunk
        stop = min(chunks.stop * self.rows_per_chunk, self.num_rows)
        for start in range(chunks.start * self.rows_per_chunk, stop, step):
            features = self.values[start : min(start + step, stop)].copy()
            if on_rows is not None:
                on_rows(start, features)
            yield prepare(Block(start=start, features=features))

    def peek(self, chunk: int) -> Floats:
        return self.values[chunk * self.rows_per_chunk : (chunk + 1) * self.rows_per_chunk]


def held(values: Floats, **settings: int) -> Selection:
    return Selection(layer=Held(values, **settings), rows=np.arange(len(values)))


def selections(
    path: Path, database: Floats, queries: Floats, *, rows_per_chunk: int = 7, train: Ints | None = None
) -> tuple[Selection, Selection]:
    features = {"train": {"x": database}, "val": {"x": queries}}
    labels = {split: np.zeros(len(layers["x"]), int) for split, layers in features.items()}
    made = make_features(path, features, labels, rows_per_chunk=rows_per_chunk)
    rows = np.arange(len(database)) if train is None else train
    return (
        Selection(layer=made.layer("train", "x"), rows=rows.astype(np.int64)),
        Selection(layer=made.layer("val", "x"), rows=np.arange(len(queries), dtype=np.int64)),
    )


def awkward(kind: str, num_rows: int, dim: int, seed: int) -> Floats:
    """Features that break careless searches."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((num_rows, dim)).astype(np.float32)
    if kind == "duplicates":
        values = values[random.integers(0, 9, num_rows)]
    if kind == "ties":
        values = random.integers(-1, 2, (num_rows, dim)).astype(np.float32)
    if kind == "zeros":
        values[random.random(num_rows) < 0.3] = 0
    if kind == "all zeros":
        values[:] = 0
    if kind == "tiny":
        values *= np.float32(1e-25)
    if kind == "denormal":
        values *= np.float32(1e-41)
    if kind == "huge":
        values *= np.float32(1e30)
    if kind == "huge and tiny":
        values *= np.float32(10.0) ** random.integers(-30, 30, (num_rows, 1)).astype(np.float32)
    if kind == "collapsed":
        values = (1 + 1e-3 * values).astype(np.float32)
    if kind == "nearly equal":
        values = (1 + 1e-7 * values).astype(np.float32)
    if kind == "constant":
        values = np.full_like(values, 0.1)
    return values


KINDS = (
    "random", "duplicates", "ties", "zeros", "all zeros", "tiny", "denormal", "huge", "huge and tiny", "collapsed",
    "nearly equal", "constant",
)  # fmt: skip
SIMILARITIES = ("cosine", "inner_product", "euclidean")
ENGINES = (("cpu", "float32"), ("cpu", "low"), ("faiss-cpu", "float32"), ("gpu", "float32"), ("gpu", "low"))
"""Devices and precisions; the GPUs are simulated by faiss on the CPU."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    ("dim", "device", "precision"),
    [(70, *engine) for engine in ENGINES]
    + [(1, "cpu", "float32"), (1, "gpu", "low")]
    + [pytest.param(1, *engine, marks=pytest.mark.slow) for engine in ENGINES[1:-1]],
)
def test_neighbours_are_those_of_a_brute_force_in_float64_to_the_bit(
    two_gpus: list[Any], device: str, precision: str, similarity: Similarity, kind: str, dim: int
) -> None:
    """At k below, at and near the number of rows; for any block size, queries at once, threads, ranks and engine."""
    engine = {"device": device, "precision": precision, "similarity": similarity}
    num_rows = 900  # more than a shortlist holds, for the smaller k
    chosen, (rows, similarities) = problem(kind, num_rows, dim, similarity)
    assert np.isfinite(similarities).all()
    for k, size, threads in ((20, (1000, 1000), 2), (20, (30, 1000), 1), (1, (200, 10), 1), (899, (500, 11), 2)):
        with_threads(threads)
        found = search(*chosen, k=k, similarity=similarity, plan=cut(*size, **engine, k=k))
        assert_equal(found, rows[:, :k], similarities[:, :k])
    assert_equal(
        search(*chosen, k=num_rows, similarity=similarity, plan=cut(130, **engine, k=num_rows)), rows, similarities
    )
    for ranks in (2, 3):
        shards = [chosen[0][at : at + num_rows // ranks] for at in range(0, num_rows, num_rows // ranks)]
        lists = [search(shard, chosen[1], k=20, similarity=similarity, plan=cut(300, **engine)) for shard in shards]
        assert_equal(merged(lists, 20), rows[:, :20], similarities[:, :20])


@cache
def problem(
    kind: str, num_rows: int, dim: int, similarity: Similarity
) -> tuple[tuple[Selection, Selection], tuple[Ints, Doubles]]:
    """Database and 12 queries, and the answer."""
    database, queries = awkward(kind, num_rows, dim, 1), awkward(kind, 12, dim, 2)
    return (held(database), held(queries)), brute_force(database, queries, similarity, num_rows)


def with_threads(count: int) -> None:
    import faiss

    faiss.omp_set_num_threads(count)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_queries_that_float32_cannot_certify_are_searched_again(similarity: Similarity) -> None:
    random = awkward("random", 3000, 8, 1)
    assert search(held(random), held(random[:5]), k=9, similarity=similarity, plan=cut()).rechecked.tolist() == []
    equal = np.ones((3000, 8), np.float32)
    found = search(held(equal), held(equal[:5]), k=9, similarity=similarity, plan=cut(100, device="cpu"))
    assert found.rechecked.tolist() == [0, 1, 2, 3, 4]
    assert found.engine == "the CPU, float32"
    assert (found.rows_QK == np.arange(9)).all()


def test_rows_that_differ_less_than_float32_can_tell_are_put_in_the_right_order() -> None:
    """5,000 rows on a circle, so near to one another that their cosines in float32 are all 1."""
    angles = np.random.default_rng(0).permutation(5000) * 1e-6
    database = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = np.array([[1, 0]], np.float32)
    rows, similarities = brute_force(database, query, "cosine", 50)
    found = search(held(database), held(query), k=50, similarity="cosine", plan=cut())
    assert_equal(found, rows, similarities)
    assert len(found.rechecked) == 1


def test_rows_of_zeros_are_last_under_the_cosine_and_counted(tmp_path: Path) -> None:
    database = -np.ones((12, 3), np.float32)
    database[[2, 5]] = 0
    queries = np.array([[1, 1, 1], [0, 0, 0]], np.float32)
    found = search(*selections(tmp_path / "f", database, queries), k=11, similarity="cosine", plan=cut(4))
    assert found.rows_QK.tolist() == [[0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 2]] * 2, "opposite is nearer than undefined"
    assert found.num_zeros == 2
    assert (found.similarities_QK[:, -1] == UNDEFINED).all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dim", [1, 64, 515])
def test_block_size_changes_no_bit(similarity: Similarity, dim: int) -> None:
    chosen = held(awkward("duplicates", 300, dim, 1)), held(awkward("random", 40, dim, 2))
    first = search(*chosen, k=50, similarity=similarity, plan=cut(1000))
    for rows_per_block in (1, 49, 128):
        again = search(*chosen, k=50, similarity=similarity, plan=cut(rows_per_block))
        assert np.array_equal(first.rows_QK, again.rows_QK)
        assert np.array_equal(first.similarities_QK, again.similarities_QK)


def test_equal_similarities_are_ordered_by_row(tmp_path: Path) -> None:
    database = np.tile(np.eye(3, dtype=np.float32), (8, 1))
    found = search(*selections(tmp_path / "f", database, database[:3]), k=8, similarity="cosine", plan=cut(5))
    assert found.rows_QK.tolist() == [list(range(i, 24, 3)) for i in range(3)]
    assert (found.similarities_QK == 1).all()


def test_rows_that_take_no_part_are_never_neighbours(tmp_path: Path) -> None:
    database = awkward("random", 50, 6, 1)
    database[10] = np.nan_to_num(database[10])
    chosen = selections(tmp_path / "f", database, database[:5], train=np.flatnonzero(np.arange(50) % 4 != 1))
    found = search(*chosen, k=37, similarity="cosine", plan=cut(9))
    assert sorted(found.rows_QK[0].tolist()) == np.flatnonzero(np.arange(50) % 4 != 1).tolist()


def test_k_can_be_all_rows_and_no_more(tmp_path: Path) -> None:
    chosen = selections(tmp_path / "f", awkward("random", 12, 3, 1), awkward("random", 2, 3, 2))
    assert search(*chosen, k=12, similarity="cosine", plan=cut(5)).rows_QK.shape == (2, 12)
    for k in (0, 13):
        with pytest.raises(EvaluationError, match=r"k must be in \[1, 12\]"):
            search(*chosen, k=k, similarity="cosine", plan=cut(5))


def test_rows_of_nan_that_take_part_are_refused_by_number(tmp_path: Path) -> None:
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
        search(*chosen, k=3, similarity="cosine", plan=cut(9))


@pytest.mark.gpu
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_gpu_finds_the_same_neighbours(tmp_path: Path, similarity: Similarity) -> None:
    import faiss

    if not getattr(faiss, "get_num_gpus", int)():
        pytest.skip("faiss sees no GPU")
    chosen = selections(tmp_path / "f", awkward("random", 5000, 64, 1), awkward("random", 100, 64, 2))
    cpu, gpu = (
        search(*chosen, k=100, similarity=similarity, plan=cut(999, device=device)) for device in ("cpu", "gpu")
    )
    assert np.array_equal(cpu.rows_QK, gpu.rows_QK)
    assert np.array_equal(cpu.similarities_QK, gpu.similarities_QK)
