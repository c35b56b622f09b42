"""Search on the CPU in float32 that rules out most rows by their coordinates along a few directions.

It begins as `TiledEngine` does. Once its lists are full it looks, on a sample of its queries and of the block at hand,
how many pairs of a query and a row the bound of `rotation` leaves, for several numbers of directions. If that pays, the
scores of these pairs alone are computed; where features have no such directions, all products are computed as before.
It changes no list: a row is left out only if its score certainly lies below the floor of the query's list.

Shape suffixes:  Q queries   R rows of one block   D feature dimension   P pairs   L numbers of a bound
"""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np

from featbench.evaluate.neighbours.engine import SearchRequest
from featbench.evaluate.neighbours.rotation import Rotation
from featbench.evaluate.neighbours.shortlist import Shortlist
from featbench.evaluate.neighbours.tiled_engine import MAX_ROWS, Float32Products, TiledEngine, row_tiles, squares_of
from featbench.store.typing import Doubles, Floats, Ints

_LEAST_DIM, _MOST_DIM = 128, 2048
"""Dimensions between which a rotation is tried: below, products are cheap; above, finding directions is dear."""

_PARTS = (16, 8, 4, 3, 2)
"""Directions that are tried: the dimension divided by these."""

_SAMPLED_NUMBERS = 2**22
"""Numbers of queries and rows from which the directions come, 16 MiB."""

_COMPARED = 1024
"""Other queries, and other rows, that are compared with each other."""

_ROUNDS_BEFORE = 8
"""Directions are sought once the products so far took this many times as long as that will."""

_COST_OF_NUMBER, _COST_OF_PAIR = 6, 1500
"""Time of each number of a pair's product, and of each pair besides, in that of a number in a matrix product."""

_COST_OF_ROW = 200
"""Time of each number of a row besides the products with the directions, in the same unit."""

_MOST_COST = 0.8
"""Part of the time of all products that the bound and the products of the remaining pairs may take."""

_MOST_LEFT = 0.1
"""If more pairs of a tile than this are left, all of its products are computed."""

_LONGEST = 2.0**60
"""Rows and queries of at most this length can't overflow float32."""


