"""Ranks that cluster together find what one finds, bit for bit, whoever comes, goes or dies; and no step stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.clustering import cached, teamwork
from featbench.evaluate.clustering.cached import Unwatched
from featbench.evaluate.clustering.kept import kept_clusterings
from featbench.evaluate.clustering.lloyd import Iteration
from featbench.pipelines.terminal.progress import KmeansProgress
from featbench.store import FeatureSet, cached_keys, claimed, has_cached, load_cached
from featbench.store.paths import CLUSTERS
from tests.cluster_ranks import (
    assert_same,
    cluster,
    finish,
    kill,
    log_of,
    make_clustered,
    only_clustering,
    runs_of,
    start_command,
    start_rank,
)
from tests.conftest import ROOT, Bench
from tests.reliability.ranks import wait_for

SHORT = {"iterations": 3}


@pytest.fixture(autouse=True)
def _all_work_is_divided_and_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(teamwork, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(teamwork, "_UNSAVED_S", 0)


class StopsAfter(Unwatched):
    """Interrupts k-means when a pass is done, and before its result is saved."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen: list[int] = []

    def iteration(self, iteration: Iteration) -> None:
        self.seen.append(iteration.number)
        if iteration.number == self.number:
            raise KeyboardInterrupt


def interrupt(features: FeatureSet, *, after: int, **settings: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        cluster(features, watcher=StopsAfter(after), **settings)


def steps_of(features: FeatureSet) -> list[str]:
    return [key.split(".", 1)[1] for key in cached_keys(features, CLUSTERS) if "." in key]


@pytest.fixture
def alone(tmp_path: Path) -> FeatureSet:
    """Features that one process has clustered in three passes."""
    features = make_clustered(tmp_path, "alone")
    assert cluster(features, **SHORT)[0]["num_reseeded"] == 3
    return features


@pytest.fixture
def together(tmp_path: Path) -> FeatureSet:
    """The same features, not clustered."""
    return make_clustered(tmp_path, "together")


MANY: list[dict[str, Any]] = [
    {},
    {"normalize": True},
    {"spherical": True, "normalize": True, "init": "k-means++"},
    {"init": "random", "num_seeds": 3},
    {"init": "k-means++", "num_seeds": 2, "normalize": True, "tolerance": 1e-6},
]


@pytest.mark.parametrize("num_shards", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_one_process_may_do_all_shards(alone: FeatureSet, together: FeatureSet, num_shards: int) -> None:
    records = cluster(together, num_ranks=num_shards, **SHORT)
    assert_same(alone, together)
    assert records[0]["num_reseeded"] == 3


@pytest.mark.parametrize(
    ("num_ranks", "settings"),
    [(2, SHORT), *(pytest.param(num_ranks, each, marks=pytest.mark.slow) for num_ranks in (2, 3) for each in MANY)],
)
def test_ranks_find_the_same_clusters_to_the_bit(tmp_path: Path, num_ranks: int, settings: dict[str, Any]) -> None:
    alone, together = (make_clustered(tmp_path, name) for name in ("alone", "together"))
    ranks = [
        start_rank(together, num_ranks=num_ranks, delay_s=0.2 if settings is SHORT else 0, **settings)
        for _ in range(num_ranks)
    ]
    cluster(alone, **settings)
    finish(*ranks)
    assert_same(alone, together)
    passes = [[step for step in log_of(together, each) if step.startswith("pass-")] for each in ranks]
    assert all(passes), "each has worked"
    if settings is SHORT:
        made = sorted(step for each in passes for step in each)
        assert made == [f"pass-{n}.{shard}" for n in (1, 2, 3) for shard in (0, 1)], "once each"
        assert all(len({step.split(".")[1] for step in each}) == 1 for each in passes), "each keeps its shard"


def test_the_shard_of_a_rank_that_is_killed_is_taken_by_another(alone: FeatureSet, together: FeatureSet) -> None:
    doomed = start_rank(together, num_ranks=2, delay_s=60, **SHORT)
    wait_for(lambda: "pass-1.0" in log_of(together, doomed), "it does not begin")
    other = start_rank(together, num_ranks=2, **SHORT)
    wait_for(lambda: "pass-1.1" in log_of(together, other), "it does not do the other shard")
    kill(doomed)
    finish(other)
    assert "pass-1.0" in log_of(together, other)
    assert_same(alone, together)


@pytest.mark.slow
def test_a_rank_that_comes_late_goes_on_where_the_others_are(tmp_path: Path) -> None:
    alone, together = (make_clustered(tmp_path, name) for name in ("alone", "together"))
    cluster(alone)
    first = start_rank(together, num_ranks=2, delay_s=0.5)
    wait_for(lambda: "pass-4.1" in log_of(together, first), "it does not do both shards")
    second = start_rank(together, num_ranks=2, delay_s=0.5)
    finish(first, second)
    assert_same(alone, together)
    late = [step for step in log_of(together, second) if step.startswith("pass-")]
    assert late
    assert not {"pass-1.0", "pass-1.1", "pass-2.0", "pass-2.1"} & set(late)


@pytest.mark.slow
def test_ranks_of_different_speed(tmp_path: Path) -> None:
    alone, together = (make_clustered(tmp_path, name) for name in ("alone", "together"))
    cluster(alone)
    finish(*(start_rank(together, num_ranks=3, delay_s=delay) for delay in (0, 0.3, 1.5)))
    assert_same(alone, together)


@pytest.mark.parametrize(
    ("num_ranks", "then"),
    [(1, 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(1, 1), (2, 1), (2, 3)])],
)
def test_an_interrupted_run_is_taken_over_by_any_number_of_ranks(
    alone: FeatureSet, together: FeatureSet, num_ranks: int, then: int
) -> None:
    interrupt(together, after=3, num_ranks=num_ranks, **SHORT)
    assert [step for step in steps_of(together) if "state" in step] == ["seed-0.state-2"]
    watcher = StopsAfter(0)
    records = cluster(together, num_ranks=then, watcher=watcher, **SHORT)
    assert watcher.seen == [3], "only the last pass is made again"
    assert (records[0]["iterations"], records[0]["num_reseeded"]) == (3, 3)
    assert_same(alone, together)


def test_runs_that_were_done_are_not_made_again(tmp_path: Path) -> None:
    alone, together = (make_clustered(tmp_path, name) for name in ("alone", "together"))
    settings: dict[str, Any] = {"init": "random", "restarts": 1, "num_seeds": 2, **SHORT}
    cluster(alone, **settings)

    class StopsInTheSecond(StopsAfter):
        def start(self, what: str, num_rows: int) -> None:
            self.number = 2 if what.endswith("seed 1") else -1

    with pytest.raises(KeyboardInterrupt):
        cluster(together, watcher=StopsInTheSecond(0), **settings)
    watcher = StopsAfter(0)
    cluster(together, watcher=watcher, **settings)
    assert watcher.seen == [2, 3]
    assert runs_of(together) == runs_of(alone)
    assert_same(alone, together)


@pytest.mark.parametrize("what", ["state", pytest.param("pass-3", marks=pytest.mark.slow)])
def test_a_damaged_state_or_step_is_computed_again(alone: FeatureSet, together: FeatureSet, what: str) -> None:
    interrupt(together, after=3, num_ranks=2, **SHORT)
    damaged = [path for path in (together.path / CLUSTERS).glob(f"*{what}*") if path.is_dir()]
    assert damaged
    for path in damaged:
        chunk = next(file for file in path.rglob("c/*") if file.is_file() or file.is_dir())
        file = chunk if chunk.is_file() else next(each for each in chunk.rglob("*") if each.is_file())
        file.write_bytes(b"\0" * len(file.read_bytes()))
    cluster(together, num_ranks=2, **SHORT)
    assert_same(alone, together)


def test_a_damaged_clustering_is_replaced(alone: FeatureSet, together: FeatureSet) -> None:
    for num_ranks in (1, 2):
        cluster(together, num_ranks=num_ranks, **SHORT)
        key = next(key for key in cached_keys(together, CLUSTERS))
        metadata = together.path / CLUSTERS / key / "zarr.json"
        metadata.write_text(metadata.read_text().replace('"iterations": 3', '"iterations": 4'))
        assert load_cached(together, CLUSTERS, key) is None
        cluster(together, num_ranks=num_ranks, **SHORT)
        assert_same(alone, together)


def test_what_a_killed_rank_left_is_removed_but_not_what_is_claimed(together: FeatureSet) -> None:
    cluster(together, **SHORT)
    (key,) = cached_keys(together, CLUSTERS)
    folder = together.path / CLUSTERS
    for name in (f"{key}.a", f".{key}.b.{'0' * 32}.partial", f".{key}.{'0' * 32}.partial", f"{key}.c"):
        (folder / name).mkdir()
    (folder / f".{key}.a.claim").touch()
    with claimed(together, CLUSTERS, f"{key}.c") as is_mine:
        assert is_mine
        cluster(together, **SHORT)
        assert steps_of(together) == ["c"]
    cluster(together, **SHORT)
    only_clustering(together)


def test_steps_are_no_clusterings(together: FeatureSet) -> None:
    interrupt(together, after=2, num_ranks=2, **SHORT)
    assert steps_of(together)
    assert kept_clusterings(together) == ([], {})


def test_little_work_is_done_by_one_rank(
    alone: FeatureSet, together: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "MIN_MULTIPLICATIONS", 200 * 12 * 5 + 1)
    monkeypatch.setattr(teamwork.StoredTeam, "_compute", lambda *arguments: pytest.fail("the work is divided"))
    cluster(together, num_ranks=2, **SHORT)
    assert_same(alone, together)


def test_a_feature_set_that_cannot_be_written_is_clustered_by_one_rank(
    alone: FeatureSet, together: FeatureSet, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(together.path / CLUSTERS)
    (together.path / CLUSTERS).touch()  # like a read-only file system, root included
    records = cluster(together, **SHORT)
    assert records[0]["objective"] == cluster(alone, **SHORT)[0]["objective"]
    assert len([each for each in caplog.messages if "not cached" in each]) == 1
    assert not has_cached(together, CLUSTERS, "x")


def test_a_rank_that_is_behind_jumps_to_the_newest_state(together: FeatureSet) -> None:
    ahead, behind = (teamwork.StoredTeam(together, "x", num_ranks=2) for _ in range(2))
    for number in (1, 2, 5):
        ahead.save(number, {"centroids": np.full(3, number)}, {"number": number})
    assert cached_keys(together, CLUSTERS) == ["x.state-5"]
    arrays, facts = behind.saved(after=2) or ({}, {})
    assert (arrays["centroids"].tolist(), facts["number"]) == ([5, 5, 5], 5)
    assert behind.saved(after=5) is None


def clustered_by_command(features: FeatureSet) -> list[str]:
    return [
        "evaluate", "--store", str(features.path.parent), "--features", features.name, "--k", "5", "--clusters", "4",
        "--seeds", "2", "--json",
    ]  # fmt: skip


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ignored = {"seconds", "neighbours_reused", "features"}
    return [{name: value for name, value in record.items() if name not in ignored} for record in records]


def test_ctrl_c_keeps_the_passes_that_were_made(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, stopped = (make_clustered(tmp_path, name) for name in ("alone", "stopped"))
    first = bench(*clustered_by_command(alone), "--quiet")
    seen: list[int] = []

    def press(self: KmeansProgress, iteration: Iteration) -> None:
        seen.append(iteration.number)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(KmeansProgress, "iteration", press)
    interrupted = bench(*clustered_by_command(stopped), "--quiet")
    assert interrupted.returncode == 130
    assert interrupted.stdout == ""
    assert "Stopped. Searches and passes of k-means that were done are kept" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    again = bench(*clustered_by_command(stopped), "--quiet")
    assert seen[3] == seen[2], "the pass that was interrupted is the first one to be made again"
    assert without_times(json.loads(again.stdout)) == without_times(json.loads(first.stdout))
    assert_same(alone, stopped)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("launched", "rank_names", "is_divided"),
    [
        (TORCHRUN, ("RANK", "LOCAL_RANK"), True),
        pytest.param(TORCHRUN, ("RANK", "LOCAL_RANK"), False, marks=pytest.mark.slow),
        pytest.param(SRUN, ("SLURM_PROCID", "SLURM_LOCALID"), True, marks=pytest.mark.slow),
    ],
)
def test_the_ranks_of_a_launcher_cluster_together_and_the_first_reports(
    tmp_path: Path, bench: Bench, launched: dict[str, str], rank_names: tuple[str, ...], is_divided: bool
) -> None:
    alone, together = (make_clustered(tmp_path, name) for name in ("alone", "together"))
    ranks = [
        start_command(
            clustered_by_command(together),
            launched | dict.fromkeys(rank_names, str(rank)),
            tmp_path / f"rank-{rank}",
            is_divided=is_divided,
        )
        for rank in range(2)
    ]
    expected = bench(*clustered_by_command(alone), "--quiet")
    finish(*ranks)
    first, second = ((tmp_path / f"rank-{rank}").read_text() for rank in range(2))
    assert second == "", "one rank speaks for all"
    assert without_times(json.loads(first)) == without_times(json.loads(expected.stdout))
    assert len(list((together.path / "results").glob("2*.json"))) == 1
    assert_same(alone, together)


@pytest.mark.slow
def test_torchrun_clusters_as_one_process_does(tmp_path: Path, bench: Bench) -> None:
    alone, together = (make_clustered(tmp_path, name) for name in ("alone", "together"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launched = subprocess.run(
        [*torchrun, "-m", "featbench", *clustered_by_command(together), "--quiet"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    expected = bench(*clustered_by_command(alone), "--quiet")
    assert without_times(json.loads(launched.stdout)) == without_times(json.loads(expected.stdout))
    assert_same(alone, together)
