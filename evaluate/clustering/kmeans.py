"""k-means over a layer that streams from the store (Lloyd's algorithm), exact and the same to the last bit everywhere.

Initial centroids are sought on a sample (`seeding`), and the best of several starts is taken. Then each iteration
passes once over all rows: every row is assigned to its nearest centroid, as float64 says (`assignment`), and rows that
change their cluster are moved from one sum to another (`sums`). Neither depends on memory, blocks, threads or engines.

Shape suffixes:  N rows   K clusters   D feature dimension
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from featbench.evaluate.clustering.assignment import Nearest, OnRows, for_all_tiles
from featbench.evaluate.clustering.planning import ClusterPlan, sample_size
from featbench.evaluate.clustering.rows import Frame, RowSource, Tile, tiles_of
from featbench.evaluate.clustering.seeding import kmeans_plus_plus, read_centroids, swapped
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.clustering.sums import ClusterSums, NumberSum
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.memory_layer import MemoryLayer
from featbench.evaluate.features.selection import Selection
from featbench.store.typing import Doubles, Floats, Ints

logger = logging.getLogger(__name__)

REFINING_ITERATIONS = 25
"""Most iterations on the sample, before the starts are compared."""

_REFINING_TOLERANCE = 1e-4

_SAME = 1e-9
"""Two starts whose objectives differ by less than this part have found the same clusters."""

_MOST_ROUNDS = 10
"""Most rounds of exchanging centroids and improving them, in each start."""

_LEAST_GAIN = 1e-4
"""Part of the objective that a round must save for another one."""

_MULTIPLICATIONS_OF_STARTS = 2 * 10**10
"""Starts may take this many multiplications, and one pass over all rows, together ..."""

_MOST_STARTS = 10
"""... but there are at most so many, and at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """What is known after one pass over all rows, for progress."""

    number: int
    objective: float
    moved: int
    """Rows that changed their cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering:
    """Centroids and their objective."""

    centroids_KD: Doubles
    """In the units of the rows (of length 1, if they were scaled)."""

    objective: float
    """Sum over rows of the squared Euclidean distance to the nearest centroid."""

    iterations: int
    """Passes over all rows; the last one changed nothing that counts, or the limit was reached."""

    num_reseeded: int = 0
    """Times that a cluster without rows got the row farthest from its centroid."""

    frame: Frame | None = field(default=None, repr=False)


def kmeans(
    data: Selection,
    settings: KmeansSettings,
    *,
    plan: ClusterPlan,
    on_rows: OnRows = lambda rows: None,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> Clustering:
    """Cluster rows by k-means.

    Parameters
    ----------
    data : Selection
        Rows to cluster.
    settings : KmeansSettings
        With 1 <= num_clusters <= len(data).
    plan : ClusterPlan
        What may be used; changes no bit of the result.
    on_rows : callable
        Called with the number of rows of each tile that is done.
    on_iteration : callable
        Called after each pass.

    Raises
    ------
    EvaluationError
        If there are more clusters than rows, a value is not finite, all rows are equal, or given centroids do not fit.

    References
    ----------
    Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 1982.
    """
    if not 1 <= settings.num_clusters <= len(data):
        raise EvaluationError(f"clusters must be in [1, {len(data)}], the rows to cluster; got {settings.num_clusters}")
    source = RowSource(data, normalize=settings.normalize, plan=plan)
    sample = survey(source, _sampled(len(data), settings))
    start = starting_centroids(sample, settings, data=data, plan=plan)
    return lloyd(source, sample.frame, start, settings, on_rows, on_iteration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the first reading of all rows finds."""

    frame: Frame
    stored_ND: Floats
    """The sample, as stored."""


