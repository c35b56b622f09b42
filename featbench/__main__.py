"""Entry point of the `bench` command, and of `python -m featbench`."""

from __future__ import annotations

import atexit
import codecs
import gc
import io
import locale
import logging
import os
import sys
from typing import NoReturn

MOST_CHARACTERS = 20_000
"""Longest error message that is printed; a table of weights that do not fit has a few thousand characters."""


def main() -> None:
    """Run the command line; a fault that the user can cure is one message and exit code 2."""
    open_closed_streams()
    speak_utf8()
    atexit.register(gc.freeze)  # at exit, looking for cycles among torch's objects takes longer than many a command
    from featbench.pipelines.terminal.output import guarded

    with guarded():
        run()


def run() -> None:
    """Run the command line, with output that is guarded already."""
    from featbench.pipelines.cli.app import app
    from featbench.store.errors import BenchError, first_line

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which of its builds it loads
    try:
        app(prog_name="bench")
    except BenchError as error:
        fail(str(error))
    except OSError as error:  # a path that is too long, or a loop of links, is found wherever it is first looked at
        fail(f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror or error}")
    except Exception as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        fail(
            f"out of memory ({first_line(error)}). Extraction needs less with a smaller --batch-size and fewer "
            f"--workers or --ranks, evaluation with --memory. What was committed is safe."
        )


def fail(text: str) -> NoReturn:
    """Print one message, and end with 2."""
    cut = f"\n... ({len(text):,} characters in all)" if len(text) > MOST_CHARACTERS else ""
    print(f"error: {text[:MOST_CHARACTERS]}{cut}", file=sys.stderr)
    sys.exit(2)


def open_closed_streams() -> None:
    """Connect stdin, stdout and stderr, where they are closed (`>&-`), to the null device.

    Else the next file that is opened would get the number of the closed one, and what libraries print would go into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))  # the lowest number that is free


def speak_utf8() -> None:
    """Have file names and texts in UTF-8 whatever the locale is, and print what a terminal can't show as escapes.

    Names of files and classes are stored as UTF-8. Under a locale of another encoding Python would
    read them as something else, so it is started over in its UTF-8 mode, which can't be entered later.
    """
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=_encoding_of(stream), errors="backslashreplace")


def _encoding_of(stream: io.TextIOWrapper) -> str:
    """The terminal's own encoding, if it has one beyond ASCII (which is what says nothing, see PEP 540); else UTF-8."""
    named = codecs.lookup(locale.getencoding()).name
    return named if stream.isatty() and named != "ascii" else "utf-8"


if __name__ == "__main__":
    main()
