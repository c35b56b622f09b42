"""Approximate search for very large databases: any index that faiss's factory can make, and how good it is.

The lists hold rows that the index found, with their similarities computed anew from the stored features.
They are not certified: rows may be missing. How many is measured on a sample of the queries, by exact search.

Shape suffixes:  Q queries   K neighbours   D dimension
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from evaluate.labels import EvaluationError
from evaluate.memory import MIB, SearchPlan, in_words
from evaluate.neighbours.exact import search_in_float64
from evaluate.neighbours.rescore import lengths_of_rows, rescore
from evaluate.neighbours.search import UNDEFINED, Neighbours, put_in_order, search
from evaluate.protocols import Similarity
from evaluate.selection import Selection, scale_to_unit_length

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SAMPLE = 1000
"""Queries that are also searched exactly."""

TRAINING_ROWS = 262_144
"""Rows of the database that an index is trained on, at most; fewer where they would take half of its memory."""


PARTS = 2
"""Equal parts of the memory: one is the index's, one that of the search besides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """A faiss index by its factory string, and its parameters of search."""

    factory: str
    parameters: str

    @classmethod
    def parse(cls, text: str) -> IndexSpec:
        """Read `IVF4096,Flat` or `IVF4096,Flat:nprobe=16`.

        Examples
        --------
        >>> IndexSpec.parse("IVF64,Flat:nprobe=8")
        IndexSpec(factory='IVF64,Flat', parameters='nprobe=8')
        """
        factory, _, parameters = text.partition(":")
        return cls(factory=factory, parameters=parameters)

    def make(self, dim: int, kind: Similarity) -> Any:
        """Make the index, empty.

        Raises
        ------
        EvaluationError
            If faiss knows no such index or parameter.
        """
        metric = faiss.METRIC_L2 if kind == "euclidean" else faiss.METRIC_INNER_PRODUCT
        try:
            index = faiss.index_factory(dim, self.factory, metric)
            if self.parameters:
                faiss.ParameterSpace().set_index_parameters(index, self.parameters)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise EvaluationError(
                f"--index {self.factory}{':' if self.parameters else ''}{self.parameters}: faiss makes no such index "
                f"for {dim} numbers ({_reason(error)}). Try IVF4096,Flat:nprobe=16 or HNSW32, or leave --index out: "
                f"the search is exact then."
            ) from error
        return index


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
) -> tuple[Neighbours, float]:
    """Find most of the k most similar rows of each query.

    Parameters
    ----------
    database, queries, k, similarity, plan, on_rows
        As for `evaluate.neighbours.search.search`.
    index : str
        faiss's factory string, with parameters of search after a colon.
    memory : int
        Bytes that the index may take, besides the plan's.
    seed : int
        Of the sample of queries.

    Returns
    -------
    neighbours : Neighbours
    recall : float
        Part of the true k nearest neighbours that the lists hold, over the sample.

    Raises
    ------
    EvaluationError
        If faiss makes no such index, the database is too small to train it, or it would take too much memory.
    """
    made = IndexSpec.parse(index).make(database.layer.dim, similarity)
    rows, zeros = _fill(made, index, database, similarity, plan, memory, on_rows)
    wanted = min(k, len(rows))
    lists = [
        _ask(made, rows, database, queries[at : at + plan.queries_at_once], wanted, similarity, plan)
        for at in range(0, len(queries), plan.queries_at_once)
    ]
    rows_QK = np.empty((len(queries), k), np.int64)
    similarities_QK = np.full((len(queries), k), UNDEFINED)
    rows_QK[:, wanted:] = zeros[: k - wanted]
    rows_QK[:, :wanted] = np.concatenate([each[0] for each in lists])
    similarities_QK[:, :wanted] = np.concatenate([each[1] for each in lists])
    found = Neighbours(
        rows_QK=rows_QK,
        similarities_QK=similarities_QK,
        queries=queries.rows,
        second_look=queries.rows[:0],
        num_zeros=len(zeros),
        engine=f"faiss {index}",
    )
    size = min(SAMPLE, len(queries), plan.queries_at_once)
    sample = np.sort(np.random.default_rng(seed).permutation(len(queries))[:size])
    truth = search(database, replace(queries, rows=queries.rows[sample]), k=k, similarity=similarity, plan=plan)
    hits = [len(np.intersect1d(*both)) for both in zip(truth.rows_QK, rows_QK[sample], strict=True)]
    return found, float(np.mean(hits) / k)


def _fill(
    index: Any,
    name: str,
    database: Selection,
    kind: Similarity,
    plan: SearchPlan,
    memory: int,
    on_rows: Callable[[int], None],
) -> tuple[Ints, Ints]:
    """Train the index on some rows, add all; returns the rows by their number in it, and those of zeros."""
    num_training = max(1, min(TRAINING_ROWS, memory // 2 // (4 * database.layer.dim)))
    chosen = np.random.default_rng(0).permutation(len(database))[:num_training]
    training = replace(database, rows=database.rows[np.sort(chosen)]).read()
    if kind == "cosine":
        scale_to_unit_length(training, lengths_of_rows(training))
    try:
        index.train(training)
    except RuntimeError as error:
        raise EvaluationError(
            f"{database.layer.key}: {len(training):,} rows can't train --index {name} ({_reason(error)}). Take one of "
            f"fewer clusters, or leave --index out: the search is exact then."
        ) from error
    del training
    rows: list[Ints] = []
    zeros: list[Ints] = []
    empty = _size(index)
    for part in database.parts(plan.rows_per_block, unit_length=kind == "cosine", without_zeros=kind == "cosine"):
        index.add(part.features)
        if not rows and len(part.rows):
            needed = empty + (_size(index) - empty) * len(database) // len(part.rows)
            if needed > memory:
                raise EvaluationError(
                    f"--index {name}: with {len(database):,} rows of {database.layer.key} it would take about "
                    f"{in_words(needed)} of memory; {in_words(memory)} are left for it. Allow --memory "
                    f"{-(-PARTS * needed // MIB)}MiB, take an index that compresses rows, such as IVF4096,PQ64, or "
                    f"leave --index out: the exact search reads the rows from disk."
                )
        rows.append(part.rows)
        zeros.append(part.zeros)
        on_rows(part.num_read)
    return np.concatenate(rows), np.concatenate(zeros)


def _reason(error: RuntimeError) -> str:
    """What faiss says, without its functions, files and conditions."""
    said = str(error).strip().splitlines()[-1]
    return re.sub(r"^Error in .*? at \S+:\d+: (Error: '.*?' failed: )?", "", said)


def _size(index: Any) -> int:
    """Bytes of an index, as faiss would write it."""
    sizes: list[int] = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda piece: sizes.append(len(piece))))  # type: ignore[attr-defined]
    return sum(sizes)


def _ask(
    index: Any, rows: Ints, database: Selection, queries: Selection, k: int, kind: Similarity, plan: SearchPlan
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Lists of k rows in order; searched exactly where the index finds fewer."""
    queries_QD = queries.read()
    lengths_Q = lengths_of_rows(queries_QD)
    asking_QD = queries_QD.copy()
    if kind == "cosine":
        scale_to_unit_length(asking_QD, lengths_Q)
    places_QK = index.search(asking_QD, k)[1]
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
