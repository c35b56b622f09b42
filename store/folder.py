"""A folder that is kept open, so that writes into it can't end up anywhere else.

A feature set may be renamed, removed or replaced while a run writes to it. Names are therefore resolved
relative to the open folder, one part at a time: neither `..` nor a symbolic link leads out of it.
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
    """An open folder, independent of its path; closed with its last reference.

    Raises
    ------
    StoreError
        If it can't be opened.
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
        """Whether its path still refers to it."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def mark(self, key: str) -> tuple[int, int, int] | None:
        """Return values that change when a file is replaced or written to; None if it does not exist."""
        try:
            found = os.stat(checked_key(key), dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def read(self, key: str) -> bytes | None:
        """Return the contents of a file; None if it does not exist.

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
        """Write a file durably, see `featbench.store.durable.write_durably`; creates its folders.

        Raises
        ------
        StoreError
            If writing fails.
        """
        try:
            with self._parent(key, make=True) as (parent, name):
                write_in(parent, name, content)
        except OSError as error:
            raise self._refusal(key, error) from error

    def append(self, key: str, content: bytes) -> None:
        """Append bytes to a file; on return they are on disk, on failure none of them is in the file.

        Raises
        ------
        StoreError
            If writing fails.
        """
        try:
            with self._parent(key, make=True) as (parent, name):
                file = _opened(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, parent)
                try:
                    self._add(file, content)
                finally:
                    os.close(file)
                if key not in self._durable:  # also if it existed: its writer may have died before this
                    os.fsync(parent)
                    self._durable.add(key)
        except OSError as error:
            raise self._refusal(key, error) from error

    def remove(self, key: str) -> None:
        """Remove a file, or a folder with its contents, if it exists."""
        try:
            with self._parent(key) as (parent, name):
                try:
                    os.unlink(name, dir_fd=parent)  # also a symbolic link, but never its target
                except IsADirectoryError:
                    shutil.rmtree(name, dir_fd=parent)
                self._durable = {each for each in self._durable if not f"{each}/".startswith(f"{key}/")}
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refusal(key, error) from error

    def make(self, key: str) -> None:
        """Create a folder, if it does not exist."""
        try:
            with self._parent(f"{key}/x", make=True):
                pass
        except OSError as error:
            raise self._refusal(key, error) from error

    def sync(self) -> None:
        """Make the names in it durable (fsync)."""
        os.fsync(self._descriptor)

    def _add(self, file: int, content: bytes) -> None:
        size = os.fstat(file).st_size
        try:
            write_all(file, content)
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, size)  # no other lines may follow half a line
            raise

    def _refusal(self, key: str, error: OSError) -> StoreError:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, NOT_REGULAR):
            return DamagedError(
                f"{self.path / key}: expected a file or folder of the feature set, got a symbolic link or something "
                f"else. Nothing was written through it. Remove it, then run "
                f"`bench verify {self.path} --repair`."
            )
        return StoreError(cannot_write(self.path / key, error))

    @contextmanager
    def _parent(self, key: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that contains a key; yields its descriptor and the name in it."""
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
        """Create a folder if necessary, and make its name durable, once: its creator may have died before this."""
        if key not in self._durable:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
            os.fsync(parent)
            self._durable.add(key)


def _opened(name: str, flags: int, parent: int) -> int:
    return open_regular(name, flags | os.O_NOFOLLOW, folder=parent)


def checked_key(key: str) -> str:
    """Return a key, unless it could lead out of the feature set.

    Raises
    ------
    DamagedError
        If it is not a key that this program writes.
    """
    for part in key.split("/"):
        if part != METADATA:
            checked_name(part)
    return key
