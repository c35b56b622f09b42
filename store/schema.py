"""Which arrays a feature set has, and their types, shapes and chunks, as its manifest says."""

from __future__ import annotations

from dataclasses import dataclass

from featbench.store.layout import Grid
from featbench.store.manifest import Manifest
from featbench.store.paths import DIGESTS, LABELS, PATHS, ROW_ARRAYS, VALID, array_key, chunk_key

ROWS_PER_LABEL_CHUNK = 65_536
"""Labels and paths are written once, by one process, so their chunks need not be small."""

_DTYPES = {LABELS: "int64", PATHS: "str", VALID: "bool", DIGESTS: "uint64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayForm:
    """Type, shape and chunks that an array must have."""

    dtype: str
    shape: tuple[int, ...]
    rows_per_chunk: int

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}, {self.rows_per_chunk} rows in a chunk"


def row_arrays(manifest: Manifest, split: str) -> tuple[str, ...]:
    """Names of the arrays of a split that are not layers."""
    return tuple(name for name in ROW_ARRAYS if name != DIGESTS or manifest.has_digests(split))


def flag_arrays(manifest: Manifest, split: str) -> tuple[str, ...]:
    """Names of the arrays that are written with each chunk of the layers: validity, and digests of the images."""
    return tuple(name for name in row_arrays(manifest, split) if name in (VALID, DIGESTS))


def grid_of(manifest: Manifest, split: str, array: str) -> Grid:
    """How the rows of an array fall into chunks."""
    num_rows = manifest.splits[split].num_rows
    is_listing = array in (LABELS, PATHS)
    return Grid(
        num_rows=num_rows, rows_per_chunk=min(ROWS_PER_LABEL_CHUNK, num_rows) if is_listing else manifest.rows_per_chunk
    )


def form_of(manifest: Manifest, split: str, array: str) -> ArrayForm:
    """Type, shape and chunks of a layer, or of another array of a split."""
    info = manifest.layers.get(array)
    if info is None:
        return row_form(manifest, split, array)
    grid = grid_of(manifest, split, array)
    return ArrayForm(dtype=manifest.dtype, shape=(grid.num_rows, *info.shape), rows_per_chunk=grid.rows_per_chunk)


def row_form(manifest: Manifest, split: str, array: str) -> ArrayForm:
    """Type, shape and chunks of one of `ROW_ARRAYS`."""
    grid, info = grid_of(manifest, split, array), manifest.splits[split]
    if array == LABELS and info.is_multi_label:
        shape = (grid.num_rows, len(info.class_names))
        return ArrayForm(dtype="int8", shape=shape, rows_per_chunk=grid.rows_per_chunk)
    return ArrayForm(dtype=_DTYPES[array], shape=(grid.num_rows,), rows_per_chunk=grid.rows_per_chunk)


def chunk_key_of(manifest: Manifest, split: str, array: str, chunk: int) -> str:
    """Key of one chunk of an array."""
    return chunk_key(array_key(split, array), chunk, num_axes_of(manifest, split, array))


def num_axes_of(manifest: Manifest, split: str, array: str) -> int:
    """Number of axes of an array."""
    if array in manifest.layers:
        return 1 + len(manifest.layers[array].shape)
    return 1 + (array == LABELS and manifest.splits[split].is_multi_label)
