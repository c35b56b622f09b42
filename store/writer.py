"""Writing whole chunks: checked, durable, then journalled.

Each rank has one writer, and each chunk is written by one. Invalid values (NaN, infinity, or too large
for float16) are refused before anything is written; the error names layer, row and image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from featbench.store import arrays, paths
from featbench.store.checked import open_checked
from featbench.store.errors import StoreError, abbreviate
from featbench.store.feature_set import FeatureSet
from featbench.store.journal import record_of
from featbench.store.typing import Array, Bools, Ints, UInt64s
from featbench.store.work import Work


class ChunkWriter:
    """Writes this rank's chunks; each `write` returns once the chunk counts."""

    def __init__(self, features: FeatureSet, *, rank: int = 0) -> None:
        features.reload()
        self._features = features
        self._journal = features.journal(rank)
        self._arrays: dict[str, Any] = {}

    def write(
        self,
        work: Work,
        features: Mapping[str, Array],
        valid: Bools,
        digests: UInt64s | None = None,
    ) -> None:
        """Write one chunk of each of the work's layers.

        Parameters
        ----------
        work : Work
            Which chunk, and which of its arrays are missing.
        features : mapping of str to ndarray of shape (rows, ...)
            Features by layer; at least those of the work.
        valid : ndarray of shape (rows,), dtype=bool
            False where the image could not be read; such rows are stored as NaN.
        digests : ndarray of shape (rows,), dtype=uint64, optional
            A digest of each image, 0 for those that could not be read. It is stored if the feature set has
            digests, or compared if the chunk's other layers have been written before.

        Raises
        ------
        StoreError
            If a value can't be stored, the images are not those of the other layers, writing fails, or the feature
            set was renamed, removed or replaced.
        """
        if digests is None:
            digests = np.zeros(len(valid), np.uint64)
        if not work.valid:
            self._compare_valid(work, valid)
            self._compare_digests(work, digests)
        layers = {name: self._as_stored(work, name, features[name], valid) for name in work.layers}
        # In this order, so that a torn journal with a layer of a chunk also has the chunk's flags and digests.
        values: dict[str, Array] = {}
        if work.valid and self._features.has_digests(work.split):
            values[paths.DIGESTS] = digests
        if work.valid:
            values[paths.VALID] = valid
        values |= layers
        start = self._features.grid(work.split).rows(work.chunk).start
        records = []
        for name, rows in values.items():
            self._features.check()
            arrays.write_rows(self._open(work.split, name), start, rows)
            key = paths.chunk_key(paths.array_key(work.split, name), work.chunk, rows.ndim)
            records.append(record_of(self._features.folder, key))
        self._features.check()
        self._features.mark(work)
        self._journal.append(records)

    def _as_stored(self, work: Work, layer: str, rows: Array, valid: Bools) -> Array:
        chunk = self._features.grid(work.split).rows(work.chunk)
        expected = (len(chunk), *self._features.layer_info(layer).shape)
        if rows.shape != expected:  # Zarr would silently truncate it
            raise StoreError(
                f"{self._features.path}: layer {layer!r} of {work.split} chunk {work.chunk} has shape {rows.shape}, "
                f"expected {expected}. The chunk was not written."
            )
        flat = rows.reshape(len(rows), -1)
        self._refuse(work, layer, valid & ~np.isfinite(flat).all(axis=1), "NaN or infinite values", NOT_FINITE)
        with np.errstate(over="ignore"):
            stored = rows.astype(self._features.manifest.dtype)
        result = stored.reshape(len(rows), -1)
        dtype = self._features.manifest.dtype
        self._refuse(
            work, layer, valid & ~np.isfinite(result).all(axis=1), f"values beyond {dtype}'s largest", TOO_LARGE
        )
        vanished = valid & ~result.any(axis=1) & flat.any(axis=1)
        self._refuse(work, layer, vanished, f"only values below {dtype}'s smallest", TOO_LARGE)
        stored[~valid] = np.nan
        return stored

    def _refuse(self, work: Work, layer: str, bad: Bools, what: str, cure: str) -> None:
        rows = self._features.grid(work.split).rows(work.chunk).start + np.flatnonzero(bad)
        if len(rows):
            paths = self._features.paths(work.split)
            named = ", ".join(f"{row} ({paths[row]})" for row in rows[:3].tolist()) + (", ..." if len(rows) > 3 else "")
            raise StoreError(
                f"{self._features.path}: layer {layer!r} has {what} in {len(rows)} of the rows of "
                f"{work.split} chunk {work.chunk}: row {named}. The chunk was not written. {cure}"
            )

    def _compare_valid(self, work: Work, valid: Bools) -> None:
        start = self._features.grid(work.split).rows(work.chunk).start
        changed = start + np.flatnonzero(self._features.valid_chunk(work.split, work.chunk) != valid)
        if len(changed):
            path = self._features.paths(work.split)[changed[0]]
            raise StoreError(
                f"{self._features.path}: {len(changed)} images of {work.split} can no longer be read, or only now, "
                f"unlike when its other layers were extracted; the first is {path}. Restore the images, or extract "
                f"into another --name."
            )

    def _compare_digests(self, work: Work, digests: UInt64s) -> None:
        if not self._features.has_digests(work.split):
            return
        start = self._features.grid(work.split).rows(work.chunk).start
        before = self._features.digests_chunk(work.split, work.chunk)
        changed = start + np.flatnonzero((before != digests) & (before != 0) & (digests != 0))
        if len(changed):
            raise other_images(self._features, work.split, changed)

    def _open(self, split: str, name: str) -> Any:
        key = paths.array_key(split, name)
        if key not in self._arrays:
            open_checked(self._features.path, self._features.manifest, split, name)
            self._arrays[key] = arrays.open_array(self._features.folder, key, writable=True)
        return self._arrays[key]


def other_images(features: FeatureSet, split: str, rows: Ints) -> StoreError:
    """Make the error for images other than those that the stored features were made from."""
    paths = features.paths(split)
    named = abbreviate([paths[row] for row in rows.tolist()])
    return StoreError(
        f"{features.path}: images of {split} are not those that its features were made from: {named}. Their names "
        f"and sizes are the same, their contents differ. Restore the old images, extract into another --name, or "
        f"replace all features with --overwrite."
    )


TOO_LARGE = "Use `--dtype float32`; if it is float32 already, rescale the features."
NOT_FINITE = "The model overflows or its weights are damaged: try `--precision float32`, and check the weights."
