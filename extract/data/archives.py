"""Tar and zip archives, read without unpacking: where each file lies within, and its bytes.

Tar archives must be uncompressed: a compressed one can't be read from the middle. In zip archives
each file is compressed by itself (or stored as it is), so any of them is read alone.
"""

from __future__ import annotations

import io
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from extract.data.listing import DataError

ENDINGS = (".tar", ".zip")

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file within an archive."""

    path: str
    """As unpacking would name it, with `/`; never leads out of the folder."""

    start: int
    """Of its bytes in a tar, of its local header in a zip."""

    size: int
    """Bytes, unpacked."""


def members(archive: Path) -> Iterator[Member]:
    """List the files of an archive in the order in which they lie there.

    Raises
    ------
    DataError
        If it is compressed as a whole, damaged, or holds links or paths that lead out of it.
    """
    try:
        with archive.open("rb") as file:
            head = file.read(8)
        if head.startswith(b"PK"):
            yield from _zip_members(archive)
        else:
            yield from _tar_members(archive, head)
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror or error}") from error


def read_member(archive: Path, descriptor: int, *, start: int, size: int) -> bytes:
    """Read one file of an open archive; needs no index, and may be called from several processes.

    Raises
    ------
    DataError
        If the bytes are not there, or not a zip's member.
    """
    if os.pread(descriptor, 2, 0) != b"PK":
        return _exactly(archive, descriptor, size, start)
    header = _exactly(archive, descriptor, 30, start)
    signature, method, name, extra = struct.unpack("<4s4xH16xHH", header)
    if signature != b"PK\x03\x04":
        raise DataError(f"{archive}: no file at byte {start}. The archive was changed or is damaged; make it again")
    at = start + len(header) + name + extra
    if method == zipfile.ZIP_STORED:
        return _exactly(archive, descriptor, size, at)
    return _inflate(archive, descriptor, size, at)


def _zip_members(archive: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if info.is_dir():
                    continue
                if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DataError(
                        f"{archive}: {info.filename} is encrypted or compressed in an unusual way; "
                        f"make the archive again with `zip -0` or unpack it"
                    )
                yield Member(path=_inner(archive, info.filename), start=info.header_offset, size=info.file_size)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive}: damaged or incomplete zip archive: {error}") from error


def _tar_members(archive: Path, head: bytes) -> Iterator[Member]:
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(
                f"{archive}: compressed with {kind}, so no image can be read from its middle. Decompress it to a "
                f"plain .tar (photographs hardly compress), or unpack it."
            )
    try:
        with tarfile.open(archive, "r:", errors="surrogateescape") as opened:
            while (info := opened.next()) is not None:
                opened.members = []  # type: ignore[attr-defined]  # or it would keep a million of them
                if info.issym() or info.islnk():
                    raise DataError(
                        f"{archive}: {info.name} is a link, which can't be read in place. Make the archive with "
                        f"`tar --dereference --hard-dereference`."
                    )
                if info.isreg() and not info.issparse():
                    yield Member(path=_inner(archive, info.name), start=info.offset_data, size=info.size)
                    if info.offset_data + info.size > archive.stat().st_size:
                        raise DataError(f"{archive}: ends within {info.name}: copy or download the archive again")
            end = opened.offset
        with archive.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{archive}: ends without the mark that ends a tar: copy or download the archive again")
    except tarfile.TarError as error:
        raise DataError(f"{archive}: damaged or incomplete tar archive, or none: {error}") from error


def _inner(archive: Path, name: str) -> str:
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path == "..":
        raise DataError(f"{archive}: {name} leads out of the archive. Make it from within the folder: `tar -C FOLDER`")
    return path


def _exactly(archive: Path, descriptor: int, size: int, start: int) -> bytes:
    content = os.pread(descriptor, size, start)
    if len(content) < size:
        raise DataError(f"{archive}: ends within the file at byte {start}; it was changed or is damaged")
    return content


def _inflate(archive: Path, descriptor: int, size: int, start: int) -> bytes:
    """Unpack a deflated file; its packed size may stand behind it, so it is read until it ends."""
    unpacking, content = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    try:
        while not unpacking.eof and (piece := os.pread(descriptor, 2**16, start)):
            content.write(unpacking.decompress(piece))
            start += len(piece)
    except zlib.error as error:
        raise DataError(f"{archive}: the file before byte {start} is damaged: {error}") from error
    if content.tell() != size:
        raise DataError(f"{archive}: the file before byte {start} has {content.tell()} bytes, {size} were listed")
    return content.getvalue()
