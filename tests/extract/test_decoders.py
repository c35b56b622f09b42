"""Decoding processes: none outlives its parent, no batch is waited for that cannot come."""

from __future__ import annotations

import errno
import faulthandler
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from featbench.extract import lifetime
from featbench.extract.decoders import BatchRows, Decoders
from featbench.extract.errors import DecoderError, OutOfMemoryError, RemoteError
from featbench.store import BenchError, Work
from featbench.store.layout import RowRange
from featbench.store.typing import Array
from tests.conftest import ROOT


def rows_of_batch(start: int, stop: int) -> BatchRows:
    work = Work(split="train", chunk=0, layers=("res5",), valid=True)
    return BatchRows(work=work, rows=RowRange(start=start, stop=stop))


BATCH = rows_of_batch(8, 12)
LARGE = (4, 3, 1024, 1024)

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from Linux's /proc")


def pixels_of(batch: BatchRows) -> tuple[Array, tuple[int, int]]:
    start = batch.rows.start
    random = np.random.default_rng(start)
    return random.integers(0, 256, LARGE, dtype=np.uint8), (start, os.getpid())


def is_alive(pid: int | str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[..., Any], seconds: int = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_pixels_and_notes_come_whole_from_several_processes() -> None:
    with Decoders(pixels_of, workers=2) as pool:
        wanted = [rows_of_batch(start, start + 4) for start in range(0, 40, 4)]
        loaded = [future.result(60) for future in [pool.submit(batch) for batch in wanted]]
    pids = set()
    for batch, (pixels, (start, pid)) in zip(wanted, loaded, strict=True):
        assert start == batch.rows.start
        np.testing.assert_array_equal(pixels.numpy(), pixels_of(batch)[0])
        pids.add(pid)
    assert os.getpid() not in pids
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(
    ("number", "text"), [(signal.SIGKILL, "most likely memory ran out"), (signal.SIGSEGV, "died of SIGSEGV")]
)
def test_a_process_that_is_killed_is_reported_at_once_with_its_rows(number: int, text: str) -> None:
    def dies(batch: BatchRows) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        os.kill(os.getpid(), number)
        time.sleep(60)

    with Decoders(dies, workers=2) as pool:
        start = time.monotonic()
        with pytest.raises(DecoderError, match="rows 8 to 11 of train") as caught:
            pool.submit(BATCH).result(60)
        assert time.monotonic() - start < 10
    assert text in str(caught.value)


def test_a_process_that_dies_while_it_answers_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def dies_halfway(descriptor: int, data: bytes) -> int:
        if len(data) < 1_000_000:
            return real(descriptor, data)
        real(descriptor, data[: len(data) // 2])
        os._exit(3)

    monkeypatch.setattr(os, "write", dies_halfway)
    with Decoders(pixels_of, workers=1) as pool, pytest.raises(DecoderError, match="ended with exit code 3"):
        pool.submit(BATCH).result(60)


def test_what_a_process_raises_is_raised_here() -> None:
    def raises(batch: BatchRows) -> None:
        raise {0: BenchError("no such file"), 4: MemoryError(), 8: RecursionError("too deep")}[batch.rows.start]

    with Decoders(raises, workers=1) as pool:
        first, second, third = (pool.submit(rows_of_batch(start, start + 1)) for start in (0, 4, 8))
        with pytest.raises(BenchError, match="^no such file$"):
            first.result(60)
        with pytest.raises(OutOfMemoryError, match="--workers lower"):
            second.result(60)
        with pytest.raises(
            RemoteError, match=r"in a decoding process:\n[\s\S]*in raises[\s\S]*RecursionError: too deep"
        ):
            third.result(60)


def test_an_error_that_cannot_be_sent_is_sent_as_its_text() -> None:
    class Odd(BenchError):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} {two}")

    def raises(batch: BatchRows) -> None:
        raise Odd("an odd", "error")

    with Decoders(raises, workers=1) as pool, pytest.raises(BenchError, match="^an odd error$"):
        pool.submit(BATCH).result(60)


def test_closing_ends_processes_that_are_stuck_and_ignore_signals() -> None:
    with Decoders(hangs, workers=2) as pool:
        futures = [pool.submit(BATCH) for _ in range(6)]
        pids = [worker._process.pid for worker in pool._workers]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        assert all(map(is_alive, pids)), "signals of the terminal are left to the parent"
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert not any(map(is_alive, pids))
    assert all(future.done() for future in futures)


def hangs(batch: BatchRows) -> None:
    time.sleep(600)


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(2)])
@pytest.mark.parametrize("platform", [sys.platform, "another"])
def test_processes_end_with_a_parent_that_is_killed_or_exits_at_once(
    monkeypatch: pytest.MonkeyPatch, end: Callable[..., Any], platform: str
) -> None:
    monkeypatch.setattr(lifetime, "sys", SimpleNamespace(platform=platform))
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        with suppress(BaseException):
            pool = Decoders(hangs, workers=3)
            pool.submit(BATCH)
            os.write(writing, " ".join(str(worker._process.pid) for worker in pool._workers).encode())
            end()
        os._exit(3)
    os.close(writing)
    pids = os.read(reading, 100).decode().split()
    os.close(reading)
    assert len(pids) == 3
    os.waitpid(parent, 0)
    wait_until(lambda: not any(map(is_alive, pids)))


def test_a_traceback_ends_the_parent_though_the_pool_is_still_open() -> None:
    code = """if True:
        from tests.extract.test_decoders import *
        pool = Decoders(hangs, workers=2)
        pool.submit(BATCH)
        print(*(worker._process.pid for worker in pool._workers), flush=True)
        raise ZeroDivisionError
    """
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stderr.rstrip().endswith("ZeroDivisionError")
    assert ended.returncode == 1
    assert len(ended.stdout.split()) == 2
    assert not any(map(is_alive, ended.stdout.split()))


def test_too_few_file_descriptors_or_processes_are_a_message_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 12, hard))
    try:
        with pytest.raises(DecoderError, match=r"of 64 decoding processes.*Too many open files.*ulimit -n.*--workers"):
            Decoders(pixels_of, workers=64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def refuses() -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuses)
    with pytest.raises(DecoderError, match=r"only 0 of 2 .*Allow more processes"):
        Decoders(pixels_of, workers=2)


def test_nothing_is_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: Any, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("_multiprocessing.SemLock", refuses)
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", refuses)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuses)
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    with Decoders(pixels_of, workers=1) as pool:
        assert pool.submit(BATCH).result(60)[0].shape == LARGE
        assert before >= set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else True
