"""Who may write: one run at a time, and of its ranks one for each chunk.

A lock file holds nothing but who came first; what counts are the operating system's locks on its
bytes, which end with the process that holds them, however that ends. Byte 0 is the run: the first
of its processes holds it alone while it prepares the feature set, then shares it with the others,
and a process of another run is refused. The other bytes are claims, one for each chunk and one for
each journal. Nothing is sent from process to process, so ranks may come, go and die at any time, on
any host that sees the file and its locks.
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

from featbench.store.durable import cannot_write
from featbench.store.errors import StoreError
from featbench.store.regular import open_regular

PATIENCE_S = 5.0
"""How long the file may name another run than that of the process which has just taken the lock."""

JOURNALS = 1
"""Place of the first journal's claim."""

CHUNKS = 2**20
"""Place of the first chunk's claim."""

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

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, for {(time.time() - self.since) / 60:.0f} min"


class RunLock:
    """One process's part of the lock; made by `join_run`."""

    def __init__(self, path: Path, descriptor: int, *, is_first: bool) -> None:
        self._path = path
        self._descriptor = descriptor
        self._claimed: set[int] = set()
        self.is_first = is_first
        """Whether this process is alone, so that it may prepare the feature set; `share` lets the others in."""

    def is_current(self) -> bool:
        """Whether the file that is locked is still the one that others would lock."""
        return _is_current(self._path, self._descriptor)

    def share(self) -> None:
        """Let the other processes of the run in; chunks may be written from here on."""
        _lock(self._descriptor, fcntl.F_RDLCK, 0)
        self.is_first = False

    def claim(self, place: int) -> bool:
        """Take a place for this process, unless someone has it, itself included."""
        if place in self._claimed or not _lock(self._descriptor, fcntl.F_WRLCK, place):
            return False
        self._claimed.add(place)
        return True

    def claim_journal(self, rank: int) -> int:
        """Return the number of a journal that is now this process's own: its rank's, or the next free one."""
        while not self.claim(JOURNALS + rank):
            rank += 1
        return rank

    def release(self, place: int) -> None:
        """Give a place back."""
        _lock(self._descriptor, fcntl.F_UNLCK, place)
        self._claimed.discard(place)


@contextmanager
def join_run(path: Path, run: str) -> Iterator[RunLock]:
    """Be one of the processes of a run, the only one that may write to a feature set.

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
    deadline = time.monotonic() + PATIENCE_S
    while True:
        descriptor = _open(path)
        try:
            is_first = _lock(descriptor, fcntl.F_WRLCK, 0)
            is_in = is_first or _lock(descriptor, fcntl.F_RDLCK, 0)
            if is_in and _is_current(path, descriptor):
                if is_first:
                    _name_holder(descriptor, run)
                holder = _holder(descriptor)
                if holder is not None and holder.run == run:
                    yield RunLock(path, descriptor, is_first=is_first)
                    return
                raise StoreError(_taken(path, holder))
            holder = _holder(descriptor)
            if not is_in and (holder is None or holder.run != run) and time.monotonic() > deadline:
                raise StoreError(_taken(path, holder))
        finally:
            _descriptors.discard(descriptor)
            os.close(descriptor)
        time.sleep(0.1)  # the first one is still preparing


def _open(path: Path) -> int:
    if not hasattr(fcntl, "F_OFD_SETLK"):
        raise StoreError(
            f"{path.parent.parent}: this system has no locks of open files (F_OFD_SETLK; Linux has them), without "
            f"which two runs could write to one feature set at a time. Write to it on Linux; reading works anywhere."
        )
    if path.is_symlink() or path.parent.is_symlink() or (path.exists() and not path.is_file()):
        raise StoreError(
            f"{path}: a symbolic link, or something else that is no file, is in its place; nothing is written through "
            f"it. Remove it"
        )
    try:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error
    _descriptors.add(descriptor)
    return descriptor


def _lock(descriptor: int, kind: int, place: int) -> bool:
    """Set or clear the lock on one byte; False if another process has it."""
    try:
        # A lock of the open file. POSIX's older ones end when any part of the process closes the file, and two
        # parts of one process never keep each other out: with those, two runs could hold the lock.
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, place, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise StoreError(
            f"the file system of the feature set gives no locks ({error.strerror}), without which two ranks could "
            f"write the same chunk. Mount it with locks (NFS: without `nolock`; Lustre: with `flock`), or take another "
            f"--store."
        ) from error
    return True


def _is_current(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked is still the one at this path: the feature set may have been replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _name_holder(descriptor: int, run: str) -> None:
    holder = Holder(run=run, host=socket.gethostname(), pid=os.getpid(), since=time.time())
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def _holder(descriptor: int) -> Holder | None:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        holder = Holder(run=content["run"], host=content["host"], pid=content["pid"], since=float(content["since"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return holder if isinstance(holder.run, str) and isinstance(holder.pid, int) else None


def _taken(path: Path, holder: Holder | None) -> str:
    who = "an unknown process" if holder is None else str(holder)
    return f"{path.parent.parent}: another extraction is writing to it: {who}. Wait for it, or stop it."


def _forget_in_child() -> None:
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_forget_in_child)
