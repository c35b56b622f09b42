"""Results of other questions: other queries, images from elsewhere, several right labels, several labels a row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from featbench.evaluate.metrics import Estimate
from featbench.evaluate.results import Counts, KnnResult, LayerFacts, Record, SearchFacts, estimated, origin_of


@dataclass(frozen=True, slots=True, kw_only=True)
class QueriesResult:
    """Other queries, classified by the rows of train."""

    result: KnnResult
    queries: str
    """Name of the queries."""

    bank: str
    """`all` rows of train vote, or the `subset` of those of the queries' classes; or the name of a list of rows."""

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return self.result.record() | {"task": "queries", "queries": self.queries, "bank": self.bank}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOfResult:
    """Accuracy of a classification of val by labels of which any is right."""

    result: KnnResult
    """By val's own labels."""

    labels: str
    """Name of the labels of which any is right."""

    top1: Estimate
    num_rows: int
    """Rows that have such a label; others do not count."""

    def record(self) -> Record:
        """Return the result as a flat dict; `top1_own` is the accuracy by val's own labels, of all rows."""
        result = self.result
        return origin_of(result) | {
            "task": "any_of", "protocol": result.protocol, "vote": result.vote, "k": result.k,
            "temperature": result.temperature, "labels": self.labels, "num_any_of": self.num_rows,
        } | estimated(top1=self.top1) | {"top1_own": result.top1}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OodMetrics:
    """How well a score tells the queries of the distribution from others."""

    auroc: Estimate
    aupr_in: float
    """Area under the precision-recall curve, by trapezoids, with the distribution's queries as positives."""

    aupr_out: float
    """The same with the others as positives."""

    fpr_at_95: Estimate
    """Fraction of the others that are accepted where at least 95% of the distribution's queries are; the interval takes
    the threshold as given."""

    fpr_at_95_out: Estimate
    """Fraction of the distribution's queries that are rejected where at least 95% of the others are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OodResult:
    """How well the distance to the k-th neighbour tells val from queries from elsewhere."""

    layer: LayerFacts
    protocol: str
    similarity: str
    k: int
    ood: str
    """Name of the queries from elsewhere."""

    num_inside: int
    num_outside: int
    metrics: OodMetrics

    def record(self) -> Record:
        """Return the result as a flat dict."""
        found = self.metrics
        return asdict(self.layer) | {
            "task": "ood", "protocol": self.protocol, "similarity": self.similarity, "k": self.k, "ood": self.ood,
            "num_val": self.num_inside, "num_ood": self.num_outside,
        } | estimated(auroc=found.auroc) | {
            "aupr_in": found.aupr_in, "aupr_out": found.aupr_out,
        } | estimated(fpr_at_95=found.fpr_at_95, fpr_at_95_out=found.fpr_at_95_out)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """Average precision of one class, among the queries for which it is known whether they have it."""

    name: str
    num_positive: int
    num_queries: int
    ap: Estimate
    f1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelResult:
    """One layer whose rows have any number of classes, by one protocol with one k and one temperature."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    protocol: str
    vote: str
    k: int
    temperature: float | None
    mean_ap: Estimate
    """Mean over the classes of their average precision."""

    micro_f1: Estimate
    """F1 of all pairs of a query and a class; a class is predicted from half of the votes on."""

    macro_f1: Estimate
    """Mean over the classes of their F1."""

    labels: tuple[LabelScore, ...] = field(repr=False)
    """Scores of the classes that a query is known to have."""

    search: SearchFacts

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return origin_of(self) | {
            "protocol": self.protocol, "vote": self.vote, "task": "multi_label", "k": self.k,
            "temperature": self.temperature,
        } | estimated(mean_ap=self.mean_ap, micro_f1=self.micro_f1, macro_f1=self.macro_f1) | {
            "num_labels": len(self.labels),
        } | asdict(self.search)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelQueriesResult:
    """Other queries with any number of classes, classified by the rows of train."""

    result: MultiLabelResult
    queries: str
    """Name of the queries."""

    bank: str
    """As for `QueriesResult`."""

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return self.result.record() | {"task": "queries", "queries": self.queries, "bank": self.bank}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """One class of rows with any number of classes, at a protocol's first k and temperature."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    protocol: str
    k: int
    temperature: float | None
    label: LabelScore

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return origin_of(self) | {
            "task": "label", "protocol": self.protocol, "k": self.k, "temperature": self.temperature,
            "class": self.label.name, "num_positive": self.label.num_positive, "num_val": self.label.num_queries,
        } | estimated(ap=self.label.ap) | {"f1": self.label.f1}  # fmt: skip
