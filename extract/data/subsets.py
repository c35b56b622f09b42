"""Subsets of a split: at most a number of images, in total or of each class.

The choice depends only on the seed and the images' paths, so it is the same on every machine, and a
smaller subset is part of a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from featbench.store.typing import Ints


def chosen_rows(
    paths: Sequence[str], labels: Ints, *, limit: int | None = None, per_class: int | None = None, seed: int = 0
) -> Ints:
    """Choose rows at random; they stay in order.

    Parameters
    ----------
    paths : sequence of str
        Paths of all N rows.
    labels : ndarray of shape (N,)
        With `per_class`, rows without a label (-1) are not chosen.
    limit : int, optional
        Most rows in total.
    per_class : int, optional
        Most rows of each class.
    seed : int
        Seed of the choice.

    Examples
    --------
    >>> chosen_rows(list("abcdef"), np.array([0, 0, 0, 1, 1, -1]), per_class=1, seed=3)
    array([0, 4])
    """
    order = np.argsort(_lots(paths, seed), kind="stable")
    if per_class is not None:
        order = order[labels[order] >= 0]
        by_class = order[np.argsort(labels[order], kind="stable")]  # at random within a class
        first = np.searchsorted(labels[by_class], labels[by_class])
        order = by_class[np.arange(len(by_class)) - first < per_class]
        order = order[np.argsort(_lots([paths[row] for row in order.tolist()], seed), kind="stable")]
    return np.sort(order[:limit])


def _lots(paths: Sequence[str], seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A pseudorandom number for each path."""
    salt = seed.to_bytes(16, "little", signed=True)
    digests = (
        hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8, salt=salt).digest() for path in paths
    )
    return np.frombuffer(b"".join(digests), np.uint64)
