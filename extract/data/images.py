"""Decoding: an image file of any kind becomes 8-bit RGB, or an error that names the file.

Images are decoded by Pillow. Other decoders are faster, but some damaged files crash the process
(measured: one flipped bit of a PNG), without an error that names the file. For JPEG files they can be chosen
(`featbench.extract.data.jpeg`).
"""

from __future__ import annotations

import errno
import functools
import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from featbench.extract.data.jpeg import decode_faster
from featbench.extract.data.pictures import Picture, digest_of_bytes
from featbench.extract.errors import ImageError, OutOfMemoryError, UnavailableError

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif", ".jp2", ".tga",
)  # fmt: skip
"""Endings of images in a folder; other files are ignored, and their number is reported."""


_LEAVINGS = (
    "__MACOSX", "@eaDir", "#recycle", "@Recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information",
    "__pycache__", "Thumbs.db", "ehthumbs.db", "desktop.ini",
)  # fmt: skip
"""Files and folders that systems create, besides names that begin with a dot."""

MAX_FILE_BYTES = 2**30
"""Larger files are refused before they are read; an uncompressed image of Pillow's limit of pixels has half of it."""

MEMORY_OF_AN_IMAGE = 8 * 178_956_970
"""Memory for decoding and resizing an image of Pillow's limit of pixels. If decoding fails although this much can be
allocated, the image is at fault, otherwise the machine."""

_UNAVAILABLE = {
    errno.EMFILE: "Allow more open files (`ulimit -n`), or set --workers lower",
    errno.ENFILE: "Allow more open files (sysctl fs.file-max)",
    errno.ENOMEM: "Free some memory, or set --workers lower",
    errno.ENOBUFS: "Free some memory, or set --workers lower",
    errno.ESTALE: "Mount its file system again",
    errno.ENOTCONN: "Mount its file system again",
    errno.ETIMEDOUT: "Wait until its file system answers",
    errno.EHOSTDOWN: "Wait until its file system answers",
}
"""Errors that are not the file's fault, and what to do about each."""

_RUNS_PROGRAMS = ("EPS",)
"""Formats that Pillow hands to another program (Ghostscript), whatever the file is called."""


def read_picture(file: Path | bytes, *, name: str, decoder: str = "pillow") -> Picture:
    """Decode one image to mode RGB, with a digest of its bytes.

    As in other benchmarks, EXIF orientation is not applied and transparency is dropped.
    16-bit grayscale is scaled to 8 bits (Pillow itself would clip it at 255).

    Parameters
    ----------
    file : Path or bytes
        Path or contents.
    name : str
        Name for messages.
    decoder : {"pillow", "torchvision", "simplejpeg"}
        Of JPEG files.

    Raises
    ------
    ImageError
        If it is empty, truncated, damaged, not a regular file, not an image, larger than `MAX_FILE_BYTES`, or
        than Pillow's limit of about 179 million pixels; the message names it.
    UnavailableError, OutOfMemoryError
        If the cause is not the image but the number of open files, memory or the file system.
    """
    content = content_of(file, name=name) if isinstance(file, Path) else file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and of slightly damaged images, and goes on
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                rgb = decode_faster(image, content, decoder) or to_rgb(_loaded(image))
    except Exception as error:  # decoders raise builtin errors of many kinds for damaged files
        refuse_to_blame_an_image(error, name=name)
        raise ImageError(f"{name}: cannot be read as an image: {_reason(content, error)}") from error
    return Picture(image=rgb, digest=digest_of_bytes(content), name=name)


def content_of(path: Path, *, name: str) -> bytes:
    """Read a file, if it is a regular file and not too large for an image.

    Reading a FIFO might block forever, and a device may have no end.

    Raises
    ------
    ImageError
        If it can't be read; the message names it.
    UnavailableError, OutOfMemoryError
        If the cause is not the image but the number of open files, memory or the file system.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError(f"{name}: cannot be read as an image: {kind_of(facts.st_mode)}, not a regular file")
        if facts.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{name}: cannot be read as an image: too large: {facts.st_size / 2**30:.1f} GiB")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (of a descriptor)
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):  # replaced in the meantime
                raise ImageError(f"{name}: cannot be read as an image: not a regular file")
            # `read(n)` allocates n bytes, so n is not the largest size of a file.
            content = file.read(facts.st_size + 1)
            while len(content) <= MAX_FILE_BYTES and (more := file.read(2**20)):
                content += more
            return content
    except FileNotFoundError as error:
        raise ImageError(f"{name}: cannot be read as an image: it does not exist (any more)") from error
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL in the path
        refuse_to_blame_an_image(error, name=name)
        what = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error) or "no memory"
        raise ImageError(f"{name}: cannot be read as an image: {what}") from error


def refuse_to_blame_an_image(error: Exception, *, name: str) -> None:
    """Raise another error if an image can't be read because of the machine, since such an image must not be skipped.

    Raises
    ------
    UnavailableError, OutOfMemoryError
        The message says what to do.
    """
    safe = "What was committed is safe; the same command goes on from there."
    if isinstance(error, OSError) and error.errno in _UNAVAILABLE:
        why, advice = os.strerror(error.errno).lower(), _UNAVAILABLE[error.errno]
        raise UnavailableError(f"{name}: cannot be read now: {why}. {advice}. {safe}") from error
    if isinstance(error, MemoryError) and not _has_memory(MEMORY_OF_AN_IMAGE):
        raise OutOfMemoryError(
            f"{name}: out of memory while it was read. Set --workers lower, or give it more memory. {safe}"
        ) from error


def is_leaving(name: str) -> bool:
    """Whether a file or folder is hidden or a system's, so that it is never an image or a class."""
    return name.startswith(".") or name in _LEAVINGS


def kind_of(mode: int) -> str:
    """Describe a file that is not a regular one, from its `st_mode`."""
    kinds = {
        stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB.

    32-bit integers are treated as 16-bit grayscale, as which Pillow opens some images; floats as 0 to 255.
    """
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65_535)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]).convert("RGB")
    return image.convert("RGB")


def _has_memory(size: int) -> bool:
    try:
        bytearray(size)  # reserved, not used
    except MemoryError:
        return False
    return True


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _RUNS_PROGRAMS)


def _reason(content: bytes, error: Exception) -> str:
    if not content:
        return "it is empty (0 bytes)"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, MemoryError):
        return "too large for the available memory"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known kind"
    return f"damaged: {error}"
