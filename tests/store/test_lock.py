"""One run at a time, one rank for each chunk, and locks that end with their holder."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featbench.store import ChunkWriter, FeatureSet, StoreError, WorkQueue
from featbench.store.lock import join_run
from tests.conftest import ROOT, Arrays, make_features


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    """Feature set without chunks: 7 of train, 3 of val are pending."""
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels)
    for journal in made.journals.glob("*.jsonl"):
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(line for line in lines if b"labels" in line or b"paths" in line))
    return FeatureSet.open(tmp_path / "f")


def test_a_second_run_is_refused_with_host_pid_and_age_of_the_first(made: FeatureSet) -> None:
    named = rf"process {os.getpid()} on {os.uname().nodename}, for 0 min"
    with made.lock("one"), pytest.raises(StoreError, match=named), made.lock("two"):
        pass


def test_processes_of_one_run_come_in_once_the_first_has_prepared(made: FeatureSet) -> None:
    with made.lock("one") as first:
        assert first.is_first
        first.share()
        with made.lock("one") as second, made.lock("one") as third:
            assert not second.is_first
            assert not third.is_first


def test_a_dead_run_is_taken_over(made: FeatureSet) -> None:
    code = "import sys, time; from pathlib import Path; from featbench.store import FeatureSet\n"
    code += f"with FeatureSet.open(Path({str(made.path)!r})).lock('dead') as lock:\n"
    code += "    lock.share(); lock.claim(2**20); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    with made.lock("alive") as lock:
        assert lock.is_first
        assert lock.claim(2**20)


def test_a_forked_process_does_not_keep_the_lock(made: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that decode images outlive a killed rank by seconds."""
    monkeypatch.setattr("featbench.store.lock.PATIENCE_S", 60)  # a loaded machine is slow to run the new process
    with made.lock("one"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,))
        child.start()
    try:
        with made.lock("two") as lock:
            assert lock.is_first
    finally:
        child.kill()
        child.join()


def test_a_byte_has_one_holder_until_it_is_released(made: FeatureSet) -> None:
    with made.lock("one") as first:
        first.share()
        with made.lock("one") as second:
            assert first.claim(7)
            assert not first.claim(7)
            assert not second.claim(7)
            assert second.claim(8)
            first.release(7)
            assert second.claim(7)


def test_journals_are_never_shared(made: FeatureSet) -> None:
    with made.lock("one") as first:
        first.share()
        with made.lock("one") as second:
            assert [lock.claim_journal(0) for lock in (first, second)] == [0, 1]


def test_a_lock_of_a_feature_set_that_was_replaced_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journals/lock"
    path.parent.mkdir()
    with join_run(path, "one"):
        path.parent.rename(tmp_path / "doomed")
        path.parent.mkdir()
        with join_run(path, "two") as lock:
            assert lock.is_first


@pytest.mark.parametrize("world_size", [1, 2, 3, 12])
def test_ranks_that_take_turns_partition_the_pending_chunks(made: FeatureSet, world_size: int) -> None:
    layers = ["res4", "res5"]
    with made.lock("one") as first:
        first.share()
        queues = [iter(WorkQueue(made, layers, first, rank=rank, world_size=world_size)) for rank in range(world_size)]
        taken = []
        while queues:
            for queue in list(queues):
                item = next(queue, None)
                if item is None:
                    queues.remove(queue)
                else:
                    taken.append((item.split, item.chunk))
    expected = [(split, chunk) for split, count in (("train", 7), ("val", 3)) for chunk in range(count)]
    assert sorted(taken) == expected


def test_a_chunk_that_another_rank_has_written_is_not_handed_out(made: FeatureSet, arrays: Arrays) -> None:
    features, _ = arrays
    with made.lock("one") as lock:
        lock.share()
        queue = WorkQueue(made, ["res4", "res5"], lock)
        handed = iter(queue)
        first = next(handed)
        others = FeatureSet.open(made.path)
        second = others.pending(["res4", "res5"])[1]
        rows = made.grid(second.split).rows(second.chunk)
        values = {name: array[rows.start : rows.stop] for name, array in features[second.split].items()}
        with others.lock("one"):
            ChunkWriter(others, rank=5).write(second, values, np.ones(len(rows), np.bool_))
        queue.release(first)
        assert (second.split, second.chunk) not in [(item.split, item.chunk) for item in handed]
