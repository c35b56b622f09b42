"""How long a process lives that another one has started: no longer than that one, however it ends."""

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
    """End this process at once when its parent ends, a SIGKILL included; nothing in a process that has none.

    On Linux the kernel does it. Besides, and elsewhere, a thread waits for the end of the pipe whose
    other end only the parent holds; it also sees a parent that ended before the kernel was asked.
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
