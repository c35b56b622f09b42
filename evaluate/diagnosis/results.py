"""Results of a diagnosis as dataclasses, and their flat records; as `featbench.evaluate.results`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from featbench.evaluate.diagnosis.agreement import Cka, Overlap
from featbench.evaluate.diagnosis.calibration import Calibration
from featbench.evaluate.diagnosis.dimension import IntrinsicDimension
from featbench.evaluate.diagnosis.hubness import Hubness
from featbench.evaluate.diagnosis.spectrum import Spectrum
from featbench.evaluate.metrics import Estimate
from featbench.evaluate.results import Counts, LayerFacts, Record, estimated, origin_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationResult:
    """Calibration of one layer's vote by one protocol with one k and one temperature."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    protocol: str
    vote: str
    k: int
    temperature: float | None
    top1: Estimate
    calibration: Calibration

    def record(self) -> Record:
        """Return the result as a flat dict; `reliability` lists the bins."""
        found = self.calibration
        return origin_of(self) | {
            "task": "calibration", "protocol": self.protocol, "vote": self.vote, "k": self.k,
            "temperature": self.temperature,
        } | estimated(top1=self.top1, ece=found.ece) | {
            "ece_by_chance": found.ece_by_chance, "rms_ce": found.rms_ce, "max_ce": found.max_ce,
        } | estimated(nll=found.nll, brier=found.brier, auroc_of_confidence=found.auroc) | {
            "mean_confidence": found.mean_confidence, "num_without_vote": found.num_without_vote,
            "reliability": [asdict(each) for each in found.bins],
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A database row that is in many lists."""

    row: int
    path: str
    num_lists: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HubnessResult:
    """Hubness of one layer's lists of k neighbours."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    k: int
    hubness: Hubness
    hubs: tuple[Hub, ...]

    def record(self) -> Record:
        """Return the result as a flat dict; `hubs` lists the rows that are in most lists."""
        return origin_of(self) | {
            "task": "hubness", "protocol": self.similarity, "k": self.k,
        } | asdict(self.hubness) | {"hubs": [asdict(each) for each in self.hubs]}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryResult:
    """Intrinsic dimension and spectrum of one layer."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    dimension: IntrinsicDimension | None
    """None if the similarity is no distance, or the lists are too short."""

    spectrum: Spectrum | None
    """None if the products of the features do not fit into the memory."""

    def record(self) -> Record:
        """Return the result as a flat dict."""
        record = origin_of(self) | {"task": "geometry", "protocol": self.similarity}
        found = self.dimension
        record |= estimated(intrinsic_dimension=None if found is None else found.mle)
        record |= {
            "intrinsic_dimension_linear": None if found is None else found.linear,
            "num_dimension": None if found is None else found.num_used,
            "num_at_distance_0": None if found is None else found.num_duplicates,
        }
        measured = self.spectrum
        for name in ("rankme", "rankme_covariance", "alpha"):
            record[name] = None if measured is None else getattr(measured, name)
        record |= estimated(uniformity=None if measured is None else measured.uniformity)
        return record | {"num_uniformity": None if measured is None else measured.num_sampled}


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutResult:
    """Accuracy of one layer without some kinds of suspects."""

    layer: LayerFacts
    protocol: str
    k: int
    temperature: float | None
    without: str
    """Kinds that are left out: `nothing`, `duplicates`, `label errors`, `outliers` or `all of them`."""

    num_train: int
    num_val: int
    top1: Estimate | None
    """None if no query is left."""

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return asdict(self.layer) | {
            "task": "without_suspects", "protocol": self.protocol, "k": self.k, "temperature": self.temperature,
            "without": self.without, "num_train": self.num_train, "num_val": self.num_val,
        } | estimated(top1=self.top1)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """Accuracy of the queries of one group, such as a camera or a patient."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    protocol: str
    k: int
    temperature: float | None
    grouping: str
    """Column of the file of groups."""

    group: str
    num_queries: int
    top1: Estimate
    is_worst: bool
    """Whether no other group of the grouping has a lower accuracy; the first of equals."""

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return origin_of(self) | {
            "task": "group", "protocol": self.protocol, "k": self.k, "temperature": self.temperature,
            "group_by": self.grouping, "group": self.group, "num_queries": self.num_queries, "is_worst": self.is_worst,
        } | estimated(top1=self.top1)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """One row to look at; `featbench.evaluate.diagnosis.suspects` says what the scores are."""

    kind: str
    """`leak`, `label error`, `duplicate` or `outlier`."""

    rank: int
    """Place among those of its kind, from 1: the most suspicious first."""

    score: float
    split: str
    row: int
    group: int | None
    """Number of the connected component, for duplicates and leaks."""

    other_split: str | None
    other_row: int | None
    """The row that makes it a suspect: the nearest of another class, the duplicate, the k-th neighbour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspectsResult:
    """Suspects of one layer, in the order to look at, and how many there are of each kind."""

    layer: LayerFacts
    counts: Counts
    k: int
    threshold: float
    """Cosine from which two rows count as near-duplicates."""

    num_leaks: int
    """Rows of val with a near-duplicate in train."""

    num_duplicates: int
    """Rows of train with a near-duplicate in train."""

    num_components: int
    """Connected components of near-duplicates, of both splits."""

    largest_component: int
    num_closer_to_others: int
    """Rows of both splits that are nearer to a row of another class than to any of their own, in train."""

    suspects: tuple[Suspect, ...] = field(repr=False)

    def record(self) -> Record:
        """Return the counts as a flat dict; the suspects themselves are written to a file."""
        return asdict(self.layer) | asdict(self.counts) | {
            "task": "suspects", "protocol": "cosine", "similarity": "cosine", "k": self.k,
            "duplicates_from": self.threshold, "num_leaks": self.num_leaks, "num_duplicates": self.num_duplicates,
            "num_components": self.num_components, "largest_component": self.largest_component,
            "num_closer_to_others": self.num_closer_to_others, "num_suspects": len(self.suspects),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementResult:
    """How alike two layers are, of one feature set or of two, on the same rows."""

    first: LayerFacts
    second: LayerFacts
    similarity: str
    leave_one_out: bool
    k: int
    num_queries: int
    overlap: Overlap
    cka: Cka | None
    """None if its products do not fit into the memory."""

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return {
            "task": "agreement", "features": self.first.features, "layer": self.first.layer,
            "other_features": self.second.features, "other_layer": self.second.layer, "protocol": self.similarity,
            "similarity": self.similarity, "leave_one_out": self.leave_one_out, "k": self.k,
            "num_queries": self.num_queries,
        } | estimated(overlap=self.overlap.mean) | {
            "overlap_by_chance": self.overlap.chance, "overlap_corrected": self.overlap.corrected,
            "cka": None if self.cka is None else self.cka.biased,
            "cka_debiased": None if self.cka is None else self.cka.debiased,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutResult:
    """What a diagnosis of a feature set does not have, and why."""

    features: str
    left_out: tuple[str, ...]
    """Such as `calibration`."""

    reason: str

    def __str__(self) -> str:
        *others, last = self.left_out
        return f"{self.features}: {self.reason}, so there is no {', no '.join(others)}{' and no ' * bool(others)}{last}"

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return {
            "task": "left_out", "features": self.features, "layer": None, "left_out": list(self.left_out),
            "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepRow:
    """A query whose prediction changes until a late layer."""

    row: int
    path: str
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthResult:
    """From which layer on the predictions for each query stay as they are in the last one."""

    features: str
    layers: tuple[str, ...]
    """In the order of the network."""

    protocol: str
    k: int
    temperature: float | None
    leave_one_out: bool
    num_queries: tuple[int, ...]
    """Queries by depth: the position of a layer."""

    top1: tuple[Estimate | None, ...]
    """Accuracy of the last layer on the queries of each depth; None where there is none."""

    deepest: tuple[DeepRow, ...]

    @property
    def mean(self) -> float:
        """Mean depth."""
        return sum(depth * count for depth, count in enumerate(self.num_queries)) / sum(self.num_queries)

    def record(self) -> Record:
        """Return the result as a flat dict; `depths` has the histogram."""
        depths = [
            {"depth": depth, "layer": layer, "num_queries": count} | estimated(top1=top1)
            for depth, (layer, count, top1) in enumerate(zip(self.layers, self.num_queries, self.top1, strict=True))
        ]
        return {
            "task": "prediction_depth", "features": self.features, "layer": self.layers[-1], "protocol": self.protocol,
            "k": self.k, "temperature": self.temperature, "leave_one_out": self.leave_one_out,
            "num_queries": sum(self.num_queries), "mean_depth": self.mean, "depths": depths,
            "deepest": [asdict(each) for each in self.deepest],
        }  # fmt: skip
