"""Where k-means begins: a look at all rows, and the best of several starts on a sample of them.

Shape suffixes:  N rows   K clusters   D feature dimension
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featbench.evaluate.clustering.lloyd import Clustering, Position, lloyd
from featbench.evaluate.clustering.planning import ClusterPlan, sample_size
from featbench.evaluate.clustering.rows import Frame, RowSource, scale_exactly
from featbench.evaluate.clustering.seeding import kmeans_plus_plus, read_centroids, swapped
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.clustering.teamwork import Arrays, Team
from featbench.evaluate.features.memory_layer import MemoryLayer
from featbench.evaluate.features.selection import Selection
from featbench.store.typing import Doubles, Floats, Ints

REFINING_ITERATIONS = 25
"""Most iterations on the sample, before the starts are compared."""

_REFINING_TOLERANCE = 1e-4

_SAME = 1e-9
"""Two starts whose objectives differ by less than this part have found the same clusters."""

_MOST_ROUNDS = 10
"""Most rounds of exchanging centroids and improving them, in each start."""

_LEAST_GAIN = 1e-4
"""Part of the objective that a round must save for another one."""

_MULTIPLICATIONS_OF_STARTS = 10**11
"""All starts together may take this many multiplications, besides those of one pass over all rows."""

_MOST_STARTS = 10
"""Most starts, however little time they take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the first reading of all rows finds."""

    frame: Frame
    stored_ND: Floats
    """The sample, as stored."""

    lowest_D: Doubles
    highest_D: Doubles


def survey(sources: Sequence[RowSource], chosen: Ints, team: Team) -> Survey:
    """Read all rows once: copy the sample, and choose a frame.

    Parameters
    ----------
    sources : sequence of RowSource
        The shards of the rows, in order.
    chosen : ndarray of int64, rising
        Positions of the sampled rows among those of all shards.
    team : Team
    """
    starts = np.cumsum([0, *map(len, sources)])

    def survey_shard(index: int) -> Arrays:
        within = chosen[(chosen >= starts[index]) & (chosen < starts[index + 1])]
        return _survey_shard(sources[index], within - starts[index])

    found = list(team.gather("survey", len(sources), survey_shard))
    samples = [each["sample"] for each in found]
    stored_ND = samples[0] if len(samples) == 1 else np.concatenate(samples)
    lowest_D = np.min([each["lowest"] for each in found], axis=0)
    highest_D = np.max([each["highest"] for each in found], axis=0)
    framed_ND = _exact(stored_ND[:: _step(len(stored_ND))], normalize=sources[0].normalize)
    frame = Frame.around(framed_ND, lowest_D, highest_D)
    return Survey(frame=frame, stored_ND=stored_ND, lowest_D=lowest_D, highest_D=highest_D)


def _survey_shard(source: RowSource, chosen: Ints) -> Arrays:
    sample_ND = np.empty((len(chosen), source.dim), np.float32)
    lowest_D, highest_D = np.full(source.dim, np.inf), np.full(source.dim, -np.inf)
    for block in source.blocks():
        span = slice(*np.searchsorted(chosen, [block.positions.start, block.positions.stop]))
        np.take(block.stored_ND, chosen[span] - block.positions.start, axis=0, out=sample_ND[span])
        for piece in block.pieces():
            exact = block.exact(piece) if source.normalize else block.stored_ND[piece]
            np.minimum(lowest_D, exact.min(axis=0), out=lowest_D)
            np.maximum(highest_D, exact.max(axis=0), out=highest_D)
    return {"sample": sample_ND, "lowest": lowest_D, "highest": highest_D}


_FRAMED_ROWS = 4096
"""Rows whose median is the center of the frame."""


def sampled(num_rows: int, settings: KmeansSettings, *, dim: int) -> Ints:
    """Positions of the sampled rows, rising."""
    size = sample_size(num_rows, settings.num_clusters, dim)
    chosen = np.arange(num_rows)
    if size < num_rows:
        chosen = np.sort(np.random.default_rng(settings.seed).choice(num_rows, size, replace=False))
    return chosen[:: _step(size)] if settings.init.endswith(".npy") else chosen


def _step(num_sampled: int) -> int:
    """Distance between the rows of a sample that the frame is chosen from."""
    return max(1, num_sampled // _FRAMED_ROWS)


def starting_centroids(sample: Survey, settings: KmeansSettings, *, data: Selection, plan: ClusterPlan) -> Doubles:
    """Choose the centroids of the first pass: the best of several starts on the sample, or those of a file."""
    if settings.init.endswith(".npy"):
        return read_centroids(
            Path(settings.init), dim=data.layer.dim, num_clusters=settings.num_clusters, normalize=settings.normalize
        )
    rows_ND = _framed(sample, normalize=settings.normalize)
    layer = MemoryLayer(sample.stored_ND, key=data.layer.key)
    rows = Selection(layer=layer, rows=np.arange(layer.num_rows))
    source = RowSource(rows, normalize=settings.normalize, plan=plan, held=sample.stored_ND)
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
    best = lloyd([source], sample.frame, Position(centroids_KD=start_KD), settings)
    for number in range(_MOST_ROUNDS if settings.init != "random" else 0):
        start_KD = _swapped(rows_ND, best, sample.frame, seed=[*seed, number], num_threads=num_threads)
        if np.array_equal(start_KD, best.centroids_KD):
            break
        found = lloyd([source], sample.frame, Position(centroids_KD=start_KD), settings)
        if found.objective >= best.objective * (1 - _LEAST_GAIN):
            break
        best = found
    return best


def _swapped(rows_ND: Floats, found: Clustering, frame: Frame, *, seed: Sequence[int], num_threads: int) -> Doubles:
    """Centroids of which some were moved to where they are needed more."""
    framed_KD = _in_float32(frame, found.centroids_KD.copy())
    better_KD = swapped(rows_ND, framed_KD, seed=seed, num_threads=num_threads)
    is_moved_K = (better_KD != framed_KD).any(axis=1)
    centroids_KD = found.centroids_KD.copy()
    centroids_KD[is_moved_K] = better_KD[is_moved_K].astype(np.float64) / frame.factor + frame.center_D
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
    per_start = passes * sample_size(num_rows, settings.num_clusters, dim) * numbers
    return int(np.clip((_MULTIPLICATIONS_OF_STARTS + num_rows * numbers) // per_start, 1, _MOST_STARTS))


def _exact(stored_ND: Floats, *, normalize: bool) -> Doubles:
    """Rows in float64, scaled if requested."""
    exact_ND = stored_ND.astype(np.float64)
    return scale_exactly(exact_ND) if normalize else exact_ND


def _framed(sample: Survey, *, normalize: bool) -> Floats:
    """The sample in float32, in the coordinates of the frame."""
    rows_ND = np.empty_like(sample.stored_ND)
    for at in range(0, len(rows_ND), _FRAMED_ROWS):
        some = slice(at, at + _FRAMED_ROWS)
        rows_ND[some] = _in_float32(sample.frame, _exact(sample.stored_ND[some], normalize=normalize))
    return rows_ND


def _in_float32(frame: Frame, rows_ND: Doubles) -> Floats:
    """Rows in the coordinates of the frame; what is so far away that squares could overflow comes nearer."""
    framed_ND = frame.enter(rows_ND)
    return np.clip(framed_ND, -_FARTHEST, _FARTHEST, out=framed_ND).astype(np.float32)


_FARTHEST = 2.0**50
