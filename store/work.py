"""One pending chunk, the unit of work of a rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One chunk of one split, and which of its arrays are not in a journal yet."""

    split: str
    chunk: int
    layers: tuple[str, ...]
    """Never empty; in the requested order."""

    valid: bool
    """Whether `valid` and the images' digests are to be written, too."""
