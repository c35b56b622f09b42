"""What a source gives of a row: the picture, and a digest of what it was made from.

The digest is kept with the features, so that other images under the same names are noticed when
they are read again. It is taken of the bytes of the file or the archive's member, before they are
decoded; where a source has no bytes, of the pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from featbench.store import SplitRows
from featbench.store.typing import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One decoded image in mode RGB."""

    image: Image.Image
    digest: int
    """64 bits, never 0; see `digest_of_bytes` and `digest_of_pixels`."""

    name: str
    """What to call it in messages."""


class ImageSource(Protocol):
    """One split. Its methods may be called from several processes, in any order."""

    rows: SplitRows
    in_memory: bool
    """Whether reading costs next to nothing, so that no extra process need do it."""

    def read(self, row: int) -> Picture:
        """Return the picture of a row, or raise ImageError."""
        ...

    def digest(self, row: int) -> int:
        """Return the digest of a row's picture, without decoding it where that can be; or raise ImageError."""
        return self.read(row).digest

    def changed(self) -> Ints:
        """When each row's file was last changed when it was listed, in ns, shape (N,); 0 where there is none."""
        return np.zeros(len(self.rows.labels), np.int64)

    def open(self, row: int) -> Image.Image:
        """Return the image of a row, or raise ImageError."""
        return self.read(row).image


def digest_of_bytes(content: bytes) -> int:
    """Return BLAKE2b (RFC 7693) of an image's bytes with a digest size of 8, little-endian; 1 in place of 0.

    Examples
    --------
    >>> digest_of_bytes(b"")
    13020603013274838756
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def digest_of_pixels(image: Image.Image) -> int:
    """Return the digest of an image that has no bytes: of its mode, size and pixels."""
    head = f"{image.mode} {image.width} {image.height} "
    return digest_of_bytes(head.encode() + image.tobytes())
