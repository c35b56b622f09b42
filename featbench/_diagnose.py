"""`featbench.diagnose`: what an accuracy does not say; `featbench.compare`: whether one is better than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from featbench._arrays import ArrayError, whole_numbers
from featbench._errors import naming_arguments
from featbench._features import Features, Layers, StoredFeatures
from featbench._knn import KnnResults, Protocols, as_features, data_frame, positive, protocols_of, resources_of
from featbench.evaluate.diagnosis.diagnosis import DiagnosisQuestion, Groups
from featbench.evaluate.diagnosis.diagnosis import diagnose as diagnose_layers
from featbench.evaluate.diagnosis.results import (
    AgreementResult,
    CalibrationResult,
    DepthResult,
    GeometryResult,
    GroupResult,
    HubnessResult,
    SuspectsResult,
    WithoutResult,
)
from featbench.evaluate.metrics import PairedDifference, paired_difference
from featbench.evaluate.results import Record, Result, records_of
from featbench.pipelines.evaluation.agreement import Representation, agreement, depths
from featbench.pipelines.evaluation.diagnosis import NEAR_DUPLICATE, suspects_of
from featbench.pipelines.evaluation.groups import numbered_groups
from featbench.pipelines.terminal.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What `diagnose` returns: results of each kind, in the order of the layers."""

    results: tuple[Result, ...]
    """All results, in the order of `bench diagnose --json`."""

    _name: str = field(default="", repr=False)

    @property
    def calibration(self) -> tuple[CalibrationResult, ...]:
        """Calibration of the vote, for each layer, protocol, temperature and k; none without labels."""
        return self._of(CalibrationResult)

    @property
    def hubness(self) -> tuple[HubnessResult, ...]:
        """Hubs and antihubs, for each layer, similarity and k."""
        return self._of(HubnessResult)

    @property
    def geometry(self) -> tuple[GeometryResult, ...]:
        """Intrinsic dimension and spectrum, for each layer and similarity."""
        return self._of(GeometryResult)

    @property
    def groups(self) -> tuple[GroupResult, ...]:
        """Accuracy of each group of queries, for each layer and protocol."""
        return self._of(GroupResult)

    @property
    def suspects(self) -> tuple[SuspectsResult, ...]:
        """Likely label errors, near-duplicates and outliers of each layer, in the order to look at."""
        return self._of(SuspectsResult)

    @property
    def without(self) -> tuple[WithoutResult, ...]:
        """Accuracies without each kind of suspects."""
        return self._of(WithoutResult)

    @property
    def agreement(self) -> tuple[AgreementResult, ...]:
        """How alike the neighbours and the features of each pair of layers are."""
        return self._of(AgreementResult)

    @property
    def depths(self) -> DepthResult | None:
        """Prediction depth of the queries; None with a single layer, or without labels."""
        return next(iter(self._of(DepthResult)), None)

    @property
    def records(self) -> list[Record]:
        """All results as flat dicts with the same keys, those of `bench diagnose --json`."""
        return records_of(self.results)

    def to_pandas(self) -> pd.DataFrame:
        """Return the records as a data frame; needs pandas."""
        return data_frame(self.records)

    def __repr__(self) -> str:
        kinds = ("calibration", "hubness", "geometry", "groups", "suspects", "without", "agreement")
        counts = [f"{kind} ({len(found)})" for kind in kinds if (found := getattr(self, kind))]
        return f"Diagnosis of {self._name}: {', '.join(counts)}" + (", depths" if self.depths else "")

    def _of(self, kind: type[R]) -> tuple[R, ...]:
        return tuple(each for each in self.results if isinstance(each, kind))


