"""A copy of every `zarr.json` of a feature set, from which damaged ones are restored.

Chunks can be extracted again, but not without the manifest, which says from what. The copy is one file
beside the journals, with a digest of itself; whichever of the two is intact restores the other. It is
written before the manifest, so that it never lacks a layer of which a chunk is journalled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featbench.store.errors import BenchError
from featbench.store.folder import Folder
from featbench.store.journal import journalled
from featbench.store.manifest import Manifest, digest_of
from featbench.store.paths import JOURNALS, METADATA, METADATA_COPY, metadata_key
from featbench.store.regular import read_regular

DIFFERS = "not what was written (its sha256 differs)"
MISSING_LAYER = "not what was written, and its copy is from before these layers were added: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Faults of the metadata, and the texts that are known to be right."""

    faults: Mapping[str, str]
    """By path."""

    right: Mapping[str, str]
    """Right texts by path, if they are known."""

    manifest: Manifest | None


def save(folder: Folder, manifest: Manifest) -> None:
    """Write the copy of all metadata, then the manifest into the root's `zarr.json`. Call it under the lock.

    Consolidated metadata (`zarr.consolidate_metadata`) are removed, since they would hide new layers from readers.
    """
    document = json.loads(folder.read(METADATA) or b"{}") | {"attributes": manifest.to_attributes()}
    document.pop("consolidated_metadata", None)
    root = as_zarr_writes(document)
    save_copy(folder, root.decode(), manifest)
    folder.write(METADATA, root)
    for key in manifest.metadata:
        content = folder.read(metadata_key(key))
        if content is not None and plain(content) != content:
            folder.write(metadata_key(key), plain(content))


def save_copy(folder: Folder, root: str, manifest: Manifest) -> None:
    """Write the copy: the root's `zarr.json`, and the others as far as they are intact on disk or in the old copy."""
    before, files = read_copy(folder.path) or {}, {METADATA: root}
    for key, digest in manifest.metadata.items():
        path = metadata_key(key)
        for content in (plain(folder.read(path) or b""), before.get(path, "").encode()):
            if _digest(content) == digest:
                files[path] = content.decode()
    text = json.dumps({"files": files, "sha256": digest_of(files)}, indent=1, ensure_ascii=False)
    folder.write(METADATA_COPY, text.encode())


def read_copy(root: Path) -> Mapping[str, str] | None:
    """Return the copied texts by path; None if the copy is not intact."""
    try:
        content = json.loads(read_regular(root / METADATA_COPY))
        files = dict(content["files"])
        is_right = digest_of(files) == content["sha256"] and all(isinstance(text, str) for text in files.values())
        return files if is_right and METADATA in files else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def metadata_faults(root: Path) -> Mapping[str, str]:
    """Return the faults of the `zarr.json` files and their copy, by path."""
    return compare(root).faults


def renew_copy(folder: Folder) -> None:
    """Rewrite the copy if nothing else is at fault: a run was killed before it had written it."""
    if compare(folder.path).faults.keys() == {METADATA_COPY}:
        restore(folder)


def restore(folder: Folder, made: Mapping[str, str] | None = None) -> list[str]:
    """Restore metadata from the copy, or the copy from the metadata; return what was written. Call it under the lock.

    If both the copy and the root's `zarr.json` are damaged, nothing can be restored.

    Parameters
    ----------
    folder : Folder
        The feature set's folder.
    made : mapping of str to str, optional
        Texts by path, generated from the manifest, for those without an intact copy.
    """
    found = compare(folder.path)
    written = []
    for path in found.faults:
        text = found.right.get(path) or _made(path, made or {}, found.manifest)
        if text is not None:
            folder.write(path, text.encode())
            written.append(path)
    root = folder.read(METADATA)
    if (
        METADATA_COPY in found.faults
        and found.manifest is not None
        and root is not None
        and not set(found.faults) - {METADATA_COPY, *written}
    ):
        save_copy(folder, plain(root).decode(), found.manifest)
        written.append(METADATA_COPY)
    return written


def _made(path: str, made: Mapping[str, str], manifest: Manifest | None) -> str | None:
    digest = manifest.metadata.get(path.removesuffix(f"/{METADATA}")) if manifest is not None else None
    text = made.get(path)
    return text if text is not None and _digest(text.encode()) == digest else None


def compare(root: Path) -> Comparison:
    """Compare all metadata with the copy, and both with the digests in the manifest."""
    copy = read_copy(root) or {}
    on_disk, copied = _manifest(_content(root / METADATA)), _manifest(copy.get(METADATA, "").encode())
    if on_disk is None:
        return _without_manifest(root, copy, copied)
    right = {path: text for path, text in copy.items() if _digests(on_disk).get(path) == _digest(text.encode())}
    faults = _differing(root, _digests(on_disk))
    if copied != on_disk or not right.keys() >= _digests(on_disk).keys():
        return Comparison(
            faults=faults | {METADATA_COPY: "missing, damaged, or from another manifest"}, right=right, manifest=on_disk
        )
    if not _is_same_group(_content(root / METADATA), copy[METADATA].encode()):
        faults, right = {METADATA: DIFFERS, **faults}, {METADATA: copy[METADATA], **right}
    return Comparison(faults=faults, right=right, manifest=on_disk)


def _without_manifest(root: Path, copy: Mapping[str, str], copied: Manifest | None) -> Comparison:
    """The root's `zarr.json` is damaged: use the copy, unless that would lose a layer."""
    what = DIFFERS if (root / METADATA).exists() else "missing"
    if copied is None:
        faults = {METADATA: what, METADATA_COPY: "missing or not what was written"}
        return Comparison(faults=faults, right={}, manifest=None)
    lost = sorted(journalled(root / JOURNALS) - {key.split("/")[-1] for key in copied.metadata})
    if lost:
        return Comparison(faults={METADATA: MISSING_LAYER + ", ".join(lost)}, right={}, manifest=None)
    faults = {METADATA: what, **_differing(root, _digests(copied))}
    return Comparison(faults=faults, right=copy, manifest=copied)


def _digests(manifest: Manifest) -> dict[str, str]:
    return {metadata_key(key): digest for key, digest in manifest.metadata.items()}


def _differing(root: Path, digests: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for path, digest in digests.items():
        try:
            if _digest(plain(read_regular(root / path))) != digest:
                found[path] = DIFFERS
        except OSError as error:
            found[path] = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return found


def plain(content: bytes) -> bytes:
    """Return a group's `zarr.json` without consolidated metadata, which featbench never reads."""
    if b'"consolidated_metadata"' not in content:
        return content
    try:
        document = json.loads(content)
        del document["consolidated_metadata"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return content
    return as_zarr_writes(document)


def as_zarr_writes(document: object) -> bytes:
    """Serialize metadata to the same bytes as Zarr."""
    return json.dumps(document, indent=2).encode()


def _is_same_group(content: bytes, copy: bytes) -> bool:
    return content == copy or (plain(content) != content and json.loads(plain(content)) == json.loads(copy))


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError:
        return b""


def _manifest(content: bytes) -> Manifest | None:
    """The manifest in a text of the root's `zarr.json`, if it matches its digest."""
    try:
        return Manifest.read(content, where="")
    except BenchError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
