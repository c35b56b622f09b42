"""Clusterings as they are kept in a feature set, computed here by brute force in float64."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from featbench.store import FeatureSet, save_cached
from featbench.store.typing import Array, Doubles, Ints

SETTINGS = {
    "normalize": True, "spherical": False, "init": "k-means++", "restarts": 10, "iterations": 100, "tolerance": 1e-6,
    "mini_batch": None, "seed": 0, "seeds": 1,
}  # fmt: skip


def rows_of(features: FeatureSet, layer: str, split: str, *, normalize: bool = True) -> tuple[Ints, Doubles]:
    """Rows with a readable image, and their features in float64, of length 1 if wanted."""
    rows = np.flatnonzero(features.valid(split))
    values = features.layer(split, layer).read()[rows].astype(np.float64)
    return rows, values / np.linalg.norm(values, axis=1, keepdims=True) if normalize else values


def nearest(values_ND: Doubles, centroids_KD: Doubles) -> tuple[Ints, Doubles, Doubles]:
    """The nearest centroid of each row, its distance, and that of the next one."""
    distances = np.sqrt(((values_ND[:, None] - centroids_KD) ** 2).sum(axis=2))
    ranked = np.sort(distances, axis=1)
    return distances.argmin(axis=1), ranked[:, 0], ranked[:, 1]


def keep(features: FeatureSet, layer: str, count: int, **settings: Any) -> dict[str, Array]:
    """Keep the clusters of the first `count` rows of train as centroids, and return the arrays."""
    settings = SETTINGS | settings
    data = {split: rows_of(features, layer, split, normalize=settings["normalize"]) for split in ("train", "val")}
    arrays: dict[str, Array] = {"centroids": data["train"][1][:count]}
    for split, (rows, values) in data.items():
        arrays[f"{split}_rows"] = rows
        found = nearest(values, arrays["centroids"])
        arrays |= dict(zip((split, f"{split}_distances", f"{split}_others"), found, strict=True))
    facts = {
        "layer": layer, "clusters": count, "made_from": [features.digest(split, layer) for split in data],
        "settings": settings, "objective": float((arrays["train_distances"] ** 2).sum()), "iterations": 1,
        "certified": True, "engine": "brute force", "num_reseeded": 0, "num_empty": 0, "seed": settings["seed"],
        "runs": [], "seconds": 0.1,
    }  # fmt: skip
    digest = hashlib.sha256(str(settings).encode()).hexdigest()[:16]
    save_cached(features, "clusters", f"{layer}-{count}-{digest}", arrays, facts)
    return arrays
