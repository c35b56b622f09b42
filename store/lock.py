"""One extraction at a time into one feature set.

The lock is the operating system's (flock), so it ends with the process that holds it, however that
ends; the file beside it only names the holder. It stays when the lock is released.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.durable import cannot_write
from store.errors import StoreError

PATIENCE_S = 15.0
"""How long the loading processes of a killed extraction may take to notice, and let go of what they inherited."""


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`.

    Raises
    ------
    StoreError
        If another process holds it; the message names its host, pid and age.
    """
    try:
        file = path.open("a+")
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error
    with file:
        deadline = time.monotonic() + PATIENCE_S
        while not _try(file.fileno()):
            if _is_alive(path) or time.monotonic() > deadline:
                raise StoreError(_taken(path))
            time.sleep(0.2)
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}))
        file.flush()
        yield


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> tuple[str, int, float] | None:
    try:
        holder = json.loads(path.read_text())
        return str(holder["host"]), int(holder["pid"]), float(holder["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_alive(path: Path) -> bool:
    """Whether the holder may still be running; one on another host, or unknown, may."""
    holder = _holder(path)
    if holder is None or holder[0] != socket.gethostname():
        return True
    try:
        os.kill(holder[1], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _taken(path: Path) -> str:
    holder = _holder(path)
    who = "by an unknown process"
    if holder is not None:
        host, pid, since = holder
        who = f"by process {pid} on {host}, for {(time.time() - since) / 60:.0f} min"
    return f"{path.parent.parent}: another extraction is writing to it: {who}. Wait for it, or stop it."
