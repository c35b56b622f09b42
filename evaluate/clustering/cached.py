"""Clusterings with a cache in the feature set.

The key covers everything that a clustering was computed from, down to the checksum of every chunk, so those of other
features or settings never match.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from featbench.evaluate.clustering.assignment import Assignments, assign
from featbench.evaluate.clustering.kmeans import kmeans
from featbench.evaluate.clustering.lloyd import Clustering, Iteration
from featbench.evaluate.clustering.metrics import sample_of, sampled_silhouettes
from featbench.evaluate.clustering.planning import ClusterPlan, plan_clusters
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.clustering.teamwork import Alone, AlreadyDoneError, Arrays, StoredTeam, Team
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, refuse_if_gone, with_rows
from featbench.evaluate.features.layers import EvalLayer, short
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.planning import DEFAULT, Resources
from featbench.store import FeatureSet, claimed, drop_cached, has_cached, load_cached, save_cached
from featbench.store.manifest import digest_of
from featbench.store.paths import CLUSTERS
from featbench.store.typing import Array, Doubles, Ints

ALGORITHM = 8
"""Part of the keys; raised when a change gives other numbers, or stores other arrays or facts."""

MIN_MULTIPLICATIONS = 2 * 10**9
"""Least multiplications of a pass that several ranks divide; a smaller one takes less time than their files."""

_POLL_S = 0.2
"""Seconds between looks for the clustering of another rank."""

Kept = tuple[dict[str, Any], dict[str, Any]]
"""Arrays and facts of a clustering, as they are cached (store/FORMAT.md)."""


class Watcher(Protocol):
    """Told how far k-means is."""

    def start(self, what: str, num_rows: int) -> None:
        """A task begins, each of whose passes reads `num_rows` rows."""

    def rows(self, count: int) -> None:
        """Some rows of the pass are done."""

    def iteration(self, iteration: Iteration) -> None:
        """A pass is done."""


class Unwatched:
    """A `Watcher` that shows nothing."""

    def start(self, what: str, num_rows: int) -> None:
        """See `Watcher`."""

    def rows(self, count: int) -> None:
        """See `Watcher`."""

    def iteration(self, iteration: Iteration) -> None:
        """See `Watcher`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRequest:
    """A layer to cluster, and how."""

    layer: EvalLayer
    train: Labelled
    val: Labelled
    settings: KmeansSettings
    num_seeds: int = 1
    """Whole runs, with consecutive seeds from that of the settings; the best is kept."""

    resources: Resources = DEFAULT
    """Changes no result."""

    watcher: Watcher = field(default_factory=Unwatched)

    @property
    def splits(self) -> list[Labelled]:
        """Rows of each split that the feature set has."""
        return with_rows(self.train, self.val)

    def plan(self, labelled: Labelled) -> ClusterPlan:
        """Cut the work on one split so that it fits into the memory."""
        return plan_clusters(
            self.resources,
            num_rows=len(labelled.rows),
            rows_per_chunk=self.layer.layers[labelled.split].rows_per_chunk,
            dim=self.layer.dim,
            num_clusters=self.settings.num_clusters,
            mini_batch=self.settings.mini_batch,
        )

    @property
    def multiplications(self) -> int:
        """Multiplications that one pass takes."""
        return len(self.train.rows) * self.settings.num_clusters * self.layer.dim

    def key(self) -> str:
        """Key in the cache."""
        count = self.settings.num_clusters
        made_from = [self.layer.made_from[labelled.split] for labelled in self.splits]
        digest = digest_of([ALGORITHM, self.settings_for_key(), *made_from])
        return f"{short(self.layer.name)}-{count}-{digest[:16]}"

    def settings_for_key(self) -> dict[str, Any]:
        """Everything that changes the result, and the rows that were clustered, as JSON."""
        rows = [hashlib.sha256(labelled.rows.tobytes()).hexdigest() for labelled in self.splits]
        init = self.settings.init
        if init.endswith(".npy"):
            try:
                init = hashlib.sha256(Path(init).read_bytes()).hexdigest()
            except OSError as error:
                raise EvaluationError(f"--init {init}: can't be read ({error})") from error
        return asdict(self.settings) | {"init": init, "seeds": self.num_seeds, "rows": rows}


