"""Makes a child process end with its parent, however the parent ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait

PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


def end_with_parent() -> None:
    """End this process at once when its parent ends, even by SIGKILL; does nothing without a parent.

    On Linux, the kernel does it. In addition, on all systems, a thread waits until the pipe to the parent
    is closed; this also covers a parent that ended before the kernel was asked.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_end_after, args=(parent.sentinel,), name="lifetime", daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
