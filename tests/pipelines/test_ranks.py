"""Ranks from the command line: started, killed, stopped, refused."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from featbench.pipelines.config.pipeline import Pipeline, make_pipeline
from featbench.pipelines.extraction import launch, monitor, rank
from featbench.pipelines.extraction.rank import Outcome
from featbench.pipelines.extraction.signals import StopRequest
from featbench.pipelines.ranks import Rank, from_environment
from featbench.store import FeatureSet, RankStatus, verify
from featbench.store.status import Reporter, post, read_statuses
from tests.conftest import ROOT, Arrays, Bench, make_features, needs_proc
from tests.reliability.ranks import chunks_of, committed, wait_for

DIGITS = (
    "digits", "model.trunk=net.py:Net", "--layers", "conv", "extract.batch_size=16", "storage.rows_per_chunk=16",
    "extract.threads=1", "transform.resize=16", "transform.crop=16", "data.limit=400",
)  # fmt: skip
NET = """
import os, time
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        time.sleep(float(os.environ.get("SECONDS_PER_BATCH", "0")))
        return self.conv(images)
"""
"""A network that takes as long as a test needs, without the processor."""


@pytest.fixture(autouse=True)
def _net(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)


@pytest.fixture
def two_ranks(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start `bench extract --ranks 2` in a process of its own; yields it once both ranks write, and their statuses."""
    started = []

    def start(name: str) -> tuple[subprocess.Popen[str], list[RankStatus]]:
        command = [sys.executable, "-m", "featbench", "extract", *DIGITS, "--ranks", "2", "--name", name]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SECONDS_PER_BATCH": "0.25"}
        running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        started.append(running)
        path = tmp_path / "features" / name

        def statuses() -> list[RankStatus]:
            if not (path / "journals/lock").exists() or committed(path) < 6:
                return []
            run = json.loads((path / "journals/lock").read_bytes()[:4096])["run"]
            alive = tree(running.pid)
            return [each for each in read_statuses(path / "journals", run) if each.rows and each.pid in alive]

        wait_for(lambda: len(statuses()) == 2 or running.poll() is not None, "the ranks do not write", seconds=240)
        found = statuses()
        assert len(found) == 2, "the run has ended before both ranks were seen"
        return running, found

    yield start
    for running in started:
        running.kill()
        running.wait()


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(each for child in children for each in tree(int(child)))]
    return []


def listening(pids: list[int]) -> list[str]:
    """Addresses and ports that processes listen on, as /proc/net/tcp writes them."""
    held = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                held.add(str(descriptor.readlink()))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held]


@needs_proc
def test_a_killed_rank_alone_is_started_again_and_the_bytes_are_those_of_one_process(
    bench: Bench, tmp_path: Path, two_ranks: Callable[..., Any]
) -> None:
    running, statuses = two_ranks("two")
    pids = tree(running.pid)
    assert {status.pid for status in statuses} <= set(pids)
    with socket.create_server(("", 0)) as server:
        assert listening([os.getpid()]) == [f"00000000:{server.getsockname()[1]:04X}"]
    assert not listening(pids)
    os.kill(statuses[1].pid, signal.SIGKILL)
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    assert f"rank {statuses[1].rank} died (killed by SIGKILL); restarting it (1 of 3)" in errors
    assert "ranks: 2 done" in errors
    run = statuses[0].run
    path = tmp_path / "features/two"
    assert read_statuses(path / "journals", run)[statuses[0].rank].pid == statuses[0].pid
    assert not list(verify(path))
    assert bench("extract", *DIGITS, "--name", "one").returncode == 0
    assert chunks_of(path) == chunks_of(tmp_path / "features/one")


@needs_proc
@pytest.mark.slow
def test_ranks_end_with_the_process_that_started_them(two_ranks: Callable[..., Any]) -> None:
    running, _ = two_ranks("killed")
    pids = tree(running.pid)
    running.kill()
    wait_for(lambda: not any(is_running(pid) for pid in pids), "ranks are left over", seconds=20)


