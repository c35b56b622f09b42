"""Writing files so that they are absent or complete, even after a power failure.

Zarr writes a temporary file and renames it, but never calls fsync, so a crash of the host can leave
empty files under final names (measured). Here the data reach the disk before the name does, and the
name of a new folder before anything in it counts.

Every change of a file goes through the few functions of `os` that are called here and in
`featbench.store.folder`: `tests/reliability` stops at each of these calls, and drops what was not synced by then.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featbench.store.errors import StoreError
from featbench.store.paths import is_leftover, partial_name

GOES_ON = "run the same command again: it goes on where it stopped"
ANOTHER_FILE = "run the same command again, or name another file"


def write_durably(path: Path, *content: bytes | memoryview, again: str = GOES_ON) -> None:
    """Write a file, of one or more pieces, that is then complete and on disk; on failure it is absent, or as before.

    Parameters
    ----------
    path : Path
        The file; its folder is made.
    *content : bytes or memoryview
        Its pieces.
    again : str
        What the message of an error advises to do once there is space or permission.

    Raises
    ------
    StoreError
        If writing fails: disk full, read-only, quota, limit on the size of files.
    """
    try:
        make_folder(path.parent)
        with opened(path.parent) as folder:
            write_in(folder, path.name, *content)
    except OSError as error:
        raise StoreError(cannot_write(path, error, again=again)) from error


def write_in(folder: int, name: str, *content: bytes | memoryview) -> None:
    """Write a file into an open folder, like `write_durably`; an OSError propagates."""
    partial = partial_name(Path(name)).name
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
        try:
            for piece in content:
                write_all(file, piece)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)
        raise
    os.fsync(folder)


def write_all(file: int, content: bytes | memoryview) -> None:
    """Write all bytes to an open file; one system call may write fewer."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def make_folder(path: Path) -> None:
    """Create a folder and its parents, each durably; an OSError propagates."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):  # created by another process at the same time
        path.mkdir()
    sync_folder(path.parent)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder, and yield its descriptor."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError, *, again: str = GOES_ON) -> str:
    """Message for a failed write: the reason, that nothing is lost, and what to do."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{path}: cannot write: this path or name is too long for the file system. Choose a shorter one."
    if error.errno == errno.EBUSY:
        return (
            f"{path}: a file system is mounted here, so the folder cannot be renamed, removed or replaced. Nothing was "
            f"changed. Unmount it, or choose another --name or --store."
        )
    file = next((each for each in (path, *path.parents) if each.is_file()), None)
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and file is not None:
        return f"{path}: cannot write: {file} is a file, not a folder. Remove it, or choose another folder."
    return (
        f"{path}: cannot write: {error.strerror or error}. What was committed before is safe. "
        f"Free disk space or give permission to write there, and {again}."
    )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync)."""
    with opened(folder) as descriptor:
        os.fsync(descriptor)


def leftovers(folder: Path, *, only_direct: bool = False) -> Iterator[Path]:
    """Yield half-written files and folders in `folder`, and by default below it; not what is inside of them."""
    for parent, folders, files in os.walk(folder):
        found = [name for name in folders if is_leftover(name, is_file=False)]
        found += [name for name in files if is_leftover(name, is_file=True)]
        yield from (Path(parent, name) for name in sorted(found))
        folders[:] = [] if only_direct else [name for name in folders if name not in found]


def last_change(path: Path) -> float:
    """When a file, or anything in a folder, was last written to, in seconds since the epoch.

    Raises
    ------
    OSError
        If its writer has just renamed or removed it.
    """
    return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))


def remove_leftover(path: Path) -> None:
    """Remove a half-written file or folder; an OSError propagates."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sweep_partials(folder: Path, *, older_than: float | None = None) -> int:
    """Remove half-written files and folders below `folder`, optionally only old ones; return how many."""
    count = 0
    for path in leftovers(folder):
        with suppress(FileNotFoundError):  # its writer has just renamed or removed it
            if older_than is None or last_change(path) < older_than:
                remove_leftover(path)
                count += 1
    return count
