"""The commands, grouped by subject: each parses its options, calls one function and prints.

Heavy modules are imported within the commands, so that `bench --help` is fast.
"""

from __future__ import annotations

import logging


def set_level(quiet: bool) -> None:
    """Log progress and warnings, or only warnings."""
    logging.getLogger().setLevel(logging.WARNING if quiet else logging.INFO)
