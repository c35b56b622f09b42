"""The groups and arrays of a feature set, all that it has besides chunks and journals, as its manifest says."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import zarr

from featbench.store import arrays
from featbench.store.durable import DurableStore
from featbench.store.folder import Folder
from featbench.store.manifest import DIGESTS, LayerInfo, Manifest

GROUPS = ("journals", "neighbours", "clusters")
"""Besides the splits. `results` is a plain folder, so that all `.json` files in it are results."""


def write_groups(folder: Folder, manifest: Manifest, *, groups: Sequence[str] = GROUPS) -> dict[str, str]:
    """Write the groups, each a folder; return the digests of their metadata."""
    attributes: dict[str, dict[str, object]] = {"": {}, **{name: {} for name in groups}}
    for split, info in manifest.splits.items():
        attributes[split] = {"num_rows": info.num_rows, "listing": info.listing}
    for key, each in attributes.items():
        zarr.create_group(DurableStore(folder.path, within=folder), path=key, attributes=each, overwrite=bool(key))
    return {key: metadata_digest(folder.path, key) for key in attributes if key}


def write_rows_arrays(folder: Folder, manifest: Manifest, *, digests: bool, has_names: bool = True) -> dict[str, str]:
    """Write the arrays that every split has, without their chunks; return the digests of their metadata.

    `digests` is whether digests of the images are kept, `has_names` whether axes have names; see `store/FORMAT.md`.
    """
    wanted = {"labels": "int64", "paths": "str", "valid": "bool", **({DIGESTS: "uint64"} if digests else {})}
    metadata = {}
    for split, info in manifest.splits.items():
        for name, dtype in wanted.items():
            by_chunk = name in ("valid", DIGESTS)
            rows = manifest.rows_per_chunk if by_chunk else min(arrays.ROWS_PER_LABEL_CHUNK, info.num_rows)
            key = f"{split}/{name}"
            arrays.create_array(
                folder,
                key,
                shape=(info.num_rows,),
                rows_per_chunk=rows,
                dtype=dtype,
                dimension_names=("row",) if has_names else None,
            )
            metadata[key] = metadata_digest(folder.path, key)
    return metadata


def write_layer(
    folder: Folder, manifest: Manifest, name: str, info: LayerInfo, *, has_names: bool = True
) -> dict[str, str]:
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
            dimension_names=("row", *axes_of(name, len(info.shape))) if has_names else None,
        )
        digests[key] = metadata_digest(folder.path, key)
    return digests


def axes_of(layer: str, ndim: int) -> tuple[str, ...]:
    """Names of a layer's axes besides the rows; no other layer has them, since its axes have other lengths.

    Examples
    --------
    >>> axes_of("res5", 1), axes_of("res4", 3)
    (('res5_feature',), ('res4_channel', 'res4_height', 'res4_width'))
    """
    of = {1: ("feature",), 3: ("channel", "height", "width")}
    return tuple(f"{layer}_{axis}" for axis in of.get(ndim, tuple(f"axis{axis}" for axis in range(1, ndim + 1))))


def expected_metadata(manifest: Manifest) -> dict[str, str]:
    """Texts of all `zarr.json` below the root, by path: in the form that the manifest has digests of, if any is."""
    now, before = _texts(manifest, has_names=True), _texts(manifest, has_names=False)

    def is_right(path: str, text: str) -> bool:
        return hashlib.sha256(text.encode()).hexdigest() == manifest.metadata.get(path.removesuffix("/zarr.json"))

    return {path: text if is_right(path, text) else now.get(path, text) for path, text in before.items()}


def _texts(manifest: Manifest, *, has_names: bool) -> dict[str, str]:
    """Texts of all `zarr.json` below the root, by path, as this version writes them, or as earlier ones did."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(Path(scratch))
        digests = any(map(manifest.has_digests, manifest.splits))
        keys = list(write_groups(folder, manifest, groups=GROUPS if has_names else (*GROUPS, "results")))
        keys += write_rows_arrays(folder, manifest, digests=digests, has_names=has_names)
        for name, info in manifest.layers.items():
            keys += write_layer(folder, manifest, name, info, has_names=has_names)
        return {f"{key}/zarr.json": (folder.path / key / "zarr.json").read_text() for key in keys}


def metadata_digest(root: Path, key: str) -> str:
    """SHA-256 of the `zarr.json` of a group or an array."""
    return hashlib.sha256((root / key / "zarr.json").read_bytes()).hexdigest()
