"""The commands, by what they are about: each parses, calls one function, prints.

Heavy imports live in the commands, so that `bench --help` answers at once.
"""

from __future__ import annotations

import logging


def set_level(quiet: bool) -> None:
    """Log what happens, or only warnings."""
    logging.getLogger().setLevel(logging.WARNING if quiet else logging.INFO)
