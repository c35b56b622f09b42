"""Exact search in float64, for queries whose lists no engine could certify.

A matrix product in float64, with a bound on its error, tells which rows can be among the k nearest. Their similarities
are computed in the fixed order of `featbench.evaluate.neighbours.rescore`. So the lists are right by construction, even
where thousands of rows are equal or nearly so: a collapsed trunk, images that occur many times.

Shape suffixes:  Q queries   K neighbours   R rows at a time   P pairs   D dimension
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.error_bounds import highest
from featbench.evaluate.neighbours.rescore import BYTES_PER_COPY, lengths_of_rows, similarities
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store.typing import Array, Doubles, Floats, Ints

_PRODUCTS_AT_ONCE = 2**20
"""Elements of one temporary matrix (8 MiB of float64)."""

_ROWS_AT_ONCE = 256
"""Database rows compared with the queries at a time."""


class TopK:
    """The k best rows of each query so far, by falling similarity, then by rising row."""

    def __init__(self, k: int, floor_Q: Doubles) -> None:
        self.rows_QK = np.full((len(floor_Q), k), -1, np.int64)
        self.similarities_QK = np.full((len(floor_Q), k), -np.inf)
        self._below_Q = np.nextafter(floor_Q, -np.inf)

    def entry(self) -> Doubles:
        """Similarity that a later row must exceed to enter the list: a row equal to the last one comes after it."""
        least: Doubles = np.maximum(self.similarities_QK[:, -1], self._below_Q)
        return least

    def add(self, rows_R: Ints, similarities_QR: Doubles) -> None:
        """Add rows whose numbers are larger than all before."""
        changed = np.flatnonzero((similarities_QR > self.entry()[:, None]).any(axis=1))
        if len(changed):
            k = self.rows_QK.shape[1]
            both = np.concatenate([self.similarities_QK[changed], similarities_QR[changed]], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :k]
            new_rows = np.broadcast_to(rows_R, (len(changed), len(rows_R)))
            rows = np.concatenate([self.rows_QK[changed], new_rows], axis=1)
            self.rows_QK[changed] = np.take_along_axis(rows, order, axis=1)
            self.similarities_QK[changed] = np.take_along_axis(both, order, axis=1)


def search_in_float64(
    database: Selection,
    queries_QD: Floats,
    *,
    k: int,
    kind: Similarity,
    floor_Q: Doubles,
    rows_per_block: int,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> tuple[Ints, Doubles]:
    """Find the k most similar rows of each query, exactly.

    Parameters
    ----------
    database : Selection
        At least k rows; under the cosine, at least k that are not zeros.
    queries_QD : ndarray of shape (Q, D), dtype=float32
        Unscaled.
    k : int
        Neighbours.
    kind : {"cosine", "inner_product", "euclidean"}
    floor_Q : ndarray of shape (Q,)
        Similarity that at least k rows are known to reach, -inf if none is known; the higher, the faster.
    rows_per_block : int
        Database rows in memory at once.
    on_rows : callable
        Called after each block with its number of rows.

    Returns
    -------
    rows_QK, similarities_QK : ndarray of shape (Q, k)
        Sorted by falling similarity, then by rising row.
    """
    dim = database.layer.dim
    lengths_Q = lengths_of_rows(queries_QD)
    rows_at_once = max(1, min(_ROWS_AT_ONCE, _PRODUCTS_AT_ONCE // dim))
    step = max(1, _PRODUCTS_AT_ONCE // rows_at_once)
    slices = [slice(at, at + step) for at in range(0, len(queries_QD), step)]
    groups = [(queries_QD[s].astype(np.float64), lengths_Q[s], TopK(k, floor_Q[s])) for s in slices]
    for block in database.blocks(rows_per_block, unit_length=False, without_zeros=kind == "cosine"):
        for at in range(0, len(block.rows), rows_at_once):
            rows = _Rows.of(block.rows[at : at + rows_at_once], block.features[at : at + rows_at_once])
            for queries, lengths, best in groups:
                _search_rows(queries, lengths, rows, kind, best)
        on_rows(block.num_read)
    return (
        np.concatenate([best.rows_QK for *_, best in groups]),
        np.concatenate([best.similarities_QK for *_, best in groups]),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Database rows as stored and in float64, with their lengths."""

    rows_R: Ints
    stored_RD: Floats
    exact_RD: Doubles
    lengths_R: Doubles

    @classmethod
    def of(cls, rows_R: Ints, stored_RD: Floats) -> _Rows:
        exact_RD = stored_RD.astype(np.float64)
        return cls(rows_R, stored_RD, exact_RD, lengths_of_rows(exact_RD))


def _search_rows(queries_QD: Doubles, lengths_Q: Doubles, rows: _Rows, kind: Similarity, best: TopK) -> None:
    """Add the rows that are among the k best."""
    products_QR = queries_QD @ rows.exact_RD.T
    dim = queries_QD.shape[1]
    is_undefined_Q = (lengths_Q == 0) & (kind == "cosine")
    bound_QR = highest(products_QR, np.where(is_undefined_Q, 1, lengths_Q), rows.lengths_R, dim, kind)
    bound_QR[is_undefined_Q] = 0  # exactly: a query of zeros is equally unlike all
    pairs = np.nonzero(bound_QR > best.entry()[:, None])
    if len(pairs[0]):
        best.add(rows.rows_R, _of_pairs(pairs, queries_QD, lengths_Q, rows, kind, into_QR=bound_QR))


def _of_pairs(
    pairs: tuple[npt.NDArray[np.intp], ...],
    queries_QD: Doubles,
    lengths_Q: Doubles,
    rows: _Rows,
    kind: Similarity,
    *,
    into_QR: Doubles,
) -> Doubles:
    """Similarities of some pairs, -inf elsewhere; once for equal rows, of which collapsed features have many."""
    query_of, row_of = pairs
    candidates, candidate_of = np.unique(row_of, return_inverse=True)
    _, first, twin_of = np.unique(_as_bytes(rows.stored_RD[candidates]), return_index=True, return_inverse=True)
    cells, cell_of = np.unique(query_of * len(first) + twin_of[candidate_of], return_inverse=True)
    found = np.empty(len(cells), np.float64)
    pairs_at_once = max(1, BYTES_PER_COPY // (8 * queries_QD.shape[1]))
    for at in range(0, len(cells), pairs_at_once):
        query, twin = np.divmod(cells[at : at + pairs_at_once], len(first))
        row = candidates[first[twin]]
        found[at : at + pairs_at_once] = similarities(
            rows.exact_RD[row], queries_QD[query], rows.lengths_R[row], lengths_Q[query], kind
        )
    into_QR.fill(-np.inf)
    into_QR[pairs] = found[cell_of]
    return into_QR


def _as_bytes(features_RD: Floats) -> Array:
    """View each row as one byte string, so that whole rows can be compared."""
    return np.ascontiguousarray(features_RD).view(f"V{features_RD.shape[1] * 4}").reshape(-1)
