"""Processes that decode batches, without losing any.

Each has a socket pair to this process, and a thread here sends it the rows of a batch and reads the
pixels directly into the batch. If a process ends for any reason, its socket is closed, so the thread
notices at once. torch's DataLoader passes batches through shared memory, from a thread of the worker:
if /dev/shm is too small or missing, or file descriptors run out, that thread drops the batch and the
parent waits forever (pytorch#1355, pytorch#5040). Nothing here uses /dev/shm, not even a semaphore.
"""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featbench.extract.errors import DecoderError, OutOfMemoryError, RemoteError
from featbench.extract.lifetime import end_with_parent
from featbench.extract.memory import is_out_of_memory
from featbench.store import BenchError, Work
from featbench.store.layout import RowRange
from featbench.store.typing import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Which images a batch holds: consecutive rows of one chunk."""

    work: Work
    """The chunk that they belong to."""

    rows: RowRange
    is_last: bool = False
    """Whether the chunk is complete with them."""

    @property
    def split(self) -> str:
        return self.work.split


Load = Callable[[BatchRows], tuple[Bytes, Any]]
"""Returns the pixels of a batch, shape (B, 3, H, W), and further information about them."""

Loaded = tuple[Tensor, Any]
"""The pixels, uint8 of shape (B, 3, H, W), and the further information."""

_Request = tuple[Future[Loaded], BatchRows]

JOIN_S = 10.0
"""Seconds to wait for the end of a process that was killed."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ADVICE = {
    errno.EMFILE: "Allow more open files (`ulimit -n`)",
    errno.ENFILE: "Allow more open files (sysctl fs.file-max)",
    errno.EAGAIN: "Allow more processes (`ulimit -u`, or the container's pids limit)",
    errno.ENOMEM: "Free some memory",
}


class Decoders:
    """Processes that run `load`; a context manager, on whose exit they end.

    Parameters
    ----------
    load : callable
        What each process does.
    workers : int
        How many processes.
    pin_memory : bool
        Whether the pixels will be copied to a GPU.

    Raises
    ------
    DecoderError
        If not all can be started.
    """

    def __init__(self, load: Load, *, workers: int, pin_memory: bool = False) -> None:
        self._pin_memory = pin_memory
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        atexit.register(self.close)  # runs before multiprocessing's handler, which would wait for them
        try:
            for _ in range(workers):
                self._workers.append(_Worker(load))
        except OSError as error:
            self.close()
            advice = _ADVICE.get(error.errno or 0, "Resolve that")
            raise DecoderError(
                f"only {len(self._workers)} of {workers} decoding processes could be started: {error.strerror}. "
                f"{advice}, or set --workers lower (0 decodes in the process that runs the model)."
            ) from error
        except BaseException:
            self.close()
            raise
        self._threads = [  # daemon threads: the interpreter would wait for those of an executor
            threading.Thread(target=self._attend, args=(worker,), name="decoder", daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, batch: BatchRows) -> Future[Loaded]:
        """Have a batch loaded by the next process that is free.

        The future raises what `load` raised if that is a `BenchError`; DecoderError if the process died;
        OutOfMemoryError; and RemoteError for any other error.
        """
        future: Future[Loaded] = Future()
        self._requests.put((future, batch))
        return future

    def close(self) -> None:
        """End all processes at once; nothing in them is needed any more."""
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.kill()
        with suppress(Empty):
            while request := self._requests.get_nowait():
                request[0].cancel()
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.close()

    def _attend(self, worker: _Worker) -> None:
        """Pass requests to one process, one batch at a time; runs in a thread."""
        while request := self._requests.get():
            future, batch = request
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(worker.load(batch, pin_memory=self._pin_memory))
                except BaseException as error:  # raised to whoever waits for the future
                    future.set_exception(error)


class _Worker:
    """The parent's end of one process."""

    def __init__(self, load: Load) -> None:
        # A forked process shares the listing of the images, which may take gigabytes.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        try:
            self._process = context.Process(target=_serve, args=(load, theirs), name="decoder", daemon=True)
            with _signals_held_back():
                self._process.start()
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()  # otherwise the end of the process would not close the connection

    def load(self, batch: BatchRows, *, pin_memory: bool) -> Loaded:
        """Have a batch loaded, and wait for it."""
        try:
            self._connection.send(batch)
            fault, shape, note = pickle.loads(self._connection.recv_bytes())
            if fault is not None:
                raise fault
            pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
            _receive(self._connection.fileno(), pixels.numpy().data.cast("B"))
        except (EOFError, OSError) as error:
            raise DecoderError(self._death(batch)) from error
        return pixels, note

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.join(JOIN_S)
        self._connection.close()

    def _death(self, batch: BatchRows) -> str:
        self._process.join(JOIN_S)
        where = f"while it read rows {batch.rows.start} to {batch.rows.stop - 1} of {batch.split}"
        safe = "What was committed is safe; the same command goes on from there."
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return (
                f"a decoding process was killed (SIGKILL) {where}: most likely memory ran out (`dmesg` says so). "
                f"Set --workers lower, or give it more memory. {safe}"
            )
        how = f"ended with exit code {code}" if code is None or code >= 0 else f"died of {signal.Signals(-code).name}"
        return (
            f"a decoding process {how} {where}. If it happens again there, one of these images crashes the decoder: "
            f"find it with --workers 0 and remove it. {safe}"
        )


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block signals until a new process ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(descriptor: int, into: memoryview) -> None:
    while into:
        count = os.readv(descriptor, [into])
        if not count:
            raise EOFError
        into = into[count:]


def _serve(load: Load, connection: Connection) -> None:
    """Run in the process until it is killed or the parent ends."""
    end_with_parent()
    # Ctrl-C reaches the whole process group, but the parent still needs the batches of its chunk.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    torch.set_num_threads(1)  # OpenMP's threads do not exist after a fork
    while True:
        try:
            head, pixels = _answer(load, connection.recv())
            connection.send_bytes(head)
            while pixels:
                pixels = pixels[os.write(connection.fileno(), pixels) :]
        except (EOFError, OSError):  # the parent no longer needs it
            return


def _answer(load: Load, batch: BatchRows) -> tuple[bytes, memoryview]:
    """Return what is sent for a batch: (error, shape, note), and the pixels."""
    try:
        pixels, note = load(batch)
        return pickle.dumps((None, pixels.shape, note)), np.ascontiguousarray(pixels).data.cast("B")
    except Exception as error:
        return pickle.dumps((_portable(error), None, None)), memoryview(b"")


def _portable(error: Exception) -> Exception:
    """Convert an error to one that can be pickled."""
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "a decoding process ran out of memory. Set --workers lower, or give it more memory. "
            "What was committed is safe; the same command goes on from there."
        )
    if isinstance(error, BenchError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return BenchError(str(error))
        return error
    return RemoteError(f"in a decoding process:\n{traceback.format_exc()}")
