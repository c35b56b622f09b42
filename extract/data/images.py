"""Decoding: an image file of any kind becomes 8-bit RGB, or an error that names the file.

Pillow decodes. Other decoders are faster but crash the process on damaged files of some kinds
(measured: one flipped bit of a PNG), and an image that takes the run with it names nothing.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from store import BenchError

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif", ".jp2", ".tga",
)  # fmt: skip
"""What counts as an image in a folder; anything else is ignored, and the number of ignored files is said."""


class ImageError(BenchError):
    """An image can't be read."""


def read_rgb(file: Path | IO[bytes], *, name: str) -> Image.Image:
    """Decode one image to mode RGB.

    Orientation tags of cameras are not applied, and transparency is dropped, as all peers do.
    16-bit greys are scaled to 8 bits (Pillow itself would cut them off at 255).

    Raises
    ------
    ImageError
        If it is empty, truncated, damaged, no image, or larger than Pillow's limit of about 179
        million pixels; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and of slightly damaged images, and goes on
            with Image.open(file) as image:
                image.load()
                return to_rgb(image)
    except Exception as error:  # decoders raise builtin errors of many kinds for damaged files
        raise ImageError(f"{name}: cannot be read as an image: {_reason(file, error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB.

    32-bit integers are taken as 16-bit greys, which is how Pillow opens some of them; floats as 0 to 255.
    """
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65_535)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]).convert("RGB")
    return image.convert("RGB")


def _reason(file: Path | IO[bytes], error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist (any more)"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(file, Path) and file.stat().st_size == 0:
        return "it is empty (0 bytes)"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known kind"
    return f"damaged: {error}"
