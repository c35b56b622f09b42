"""A second copy of every `zarr.json` of a feature set, so that a damaged one can be put back.

Chunks can be extracted again, but without the manifest nobody knows of what. The copy is one file
beside the journals, with a digest of itself; whichever of the two is intact restores the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from store.durable import write_durably
from store.manifest import ATTRIBUTE, DIGEST, digest_of

COPY = "journals/metadata.json"


def save_copy(root: Path, keys: Iterable[str]) -> None:
    """Copy the `zarr.json` of the root and of the groups and arrays at `keys`."""
    files = {key: (root / key).read_text() for key in ("zarr.json", *(f"{key}/zarr.json" for key in keys))}
    text = json.dumps({"files": files, "sha256": digest_of(files)}, indent=1, ensure_ascii=False)
    write_durably(root / COPY, text.encode())


def read_copy(root: Path) -> Mapping[str, str] | None:
    """Return the copied texts by path; None if they can't be trusted."""
    try:
        content = json.loads((root / COPY).read_bytes())
        files = dict(content["files"])
        return files if digest_of(files) == content["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def metadata_faults(root: Path) -> dict[str, str]:
    """Say what is wrong, by path, with the `zarr.json` files and their copy."""
    faults, _ = _compare(root)
    return faults


def restore(root: Path) -> list[str]:
    """Put back what differs from the copy, or renew the copy; return the paths that were written. Under the lock.

    Where both the copy and the root's `zarr.json` are damaged, nothing can be put back.
    """
    faults, wanted = _compare(root)
    written = []
    for key in [key for key in faults if key in wanted]:
        write_durably(root / key, wanted[key].encode())
        written.append(key)
    manifest = _manifest_on_disk(root)
    if COPY in faults and manifest is not None and not faults.keys() - {COPY, *written}:
        save_copy(root, manifest["metadata"])
        written.append(COPY)
    return written


def _compare(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Faults by path, and the texts that are known to be right."""
    copy, manifest = read_copy(root) or {}, _manifest_on_disk(root)
    if copy and (manifest is None or manifest == _manifest(copy["zarr.json"])):
        return _differing(root, {key: _digest(text.encode()) for key, text in copy.items()}), dict(copy)
    # Without a copy, or with one from before the last layers were added, the manifest on disk is what counts.
    faults = {COPY: "missing, not what was written, or older than the manifest"}
    if manifest is None:
        return {"zarr.json": DIFFERS} | faults, {}
    digests = {f"{key}/zarr.json": digest for key, digest in manifest["metadata"].items()}
    right = {key: text for key, text in copy.items() if digests.get(key) == _digest(text.encode())}
    return _differing(root, digests) | faults, right


def _differing(root: Path, digests: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for key, digest in digests.items():
        try:
            if _digest((root / key).read_bytes()) != digest:
                found[key] = DIFFERS
        except OSError as error:
            found[key] = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return found


def _manifest_on_disk(root: Path) -> Mapping[str, Mapping[str, str]] | None:
    try:
        return _manifest((root / "zarr.json").read_bytes())
    except OSError:
        return None


def _manifest(text: str | bytes) -> Mapping[str, Mapping[str, str]] | None:
    """The manifest in the root's `zarr.json`, if it matches its digest."""
    try:
        attributes = json.loads(text)["attributes"]
        manifest: Mapping[str, Mapping[str, str]] = attributes[ATTRIBUTE]
        return manifest if digest_of(manifest) == attributes[DIGEST] else None
    except (ValueError, KeyError, TypeError):
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


DIFFERS = "not what was written (its sha256 differs)"
