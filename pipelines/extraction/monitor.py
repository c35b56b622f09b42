"""Progress of all ranks in one place, read from the feature set: a table in a terminal, a line now and then in a log.

Completed chunks are counted from the journals, so the count is right however often ranks were restarted; rows of
unfinished chunks, and whether a rank is alive, come from the statuses that ranks post.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from featbench.pipelines.extraction.signals import NOTICE, StopRequest
from featbench.pipelines.terminal.output import console, logging_above_bar
from featbench.pipelines.terminal.progress import SECONDS_PER_LINE, Reading, SpeedMeter, duration
from featbench.store import FeatureSet, RankStatus
from featbench.store.status import read_statuses

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two looks at journals and statuses."""

WIDE_COLUMNS = 110
"""A terminal at least this wide also shows the overall speed and what was written."""

SILENT_S = 60.0
"""A rank that has posted nothing for this long is shown with the time since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Reading):
    """How far a run is."""

    bytes: int
    """Written since the run began."""

    ranks: tuple[RankStatus, ...]
    time: float

    def __str__(self) -> str:
        states = [state_of(status, self.time) for status in self.ranks]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        ranks = f"; ranks: {counts}" if len(self.ranks) > 1 else ""
        return f"{Reading.__str__(self)}, {self.bytes / 2**20:,.1f} MiB written{ranks}"


class Watch:
    """Counts the rows of a run, from its beginning."""

    def __init__(self, features: FeatureSet, layers: Sequence[str], run: str) -> None:
        self._features = FeatureSet.open(features.path)  # not the caller's: it is read in another thread
        self._layers = list(layers)
        self._run = run
        self._pending = self._features.pending(self._layers)
        self._total = self._pending.num_rows
        self._bytes_before = self._features.records.num_bytes
        self._meter = SpeedMeter()
        self._rows_seen = 0

    def look(self) -> Snapshot:
        """Read the journals and the statuses once more."""
        pending = self._features.pending(self._layers, trust_sizes=True)
        ranks = tuple(read_statuses(self._features.journals, self._run))
        unfinished = sum(status.rows_in_hand for status in ranks if status.state in ("extracting", "stopping"))
        left = self._total - self._pending.without(pending).num_rows
        # A chunk that was committed between the two reads is in neither; a lost rank's unfinished rows are lost.
        rows = self._rows_seen = max(self._rows_seen, self._total - left + min(unfinished, left))
        now = time.time()
        rows_per_s_now, rows_per_s = self._meter.add(now, rows, began=now - POLL_S)
        return Snapshot(
            what="extract",
            rows=rows,
            rows_total=self._total,
            bytes=self._features.records.num_bytes - self._bytes_before,
            rows_per_s_now=rows_per_s_now,
            rows_per_s=rows_per_s,
            ranks=ranks,
            time=now,
        )


@contextmanager
def watching(
    features: FeatureSet, layers: Sequence[str], run: str, *, stopping: StopRequest, quiet: bool
) -> Iterator[None]:
    """Show how far a run is while the block runs, and that it is stopping."""
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
    while not over.wait(POLL_S):
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
                is_over = over.wait(POLL_S)
                if stopping() and not is_told:
                    is_told = True
                    drawn_on.print(NOTICE)
                live.update(render(watch.look(), width=drawn_on.width), refresh=True)
                if is_over:
                    return
        finally:
            stopping.on_bar = False


def render(snapshot: Snapshot, *, width: int) -> RenderableType:
    """Draw a bar for the run, and a line for each rank if there are several; no line is longer than `width`."""
    details = (f"{snapshot.rows_per_s:,.0f} overall", f"{snapshot.bytes / 2**20:,.1f} MiB")
    total = snapshot.bar(*(details if width >= WIDE_COLUMNS else ()))
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
    """Return the state of a rank, with the time since its last status if that was long ago."""
    silent = now - status.time
    lives = status.state in ("starting", "extracting", "stopping")
    return f"{status.state}, silent for {duration(silent)}" if lives and silent > SILENT_S else status.state
