"""Graceful shutdown on SIGINT and SIGTERM.

After the first signal the current chunk is finished; a second one ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

ONE_PRESS_S = 1.0
"""Two signals within this time are one: Ctrl-C reaches a rank from the terminal and again from its launcher."""


NOTICE = "Stopping after the current chunk; once more stops at once."

SHOW_CURSOR = b"\x1b[?25h\n"
"""To be written to a terminal on which a bar is drawn."""


class Interrupted(Exception):  # noqa: N818 -- no error: it was asked for
    """A signal ended the extraction before everything was done."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("Stopped. What was committed is safe; the same command goes on from there.")
        self.exit_code = exit_code


class StopRequest:
    """Whether a signal has asked this process to stop."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.signal: int | None = None
        self.on_bar = False
        """Whether a bar is drawn; whoever draws it then shows the notice above it."""
        self._quiet = quiet
        self._since = 0.0

    def __call__(self) -> bool:
        """Whether to stop before the next chunk."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code that a shell expects after a signal."""
        return 128 + (self.signal or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; end the process at the second."""
        if self.signal is not None and time.monotonic() - self._since > ONE_PRESS_S:
            self._say((SHOW_CURSOR if self.on_bar else b"") + b"Stopped at once; the unfinished chunk is lost.\n")
            os._exit(128 + number)
        if self.signal is None:
            self._since = time.monotonic()
            if not self.on_bar:
                self._say(NOTICE.encode() + b"\n")
        self.signal = number

    def _say(self, text: bytes) -> None:
        if not self._quiet:
            with suppress(OSError):
                os.write(2, text)  # print is not reentrant


@contextmanager
def graceful_shutdown(*, quiet: bool = False) -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM in the block, unless they have other handlers; only in the main thread.

    With `quiet`, another process shows the notice.
    """
    stopping = StopRequest(quiet=quiet)
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)  # submitit, for one, handles SIGTERM itself
    free = [number for number in SIGNALS if signal.getsignal(number) in usual]
    before = {number: signal.signal(number, stopping.handle) for number in free}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
