"""The nearest centroid of each row: exact, as float64 says, whatever proposed it.

As in the neighbour search, an engine of low precision proposes the centroids that can be the nearest of a row, given
the largest error of its scores (`proposals`). For most rows that is one. Where it is a few, their distances are
computed in float64 and in one fixed order of summation; where it is many, the next engine decides first. Equal
distances go to the lower number. So engines, blocks, threads and ranks change no assignment.

Shape suffixes:  N rows   K centroids   D feature dimension   P pairs of a row and a centroid
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from featbench.evaluate.clustering.planning import ClusterPlan
from featbench.evaluate.clustering.proposals import Float32, Float64, Pairs, Products, Proposals
from featbench.evaluate.clustering.rows import Frame, FramedRows, RowSource, Tile, tiles_of
from featbench.evaluate.clustering.sums import ROWS_AT_ONCE
from featbench.evaluate.counting import OnRows
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.rescore import BYTES_PER_COPY
from featbench.evaluate.neighbours.tiled_engine import one_blas_thread
from featbench.store.typing import Array, Doubles, Ints

_FEW = 6
"""If more centroids than this can be the nearest of a row, an engine of higher precision decides first."""

_TILES_PER_THREAD = 4
"""Fewest tiles of a block for each thread, unless they would be too small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignments:
    """The nearest centroid of each row, exact as float64 says; ties go to the lowest number."""

    clusters_N: Ints
    distances_N: Doubles
    """Euclidean distance to the nearest centroid."""

    others_N: Doubles
    """Euclidean distance to the nearest other centroid; infinite if there is none."""

    engine: str
    """What proposed; it changes no number."""


def assign(
    data: Selection,
    centroids_KD: Doubles,
    *,
    normalize: bool,
    plan: ClusterPlan,
    on_rows: OnRows = lambda rows: None,
) -> Assignments:
    """Find the nearest centroid of each selected row.

    Parameters
    ----------
    data : Selection
        N rows.
    centroids_KD : ndarray of shape (K, D)
        In units of the rows, which have length 1 under `normalize`.
    normalize : bool
        Whether each row is divided by its length.
    plan : ClusterPlan
        What may be used; changes no result.
    on_rows : callable
        Called with numbers of rows that are done.

    Raises
    ------
    EvaluationError
        If a row holds NaN or infinity.
    """
    source = RowSource(data, normalize=normalize, plan=plan)
    return assign_rows(source, frame_around(centroids_KD), centroids_KD, on_rows)


def assign_rows(source: RowSource, frame: Frame, centroids_KD: Doubles, on_rows: OnRows) -> Assignments:
    """Find the two nearest centroids of all rows of a source."""
    clusters_N = np.empty(len(source), np.int64)
    distances_N, others_N = np.empty(len(source)), np.empty(len(source))
    nearest = Nearest(centroids_KD, frame, source.plan)

    def find(tile: Tile) -> None:
        which, squares = nearest.two(tile)
        clusters_N[tile.positions] = which
        distances_N[tile.positions], others_N[tile.positions] = np.sqrt(squares)

    for_all_tiles(source, nearest, find, on_rows)
    return Assignments(
        clusters_N=clusters_N, distances_N=distances_N, others_N=others_N, engine=str(source.plan.engine)
    )


