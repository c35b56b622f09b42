"""Candidates for the k nearest neighbours of some queries, kept while the database streams by.

Scores have rounding errors, so the k best scores are not always the k nearest rows. A shortlist keeps every row whose
score is less than twice the largest error below the k-th best, so that it drops no neighbour. Dropped rows scored no
more than the query's floor, which later decides whether the list is certified. Pure arithmetic: no files, no faiss.

Shape suffixes:  Q queries   R rows offered together   P pairs of query and row   C capacity of a list
"""

from __future__ import annotations

import numpy as np

from featbench.evaluate.neighbours.error_bounds import ErrorBound
from featbench.store.typing import Floats, Ints

_ERRORS_BELOW_KTH = 2.02
"""Distance of the floor from the k-th best score, in largest errors: two, and a little for rounding the floor."""

_LISTS_PER_CUT = 64
"""Lists cut at a time: bounds the temporary copies."""


def room_for(k: int) -> int:
    """Capacity of a query's list; large enough that lists are seldom cut."""
    return 3 * k + 128


class Shortlist:
    """Candidates of some queries.

    Parameters
    ----------
    num_queries : int
        Q.
    k : int
        Neighbours to find.

    Attributes
    ----------
    error : ErrorBound
        Largest error of a score; set it before rows are offered.
    floor_Q : ndarray of shape (Q,), dtype=float32
        Highest score of a dropped row, at most; it only rises.
    rows_QC : ndarray of shape (Q, C), dtype=int64
        Candidates, -1 where there is none.
    scores_QC : ndarray of shape (Q, C), dtype=float32
        Their scores.
    """

    def __init__(self, num_queries: int, k: int) -> None:
        self.error = ErrorBound(absolute_Q=np.zeros(num_queries))
        self.floor_Q = np.full(num_queries, -np.inf, np.float32)
        self.rows_QC = np.full((num_queries, room_for(k)), -1, np.int64)
        self.scores_QC = np.full(self.rows_QC.shape, -np.inf, np.float32)
        self._k = k
        self._count_Q = np.zeros(num_queries, np.int64)

    def offer(self, scores_QR: Floats, rows_R: Ints) -> None:
        """Add the rows that score above the floor."""
        places = np.flatnonzero(scores_QR > self.floor_Q[:, None])
        query_of, row_of = np.divmod(places, len(rows_R))
        self.take(query_of, scores_QR.reshape(-1)[places], rows_R[row_of])

    def take(self, query_of: Ints, scores_P: Floats, rows_P: Ints) -> None:
        """Add pairs of a query and a row, ordered by query; full lists are cut."""
        new_Q = np.bincount(query_of, minlength=len(self.floor_Q))
        is_full_Q = self._count_Q + new_Q > self.rows_QC.shape[1]
        if is_full_Q.any():
            overflows_P = is_full_Q[query_of]
            self._cut(np.flatnonzero(is_full_Q), query_of[overflows_P], scores_P[overflows_P], rows_P[overflows_P])
            new_Q[is_full_Q] = 0
            query_of, scores_P, rows_P = query_of[~overflows_P], scores_P[~overflows_P], rows_P[~overflows_P]
        slot_P = self._count_Q[query_of] + _places_in_groups(new_Q)
        self.scores_QC[query_of, slot_P] = scores_P
        self.rows_QC[query_of, slot_P] = rows_P
        self._count_Q += new_Q

    def raise_floor(self, floor_Q: Floats) -> None:
        """Record that rows outside the lists may have scored up to this."""
        np.fmax(self.floor_Q, floor_Q, out=self.floor_Q)

    def cut(self) -> None:
        """Drop what can't be among the k nearest, and raise the floors."""
        nothing = np.zeros(0, np.int64)
        self._cut(np.arange(len(self.floor_Q)), nothing, self.scores_QC[:0, 0], nothing)

    def close(self) -> None:
        """Cut and sort all lists, and shrink their capacity to the longest."""
        self.cut()
        longest = self._count_Q.max(initial=0)
        order = np.argsort(-self.scores_QC, axis=1)[:, :longest]
        self.rows_QC = np.take_along_axis(self.rows_QC, order, axis=1)
        self.scores_QC = np.take_along_axis(self.scores_QC, order, axis=1)

    def _cut(self, queries: Ints, query_of: Ints, scores_P: Floats, rows_P: Ints) -> None:
        """Merge new pairs into the lists of some queries, and keep the best."""
        room = self.rows_QC.shape[1]
        limit = room - (room - self._k) // 4  # more candidates than this are dropped even if they are within the error
        for at in range(0, len(queries), _LISTS_PER_CUT):
            chosen = queries[at : at + _LISTS_PER_CUT]
            pairs = slice(*np.searchsorted(query_of, [chosen[0], chosen[-1] + 1]))
            list_of = np.searchsorted(chosen, query_of[pairs])
            new = np.bincount(list_of, minlength=len(chosen))
            scores = np.full((len(chosen), room + new.max()), -np.inf, np.float32)
            rows = np.full(scores.shape, -1, np.int64)
            scores[:, :room], rows[:, :room] = self.scores_QC[chosen], self.rows_QC[chosen]
            slot = room + _places_in_groups(new)
            scores[list_of, slot], rows[list_of, slot] = scores_P[pairs], rows_P[pairs]

            sorted_scores = -np.sort(-scores, axis=1)  # sorting values is several times as fast as sorting places
            kth, first_out = sorted_scores[:, self._k - 1], sorted_scores[:, limit]
            with np.errstate(over="ignore", invalid="ignore"):
                least = np.nextafter((kth - _ERRORS_BELOW_KTH * self.error[chosen].of(kth)).astype(np.float32), -np.inf)
            self.floor_Q[chosen] = np.fmax.reduce([self.floor_Q[chosen], least, first_out])
            is_kept = scores > np.fmax(least, first_out)[:, None]
            for tied in np.flatnonzero(is_kept.sum(axis=1) < self._k):  # many equal scores: keep some of them
                best = np.argsort(-scores[tied])[:limit]
                is_kept[tied, best] = scores[tied, best] > least[tied]
            kept_of, place = np.nonzero(is_kept)
            count = is_kept.sum(axis=1)
            slot = _places_in_groups(count)
            self.scores_QC[chosen], self.rows_QC[chosen] = -np.inf, -1
            self.scores_QC[chosen[kept_of], slot] = scores[kept_of, place]
            self.rows_QC[chosen[kept_of], slot] = rows[kept_of, place]
            self._count_Q[chosen] = count


def _places_in_groups(sizes: Ints) -> Ints:
    """Position of each member in its group, for consecutive groups.

    Examples
    --------
    >>> _places_in_groups(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)
