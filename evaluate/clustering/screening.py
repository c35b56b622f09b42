"""Which rows can have another nearest centroid than in the last pass: those alone are compared again.

For each row Lloyd's algorithm keeps the largest distance that it can have to its centroid, and the smallest that it can
have to any other one. When the centroids have moved, the first grows by as much as the row's own centroid moved, and
the second shrinks by as much as the others did at most. As long as the first stays below the second, the triangle
inequality says that the row stays where it is (Hamerly, "Making k-means even faster", SDM 2010). Few centroids move far
in late passes, so for most of the other rows it suffices to compare them with those.

All distances are in the units of the frame, and all bounds are rounded to the safe side; rows that they do not decide
are left to `Nearest.one`. So this changes no assignment, only how many products it takes.

Shape suffixes:  N rows   K centroids   D feature dimension   R rows of a group
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featbench.evaluate.clustering.assignment import Nearest
from featbench.evaluate.clustering.proposals import Float64, Products, error_of_float64
from featbench.evaluate.clustering.rows import FramedRows, Tile
from featbench.store.typing import Bools, Doubles, Ints

_PARTS = (0, 1 / 16, 1 / 4)
"""Parts of the centroids, those that moved farthest, that groups of rows are compared with."""

_FEWEST_CENTROIDS = 16
"""Fewer centroids are not worth a group."""

_FEWEST_ROWS = 64
"""Groups of fewer rows are compared with more centroids than they need: small products are slow."""

_UP, _DOWN = 1 + 2.0**-40, 1 - 2.0**-40
"""Factors on bounds, since these are rounded too."""


class Bounds:
    """What is known of the distances of rows to their centroids after a pass."""

    def __init__(self, num_rows: int) -> None:
        self.own_N = np.full(num_rows, np.inf)
        """Each row is at most this far from its own centroid, ..."""

        self.others_N = np.zeros(num_rows)
        """... and at least this far from any other one."""

    def forget(self, rows: slice) -> None:
        """Know nothing of some rows."""
        self.own_N[rows], self.others_N[rows] = np.inf, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Some centroids, for rows that are certainly nearer to their own than to all the others."""

    moved: float
    """No other centroid moved farther than this."""

    chosen: Ints
    """Numbers of the centroids, rising."""

    is_chosen_K: Bools
    products: Products | None
    """None if there are no centroids."""


