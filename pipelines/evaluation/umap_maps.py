"""UMAP's two dimensions, by umap-learn, an optional extra."""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np

from featbench.store import BenchError
from featbench.store.errors import first_line
from featbench.store.typing import Doubles, Floats

NEIGHBOURS = 15
"""UMAP's own default; fewer where there are fewer points."""

FEWEST = 5
"""Fewer points than these have no neighbourhoods to keep."""

SEED = 0


class UmapError(BenchError):
    """umap-learn can't be used."""


def load_umap(*, option: str, instead: str) -> ModuleType:
    """Import umap-learn.

    Parameters
    ----------
    option : str
        What asked for it, for messages.
    instead : str
        What does without it, for messages.

    Raises
    ------
    UmapError
        If it is not installed, or can't be loaded.
    """
    try:
        version("umap-learn")  # the package called umap is another one
        import umap
    except PackageNotFoundError as error:
        raise UmapError(
            f"{option} needs umap-learn, which is not installed: pip install 'featbench[umap]', or {instead}"
        ) from error
    except ImportError as error:  # one of its own requirements
        raise UmapError(
            f"{option}: umap-learn can't be loaded ({first_line(error)}): pip install --upgrade umap-learn, or "
            f"{instead}"
        ) from error
    found: ModuleType = umap
    return found


def umap_of(umap: Any, features_PD: Doubles | Floats, *, metric: str = "euclidean") -> Doubles:
    """Reduce at least `FEWEST` rows to two dimensions, the same way each time, shape (P, 2)."""
    neighbours = min(NEIGHBOURS, len(features_PD) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small sets of points, whose start is computed in another way
        reducer = umap.UMAP(n_neighbors=neighbours, metric=metric, random_state=SEED, n_jobs=1)
        return np.asarray(reducer.fit_transform(features_PD), np.float64)
