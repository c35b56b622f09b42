"""How good are the frozen features of a vision model, layer by layer: the Python interface.

`featbench.knn(train_x, train_y, val_x, val_y, k=20)` evaluates arrays or tensors, `featbench.open("features/mine")`
opens what `bench extract` has stored; `docs/python.md` shows them all. Importing this module imports nothing else: each
name is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featbench._diagnose import Diagnosis, compare, diagnose
    from featbench._extract import extract
    from featbench._features import Features, open
    from featbench._kmeans import ClusterResults, kmeans
    from featbench._knn import KnnResults, knn
    from featbench.evaluate.cluster_results import ClusterResult
    from featbench.evaluate.results import KnnResult
    from featbench.store.errors import BenchError

__version__ = "0.1.0"

_HOMES = {
    "BenchError": "featbench.store.errors",
    "ClusterResult": "featbench.evaluate.cluster_results",
    "ClusterResults": "featbench._kmeans",
    "Diagnosis": "featbench._diagnose",
    "Features": "featbench._features",
    "KnnResult": "featbench.evaluate.results",
    "KnnResults": "featbench._knn",
    "compare": "featbench._diagnose",
    "diagnose": "featbench._diagnose",
    "extract": "featbench._extract",
    "kmeans": "featbench._kmeans",
    "knn": "featbench._knn",
    "open": "featbench._features",
}
"""Where each name is defined."""

__all__ = [
    "BenchError",
    "ClusterResult",
    "ClusterResults",
    "Diagnosis",
    "Features",
    "KnnResult",
    "KnnResults",
    "compare",
    "diagnose",
    "extract",
    "kmeans",
    "knn",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOMES[name])
    if name in globals():  # a package of that name, which can be called, and was loaded just now
        return globals()[name]
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Door(ModuleType):
    """The module itself: the package of stage one has the name of its function `extract`, and takes its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "extract" and isinstance(value, ModuleType):
            value.__class__ = _Extract
        super().__setattr__(name, value)


class _Extract(ModuleType):
    """The package `featbench.extract`, which can be called as the function."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return import_module("featbench._extract").extract(*args, **settings)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(import_module("featbench._extract").extract)


sys.modules[__name__].__class__ = _Door
