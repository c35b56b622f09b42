"""What a source returns for a row: the picture, and a digest of its contents.

The digest is stored with the features, so that changed images with the same names are noticed when
they are read again. It is computed from the bytes of the file or archive member before decoding, or
from the pixels if a source has no bytes.
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
    """Name for messages."""


class ImageSource(Protocol):
    """One split. Its methods may be called from several processes, in any order."""

    rows: SplitRows
    in_memory: bool
    """Whether images are in memory, so that no decoding processes are needed."""

    def read(self, row: int) -> Picture:
        """Return the picture of a row, or raise ImageError."""
        ...

    def digest(self, row: int) -> int:
        """Return the digest of a row's picture, if possible without decoding it, or raise ImageError."""
        return self.read(row).digest

    def changed(self) -> Ints:
        """Times of last change of the rows' files when they were listed, in ns, shape (N,); 0 without a file."""
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
    """Return the digest of the mode, size and pixels of an image that has no bytes."""
    head = f"{image.mode} {image.width} {image.height} "
    return digest_of_bytes(head.encode() + image.tobytes())
