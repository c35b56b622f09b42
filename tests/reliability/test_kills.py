"""Ranks are killed at random moments, and others go on: nothing is lost, nothing doubled, the bytes are the same."""

from __future__ import annotations

import collections
import os
import random
import signal
import uuid
from pathlib import Path

import pytest

from featbench.pipelines.config.pipeline import Pipeline
from featbench.store import FeatureSet, verify
from tests.reliability.ranks import chunks_of, finish, keys_journalled, small_pipeline, start, wait_for


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_writes_the_same_bytes_and_no_chunk_twice(
    tmp_path: Path, undisturbed: dict[str, bytes], world_size: int
) -> None:
    pipeline = small_pipeline(tmp_path, "several")
    finish(start(pipeline, uuid.uuid4().hex, world_size))
    check_complete(pipeline, undisturbed)
    journals = FeatureSet.open(tmp_path / "several").journals
    assert len([path for path in journals.glob("*.jsonl") if path.stat().st_size]) == world_size


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_store_survives_random_kills_of_random_ranks(
    tmp_path: Path, undisturbed: dict[str, bytes], kills: int
) -> None:
    dice = random.Random(kills)
    killed: collections.Counter[str] = collections.Counter()
    completed = 0
    while sum(killed.values()) < kills:
        pipeline = small_pipeline(tmp_path, f"killed_{completed}")
        while not is_complete(pipeline):
            if sum(killed.values()) < kills:
                killed += disturb(pipeline, dice)
            else:
                finish(start(pipeline, uuid.uuid4().hex, dice.randint(1, 3)))
        check_complete(pipeline, undisturbed)
        finish(start(pipeline, uuid.uuid4().hex, 1))
        assert not list(pipeline.store.rglob("*.partial")), "the next start sweeps what killed ranks left"
        completed += 1
    print(f"\n{sum(killed.values())} ranks killed, {dict(killed)}, {completed} stores completed")


def disturb(pipeline: Pipeline, dice: random.Random) -> collections.Counter[str]:
    """Start 1 to 3 ranks and kill some of them, later the others unless they are done first; counts the kills."""
    processes = start(pipeline, uuid.uuid4().hex, dice.randint(1, 3))
    killed: collections.Counter[str] = collections.Counter()
    dice.shuffle(processes)
    for process in processes:
        process.join(dice.uniform(0.0, 2.0))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed[f"of {len(processes)}"] += 1
    for process in processes:
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
    return killed


def is_complete(pipeline: Pipeline) -> bool:
    path = pipeline.store / pipeline.name
    if not path.exists():
        return False
    made = FeatureSet.open(path)
    layers = [spec.name for spec in pipeline.layers]
    return set(layers) <= set(made.manifest.layers) and not made.pending(layers)


def check_complete(pipeline: Pipeline, undisturbed: dict[str, bytes]) -> None:
    path = pipeline.store / pipeline.name
    assert not list(verify(path))
    assert chunks_of(path) == undisturbed
    keys = keys_journalled(path)
    assert len(keys) == len(set(keys)) == len(undisturbed)


def test_a_rank_that_is_asked_to_stop_finishes_its_chunk_and_the_others_take_over(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    pipeline = small_pipeline(tmp_path, "stopped")
    processes = start(pipeline, uuid.uuid4().hex, 2)
    path = pipeline.store / pipeline.name
    wait_for(lambda: path.exists() and len(keys_journalled(path)) > 12, "the ranks do not write", seconds=240)
    os.kill(processes[0].pid, signal.SIGTERM)
    processes[0].join(240)
    assert processes[0].exitcode == 128 + signal.SIGTERM
    processes[1].join(240)
    assert processes[1].exitcode == 0
    check_complete(pipeline, undisturbed)