def for_all_tiles(
    source: RowSource, nearest: Nearest, work: Callable[[Tile], None], on_rows: OnRows = lambda rows: None
) -> None:
    """Pass over all rows once, on all threads, as many at a time as they can share."""
    with nearest.workers() as workers:
        for block in source.blocks():
            fair = -(-len(block.stored_ND) // (_TILES_PER_THREAD * source.plan.num_threads))
            tiles = list(tiles_of(block, max(nearest.rows_at_once, min(fair, ROWS_AT_ONCE))))
            for tile, _ in zip(tiles, workers.map(work, tiles), strict=True):
                on_rows(len(tile.stored_ND))


def frame_around(centroids_KD: Doubles) -> Frame:
    """Choose a frame for centroids, whose rows were not read."""
    return Frame.around(centroids_KD, centroids_KD.min(axis=0), centroids_KD.max(axis=0))


class Nearest:
    """Finds the nearest centroids of rows.

    Parameters
    ----------
    centroids_KD : ndarray of shape (K, D), dtype=float64
    frame : Frame
        Coordinates in which engines see rows and centroids.
    plan : ClusterPlan
        Its engine and threads.
    """

    def __init__(self, centroids_KD: Doubles, frame: Frame, plan: ClusterPlan) -> None:
        self._plan = plan
        self.frame = frame
        self.centroids_KD = centroids_KD
        self._number_of, self._is_copied = _distinct(centroids_KD)
        self._distinct_KD = centroids_KD if len(self._number_of) == len(centroids_KD) else centroids_KD[self._number_of]
        self._engines = _engines(frame.enter(self._distinct_KD.copy()), plan)
        self.rows_at_once = self._engines[0].rows_at_once

    @contextmanager
    def workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that multiply with one core each."""
        with one_blas_thread(), ThreadPoolExecutor(self._plan.num_threads) as workers:
            yield workers

    @property
    def has_copies(self) -> bool:
        """Whether some centroids are equal."""
        return len(self._number_of) < len(self.centroids_KD)

    def products(self) -> Products | None:
        """The first engine, if it can tell ranges of distances."""
        return self._engines[0] if isinstance(self._engines[0], Products) else None

    def numbers(self, distinct: Ints) -> Ints:
        """Numbers of centroids, given those among the distinct ones, which engines see."""
        return self._number_of[distinct]

    def framed(self, chosen: Ints) -> Doubles:
        """Some centroids in the coordinates of the frame."""
        return self.frame.enter(self.centroids_KD[chosen])

    def one(self, tile: Tile) -> Ints:
        """Number of the nearest centroid of each row."""
        return np.concatenate([self._one(each) for each in tiles_of(tile, self.rows_at_once)])

    def _one(self, tile: Tile) -> Ints:
        pairs = self._proposed(tile, top=1)
        if len(pairs.row_of_P) == len(tile.stored_ND):  # one each
            return self._number_of[pairs.centroid_of_P]
        starts_N = np.searchsorted(pairs.row_of_P, np.arange(len(tile.stored_ND)))
        which_N = pairs.centroid_of_P[starts_N]
        is_shared_P = np.bincount(pairs.row_of_P)[pairs.row_of_P] > 1
        several, row_of_P = np.unique(pairs.row_of_P[is_shared_P], return_inverse=True)
        shared = Pairs(row_of_P=row_of_P, centroid_of_P=pairs.centroid_of_P[is_shared_P], is_complete_N=several >= 0)
        squares_P = squared_distances(tile, several[row_of_P], self._distinct_KD, shared.centroid_of_P)
        which_N[several] = _first_best(shared, squares_P, len(several))[0]
        return self._number_of[which_N]

    def two(self, tile: Tile) -> tuple[Ints, tuple[Doubles, Doubles]]:
        """Number of the nearest centroid, and squared distances to it and to the next one."""
        found = [self._two(each) for each in tiles_of(tile, self.rows_at_once)]
        clusters_N, best_N, others_N = (np.concatenate(each) for each in zip(*found, strict=True))
        return clusters_N, (best_N, others_N)

    def _two(self, tile: Tile) -> tuple[Ints, Doubles, Doubles]:
        pairs = self._proposed(tile, top=2)
        squares_P = squared_distances(tile, pairs.row_of_P, self._distinct_KD, pairs.centroid_of_P)
        num_rows = len(tile.stored_ND)
        which_N, best_N, place_N = _first_best(pairs, squares_P, num_rows)
        squares_P[place_N] = np.inf
        others_N = np.full(num_rows, np.inf)
        np.minimum.at(others_N, pairs.row_of_P, squares_P)
        others_N = np.where(self._is_copied[which_N], best_N, others_N)
        return self._number_of[which_N], best_N, others_N

    def squares(self, tile: Tile, which_N: Ints) -> Doubles:
        """Squared distance of each row to one centroid."""
        return squared_distances(tile, np.arange(len(which_N)), self.centroids_KD, which_N)

    def _proposed(self, tile: Tile, top: int) -> Pairs:
        """Centroids that can be the nearest of each row, few of them if any engine can tell."""
        rows = FramedRows.of(tile, self.frame)
        undecided = np.arange(len(rows))
        found: list[Pairs] = []
        for engine in self._engines:
            is_last = engine is self._engines[-1]
            pairs = engine.propose(rows.take(undecided), top)
            if len(undecided) == len(rows) == len(pairs.row_of_P) and pairs.is_complete_N.all() and top == 1:
                return pairs  # one each
            counts_N = np.bincount(pairs.row_of_P, minlength=len(undecided))
            is_done_N = pairs.is_complete_N & ((counts_N <= _FEW + top) | is_last)
            keep = is_done_N[pairs.row_of_P]
            found.append(
                Pairs(
                    row_of_P=undecided[pairs.row_of_P[keep]],
                    centroid_of_P=pairs.centroid_of_P[keep],
                    is_complete_N=pairs.is_complete_N,
                )
            )
            undecided = undecided[~is_done_N]
            if not len(undecided):
                break
        if len(found) == 1:
            return found[0]
        rows_P = np.concatenate([pairs.row_of_P for pairs in found])
        order = np.argsort(rows_P, kind="stable")
        centroids_P = np.concatenate([pairs.centroid_of_P for pairs in found])
        return Pairs(
            row_of_P=rows_P[order], centroid_of_P=centroids_P[order], is_complete_N=np.ones(len(rows), np.bool_)
        )


def squared_distances(tile: Tile, row_of_P: Ints, centroids_KD: Doubles, centroid_of_P: Ints) -> Doubles:
    """Squared distance of each pair in float64: the definition that all engines are measured by."""
    squares_P = np.empty(len(row_of_P))
    pairs_at_once = max(1, BYTES_PER_COPY // (8 * centroids_KD.shape[1]))
    for at in range(0, len(row_of_P), pairs_at_once):
        some = slice(at, at + pairs_at_once)
        differences_PD = tile.exact(row_of_P[some])
        differences_PD -= centroids_KD[centroid_of_P[some]]
        squares_P[some] = np.square(differences_PD, out=differences_PD).sum(axis=1)
    return squares_P


def _first_best(pairs: Pairs, squares_P: Doubles, num_rows: int) -> tuple[Ints, Doubles, Ints]:
    """For each row the centroid of the smallest square, the lowest of equal ones; the square; its position."""
    starts_N = np.searchsorted(pairs.row_of_P, np.arange(num_rows))
    best_N = np.minimum.reduceat(squares_P, starts_N)
    is_best_P = squares_P == best_N[pairs.row_of_P]
    places = np.flatnonzero(is_best_P)
    _, first = np.unique(pairs.row_of_P[places], return_index=True)
    place_N = places[first]
    return pairs.centroid_of_P[place_N], best_N, place_N


def _distinct(centroids_KD: Doubles) -> tuple[Ints, Array]:
    """Numbers of the centroids that no earlier one equals, rising; and whether a later one equals each of them."""
    keys_K = centroids_KD @ np.cos(np.arange(centroids_KD.shape[1]) + 1.0)
    if len(np.unique(keys_K)) == len(keys_K):
        return np.arange(len(keys_K)), np.zeros(len(keys_K), np.bool_)
    first_of: dict[bytes, int] = {}
    copied = set()
    for number, centroid in enumerate(centroids_KD + 0.0):  # -0 becomes 0
        first = first_of.setdefault(centroid.tobytes(), number)
        if first != number:
            copied.add(first)
    numbers = np.array(sorted(first_of.values()), np.int64)
    return numbers, np.isin(numbers, list(copied))


def _engines(framed_KD: Doubles, plan: ClusterPlan) -> Sequence[Proposals]:
    """Engines of rising precision."""
    engines: list[Proposals] = []
    if plan.engine.where == "gpu" or plan.engine.where == "faiss-cpu":
        from featbench.evaluate.clustering.faiss_proposals import FaissProposals

        engines.append(FaissProposals(framed_KD, plan.engine))
    elif plan.engine.low == "bfloat16":
        from featbench.evaluate.clustering.bfloat16 import Bfloat16  # imports torch, which takes seconds

        engines.append(Products(framed_KD, Bfloat16()))
    return [*engines, *(Products(framed_KD, each) for each in (Float32(), Float64()))]
