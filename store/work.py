"""One pending chunk: what a rank computes and writes at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One chunk of one split, and those of its arrays that no journal has yet."""

    split: str
    chunk: int
    layers: tuple[str, ...]
    """Never empty; in the order asked for."""

    valid: bool
    """Whether the flags of which rows could be read, and the images' digests, are wanted too."""
