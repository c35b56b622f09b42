"""The groups and arrays of a feature set, all that it has besides chunks and journals, as its manifest says."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import zarr

from store import arrays
from store.durable import DurableStore
from store.folder import Folder
from store.manifest import DIGESTS, LayerInfo, Manifest

GROUPS = ("journals", "neighbours", "clusters", "results")
"""Besides the splits."""


def write_groups(folder: Folder, manifest: Manifest) -> dict[str, str]:
    """Write the groups, each a folder; return the digests of their metadata."""
    groups: dict[str, dict[str, object]] = {"": {}, **{name: {} for name in GROUPS}}
    for split, info in manifest.splits.items():
        groups[split] = {"num_rows": info.num_rows, "listing": info.listing}
    for key, attributes in groups.items():
        zarr.create_group(
            DurableStore(folder.path, within=folder), path=key, attributes=attributes, overwrite=bool(key)
        )
    return {key: metadata_digest(folder.path, key) for key in groups if key}


def write_rows_arrays(folder: Folder, manifest: Manifest, *, digests: bool) -> dict[str, str]:
    """Write the arrays that every split has, without their chunks; return the digests of their metadata.

    `digests` is whether digests of the images are kept, see `store/FORMAT.md`.
    """
    wanted = {"labels": "int64", "paths": "str", "valid": "bool", **({DIGESTS: "uint64"} if digests else {})}
    metadata = {}
    for split, info in manifest.splits.items():
        for name, dtype in wanted.items():
            by_chunk = name in ("valid", DIGESTS)
            rows = manifest.rows_per_chunk if by_chunk else min(arrays.ROWS_PER_LABEL_CHUNK, info.num_rows)
            key = f"{split}/{name}"
            arrays.create_array(folder, key, shape=(info.num_rows,), rows_per_chunk=rows, dtype=dtype)
            metadata[key] = metadata_digest(folder.path, key)
    return metadata


def write_layer(folder: Folder, manifest: Manifest, name: str, info: LayerInfo) -> dict[str, str]:
    """Write the arrays of a layer, without their chunks; return the digests of their metadata."""
    digests = {}
    for split, rows in manifest.splits.items():
        key = f"{split}/{name}"
        folder.remove(key)  # what a killed run left
        arrays.create_array(
            folder,
            key,
            shape=(rows.num_rows, *info.shape),
            rows_per_chunk=manifest.rows_per_chunk,
            dtype=manifest.dtype,
            compression=manifest.compression,
            attributes={"tap": info.tap, "pooling": info.pooling},
        )
        digests[key] = metadata_digest(folder.path, key)
    return digests


def expected_metadata(manifest: Manifest) -> dict[str, str]:
    """Texts of all `zarr.json` below the root, by path, as this version writes them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(Path(scratch))
        digests = any(map(manifest.has_digests, manifest.splits))
        keys = [*write_groups(folder, manifest), *write_rows_arrays(folder, manifest, digests=digests)]
        for name, info in manifest.layers.items():
            keys += write_layer(folder, manifest, name, info)
        return {f"{key}/zarr.json": (folder.path / key / "zarr.json").read_text() for key in keys}


def metadata_digest(root: Path, key: str) -> str:
    """SHA-256 of the `zarr.json` of a group or an array."""
    return hashlib.sha256((root / key / "zarr.json").read_bytes()).hexdigest()
