"""Who may write: one run at a time, and of its ranks one for each chunk.

A lock file only names the process that came first. What counts are the operating system's locks on
its bytes, which end with the process that holds them, however it ends. Byte 0 stands for the run: its
first process holds it exclusively while it prepares the feature set, then shares it with the other
processes of the run; processes of other runs are refused. The other bytes are claims, one for each
chunk and one for each journal. Processes exchange no messages, so ranks may come, go and die at any
time, on any host that sees the file and its locks.

The contents of a chunk's byte say whether a process of this run has begun to journal it: a mark. Without one, a process
that has claimed the chunk, and has read the journals since it joined the run, need not read all of them again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from featbench.store.durable import cannot_write
from featbench.store.errors import StoreError
from featbench.store.regular import open_regular
from featbench.store.typing import Bools

PATIENCE_S = 5.0
"""How long to wait while the file still names a run whose process has just given up the lock."""

RUN_BYTE = 0
FIRST_JOURNAL_BYTE = 1
FIRST_CHUNK_BYTE = 2**20
"""Bytes of the lock file that are locked: for the run, and for each journal and chunk from these on."""

HOLDER_BYTES = 4096
"""Bytes at the beginning of the file that name the process which came first: JSON, padded with spaces."""

_descriptors: set[int] = set()
"""Open lock files. A forked process (one that decodes images) must not keep its parent's locks alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that took the lock first."""

    run: str
    host: str
    pid: int
    since: float
    """Seconds since the epoch."""

    marks: bool = False
    """Whether all processes of the run mark chunks before they journal them; earlier versions do not."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, for {(time.time() - self.since) / 60:.0f} min"


class RunLock:
    """The lock as one process of the run holds it; made by `join_run`."""

    def __init__(self, path: Path, descriptor: int, *, is_first: bool, has_marks: bool = False) -> None:
        self._path = path
        self._descriptor = descriptor
        self._claimed: set[int] = set()
        self.is_first = is_first
        """Whether this process holds the lock exclusively, to prepare the feature set; `share` lets the others in."""
        self.has_marks = has_marks
        """Whether a chunk without a mark has not been journalled since the run began."""

    def is_current(self) -> bool:
        """Whether the file that is locked is still the one that others would lock."""
        return _is_current(self._path, self._descriptor)

    def share(self) -> None:
        """Let the other processes of the run in; from here on, chunks may be written."""
        _lock(self._descriptor, fcntl.F_RDLCK, RUN_BYTE)
        self.is_first = False

    def claim(self, byte: int) -> bool:
        """Claim a byte for this process; False if any process has it, including this one."""
        if byte in self._claimed or not _lock(self._descriptor, fcntl.F_WRLCK, byte):
            return False
        self._claimed.add(byte)
        return True

    def claim_chunk(self, number: int) -> bool:
        """Claim a chunk by its number among all chunks of the feature set."""
        return self.claim(FIRST_CHUNK_BYTE + number)

    def claim_journal(self, rank: int) -> int:
        """Claim the journal of this rank, or the next free one; returns its number."""
        while not self.claim(FIRST_JOURNAL_BYTE + rank):
            rank += 1
        return rank

    def release_chunk(self, number: int) -> None:
        """Release a claimed chunk."""
        self.release(FIRST_CHUNK_BYTE + number)

    def mark_chunk(self, number: int) -> None:
        """Mark a claimed chunk, durably, before it is journalled.

        Raises
        ------
        OSError
            If writing fails.
        """
        os.pwrite(self._descriptor, b"\1", FIRST_CHUNK_BYTE + number)
        os.fsync(self._descriptor)

    def is_marked(self, number: int) -> bool:
        """Whether a claimed chunk is marked; locking its byte has renewed what this host knows of the file."""
        return os.pread(self._descriptor, 1, FIRST_CHUNK_BYTE + number) == b"\1"

    def marks(self, count: int) -> Bools:
        """Return the marks of the first chunks; on a network file system they may be some seconds old."""
        found = np.zeros(count, np.bool_)
        content = os.pread(self._descriptor, count, FIRST_CHUNK_BYTE)
        found[: len(content)] = np.frombuffer(content, np.uint8) == 1
        return found

    def release(self, byte: int) -> None:
        """Release a claimed byte."""
        _lock(self._descriptor, fcntl.F_UNLCK, byte)
        self._claimed.discard(byte)


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock of a file of its own; yields False, without waiting, if another process has it.

    Raises
    ------
    StoreError
        If the file can't be written, or the file system has no locks.
    """
    with _opened(path) as descriptor:
        yield _lock(descriptor, fcntl.F_WRLCK, RUN_BYTE)