def find_clusters(features: FeatureSet, request: ClusterRequest) -> Kept:
    """Return a cached clustering, or compute and cache it.

    Raises
    ------
    EvaluationError
        As `kmeans`; or if the feature set is no longer the one that was opened.
    """
    key, num_ranks = request.key(), request.resources.num_shards
    if kept := _kept(features, request, key):
        StoredTeam(features, key, num_ranks=num_ranks).finish()  # what a killed rank left
        return kept
    if num_ranks == 1:
        return _search_and_keep(features, request, key)
    if request.multiplications < MIN_MULTIPLICATIONS:
        return _by_one_rank(features, request, key)
    return _together(features, request, key)


def _search_and_keep(features: FeatureSet, request: ClusterRequest, key: str) -> Kept:
    """Compute a clustering in this process."""
    team = StoredTeam(features, key, num_ranks=1)
    arrays, facts = search_clusters(request, team)
    refuse_if_gone(features)
    save_cached(features, CLUSTERS, key, arrays, facts)
    team.finish()
    return arrays, facts


def _by_one_rank(features: FeatureSet, request: ClusterRequest, key: str) -> Kept:
    """Compute a clustering in the first rank, while the others wait for it."""
    while True:
        with claimed(features, CLUSTERS, key) as is_mine:
            if is_mine:
                return _kept(features, request, key) or _search_and_keep(features, request, key)
        time.sleep(_POLL_S)


def _together(features: FeatureSet, request: ClusterRequest, key: str) -> Kept:
    """Compute a clustering together with the other ranks."""
    with claimed(features, CLUSTERS, key) as is_mine:
        if is_mine and has_cached(features, CLUSTERS, key) and not _kept(features, request, key):
            drop_cached(features, CLUSTERS, key)  # it is damaged, and would pass for the result
    team = StoredTeam(features, key, num_ranks=request.resources.num_shards)
    try:
        arrays, facts = search_clusters(request, team)
    except AlreadyDoneError:
        team.finish()
        return _kept(features, request, key) or search_clusters(request)
    refuse_if_gone(features)
    while True:
        with claimed(features, CLUSTERS, key) as is_mine:
            if is_mine:
                if not team.is_done():
                    save_cached(features, CLUSTERS, key, arrays, facts)
                team.finish()
                return arrays, facts
        time.sleep(_POLL_S)


def _kept(features: FeatureSet, request: ClusterRequest, key: str) -> Kept | None:
    """Load a clustering, if there is one that is intact."""
    kept = load_cached(features, CLUSTERS, key)
    return kept if kept and _has_its_form(*kept, request) else None


def search_clusters(request: ClusterRequest, team: Team | None = None) -> Kept:
    """Compute a clustering without a cache; returns what `find_clusters` does."""
    start = time.perf_counter()
    team = team or Alone()
    layer, settings = request.layer, request.settings
    selection, plan = layer.select(request.train), request.plan(request.train)
    runs: list[dict[str, Any]] = []
    best: Clustering | None = None
    for seed in range(settings.seed, settings.seed + request.num_seeds):
        request.watcher.start(_what(request, seed), len(selection))
        team.begin(f"seed-{seed}.")
        found = kmeans(
            selection, replace(settings, seed=seed), plan=plan, team=team, on_rows=request.watcher.rows,
            on_iteration=request.watcher.iteration,
        )  # fmt: skip
        runs.append({"seed": seed, "objective": found.objective, "iterations": found.iterations})
        if best is None or found.objective < best.objective:
            best, best_seed = found, seed
    assert best is not None
    arrays: dict[str, Array] = {"centroids": best.centroids_KD}
    for labelled in request.splits:
        team.begin(f"{labelled.split}.")
        arrays |= _assigned(labelled, layer.select(labelled), best, request, team)
    samples = samples_of(layer, request.train, request.val, normalize=settings.normalize, seed=settings.seed)
    objective = float(np.square(arrays["train_distances"]).sum())
    runs[best_seed - settings.seed]["objective"] = objective
    made_from = [layer.made_from[split] for split in ("train", "val") if split in layer.made_from]
    return arrays, {
        "layer": layer.name,
        "clusters": settings.num_clusters,
        "made_from": made_from,
        "settings": _settings_of(request),
        "objective": objective,
        "iterations": best.iterations,
        "certified": True,
        "engine": str(plan.engine),
        "num_reseeded": best.num_reseeded,
        "num_empty": settings.num_clusters - len(np.unique(arrays["train"])),
        "silhouettes": sampled_silhouettes(samples, arrays),
        "seed": best_seed,
        "runs": runs,
        "seconds": round(time.perf_counter() - start, 3),
    }


