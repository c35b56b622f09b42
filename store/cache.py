"""Cached results of stage two, beside the features they were computed from.

Each is a separate Zarr group, written under a temporary name and renamed. A digest covers everything
that is read back: kind and key, facts, and name, type, shape and bytes of every array. What does not
match is treated as absent, since it can always be computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from featbench.store import arrays, paths
from featbench.store.durable import cannot_write, sync_folder
from featbench.store.errors import DamagedError, StoreError
from featbench.store.feature_set import FeatureSet
from featbench.store.layers import checked_name
from featbench.store.lock import exclusive
from featbench.store.manifest import digest_of
from featbench.store.regular import read_regular
from featbench.store.typing import Array, Json
from featbench.store.zarr_store import DurableStore

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 16_384

_warned: set[tuple[Path, int]] = set()
"""Damaged results for which a warning has been logged, with their inodes."""


def save_cached(
    features: FeatureSet, kind: str, key: str, values: Mapping[str, Array], facts: Mapping[str, Any]
) -> None:
    """Cache arrays and facts under `kind/key`, replacing an older result; if writing fails, only warn.

    Parameters
    ----------
    features : FeatureSet
        The feature set.
    kind : {"neighbours", "clusters", "predictions"}
        Kind of result, a group of the feature set.
    key : str
        Identifies what they were computed from.
    values : mapping of str to ndarray
        Rows first.
    facts : mapping
        Anything that can be written as JSON.
    """
    final = paths.cached_folder(features.path, kind, key)
    partial, replaced = paths.partial_name(final), paths.partial_name(final)
    try:
        _write(partial, (kind, key), values, facts)
        with suppress(FileNotFoundError):
            final.rename(replaced)
        partial.rename(final)
        sync_folder(final.parent)
    except (OSError, StoreError) as error:
        # The results are right without it; another process may also have cached the same at this moment.
        logger.warning("%s: not cached: %s", final, error)
    finally:
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, origin: tuple[str, str], values: Mapping[str, Array], facts: Json) -> None:
    facts = json.loads(json.dumps(dict(facts)))
    described = {name: _described(value) for name, value in values.items()}
    attributes = {"facts": facts, "arrays": described, "digest": _digest(origin, facts, described)}
    zarr.create_group(DurableStore(folder), attributes=attributes)
    for name, value in values.items():
        rows_per_chunk = max(1, min(ROWS_PER_CHUNK, len(value)))
        array = arrays.create_array(
            folder, name, shape=value.shape, rows_per_chunk=rows_per_chunk, dtype=str(value.dtype)
        )
        arrays.write_rows(array, 0, value)


def load_cached(
    features: FeatureSet, kind: str, key: str, *, without_digest: bool = False
) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """Return what is cached under `kind/key`, or None if nothing is, or it is damaged.

    Parameters
    ----------
    features, kind, key
        As for `save_cached`.
    without_digest : bool
        Also return results of version 0.1.0. Their arrays have a sha256 of their bytes, but no digest covers
        the facts or the arrays' types and shapes: the caller must check those that it uses.
    """
    path = paths.cached_folder(features.path, kind, key)
    if not path.is_dir():
        return None
    try:
        attributes = _attributes(path)
        if _is_older(attributes):
            return _load_older(path, attributes) if without_digest else None
        _check(attributes, (kind, key))
        values = _read(path, {name: tuple(of["shape"]) for name, of in attributes["arrays"].items()})
        if {name: _described(value) for name, value in values.items()} != attributes["arrays"]:
            raise DamagedError("the digest of an array differs")
    except Exception as error:  # damage makes json and Zarr raise builtin errors of many kinds
        _warn_once(path, str(error) or type(error).__name__)
        return None
    return values, attributes["facts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedResult:
    """A cached result whose arrays have not been read."""

    key: str
    facts: Mapping[str, Any]
    """Empty if there is a fault."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each array."""

    fault: str | None = None
    """Why it cannot be loaded, if that is known without reading its arrays."""


def list_cached(
    features: FeatureSet, kind: str, *, without_digest: bool = False, with_arrays: bool = False
) -> list[CachedResult]:
    """List what is cached of a kind, by key.

    Facts and shapes are those that the digest covers. A result whose digest differs, or that has none (version 0.1.0),
    is listed with its fault alone. The bytes of the arrays are checked by `load_cached`, or here if asked for.

    Parameters
    ----------
    features : FeatureSet
        The feature set.
    kind : {"neighbours", "clusters", "predictions"}
        Kind of result.
    without_digest : bool
        Also list facts of version 0.1.0, without shapes; see `load_cached`.
    with_arrays : bool
        Read all arrays, too: a result with a damaged one is listed with its fault alone.
    """
    found = (
        _listed(path, kind, without_digest=without_digest, with_arrays=with_arrays)
        for path in paths.cached_folders(features.path, kind)
    )
    return [each for each in found if each is not None]


def _listed(path: Path, kind: str, *, without_digest: bool, with_arrays: bool) -> CachedResult | None:
    """Describe a cached result; None if another process has removed it meanwhile."""
    try:
        attributes = _attributes(path)
        if _is_older(attributes) and without_digest:
            if with_arrays:
                _load_older(path, attributes)
            return CachedResult(key=path.name, facts=dict(attributes["facts"]), shapes={})
        if _is_older(attributes):
            raise DamagedError("written by version 0.1.0, without a digest of its facts")
        _check(attributes, (kind, path.name))
        shapes = {name: tuple(map(int, of["shape"])) for name, of in attributes["arrays"].items()}
        if with_arrays:
            _check_arrays(path, attributes["arrays"])
        return CachedResult(key=path.name, facts=dict(attributes["facts"]), shapes=shapes)
    except Exception as error:  # as in `load_cached`
        if not path.is_dir():
            return None
        return CachedResult(key=path.name, facts={}, shapes={}, fault=str(error) or type(error).__name__)