def survey(source: RowSource, chosen: Ints) -> Survey:
    """Read all rows once: copy the sample, and choose a frame."""
    copies: list[Floats] = []
    lowest_D, highest_D = np.full(source.dim, np.inf), np.full(source.dim, -np.inf)
    for block in source.blocks():
        span = slice(*np.searchsorted(chosen, [block.positions.start, block.positions.stop]))
        copies.append(block.stored_ND[chosen[span] - block.positions.start])
        for tile in tiles_of(block, max(1, _NUMBERS_PER_TILE // source.dim)):
            exact = tile.exact() if source.normalize else tile.stored_ND
            np.minimum(lowest_D, exact.min(axis=0), out=lowest_D)
            np.maximum(highest_D, exact.max(axis=0), out=highest_D)
    stored_ND = np.concatenate(copies)
    exact_ND = _exact(stored_ND[:: max(1, len(stored_ND) // _FRAMED_ROWS)], normalize=source.normalize)
    return Survey(frame=Frame.around(exact_ND, lowest_D, highest_D), stored_ND=stored_ND)


_NUMBERS_PER_TILE = 2**17
"""Numbers that are converted at a time: 1 MiB of float64."""

_FRAMED_ROWS = 4096
"""Rows whose median is the center of the frame."""


def _sampled(num_rows: int, settings: KmeansSettings) -> Ints:
    """Positions of the sampled rows, rising."""
    size = sample_size(num_rows, settings.num_clusters)
    if size == num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(settings.seed).choice(num_rows, size, replace=False))


def starting_centroids(sample: Survey, settings: KmeansSettings, *, data: Selection, plan: ClusterPlan) -> Doubles:
    """Choose the centroids of the first pass: the best of several starts on the sample, or those of a file."""
    if settings.init.endswith(".npy"):
        return read_centroids(
            Path(settings.init), dim=data.layer.dim, num_clusters=settings.num_clusters, normalize=settings.normalize
        )
    rows_ND = _framed(sample, normalize=settings.normalize)
    layer = MemoryLayer(sample.stored_ND, key=data.layer.key)
    rows = Selection(layer=layer, rows=np.arange(layer.num_rows))
    source = RowSource(rows, normalize=settings.normalize, plan=replace(plan, hold=True, rows_per_block=layer.num_rows))
    refined = replace(settings, iterations=min(settings.iterations, REFINING_ITERATIONS), tolerance=_REFINING_TOLERANCE)
    best: Clustering | None = None
    for number in range(num_starts(settings, num_rows=len(data), dim=data.layer.dim)):
        found = _started(source, sample, rows_ND, refined, seed=[settings.seed, number])
        if best is not None and abs(found.objective - best.objective) <= _SAME * best.objective:
            break  # found twice
        if best is None or found.objective < best.objective:
            best = found
    assert best is not None
    return best.centroids_KD


def _started(
    source: RowSource, sample: Survey, rows_ND: Floats, settings: KmeansSettings, *, seed: Sequence[int]
) -> Clustering:
    """Cluster the sample from one start; under k-means++, exchange centroids while that helps."""
    if settings.init == "random":
        chosen = np.random.default_rng(seed).choice(len(rows_ND), settings.num_clusters, replace=False)
    else:
        num_threads = source.plan.num_threads
        chosen = kmeans_plus_plus(rows_ND, settings.num_clusters, seed=seed, num_threads=num_threads)
    start_KD = _exact(sample.stored_ND[chosen], normalize=settings.normalize)
    best = lloyd(source, sample.frame, start_KD, settings)
    for number in range(_MOST_ROUNDS if settings.init != "random" else 0):
        start_KD = _swapped(rows_ND, best, sample.frame, seed=[*seed, number], num_threads=num_threads)
        if np.array_equal(start_KD, best.centroids_KD):
            break
        found = lloyd(source, sample.frame, start_KD, settings)
        if found.objective >= best.objective * (1 - _LEAST_GAIN):
            break
        best = found
    return best


def _swapped(rows_ND: Floats, found: Clustering, frame: Frame, *, seed: Sequence[int], num_threads: int) -> Doubles:
    """Centroids of which some were moved to where they are needed more."""
    framed_KD = frame.enter(found.centroids_KD.copy()).astype(np.float32)
    better_KD = swapped(rows_ND, framed_KD, seed=seed, num_threads=num_threads)
    is_moved_K = (better_KD != framed_KD).any(axis=1)
    centroids_KD = found.centroids_KD.copy()
    centroids_KD[is_moved_K] = better_KD[is_moved_K] / frame.factor + frame.center_D
    return centroids_KD


def num_starts(settings: KmeansSettings, *, num_rows: int, dim: int) -> int:
    """Number of starts on the sample.

    Examples
    --------
    >>> num_starts(KmeansSettings(num_clusters=100), num_rows=6_000, dim=32)
    10
    >>> num_starts(KmeansSettings(num_clusters=1000), num_rows=1_281_167, dim=2048)
    1
    """
    if settings.restarts is not None:
        return settings.restarts
    passes = REFINING_ITERATIONS // 2 + 2 + np.log(settings.num_clusters)
    numbers = settings.num_clusters * dim
    per_start = passes * sample_size(num_rows, settings.num_clusters) * numbers
    return int(np.clip((_MULTIPLICATIONS_OF_STARTS + num_rows * numbers) // per_start, 1, _MOST_STARTS))


def lloyd(
    source: RowSource,
    frame: Frame,
    centroids_KD: Doubles,
    settings: KmeansSettings,
    on_rows: OnRows = lambda rows: None,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> Clustering:
    """Improve centroids until the objective no longer falls."""
    state = _State(source, frame, settings)
    objective, num_reseeded = np.inf, 0
    for number in range(1, settings.iterations + 1):
        moved = state.assign(centroids_KD, on_rows)
        found = state.objective(centroids_KD)
        logger.debug("k-means iteration %d: objective %.6g, %d rows moved", number, found, moved)
        on_iteration(Iteration(number=number, objective=found, moved=moved))
        is_better = found < objective * (1 - settings.tolerance)
        objective = min(objective, found)
        if not is_better or number == settings.iterations:
            break
        if 0 in state.sums.counts_K:
            num_reseeded += state.reseed(centroids_KD)
        centroids_KD, before_KD = state.next_centroids(centroids_KD), centroids_KD
        if np.array_equal(centroids_KD, before_KD):
            break
    return Clustering(
        centroids_KD=centroids_KD, objective=found, iterations=number, num_reseeded=num_reseeded, frame=frame
    )


class _State:
    """Assignment and sums of all rows, kept from one iteration to the next."""

    def __init__(self, source: RowSource, frame: Frame, settings: KmeansSettings) -> None:
        self._source, self._frame, self._settings = source, frame, settings
        self._clusters_N = np.full(len(source), -1, np.int64)
        self.sums = ClusterSums(frame, num_clusters=settings.num_clusters, num_rows=len(source), dim=source.dim)
        limit = (2 * frame.limit) ** 2 * source.dim
        self._squares = NumberSum(limit=limit, typical=frame.typical**2, count=len(source))
        self._is_measured = False

    def assign(self, centroids_KD: Doubles, on_rows: OnRows) -> int:
        """Assign all rows, and update the sums; returns how many rows changed their cluster."""
        nearest = Nearest(centroids_KD, self._frame, self._source.plan)
        moved: list[int] = []

        def work(tile: Tile) -> None:
            clusters_N = nearest.one(tile)
            old_N = self._clusters_N[tile.positions]
            changed = np.flatnonzero(clusters_N != old_N)
            if not self._is_measured:
                centered_ND = tile.exact()
                centered_ND -= self._frame.center_D
                self._squares.add(np.square(centered_ND, out=centered_ND).sum(axis=1))
            if len(changed):
                self.sums.move(tile.exact(changed), old_N[changed], clusters_N[changed])
                self._clusters_N[tile.positions] = clusters_N
            moved.append(len(changed))

        for_all_tiles(self._source, nearest, work, on_rows)
        self._is_measured = True
        return sum(moved)

    def objective(self, centroids_KD: Doubles) -> float:
        """Sum of squared distances to the centroids that rows are assigned to."""
        return self.sums.objective(centroids_KD, self._squares.total())

    def next_centroids(self, centroids_KD: Doubles) -> Doubles:
        """Return the mean of each cluster; a cluster without rows keeps its centroid."""
        moved_KD = centroids_KD.copy()
        filled = np.flatnonzero(self.sums.counts_K)
        for at in range(0, len(filled), _CLUSTERS_AT_ONCE):
            some = filled[at : at + _CLUSTERS_AT_ONCE]
            moved_KD[some] = self.sums.means(some)
        if self._settings.spherical:
            lengths_K = np.sqrt(np.square(moved_KD).sum(axis=1, keepdims=True))
            moved_KD /= np.where(lengths_K == 0, 1, lengths_K)
        return moved_KD

    def reseed(self, centroids_KD: Doubles) -> int:
        """Give each cluster without rows the row that is farthest from its centroid; returns how many got one."""
        empty = np.flatnonzero(self.sums.counts_K == 0)
        num_moved = 0
        for position, row in self._farthest(centroids_KD, len(empty)):
            old = self._clusters_N[position]
            if self.sums.counts_K[old] > 1:
                self.sums.move(row[None], np.array([old]), empty[num_moved : num_moved + 1])
                self._clusters_N[position] = empty[num_moved]
                num_moved += 1
        return num_moved

    def _farthest(self, centroids_KD: Doubles, count: int) -> Iterator[tuple[int, Doubles]]:
        """Yield the rows farthest from their centroids, and not equal to them; the first of equally far ones."""
        squares_N = np.empty(len(self._source))
        nearest = Nearest(centroids_KD, self._frame, self._source.plan)

        def measure(tile: Tile) -> None:
            squares_N[tile.positions] = nearest.squares(tile, self._clusters_N[tile.positions])

        for_all_tiles(self._source, nearest, measure)
        farthest = np.argsort(-squares_N, kind="stable")[:count]
        farthest = farthest[squares_N[farthest] > 0]
        rows: dict[int, Doubles] = {}
        for block in self._source.blocks():
            within = farthest[(farthest >= block.positions.start) & (farthest < block.positions.stop)]
            rows |= zip(within.tolist(), block_rows(block, within), strict=True)
        for position in farthest.tolist():
            yield position, rows[position]


_CLUSTERS_AT_ONCE = 256
"""Bounds temporary copies."""


def block_rows(block: Tile, positions: Ints) -> Doubles:
    """Rows of a block, by their positions among all selected rows."""
    return block.exact(positions - block.positions.start)


def _exact(stored_ND: Floats, *, normalize: bool) -> Doubles:
    """Rows in float64, scaled if requested."""
    exact_ND = stored_ND.astype(np.float64)
    if normalize:
        lengths_N = np.sqrt(np.square(exact_ND).sum(axis=1, keepdims=True))
        exact_ND /= np.where(lengths_N == 0, 1, lengths_N)
    return exact_ND


def _framed(sample: Survey, *, normalize: bool) -> Floats:
    """The sample in float32, in the coordinates of the frame."""
    rows_ND = np.empty_like(sample.stored_ND)
    for at in range(0, len(rows_ND), _FRAMED_ROWS):
        some = slice(at, at + _FRAMED_ROWS)
        rows_ND[some] = sample.frame.enter(_exact(sample.stored_ND[some], normalize=normalize))
    return rows_ND
