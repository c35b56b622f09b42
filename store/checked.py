"""Opening arrays and reading chunks, with checks that they are what was written."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr

from featbench.store import arrays
from featbench.store.errors import DamagedError
from featbench.store.layout import RowRange
from featbench.store.manifest import REWRITE, Manifest
from featbench.store.paths import array_key, metadata_key
from featbench.store.records import Record
from featbench.store.regular import open_regular, read_regular
from featbench.store.schema import ArrayForm, form_of
from featbench.store.typing import Array


def open_checked(root: Path, manifest: Manifest, split: str, name: str) -> zarr.Array[Any]:
    """Open an array of a feature set.

    Raises
    ------
    DamagedError
        If its metadata is not what was written, or not what the manifest says.
    """
    key = array_key(split, name)
    path = root / metadata_key(key)
    try:
        intact = hashlib.sha256(read_regular(path)).hexdigest() == manifest.metadata.get(key)
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror}). {REWRITE}") from error
    if not intact:
        raise DamagedError(f"{path}: not what was written (its sha256 differs). {REWRITE}")
    try:
        array = arrays.open_array(root, key)
    except Exception as error:  # Zarr raises builtin errors of many kinds
        raise DamagedError(f"{path}: cannot be read ({error}). {REWRITE}") from error
    dtype = "str" if array.dtype.kind in "OTU" else str(array.dtype)
    form = ArrayForm(dtype=dtype, shape=array.shape, rows_per_chunk=array.chunks[0])
    expected = form_of(manifest, split, name)
    if form != expected:
        raise DamagedError(f"{path}: an array of {form}; the manifest says {expected}")
    return array


def checked_rows(root: Path, array: zarr.Array[Any], record: Record, rows: RowRange, *, chunk: int, cure: str) -> Array:
    """Read the rows of one chunk through Zarr, after comparing its size and checksum with the journal's.

    Raises
    ------
    DamagedError
        If the chunk is not what was written.
    """
    path = root / record.key
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4))
            checksum = int.from_bytes(file.read(4), "little")
    except OSError as error:
        raise damaged_chunk(path, chunk, f"cannot be read ({error.strerror})", cure) from error
    if size != record.size:
        raise damaged_chunk(path, chunk, f"has {size:,} bytes, {record.size:,} were written", cure)
    if checksum != record.crc32c:
        raise damaged_chunk(path, chunk, "does not end with the checksum that was journalled", cure)
    try:
        return arrays.read_rows(array, rows.start, rows.stop)
    except Exception as error:  # Zarr's codecs raise builtin errors of many kinds, which do not name the chunk
        raise damaged_chunk(path, chunk, f"does not match its checksum ({error})", cure) from error


def is_plain(array: zarr.Array[Any]) -> bool:
    """Whether chunks hold little-endian numbers and their crc32c, without compression."""
    if array.dtype.kind in "OTU":
        return False
    codecs: Any = array.metadata.to_dict()["codecs"]
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    return [codec["name"] for codec in codecs] == ["bytes", "crc32c"] and endian == "little"


def checked_numbers(
    root: Path, array: zarr.Array[Any], record: Record, rows: RowRange, *, chunk: int, cure: str
) -> Array:
    """Read the rows of one chunk of a plain array, as `checked_rows` does, but at once: chunks may be many.

    Raises
    ------
    DamagedError
        If the chunk is not what was written.
    """
    path, dtype = root / record.key, array.dtype
    try:
        content = read_regular(path)
    except OSError as error:
        raise damaged_chunk(path, chunk, f"cannot be read ({error.strerror})", cure) from error
    if len(content) != record.size:
        raise damaged_chunk(path, chunk, f"has {len(content):,} bytes, {record.size:,} were written", cure)
    if int.from_bytes(content[-4:], "little") != record.crc32c:
        raise damaged_chunk(path, chunk, "does not end with the checksum that was journalled", cure)
    if google_crc32c.value(content[:-4]) != record.crc32c:
        raise damaged_chunk(path, chunk, "does not match its checksum", cure)
    shape = array.chunks
    if len(content) != math.prod(shape) * dtype.itemsize + 4:
        raise damaged_chunk(path, chunk, f"has {len(content):,} bytes, which are not the rows of a chunk", cure)
    values = np.frombuffer(content[:-4], dtype.newbyteorder("<")).reshape(shape)
    return values[: len(rows)].astype(dtype)


def damaged_chunk(path: Path, chunk: int, what: str, cure: str) -> DamagedError:
    """Make the error for a chunk that is not what was written."""
    layer, split = path.parent, path.parent
    while layer.name != "c":
        layer = layer.parent
    split = layer.parent.parent
    return DamagedError(f"{split.parent}: {split.name}/{layer.parent.name}, chunk {chunk}: {path} {what}. {cure}")
