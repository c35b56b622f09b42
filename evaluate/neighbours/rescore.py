"""Similarities of given pairs of rows in float64, each summed in one fixed order.

This defines a similarity: products of two float32 numbers are exact in float64, and numpy sums each row by pairwise
summation, independently of other rows. So block size, threads and processor change no bit. A test checks that of numpy.

Shape suffixes:  Q queries   K neighbours   N rows   P pairs   D dimension
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from featbench.evaluate.features.selection import Layer
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store.typing import Array, Doubles, Floats, Ints

BYTES_PER_COPY = 2**21
"""Bytes of a temporary copy in float64: with smaller ones, threads wait for each other between numpy's calls."""


def lengths_of_rows(features_ND: Array) -> Doubles:
    """Euclidean lengths in float64, shape (N,); 0 only for a row of zeros."""
    lengths = np.empty(len(features_ND), np.float64)
    rows_at_once = max(1, BYTES_PER_COPY // (8 * features_ND.shape[1]))
    for at in range(0, len(features_ND), rows_at_once):
        squares = np.square(features_ND[at : at + rows_at_once], dtype=np.float64)
        lengths[at : at + rows_at_once] = np.sqrt(squares.sum(axis=1))
    return lengths


def similarities(
    database_PD: Array,
    queries_PD: Array,
    lengths_P: Doubles,
    query_lengths_P: Doubles,
    kind: Similarity,
) -> Doubles:
    """Similarity of each pair of rows.

    Parameters
    ----------
    database_PD, queries_PD : ndarray of shape (P, D), dtype=float32 or float64
        The pairs of rows, unscaled.
    lengths_P, query_lengths_P : ndarray of shape (P,)
        Lengths by `lengths_of_rows`. The cosine with a row of length 0 is 0.
    kind : {"cosine", "inner_product", "euclidean"}
        A Euclidean similarity is minus the distance.

    Returns
    -------
    ndarray of shape (P,), dtype=float64
    """
    if kind == "euclidean":
        differences_PD: Doubles = np.subtract(database_PD, queries_PD, dtype=np.float64)
        distances: Doubles = np.sqrt(np.square(differences_PD, out=differences_PD).sum(axis=1))
        return -distances
    products: Doubles = np.multiply(database_PD, queries_PD, dtype=np.float64).sum(axis=1)
    if kind == "cosine":
        lengths = lengths_P * query_lengths_P  # float64 holds them, from the smallest to the largest float32
        products /= np.where(lengths == 0, 1, lengths)
    return products


def rescore(database: Layer, queries_QD: Floats, lengths_Q: Doubles, rows_QK: Ints, kind: Similarity) -> Doubles:
    """Similarities of each query with the rows of its list, shape (Q, K); -inf where the row is -1.

    Chunk by chunk, so that each chunk is read once for all queries.
    """
    num_neighbours = rows_QK.shape[1]
    rows = rows_QK.ravel()
    found = np.full(rows.shape, -np.inf)
    chunks = rows // database.rows_per_chunk  # -1 where there is no row
    order = np.argsort(chunks.astype(np.int16 if chunks.max(initial=0) < 2**15 else np.int64), kind="stable")
    ends = np.cumsum(np.bincount(chunks + 1))
    pairs_at_once = max(1, BYTES_PER_COPY // (8 * database.dim))

    def rescore_chunk(chunk: int) -> None:
        pairs_of_chunk = order[ends[chunk] : ends[chunk + 1]]
        if not len(pairs_of_chunk):
            return
        within = rows[pairs_of_chunk] - chunk * database.rows_per_chunk
        by_row = np.argsort(within, kind="stable")
        pairs_of_chunk, within = pairs_of_chunk[by_row], within[by_row]
        features = database.peek(chunk)
        lengths_R = np.zeros(len(features))
        if kind == "cosine":
            wanted = np.unique(within)
            for at in range(0, len(wanted), pairs_at_once):
                rows_of_piece = wanted[at : at + pairs_at_once]
                lengths_R[rows_of_piece] = lengths_of_rows(features[rows_of_piece])
        for at in range(0, len(pairs_of_chunk), pairs_at_once):
            pairs, row_of = pairs_of_chunk[at : at + pairs_at_once], within[at : at + pairs_at_once]
            query_of = pairs // num_neighbours
            found[pairs] = similarities(
                features[row_of], queries_QD[query_of], lengths_R[row_of], lengths_Q[query_of], kind
            )

    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        list(threads.map(rescore_chunk, range(len(ends) - 1)))
    return found.reshape(rows_QK.shape)
