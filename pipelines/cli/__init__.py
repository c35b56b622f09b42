"""The commands, by what they are about: each parses, calls one function, prints.

Heavy imports live in the commands, so that `bench --help` answers at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Any


def show(renderable: Any) -> None:
    """Print a table on stdout; in a file, as wide as is usual."""
    from featbench.pipelines.terminal.output import console

    console(width=None if sys.stdout.isatty() else 120).print(renderable)


def set_level(quiet: bool) -> None:
    """Log what happens, or only warnings."""
    logging.getLogger().setLevel(logging.WARNING if quiet else logging.INFO)
