"""Decoding: an image file of any kind becomes 8-bit RGB, or an error that names the file.

Pillow decodes. Other decoders are faster but crash the process on damaged files of some kinds
(measured: one flipped bit of a PNG), and an image that takes the run with it names nothing.
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

from featbench.extract.data.pictures import Picture, digest_of_bytes
from featbench.extract.errors import ImageError, OutOfMemoryError, UnavailableError

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif", ".jp2", ".tga",
)  # fmt: skip
"""What counts as an image in a folder; anything else is ignored, and the number of ignored files is said."""


_LEAVINGS = (
    "__MACOSX", "@eaDir", "#recycle", "@Recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information",
    "__pycache__", "Thumbs.db", "ehthumbs.db", "desktop.ini",
)  # fmt: skip
"""What systems leave among images, besides names that begin with a dot."""

MAX_FILE_BYTES = 2**30
"""A larger file is refused before it is read: an image of Pillow's limit of pixels takes half of it uncompressed."""

MEMORY_OF_AN_IMAGE = 8 * 178_956_970
"""Bytes that decoding and resizing an image of Pillow's limit of pixels take. Where so many can be had, an image that
asks for more is at fault, and otherwise the machine."""

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
"""Errors that say nothing of the file, and what to do about each."""

_RUNS_PROGRAMS = ("EPS",)
"""Formats that Pillow hands to another program (Ghostscript), whatever the file is called."""


def read_picture(file: Path | bytes, *, name: str) -> Picture:
    """Decode one image to mode RGB, with a digest of its bytes.

    Orientation tags of cameras are not applied, and transparency is dropped, as all peers do.
    16-bit greys are scaled to 8 bits (Pillow itself would cut them off at 255).

    Parameters
    ----------
    file : Path or bytes
        Where it is, or what it holds.
    name : str
        What to call it in messages.

    Raises
    ------
    ImageError
        If it is empty, truncated, damaged, no regular file, no image, larger than `MAX_FILE_BYTES`, or
        than Pillow's limit of about 179 million pixels; the message names it.
    UnavailableError, OutOfMemoryError
        If open files, memory or the file system are why, and not the image.
    """
    content = content_of(file, name=name) if isinstance(file, Path) else file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and of slightly damaged images, and goes on
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                image.load()
                rgb = to_rgb(image)
    except Exception as error:  # decoders raise builtin errors of many kinds for damaged files
        refuse_to_blame_an_image(error, name=name)
        raise ImageError(f"{name}: cannot be read as an image: {_reason(content, error)}") from error
    return Picture(image=rgb, digest=digest_of_bytes(content), name=name)


def content_of(path: Path, *, name: str) -> bytes:
    """Read a file's bytes, if it is a regular file of a size that an image can have.

    A FIFO would wait for a writer for ever, a device may have no end.

    Raises
    ------
    ImageError
        If it can't be read; the message names it.
    UnavailableError, OutOfMemoryError
        If open files, memory or the file system are why, and not the image.
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
            if not stat.S_ISREG(facts.st_mode):  # replaced since
                raise ImageError(f"{name}: cannot be read as an image: not a regular file")
            # `read` takes as much memory as it is told to read, so it is not told a file's largest size.
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
    """Raise another error where the machine is why an image can't be read, since such an image must never be skipped.

    Raises
    ------
    UnavailableError, OutOfMemoryError
        With what to do.
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
    """Whether a file or folder is hidden, or left there by a system: never an image, never a class."""
    return name.startswith(".") or name in _LEAVINGS


def kind_of(mode: int) -> str:
    """Say what a file is that is no regular one, from its `st_mode`."""
    kinds = {
        stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a special file")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB.

    32-bit integers are taken as 16-bit greys, which is how Pillow opens some of them; floats as 0 to 255.
    """
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65_535)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]).convert("RGB")
    return image.convert("RGB")


def _has_memory(size: int) -> bool:
    try:
        bytearray(size)  # only reserved
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
        return "too large for the memory that there is"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known kind"
    return f"damaged: {error}"
