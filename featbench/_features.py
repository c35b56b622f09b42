"""Features by split and layer: stored ones that are read lazily, or arrays in memory."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featbench._arrays import ArrayError, labels_of, layers_of, warn_of_equal_splits
from featbench._clusterings import StoredClustering
from featbench._errors import naming_arguments
from featbench.evaluate.clustering.cached import find_clusters, search_clusters
from featbench.evaluate.clustering.evaluation import FindClusters
from featbench.evaluate.clustering.kept import kept_clusterings
from featbench.evaluate.features.labels import Labelled, LabelSource, MatchedLabels, matched_labels, with_unlabelled
from featbench.evaluate.features.layers import EvalLayer, stored_layer
from featbench.evaluate.features.memory_layer import layer_in_memory
from featbench.evaluate.knn.classification import Find
from featbench.evaluate.neighbours.cache import NeighbourCache, SearchResult
from featbench.evaluate.neighbours.cached_search import find_neighbours, search_neighbours
from featbench.evaluate.neighbours.planning import Resources
from featbench.pipelines.foreign.arrays import numbered
from featbench.store import FeatureSet, LayerReader, SplitInfo, UnknownNameError, suggest
from featbench.store.layers import split_layers
from featbench.store.typing import Array, Bools, Floats, Ints

Layers = str | Sequence[str] | None


@naming_arguments
def open(path: str | os.PathLike[str]) -> StoredFeatures:
    """Open a feature set for reading.

    Parameters
    ----------
    path : str or path
        Its folder, such as `features/mine`.

    Returns
    -------
    StoredFeatures
        A mapping from `split/layer` to arrays that are read when they are used.

    Raises
    ------
    BenchError
        If there is none, or its manifest is damaged.
    """
    return StoredFeatures(FeatureSet.open(Path(path).expanduser()))


class Features(Mapping[str, Any]):
    """Features of one model on one dataset: a mapping from `split/layer`, such as `train/res5`, to arrays."""

    name: str
    layers: tuple[str, ...]
    splits: tuple[str, ...]

    def __iter__(self) -> Iterator[str]:
        return (f"{split}/{layer}" for split in self.splits for layer in self.layers)

    def __len__(self) -> int:
        return len(self.splits) * len(self.layers)

    def __repr__(self) -> str:
        rows = ", ".join(f"{split} {self.num_rows(split):,}" for split in self.splits)
        return (
            f"<{type(self).__name__} {self.name!r}: {rows} rows; layers {', '.join(self.layers)}; "
            f"{len(self.class_names)} classes>"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that `labels` counts: those of train, then those that only val has."""
        return self._matched[2]

    def num_rows(self, split: str) -> int:
        """Rows of a split."""
        return self._source.split(split).num_rows

    def labels(self, split: str) -> Ints:
        """Label of each row of a split, an index into `class_names`; -1 where there is none."""
        position = {name: index for index, name in enumerate(self.class_names)}
        numbers = np.array([position[name] for name in self._source.split(split).class_names], np.int64)
        labels = self._source.labels(split)
        return np.where(labels < 0, -1, np.append(numbers, -1)[labels])

    def valid(self, split: str) -> Bools:
        """Whether the image of each row of a split could be read."""
        return self._source.valid(split)

    def select_layers(self, layers: Layers) -> list[str]:
        """Names of the layers that are meant, each once: one, several (also separated by commas), or all for None."""
        if layers is None:
            return list(self.layers)
        names = split_layers(layers) if isinstance(layers, str) else list(layers) if np.iterable(layers) else [layers]
        if not names:
            raise ArrayError(f"layers must name at least one of {', '.join(self.layers)}; None is all of them")
        for name in names:
            if name not in self.layers:
                raise UnknownNameError(f"{self.name}: no layer {name!r}. {suggest(str(name), self.layers)}")
        return list(dict.fromkeys(names))

    def matched(self) -> MatchedLabels:
        """Rows of train and val that take part, and the names of the classes that their labels count."""
        return self._matched

    def clustered(self) -> tuple[Labelled, Labelled]:
        """Rows of train and val that are clustered: all readable ones, with a label or not."""
        return with_unlabelled(self._source, self._matched)[:2]

    def predicted(self, classes: Ints) -> Array:
        """Classes by their index, as the caller wrote them: here by name."""
        return np.array(self.class_names, np.str_)[classes]

    @abstractmethod
    def views(self, layers: Layers) -> list[EvalLayer]:
        """Layers as an evaluation takes them."""

    @abstractmethod
    def finder(self, resources: Resources, *, keep: bool) -> Find:
        """Return what finds neighbours, and keeps them if that is wanted and possible."""

    @abstractmethod
    def cluster_finder(self, *, keep: bool) -> FindClusters:
        """Return what clusters, and keeps it if that is wanted and possible."""

    @property
    @abstractmethod
    def _source(self) -> LabelSource: ...

    @cached_property
    def _matched(self) -> MatchedLabels:
        return matched_labels(self._source, needed=False)

    def _split_and_layer(self, key: str) -> tuple[str, str]:
        split, _, layer = str(key).partition("/")
        if split not in self.splits or layer not in self.layers:
            raise UnknownNameError(f"{self.name}: no array {key!r}. {suggest(str(key), self)}")
        return split, layer