class Screen:
    """Assigns rows in one pass, given the bounds of the last one.

    Parameters
    ----------
    nearest : Nearest
        Of the centroids of this pass.
    before_KD : ndarray of shape (K, D), dtype=float64, optional
        The centroids of the last pass. Without them all rows are compared with all centroids.
    """

    def __init__(self, nearest: Nearest, before_KD: Doubles | None) -> None:
        # Where centroids are equal, what is known of distances to others would be wrong once they part.
        self.nearest, self._products = nearest, None if nearest.has_copies else nearest.products()
        self._reach = 0.0 if self._products is None else self._products.reach
        self._groups: list[_Group] = []
        if self._products is None or before_KD is None:
            return
        moves_KD = (nearest.centroids_KD - before_KD) * nearest.frame.factor
        self._moved_K = np.sqrt(np.square(moves_KD).sum(axis=1)) * _UP
        by_move = np.argsort(-self._moved_K, kind="stable")
        for count in sorted({int(part * len(by_move)) for part in _PARTS}):
            if count == 0 or count >= _FEWEST_CENTROIDS:
                chosen = np.sort(by_move[:count])
                is_chosen_K = np.zeros(len(by_move), np.bool_)
                is_chosen_K[chosen] = True
                self._groups.append(
                    _Group(
                        moved=float(self._moved_K[by_move[count]]), chosen=chosen, is_chosen_K=is_chosen_K,
                        products=self._products.some_of(nearest.framed(chosen)) if count else None,
                    )
                )  # fmt: skip

    def assign(self, tile: Tile, clusters_N: Ints, bounds: Bounds) -> Ints:
        """Find the nearest centroid of each row of a tile, given that of the last pass, and update its bounds."""
        if self._products is None:
            bounds.forget(tile.positions)
            return self.nearest.one(tile)
        found = _Found(tile, clusters_N.copy(), bounds)
        rows = np.arange(len(clusters_N))
        if self._groups:
            found.own_N = (found.own_N + self._moved_K[clusters_N]) * _UP
            rows = self._screen(found)
        for some in self._pieces(rows):
            self._compare_all(found, some)
        found.keep()
        return found.clusters_N

    def _screen(self, found: _Found) -> Ints:
        """Decide rows by their bounds, or by comparing them with few centroids; returns the other rows."""
        rows, left = np.arange(len(found.clusters_N)), [np.empty(0, np.int64)]
        for group in self._groups:
            others_R = found.others_N[rows] * _DOWN - group.moved
            is_enough_R = self._are_apart(found.own_N[rows], others_R)
            chosen = rows[is_enough_R]
            if group.products is None:
                found.others_N[chosen] = others_R[is_enough_R]
            elif len(chosen) < _FEWEST_ROWS:
                continue
            else:
                for some in self._pieces(chosen):
                    left.append(self._compare_some(found, some, group, group.products))
            rows = rows[~is_enough_R]
        return np.sort(np.concatenate([rows, *left]))

    def _compare_some(self, found: _Found, rows: Ints, group: _Group, products: Products) -> Ints:
        """Compare rows with the centroids of a group; returns the rows that are still undecided."""
        ranges = products.ranges(found.framed(rows, self.nearest))
        is_own_R = ~group.is_chosen_K[found.clusters_N[rows]]
        clusters_R = np.where(is_own_R, found.clusters_N[rows], group.chosen[ranges.which_N])
        own_R = np.where(is_own_R, found.own_N[rows], ranges.nearest_N)
        others_R = np.where(is_own_R, ranges.all_N, ranges.others_N)
        others_R = np.minimum(others_R, found.others_N[rows] * _DOWN - group.moved)
        is_decided_R = self._are_apart(own_R, others_R)
        decided = rows[is_decided_R]
        found.clusters_N[decided] = clusters_R[is_decided_R]
        found.own_N[decided], found.others_N[decided] = own_R[is_decided_R], others_R[is_decided_R]
        return rows[~is_decided_R]

    def _compare_all(self, found: _Found, rows: Ints) -> None:
        assert self._products is not None
        ranges = self._products.ranges(found.framed(rows, self.nearest))
        found.clusters_N[rows] = self.nearest.numbers(ranges.which_N)
        is_decided_R = ranges.is_decided_N
        found.own_N[rows] = np.where(is_decided_R, ranges.nearest_N, np.inf)
        found.others_N[rows] = np.where(is_decided_R, ranges.others_N, 0)
        undecided = rows[~is_decided_R]
        if len(undecided):
            found.clusters_N[undecided] = self.nearest.one(found.tile.take(undecided))

    def _pieces(self, rows: Ints) -> list[Ints]:
        at_once = self.nearest.rows_at_once
        return [rows[at : at + at_once] for at in range(0, len(rows), at_once)]

    def _are_apart(self, own_N: Doubles, others_N: Doubles) -> Bools:
        """Whether float64 distances, too, are certainly smaller to the own centroid than to others."""
        dim = len(self.nearest.frame.center_D)
        with np.errstate(invalid="ignore", over="ignore"):
            error_N = error_of_float64(own_N + self._reach, dim, Float64.smallest)
            error_N = error_N + error_of_float64(np.array(self._reach), dim, Float64.smallest)
            return np.asarray((others_N > own_N) & ((others_N - own_N) * (others_N + own_N) * _DOWN > 4 * error_N))


class _Found:
    """Clusters and bounds of the rows of a tile, while they are sought."""

    def __init__(self, tile: Tile, clusters_N: Ints, bounds: Bounds) -> None:
        self.tile, self.clusters_N, self._bounds = tile, clusters_N, bounds
        self.own_N = bounds.own_N[tile.positions].copy()
        self.others_N = bounds.others_N[tile.positions].copy()

    def framed(self, rows: Ints, nearest: Nearest) -> FramedRows:
        """Some rows in the coordinates of the frame."""
        return FramedRows.of(self.tile.take(rows), nearest.frame)

    def keep(self) -> None:
        """Write the bounds back."""
        self._bounds.own_N[self.tile.positions] = self.own_N
        self._bounds.others_N[self.tile.positions] = self.others_N
