"""How values are written in the cells of tables."""

from __future__ import annotations

import math

from featbench.evaluate.metrics import Estimate
from featbench.evaluate.results import Spread
from featbench.pipelines.terminal.table import Column
from featbench.store.names import visible

LAYER = Column(name="layer", is_right=False)
"""The column of layers' names."""


def percent(estimate: Estimate | None, *, sign: str = "") -> str:
    """Write a fraction in percent with the half width of an interval that holds both ends.

    Examples
    --------
    >>> percent(Estimate(0.5, 0.403, 0.596))
    '50.0 ±9.7'
    """
    if estimate is None:  # all queries are duplicates
        return "none"
    value, low, high = (100 * each for each in (estimate.value, estimate.low, estimate.high))
    shown = f"{value:{sign}.1f}"
    half = max(high - float(shown), float(shown) - low)
    return f"{shown} ±{math.ceil(round(10 * half, 6)) / 10:.1f}"


def mean_and_sd(spread: Spread) -> str:
    """Write a mean and its standard deviation in percent."""
    return f"{100 * spread.mean:.1f} ±{100 * spread.sd:.1f}"


def yes_or_no(known: bool | None) -> str:
    """Write what is known to be so or not; `-` if it is not known."""
    return "-" if known is None else "yes" if known else "no"


def shortened(text: str, *, most: int = 200) -> str:
    """Cut a text after some characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def named(name: object, *, most: int = 60) -> str:
    """Write a name from data in a terminal's table: in one line, without what controls a terminal, and not too long."""
    return shortened(visible(str(name), keep=""), most=most)


def with_spaces(name: str) -> str:
    """Write the name of a setting as words."""
    return name.replace("_", " ")


def temperature_of(temperature: float | None) -> str:
    """Write a temperature; nothing if there is none."""
    return "" if temperature is None else f"{temperature:g}"


def size_in_words(num_bytes: int | None) -> str:
    """Write a size; "" if it is not known.

    Examples
    --------
    >>> size_in_words(0), size_in_words(2_400_000), size_in_words(3 * 2**40)
    ('0 KiB', '2.3 MiB', '3,072.0 GiB')
    """
    if num_bytes is None:
        return ""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.1f} GiB"
    return f"{num_bytes / 2**20:,.1f} MiB" if num_bytes >= 2**20 else f"{-(-num_bytes // 2**10):,} KiB"
