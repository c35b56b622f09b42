"""Results of an evaluation as dataclasses: one for each layer and setting.

A result's `record()` is the flat dict used by `--json`, saved results and data frames; this module,
`featbench.evaluate.cluster_results`, `featbench.evaluate.other_results` and, for those of a diagnosis,
`featbench.evaluate.diagnosis.results` are the only places that spell its keys.
`featbench.pipelines.cli.tables` makes tables of the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from featbench.evaluate.metrics import Estimate
from featbench.store.typing import Ints

Record = dict[str, Any]

FIRST = ("task", "features", "layer", "protocol", "k", "temperature", "top1", "top5", "clusters", "split")
"""First keys of every record."""


class Result(Protocol):
    """Anything that an evaluation reports."""

    def record(self) -> Record:
        """Return the result as a flat dict for JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """The evaluated layer, and its origin."""

    features: str
    """Name of the feature set."""

    layer: str
    tap: str | None
    pooling: str | None
    dim: int
    """Numbers in one row."""

    weights: str
    fingerprint: str | None
    """Fingerprint of the feature set; None for arrays in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Rows that were used, and rows that were left out."""

    num_train: int
    num_val: int
    num_left_out: int
    num_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFacts:
    """How the neighbours were found."""

    certified: bool
    """Whether they are exact."""

    recall: float | None
    """Recall of an approximate search at this k; None if exact."""

    num_rechecked: int
    num_zero_rows: int
    engine: str
    seconds: float
    neighbours_reused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Accuracies as a project's own arithmetic computes them, overflow included."""

    top1: float
    top5: float
    overflowing: float
    """Fraction of queries for which a vote overflows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Accuracies of one classification, fractions of 1 with their 95% intervals."""

    top1: Estimate
    top5: Estimate
    """Only classes with a vote count."""

    top5_filled: Estimate
    """Classes without a vote are appended by number."""

    mean_per_class: Estimate
    top5_protocol: Estimate | None = None
    """As the protocol's project computes it; None if that is not well defined."""

    num_duplicates: int | None = None
    """Queries left out of `top1_without_duplicates`; None if not requested."""

    top1_without_duplicates: Estimate | None = None
    published: Published | None = None
    """What the protocol's project prints, if its arithmetic overflows here."""

    def record(self) -> Record:
        """Return each estimate under its name, with the ends of its interval."""
        record: Record = {} if self.num_duplicates is None else {"num_duplicates": self.num_duplicates}
        names = ("top1", "top5", "top5_filled", "mean_per_class", "top5_protocol", "top1_without_duplicates")
        for name in names:
            estimate: Estimate | None = getattr(self, name)
            if estimate is not None:
                record |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        if self.published is not None:
            record |= {f"{name}_as_published": value for name, value in asdict(self.published).items()}
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnResult:
    """One layer, classified by one protocol with one k and one temperature."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    protocol: str
    vote: str
    k: int
    temperature: float | None
    accuracy: Accuracy
    search: SearchFacts
    as_published: bool = False
    """Whether top-1 and top-5 come from the protocol's own arithmetic, which overflows."""

    benchmark: str | None = None
    """The published benchmark that this is the number of."""

    predictions: Ints | None = field(default=None, repr=False, compare=False)
    """Predicted class of each query, shape (Q,), if requested."""

    @property
    def top1(self) -> float:
        """Fraction of queries whose predicted class is right."""
        return self.accuracy.top1.value

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return origin_of(self) | {
            "protocol": self.protocol, "vote": self.vote, "task": "knn", "k": self.k, "temperature": self.temperature,
        } | self.accuracy.record() | self._marks() | asdict(self.search)  # fmt: skip

    def _marks(self) -> Record:
        """What most results are not: a benchmark's number, or a project's own arithmetic."""
        marks: Record = {"as_published": True} if self.as_published else {}
        return marks | ({"benchmark": self.benchmark} if self.benchmark else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionResult:
    """Layer, protocol, k and temperature chosen on train, and what they reach on val."""

    chosen: KnnResult
    """Leave-one-out on train: the highest top-1, the first of equals."""

    on_val: KnnResult
    """The same setting on val."""

    best_on_val: KnnResult
    """The setting that val itself would have chosen, whose accuracy is too optimistic."""

    num_settings: int

    @property
    def optimism(self) -> float:
        """How much choosing on val would have claimed in addition."""
        return self.best_on_val.top1 - self.on_val.top1

    def record(self) -> Record:
        """Return the result as a flat dict: that of val, with what chose it."""
        chosen, best = self.chosen.accuracy.top1, self.best_on_val
        return self.on_val.record() | {
            "task": "selection", "selected_by": "leave-one-out", "num_settings": self.num_settings,
            "top1_leave_one_out": chosen.value, "top1_leave_one_out_low": chosen.low,
            "top1_leave_one_out_high": chosen.high, "best_on_val_layer": best.layer.layer,
            "best_on_val_protocol": best.protocol, "best_on_val_k": best.k,
            "best_on_val_temperature": best.temperature, "best_on_val_top1": best.top1, "optimism": self.optimism,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighboursResult:
    """A search without labels to classify by."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    k: int
    search: SearchFacts
    num_duplicates: int | None = None

    def record(self) -> Record:
        """Return the result as a flat dict."""
        record = (
            origin_of(self) | {"task": "neighbours", "protocol": self.similarity, "k": self.k} | asdict(self.search)
        )
        return record if self.num_duplicates is None else record | {"num_duplicates": self.num_duplicates}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    """Accuracy of the queries of one class, and the class they are most confused with."""

    name: str
    num_queries: int
    top1: Estimate
    most_confused_with: str | None
    """Most frequent wrong prediction; None if there is none."""

    confusion_rate: float

    def record(self) -> Record:
        """Return the accuracy as a flat dict."""
        return {
            "class": self.name, "num_val": self.num_queries,
            "top1": self.top1.value, "top1_low": self.top1.low, "top1_high": self.top1.high,
            "most_confused_with": self.most_confused_with, "confusion_rate": self.confusion_rate,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """Accuracy of one class by one protocol, at its first k and temperature."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    protocol: str
    vote: str
    k: int
    temperature: float | None
    accuracy: ClassAccuracy

    def record(self) -> Record:
        """Return the result as a flat dict."""
        return origin_of(self) | {
            "protocol": self.protocol, "vote": self.vote, "task": "class", "k": self.k,
            "temperature": self.temperature,
        } | self.accuracy.record()  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalResult:
    """Retrieval metrics of one layer by one similarity."""

    layer: LayerFacts
    counts: Counts
    similarity: str
    leave_one_out: bool
    num_answerable: int
    precision_at_1: float | None
    r_precision: float | None
    map_at_r: float | None
    recall_at: Mapping[int, float | None]
    """By k."""

    search: SearchFacts

    def record(self) -> Record:
        """Return the result as a flat dict."""
        recalls = {f"recall_at_{k}": recall for k, recall in self.recall_at.items()}
        return origin_of(self) | {
            "task": "retrieval", "protocol": self.similarity, "num_answerable": self.num_answerable,
            "precision_at_1": self.precision_at_1, "r_precision": self.r_precision, "map_at_r": self.map_at_r,
        } | recalls | {"k": None} | asdict(self.search)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over several tries."""

    mean: float
    sd: float


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation, 0 of a single value."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=len(values) > 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotResult:
    """One layer, classified by a few labelled rows of each class, over several draws."""

    layer: LayerFacts
    protocol: str
    shots: str
    tries: int
    num_train: int
    num_val: int
    num_classes: int
    k: int
    temperature: float | None
    top1: Spread
    top5: Spread
    mean_per_class: Spread

    def record(self) -> Record:
        """Return the result as a flat dict."""
        record = asdict(self.layer) | {
            "task": "few_shot", "protocol": self.protocol, "shots": self.shots, "tries": self.tries,
            "num_train": self.num_train, "num_val": self.num_val, "num_classes": self.num_classes,
            "k": self.k, "temperature": self.temperature,
        }  # fmt: skip
        for name in ("top1", "top5", "mean_per_class"):
            spread: Spread = getattr(self, name)
            record |= {name: spread.mean, f"{name}_sd": spread.sd}
        return record


def estimated(**estimates: Estimate | None) -> Record:
    """Return each estimate under its name, with the ends of its interval; None for what is not known.

    Examples
    --------
    >>> estimated(top1=Estimate(0.5, 0.25, 0.75))
    {'top1': 0.5, 'top1_low': 0.25, 'top1_high': 0.75}
    """
    record: Record = {}
    for name, each in estimates.items():
        values: Sequence[float | None] = (None, None, None) if each is None else (each.value, each.low, each.high)
        record |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    return record


def records_of(results: Sequence[Result]) -> list[Record]:
    """Return flat records with the same keys, None where one does not apply."""
    return uniform([result.record() for result in results])


def uniform(records: Sequence[Record]) -> list[Record]:
    """Give all records the same keys, None where one does not apply."""
    keys = dict.fromkeys([*FIRST, *(key for record in records for key in record)])
    return [{key: record.get(key) for key in keys} for record in records]


class OfSearch(Protocol):
    """A result of a search."""

    @property
    def layer(self) -> LayerFacts:
        """Whose it is."""

    @property
    def counts(self) -> Counts:
        """How many rows took part."""

    @property
    def similarity(self) -> str:
        """What was searched by."""

    @property
    def leave_one_out(self) -> bool:
        """Whether the queries are rows of train."""


def origin_of(result: OfSearch) -> Record:
    """First keys of every record of a search."""
    setting = {"similarity": result.similarity, "leave_one_out": result.leave_one_out}
    return asdict(result.layer) | asdict(result.counts) | setting
