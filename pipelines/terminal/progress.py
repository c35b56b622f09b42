"""Progress on stderr: a bar in a terminal, a line now and then in a log file, nothing with --quiet."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from featbench.pipelines.terminal.output import console, logging_above_bar

logger = logging.getLogger(__name__)

SECONDS_PER_LINE = 15.0


class Progress:
    """Shows how far a task is."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one task of `total` rows; yields the function to call with the number of rows done."""
        if self._quiet:
            yield lambda rows: None
        elif sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            with Bar(*columns, console=console(stderr=True), expand=True) as bar, logging_above_bar():
                shown = bar.add_task(what, total=total, rate="")
                meter = _Meter()

                def advance(rows: int) -> None:
                    bar.update(shown, advance=rows, rate=f"{meter.add(rows):,.0f} rows/s")

                yield advance
        else:
            yield _lines(what, total)


class _Meter:
    """Rows per second since the first row."""

    def __init__(self) -> None:
        self.rows = 0
        self._start = time.perf_counter()

    def add(self, rows: int) -> float:
        self.rows += rows
        return self.rows / max(1e-9, time.perf_counter() - self._start)


def _lines(what: str, total: int) -> Callable[[int], None]:
    meter = _Meter()
    last = time.perf_counter()

    def advance(rows: int) -> None:
        nonlocal last
        rate = meter.add(rows)
        if time.perf_counter() - last >= SECONDS_PER_LINE or meter.rows == total:
            last = time.perf_counter()
            left = (total - meter.rows) / rate
            logger.info("%s: %d of %d rows, %.0f rows/s, %.0f s left", what, meter.rows, total, rate, left)

    return advance
