"""Files that are absent or complete, also after a power cut.

Zarr writes a temporary file and renames it, but never calls fsync, so that a crash of the host can
leave empty files under final names (measured). Here the data reach the disk before the name does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

from store.errors import StoreError

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

PARTIAL = ".partial"
"""Ending of what is being written; a leftover of a killed run, never read."""


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that it is either absent (or as before) or complete, and on disk on return.

    Raises
    ------
    StoreError
        If the file system refuses: full, read-only, a quota, a limit on the size of files.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error


def cannot_write(path: Path, error: OSError) -> str:
    """Say why the file system refused, and that nothing is lost."""
    return (
        f"{path}: cannot write: {error.strerror or error}. What was committed before is safe. "
        f"Make room or permission there, and run the same command again: it goes on where it stopped."
    )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_partials(folder: Path, *, older_than: float | None = None) -> int:
    """Remove half-written files and folders below `folder`, or those last changed before a time; return how many."""
    count = 0
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent) / name
            if not name.endswith(PARTIAL):
                continue
            with suppress(FileNotFoundError):  # its writer was faster
                if older_than is None or path.stat().st_mtime < older_than:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    count += 1
        folders[:] = [name for name in folders if not name.endswith(PARTIAL)]
    return count


def partial_name(path: Path) -> Path:
    """Return a name beside `path` for what is being written there; no layer or feature set can have it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


class DurableStore(LocalStore):
    """Zarr's local store, with fsync before and after the rename."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object; see `write_durably`."""
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one object; see `write_durably`."""
        self._check_writable()
        write_durably(self.root / key, value.to_bytes())
