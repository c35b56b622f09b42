"""The feature store: layout, format, durable writing, checked reading.

A store is a folder of feature sets; a feature set holds the features of one model on one
dataset, all layers and both splits, as Zarr arrays with a manifest and journals.
`store/FORMAT.md` is the contract. Nothing here knows of models or of search.
"""

from featbench.store.cache import claimed, drop_cached, has_cached, load_cached, save_cached
from featbench.store.creation import SplitRows, add_layers, make_ready, open_or_create
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
from featbench.store.verify import Fault, verify
from featbench.store.work import Work
from featbench.store.work_queue import WorkQueue
from featbench.store.writer import ChunkWriter

__all__ = [
    "BenchError",
    "Block",
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
    "SplitInfo",
    "SplitRows",
    "StoreError",
    "UnknownNameError",
    "Work",
    "WorkQueue",
    "abbreviate",
    "add_layers",
    "claimed",
    "drop_cached",
    "has_cached",
    "load_cached",
    "make_ready",
    "open_or_create",
    "save_cached",
    "suggest",
    "verify",
]
