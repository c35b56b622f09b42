"""`featbench.kmeans`: k-means of arrays, tensors or stored features, and how well clusters match classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, overload

import numpy as np
from pydantic import ValidationError

from featbench._arrays import ArrayError, whole_numbers
from featbench._errors import naming_arguments
from featbench._features import Layers
from featbench._knn import as_features, bytes_of, data_frame
from featbench.evaluate.cluster_results import ClusterResult
from featbench.evaluate.clustering.evaluation import cluster
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.config import KmeansConfig
from featbench.evaluate.neighbours.planning import Resources
from featbench.evaluate.results import Record, uniform
from featbench.pipelines.config.faults import describe
from featbench.store.typing import Ints

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResults(Sequence[ClusterResult]):
    """What `kmeans` returns: a sequence of results, one for each layer, number of clusters, seed and split.

    `nmi` and the other metrics are means over the seeds, for val, of the layer and number of clusters with the highest
    NMI: the only one, if one was asked for. `mean` and `sd` give them for any other.
    """

    results: tuple[ClusterResult, ...]
    _name: str = field(default="", repr=False)

    @property
    def best(self) -> tuple[ClusterResult, ...]:
        """Results on val of the layer and number of clusters with the highest NMI, one for each seed; on train, if
        there is no val.
        """
        groups: dict[tuple[str, int], list[ClusterResult]] = {}
        for result in self.results:
            if result.split == self._split:
                groups.setdefault((result.layer.layer, result.clusters), []).append(result)
        best: list[ClusterResult] = max(groups.values(), key=lambda group: _mean(group, "nmi") or 0.0)
        return tuple(best)

    @property
    def nmi(self) -> float | None:
        """Normalized mutual information; None if val has no labels."""
        return _mean(self.best, "nmi")

    @property
    def ami(self) -> float | None:
        """Adjusted mutual information; None also if it was not requested."""
        return _mean(self.best, "ami")

    @property
    def ari(self) -> float | None:
        """Adjusted Rand index."""
        return _mean(self.best, "ari")

    @property
    def homogeneity(self) -> float | None:
        """1 if every cluster holds a single class."""
        return _mean(self.best, "homogeneity")

    @property
    def completeness(self) -> float | None:
        """1 if every class lies in a single cluster."""
        return _mean(self.best, "completeness")

    @property
    def v_measure(self) -> float | None:
        """Harmonic mean of homogeneity and completeness."""
        return _mean(self.best, "v_measure")

    @property
    def fowlkes_mallows(self) -> float | None:
        """Geometric mean of precision and recall of pairs of rows in one cluster."""
        return _mean(self.best, "fowlkes_mallows")

    @property
    def hungarian(self) -> float | None:
        """Accuracy under the best one-to-one match of clusters and classes."""
        return _mean(self.best, "hungarian")

    @property
    def many_to_one(self) -> float | None:
        """Accuracy if each cluster predicts the majority class of its train rows; None if train has no labels."""
        return _mean(self.best, "many_to_one")

    @property
    def purity(self) -> float | None:
        """Fraction of rows in the largest class of their cluster."""
        return _mean(self.best, "purity")

    @property
    def simplified_silhouette(self) -> float | None:
        """Silhouette of all rows from their distances to centroids; needs no labels."""
        return _mean(self.best, "simplified_silhouette")

    @property
    def silhouette(self) -> float | None:
        """Exact silhouette of a random sample of rows; needs no labels."""
        return _mean(self.best, "silhouette")

    @property
    def objective(self) -> float:
        """Sum over the rows of train of the squared distance to their centroid."""
        return float(np.mean([result.objective for result in self.best]))

    @property
    def assignments(self) -> Mapping[str, Ints]:
        """Cluster of each readable row, by split: of the best, for the first seed."""
        first = self.best[0]
        same = (first.layer.layer, first.clusters, first.seed)
        of = [result for result in self.results if (result.layer.layer, result.clusters, result.seed) == same]
        return {result.split: result.assignments for result in of}

    @property
    def records(self) -> list[Record]:
        """All results as flat dicts with the same keys."""
        return uniform([result.record() for result in self.results])

    def to_pandas(self) -> pd.DataFrame:
        """Return the records as a data frame; needs pandas."""
        return data_frame(self.records)

    @overload
    def __getitem__(self, index: int) -> ClusterResult: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ClusterResult]: ...
    def __getitem__(self, index: int | slice) -> ClusterResult | Sequence[ClusterResult]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[ClusterResult]:
        return iter(self.results)

    def __repr__(self) -> str:
        lines = [f"  {_line(result)}" for result in self.results if result.split == self._split]
        return "\n".join([f"ClusterResults of {self._name}, on {self._split}:", *lines])

    @property
    def _split(self) -> str:
        return "val" if any(result.split == "val" for result in self.results) else "train"


@naming_arguments
def kmeans(
    train: object,
    train_labels: object = None,
    val: object = None,
    val_labels: object = None,
    *,
    clusters: int | str | Sequence[int | str] = "classes",
    seeds: int | Sequence[int] = 1,
    layers: Layers = None,
    normalize: bool = True,
    spherical: bool = False,
    init: str = "k-means++",
    restarts: int | None = None,
    iterations: int = 100,
    tolerance: float = 1e-6,
    mini_batch: int | None = None,
    ami: bool = True,
    memory: int | str | None = None,
    keep: bool = False,
) -> ClusterResults:
    """Cluster train by k-means, give each row of val to its nearest centroid, and compare clusters with classes.

    Parameters
    ----------
    train, train_labels, val, val_labels, layers, memory, keep
        As for `knn`; but rows without a label are clustered too, and without any labels there are no label metrics.
    clusters : int, "classes", or several of these
        Numbers of clusters; `classes` is the number of classes of train.
    seeds : int or sequence of int
        How many clusterings to make (with the seeds 0, 1, ...), or their seeds.
    normalize : bool
        Scale each row to length 1 first.
    spherical : bool
        Scale each centroid to length 1 after every iteration, too.
    init : {"k-means++", "random"} or path
        How to choose the first centroids; or a .npy file of shape (clusters, D).
    restarts : int, optional
        Starts on a sample of the rows, of which the best goes on; up to 10 by default.
    iterations : int
        Passes over train at most.
    tolerance : float
        Stop when an iteration lowers the objective by no more than this fraction of it.
    mini_batch : int, optional
        Update the centroids after each batch of this many random rows; after all rows by default.
    ami : bool
        Compute the adjusted mutual information, which takes longest of all metrics.

    Returns
    -------
    ClusterResults
        With `nmi`, `hungarian`, `many_to_one` and the other metrics, `assignments`, `records` and `to_pandas()`.

    Raises
    ------
    BenchError
        As `knn`; and if there are more clusters than rows.

    Examples
    --------
    >>> rows = [[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]
    >>> kmeans(rows, [0, 0, 1, 1], [[0.0, 2.0], [2.0, 0.0]], [0, 1], clusters=2).hungarian
    1.0
    """
    features = as_features(train, train_labels, val, val_labels)
    counts = _counts(clusters)
    chosen = whole_numbers(seeds, what="seeds")
    if np.ndim(seeds) == 0:
        chosen = list(range(chosen[0]))
    if not chosen:
        raise ArrayError(f"seeds must be a positive number of seeds, or several seeds; got {seeds!r}")
    settings = _settings(
        normalize=normalize, spherical=spherical, init=str(init), restarts=restarts, iterations=iterations,
        tolerance=tolerance, mini_batch=mini_batch,
    )  # fmt: skip
    for seed in chosen:
        _settings(seed=seed)
    train_rows, val_rows = features.clustered()
    views, find = features.views(layers), features.cluster_finder(keep=keep)
    results = [
        result
        for seed in chosen
        for result in cluster(
            views, train_rows, val_rows, clusters=counts, find=find, settings=replace(settings, seed=seed), ami=ami,
            resources=Resources(memory=bytes_of(memory)),
        )
    ]  # fmt: skip
    return ClusterResults(results=tuple(results), _name=features.name)


def _settings(**values: object) -> KmeansSettings:
    """Check settings as those of the command line are."""
    try:
        return KmeansConfig.model_validate(values).settings()
    except ValidationError as error:
        faults = error.errors()
        name = str(faults[0]["loc"][0])
        same = [fault for fault in faults if fault["loc"][0] == name]
        raise ArrayError(f"{name}: {describe(same)}") from error


def _counts(clusters: int | str | Sequence[int | str]) -> list[int | str]:
    """Numbers of clusters, and "classes", in the order given."""
    several = [clusters] if isinstance(clusters, str) or not np.iterable(clusters) else list(clusters)
    counts: list[int | str] = []
    for each in several:
        counts += [each] if each == "classes" else whole_numbers(each, what="clusters, if not 'classes',")
    if not counts:
        raise ArrayError(f"clusters must be an integer, 'classes', or several of these; got {clusters!r}")
    return counts


def _mean(results: Sequence[ClusterResult], metric: str) -> float | None:
    values = [result.record()[metric] for result in results]
    return None if None in values else float(np.mean(values))


def _line(result: ClusterResult) -> str:
    setting = f"{result.layer.layer}, {result.clusters} clusters, seed {result.seed}"
    found = result.metrics
    if found is None:
        return f"{setting}: no labels, so no label metrics"
    ami = "" if found.ami is None else f", AMI {found.ami:.3f}"
    return f"{setting}: NMI {found.nmi:.3f}{ami}, ARI {found.ari:.3f}"
