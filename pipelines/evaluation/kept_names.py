"""What a kept clustering is called in names of files and in tables: by the settings that are not the default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from featbench.evaluate.clustering.kept import KeptClustering
from featbench.evaluate.config import KmeansConfig
from featbench.evaluate.features.layers import short

_DEFAULTS = KmeansConfig().model_dump()

_UNNAMED = ("restarts",)
"""Settings that say how long a good start is sought; their default changed."""

_SHORT = {"mini_batch": "batch"}
"""Settings with a shorter name in names of files."""


def file_name(kept: KeptClustering) -> str:
    """Name for files: layer, number of clusters, and the settings that are not the default.

    Examples
    --------
    >>> kept = KeptClustering(
    ...     key="", layer="res5", num_clusters=10, dim=4, settings={"spherical": True, "seed": 3, "seeds": 5},
    ...     objective=1.5, iterations=7, certified=True, seconds=0.1, made_from=("", ""), is_current=True,
    ...     clusters_of=None,
    ... )
    >>> file_name(kept), settings_in_words(kept)
    ('res5_10_spherical_seed3_seeds5', 'spherical, seed 3, best of 5 runs')
    """
    origin = [f"of_{kept.clusters_of['features']}"] if kept.clusters_of else []
    return "_".join([short(kept.layer), str(kept.num_clusters), *origin, *_unusual(kept.settings)])


def settings_in_words(kept: KeptClustering) -> str:
    """Say the settings that matter most; `normalized` and `k-means++` go without saying."""
    settings = _DEFAULTS | dict(kept.settings)
    words = [] if settings["normalize"] else ["not normalized"]
    words += ["spherical"] * settings["spherical"]
    if kept.clusters_of:
        return ", ".join([*words, f"centroids of {kept.clusters_of['features']}"])
    words += [PurePath(str(settings["init"])).name] * (settings["init"] != _DEFAULTS["init"])
    words += [f"mini-batch {settings['mini_batch']}"] if settings["mini_batch"] else []
    words.append(f"seed {settings['seed']}")
    return ", ".join([*words, *[f"best of {settings['seeds']} runs"] * (settings["seeds"] > 1)])


def _unusual(settings: Mapping[str, Any]) -> list[str]:
    """Words for the settings that are not the default."""
    words = []
    for name, default in _DEFAULTS.items():
        value = settings.get(name, default)
        if value == default or name in _UNNAMED:
            continue
        if name == "normalize":
            words.append("unnormalized")
        elif name == "init":
            words.append(PurePath(str(value)).stem)
        else:
            words.append(name if value is True else f"{_SHORT.get(name, name)}{value}")
    return words