@needs_proc
@pytest.mark.slow
def test_ranks_finish_a_chunk_when_the_process_that_started_them_is_asked_to_stop(
    two_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    running, statuses = two_ranks("stopped")
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert errors.count("Stopping after the current chunk") == 1
    assert not any(is_running(status.pid) for status in statuses)
    assert all("pending" in fault.what for fault in verify(tmp_path / "features/stopped"))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_rank_does_not_hear_of_ctrl_c_before_it_ignores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own tracker lets SIGINT through once it has been started, which the first new process does."""
    tracker = resource_tracker.ResourceTracker()
    monkeypatch.setattr(resource_tracker, "ensure_running", tracker.ensure_running)
    with launch._spawning():
        resource_tracker.ensure_running()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    tracker._stop()  # type: ignore[attr-defined]


class Ending:
    """A rank that ends in some way, whatever it should do."""

    def __init__(self, ways: list[signal.Signals | Outcome]) -> None:
        self._ways = ways

    def __call__(self, pipeline: Pipeline, rank: Rank, connection: Connection) -> None:
        way = self._ways[rank.rank]
        if isinstance(way, int):
            os.kill(os.getpid(), way)
            time.sleep(60)
        connection.send(way)


@pytest.mark.parametrize("ways", [[signal.SIGKILL, Outcome()], [signal.SIGKILL, Outcome(fault="no")]])
def test_ranks_that_die_again_and_again_are_given_up_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, ways: list[signal.Signals | Outcome]
) -> None:
    monkeypatch.setattr(launch, "_start", Ending(ways))
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: multiprocessing.context.ForkContext())
    pipeline = make_pipeline({"extract": {"ranks": 2}}, where="test")
    ended = launch.supervise(pipeline, "run", StopRequest())
    assert ended.outcomes == [ways[1]]
    assert ended.restarts == launch.RESTARTS
    assert ended.given_up == ["rank 0 died (killed by SIGKILL), after 3 restarts of ranks"]


def test_a_signal_stops_after_the_chunk_in_hand_and_the_same_command_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECONDS_PER_BATCH", "0.03")
    path = tmp_path / "features/digits"

    def interrupt() -> None:
        wait_for(lambda: committed(path) > 10, "nothing is written")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    stopped = bench("extract", *DIGITS)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "the same command goes on from there" in stopped.stderr
    assert 10 < committed(path) < 250
    resumed = bench("extract", *DIGITS)
    assert resumed.returncode == 0
    assert "800 images" not in resumed.stderr
    assert not list(verify(path))


def test_a_second_signal_is_one_with_the_first_only_if_it_comes_at_once() -> None:
    code = (
        "import os, signal, time\nfrom featbench.pipelines.extraction.signals import graceful_shutdown\n"
        "with graceful_shutdown() as stopping:\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stopping()\n    time.sleep(1.1); print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(5); print('never')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stdout == "still here\n"


def test_a_second_extraction_is_refused_while_one_runs(bench: Bench, tmp_path: Path) -> None:
    assert bench("extract", *DIGITS).returncode == 0
    with FeatureSet.open(tmp_path / "features/digits").lock("another"):
        refused = bench("extract", *DIGITS)
    assert refused.returncode == 2
    assert f"another extraction is writing to it: process {os.getpid()}" in refused.stderr


def test_more_gpus_than_there_are_is_refused(bench: Bench) -> None:
    refused = bench("extract", *DIGITS, "--gpus", "99")
    assert refused.returncode == 2
    assert "--gpus 99: torch can use" in refused.stderr


def test_overwriting_is_refused_in_ranks_that_others_started(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for key, value in numbers.items():
        monkeypatch.setenv(key, value)
    refused = bench("extract", *DIGITS, "--overwrite")
    assert refused.returncode == 2
    assert "--overwrite can't be used in ranks that torchrun or srun start" in refused.stderr


def test_torchrun_is_recognised_also_within_slurm() -> None:
    numbers = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}
    slurm = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    rank = from_environment(numbers | slurm | {"MASTER_ADDR": "a", "MASTER_PORT": "1"})
    assert rank == Rank(run="x-a-1", rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert from_environment({}) is None
    assert from_environment({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}) is None, "a batch script"


def test_slurm_parameters_are_translated_and_unknown_ones_refused(bench: Bench) -> None:
    slurm = pytest.importorskip("featbench.pipelines.extraction.slurm")
    pytest.importorskip("submitit")
    assert slurm.parameters({"time": "24:00:00"})["time"] == 24 * 60
    assert slurm.parameters({"time": "90", "ranks-per-node": "4"}) == {"time": 90, "ntasks_per_node": 4}
    refused = bench("extract", *DIGITS, "--slurm", "partition=gpu,node=2")
    assert refused.returncode == 2
    assert "no parameter 'node'. Did you mean nodes" in refused.stderr
    assert "time must be minutes" in bench("extract", *DIGITS, "--slurm", "time=soon").stderr


def test_progress_comes_from_journals_and_statuses(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels)
    journal = made.journals / "rank-00000.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-6]))  # the last two chunks of train, 8 and 2 rows
    made = FeatureSet.open(tmp_path / "f")
    looking = monitor.Watch(made, ["res4", "res5"], "now")
    status = RankStatus(run="now", rank=1, host="h", pid=1, state="extracting", rows=3, rows_in_hand=3)
    post(made.journals, status)
    post(made.journals, RankStatus(run="before", rank=2, host="h", pid=1, state="extracting", rows_in_hand=5))
    assert (looking.look().rows, looking.look().rows_total) == (3, 10)
    journal.write_bytes(b"".join(lines[:-3]))
    assert looking.look().rows == 8 + 2, "rows being computed are never more than what is missing"
    post(made.journals, RankStatus(run="now", rank=1, host="h", pid=1, state="done", rows=11))
    journal.write_bytes(whole)
    snapshot = looking.look()
    assert snapshot.rows == 10
    assert snapshot.bytes == sum(json.loads(line[9:])["size"] for line in lines[-6:])
    assert [rank.state for rank in snapshot.ranks] == ["done"]


def test_a_chunk_is_counted_once_and_never_taken_back(tmp_path: Path, arrays: Arrays) -> None:
    """A chunk is being computed until its journal has it; the last chunk of train has 2 rows."""
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels)
    journal = made.journals / "rank-00000.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-6]))
    looking = monitor.Watch(FeatureSet.open(made.path), ["res4", "res5"], "now")
    reporter = Reporter(made.journals, RankStatus(run="now", rank=0, host="h", pid=1, state="starting"))
    reporter.change("extracting")
    reporter.processed(8)
    reporter.change("extracting")  # as after a second
    assert looking.look().rows == 8
    journal.write_bytes(b"".join(lines[:-3]))
    reporter.committed(8)
    assert looking.look().rows == 8
    reporter.processed(2)
    reporter.change("extracting")
    assert looking.look().rows == 10
    post(made.journals, RankStatus(run="now", rank=0, host="h", pid=2, state="extracting"))
    assert looking.look().rows == 10


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_progress_fits_the_terminal(width: int) -> None:
    status = RankStatus(run="r", rank=7, host="a" * 70, pid=1234567, state="extracting", error="no " * 50)
    snapshot = monitor.Snapshot(
        what="extract", rows=1_181_167, rows_total=1_281_167, bytes=9 * 10**9, rows_per_s_now=1234.5, rows_per_s=1234.5,
        ranks=(status, status), time=0.0,
    )  # fmt: skip
    drawn = io.StringIO()
    drawn_on = Console(width=width, file=drawn)
    drawn_on.print(monitor.render(snapshot, width=width))
    lines = drawn.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    assert "1,181,167/1,281,167" in lines[0]
    assert "81 s left" in lines[0]


def test_the_notice_of_stopping_and_warnings_stand_above_the_bar(
    tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal of 80 columns; what is drawn over is gone."""
    made = make_features(tmp_path / "f", *arrays)
    screen = io.StringIO()
    drawn_on = Console(width=80, file=screen, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    monkeypatch.setattr(monitor, "console", lambda **_: drawn_on)
    monkeypatch.setattr(monitor, "POLL_S", 0.01)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(io.StringIO())])
    stopping, over = StopRequest(), threading.Event()
    shower = threading.Thread(
        target=monitor._show_live, args=(monitor.Watch(made, ["res5"], "now"), over, stopping), daemon=True
    )
    shower.start()
    wait_for(lambda: screen.getvalue().count("rows/s") > 2, "nothing is drawn")
    logging.getLogger().warning("a warning")
    stopping.handle(signal.SIGINT, None)
    wait_for(lambda: "once more stops at once" in screen.getvalue(), "the notice is not shown")
    over.set()
    shower.join()
    seen = [line for line in screen.getvalue().split("\n") if "once more stops" in line or "a warning" in line]
    assert [line.rstrip("\r").split("\x1b[2K")[-1].strip() for line in seen] == [
        "a warning",
        "Stopping after the current chunk; once more stops at once.",
    ]


def test_a_rank_that_is_not_heard_of_is_shown_so() -> None:
    status = RankStatus(run="r", rank=0, host="h", pid=1, state="extracting", time=1000.0)
    assert monitor.state_of(status, 1010.0) == "extracting"
    assert monitor.state_of(status, 1300.0) == "extracting, silent for 5 min"


def test_ranks_leave_out_what_was_said_when_the_run_was_prepared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("featbench.pipelines")
    job = SimpleNamespace(profiles=[])
    monkeypatch.setattr(rank, "prepare", lambda pipeline: logger.warning("advice") or job)
    monkeypatch.setattr(rank, "run_rank", lambda number, job, *, quiet: logger.warning("left out: a.png"))
    for quiet, said in ((True, ["left out: a.png"]), (False, ["advice", "left out: a.png"])):
        caplog.clear()
        assert rank.rank_outcome(None, None, quiet=quiet) == rank.Outcome()
        assert caplog.messages == said
