"""Tar and zip archives, read without unpacking: the location of each file, and its bytes.

Tar archives must be uncompressed, since a compressed one can't be read from the middle. In zip archives
each file is compressed separately (or stored), so each can be read by itself.
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

from featbench.extract.data.images import MAX_FILE_BYTES, refuse_to_blame_an_image
from featbench.extract.errors import DataError, MemberError

ENDINGS = (".tar", ".zip")

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


MAX_MEMBER_BYTES = MAX_FILE_BYTES
"""Larger files are refused before they are unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file within an archive."""

    path: str
    """Path as unpacked, with `/`; never outside the folder."""

    start: int
    """Offset of its bytes in a tar, of its local header in a zip."""

    size: int
    """Unpacked size in bytes."""


def members(archive: Path) -> Iterator[Member]:
    """List the files of an archive in their order in it.

    Only regular files are opened, since reading a FIFO might block forever.

    Raises
    ------
    DataError
        If it is compressed as a whole, damaged, or contains links or paths that lead out of it.
    """
    try:
        if not archive.is_file():
            raise DataError(f"{archive}: cannot be read: not a regular file")
        with archive.open("rb") as file:
            head = file.read(8)
        if head.startswith(b"PK"):
            yield from _zip_members(archive)
        else:
            yield from _tar_members(archive, head)
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror or error}") from error


def read_member(archive: Path, descriptor: int, *, start: int, size: int) -> bytes:
    """Read one file of an open archive, without an index; may be called from several processes.

    Never unpacks more than its listed size, whatever the compressed data claim.

    Raises
    ------
    MemberError
        If the bytes are missing, not a member of a zip, do not unpack to the listed size, do not match
        their checksum, or are more than `MAX_MEMBER_BYTES`.
    UnavailableError, OutOfMemoryError
        If the cause is not the file but memory or the file system.
    """
    if size > MAX_MEMBER_BYTES:
        raise MemberError(f"{archive}: the file at byte {start} is too large: {size / 2**30:.1f} GiB unpacked")
    try:
        return _read_member(archive, descriptor, start, size)
    except (OSError, MemoryError, OverflowError) as error:  # an invalid offset, or too little memory
        refuse_to_blame_an_image(error, name=f"{archive}: the file at byte {start}")
        raise MemberError(f"{archive}: the file at byte {start} cannot be read: {error}") from error


def _read_member(archive: Path, descriptor: int, start: int, size: int) -> bytes:
    if os.pread(descriptor, 2, 0) != b"PK":
        return _exactly(archive, descriptor, size, start)
    header = _exactly(archive, descriptor, 30, start)
    signature, flags, method, crc, name, extra = struct.unpack("<4s2xHH4xI8xHH", header)
    if signature != b"PK\x03\x04":
        raise MemberError(f"{archive}: no file at byte {start}. The archive was changed or is damaged; make it again")
    at = start + len(header) + name + extra
    if method == zipfile.ZIP_STORED:
        content, end = _exactly(archive, descriptor, size, at), at + size
    elif method == zipfile.ZIP_DEFLATED:
        content, end = _inflate(archive, descriptor, size, at)
    else:
        raise MemberError(f"{archive}: the file at byte {start} is compressed in an unusual way, or damaged")
    if flags & 8 and not crc:  # written to a pipe: the checksum follows the data, perhaps after a signature
        behind = os.pread(descriptor, 8, end)
        crc = int.from_bytes(behind[4:8] if behind.startswith(b"PK\x07\x08") else behind[:4], "little")
    if zlib.crc32(content) != crc:
        raise MemberError(f"{archive}: the file at byte {start} does not match its checksum; it is damaged")
    return content


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
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeError) as error:
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
                raise DataError(f"{archive}: the end of the tar is missing: copy or download the archive again")
    except (tarfile.TarError, ValueError, UnicodeError, OverflowError) as error:
        raise DataError(f"{archive}: damaged or incomplete tar archive, or none: {error}") from error


def _inner(archive: Path, name: str) -> str:
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path == "..":
        raise DataError(f"{archive}: {name} leads out of the archive. Make it from within the folder: `tar -C FOLDER`")
    return path


def _exactly(archive: Path, descriptor: int, size: int, start: int) -> bytes:
    content = os.pread(descriptor, size, start)
    if len(content) < size:
        raise MemberError(f"{archive}: ends within the file at byte {start}; it was changed or is damaged")
    return content


def _inflate(archive: Path, descriptor: int, size: int, start: int) -> tuple[bytes, int]:
    """Unpack a deflated file and return where it ends; its packed size may only follow its data."""
    unpacking, content = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    try:
        while not unpacking.eof and content.tell() <= size and (piece := os.pread(descriptor, 2**16, start)):
            content.write(unpacking.decompress(piece, size + 1 - content.tell()))
            start += len(piece) - len(unpacking.unconsumed_tail)
    except zlib.error as error:
        raise MemberError(f"{archive}: the file before byte {start} is damaged: {error}") from error
    if content.tell() != size or not unpacking.eof:
        more = "more than " if content.tell() > size else ""
        found = f"{more}{min(content.tell(), size):,} bytes"
        raise MemberError(f"{archive}: the file before byte {start} unpacks to {found}, {size:,} were listed")
    return content.getvalue(), start - len(unpacking.unused_data)
