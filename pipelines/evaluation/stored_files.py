"""Stored features as files, in their stored shape; a block of rows is in memory at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.pipelines.evaluation.files import load_parquet, save
from featbench.store import FeatureSet
from featbench.store.typing import Array

BLOCK_BYTES = 2**25


def write_stored(features: FeatureSet, split: str, layer: str, *, out: Path, file_format: str) -> list[Path]:
    """Write a layer of a split, shape (N, ...), float32.

    Parameters
    ----------
    features, split, layer
        What to write.
    out : Path
        Folder; it exists.
    file_format : {"npy", "npz", "parquet"}

    Raises
    ------
    ExportError
        If the file exists, or Parquet's library is not installed.
    """
    write = {"npy": write_npy, "npz": _write_npz, "parquet": _write_parquet}[file_format]
    return [save(out / f"{split}_{layer}.{file_format}", partial(write, features, split, layer))]


def blocks_of(features: FeatureSet, split: str, layer: str) -> Iterator[tuple[int, Array]]:
    """Yield the first row and the rows of each block, in the layer's shape; valid until the next one is asked for."""
    shape, stored = features.layer_info(layer).shape, features.layer(split, layer)
    if not stored.num_rows:
        return
    for block in stored.blocks(max(1, BLOCK_BYTES // (4 * max(1, stored.dim)))):
        yield block.start, block.features.reshape(len(block.features), *shape)


def write_npy(features: FeatureSet, split: str, layer: str, file: Any) -> None:
    """Write a layer in NumPy's format."""
    shape = (features.split(split).num_rows, *features.layer_info(layer).shape)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for _, rows in blocks_of(features, split, layer):
        file.write(np.ascontiguousarray(rows, "<f4").data.cast("B"))


def _write_npz(features: FeatureSet, split: str, layer: str, file: Any) -> None:
    with zipfile.ZipFile(file, "w") as archive, archive.open("features.npy", "w", force_zip64=True) as member:
        write_npy(features, split, layer, member)


def _write_parquet(features: FeatureSet, split: str, layer: str, file: Any) -> None:
    pa, parquet = load_parquet()
    shape = features.layer_info(layer).shape
    kind = pa.float32()
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    with parquet.ParquetWriter(file, pa.schema([("features", kind)])) as writer:
        for _, rows in blocks_of(features, split, layer):
            column = pa.array(np.ascontiguousarray(rows).reshape(-1))
            for size in reversed(shape):
                column = pa.FixedSizeListArray.from_arrays(column, size)
            writer.write_table(pa.table({"features": column}))
