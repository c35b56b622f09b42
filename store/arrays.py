"""Zarr arrays as this store creates and opens them: chunked over rows, explicit codecs, crc32c last.

Zarr's options are only set here. Every chunk ends with the crc32c of the bytes before it, so its
checksum is in its last four bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, VLenUTF8Codec, ZstdCodec

from featbench.store.folder import Folder
from featbench.store.typing import Array
from featbench.store.zarr_store import DurableStore

COMPRESSIONS: Mapping[str, tuple[Any, ...]] = {
    "none": (),
    "zstd": (ZstdCodec(level=1),),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4),),
}
"""Choices of `compression`. It saves little space with features; `none` reads fastest (docs/benchmarks)."""

WRITE_ALL = {"write_empty_chunks": True}
"""Zarr omits chunks that equal the fill value unless this is set, also for opened arrays."""


def create_array(
    root: Path | Folder,
    key: str,
    *,
    shape: tuple[int, ...],
    rows_per_chunk: int,
    dtype: str,
    compression: str = "none",
    attributes: Mapping[str, Any] | None = None,
    dimension_names: Sequence[str] | None = None,
) -> zarr.Array[Any]:
    """Create one array, replacing an existing one.

    Parameters
    ----------
    root : Path or Folder
        The feature set's folder; with an open `Folder`, nothing is written elsewhere.
    key : str
        Path of the array below it, such as `train/res5`.
    shape : tuple of int
        Rows first.
    rows_per_chunk : int
        Chunks span whole rows.
    dtype : {"float16", "float32", "float64", "int8", "int64", "uint64", "bool", "str"}
        Type of the values. Rows that have not been written read as NaN, -1, 0, False or "".
    compression : str
        A key of `COMPRESSIONS`.
    attributes : mapping, optional
        Attributes of the array.
    dimension_names : sequence of str, optional
        Names of its axes; in xarray, axes of one name must have one length.
    """
    text = dtype == "str"
    fill: Any = {"int8": -1, "int64": -1, "uint64": 0, "bool": False, "str": ""}.get(dtype, float("nan"))
    return zarr.create_array(
        _store(root),
        name=key,
        shape=shape,
        chunks=(rows_per_chunk, *shape[1:]),
        dtype=cast(Any, str if text else dtype),
        fill_value=fill,
        filters=(),
        serializer=VLenUTF8Codec() if text else BytesCodec(endian="little"),
        compressors=(*COMPRESSIONS[compression], Crc32cCodec()),
        attributes=dict(attributes or {}),
        dimension_names=dimension_names,
        config=cast(Any, WRITE_ALL),
        overwrite=True,
    )


def open_array(root: Path | Folder, key: str, *, writable: bool = False) -> zarr.Array[Any]:
    """Open an existing array."""
    store = _store(root, read_only=not writable)
    return zarr.open_array(store, path=key, mode="r+" if writable else "r").with_config(cast(Any, WRITE_ALL))


def _store(root: Path | Folder, *, read_only: bool = False) -> DurableStore:
    if isinstance(root, Folder):
        return DurableStore(root.path, read_only=read_only, within=root)
    return DurableStore(root, read_only=read_only)


def write_rows(array: zarr.Array[Any], start: int, values: Array) -> None:
    """Write whole chunks, starting at row `start`."""
    array[start : start + len(values)] = values


def read_rows(array: zarr.Array[Any], start: int, stop: int) -> Array:
    """Read rows through Zarr; errors of its codecs propagate."""
    return np.asarray(array[start:stop])
