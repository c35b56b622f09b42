"""Progress on stderr: a bar in a terminal, a line now and then in a log, nothing with --quiet; for both stages.

`Reading` is how far a task is, with a line and a bar; `SpeedMeter` measures its speeds. Stage one reads both from the
feature set (`featbench.pipelines.extraction.monitor`); a task of this process counts its rows itself (`Progress`).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from featbench.pipelines.terminal.output import console, logging_above_bar

if TYPE_CHECKING:
    from featbench.evaluate.clustering.lloyd import Iteration

logger = logging.getLogger(__name__)

SECONDS_PER_LINE = 15.0
"""Between two lines of a log."""

WINDOW_S = 15.0
"""The current speed is that of the last seconds."""

SPINNER = "|/-\\"
"""Signs that show in turn that work goes on."""

LEAST_S = 1e-3
"""Shortest time that a speed is computed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How far a task is."""

    what: str
    rows: int
    rows_total: int
    rows_per_s_now: float
    rows_per_s: float
    """Since the first row."""

    @property
    def seconds_left(self) -> float | None:
        """At the overall speed; None before the first row."""
        return (self.rows_total - self.rows) / self.rows_per_s if self.rows_per_s > 0 else None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        return (
            f"{self.what}: {self.rows:,} of {self.rows_total:,} rows, {self.rows_per_s_now:,.0f} rows/s now, "
            f"{self.rows_per_s:,.0f} overall{left}"
        )

    def bar(self, *more: str, what: str | None = None) -> RenderableType:
        """Draw a line as wide as the terminal: a bar, counts, speed and time left; `more` comes last."""
        left = "" if self.seconds_left is None else f"{duration(self.seconds_left)} left"
        cells: Sequence[RenderableType] = (
            self.what if what is None else what,
            ProgressBar(total=max(1, self.rows_total), completed=self.rows),
            f"{self.rows:,}/{self.rows_total:,}",
            f"{self.rows_per_s_now:,.0f} rows/s",
            left,
            *more,
        )
        line = Table.grid(padding=(0, 2), expand=True)
        for cell in cells:
            line.add_column(no_wrap=True, ratio=1 if isinstance(cell, ProgressBar) else None)
        line.add_row(*cells)
        return line


class SpeedMeter:
    """Measures rows per second, now and overall, from counts that never decrease."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None

    def add(self, now: float, rows: int, *, began: float) -> tuple[float, float]:
        """Return the speeds now and since the first row, which was computed since `began`."""
        if self._first is None and rows:
            self._first = (began, 0)
        self._recent.append((now, rows))
        while len(self._recent) > 2 and self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()
        return _speed(self._recent[0], (now, rows)), _speed(self._first, (now, rows)) if self._first else 0.0


class Progress:
    """Shows how far tasks of this process are."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one task of `total` rows; yields the function to call with the number of rows just done."""
        if self.quiet:
            yield lambda rows: None
            return
        counter = _Counter(what, total)
        if not sys.stderr.isatty():
            with _lines(counter):
                yield counter.count
            return
        with (
            Live(console=console(stderr=True), get_renderable=counter.bar) as live,
            logging_above_bar(),
        ):
            yield counter.count
            live.transient = not counter.finish()

    @contextmanager
    def iterations(self) -> Iterator[KmeansProgress]:
        """Show k-means: a bar for each pass in a terminal, a line now and then in a log."""
        shown = KmeansProgress(is_logged=not self.quiet and not sys.stderr.isatty())
        if self.quiet or shown.is_logged:
            yield shown
            return
        with (
            Live(console=console(stderr=True), get_renderable=shown.bar, transient=True),
            logging_above_bar(),
        ):
            yield shown


class KmeansProgress:
    """How far k-means is; a `featbench.evaluate.clustering.cached.Watcher`."""

    def __init__(self, *, is_logged: bool = False) -> None:
        self.is_logged = is_logged
        self._what = ""
        self._counter = _Counter("", 0)
        self._last: Iteration | None = None
        self._last_line = time.monotonic()

    def start(self, what: str, num_rows: int) -> None:
        """See `Watcher`."""
        self._what, self._counter, self._last = what, _Counter(what, num_rows), None

    def rows(self, count: int) -> None:
        """See `Watcher`."""
        self._counter.count(count)
        self._log_if_due()

    def iteration(self, iteration: Iteration) -> None:
        """See `Watcher`."""
        self._last = iteration
        self._log_if_due()
        self._counter = _Counter(self._what, self._counter.reading.rows_total)

    def bar(self) -> RenderableType:
        """Draw the pass that is running."""
        return Group(Text(self._text(), no_wrap=True, overflow="ellipsis"), self._counter.reading.bar(what="  pass"))

    def _text(self) -> str:
        if self._last is None:
            return self._what
        if self._last.moved is None:
            return f"{self._what}: batch {self._last.number:,}, objective {self._last.objective:.6g}"
        return (
            f"{self._what}: iteration {self._last.number}, objective {self._last.objective:.6g}, "
            f"{self._last.moved:,} rows moved"
        )

    def _log_if_due(self) -> None:
        if self.is_logged and time.monotonic() - self._last_line >= SECONDS_PER_LINE:
            self._last_line = time.monotonic()
            reading = replace(self._counter.reading, what="this pass")
            logger.info("%s; %s", self._text(), reading)


@contextmanager
def _lines(counter: _Counter) -> Iterator[None]:
    """Log how far a task is now and then, and, if anything was counted, when it is done."""
    over = threading.Event()

    def show() -> None:
        while not over.wait(SECONDS_PER_LINE):
            logger.info("%s", counter.reading)

    shower = threading.Thread(target=show, name="progress", daemon=True)
    shower.start()
    try:
        yield
    finally:
        over.set()
        shower.join()
    if counter.finish():
        logger.info("%s", counter.reading)


class _Counter:
    """Counts the rows of a task."""

    def __init__(self, what: str, total: int) -> None:
        self.reading = Reading(what=what, rows=0, rows_total=total, rows_per_s_now=0.0, rows_per_s=0.0)
        self._meter = SpeedMeter()
        self._began = time.monotonic()
        self._is_over = False
        self._meter.add(self._began, 0, began=self._began)

    def count(self, rows: int) -> None:
        what, total, done = self.reading.what, self.reading.rows_total, self.reading.rows + rows
        now, overall = self._meter.add(time.monotonic(), done, began=self._began)
        self.reading = Reading(what=what, rows=done, rows_total=total, rows_per_s_now=now, rows_per_s=overall)

    def bar(self) -> RenderableType:
        """Draw the task; a sign turns until it is done, also while no row is counted."""
        sign = "" if self._is_over else SPINNER[int(time.monotonic() * 4) % len(SPINNER)] + " "
        return self.reading.bar(what=f"{sign}{self.reading.what}")

    def finish(self) -> bool:
        """Count the rest, if anything was counted; returns whether it was."""
        self._is_over = True
        if self.reading.rows:
            self.reading = replace(self.reading, rows=self.reading.rows_total)
        return self.reading.rows > 0


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


def _speed(before: tuple[float, int], now: tuple[float, int]) -> float:
    return max(0, now[1] - before[1]) / max(LEAST_S, now[0] - before[0])