@contextmanager
def without_run(path: Path) -> Iterator[None]:
    """Keep all runs out, to remove what the lock file belongs to; writes nothing, so that a full disk can be cleared.

    Parameters
    ----------
    path : Path
        The lock file of `join_run`.

    Raises
    ------
    StoreError
        If a run holds the lock, or the file system has no locks.
    """
    with _opened(path) as descriptor:
        if not (_lock(descriptor, fcntl.F_WRLCK, RUN_BYTE) and _is_current(path, descriptor)):
            raise StoreError(_taken(path, _holder(descriptor)))
        yield


@contextmanager
def join_run(path: Path, run: str) -> Iterator[RunLock]:
    """Join a run as one of its processes; only one run at a time may write to a feature set.

    Parameters
    ----------
    path : Path
        The lock file.
    run : str
        The same for all processes that work together, and for no others.

    Raises
    ------
    StoreError
        If another run holds the lock, naming its host, pid and age; or if the file system has no locks.
    """
    deadline, num_refused = time.monotonic() + PATIENCE_S, 0
    while True:
        with _opened(path) as descriptor:
            is_first = _lock(descriptor, fcntl.F_WRLCK, RUN_BYTE)
            is_in = is_first or _lock(descriptor, fcntl.F_RDLCK, RUN_BYTE)
            if is_in and _is_current(path, descriptor):
                if is_first:
                    _name_holder(descriptor, run)
                holder = _holder(descriptor)
                if holder is not None and holder.run == run:
                    yield RunLock(path, descriptor, is_first=is_first, has_marks=holder.marks)
                    return
                num_refused += 1
                if num_refused > 1:  # once, the other run may have ended between the two attempts to lock
                    raise StoreError(_taken(path, holder))
                continue
            holder = _holder(descriptor)
            if not is_in and (holder is None or holder.run != run) and time.monotonic() > deadline:
                raise StoreError(_taken(path, holder))
        time.sleep(0.1)  # the first one is still preparing


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = _open(path)
    try:
        yield descriptor
    finally:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _open(path: Path) -> int:
    if not hasattr(fcntl, "F_OFD_SETLK"):
        raise StoreError(
            f"{path.parent.parent}: this system has no locks of open files (F_OFD_SETLK), so two runs could write to "
            f"one feature set at the same time. Write to it on Linux; reading works on any system."
        )
    if path.is_symlink() or path.parent.is_symlink() or (path.exists() and not path.is_file()):
        raise StoreError(
            f"{path}: expected a regular file, got a symbolic link or something else; nothing was written through it. "
            f"Remove it."
        )
    try:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error
    _descriptors.add(descriptor)
    return descriptor


def _lock(descriptor: int, kind: int, byte: int) -> bool:
    """Set or clear the lock on one byte; False if another process has it."""
    try:
        # A lock of the open file. POSIX's older ones end when any part of the process closes the file, and two
        # parts of one process never keep each other out: with those, two runs could hold the lock.
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise StoreError(
            f"the file system of the feature set has no locks ({error.strerror}), so two ranks could write the same "
            f"chunk. Mount it with locks (NFS: without `nolock`; Lustre: with `flock`), or choose another --store."
        ) from error
    return True


def _is_current(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked is still the one at this path: the feature set may have been replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _name_holder(descriptor: int, run: str) -> None:
    holder = Holder(run=run, host=socket.gethostname(), pid=os.getpid(), since=time.time(), marks=True)
    os.ftruncate(descriptor, 0)  # also removes all marks
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode().ljust(HOLDER_BYTES), 0)


def _holder(descriptor: int) -> Holder | None:
    try:
        content = json.loads(os.pread(descriptor, HOLDER_BYTES, 0))
        holder = Holder(
            run=content["run"],
            host=content["host"],
            pid=content["pid"],
            since=float(content["since"]),
            marks=content.get("marks") is True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return holder if isinstance(holder.run, str) and isinstance(holder.pid, int) else None


def _taken(path: Path, holder: Holder | None) -> str:
    who = "an unknown process" if holder is None else str(holder)
    return f"{path.parent.parent}: another extraction is writing to it: {who}. Wait for it to end, or stop it."


def _forget_in_child() -> None:
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_forget_in_child)
