"""Results of k-means as dataclasses, and their flat records; as `featbench.evaluate.results`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from featbench.evaluate.metrics import Estimate
from featbench.evaluate.results import Counts, LayerFacts, Record, Spread, estimated, spread
from featbench.store.typing import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMetrics:
    """How well clusters match classes; 1 is a perfect match. See `featbench.evaluate.clustering.metrics`."""

    nmi: float
    """Normalized mutual information, by the mean of the entropies."""

    ami: float | None
    """Adjusted mutual information; None if it was not requested."""

    ari: float
    """Adjusted Rand index."""

    homogeneity: float
    completeness: float
    v_measure: float
    """Harmonic mean of homogeneity and completeness; the same number as `nmi`."""

    fowlkes_mallows: float
    hungarian: Estimate
    """Accuracy under the best one-to-one match of clusters and classes; rows of clusters left over count as wrong."""

    many_to_one: Estimate | None
    """Accuracy if each cluster predicts the class that most of its train rows have: the lowest of several, and none
    for a cluster without labelled train rows. None if train has no labels."""

    purity: float
    """Fraction of rows in the largest class of their cluster."""

    def record(self) -> Record:
        """Return each metric under its name, accuracies with the ends of their interval."""
        record: Record = dict.fromkeys(CLUSTER_METRICS)
        for name in ClusterMetrics.__dataclass_fields__:
            value: Estimate | float | None = getattr(self, name)
            record |= estimated(**{name: value}) if isinstance(value, Estimate) else {name: value}
        return record


CLUSTER_METRICS = (
    "nmi", "ami", "ari", "homogeneity", "completeness", "v_measure", "fowlkes_mallows", "hungarian", "hungarian_low",
    "hungarian_high", "many_to_one", "many_to_one_low", "many_to_one_high", "purity",
)  # fmt: skip
"""Keys of the metrics in a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSizes:
    """Rows of a split in each cluster, and clusters without any."""

    smallest: int
    median: float
    largest: int
    num_empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Silhouettes:
    """How much nearer rows are to their own cluster than to the next one: from -1 to 1."""

    simplified: float | None
    """Mean over all rows, from their distances to centroids; None if there is one centroid, or they are not known."""

    sampled: float | None
    """Exact, of a random sample of rows; None if it holds one cluster, or no two rows of one."""

    num_sampled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KmeansRun:
    """One whole run of k-means."""

    seed: int
    objective: float
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResult:
    """One clustering of train, compared with the classes of one split."""

    layer: LayerFacts
    counts: Counts
    split: str
    clusters: int
    seed: int
    """Seed of the run that is reported, the best of `runs`."""

    num_labelled: int
    """Rows of the split with a label, from which `metrics` are computed."""

    metrics: ClusterMetrics | None
    """None if the split has no labels."""

    sizes: ClusterSizes
    silhouettes: Silhouettes
    objective: float
    """Sum over the rows of train of the squared distance to their centroid."""

    mean_squared_distance: float | None
    """Mean over the rows of the split of the squared distance to their centroid; None if it is not known."""

    iterations: int
    """Passes over train."""

    runs: tuple[KmeansRun, ...]
    num_reseeded: int | None
    """Empty clusters that got a new centroid on the way; None if not known."""

    certified: bool
    """Whether every row is in the cluster of its nearest centroid, as float64 says."""

    engine: str | None
    seconds: float
    clusters_of: str | None = None
    """Feature set of the centroids, if it is another one; there are no iterations then."""

    clustering: str | None = None
    """Key of the clustering that is kept there."""

    assignments: Ints = field(repr=False, compare=False)
    """Cluster of each clustered row, shape (n,)."""

    @property
    def objectives(self) -> Spread:
        """Mean and standard deviation of the objectives of all runs."""
        return spread([run.objective for run in self.runs])

    def record(self) -> Record:
        """Return the result as a flat dict."""
        metrics = dict.fromkeys(CLUSTER_METRICS) if self.metrics is None else self.metrics.record()
        return asdict(self.layer) | asdict(self.counts) | {
            "task": "kmeans", "protocol": "kmeans", "split": self.split, "clusters": self.clusters, "seed": self.seed,
            "num_labelled": self.num_labelled,
        } | metrics | {
            "simplified_silhouette": self.silhouettes.simplified,
            "silhouette": self.silhouettes.sampled, "silhouette_rows": self.silhouettes.num_sampled,
            "smallest_cluster": self.sizes.smallest, "median_cluster": self.sizes.median,
            "largest_cluster": self.sizes.largest, "num_empty": self.sizes.num_empty,
            "objective": self.objective, "objective_mean": self.objectives.mean, "objective_sd": self.objectives.sd,
            "runs": len(self.runs), "mean_squared_distance": self.mean_squared_distance,
            "iterations": self.iterations, "num_reseeded": self.num_reseeded, "certified": self.certified,
            "engine": self.engine, "seconds": self.seconds, "clusters_of": self.clusters_of,
            "clustering": self.clustering,
        }  # fmt: skip