class StoredFeatures(Features):
    """A feature set on disk, opened for reading; nothing is read before it is used."""

    def __init__(self, features: FeatureSet) -> None:
        self.feature_set = features
        self.name = features.name
        self.layers = tuple(features.manifest.layers)
        self.splits = tuple(features.manifest.splits)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.feature_set.path

    @property
    def fingerprint(self) -> str:
        """Digest of all that the features were made from."""
        return self.feature_set.manifest.fingerprint

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Settings that the features were made from: model, weights, transform, precision."""
        return self.feature_set.manifest.made_from

    def __getitem__(self, key: str) -> StoredArray:
        split, layer = self._split_and_layer(key)
        info = self.feature_set.layer_info(layer)
        dtype = np.dtype(self.feature_set.manifest.dtype)
        return StoredArray(
            key, partial(self.feature_set.layer, split, layer), (self.num_rows(split), *info.shape), dtype
        )

    @property
    def clusterings(self) -> list[StoredClustering]:
        """Clusterings that are kept in it; those that are damaged are left out."""
        return [StoredClustering(self.feature_set, kept) for kept in kept_clusterings(self.feature_set)[0]]

    def paths(self, split: str) -> list[str]:
        """What each image of a split is called."""
        return self.feature_set.paths(split)

    def views(self, layers: Layers) -> list[EvalLayer]:
        """See `Features`."""
        return [stored_layer(self.feature_set, name) for name in self.select_layers(layers)]

    def finder(self, resources: Resources, *, keep: bool) -> Find:
        """See `Features`; what was kept before is used in any case."""
        if keep:
            return partial(find_neighbours, self.feature_set, resources=resources)

        def find(view: EvalLayer, **asked: Any) -> SearchResult:
            same = {name: asked[name] for name in ("database", "queries", "similarity")}
            kept = NeighbourCache.of(self.feature_set, view, **same).load(asked["k"])
            return kept or search_neighbours(view, resources=resources, **asked)

        return find

    def cluster_finder(self, *, keep: bool) -> FindClusters:
        """See `Features`."""
        return partial(find_clusters, self.feature_set) if keep else search_clusters

    @property
    def _source(self) -> FeatureSet:
        return self.feature_set


class MemoryFeatures(Features):
    """Arrays in memory.

    Parameters
    ----------
    train, val : array, tensor, or mapping of str to these
        Features of shape (N, ...), or several layers of them.
    train_labels, val_labels : optional
        One label for each row.
    """

    def __init__(
        self,
        train: object,
        train_labels: object,
        val: object,
        val_labels: object,
        *,
        name: str = "arrays in memory",
    ) -> None:
        self.name = name
        self._features = {"train": layers_of(train, split="train"), "val": layers_of(val, split="val")}
        self.layers, self.splits = tuple(self._features["train"]), ("train", "val")
        self._check_shapes()
        labels = {"train": train_labels, "val": val_labels}
        plain = {split: self._labels(split, each) for split, each in labels.items()}
        self._are_numbers = all(each.dtype.kind == "i" for each in plain.values())
        self._arrays = _ArrayLabels(name, plain)
        if val is not train:
            warn_of_equal_splits(*self._features.values())

    def __getitem__(self, key: str) -> Floats:
        split, layer = self._split_and_layer(key)
        return self._features[split][layer]

    def predicted(self, classes: Ints) -> Array:
        """Classes by their index, as the caller wrote them: numbers or names."""
        names = self.class_names
        return (
            np.array([int(name) for name in names], np.int64)[classes]
            if self._are_numbers
            else super().predicted(classes)
        )

    def views(self, layers: Layers) -> list[EvalLayer]:
        """See `Features`."""
        return [
            layer_in_memory(name, {split: self._features[split][name] for split in self.splits}, source=self.name)
            for name in self.select_layers(layers)
        ]

    def finder(self, resources: Resources, *, keep: bool) -> Find:
        """See `Features`."""
        return partial(search_neighbours, resources=resources)

    def cluster_finder(self, *, keep: bool) -> FindClusters:
        """See `Features`."""
        return search_clusters

    @property
    def _source(self) -> _ArrayLabels:
        return self._arrays

    def _check_shapes(self) -> None:
        train, val = self._features.values()
        if train.keys() != val.keys():
            raise ArrayError(f"train has the layers {', '.join(train)}, val has {', '.join(val)}; expected the same")
        for split, layers in self._features.items():
            if len({len(values) for values in layers.values()}) > 1:
                lengths = ", ".join(f"{name} {len(values):,}" for name, values in layers.items())
                raise ArrayError(f"the layers of {split} have different numbers of rows: {lengths}")
        for name, values in train.items():
            if values.shape[1:] != val[name].shape[1:]:
                raise ArrayError(
                    f"{name}: a row has shape {values.shape[1:]} in train and {val[name].shape[1:]} in val; expected "
                    f"the same"
                )

    def _labels(self, split: str, labels: object) -> Array:
        num_rows = len(next(iter(self._features[split].values())))
        if labels is None:
            return np.full(num_rows, -1, np.int64)
        plain = labels_of(labels, split=split)
        if len(plain) != num_rows:
            raise ArrayError(f"{split} has {num_rows:,} rows of features and {len(plain):,} labels; expected as many")
        return plain


class _ArrayLabels:
    """Labels in memory; a `LabelSource`."""

    def __init__(self, name: str, labels: Mapping[str, Array]) -> None:
        self.name = self.path = name
        self._numbers, self._splits = {}, {}
        for split, each in labels.items():
            self._numbers[split], names = numbered(each)
            self._splits[split] = SplitInfo(num_rows=len(each), class_names=names, listing="")

    def split(self, split: str) -> SplitInfo:
        if split not in self._splits:
            raise UnknownNameError(f"{self.name}: no split {split!r}. {suggest(split, self._splits)}")
        return self._splits[split]

    def labels(self, split: str) -> Ints:
        self.split(split)
        return self._numbers[split]

    def valid(self, split: str) -> Bools:
        return np.ones(self.split(split).num_rows, np.bool_)


class StoredArray:
    """One layer of one split on disk, read when it is used: `np.asarray(x)` is all of it, `x[10:20]` some rows."""

    def __init__(
        self, key: str, open_layer: Callable[[], LayerReader], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.key = key
        self.shape = shape
        self.dtype = dtype
        self._open = open_layer

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<StoredArray {self.key!r}: {self.dtype} {self.shape}>"

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError(f"{self.key} lies on disk, so there is no array of it without a copy")
        values: Array = self._rows(np.arange(len(self))).astype(dtype or self.dtype, copy=False)
        return values

    def __iter__(self) -> Iterator[Array]:
        return (
            row
            for at in range(0, len(self), self._reader.rows_per_chunk)
            for row in self[at : at + self._reader.rows_per_chunk]
        )

    def __getitem__(self, key: Any) -> Array:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        is_mask = getattr(first, "dtype", None) == np.bool_ and np.ndim(first) > 1
        if first is None or first is Ellipsis or is_mask or (isinstance(key, tuple) and not key):
            whole: Array = np.asarray(self)[key]
            return whole
        chosen = np.arange(len(self))[first]  # NumPy's own rules for negative numbers, steps, masks and lists
        rows, inverse = np.unique(chosen, return_inverse=True)
        picked = self._rows(rows)[inverse.reshape(np.shape(chosen))]
        some: Array = picked[(slice(None),) * np.ndim(chosen) + rest] if rest else picked
        return some

    @cached_property
    def _reader(self) -> LayerReader:
        return self._open()

    def _rows(self, rows: Ints) -> Array:
        """Read rising rows; only the chunks that they lie in are read."""
        reader = self._reader
        features = np.empty((len(rows), *self.shape[1:]), self.dtype)
        flat = features.reshape(len(rows), -1) if features.size else features.reshape(len(rows), reader.dim)
        chunks = np.unique(rows // reader.rows_per_chunk)
        for run in np.split(chunks, np.flatnonzero(np.diff(chunks) > 1) + 1) if len(chunks) else []:
            for block in reader.map_blocks(
                lambda block: block, _READ // (4 * max(1, reader.dim)), range(run[0], run[-1] + 1)
            ):
                start, stop = np.searchsorted(rows, [block.start, block.start + len(block.features)])
                flat[start:stop] = block.features[rows[start:stop] - block.start]
        return features


_READ = 2**25
"""Bytes of the blocks that are read at a time."""
