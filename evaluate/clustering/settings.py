"""What changes the result of k-means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KmeansSettings:
    """How to cluster; each changes the result."""

    num_clusters: int = 1
    normalize: bool = True
    """Whether each row is divided by its length first."""

    spherical: bool = False
    """Whether each centroid is divided by its length after every iteration."""

    init: str = "k-means++"
    """`k-means++`, `random`, or a .npy file."""

    restarts: int | None = None
    """Starts on the sample; by default 10, and fewer where they would take longer than a few iterations."""

    iterations: int = 100
    """Most passes over all rows, or as many rows in mini-batches."""

    tolerance: float = 1e-6
    """Stop when an iteration, or ten mini-batches, lower the objective by no more than this fraction of it."""

    mini_batch: int | None = None
    """Rows after which the centroids are updated; None: after all rows."""

    seed: int = 0


DEFAULT_SETTINGS = KmeansSettings()
