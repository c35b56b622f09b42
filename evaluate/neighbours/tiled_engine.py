"""Search on the CPU by matrix products of tiles of queries and rows, whose best scores go to shortlists.

A tile of products stays in a core's cache, where it is compared with the floors of its queries. Few scores pass, so
nearly all time goes into the matrix product. Each thread works on its own tiles.

Shape suffixes:  Q queries   R rows of one block   D feature dimension
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import pairwise
from typing import Protocol

import faiss
import numpy as np
from threadpoolctl import ThreadpoolController

from featbench.evaluate.neighbours.engine import Candidates, SearchRequest
from featbench.evaluate.neighbours.error_bounds import ErrorBound, float32_error
from featbench.evaluate.neighbours.shortlist import Shortlist
from featbench.store.typing import Doubles, Floats, Ints

MAX_QUERIES = 512
"""Most queries of one tile."""

MAX_ROWS = 1024
"""Most rows of one tile: the products take 2 MiB."""

_MIN_QUERIES = 16
"""Fewest queries of one tile: with fewer, matrix products are slow."""


class Products(Protocol):
    """Scores of queries with blocks of rows, in some number format."""

    shift_Q: Doubles
    """Add this to the scores of a query to get the true ones."""

    def workers(self, num_threads: int) -> AbstractContextManager[ThreadPoolExecutor]:
        """Threads that multiply with one core each."""

    def load(self, features_RD: Floats, workers: ThreadPoolExecutor) -> None:
        """Load the next block."""

    def fill(self, queries: slice, rows: slice, scores_QR: Floats) -> None:
        """Compute the scores of some queries with some rows; called by the workers."""

    def error(self, longest: float) -> ErrorBound:
        """Error bound of all scores so far, for rows of at most this length."""


Compare = Callable[[slice, slice, Floats, Shortlist], None]
"""Compares some queries with some rows, and offers what is found to the queries' lists; gets memory for the scores."""


class TiledEngine:
    """An `Engine` that multiplies on the CPU."""

    def __init__(self, asked: SearchRequest, make_products: Callable[[SearchRequest], Products]) -> None:
        self._products = make_products(asked)
        self._num_threads = faiss.omp_get_max_threads()
        self._tiles = [
            (queries, Shortlist(queries.stop - queries.start, asked.k))
            for queries in tiles_of(len(asked.queries_QD), self._num_threads)
        ]
        self._error = self._products.error(0.0)

    def add(self, rows_R: Ints, features_RD: Floats, *, longest: float) -> None:
        """See `Engine`."""

        def compare(queries: slice, rows: slice, scores_QR: Floats, shortlist: Shortlist) -> None:
            self._products.fill(queries, rows, scores_QR)
            shortlist.offer(scores_QR, rows_R[rows])

        with self._loaded(features_RD, longest) as workers:
            self._in_tiles(compare, len(rows_R), workers)

    @contextmanager
    def _loaded(self, features_RD: Floats, longest: float) -> Iterator[ThreadPoolExecutor]:
        """Load the next block, and yield the threads that multiply."""
        with self._products.workers(self._num_threads) as workers:
            self._products.load(features_RD, workers)
            self._error = self._products.error(longest)
            yield workers

    def _in_tiles(self, compare: Compare, num_rows: int, workers: ThreadPoolExecutor) -> None:
        """Compare all queries with the rows of the block, tile by tile."""

        def search(tile: tuple[slice, Shortlist]) -> None:
            queries, shortlist = tile
            shortlist.error = self._error[queries]
            scores = np.empty((queries.stop - queries.start) * MAX_ROWS, np.float32)
            for rows in row_tiles(num_rows):
                size = (queries.stop - queries.start) * (rows.stop - rows.start)
                compare(queries, rows, scores[:size].reshape(-1, rows.stop - rows.start), shortlist)

        list(workers.map(search, self._tiles))

    def close(self) -> Candidates:
        """See `Engine`."""
        shortlists = [shortlist for _, shortlist in self._tiles]
        return Candidates.of(shortlists, shift_Q=self._products.shift_Q, error=self._error)


class Float32Products:
    """Products in float32 by numpy's BLAS."""

    def __init__(self, asked: SearchRequest) -> None:
        self._asked = asked
        self._is_euclidean = asked.similarity == "euclidean"
        self._queries_QD = asked.queries_QD * np.float32(2) if self._is_euclidean else asked.queries_QD
        self.shift_Q = np.zeros(len(asked.queries_QD))

    @contextmanager
    def workers(self, num_threads: int) -> Iterator[ThreadPoolExecutor]:
        """See `Products`."""
        with one_blas_thread(), ThreadPoolExecutor(num_threads) as workers:
            yield workers

    def load(self, features_RD: Floats, workers: ThreadPoolExecutor) -> None:
        """See `Products`."""
        self._features_RD = features_RD
        if self._is_euclidean:
            self._squares_R = squares_of(features_RD)

    def fill(self, queries: slice, rows: slice, scores_QR: Floats) -> None:
        """See `Products`."""
        with np.errstate(over="ignore", invalid="ignore"):  # queries whose scores may overflow are not used
            np.matmul(self._queries_QD[queries], self._features_RD[rows].T, out=scores_QR)
            if self._is_euclidean:
                scores_QR -= self._squares_R[rows]

    def error(self, longest: float) -> ErrorBound:
        """See `Products`."""
        return float32_error(self._asked.lengths_Q, longest, self._queries_QD.shape[1], self._asked.similarity)


def one_blas_thread() -> AbstractContextManager[object]:
    """Let every thread that multiplies use one core."""
    limits: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limits


@cache
def _libraries() -> ThreadpoolController:
    """Find the thread pools of BLAS libraries, once: that takes 50 ms."""
    return ThreadpoolController()


def squares_of(features_RD: Floats) -> Floats:
    """Squared lengths of rows in float32, shape (R,)."""
    with np.errstate(over="ignore"):
        squares: Floats = np.einsum("rd,rd->r", features_RD, features_RD)
    return squares


def row_tiles(num_rows: int) -> list[slice]:
    """Cut the rows of a block into tiles of `MAX_ROWS`; the last may have fewer."""
    return [slice(start, min(start + MAX_ROWS, num_rows)) for start in range(0, num_rows, MAX_ROWS)]


def tiles_of(num_queries: int, num_threads: int) -> list[slice]:
    """Cut queries into tiles of about equal size, equally many for each thread.

    Examples
    --------
    >>> tiles_of(1100, 2)
    [slice(0, 275, None), slice(275, 550, None), slice(550, 825, None), slice(825, 1100, None)]
    """
    rounds = -(-num_queries // (MAX_QUERIES * num_threads))
    count = max(1, min(rounds * num_threads, num_queries // _MIN_QUERIES))
    edges = [index * num_queries // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
