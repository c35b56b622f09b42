"""Numbers of images of each class, as settings give them: 5, or 10%."""

from __future__ import annotations

import re


def parse_shots(shots: int | str) -> tuple[int, float]:
    """Parse a number of images (n, 0), or a fraction of them (0, fraction).

    Raises
    ------
    ValueError
        If the value is neither.

    Examples
    --------
    >>> parse_shots(5), parse_shots("10%")
    ((5, 0.0), (0, 0.1))
    """
    if isinstance(shots, int) and shots > 0:
        return shots, 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(shots))
    if not match or not 0 < float(match[1]) <= 100:
        raise ValueError(f"images of each class must be a positive number, or a fraction such as 10%; got {shots!r}")
    return 0, float(match[1]) / 100
