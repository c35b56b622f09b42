"""k-means is killed at random moments, and goes on at its last pass: the same bits, and nothing else remains."""

from __future__ import annotations

import random
import re
import signal
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from featbench.store import FeatureSet, cached_keys
from featbench.store.paths import CLUSTERS
from tests.cluster_ranks import assert_same, cluster, finish, kill, log_of, make_clustered, runs_of, start_rank
from tests.reliability.ranks import wait_for

LONG: dict[str, Any] = {"num_seeds": 3}
"""From start.npy, three times: many passes."""


def test_k_means_that_is_killed_goes_on_at_its_last_pass(tmp_path: Path) -> None:
    alone, killed = (make_clustered(tmp_path, name) for name in ("alone", "killed"))
    passes = cluster(alone)[0]["iterations"]
    for number in (3, 5):
        process = start_rank(killed, delay_s=0.2)
        wait_for(partial(has_begun, killed, process, f"pass-{number}.0"), "it makes no passes")
        kill(process)
    last = start_rank(killed)
    finish(last)
    assert passes_of(killed, last) == list(range(5, passes + 1))
    assert_same(alone, killed)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_k_means_survives_random_kills(tmp_path: Path, num_ranks: int) -> None:
    dice = random.Random(num_ranks)
    alone = make_clustered(tmp_path, "alone")
    cluster(alone, **LONG)
    passes = sum(run["iterations"] for run in runs_of(alone))
    kills = resumed = completed = 0
    while kills < 50:
        disturbed = make_clustered(tmp_path, f"disturbed_{completed}")
        while not is_done(disturbed):
            state = has_state(disturbed)
            ranks = [start_rank(disturbed, num_ranks=num_ranks, delay_s=0.1, **LONG) for _ in range(num_ranks)]
            kills += 0 if kills >= 50 else disturb(disturbed, ranks, dice)
            for each in ranks:
                each.join(120)
            made = max(len(passes_of(disturbed, each)) for each in ranks)
            if state and is_done(disturbed):
                assert made < passes * num_ranks
                resumed += 1
        finish(start_rank(disturbed, num_ranks=num_ranks, **LONG))  # it removes what killed ranks left
        assert_same(alone, disturbed)
        completed += 1
    print(f"\n{kills} kills, {completed} clusterings completed, {resumed} of them by a run that went on")
    assert resumed


def disturb(features: FeatureSet, ranks: list[BaseProcess], dice: random.Random) -> int:
    """Kill ranks at random moments after they began, unless they are done; returns how many."""
    dice.shuffle(ranks)
    count = 0
    for each in ranks:
        wait_for(partial(has_begun_or_ended, features, each), "it does not begin")
        each.join(dice.uniform(0, 2))
        each.kill()
        each.join(60)
        assert each.exitcode in (0, -signal.SIGKILL)
        count += each.exitcode != 0
    return count


def has_begun(features: FeatureSet, process: BaseProcess, step: str) -> bool:
    return step in log_of(features, process)


def has_begun_or_ended(features: FeatureSet, process: BaseProcess) -> bool:
    return bool(log_of(features, process)) or not process.is_alive()


def is_done(features: FeatureSet) -> bool:
    return any("." not in key for key in cached_keys(features, CLUSTERS))


def has_state(features: FeatureSet) -> bool:
    return any(".state-" in key for key in cached_keys(features, CLUSTERS))


def passes_of(features: FeatureSet, process: BaseProcess) -> list[int]:
    """Numbers of the passes in which a rank did a shard."""
    return [int(found[1]) for step in log_of(features, process) if (found := re.match(r"pass-(\d+)\.", step))]
