"""Ranks that cluster together, which a test can slow down and kill: processes forked from one with the imports."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from featbench.__main__ import main
from featbench.evaluate.clustering import cached, teamwork
from featbench.evaluate.clustering.evaluation import evaluate_kmeans
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.neighbours.planning import Resources
from featbench.store import FeatureSet, list_cached, load_cached
from featbench.store.paths import CLUSTERS
from featbench.store.typing import Array
from tests.conftest import make_features
from tests.forking import CONTEXT


def make_clustered(folder: Path, name: str, *, num_rows: int = 200) -> FeatureSet:
    """Make the same features every time, and beside them a start of which three clusters lose all rows: start.npy."""
    random = np.random.default_rng(0)
    sizes = {"train": num_rows, "val": 40}
    values = {split: {"x": (random.standard_normal((n, 5)) + 2).astype(np.float32)} for split, n in sizes.items()}
    start = values["train"]["x"][:12].astype(np.float64)
    start[[2, 5, 11]] = 1000 + np.arange(15).reshape(3, 5)
    np.save(folder / "start.npy", start)
    return make_features(
        folder / name, values, {split: np.arange(n) % 3 for split, n in sizes.items()}, rows_per_chunk=64
    )


def cluster(
    features: FeatureSet, *, num_ranks: int = 1, num_clusters: int = 12, num_seeds: int = 1, watcher: Any = None,
    **settings: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Cluster as one of some ranks, from start.npy and not normalized by default."""
    wanted = {"init": str(features.path.parent / "start.npy"), "normalize": False, "tolerance": 0, **settings}
    return evaluate_kmeans(
        features, ["x"], clusters=[num_clusters], settings=KmeansSettings(**wanted), num_seeds=num_seeds,
        resources=Resources(num_shards=num_ranks), watcher=watcher,
    )  # fmt: skip


def start_rank(features: FeatureSet, *, delay_s: float = 0, **settings: Any) -> BaseProcess:
    """Start a rank that sleeps in each pass; what it computes is appended to `log_of` it."""
    process: BaseProcess = CONTEXT.Process(target=_work, args=(str(features.path), delay_s, settings))
    process.start()
    return process


def start_command(
    arguments: Sequence[str], environment: Mapping[str, str], output: Path, *, is_divided: bool
) -> BaseProcess:
    """Start the command line as a rank of a launcher; `is_divided`: however little work there is."""
    process: BaseProcess = CONTEXT.Process(
        target=_command, args=(list(arguments), dict(environment), output, is_divided)
    )
    process.start()
    return process


def log_of(features: FeatureSet, process: BaseProcess) -> list[str]:
    """What a rank has computed, or begun to: `pass-3.1` is shard 1 of the third pass."""
    path = _log_file(features.path, process.pid or 0)
    return path.read_text().split() if path.exists() else []


def finish(*processes: BaseProcess) -> None:
    """Wait for ranks that must succeed."""
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, f"a rank ended with {process.exitcode}"


def kill(process: BaseProcess) -> None:
    """Kill a rank that is running."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def runs_of(features: FeatureSet) -> list[dict[str, Any]]:
    """Seed, objective and passes of each run of the only clustering."""
    (kept,) = list_cached(features, CLUSTERS)
    runs: list[dict[str, Any]] = kept.facts["runs"]
    return runs


def only_clustering(features: FeatureSet) -> dict[str, Array]:
    """Arrays of the only clustering; there must be nothing else but its metadata and its claim."""
    names = sorted(path.name for path in (features.path / CLUSTERS).iterdir() if path.name != "zarr.json")
    (key,) = (name for name in names if not name.startswith("."))
    assert set(names) <= {key, f".{key}.claim"}, names
    loaded = load_cached(features, CLUSTERS, key)
    assert loaded is not None
    return loaded[0]


def assert_same(first: FeatureSet, second: FeatureSet) -> None:
    """Check that the clusterings are the same to the last bit, and that nothing else remains."""
    ours, theirs = only_clustering(first), only_clustering(second)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert array.tobytes() == theirs[name].tobytes(), name


def _work(path: str, delay_s: float, settings: dict[str, Any]) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    cached.MIN_MULTIPLICATIONS = 0
    teamwork._UNSAVED_S = 0
    features = FeatureSet.open(Path(path))
    gather: Callable[..., Iterator[teamwork.Arrays]] = teamwork.StoredTeam.gather

    def logged(
        self: teamwork.StoredTeam, step: str, num_shards: int, compute: Callable[[int], teamwork.Arrays]
    ) -> Iterator[teamwork.Arrays]:
        def slow(shard: int) -> teamwork.Arrays:
            with _log_file(features.path, os.getpid()).open("a") as log:
                log.write(f"{step}.{shard}\n")
            if step.startswith("pass-"):
                time.sleep(delay_s)
            return compute(shard)

        return gather(self, step, num_shards, slow)

    teamwork.StoredTeam.gather = logged  # type: ignore[method-assign]
    cluster(features, **settings)


def _log_file(features: Path, pid: int) -> Path:
    return features.with_name(f"{features.name}.{pid}.log")


def _command(arguments: list[str], environment: dict[str, str], output: Path, is_divided: bool) -> None:
    os.environ.update(environment)
    sys.argv = ["bench", *arguments, "--quiet"]
    if is_divided:
        cached.MIN_MULTIPLICATIONS = 0
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        main()
