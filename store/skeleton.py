"""Writes the groups and empty arrays of a feature set, as its manifest says."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import zarr

from featbench.store import arrays, paths, schema
from featbench.store.folder import Folder
from featbench.store.manifest import LayerInfo, Manifest
from featbench.store.paths import array_key, metadata_key
from featbench.store.zarr_store import DurableStore


def write_groups(folder: Folder, manifest: Manifest, *, groups: Sequence[str] = paths.GROUPS) -> dict[str, str]:
    """Write the groups; return the digests of their metadata."""
    attributes: dict[str, dict[str, object]] = {"": {}, **{name: {} for name in groups}}
    for split, info in manifest.splits.items():
        attributes[split] = {"num_rows": info.num_rows, "listing": info.listing}
    for key, each in attributes.items():
        zarr.create_group(DurableStore(folder.path, within=folder), path=key, attributes=each, overwrite=bool(key))
    return {key: metadata_digest(folder.path, key) for key in attributes if key}


def write_row_arrays(folder: Folder, manifest: Manifest, *, digests: bool, has_names: bool = True) -> dict[str, str]:
    """Write the arrays that every split has, without their chunks; return the digests of their metadata.

    `digests` is whether to store digests of the images, `has_names` whether axes have names; see `store/FORMAT.md`.
    """
    metadata = {}
    for split in manifest.splits:
        for name in paths.ROW_ARRAYS:
            if name != paths.DIGESTS or digests:
                form, key = schema.row_form(manifest, split, name), array_key(split, name)
                arrays.create_array(
                    folder,
                    key,
                    shape=form.shape,
                    rows_per_chunk=form.rows_per_chunk,
                    dtype=form.dtype,
                    dimension_names=("row", "class")[: len(form.shape)] if has_names else None,
                )
                metadata[key] = metadata_digest(folder.path, key)
    return metadata


def write_layer(
    folder: Folder, manifest: Manifest, name: str, info: LayerInfo, *, has_names: bool = True
) -> dict[str, str]:
    """Write the arrays of a layer, without their chunks; return the digests of their metadata."""
    digests = {}
    for split, rows in manifest.splits.items():
        key = array_key(split, name)
        folder.remove(key)  # left by a killed run
        arrays.create_array(
            folder,
            key,
            shape=(rows.num_rows, *info.shape),
            rows_per_chunk=manifest.rows_per_chunk,
            dtype=manifest.dtype,
            compression=manifest.compression,
            attributes={"tap": info.tap, "pooling": info.pooling},
            dimension_names=("row", *axes_of(name, len(info.shape))) if has_names else None,
        )
        digests[key] = metadata_digest(folder.path, key)
    return digests


def axes_of(layer: str, ndim: int) -> tuple[str, ...]:
    """Names of a layer's axes except the rows; they differ between layers, as the lengths do.

    Examples
    --------
    >>> axes_of("res5", 1), axes_of("res4", 3)
    (('res5_feature',), ('res4_channel', 'res4_height', 'res4_width'))
    """
    of = {1: ("feature",), 3: ("channel", "height", "width")}
    return tuple(f"{layer}_{axis}" for axis in of.get(ndim, tuple(f"axis{axis}" for axis in range(1, ndim + 1))))


def expected_metadata(manifest: Manifest) -> dict[str, str]:
    """Texts of all `zarr.json` below the root, by path, in the form that matches the digests in the manifest."""
    now = _texts(manifest, groups=paths.GROUPS, has_names=True)
    before = _texts(manifest, groups=paths.OLDER_GROUPS, has_names=False)

    def is_right(path: str, text: str) -> bool:
        key = path.removesuffix(f"/{paths.METADATA}")
        return hashlib.sha256(text.encode()).hexdigest() == manifest.metadata.get(key)

    return before | now | {path: text for path, text in before.items() if is_right(path, text)}


def _texts(manifest: Manifest, *, groups: Sequence[str], has_names: bool) -> dict[str, str]:
    """Texts of all `zarr.json` below the root, by path, as this version or earlier ones write them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(Path(scratch))
        digests = any(map(manifest.has_digests, manifest.splits))
        keys = list(write_groups(folder, manifest, groups=groups))
        keys += write_row_arrays(folder, manifest, digests=digests, has_names=has_names)
        for name, info in manifest.layers.items():
            keys += write_layer(folder, manifest, name, info, has_names=has_names)
        return {metadata_key(key): (folder.path / metadata_key(key)).read_text() for key in keys}


def metadata_digest(root: Path, key: str) -> str:
    """SHA-256 of the `zarr.json` of a group or an array."""
    return hashlib.sha256((root / metadata_key(key)).read_bytes()).hexdigest()
