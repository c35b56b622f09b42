"""Opening regular files only.

A feature set may come from someone else. In place of a file it may contain a named pipe, from which reading blocks
forever, or a device without an end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

NOT_REGULAR = errno.ESPIPE
"""Error number for a pipe, a socket or a device."""


def open_regular(path: Path | str, flags: int = os.O_RDONLY, *, folder: int | None = None) -> int:
    """Open a regular file, without blocking; return its descriptor.

    Parameters
    ----------
    path : Path or str
        Relative to `folder`, if one is given.
    flags : int
        As for `os.open`.
    folder : int, optional
        Descriptor of an open folder.

    Raises
    ------
    OSError
        If it is not a regular file, or can't be opened.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(NOT_REGULAR, "not a regular file", str(path))


def read_regular(path: Path) -> bytes:
    """Read a regular file; errors are those of `open_regular`."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()
