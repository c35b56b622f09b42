"""Mini-batch k-means: centroids are updated after each batch of random rows, for sets too large for many passes.

A centroid is the mean of all rows that were nearest to it when their batch came: the rule of Sculley, whose learning
rate is one over the number of these rows, and of scikit-learn's MiniBatchKMeans. The first centroids have no weight.
Unlike scikit-learn with its default `reassignment_ratio`, no centroid is replaced for having few rows: the starts
(`starts`) have left none without rows, and small clusters should stay.

Stored rows are often sorted by class, so a batch must be drawn from all of them. Random rows of a store are slow to
read: the rows of several batches are drawn together, without replacement, and read in one pass, in order. How many
depends on the rows and the batch alone, so memory changes no result.

Shape suffixes:  N rows   K clusters   D feature dimension   B rows of a batch   R rows drawn together
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from featbench.evaluate.clustering.assignment import Nearest
from featbench.evaluate.clustering.lloyd import Clustering, Iteration, Position, lloyd, means_of, restored, scaled
from featbench.evaluate.clustering.planning import rows_drawn_together
from featbench.evaluate.clustering.rows import Frame, RowSource, Tile, tiles_of
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.clustering.sums import ROWS_AT_ONCE, ClusterSums
from featbench.evaluate.clustering.teamwork import Arrays, Saved, Team
from featbench.evaluate.counting import OnRows
from featbench.store.typing import Array, Ints

logger = logging.getLogger(__name__)

PATIENCE = 10
"""Batches in a row without improvement before the end, as in scikit-learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """An exponentially weighted mean of the objectives of batches, by scikit-learn's rule.

    The first batch does not count, since its centroids are the first ones.
    """

    weight: float
    """How much the newest batch counts, from 0 to 1."""

    tolerance: float
    num_batches: int = 0
    mean: float = 0.0
    lowest: float | None = None
    num_failures: int = 0
    """Batches since the mean fell by more than the tolerance."""

    def add(self, objective: float) -> Smoothed:
        """Add the mean squared distance of a batch."""
        if self.num_batches == 0:
            return replace(self, num_batches=1)
        mean = objective if self.num_batches == 1 else self.mean * (1 - self.weight) + objective * self.weight
        is_better = self.lowest is None or mean < self.lowest * (1 - self.tolerance)
        return replace(
            self,
            num_batches=self.num_batches + 1,
            mean=mean,
            lowest=mean if is_better else self.lowest,
            num_failures=0 if is_better else self.num_failures + 1,
        )


