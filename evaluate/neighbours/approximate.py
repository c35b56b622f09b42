"""Approximate search for very large databases, with any index of faiss's factory, and its measured recall.

The lists hold the rows that the index found, with similarities rescored from the stored features. They are not
certified: neighbours may be missing. Recall is measured on a sample of the queries, by exact search.

An index is trained on the same rows, and filled and searched in the same batches, regardless of memory and of earlier
searches, so the same request gives the same lists. The length of the lists is part of the request: an index that is
asked for longer lists also finds more of the nearest rows.

Shape suffixes:  Q queries   K neighbours   D dimension   S sampled queries
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import faiss
import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import Selection, scale_to_unit_length
from featbench.evaluate.memory import MIB, in_words
from featbench.evaluate.neighbours.float64_search import search_in_float64
from featbench.evaluate.neighbours.index_spec import IndexSpec
from featbench.evaluate.neighbours.planning import SearchPlan
from featbench.evaluate.neighbours.rescore import lengths_of_rows, rescore
from featbench.evaluate.neighbours.search import UNDEFINED, Neighbours, put_in_order, search
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store.typing import Doubles, Floats, Ints

ALGORITHM = 2
"""Part of the keys of cached lists, besides the version of exact search."""

NUM_SAMPLED_QUERIES = 1000
"""Queries that are also searched exactly, to measure recall."""

TRAINING_ROWS = 262_144
"""Most database rows that an index is trained on."""

TRAINING_BYTES = 512 * MIB
"""Most bytes of these rows: fewer rows if their dimension is large."""

MEMORY_SHARES = 2
"""Equal shares into which the memory is divided: one for the index, one for the search."""

_QUERIES_PER_BATCH = 256
"""Queries searched at a time: libraries round differently for other batch sizes."""

_LARGEST = 1e18
"""Largest length of a row whose squared distances float32 holds; beyond it, faiss aborts the process."""


def num_training_rows(num_rows: int, dim: int) -> int:
    """Number of database rows that an index is trained on."""
    return min(num_rows, TRAINING_ROWS, max(1, TRAINING_BYTES // (4 * dim)))


def search_approximately(
    database: Selection,
    queries: Selection,
    *,
    k: int,
    similarity: Similarity,
    index: str,
    plan: SearchPlan,
    memory: int,
    seed: int = 0,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> tuple[Neighbours, Neighbours]:
    """Find most of the k most similar rows of each query.

    Parameters
    ----------
    database, queries, k, similarity, plan, on_rows
        As for `featbench.evaluate.neighbours.search.search`.
    index : str
        faiss factory string, with search parameters after a colon.
    memory : int
        Bytes that the index may use, besides the plan's.
    seed : int
        Seed of the sample of queries.

    Returns
    -------
    neighbours, truth : Neighbours
        Lists of the index, and exact lists of a sample of the queries; see `recalls`.

    Raises
    ------
    EvaluationError
        If faiss can't make the index, the database is too small to train it, or it needs too much memory.
    """
    spec, layer = IndexSpec.parse(index), database.layer
    num_training = num_training_rows(len(database), layer.dim)
    spec.refuse_absurd(num_rows=len(database), num_training=num_training, dim=layer.dim, k=k, memory=memory)
    made = spec.make(layer.dim, similarity)
    _train(made, spec, database, similarity, num_training, memory)
    rows, zeros = _fill(made, spec, database, similarity, plan, memory, on_rows)
    wanted = min(k, len(rows))
    step = max(_QUERIES_PER_BATCH, plan.queries_at_once // _QUERIES_PER_BATCH * _QUERIES_PER_BATCH)
    rows_QK = np.empty((len(queries), k), np.int64)
    similarities_QK = np.full((len(queries), k), UNDEFINED)
    rows_QK[:, wanted:] = zeros[: k - wanted]
    for at in range(0, len(queries) if wanted else 0, step):
        group = slice(at, at + step)
        rows_QK[group, :wanted], similarities_QK[group, :wanted] = _ask(
            made, spec, rows, database, queries[group], wanted, similarity, plan
        )
    found = Neighbours(
        rows_QK=rows_QK,
        similarities_QK=similarities_QK,
        queries=queries.rows,
        rechecked=queries.rows[:0],
        num_zeros=len(zeros),
        engine=f"faiss {index}",
    )
    sample = np.sort(np.random.default_rng(seed).permutation(len(queries))[:NUM_SAMPLED_QUERIES])
    truth = search(database, replace(queries, rows=queries.rows[sample]), k=k, similarity=similarity, plan=plan)
    return found, truth


def recalls(found: Neighbours, truth: Neighbours) -> Doubles:
    """Fraction of the true k nearest neighbours among the first k of the lists, for every k from 1, shape (K,).

    Parameters
    ----------
    found : Neighbours
        Lists of all queries.
    truth : Neighbours
        Exact lists of some of them, of the same length.

    Examples
    --------
    >>> def lists(*rows):
    ...     nothing = np.empty(0, np.int64)
    ...     return Neighbours(
    ...         rows_QK=np.array(rows), similarities_QK=np.zeros((len(rows), len(rows[0]))),
    ...         queries=np.arange(len(rows)), rechecked=nothing, num_zeros=0, engine="",
    ...     )
    >>> recalls(lists([3, 5, 8], [1, 2, 3]), lists([3, 4, 5])).tolist()
    [1.0, 0.5, 0.6666666666666666]
    """
    sample = np.searchsorted(found.queries, truth.queries)
    length = truth.rows_QK.shape[1]
    first = np.zeros(length, np.int64)  # hits by the k from which on they count
    for true, mine in zip(truth.rows_QK, found.rows_QK[sample], strict=True):
        _, places, others = np.intersect1d(true, mine, return_indices=True)
        first += np.bincount(np.maximum(places, others), minlength=length)
    return np.asarray(first.cumsum() / (np.arange(1, length + 1) * len(sample)))


def _train(index: Any, spec: IndexSpec, database: Selection, kind: Similarity, num_rows: int, memory: int) -> None:
    """Train the index on a random sample of rows."""
    needed = 4 * database.layer.dim * num_rows
    if needed > memory:
        raise EvaluationError(
            f"--index {spec}: the {num_rows:,} rows of {database.layer.key} that train it take {in_words(needed)} of "
            f"memory; {in_words(memory)} are left for it. Allow --memory {-(-MEMORY_SHARES * needed // MIB)}MiB, or "
            f"leave --index out: the exact search reads the rows from disk."
        )
    chosen = np.random.default_rng(0).permutation(len(database))[:num_rows]
    training = replace(database, rows=database.rows[np.sort(chosen)]).read()
    _prepare(training, spec, kind, database.layer.key)
    with (
        _threads(1 if "_HNSW" in spec.factory else 0),
        spec.refusing(
            f"{len(training):,} rows of {database.layer.key} can't train it",
            f"Take one of fewer clusters, such as IVF{_clusters_for(len(training))},Flat, or leave --index out: the "
            f"search is exact then.",
        ),
    ):
        index.train(training)


def _clusters_for(num_rows: int) -> int:
    """Largest power of two of clusters that this many rows can train, at faiss's minimum of 39 rows each.

    Examples
    --------
    >>> _clusters_for(1_281_167), _clusters_for(1_200), _clusters_for(3)
    (32768, 16, 1)
    """
    return int(2 ** max(0, (num_rows // 39).bit_length() - 1))


def _fill(
    index: Any,
    spec: IndexSpec,
    database: Selection,
    kind: Similarity,
    plan: SearchPlan,
    memory: int,
    on_rows: Callable[[int], None],
) -> tuple[Ints, Ints]:
    """Add all rows; returns the row of each number in the index, and rows of zeros."""
    rows: list[Ints] = []
    zeros: list[Ints] = []
    pieces: list[Floats] = []
    empty, is_measured = _size(index, spec), False
    for block in database.blocks(plan.rows_per_block, unit_length=kind == "cosine", without_zeros=kind == "cosine"):
        _refuse_too_large(block.longest, spec, kind, database.layer.key)
        # Chunk by chunk: batches can change an index, and must not depend on the block size.
        cuts = np.flatnonzero(np.diff(block.rows // database.layer.rows_per_chunk)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(block.rows)], strict=True):
            pieces.append(block.features[start:stop])
            if not spec.in_one_piece:
                _add(index, spec, pieces.pop())
        if spec.in_one_piece:
            pieces = [np.array(piece) for piece in pieces]  # the block's memory is reused
        if not is_measured and len(block.rows):
            held = sum(piece.nbytes for piece in pieces)
            needed = empty + (_size(index, spec) - empty + held) * len(database) // len(block.rows)
            is_measured = True
            if needed > memory:
                raise EvaluationError(
                    f"--index {spec}: with {len(database):,} rows of {database.layer.key} it would take about "
                    f"{in_words(needed)} of memory; {in_words(memory)} are left for it. Allow "
                    f"--memory {-(-MEMORY_SHARES * needed // MIB)}MiB, take an index that compresses rows, such as "
                    f"IVF4096,PQ64, or leave --index out: the exact search reads the rows from disk."
                )
        rows.append(block.rows)
        zeros.append(block.zeros)
        on_rows(block.num_read)
    if pieces:
        _add(index, spec, np.concatenate(pieces))
    return np.concatenate(rows), np.concatenate(zeros)


def _add(index: Any, spec: IndexSpec, features: Floats) -> None:
    with (
        _threads(1 if spec.is_graph else 0),
        spec.refusing("faiss can't fill it", "Take another index, or leave --index out: the search is exact then."),
    ):
        index.add(features)


def _prepare(features: Floats, spec: IndexSpec, kind: Similarity, key: str) -> None:
    """Scale rows to length 1 under the cosine; refuse rows that overflow in faiss."""
    lengths = lengths_of_rows(features)
    _refuse_too_large(lengths.max(initial=0), spec, kind, key)
    if kind == "cosine":
        scale_to_unit_length(features, lengths)


def _refuse_too_large(longest: float, spec: IndexSpec, kind: Similarity, key: str) -> None:
    if kind != "cosine" and longest > _LARGEST:
        raise EvaluationError(
            f"--index {spec}: a row of {key} has the length {longest:.3g}, whose square faiss's float32 can't hold. "
            f"Take a protocol that uses the cosine, or leave --index out: the search is exact then."
        )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Limit faiss's threads; 0 changes nothing."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _size(index: Any, spec: IndexSpec) -> int:
    """Bytes of an index, as faiss serializes it."""
    sizes: list[int] = []
    with spec.refusing("faiss can't write it, so its size is not known", "Take another index, or leave --index out."):
        writer = faiss.PyCallbackIOWriter(lambda piece: sizes.append(len(piece)))  # type: ignore[attr-defined]
        faiss.write_index(index, writer)
    return sum(sizes)


def _ask(
    index: Any,
    spec: IndexSpec,
    rows: Ints,
    database: Selection,
    queries: Selection,
    k: int,
    kind: Similarity,
    plan: SearchPlan,
) -> tuple[Ints, Doubles]:
    """Sorted lists of k rows; queries for which the index finds fewer are searched exactly."""
    queries_QD = queries.read()
    lengths_Q = lengths_of_rows(queries_QD)
    asking_QD = queries_QD.copy()
    _prepare(asking_QD, spec, kind, queries.layer.key)
    places_QK = np.empty((len(queries), k), np.int64)
    with spec.refusing("faiss can't search it", "Take other parameters, or leave --index out."):
        for at in range(0, len(queries), _QUERIES_PER_BATCH):
            some = slice(at, at + _QUERIES_PER_BATCH)
            places_QK[some] = index.search(asking_QD[some], k)[1]
    rows_QK = rows[places_QK]
    similarities_QK = rescore(database.layer, queries_QD, lengths_Q, rows_QK, kind)
    put_in_order(rows_QK, similarities_QK)
    short = np.flatnonzero((places_QK < 0).any(axis=1))
    if len(short):
        rows_QK[short], similarities_QK[short] = search_in_float64(
            database, queries_QD[short], k=k, kind=kind, floor_Q=np.full(len(short), -np.inf),
            rows_per_block=plan.rows_per_block,
        )  # fmt: skip
    return rows_QK, similarities_QK