class RotatedEngine(TiledEngine):
    """An `Engine` that rules out rows by upper bounds of their scores."""

    def __init__(self, asked: SearchRequest) -> None:
        super().__init__(asked, Float32Products)
        self._asked = asked
        self._queries_QD = asked.queries_QD
        self._times = 2.0 if asked.similarity == "euclidean" else 1.0
        self._num_rows, self._next_look = 0, self._rows_before()
        self._rotation: Rotation | None = None
        """The one that is in use; None if none is known to pay."""
        self._widest: Rotation | None = None
        self._bounds_QL = np.empty((0, 0), np.float32)
        self._coordinates_RL = np.empty((0, 0), np.float32)

    def add(self, rows_R: Ints, features_RD: Floats, *, longest: float) -> None:
        """See `Engine`."""
        is_safe = longest < _LONGEST and self._asked.lengths_Q.max() < _LONGEST
        start = 0
        while start < len(rows_R):
            if is_safe and self._num_rows >= self._next_look:
                self._look(features_RD, longest)
            left = len(rows_R) - start
            count = int(min(left, self._next_look - self._num_rows)) if is_safe else left
            some = slice(start, start + count)
            if self._rotation is None or not is_safe:
                super().add(rows_R[some], features_RD[some], longest=longest)
            else:
                self._add_rotated(self._rotation, rows_R[some], features_RD[some], longest)
            self._num_rows += count
            start += count

    def _add_rotated(self, rotation: Rotation, rows_R: Ints, features_RD: Floats, longest: float) -> None:
        if len(self._coordinates_RL) < len(rows_R) or self._coordinates_RL.shape[1] != rotation.num_directions + 1:
            self._coordinates_RL = np.empty((len(rows_R), rotation.num_directions + 1), np.float32)
        error_Q = self._margin(rotation, longest)
        squares_R = squares_of(features_RD) if self._times == 2 else None

        def rotate(rows: slice) -> None:
            rotation.of_rows(features_RD[rows], self._coordinates_RL[rows])

        def compare(queries: slice, rows: slice, bounds_QR: Floats, shortlist: Shortlist) -> None:
            faiss.omp_set_num_threads(1)  # of this thread
            np.matmul(self._bounds_QL[queries], self._coordinates_RL[rows].T, out=bounds_QR)
            if squares_R is not None:
                bounds_QR -= squares_R[rows]
            floor_Q = np.nextafter((shortlist.floor_Q - error_Q[queries]).astype(np.float32), -np.inf)
            places = np.flatnonzero(bounds_QR > floor_Q[:, None])
            if len(places) > _MOST_LEFT * bounds_QR.size:
                self._products.fill(queries, rows, bounds_QR)
                shortlist.offer(bounds_QR, rows_R[rows])
                return
            query_of, row_of = np.divmod(places, rows.stop - rows.start)
            scores_P = _products(self._queries_QD[queries], query_of, features_RD[rows], row_of)
            scores_P *= np.float32(self._times)
            if squares_R is not None:
                scores_P -= squares_R[rows][row_of]
            above = np.flatnonzero(scores_P > shortlist.floor_Q[query_of])
            shortlist.take(query_of[above], scores_P[above], rows_R[rows][row_of[above]])

        with self._loaded(features_RD, longest) as workers:
            list(workers.map(rotate, row_tiles(len(rows_R))))
            self._in_tiles(compare, len(rows_R), workers)

    def _margin(self, rotation: Rotation, longest: float) -> Doubles:
        """How far the true score of a row can exceed the bound that is computed for it."""
        off_Q = self._times * rotation.error(self._asked.lengths_Q, longest)
        return np.asarray(off_Q + self._products.error(longest).absolute_Q)

    def _rows_before(self) -> float:
        """Rows to compare before directions are sought: infinite if they never are."""
        num_queries, dim = self._asked.queries_QD.shape
        if not _LEAST_DIM <= dim <= _MOST_DIM:
            return np.inf
        finding = _SAMPLED_NUMBERS * dim + 24 * dim**2 * (dim // _PARTS[-1])
        return float(np.ceil(max(_COMPARED, 4 * self._asked.k, _ROUNDS_BEFORE * finding / (num_queries * dim))))

    def _look(self, features_RD: Floats, longest: float) -> None:
        """Choose a rotation for the next rows, or none, by a look at some of them."""
        self._next_look = 2 * max(self._num_rows, MAX_ROWS)
        dim = features_RD.shape[1]
        if 10 * dim**2 + 4 * _SAMPLED_NUMBERS > features_RD.nbytes / 2:
            return  # memory is scarce: the engine may use as much as a block
        random = np.random.default_rng(0)
        queries, rows = random.permutation(len(self._queries_QD)), random.permutation(len(features_RD))
        if self._widest is None:
            sampled = slice(_COMPARED, _COMPARED + _SAMPLED_NUMBERS // dim // 2)
            sample_SD = np.concatenate([self._queries_QD[queries[sampled]], features_RD[rows[sampled]]])
            self._widest = Rotation.of(sample_SD, dim // _PARTS[-1])
        queries, rows_SD = queries[:_COMPARED], features_RD[rows[:_COMPARED]]
        for _, shortlist in self._tiles:
            shortlist.cut()
        floor_Q = np.concatenate([shortlist.floor_Q for _, shortlist in self._tiles])[queries]
        best, self._rotation = _MOST_COST, None
        for part in _PARTS:
            rotation = self._widest.first(dim // part)
            coordinates_SL = np.empty((len(rows_SD), rotation.num_directions + 1), np.float32)
            rotation.of_rows(rows_SD, coordinates_SL)
            bounds_QS = np.float32(self._times) * (rotation.of_queries(self._queries_QD[queries]) @ coordinates_SL.T)
            if self._times == 2:
                bounds_QS -= squares_of(rows_SD)
            left = float((bounds_QS > (floor_Q - self._margin(rotation, longest)[queries])[:, None]).mean())
            cost = 1 / part + (3 * rotation.num_directions + _COST_OF_ROW) / len(self._queries_QD)
            cost += (_COST_OF_NUMBER + _COST_OF_PAIR / dim) * left
            if left <= _MOST_LEFT / 2 and cost < best:
                best, self._rotation = cost, rotation
        if self._rotation is not None:
            self._bounds_QL = np.float32(self._times) * self._rotation.of_queries(self._queries_QD)


def _products(queries_QD: Floats, query_of_P: Ints, rows_RD: Floats, row_of_P: Ints) -> Floats:
    """Inner products of pairs, without copies of the rows."""
    found_P = np.empty(len(query_of_P), np.float32)
    # The arrays must live until the call returns: faiss gets their addresses.
    arrays = [np.ascontiguousarray(each) for each in (queries_QD, query_of_P, rows_RD, row_of_P)]
    pointers = [faiss.swig_ptr(each) for each in (*arrays, found_P)]
    multiply: Callable[..., None] = vars(faiss)["pairwise_indexed_inner_product"]  # unknown to faiss's stubs
    multiply(queries_QD.shape[1], len(found_P), *pointers)
    return found_P