def mini_batch_kmeans(
    sources: Sequence[RowSource],
    frame: Frame,
    start: Position,
    settings: KmeansSettings,
    *,
    team: Team,
    saved: Saved | None = None,
    on_rows: OnRows = lambda rows: None,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> Clustering:
    """Improve centroids batch by batch, and compute the objective on all rows at the end.

    Parameters
    ----------
    sources, frame, start, team, on_rows, on_iteration
        As for `featbench.evaluate.clustering.lloyd.lloyd`; `on_iteration` is called for several batches at a time.
    settings : KmeansSettings
        With `mini_batch`; at most `iterations` times as many rows are drawn as there are.
    saved : optional
        What an interrupted run has saved.

    Returns
    -------
    Clustering
        Its `iterations` are batches.

    References
    ----------
    Sculley, "Web-scale k-means clustering", WWW 2010.
    """
    learner = _Learner(sources, frame, start, settings)
    while saved is None or _LEARNER in saved[1]:
        if saved is not None:
            learner.restore(saved)
        if learner.is_done:
            break
        learner.learn(team, on_rows)
        objective = learner.smoothed.mean * learner.num_rows
        on_iteration(Iteration(number=learner.smoothed.num_batches, objective=objective))
        learner.save(team)
        saved = team.saved(after=learner.smoothed.num_batches)  # of a rank that is ahead
    last = learner.position() if saved is None or _LEARNER in saved[1] else restored(*saved)[1]
    once = replace(settings, iterations=last.number + (not last.is_last))
    found = lloyd(sources, frame, last, once, team=team, on_rows=on_rows)
    return replace(found, iterations=found.iterations - 1)


_LEARNER = "learner"
"""Fact of what is saved between batches, and of nothing else."""


class _Learner:
    """Centroids that are updated after each batch."""

    def __init__(self, sources: Sequence[RowSource], frame: Frame, start: Position, settings: KmeansSettings) -> None:
        self._sources, self._frame, self._settings = sources, frame, settings
        self.num_rows = sum(map(len, sources))
        self._batch = min(settings.mini_batch or self.num_rows, self.num_rows)
        self._most = max(1, settings.iterations * self.num_rows // self._batch)
        self._centroids_KD = start.centroids_KD
        if settings.spherical and not start.number:
            self._centroids_KD = scaled(start.centroids_KD, start.centroids_KD)
        self._sums = ClusterSums(
            frame, num_clusters=settings.num_clusters, num_rows=self._most * self._batch, dim=sources[0].dim
        )
        self._drawing = 0
        weight = min(1.0, 2 * self._batch / (self.num_rows + 1))
        self.smoothed = Smoothed(weight=weight, tolerance=settings.tolerance)

    @property
    def is_done(self) -> bool:
        """Whether there are no more batches."""
        return self.smoothed.num_batches >= self._most or self.smoothed.num_failures >= PATIENCE

    def learn(self, team: Team, on_rows: OnRows) -> None:
        """Draw rows, and learn from them batch by batch."""
        for tile in _batches(self._sources, self._settings, self._batch, self._drawing, team):
            nearest = Nearest(self._centroids_KD, self._frame, self._sources[0].plan)
            self.smoothed = self.smoothed.add(_add(tile, nearest, self._sums))
            on_rows(self._batch)
            self._centroids_KD = means_of(self._sums, self._centroids_KD, spherical=self._settings.spherical)
            if self.is_done:
                break
        self._drawing += 1
        logger.debug("k-means batch %d: mean squared distance %.6g", self.smoothed.num_batches, self.smoothed.mean)

    def position(self) -> Position:
        """Where the pass over all rows begins."""
        return Position(centroids_KD=self._centroids_KD, number=self.smoothed.num_batches)

    def save(self, team: Team) -> None:
        """Save everything that the next batches depend on."""
        arrays, facts = self.position().saved(self._frame)
        arrays |= {"sums": self._sums.sums_LKD, "counts": self._sums.counts_K}
        facts[_LEARNER] = asdict(self.smoothed) | {"drawing": self._drawing}
        team.save(self.smoothed.num_batches, arrays, facts)

    def restore(self, saved: Saved) -> None:
        """Go on from what was saved."""
        arrays, facts = saved
        smoothed = dict(facts[_LEARNER])
        self._drawing = smoothed.pop("drawing")
        self.smoothed = Smoothed(**smoothed)
        self._centroids_KD = arrays["centroids"]
        self._sums.sums_LKD[:], self._sums.counts_K[:] = arrays["sums"], arrays["counts"]


def _batches(
    sources: Sequence[RowSource], settings: KmeansSettings, batch: int, drawing: int, team: Team
) -> Iterator[Tile]:
    """Draw rows, read them in one pass, and yield them in the order in which they were drawn."""
    starts = np.cumsum([0, *map(len, sources)])
    num_drawn = rows_drawn_together(int(starts[-1]), sources[0].dim, batch)
    random = np.random.default_rng([settings.seed, _STREAM, drawing])
    drawn_R = random.permutation(int(starts[-1]))[:num_drawn]
    order_R = np.argsort(drawn_R)
    rising_R = drawn_R[order_R]

    def read_shard(index: int) -> Arrays:
        within = rising_R[(rising_R >= starts[index]) & (rising_R < starts[index + 1])]
        return _read(sources[index], within - starts[index])

    read = list(team.gather(f"batches-{drawing}", len(sources), read_shard))
    place_of_R = np.empty(num_drawn, np.int64)
    place_of_R[order_R] = np.arange(num_drawn)
    stored_RD, divisors_R = (_joined([each.pop(name) for each in read]) for name in ("rows", "divisors"))
    for at in range(0, num_drawn, batch):
        places = place_of_R[at : at + batch]
        divisors = divisors_R[places] if sources[0].normalize else None
        yield Tile(positions=slice(0, batch), stored_ND=stored_RD[places], divisors_N=divisors)


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


_STREAM = 1
"""Tells these random numbers from those of the starts."""


def _read(source: RowSource, chosen: Ints) -> Arrays:
    """Copy some rows of a shard, and what they are divided by."""
    rows_ND, divisors_N = np.empty((len(chosen), source.dim), np.float32), np.ones(len(chosen))
    for block in source.blocks():
        span = slice(*np.searchsorted(chosen, [block.positions.start, block.positions.stop]))
        within = chosen[span] - block.positions.start
        rows_ND[span] = block.stored_ND[within]
        if block.divisors_N is not None:
            divisors_N[span] = block.divisors_N[within]
    return {"rows": rows_ND, "divisors": divisors_N}


def _add(batch: Tile, nearest: Nearest, sums: ClusterSums) -> float:
    """Assign the rows of a batch, and add them to the sums; returns their mean squared distance before."""
    squares_B = np.empty(len(batch.stored_ND))

    def work(tile: Tile) -> None:
        clusters_N = nearest.one(tile)
        squares_B[tile.positions] = nearest.squares(tile, clusters_N)
        none_N = np.full(len(clusters_N), -1)
        sums.move_columns(tile.exact, none_N, clusters_N)

    with nearest.workers() as workers:
        list(workers.map(work, tiles_of(batch, min(nearest.rows_at_once, ROWS_AT_ONCE))))
    return float(squares_B.mean())