def samples_of(
    layer: EvalLayer, train: Labelled, val: Labelled, *, normalize: bool, seed: int
) -> dict[str, tuple[Ints, Doubles]]:
    """Read a sample of the rows of each split, for the exact silhouette."""
    return {
        labelled.split: sample_of(layer.select(labelled), normalize=normalize, seed=seed)
        for labelled in with_rows(train, val)
    }


def _assigned(
    labelled: Labelled, selection: Selection, found: Clustering, request: ClusterRequest, team: Team
) -> dict[str, Array]:
    """Arrays of one split: cluster and distances of each row."""
    request.watcher.start(f"assign {request.layer.name} {labelled.split}", len(selection))
    shards, plan = team.shards(selection), request.plan(labelled)

    def assign_shard(index: int) -> Arrays:
        assigned: Assignments = assign(
            shards[index], found.centroids_KD, normalize=request.settings.normalize, plan=plan,
            on_rows=request.watcher.rows,
        )  # fmt: skip
        return {"clusters": assigned.clusters_N, "distances": assigned.distances_N, "others": assigned.others_N}

    done = list(team.gather("assign", len(shards), assign_shard))
    clusters, distances, others = (
        np.concatenate([each[name] for each in done]) for name in ("clusters", "distances", "others")
    )
    split = labelled.split
    return {
        split: clusters, f"{split}_rows": labelled.rows, f"{split}_distances": distances, f"{split}_others": others,
    }  # fmt: skip


def _what(request: ClusterRequest, seed: int) -> str:
    run = f", seed {seed}" if request.num_seeds > 1 else ""
    return f"k-means {request.layer.name}, {request.settings.num_clusters:,} clusters{run}"


def _settings_of(request: ClusterRequest) -> dict[str, Any]:
    settings = asdict(request.settings) | {"seeds": request.num_seeds}
    return {name: value for name, value in settings.items() if name != "num_clusters"}


def _has_its_form(arrays: Mapping[str, Any], facts: Mapping[str, Any], request: ClusterRequest) -> bool:
    """Whether cached arrays and facts are a clustering of these rows."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "centroids": ((request.settings.num_clusters, request.layer.dim), np.float64)
    }
    for labelled in request.splits:
        num_rows, split = len(labelled.rows), labelled.split
        shapes |= {split: ((num_rows,), np.int64), f"{split}_rows": ((num_rows,), np.int64)}
        shapes |= {f"{split}_{each}": ((num_rows,), np.float64) for each in ("distances", "others")}
    return (
        isinstance(facts.get("objective"), float)
        and isinstance(facts.get("iterations"), int)
        and isinstance(facts.get("runs"), Sequence)
        and all(
            name in arrays and arrays[name].shape == shape and arrays[name].dtype == dtype
            for name, (shape, dtype) in shapes.items()
        )
        and all(
            0 <= arrays[labelled.split].min() <= arrays[labelled.split].max() < request.settings.num_clusters
            and np.array_equal(arrays[f"{labelled.split}_rows"], labelled.rows)
            for labelled in request.splits
        )
    )
