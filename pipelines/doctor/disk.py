"""Checks of the store's folder: file system, free space, speed, and whether locks hold."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from featbench.evaluate.memory import in_words
from featbench.pipelines.doctor.finding import Finding, good, note, problem
from featbench.store import StoreError
from featbench.store.lock_trial import locks_hold

SAMPLE = 64 * 2**20
"""Bytes that are written and read."""

LITTLE_SPACE = 5 * 2**30
SLOW = 20e6
"""Bytes per second below which writing is noted."""

NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "fuse.sshfs", "9p", "afs", "glusterfs")
VOLATILE = ("tmpfs", "ramfs", "overlay")


def disk_findings(store: Path, *, sample: int = SAMPLE) -> Iterator[Finding]:
    """Check the folder of the feature sets, or the nearest one above it that exists."""
    folder = nearest_folder(store)
    inside = next((each for each in (store, *store.absolute().parents) if each.exists()), folder)
    if not inside.is_dir():
        yield problem("store", f"{inside} is not a folder, so {store} can't be one.", "Choose another --store.")
        return
    where = "" if folder == store else f" ({store} does not exist yet, so its parent {folder} was tried)"
    kind, mount = file_system_of(folder)
    yield _file_system(kind, mount, where)
    free = shutil.disk_usage(folder).free
    if free < LITTLE_SPACE:
        yield note("free space", f"{in_words(free)}.", "bench plan says how much a pipeline needs.")
    else:
        yield good("free space", in_words(free))
    try:
        trial = Path(tempfile.mkdtemp(dir=folder, prefix=".bench-doctor-"))
    except OSError as error:
        yield problem(
            "writing", f"{folder} can't be written: {error.strerror}.", "Give permission, or another --store."
        )
        return
    try:
        yield _speed(trial, min(sample, free // 4))
        yield _locks(trial, mount)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def nearest_folder(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    return next((each for each in (path, *path.absolute().parents) if each.is_dir()), Path("/"))


def file_system_of(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> tuple[str, str]:
    """Return the type of a folder's file system, and where it is mounted; empty if that is not known."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return "", ""
    here, found = folder.resolve(), ("", "")
    for line in lines:
        _, at, kind, *_ = line.split(" ")
        at = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), at)
        if here.is_relative_to(at) and len(at) >= len(found[1]):
            found = kind, at
    return found


def _file_system(kind: str, mount: str, where: str) -> Finding:
    said = f"{kind or 'unknown'}{f', mounted at {mount}' if mount else ''}{where}"
    if kind in VOLATILE:
        return note("file system", f"{said}: its files are lost when the machine or the container stops.",
                    "Choose a --store on a disk.")  # fmt: skip
    if kind in NETWORK:
        return good("file system", f"{said}: a network file system, where the locks below are what matters")
    return good("file system", said)


def _speed(folder: Path, size: int) -> Finding:
    """Write a file durably, and read it, from the disk if the system forgets it on request."""
    if size < 2**20:
        return note("disk speed", "not measured: there is too little free space.")
    path, piece = folder / "sample", os.urandom(2**20)
    try:
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(size // len(piece)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        written = size / (time.perf_counter() - start)
        with path.open("rb", buffering=0) as file:
            with contextlib.suppress(OSError, AttributeError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while file.read(2**20):
                pass
        read = size / (time.perf_counter() - start)
    except OSError as error:
        return problem("disk speed", f"{folder.parent} can't be written: {error.strerror}.", "Choose another --store.")
    said = f"writes {written / 1e6:,.0f} MB/s, reads {read / 1e6:,.0f} MB/s"
    if written < SLOW:
        return note(
            "disk speed", f"{said}: it may keep the model waiting.", "Choose a faster --store, or --dtype float16."
        )
    return good("disk speed", said)


def _locks(folder: Path, mount: str) -> Finding:
    cure = "Mount it with locks (NFS: without `nolock`; Lustre: with `flock`), or choose another --store."
    try:
        holds = locks_hold(folder)
    except StoreError as error:
        return problem("locks", str(error), cure if cure not in str(error) else "")
    except (OSError, subprocess.TimeoutExpired) as error:
        return problem("locks", f"could not be tried: {error}.", cure)
    if not holds:
        said = f"a second process got a lock at {mount or folder} that the first one held"
        return problem("locks", f"{said}, so two runs could write the same chunk.", cure)
    return good("locks", "hold: a second process was kept out (of this host; other hosts were not tried)")
