"""The feature store: layout, format, durable writing, checked reading.

A store is a folder of feature sets; a feature set holds the features of one model on one
dataset, all layers and both splits, as Zarr arrays with a manifest and journals.
`store/FORMAT.md` specifies the format. Nothing here depends on models or on search. Names are imported
on first use, since importing Zarr takes a while and `bench --help` does not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featbench.store.cache import (
        CachedResult,
        cached_keys,
        claimed,
        drop_all_cached,
        drop_cached,
        drop_half_written,
        has_cached,
        list_cached,
        load_cached,
        save_cached,
    )
    from featbench.store.creation import RowFacts, SplitRows, add_layers, make_ready, open_or_create
    from featbench.store.errors import (
        BenchError,
        DamagedError,
        IncompleteError,
        MismatchError,
        StoreError,
        UnknownNameError,
        abbreviate,
        suggest,
    )
    from featbench.store.feature_set import FeatureSet
    from featbench.store.layers import LayerSpec, Pooling
    from featbench.store.manifest import LayerInfo, Manifest, SplitInfo
    from featbench.store.reader import Block, LayerReader
    from featbench.store.status import RankStatus
    from featbench.store.verification import Fault, verify
    from featbench.store.work import Work
    from featbench.store.work_queue import WorkQueue
    from featbench.store.writer import ChunkWriter

_HOMES = {
    "BenchError": "featbench.store.errors",
    "Block": "featbench.store.reader",
    "CachedResult": "featbench.store.cache",
    "ChunkWriter": "featbench.store.writer",
    "DamagedError": "featbench.store.errors",
    "Fault": "featbench.store.verification",
    "FeatureSet": "featbench.store.feature_set",
    "IncompleteError": "featbench.store.errors",
    "LayerInfo": "featbench.store.manifest",
    "LayerReader": "featbench.store.reader",
    "LayerSpec": "featbench.store.layers",
    "Manifest": "featbench.store.manifest",
    "MismatchError": "featbench.store.errors",
    "Pooling": "featbench.store.layers",
    "RankStatus": "featbench.store.status",
    "RowFacts": "featbench.store.creation",
    "SplitInfo": "featbench.store.manifest",
    "SplitRows": "featbench.store.creation",
    "StoreError": "featbench.store.errors",
    "UnknownNameError": "featbench.store.errors",
    "Work": "featbench.store.work",
    "WorkQueue": "featbench.store.work_queue",
    "abbreviate": "featbench.store.errors",
    "add_layers": "featbench.store.creation",
    "cached_keys": "featbench.store.cache",
    "claimed": "featbench.store.cache",
    "drop_all_cached": "featbench.store.cache",
    "drop_cached": "featbench.store.cache",
    "drop_half_written": "featbench.store.cache",
    "has_cached": "featbench.store.cache",
    "list_cached": "featbench.store.cache",
    "load_cached": "featbench.store.cache",
    "make_ready": "featbench.store.creation",
    "open_or_create": "featbench.store.creation",
    "save_cached": "featbench.store.cache",
    "suggest": "featbench.store.errors",
    "verify": "featbench.store.verification",
}
"""Where each name is defined."""

__all__ = [
    "BenchError",
    "Block",
    "CachedResult",
    "ChunkWriter",
    "DamagedError",
    "Fault",
    "FeatureSet",
    "IncompleteError",
    "LayerInfo",
    "LayerReader",
    "LayerSpec",
    "Manifest",
    "MismatchError",
    "Pooling",
    "RankStatus",
    "RowFacts",
    "SplitInfo",
    "SplitRows",
    "StoreError",
    "UnknownNameError",
    "Work",
    "WorkQueue",
    "abbreviate",
    "add_layers",
    "cached_keys",
    "claimed",
    "drop_all_cached",
    "drop_cached",
    "drop_half_written",
    "has_cached",
    "list_cached",
    "load_cached",
    "make_ready",
    "open_or_create",
    "save_cached",
    "suggest",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
