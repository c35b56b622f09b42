"""Lloyd's iterations: assign every row to its nearest centroid, move each centroid to the mean of its rows, again.

The rows are divided into shards, of which other ranks may do some (`teamwork`). Each shard keeps the clusters of its
rows and their sums; the sums of all shards give the objective and the next centroids.

Shape suffixes:  N rows   K clusters   D feature dimension   L levels of digits   F far rows
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featbench.evaluate.clustering.assignment import Nearest, for_all_tiles
from featbench.evaluate.clustering.rows import Frame, RowSource, Tile
from featbench.evaluate.clustering.screening import Bounds, Screen
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.clustering.sums import ClusterSums, NumberSum
from featbench.evaluate.clustering.teamwork import Alone, Arrays, Saved, Team
from featbench.evaluate.counting import OnRows
from featbench.store.typing import Doubles, Ints

logger = logging.getLogger(__name__)

_CLUSTERS_AT_ONCE = 256
"""Bounds temporary copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """What is known after one pass over all rows, for progress."""

    number: int
    objective: float
    moved: int | None = None
    """Rows that changed their cluster; unknown for mini-batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering:
    """Centroids and their objective."""

    centroids_KD: Doubles
    """In the units of the rows (of length 1, if they were scaled)."""

    objective: float
    """Sum over rows of the squared Euclidean distance to the nearest centroid."""

    iterations: int
    """Passes over all rows, or mini-batches; the last changed nothing that counts, or the limit was reached."""

    num_reseeded: int = 0
    """Times that a cluster without rows got the row farthest from its centroid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far the iterations are."""

    centroids_KD: Doubles
    """Centroids that the next pass assigns rows to."""

    number: int = 0
    """Passes made."""

    objective: float = np.inf
    """The lowest so far; that of these centroids, if they are the last ones."""

    num_reseeded: int = 0
    is_last: bool = False
    """Whether there is no next pass."""

    def saved(self, frame: Frame) -> Saved:
        """Arrays and facts to go on from."""
        facts = {
            "number": self.number, "num_reseeded": self.num_reseeded, "is_last": self.is_last,
            "objective": self.objective if np.isfinite(self.objective) else None,
            "factor": frame.factor, "limit": frame.limit, "typical": frame.typical,
        }  # fmt: skip
        return {"centroids": self.centroids_KD, "center": frame.center_D}, facts


def restored(arrays: Arrays, facts: Mapping[str, Any]) -> tuple[Frame, Position]:
    """Return what `Position.saved` was given."""
    frame = Frame(center_D=arrays["center"], **{name: facts[name] for name in ("factor", "limit", "typical")})
    objective = np.inf if facts["objective"] is None else facts["objective"]
    named = {name: facts[name] for name in ("number", "num_reseeded", "is_last")}
    return frame, Position(centroids_KD=arrays["centroids"], objective=objective, **named)


def lloyd(
    sources: Sequence[RowSource],
    frame: Frame,
    start: Position,
    settings: KmeansSettings,
    *,
    team: Team | None = None,
    on_rows: OnRows = lambda rows: None,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> Clustering:
    """Improve centroids until the objective no longer falls.

    Parameters
    ----------
    sources : sequence of RowSource
        The shards of the rows, in order.
    frame : Frame
        Of all rows.
    start : Position
        Where to begin, or to go on.
    settings : KmeansSettings
    team : Team, optional
        Other ranks; none by default.
    on_rows, on_iteration
        As for `featbench.evaluate.clustering.kmeans.kmeans`.
    """
    passes = _Passes(sources, frame, settings, team or Alone(), on_rows, on_iteration)
    position = start
    if settings.spherical and not start.number:
        position = replace(start, centroids_KD=scaled(start.centroids_KD, start.centroids_KD))
    while not position.is_last:
        passes.save(position)
        position = passes.newest(passes.advance(position))
    passes.save(position)
    return Clustering(
        centroids_KD=position.centroids_KD, objective=position.objective, iterations=position.number,
        num_reseeded=position.num_reseeded,
    )  # fmt: skip


def means_of(sums: ClusterSums, centroids_KD: Doubles, *, spherical: bool) -> Doubles:
    """Return the mean of each cluster; a cluster without rows keeps its centroid."""
    moved_KD = centroids_KD.copy()
    filled = np.flatnonzero(sums.counts_K)
    for at in range(0, len(filled), _CLUSTERS_AT_ONCE):
        some = filled[at : at + _CLUSTERS_AT_ONCE]
        moved_KD[some] = sums.means(some)
    return scaled(moved_KD, centroids_KD) if spherical else moved_KD


def scaled(means_KD: Doubles, centroids_KD: Doubles) -> Doubles:
    """Divide means by their lengths; centroids whose means are 0 stay."""
    lengths_K = np.sqrt(np.square(means_KD).sum(axis=1, keepdims=True))
    return np.where(lengths_K == 0, centroids_KD, means_KD / np.where(lengths_K == 0, 1, lengths_K))


class _Passes:
    """Passes over all shards, together with the other ranks."""

    def __init__(
        self,
        sources: Sequence[RowSource],
        frame: Frame,
        settings: KmeansSettings,
        team: Team,
        on_rows: OnRows,
        on_iteration: Callable[[Iteration], None],
    ) -> None:
        self._sources, self._frame, self._settings = sources, frame, settings
        self._team, self._on_rows, self._on_iteration = team, on_rows, on_iteration
        self._num_rows, self._num_shards = sum(map(len, sources)), len(sources)
        self._shards: dict[int, _Shard] = {}
        self._screens: dict[bool, Screen] = {}
        """Those of the current pass, by whether this process assigned a shard in the pass before."""
        self._before, self._before_KD = -1, np.empty((0, 0))
        """The latest pass, and its centroids."""

    def advance(self, position: Position) -> Position:
        """Make one pass, and move the centroids unless it is the last."""
        number, centroids_KD = position.number + 1, position.centroids_KD
        sums, found, moved = self.assign(number, centroids_KD)
        logger.debug("k-means iteration %d: objective %.6g, %d rows moved", number, found, moved)
        self._on_iteration(Iteration(number=number, objective=found, moved=moved))
        last = replace(position, number=number, objective=found, is_last=True)
        if number == self._settings.iterations or not found < position.objective:
            return last
        reseeded = self.reseed(number, centroids_KD, sums) if 0 in sums.counts_K else 0
        is_better = found < position.objective * (1 - self._settings.tolerance)
        if not (is_better or reseeded):
            return last
        moved_KD = means_of(sums, centroids_KD, spherical=self._settings.spherical)
        last = replace(last, centroids_KD=moved_KD, num_reseeded=position.num_reseeded + reseeded)
        if np.array_equal(moved_KD, centroids_KD):
            return last
        return replace(last, objective=min(position.objective, found), is_last=False)

    def newest(self, position: Position) -> Position:
        """Return the position of the ranks that are ahead, if there are any."""
        saved = self._team.saved(after=position.number)
        return position if saved is None else restored(*saved)[1]

    def save(self, position: Position) -> None:
        """Save the position, so that a later run can go on there."""
        self._team.save(position.number, *position.saved(self._frame))

    def assign(self, number: int, centroids_KD: Doubles) -> tuple[ClusterSums, float, int]:
        """Assign all rows; returns the sums by cluster, the objective, and how many rows changed their cluster."""
        nearest = Nearest(centroids_KD, self._frame, self._sources[0].plan)
        self._screens = {
            False: Screen(nearest, None),
            True: Screen(nearest, self._before_KD if self._before == number - 1 else None),
        }
        self._before, self._before_KD = number, centroids_KD
        sums, squares, moved = self._sums(), self._squares(), 0

        def assign_shard(index: int) -> Arrays:
            return self._assign(index, number, self._on_rows)

        for index, each in enumerate(self._team.gather(f"pass-{number}", self._num_shards, assign_shard)):
            shard = self._shards.get(index)
            is_own = shard is not None and each["sums"] is shard.sums.sums_LKD
            if shard is not None and is_own and self._num_shards == 1:
                sums = shard.sums  # no need to copy them
            else:
                sums.add(each["sums"], each["counts"])
            if not is_own:
                self._on_rows(len(self._sources[index]))
            squares.sums_L += each["squares"]
            moved += int(each["moved"][0])
        objective = sums.objective(centroids_KD, squares.total())
        if objective is None:
            objective = self._measured(number, centroids_KD, nearest)
        return sums, objective, moved

    def _measured(self, number: int, centroids_KD: Doubles, nearest: Nearest) -> float:
        """The objective by another pass, from the distance of each row to its centroid."""

        def measure_shard(index: int) -> Arrays:
            total = self._total(centroids_KD)
            self._assigned(index, number).measure(nearest, lambda squares_N, positions: total.add(squares_N))
            return {"total": total.sums_L}

        total = self._total(centroids_KD)
        total.sums_L += sum(
            each["total"] for each in self._team.gather(f"total-{number}", self._num_shards, measure_shard)
        )
        return total.total()

    def _total(self, centroids_KD: Doubles) -> NumberSum:
        """Sum of squared distances of rows to any of these centroids, to all digits of float64."""
        farthest = 2 * (self._frame.limit + float(np.abs(centroids_KD - self._frame.center_D).max()))
        limit = farthest**2 * self._sources[0].dim
        return NumberSum(limit=limit, typical=limit * 2.0**-500, count=self._num_rows)

    def reseed(self, number: int, centroids_KD: Doubles, sums: ClusterSums) -> int:
        """Give each cluster without rows the row that is farthest from its centroid; returns how many got one.

        Of equally far rows the first one is taken; none that equals its centroid, or is the only one of its cluster.
        """
        empty = np.flatnonzero(sums.counts_K == 0)
        nearest = Nearest(centroids_KD, self._frame, self._sources[0].plan)

        def farthest_of_shard(index: int) -> Arrays:
            shard = self._assigned(index, number)
            return shard.farthest(nearest, len(empty)) | {"shard": np.array([index])}

        found = list(self._team.gather(f"far-{number}", self._num_shards, farthest_of_shard))
        squares_F = np.concatenate([each["squares"] for each in found])
        shard_of_F = np.concatenate([np.repeat(each["shard"], len(each["squares"])) for each in found])
        positions_F, clusters_F = (np.concatenate([each[name] for each in found]) for name in ("positions", "clusters"))
        rows_FD = np.concatenate([each["rows"] for each in found])
        num_moved = 0
        for far in np.argsort(-squares_F, kind="stable")[: len(empty)]:
            old, new = clusters_F[far : far + 1], empty[num_moved : num_moved + 1]
            if sums.counts_K[old[0]] > 1:
                shard = self._shards.get(int(shard_of_F[far]))
                if shard is not None and shard.number == number:
                    shard.move(int(positions_F[far]), rows_FD[far], int(new[0]))
                if shard is None or shard.sums is not sums:
                    sums.move(rows_FD[far : far + 1], old, new)
                num_moved += 1
        return num_moved

    def _assigned(self, index: int, number: int) -> _Shard:
        """A shard whose rows are assigned as in a pass, though another rank may have done it in that pass."""
        shard = self._shard(index)
        if shard.number != number:
            self._assign(index, number, lambda rows: None)
        return shard

    def _assign(self, index: int, number: int, on_rows: OnRows) -> Arrays:
        shard = self._shard(index)
        return shard.assign(self._screens[shard.number == number - 1], number, on_rows)

    def _shard(self, index: int) -> _Shard:
        if index not in self._shards:
            self._shards[index] = _Shard(self._sources[index], self._frame, self._sums(), self._squares())
        return self._shards[index]

    def _sums(self) -> ClusterSums:
        dim = self._sources[0].dim
        return ClusterSums(self._frame, num_clusters=self._settings.num_clusters, num_rows=self._num_rows, dim=dim)

    def _squares(self) -> NumberSum:
        limit = (2 * self._frame.limit) ** 2 * self._sources[0].dim
        return NumberSum(limit=limit, typical=self._frame.typical**2, count=self._num_rows)


def _squares(tile: Tile, frame: Frame) -> Doubles:
    """Squared distance of each row to the center of the frame."""
    squares_N = np.empty(len(tile.stored_ND))
    for piece in tile.pieces():
        centered_ND = tile.exact(piece)
        centered_ND -= frame.center_D
        squares_N[piece] = np.square(centered_ND, out=centered_ND).sum(axis=1)
    return squares_N


class _Shard:
    """Clusters and sums of some rows, kept from one pass to the next."""

    def __init__(self, source: RowSource, frame: Frame, sums: ClusterSums, squares: NumberSum) -> None:
        self._source, self._frame, self.sums, self._squares = source, frame, sums, squares
        self._clusters_N = np.full(len(source), -1, np.int64)
        self._bounds = Bounds(len(source))
        self.number = 0
        """The last pass in which this process assigned the rows; other ranks may have made later ones."""

    def assign(self, screen: Screen, number: int, on_rows: OnRows) -> Arrays:
        """Assign all rows, and update the sums."""
        moved: list[int] = []

        def work(tile: Tile) -> None:
            old_N = self._clusters_N[tile.positions]
            clusters_N = screen.assign(tile, old_N, self._bounds)
            changed = np.flatnonzero(clusters_N != old_N)
            if not self.number:
                self._squares.add(_squares(tile, self._frame))
            if len(changed):
                self.sums.move_columns(
                    lambda rows, columns: tile.exact(changed[rows], columns), old_N[changed], clusters_N[changed]
                )
                self._clusters_N[tile.positions] = clusters_N
            moved.append(len(changed))

        for_all_tiles(self._source, screen.nearest, work, on_rows)
        self.number = number
        return {
            "sums": self.sums.sums_LKD, "counts": self.sums.counts_K, "squares": self._squares.sums_L,
            "moved": np.array([sum(moved)]),
        }  # fmt: skip

    def measure(self, nearest: Nearest, use: Callable[[Doubles, slice], None]) -> None:
        """Compute the squared distance of each row to the centroid of its cluster."""

        def measure(tile: Tile) -> None:
            use(nearest.squares(tile, self._clusters_N[tile.positions]), tile.positions)

        for_all_tiles(self._source, nearest, measure)

    def farthest(self, nearest: Nearest, count: int) -> Arrays:
        """Rows farthest from their centroids that do not equal them, the first of equally far ones first."""
        squares_N = np.empty(len(self._source))

        def keep(tile_squares_N: Doubles, positions: slice) -> None:
            squares_N[positions] = tile_squares_N

        self.measure(nearest, keep)
        squares_N[self.sums.counts_K[self._clusters_N] == 0] = 0
        positions = np.argsort(-squares_N, kind="stable")[:count]
        positions = positions[squares_N[positions] > self._frame.rounding]
        rows_FD = np.empty((len(positions), self._source.dim))
        for block in self._source.blocks():
            within = np.flatnonzero((positions >= block.positions.start) & (positions < block.positions.stop))
            rows_FD[within] = block.exact(positions[within] - block.positions.start)
        return {
            "squares": squares_N[positions], "positions": positions, "clusters": self._clusters_N[positions],
            "rows": rows_FD,
        }  # fmt: skip

    def move(self, position: int, row_D: Doubles, cluster: int) -> None:
        """Put one row into another cluster."""
        old: Ints = self._clusters_N[position : position + 1].copy()
        self.sums.move(row_D[None], old, np.array([cluster]))
        self._clusters_N[position] = cluster
        self._bounds.forget(slice(position, position + 1))
