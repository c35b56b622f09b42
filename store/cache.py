"""Results of stage two, kept beside the features they came from.

Each lies in a Zarr group of its own, written aside and renamed into place, with the sha256 of every
array. What can't be trusted is as if it were not there: it can always be computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from store import arrays
from store.durable import PARTIAL, DurableStore, cannot_write, sync_folder
from store.errors import StoreError
from store.feature_set import FeatureSet

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 16_384


def save_cached(
    features: FeatureSet, kind: str, key: str, values: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]
) -> None:
    """Keep arrays and facts under `kind/key`, replacing what was there; where that can't be, warn and go on.

    Parameters
    ----------
    features : FeatureSet
        Where to keep them.
    kind : {"neighbours", "clusters"}
        Folder.
    key : str
        Says what they were computed from.
    values : mapping of str to ndarray
        Rows first.
    facts : mapping
        Whatever JSON can hold.
    """
    final = features.path / kind / key
    partial = final.with_name(f".{key}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        _write(partial, values, facts)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(final.parent)
    except (OSError, StoreError) as error:
        # The results are right without it; another process may also have kept the same at this moment.
        logger.warning("%s: not kept for later: %s", final, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, values: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> None:
    digests = {name: _digest(value) for name, value in values.items()}
    zarr.create_group(DurableStore(folder), attributes={"facts": dict(facts), "sha256": digests})
    for name, value in values.items():
        rows_per_chunk = max(1, min(ROWS_PER_CHUNK, len(value)))
        array = arrays.create_array(
            folder, name, shape=value.shape, rows_per_chunk=rows_per_chunk, dtype=str(value.dtype)
        )
        arrays.write_rows(array, 0, value)


def load_cached(features: FeatureSet, kind: str, key: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
    """Return what was kept under `kind/key`, or None if there is nothing that can be trusted."""
    path = features.path / kind / key
    if not path.is_dir():
        return None
    try:
        group = zarr.open_group(DurableStore(path, read_only=True), mode="r", use_consolidated=False)
        digests: Any = group.attrs["sha256"]
        facts: Any = group.attrs["facts"]
        values = {name: np.asarray(arrays.open_array(path, name)[:]) for name in digests}
        if {name: _digest(value) for name, value in values.items()} == digests:
            return values, dict(facts)
        reason = "its sha256 differs"
    except Exception as error:  # Zarr raises builtin errors of many kinds for damage
        reason = str(error)
    logger.warning("%s is damaged (%s) and is computed anew", path, reason)
    return None


def has_cached(features: FeatureSet, kind: str, key: str) -> bool:
    """Whether anything is kept under `kind/key`, damaged or not."""
    return (features.path / kind / key).is_dir()


def drop_cached(features: FeatureSet, kind: str, key: str) -> None:
    """Remove what was kept under `kind/key`, and its claim, where that can be done."""
    shutil.rmtree(features.path / kind / key, ignore_errors=True)
    with suppress(OSError):
        _claim(features, kind, key).unlink(missing_ok=True)


@contextmanager
def claimed(features: FeatureSet, kind: str, key: str) -> Iterator[bool]:
    """Claim the work of computing `kind/key`; yields False if another process that is alive has the claim.

    The claim is the operating system's lock (flock): it ends with the process, however that ends.

    Raises
    ------
    StoreError
        If the store can't be written.
    """
    path = _claim(features, kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _claim(features: FeatureSet, kind: str, key: str) -> Path:
    return features.path / kind / f".{key}.claim"


def _digest(value: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(value).view(np.uint8).data).hexdigest()
