"""Progress of all ranks in one place, read from the feature set: a table in a terminal, a line now and then in a log.

What is done comes from the journals, so it is right however often ranks died and came again; what
each rank has in hand, and whether it lives, from the statuses that ranks post.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from featbench.pipelines.extraction.signals import NOTICE, StopRequest
from featbench.pipelines.terminal.output import console, logging_above_bar
from featbench.store import FeatureSet, RankStatus
from featbench.store.status import read_statuses

logger = logging.getLogger(__name__)

SECONDS_PER_LINE = 15.0
SECONDS_PER_LOOK = 0.5

WINDOW_S = 15.0
"""The speed "now" is that of so many seconds."""

ROOMY = 110
"""Columns of a terminal that shows more than the most important."""

SILENT_S = 60.0
"""A rank that has posted nothing for so long is shown with the time since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How far a run is."""

    rows: int
    rows_total: int
    bytes: int
    """Written since the run began."""

    rows_per_s_now: float
    rows_per_s: float
    """Since the first row."""

    ranks: tuple[RankStatus, ...]
    time: float

    @property
    def seconds_left(self) -> float | None:
        """At the overall speed; None before the first row."""
        return (self.rows_total - self.rows) / self.rows_per_s if self.rows_per_s > 0 else None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        states = [state_of(status, self.time) for status in self.ranks]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        ranks = f"; ranks: {counts}" if len(self.ranks) > 1 else ""
        return (
            f"extract: {self.rows:,} of {self.rows_total:,} rows, {self.rows_per_s_now:,.0f} rows/s now, "
            f"{self.rows_per_s:,.0f} overall{left}, {self.bytes / 2**20:,.1f} MiB written{ranks}"
        )


class Watch:
    """Looks at a run from its beginning."""

    def __init__(self, features: FeatureSet, layers: Sequence[str], run: str) -> None:
        self._features = FeatureSet.open(features.path)  # of its own: it is read in another thread
        self._layers = list(layers)
        self._run = run
        self._pending = {(work.split, work.chunk) for work in self._features.pending(self._layers)}
        self._total = self._rows(self._pending)
        self._known = set(self._features.records)
        self._seen: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None
        self._rows_seen = 0

    def look(self) -> Snapshot:
        """Read the journals and the statuses once more."""
        pending = {(work.split, work.chunk) for work in self._features.pending(self._layers)}
        ranks = tuple(read_statuses(self._features.journals, self._run))
        in_hand = sum(status.rows_in_hand for status in ranks if status.state in ("extracting", "stopping"))
        left = self._rows(pending & self._pending)
        # A chunk that was committed between the two looks is in neither; what a lost rank had in hand is lost.
        rows = self._rows_seen = max(self._rows_seen, self._total - left + min(in_hand, left))
        now = time.time()
        if self._first is None and rows:
            self._first = (now - SECONDS_PER_LOOK, 0)
        self._seen.append((now, rows))
        while len(self._seen) > 2 and self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()
        return Snapshot(
            rows=rows,
            rows_total=self._total,
            bytes=sum(record.size for key, record in self._features.records.items() if key not in self._known),
            rows_per_s_now=_rate(self._seen[0], (now, rows)),
            rows_per_s=_rate(self._first, (now, rows)) if self._first else 0.0,
            ranks=ranks,
            time=now,
        )

    def _rows(self, chunks: set[tuple[str, int]]) -> int:
        return sum(len(self._features.grid(split).rows(chunk)) for split, chunk in chunks)


@contextmanager
def watching(
    features: FeatureSet, layers: Sequence[str], run: str, *, stopping: StopRequest, quiet: bool
) -> Iterator[None]:
    """Show how far a run is for as long as the block lasts, and that it is stopping."""
    if quiet:
        yield
        return
    watch = Watch(features, layers, run)
    over = threading.Event()
    show = _show_live if sys.stderr.isatty() else _show_lines
    shower = threading.Thread(target=show, args=(watch, over, stopping), name="watch", daemon=True)
    shower.start()
    try:
        yield
    finally:
        over.set()
        shower.join(timeout=10)


def _show_lines(watch: Watch, over: threading.Event, stopping: StopRequest) -> None:
    next_line = time.monotonic() + SECONDS_PER_LINE
    while not over.wait(SECONDS_PER_LOOK):
        snapshot = watch.look()
        if time.monotonic() >= next_line:
            logger.info("%s", snapshot)
            next_line += SECONDS_PER_LINE
    logger.info("%s", watch.look())


def _show_live(watch: Watch, over: threading.Event, stopping: StopRequest) -> None:
    drawn_on = console(stderr=True)
    is_told = stopping()
    with Live(console=drawn_on, auto_refresh=False, transient=False) as live, logging_above_bar():
        stopping.on_bar = True
        try:
            while True:
                is_over = over.wait(SECONDS_PER_LOOK)
                if stopping() and not is_told:
                    is_told = True
                    drawn_on.print(NOTICE)
                live.update(render(watch.look(), width=drawn_on.width), refresh=True)
                if is_over:
                    return
        finally:
            stopping.on_bar = False


def render(snapshot: Snapshot, *, width: int) -> RenderableType:
    """Draw a bar for all, and a line for each rank if there are several; no line is longer than `width`."""
    left = "" if snapshot.seconds_left is None else f"{duration(snapshot.seconds_left)} left"
    cells: list[RenderableType] = [
        "extract",
        ProgressBar(total=max(1, snapshot.rows_total), completed=snapshot.rows),
        f"{snapshot.rows:,}/{snapshot.rows_total:,}",
        f"{snapshot.rows_per_s_now:,.0f} rows/s",
        left,
    ]
    if width >= ROOMY:
        cells += [f"{snapshot.rows_per_s:,.0f} overall", f"{snapshot.bytes / 2**20:,.1f} MiB"]
    total = Table.grid(padding=(0, 2), expand=True)
    for cell in cells:
        total.add_column(no_wrap=True, ratio=1 if isinstance(cell, ProgressBar) else None)
    total.add_row(*cells)
    if len(snapshot.ranks) < 2:
        return total
    ranks = Table.grid(padding=(0, 2))
    for _ in range(5):
        ranks.add_column(no_wrap=True)
    for status in snapshot.ranks:
        who = f"rank {status.rank}  {status.host}  pid {status.pid}"
        ranks.add_row("", who, Text(state_of(status, snapshot.time)), f"{status.rows:,} rows", status.error[:100])
    return Group(total, ranks)


def state_of(status: RankStatus, now: float) -> str:
    """What a rank does, or for how long it has not been heard of."""
    silent = now - status.time
    lives = status.state in ("starting", "extracting", "stopping")
    return f"{status.state}, silent for {duration(silent)}" if lives and silent > SILENT_S else status.state


def duration(seconds: float) -> str:
    """Write a time as people do.

    Examples
    --------
    >>> duration(42), duration(300), duration(9000)
    ('42 s', '5 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _rate(before: tuple[float, int], now: tuple[float, int]) -> float:
    return max(0, now[1] - before[1]) / max(1e-3, now[0] - before[0])
