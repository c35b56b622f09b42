"""One extraction at a time into one feature set.

A small file names who is writing. It is taken over when that process no longer exists on this
host; a live one, or one on another host, is refused by name.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.durable import cannot_write
from store.errors import StoreError


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`.

    Raises
    ------
    StoreError
        If another process holds it.
    """
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
    try:
        _take(path, owner)
    except FileExistsError:
        _refuse_a_living_owner(path)
        path.unlink(missing_ok=True)
        try:
            _take(path, owner)
        except FileExistsError:
            _refuse_a_living_owner(path)
            raise
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path, owner: str) -> None:
    # Written aside and linked into place: the lock appears whole or not at all, and only if there is none.
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(owner)
    try:
        os.link(aside, path)
    finally:
        aside.unlink()


def _refuse_a_living_owner(path: Path) -> None:
    """Return if the owner is dead for certain."""
    try:
        owner = json.loads(path.read_text())
        host, pid, since = str(owner["host"]), int(owner["pid"]), float(owner["since"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not a lock file. If no extraction is running, delete it.") from error
    if host == socket.gethostname() and not _alive(pid):
        return
    minutes = (time.time() - since) / 60
    raise StoreError(
        f"{path.parent.parent}: another extraction is writing to it: process {pid} on {host}, for {minutes:.0f} min. "
        f"Wait for it or stop it; if it is gone for certain, delete {path}."
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