def _attributes(path: Path) -> Json:
    """Read what describes a cached result; the message of an error is for people."""
    name = paths.METADATA
    try:
        attributes: Json = json.loads(read_regular(path / name))["attributes"]
    except FileNotFoundError:
        raise DamagedError(f"{name} is missing") from None
    except OSError as error:
        raise DamagedError(f"{name} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name} is not JSON") from error
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{name} has no attributes") from error
    return attributes


def _is_older(attributes: Json) -> bool:
    return set(attributes) == {"facts", "sha256"}


def _check(attributes: Json, origin: tuple[str, str]) -> None:
    if not {"digest", "facts", "arrays"} <= set(attributes):
        raise DamagedError(f"{paths.METADATA} has no facts, arrays or digest")
    if attributes["digest"] != _digest(origin, attributes["facts"], attributes["arrays"]):
        raise DamagedError("its digest differs")


def _check_arrays(path: Path, described: Json) -> None:
    """Compare all arrays with their digests, some rows in memory at a time."""
    for name, of in described.items():
        with _named_damage(name):
            array = arrays.open_array(path, checked_name(name))
            digest = hashlib.sha256()
            if list(array.shape) == of["shape"]:
                for start in range(0, array.shape[0], ROWS_PER_CHUNK):
                    digest.update(_content(np.asarray(array[start : start + ROWS_PER_CHUNK])))
            if (np.dtype(array.dtype).name, digest.hexdigest()) != (of["dtype"], of["sha256"]):
                raise DamagedError("its digest differs")


@contextmanager
def _named_damage(name: str) -> Iterator[None]:
    """Say of which array any error is: Zarr and its codecs raise many kinds, with words that help nobody."""
    try:
        yield
    except Exception as error:
        raise DamagedError(f"array {name} is damaged or missing") from error


def _load_older(path: Path, attributes: Json) -> tuple[dict[str, Array], dict[str, Any]]:
    values = _read(path, dict.fromkeys(attributes["sha256"]))
    if {name: _described(value)["sha256"] for name, value in values.items()} != attributes["sha256"]:
        raise DamagedError("the digest of an array differs")
    return values, dict(attributes["facts"])


def _read(path: Path, shapes: Mapping[str, tuple[int, ...] | None]) -> dict[str, Array]:
    values = {}
    for name, shape in shapes.items():
        with _named_damage(name):
            array = arrays.open_array(path, checked_name(name))
            if shape is not None and array.shape != shape:  # before memory is allocated for it
                raise DamagedError(f"it has shape {array.shape}, {shape} was written")
            values[name] = np.asarray(array[:])
    return values


def _warn_once(path: Path, reason: str) -> None:
    """Warn of a damaged result once until it changes, since it is loaded several times before it is replaced."""
    try:
        seen = (path, path.stat().st_ino)
    except OSError:  # another process has removed it meanwhile
        return
    if seen in _warned:
        return
    _warned.add(seen)
    logger.warning("%s is damaged (%s), so it is not used", path, reason)


def has_cached(features: FeatureSet, kind: str, key: str) -> bool:
    """Whether anything is cached under `kind/key`, damaged or not."""
    return paths.cached_folder(features.path, kind, key).is_dir()


def drop_cached(features: FeatureSet, kind: str, key: str) -> None:
    """Remove what is cached under `kind/key`, and its claim, if possible."""
    folder = paths.cached_folder(features.path, kind, key)
    removed = paths.partial_name(folder)
    with suppress(OSError):
        folder.rename(removed)  # so that another process finds all of it or nothing
        shutil.rmtree(removed, ignore_errors=True)
    with suppress(OSError):
        paths.claim_file(features.path, kind, key).unlink(missing_ok=True)


def drop_all_cached(features: FeatureSet, kind: str, prefix: str) -> None:
    """Remove everything whose key begins with `prefix`, also what killed processes left half-written, if possible.

    What another running process has claimed stays.
    """
    for path in paths.cache_files(features.path, kind, prefix):
        with suppress(OSError, StoreError), claimed(features, kind, paths.cached_key(path.name)) as is_mine:
            if is_mine:
                drop_cached(features, kind, paths.cached_key(path.name))
                shutil.rmtree(path, ignore_errors=True)


def drop_half_written(features: FeatureSet, kind: str, key: str) -> None:
    """Remove what killed processes left half-written of `kind/key`, if possible; only while none writes it."""
    folder = paths.cached_folder(features.path, kind, key)
    for path in paths.cache_files(features.path, kind, folder.name):
        if paths.is_leftover_of(folder.name, path.name):
            shutil.rmtree(path, ignore_errors=True)


def cached_keys(features: FeatureSet, kind: str) -> list[str]:
    """Return the keys of everything that is cached, damaged or not, but for those too long for a folder's name."""
    return [path.name for path in paths.cached_folders(features.path, kind)]


@contextmanager
def claimed(features: FeatureSet, kind: str, key: str) -> Iterator[bool]:
    """Claim the work of computing `kind/key`; yields False if another running process has the claim.

    Raises
    ------
    StoreError
        If the store can't be written.
    """
    path = paths.claim_file(features.path, kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error
    with exclusive(path) as is_mine:
        yield is_mine


def _described(value: Array) -> Json:
    return {
        "dtype": value.dtype.name, "shape": list(value.shape), "sha256": hashlib.sha256(_content(value)).hexdigest(),
    }  # fmt: skip


def _content(value: Array) -> memoryview:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _digest(origin: tuple[str, str], facts: Json, described: Json) -> str:
    kind, key = origin
    return digest_of({"kind": kind, "key": key, "facts": facts, "arrays": described})
