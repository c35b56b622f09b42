"""A folder that is held open, so that what is written in it can't land anywhere else.

Someone may rename, remove or replace a feature set while a run writes to it. Names are therefore looked up
from the open folder, not from its path, step by step: no `..`, no symbolic link leads out of it.
"""

from __future__ import annotations

import errno
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featbench.store.durable import cannot_write, write_all, write_in
from featbench.store.errors import DamagedError, StoreError
from featbench.store.layers import checked_name
from featbench.store.paths import METADATA
from featbench.store.regular import NOT_REGULAR, open_regular

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """A folder on disk, by what it is and not by its name; closed with its last reference.

    Raises
    ------
    StoreError
        If there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened ({error.strerror})") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._durable: set[str] = set()

    def is_here(self) -> bool:
        """Whether it is still what its path names."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def mark(self, key: str) -> tuple[int, int, int] | None:
        """Return what changes when a file of the folder is replaced or written to; None if there is none."""
        try:
            found = os.stat(checked_key(key), dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def read(self, key: str) -> bytes | None:
        """Return the content of a file, None if there is none.

        Raises
        ------
        DamagedError
            If it can't be read.
        """
        try:
            with self._parent(key) as (parent, name), os.fdopen(_opened(name, os.O_RDONLY, parent), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedError(f"{self.path / key}: cannot be read ({error.strerror})") from error

    def tail(self, key: str, count: int) -> tuple[int, bytes]:
        """Return the size of a file and its last bytes."""
        with self._parent(key) as (parent, name), os.fdopen(_opened(name, os.O_RDONLY, parent), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - count))
            return size, file.read(count)

    def write(self, key: str, content: bytes) -> None:
        """Write a file so that it is absent (or as before) or complete, and on disk on return; makes its folders.

        Raises
        ------
        StoreError
            If the file system refuses.
        """
        try:
            with self._parent(key, make=True) as (parent, name):
                write_in(parent, name, content)
        except OSError as error:
            raise self._refusal(key, error) from error

    def append(self, key: str, content: bytes) -> None:
        """Add bytes to the end of a file, which are on disk on return, or not there at all.

        Raises
        ------
        StoreError
            If the file system refuses.
        """
        try:
            with self._parent(key, make=True) as (parent, name):
                file = _opened(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, parent)
                try:
                    self._add(file, content)
                finally:
                    os.close(file)
                if key not in self._durable:  # also where it was there: its writer may have died before this
                    os.fsync(parent)
                    self._durable.add(key)
        except OSError as error:
            raise self._refusal(key, error) from error

    def remove(self, key: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        try:
            with self._parent(key) as (parent, name):
                try:
                    os.unlink(name, dir_fd=parent)  # a symbolic link too, and never what it leads to
                except IsADirectoryError:
                    shutil.rmtree(name, dir_fd=parent)
                self._durable = {each for each in self._durable if not f"{each}/".startswith(f"{key}/")}
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refusal(key, error) from error

    def make(self, key: str) -> None:
        """Make a folder, if it is not there."""
        try:
            with self._parent(f"{key}/x", make=True):
                pass
        except OSError as error:
            raise self._refusal(key, error) from error

    def sync(self) -> None:
        """Make the names directly in it durable."""
        os.fsync(self._descriptor)

    def _add(self, file: int, content: bytes) -> None:
        size = os.fstat(file).st_size
        try:
            write_all(file, content)
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, size)  # half a line must not be followed by others
            raise

    def _refusal(self, key: str, error: OSError) -> StoreError:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, NOT_REGULAR):
            return DamagedError(
                f"{self.path / key}: a symbolic link, or something else that is no file or folder of a feature set, "
                f"is in its place. Nothing was written through it. Remove it, then run "
                f"`bench verify {self.path} --repair`."
            )
        return StoreError(cannot_write(self.path / key, error))

    @contextmanager
    def _parent(self, key: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that holds a key; yields it and the name in it."""
        *folders, name = checked_key(key).split("/")
        descriptor = os.dup(self._descriptor)
        try:
            for depth, folder in enumerate(folders, 1):
                if make:
                    self._make_durable("/".join(folders[:depth]), folder, descriptor)
                above, descriptor = descriptor, os.open(folder, _FOLDER, dir_fd=descriptor)
                os.close(above)
            yield descriptor, name
        finally:
            os.close(descriptor)

    def _make_durable(self, key: str, name: str, parent: int) -> None:
        """Make a folder if need be, and its name durable, once: who made it may have died before this."""
        if key not in self._durable:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
            os.fsync(parent)
            self._durable.add(key)


def _opened(name: str, flags: int, parent: int) -> int:
    return open_regular(name, flags | os.O_NOFOLLOW, folder=parent)


def checked_key(key: str) -> str:
    """Return the path of something in a feature set; one that could lead out of it is refused.

    Raises
    ------
    DamagedError
        If it is none that this program makes.
    """
    for part in key.split("/"):
        if part != METADATA:
            checked_name(part)
    return key
