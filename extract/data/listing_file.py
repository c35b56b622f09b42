"""The file of a cached listing, which processes map instead of reading it.

Ranks of one host share the pages of a mapped file, and only those that they touch are read: at 85 bytes an image, the
listing of a data set of a hundred million images has 8.5 GB, of which a rank needs the rows of its own chunks.

Layout, little-endian: `MAGIC`; the length of the header as 8 bytes and its CRC-32C as 4; the header, JSON padded with
spaces to a multiple of 64 bytes; the arrays, each at a multiple of 64 bytes. The header has the CRC-32C of all bytes
after it, and the arrays have one for each `ROWS_PER_GROUP` rows, so that a part can be checked alone.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featbench.extract.data.listing import Listing, Paths
from featbench.store import RowFacts
from featbench.store.checksum import extended
from featbench.store.durable import write_durably
from featbench.store.typing import Array, Bytes, Ints

MAGIC = b"benchlst"
ALIGNMENT = 64

ROWS_PER_GROUP = 65_536
"""Rows that are checked together, about 6 MB."""

LARGE = 2**30
"""Bytes from which on a file is checked in the groups that are read, not as a whole when it is opened."""

_ROWS = ("sizes", "changed", "starts", "archive", "labels")
_PATHS = ("paths", "archives", "watched")


class DamagedListingError(ValueError):
    """The file is not what was written."""


class RowGroups:
    """Checks the rows of a mapped listing, one group at a time, when the first of them is read."""

    def __init__(self, listing: Listing, checksums: Ints) -> None:
        self._columns = [getattr(listing, name) for name in _ROWS]
        self._paths = listing.paths
        self._checksums = checksums
        self._is_checked = np.zeros(len(checksums), bool)

    def check(self, row: int) -> None:
        """Check the group of a row, unless that has been done.

        Raises
        ------
        DamagedListingError
            If it is not what was written.
        """
        group = row // ROWS_PER_GROUP
        if self._is_checked[group]:
            return
        if _checksum_of_group(self._columns, self._paths, group) != int(self._checksums[group]):
            raise DamagedListingError(f"rows {group * ROWS_PER_GROUP:,} and following are not what was written")
        self._is_checked[group] = True


def write_listing(file: Path, listing: Listing, facts: RowFacts) -> None:
    """Write a listing, durably.

    Raises
    ------
    StoreError
        If writing fails.
    """
    columns = [getattr(listing, name) for name in _ROWS]
    groups = range(-(-len(listing) // ROWS_PER_GROUP))
    checksums = np.array([_checksum_of_group(columns, listing.paths, group) for group in groups], np.uint32)
    arrays: dict[str, Array] = {name: getattr(listing, name) for name in (*_ROWS, "stamps")} | {"checksums": checksums}
    for name in _PATHS:
        paths: Paths = getattr(listing, name)
        arrays |= {f"{name}_text": paths.text, f"{name}_ends": paths.ends}
    checksum = 0
    for piece in _pieces_of(arrays):
        checksum = extended(checksum, piece)
    header: dict[str, Any] = {
        "arrays": _described(arrays),
        "class_names": listing.class_names,  # escaped to ASCII, so that names that are not UTF-8 are preserved
        "listing": facts.listing,
        "used_labels": facts.used_labels,
        "checksum": checksum,
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(MAGIC) + 12 + len(text)) % ALIGNMENT)
    first = MAGIC + len(text).to_bytes(8, "little") + extended(0, np.frombuffer(text, np.uint8)).to_bytes(4, "little")
    write_durably(file, first, text, *(piece.data for piece in _pieces_of(arrays)))


def map_listing(file: Path) -> Listing:
    """Map the file of a listing; its arrays are read-only views of it.

    Raises
    ------
    DamagedListingError
        If it is not what was written. From `LARGE` bytes on, only the header is checked here, and the rows are when
        they are read (`Listing.check`).
    OSError
        If it can't be read.
    """
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size <= len(MAGIC) + 12:
            raise DamagedListingError("it is too short")
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    start, header = _header(content)
    if len(content) < LARGE and _checksum_of_body(content, start) != header["checksum"]:
        raise DamagedListingError("it is not what was written")
    arrays = {name: _view(content, start, *facts) for name, facts in header["arrays"].items()}
    values: dict[str, Any] = {name: arrays[name] for name in (*_ROWS, "stamps")}
    values |= {name: Paths(arrays[f"{name}_text"], arrays[f"{name}_ends"]) for name in _PATHS}
    used = header["used_labels"]
    facts = RowFacts(listing=header["listing"], used_labels=None if used is None else tuple(used))
    listing = Listing(**values, class_names=tuple(header["class_names"]), facts=facts)
    if len(content) < LARGE:
        return listing
    return Listing(
        **values, class_names=listing.class_names, facts=facts, groups=RowGroups(listing, arrays["checksums"])
    )


def _described(arrays: dict[str, Array]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Data type, shape and offset of each array."""
    described, offset = {}, 0
    for name, values in arrays.items():
        offset += -offset % ALIGNMENT
        described[name] = (values.dtype.str, values.shape, offset)
        offset += values.nbytes
    return described


def _pieces_of(arrays: dict[str, Array]) -> Iterator[Bytes]:
    """Yield the bytes of all arrays, and of the padding between them."""
    offset = 0
    for values in arrays.values():
        if offset % ALIGNMENT:
            yield np.zeros(-offset % ALIGNMENT, np.uint8)
            offset += -offset % ALIGNMENT
        yield np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        offset += values.nbytes


def _header(content: mmap.mmap) -> tuple[int, dict[str, Any]]:
    """Return the offset of the arrays, and the header."""
    first = len(MAGIC) + 12
    length = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 8], "little")
    if content[: len(MAGIC)] != MAGIC or first + length > len(content):
        raise DamagedListingError("it does not begin as a listing does")
    text = content[first : first + length]
    if extended(0, np.frombuffer(text, np.uint8)) != int.from_bytes(content[first - 4 : first], "little"):
        raise DamagedListingError("its header is not what was written")
    return first + length, json.loads(text)


def _view(content: mmap.mmap, start: int, dtype: str, shape: list[int], offset: int) -> Array:
    count = int(np.prod(shape))
    if start + offset + count * np.dtype(dtype).itemsize > len(content):
        raise DamagedListingError("it is shorter than what was written")
    return np.frombuffer(content, dtype, count, start + offset).reshape(shape)


def _checksum_of_body(content: mmap.mmap, start: int) -> int:
    return extended(0, np.frombuffer(content, np.uint8, len(content) - start, start))


def _checksum_of_group(columns: list[Array], paths: Paths, group: int) -> int:
    checksum = 0
    for piece in _pieces(columns, paths, group * ROWS_PER_GROUP):
        checksum = extended(checksum, piece)
    return checksum


def _pieces(columns: list[Array], paths: Paths, first: int) -> Iterator[Array]:
    rows = slice(first, first + ROWS_PER_GROUP)
    for column in columns:
        yield np.ascontiguousarray(column[rows])
    ends = paths.ends[max(first - 1, 0) : rows.stop]
    yield np.ascontiguousarray(ends)
    last = int(ends[-1]) if len(ends) else 0
    yield np.ascontiguousarray(paths.text[int(ends[0]) if first else 0 : last])
