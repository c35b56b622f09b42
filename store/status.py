"""What each rank of a run is doing, for the display of progress.

Each rank has one small file beside the journals, replaced about once a second. Nothing depends on it,
so it is neither synced nor checked; the journals say what has been committed.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from featbench.store import paths
from featbench.store.regular import read_regular


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus:
    """One rank at one moment."""

    run: str
    rank: int
    host: str
    pid: int
    state: str
    """`starting`, `extracting`, `stopping`, `done` or `failed`."""

    rows: int = 0
    """Rows that went through the model since this process started."""

    rows_in_hand: int = 0
    """Those of them that are not in a journal yet."""

    error: str = ""
    time: float = 0.0
    """Seconds since the epoch."""


_TYPES = {each.name: {"int": (int,), "float": (float, int)}.get(str(each.type), (str,)) for each in fields(RankStatus)}


def post(folder: Path, status: RankStatus) -> None:
    """Replace the rank's file; a failure is ignored, since writing chunks will fail too."""
    path = paths.status_file(folder, status.rank)
    partial = paths.partial_name(path)
    try:
        with partial.open("x") as file:
            file.write(json.dumps(asdict(status) | {"time": time.time()}))
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read_statuses(folder: Path, run: str) -> list[RankStatus]:
    """Return the last status of each rank of a run, by rank."""
    found = []
    for path in paths.status_files(folder):
        try:
            status = RankStatus(**json.loads(read_regular(path)))
        except (OSError, ValueError, TypeError, RecursionError):  # it is being replaced
            continue
        if all(type(value) in _TYPES[name] for name, value in asdict(status).items()):
            found.append(status)
    return [status for status in found if status.run == run]


def forget_statuses(folder: Path) -> None:
    """Remove the files of earlier runs."""
    for path in paths.status_files(folder):
        path.unlink(missing_ok=True)


class Reporter:
    """Posts one rank's status: at once if its state changes or a chunk is committed, else at most once a second."""

    def __init__(self, folder: Path, status: RankStatus) -> None:
        self._folder = folder
        self._status = status
        self._next = 0.0
        self._lock = threading.Lock()  # chunks are committed in the writer thread

    def change(self, state: str, error: str = "") -> None:
        """Set what the rank is doing."""
        self._add(state=state, error=error)

    def processed(self, rows: int) -> None:
        """Count rows that have gone through the model."""
        self._add(rows=rows, rows_in_hand=rows)

    def committed(self, rows: int) -> None:
        """Count rows that are now in a journal."""
        self._add(rows_in_hand=-rows)

    def _add(self, *, rows: int = 0, rows_in_hand: int = 0, state: str | None = None, error: str = "") -> None:
        with self._lock:
            before = self._status
            self._status = replace(
                before,
                rows=before.rows + rows,
                rows_in_hand=before.rows_in_hand + rows_in_hand,
                state=state or before.state,
                error=error,
            )
            # At once if a chunk is now in a journal, or its rows would be counted twice.
            if state is not None or rows_in_hand < 0 or time.monotonic() >= self._next:
                post(self._folder, self._status)
                self._next = time.monotonic() + 1.0