@naming_arguments
def diagnose(
    train: object,
    train_labels: object = None,
    val: object = None,
    val_labels: object = None,
    *,
    layers: Layers = None,
    k: int | Sequence[int] | None = None,
    protocol: Protocols = "dino",
    temperature: float | Sequence[float] | None = None,
    leave_one_out: bool = False,
    groups: Mapping[str, Sequence[object]] | None = None,
    suspects: bool = False,
    duplicates: float = NEAR_DUPLICATE,
    share: float = 0.01,
    device: str = "auto",
    precision: str = "auto",
    memory: int | str | None = None,
    keep: bool = False,
) -> Diagnosis:
    """Say what the accuracies of layers do not: calibration, hubs, geometry, suspects, and how alike layers are.

    Numbers are those of `bench diagnose` on the same features; `docs/diagnosis.md` says what they mean.

    Parameters
    ----------
    train, train_labels, val, val_labels
        As for `knn`.
    layers : str or sequence of str, optional
        All by default, in the order of the network, which prediction depth goes by.
    k, protocol, temperature
        As for `knn`.
    leave_one_out : bool
        Ask with the rows of train, each among the others; val may be left out.
    groups : mapping of str to sequence, optional
        By grouping, the group of each row of the queries' split (all rows, whether they have a label or not), such as
        its camera; None and "" are none. Adds the accuracy of each group.
    suspects : bool
        Also look for label errors, near-duplicates and outliers, and for the accuracies without them.
    duplicates : float
        Cosine from which two rows count as near-duplicates.
    share : float
        Most suspected label errors, and outliers, as a fraction of all rows.
    device, precision, memory, keep
        As for `knn`.

    Returns
    -------
    Diagnosis
        With `calibration`, `hubness`, `geometry`, `groups`, `suspects`, `agreement`, `depths`, `records` and
        `to_pandas()`.

    Raises
    ------
    BenchError
        If shapes, lengths, labels, groups or settings do not fit; these are ValueErrors, too.

    Examples
    --------
    >>> train, val = [[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]], [[0.1, 1.0], [1.0, 0.2]]
    >>> found = diagnose(train, ["cat", "dog", "dog"], val, ["cat", "dog"], k=2)
    >>> found.calibration[0].top1.value
    1.0
    >>> found.hubness[0].hubness.num_antihubs
    0
    """
    if not -1 < duplicates <= 1:
        raise ArrayError(f"duplicates must be a cosine, in (-1, 1]; got {duplicates!r}")
    if not 0 < share <= 1:
        raise ArrayError(f"share must be a fraction of the rows, in (0, 1]; got {share!r}")
    features = as_features(train, train_labels, val, val_labels, leave_one_out=leave_one_out)
    resources = resources_of(device, precision, memory)
    ks = None if k is None else whole_numbers(k, what="k")
    protocols, temperatures = protocols_of(protocol), positive(temperature)
    queries = "train" if leave_one_out else "val"
    asked = DiagnosisQuestion(
        protocols=protocols, k=ks, temperature=temperatures, leave_one_out=leave_one_out,
        groups=_groups(groups, features.num_rows(queries), queries) if groups else None,
    )  # fmt: skip
    views, labels = features.views(layers), features.matched()
    find = features.finder(resources, keep=keep)
    names = None if not isinstance(features, StoredFeatures) else features.paths("train")
    results = diagnose_layers(views, labels, asked, find=find, memory=resources.bytes, paths=names)
    quiet = Progress(quiet=True)
    for view in views if suspects else ():
        result, others = suspects_of(
            view, labels=labels, protocols=protocols, find=find, memory=resources.bytes, progress=quiet, k=ks,
            temperature=temperatures, duplicates=duplicates, share=share,
        )  # fmt: skip
        results += [result, *others]
    known = [Representation(layer=view, labels=labels, find=find, paths=_paths(features)) for view in views]
    name, first = next(iter(protocols.items()))
    results += depths(
        known, name=name, protocol=first, k=ks, temperature=temperatures, leave_one_out=leave_one_out, progress=quiet,
    )  # fmt: skip
    if len(known) > 1:
        results += agreement(
            known, protocol=first, k=ks, leave_one_out=leave_one_out, memory=resources.bytes, progress=quiet
        )
    return Diagnosis(results=tuple(results), _name=features.name)


def compare(first: KnnResults, second: KnnResults) -> PairedDifference:
    """Say whether the best of some results of `knn` is better than that of others, on the same queries.

    Parameters
    ----------
    first, second : KnnResults
        Of the same images in the same order, such as two models' features of them.

    Returns
    -------
    PairedDifference
        Top-1 of `second` less that of `first`, with its 95% interval, and McNemar's exact p-value.

    Raises
    ------
    BenchError
        If either has no labels, or the queries are not the same.

    Examples
    --------
    >>> from featbench import knn
    >>> labels = ["cat", "dog"] * 4
    >>> good, bad = [[0.0, 1.0], [1.0, 0.0]] * 4, [[0.0, 1.0]] * 8
    >>> one, other = (knn(each, labels, leave_one_out=True, k=1) for each in (bad, good))
    >>> compare(one, other).value
    0.625
    """
    ours, theirs = first.outcomes(), second.outcomes()
    if ours.num_rows != theirs.num_rows:
        raise ArrayError(f"the queries are not the same: {ours.num_rows:,} rows and {theirs.num_rows:,}")
    common, at, beside = np.intersect1d(ours.queries, theirs.queries, return_indices=True)
    if not len(common) or [ours.classes[i] for i in at] != [theirs.classes[i] for i in beside]:
        raise ArrayError("the queries are not the same: they have other labels")
    return paired_difference(ours.is_right_Q[at], theirs.is_right_Q[beside])


def _groups(groups: Mapping[str, Sequence[object]], num_rows: int, queries: str) -> Groups:
    found = {}
    for name, each in groups.items():
        if isinstance(each, str) or len(each) != num_rows:
            raise ArrayError(f"groups[{name!r}] must have one for each of the {num_rows:,} rows of {queries}")
        found[name] = numbered_groups(["" if group is None else str(group) for group in each])
    return found


def _paths(features: Features) -> Callable[[str], Sequence[str]]:
    if isinstance(features, StoredFeatures):
        return features.paths
    return lambda split: [str(row) for row in range(features.num_rows(split))]
