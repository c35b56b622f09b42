"""Whether the locks of a file system hold: one process locks a file, and another tries to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from featbench.store.lock import exclusive

_TRY = """
import sys, pathlib
from featbench.store.lock import exclusive
with exclusive(pathlib.Path(sys.argv[1])) as is_mine:
    print("got" if is_mine else "refused")
"""

TIMEOUT_S = 60


def locks_hold(folder: Path) -> bool:
    """Whether a lock in a folder keeps another process of this host out, and is free once it is released.

    Parameters
    ----------
    folder : Path
        Writable; a file is made in it, and removed.

    Raises
    ------
    StoreError
        If the file system has no locks, or the file can't be written.
    """
    path = folder / "lock"
    try:
        with exclusive(path) as is_mine:
            while_held = _other_process(path)
        return is_mine and while_held == "refused" and _other_process(path) == "got"
    finally:
        path.unlink(missing_ok=True)


def _other_process(path: Path) -> str:
    tried = subprocess.run(
        [sys.executable, "-P", "-c", _TRY, str(path)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return tried.stdout.strip() or tried.stderr.strip()
