"""Ranks from the command line: started, killed, stopped, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from pipelines import watch
from pipelines.ranks import Rank, from_environment
from store import FeatureSet, RankStatus, verify
from store.status import post, read_statuses
from tests.conftest import ROOT, make_features
from tests.reliability.ranks import chunks_of, committed, wait_for

DIGITS = ("digits", "extract.batch_size=16", "storage.rows_per_chunk=16", "--layers", "res4", "extract.threads=1")


def test_a_killed_rank_is_started_again_and_the_bytes_are_those_of_one_process(bench, tmp_path):
    command = [sys.executable, "-m", "pipelines", "extract", *DIGITS, "--ranks", "2", "--name", "two"]
    running = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    path = tmp_path / "features/two"
    wait_for(lambda: committed(path) > 20 or running.poll() is not None, "the ranks do not write")
    run = json.loads((path / "journals/lock").read_text())["run"]
    statuses = read_statuses(path / "journals", run)
    os.kill(statuses[-1].pid, signal.SIGKILL)
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    assert "ranks: 2 done" in errors
    assert not list(verify(path))
    assert bench("extract", *DIGITS, "--name", "one").returncode == 0
    assert chunks_of(path) == chunks_of(tmp_path / "features/one")


def test_a_signal_stops_after_the_chunk_in_hand_and_the_same_command_goes_on(bench, tmp_path):
    path = tmp_path / "features/digits"

    def interrupt():
        wait_for(lambda: committed(path) > 10, "nothing is written")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    stopped = bench("extract", *DIGITS)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "the same command goes on from there" in stopped.stderr
    assert 10 < committed(path) < 250
    resumed = bench("extract", *DIGITS)
    assert resumed.returncode == 0
    assert "1,797 images" not in resumed.stderr
    assert not list(verify(path))


def test_a_second_signal_is_one_with_the_first_only_if_it_comes_at_once():
    code = (
        "import os, signal, time\nfrom pipelines.stopping import until_signalled\n"
        "with until_signalled() as stopping:\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stopping()\n    time.sleep(1.1); print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(5); print('never')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stdout == "still here\n"


def test_a_second_extraction_is_refused_while_one_runs(bench, tmp_path):
    assert bench("extract", *DIGITS).returncode == 0
    with FeatureSet.open(tmp_path / "features/digits").lock("another"):
        refused = bench("extract", *DIGITS)
    assert refused.returncode == 2
    assert f"another extraction is writing to it: process {os.getpid()}" in refused.stderr


def test_more_gpus_than_there_are_is_refused(bench):
    refused = bench("extract", *DIGITS, "--gpus", "99")
    assert refused.returncode == 2
    assert "--gpus 99: this host has" in refused.stderr


def test_overwriting_is_refused_in_ranks_that_others_started(bench, monkeypatch):
    numbers = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for key, value in numbers.items():
        monkeypatch.setenv(key, value)
    refused = bench("extract", *DIGITS, "--overwrite")
    assert refused.returncode == 2
    assert "--overwrite can't be used in ranks that torchrun or srun start" in refused.stderr


def test_torchrun_is_recognised_also_within_slurm():
    numbers = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}
    slurm = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    rank = from_environment(numbers | slurm | {"MASTER_ADDR": "a", "MASTER_PORT": "1"})
    assert rank == Rank(run="x-a-1", rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert from_environment({}) is None
    assert from_environment({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}) is None, "a batch script"


def test_slurm_parameters_are_translated_and_unknown_ones_refused(bench):
    slurm = pytest.importorskip("pipelines.slurm")
    pytest.importorskip("submitit")
    assert slurm.parameters({"time": "24:00:00"})["time"] == 24 * 60
    assert slurm.parameters({"time": "90", "ranks-per-node": "4"}) == {"time": 90, "ntasks_per_node": 4}
    refused = bench("extract", *DIGITS, "--slurm", "partition=gpu,node=2")
    assert refused.returncode == 2
    assert "no parameter 'node'. Did you mean nodes" in refused.stderr
    assert "time must be minutes" in bench("extract", *DIGITS, "--slurm", "time=soon").stderr


def test_progress_comes_from_journals_and_statuses(tmp_path, arrays):
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels)
    journal = made.journals / "rank-00000.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-6]))  # the last two chunks of train, 8 and 2 rows
    made = FeatureSet.open(tmp_path / "f")
    looking = watch.Watch(made, ["res4", "res5"], "now")
    status = RankStatus(run="now", rank=1, host="h", pid=1, state="extracting", rows=3, rows_in_hand=3)
    post(made.journals, status)
    post(made.journals, RankStatus(run="before", rank=2, host="h", pid=1, state="extracting", rows_in_hand=5))
    assert (looking.look().rows, looking.look().rows_total) == (3, 10)
    journal.write_bytes(b"".join(lines[:-3]))
    assert looking.look().rows == 8 + 2, "rows in hand are never more than what is missing"
    post(made.journals, RankStatus(run="now", rank=1, host="h", pid=1, state="done", rows=11))
    journal.write_bytes(whole)
    snapshot = looking.look()
    assert snapshot.rows == 10
    assert snapshot.bytes == sum(record.size for record in list(FeatureSet.open(made.path).records.values())[-6:])
    assert [rank.state for rank in snapshot.ranks] == ["done"]


def test_a_rank_that_is_not_heard_of_is_shown_so():
    status = RankStatus(run="r", rank=0, host="h", pid=1, state="extracting", time=1000.0)
    assert watch.state_of(status, 1010.0) == "extracting"
    assert watch.state_of(status, 1300.0) == "extracting, silent for 5 min"
