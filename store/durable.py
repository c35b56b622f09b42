"""Files that are absent or complete, also after a power cut.

Zarr writes a temporary file and renames it, but never calls fsync, so that a crash of the host can
leave empty files under final names (measured). Here the data reach the disk before the name does,
and the name of a new folder before anything in it counts.

Every change of a file goes through the few functions of `os` that are called here and in
`featbench.store.folder`: `tests/reliability` stops at each of these calls, and loses what was not synced by then.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

from featbench.store.errors import StoreError

if TYPE_CHECKING:
    from typing import Self

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.core.common import AccessModeLiteral

    from featbench.store.folder import Folder

PARTIAL = ".partial"
"""Ending of what is being written; a leftover of a killed run, never read."""

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
_OLDER_LEFTOVER = re.compile(r"[^.].*\.([0-9a-f]{32}|status\.json\.[0-9]+)\.partial")
"""Files, never folders, of version 0.1.0."""


def partial_name(path: Path) -> Path:
    """Return a name beside `path` for what is being written there; no layer or feature set can have it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def is_leftover_of(name: str, other: str) -> bool:
    """Whether `other` is a name that `partial_name` gives beside a file or folder called `name`."""
    return re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{32}}\.partial", other) is not None


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that it is either absent (or as before) or complete, and on disk on return.

    Raises
    ------
    StoreError
        If the file system refuses: full, read-only, a quota, a limit on the size of files.
    """
    try:
        make_folder(path.parent)
        with opened(path.parent) as folder:
            write_in(folder, path.name, content)
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error


def write_in(folder: int, name: str, content: bytes) -> None:
    """Write a file into an open folder, as `write_durably`; an OSError passes on as it is."""
    partial = partial_name(Path(name)).name
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
        try:
            write_all(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)
        raise
    os.fsync(folder)


def write_all(file: int, content: bytes) -> None:
    """Write all bytes to an open file; one call of the system may write fewer."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each durable in its parent; an OSError passes on as it is."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):  # made by another process at this moment
        path.mkdir()
    sync_folder(path.parent)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder; yields its descriptor."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> str:
    """Say why the file system refused, and that nothing is lost."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{path}: cannot write: this path or name is too long for the file system. Choose a shorter one."
    return (
        f"{path}: cannot write: {error.strerror or error}. What was committed before is safe. "
        f"Make room or permission there, and run the same command again: it goes on where it stopped."
    )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with opened(folder) as descriptor:
        os.fsync(descriptor)


def sweep_partials(folder: Path, *, older_than: float | None = None) -> int:
    """Remove half-written files and folders below `folder`, or those last changed before a time; return how many."""
    count = 0
    for parent, folders, files in os.walk(folder):
        leftovers = [name for name in [*folders, *files] if _LEFTOVER.fullmatch(name)]
        leftovers += [name for name in files if _OLDER_LEFTOVER.fullmatch(name)]
        for path in (Path(parent, name) for name in leftovers):
            with suppress(FileNotFoundError):  # its writer was faster
                if older_than is None or path.lstat().st_mtime < older_than:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                    count += 1
        folders[:] = [name for name in folders if name not in leftovers]
    return count


class DurableStore(LocalStore):
    """Zarr's local store, with fsync before and after the rename; within a folder that is held, if one is given."""

    def __init__(self, root: Path | str, *, read_only: bool = False, within: Folder | None = None) -> None:
        super().__init__(root, read_only=read_only)
        self._within = within

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store with another mode."""
        return type(self)(self.root, read_only=read_only, within=self._within)

    async def _open(self, *, mode: AccessModeLiteral | None = None) -> None:
        if self._within is None:
            await super()._open(mode=mode)
        self._is_open = True  # Zarr would make the folder where it has been removed

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one object; what is no regular file is as if it were not there."""
        is_file = await asyncio.to_thread((self.root / key).is_file)
        return await super().get(key, prototype, byte_range) if is_file else None

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one object; see `get`."""
        is_file = (self.root / key).is_file()
        return super().get_sync(key, prototype=prototype, byte_range=byte_range) if is_file else None

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object; see `write_durably`."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one object that is not there: the groups above a new array."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one object; see `write_durably`."""
        self._check_writable()
        if self._within is not None:
            self._within.write(key, value.to_bytes())
        else:
            write_durably(self.root / key, value.to_bytes())
