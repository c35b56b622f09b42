"""Checks before a run that the images are still those that the features were made from.

Every image that is read is compared with its stored digest (`featbench.store.writer`). The check here also finds
changed images that would not be read: those of complete chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime

import numpy as np

from featbench.extract.data.pictures import ImageSource
from featbench.extract.errors import ImageError
from featbench.store import FeatureSet
from featbench.store.paths import DIGESTS
from featbench.store.typing import Bools, Ints
from featbench.store.writer import other_images

logger = logging.getLogger(__name__)

SUSPECTS = 2000
"""Most images of a split that are checked because their files changed after the feature set was created."""

OTHERS = 256
"""Most images of a split that are checked although their files did not change."""


def refuse_other_images(features: FeatureSet, sources: Mapping[str, ImageSource]) -> None:
    """Compare some images with the digests in the feature set.

    These are the images whose files changed since it was created, and the others: all of them if they
    are few, otherwise an evenly spaced sample. Times of change only decide which images are checked.

    Raises
    ------
    StoreError
        If the contents of one differ; the message names the first.
    """
    for split, source in sources.items():
        if not features.has_digests(split):
            continue
        grid, is_written = features.grid(split), features.is_committed(split, DIGESTS)
        known = np.repeat(is_written, grid.rows_per_chunk)[: grid.num_rows]
        rows = np.array(_rows_to_check(features, known, source.changed()), np.int64)
        changed: list[int] = []
        for chunk in np.unique(rows // grid.rows_per_chunk).tolist():  # rows are few, chunks may be millions
            stored, start = features.digests_chunk(split, chunk), grid.rows(chunk).start
            inside = rows[rows // grid.rows_per_chunk == chunk].tolist()
            changed += [row for row in inside if stored[row - start] and _differs(source, row, stored[row - start])]
        if changed:
            raise other_images(features, split, np.array(changed, np.int64))


def note_missing_digests(features: FeatureSet) -> None:
    """Warn that images can't be compared if the feature set has no digests of them."""
    if any(
        not features.has_digests(split) and features.num_committed(split, "valid") for split in features.manifest.splits
    ):
        logger.warning(
            "%s: made by a version that stored no digests of images, so whether they are still the same can't be "
            "checked",
            features.path,
        )


def _rows_to_check(features: FeatureSet, known: Bools, changed: Ints) -> list[int]:
    since = _nanoseconds(features.manifest.created)
    newer = changed > since
    return sorted(_spread(np.flatnonzero(known & newer), SUSPECTS) + _spread(np.flatnonzero(known & ~newer), OTHERS))


def _spread(rows: Ints, most: int) -> list[int]:
    if len(rows) <= most:
        return [int(row) for row in rows]
    return [int(row) for row in rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]]


def _differs(source: ImageSource, row: int, stored: int) -> bool:
    try:
        return source.digest(row) != int(stored)
    except ImageError:  # reported when the run reads it
        return False


def _nanoseconds(created: str) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp()) * 10**9
    except ValueError:
        return 0
