"""All output goes through here, so that text from data can neither control the terminal nor act as markup.

Names of classes, files and layers, and messages of errors, may contain escape sequences, carriage returns or marks
that change the direction of text. `guarded` wraps stdout and stderr and spells these characters out, whoever writes.
Tables and progress bars need escape sequences themselves; `SafeConsole` draws them, and spells out their texts.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from featbench.store.names import visible

if TYPE_CHECKING:
    from rich.console import Console


class GuardedStream:
    """A text stream that spells out control characters other than line ends and tabs."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """Write text; return the number of characters given."""
        self.unguarded.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Guard stdout and stderr."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (GuardedStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def logging_above_bar() -> Iterator[None]:
    """Log to what `sys.stderr` is now: while a progress bar is drawn, lines appear above it."""
    stream = GuardedStream(sys.stderr)
    handlers = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    before = [(handler, handler.setStream(stream)) for handler in handlers]
    try:
        yield
    finally:
        for handler, old in before:
            if old is not None:
                handler.setStream(old)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Make a console for tables and progress bars."""
    from featbench.pipelines.terminal.console import SafeConsole

    stream = sys.stderr if stderr else sys.stdout
    return SafeConsole(file=getattr(stream, "unguarded", stream), width=width, markup=False, emoji=False)
