"""What is kept of each layer, evaluated: lists of neighbours, accuracies, predictions.

Shape suffixes:  Q queries   K neighbours
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, MatchedLabels, matched_labels, refuse_no_queries
from featbench.evaluate.features.layers import EvalLayer, stored_layer
from featbench.evaluate.knn.classification import KnnQuestion, classify
from featbench.evaluate.knn.protocols import PROTOCOLS, KnnProtocol
from featbench.evaluate.knn.vote import vote_weights
from featbench.evaluate.neighbours.cache import NeighbourCache, SearchResult
from featbench.evaluate.results import KnnResult, Record
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.recorded.reading import results_of
from featbench.pipelines.report.commands import evaluate_command
from featbench.pipelines.report.grid import GridCell, first_places, grid_of, votes_by_place
from featbench.store import FeatureSet
from featbench.store.names import visible
from featbench.store.typing import Bools, Doubles, Ints

logger = logging.getLogger(__name__)


class KeptListsError(EvaluationError):
    """Kept lists that can't be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One feature set of the report."""

    features: FeatureSet
    labels: MatchedLabels
    leave_one_out: bool
    recorded: Sequence[Record]
    """What earlier evaluations have recorded."""

    @property
    def queries(self) -> Labelled:
        """Rows that ask: those of val, or of train."""
        return self.labels.train if self.leave_one_out else self.labels.val

    @property
    def classifications(self) -> list[Record]:
        """Recorded results of kNN."""
        return [each for each in self.recorded if each["task"] == "knn"]

    @property
    def has_labels(self) -> bool:
        """Whether there are accuracies."""
        return self.labels.train.has_labels and self.queries.has_labels


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One layer of one feature set by one protocol, whose neighbours are kept."""

    source: Source
    layer: EvalLayer
    protocol_name: str
    protocol: KnnProtocol
    cache: NeighbourCache
    name: str
    """As the page calls it; no two are called the same."""

    def kept(self) -> SearchResult:
        """Read the kept lists.

        Raises
        ------
        KeptListsError
            If they are damaged, or gone meanwhile.
        """
        kept = self.cache.load(1)
        if kept is None:
            raise KeptListsError(_of_damaged([self]))
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A view with its numbers; lists of all queries are not held."""

    view: View
    num_kept: int
    """Length of the kept lists."""

    num_zeros: int
    results: Sequence[KnnResult] = ()
    """One for each k and temperature; none without labels."""

    grid: Sequence[GridCell] = ()
    k: int = 1
    temperature: float | None = None
    """Setting of the predictions: the first k and temperature."""

    predicted_Q: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    confidence_Q: Doubles = field(default_factory=lambda: np.zeros(0))
    """Fraction of the votes that the predicted class has."""

    nearest_Q: Doubles
    """Similarity of the nearest neighbour."""

    rows_QK: npt.NDArray[np.int32]
    """Lists of the first k, for comparing them."""

    occurrences_N: Ints
    """Number of lists of the k nearest that each row of train is in, shape (rows of train,)."""

    def is_right(self) -> Bools:
        """Whether each query is predicted right."""
        return np.asarray(self.predicted_Q == self.view.source.queries.labels)


class _KeptLists:
    """Stands in for a search: returns the lists of one view, which have been read once."""

    def __init__(self, found: SearchResult) -> None:
        self._found = found

    def __call__(self, *arguments: Any, k: int, **settings: Any) -> SearchResult:
        return self._found


def open_sources(paths: Sequence[Path], config: EvaluateConfig) -> list[Source]:
    """Open feature sets; one without queries is asked by its own train rows."""
    sources = []
    for path in paths:
        features = FeatureSet.open(path)
        labels = matched_labels(features, needed=False)
        alone = config.knn.leave_one_out or not len(labels.val.rows)
        source = Source(features=features, labels=labels, leave_one_out=alone, recorded=list(results_of(features)))
        refuse_no_queries(path, source.queries)
        sources.append(source)
    return with_common_classes(sources)


def with_common_classes(sources: Sequence[Source]) -> list[Source]:
    """Number the classes of all feature sets in the same way, by their names."""
    names = tuple(dict.fromkeys(name for source in sources for name in source.labels.class_names))
    number = {name: place for place, name in enumerate(names)}

    def renumbered(labels: MatchedLabels) -> MatchedLabels:
        places = np.array([*(number[name] for name in labels.class_names), -1], np.int64)
        train, val = (replace(each, labels=places[each.labels]) for each in (labels.train, labels.val))
        return MatchedLabels(train, val, names)

    return [
        source if source.labels.class_names == names else replace(source, labels=renumbered(source.labels))
        for source in sources
    ]


def find_views(sources: Sequence[Source], config: EvaluateConfig, layers: Sequence[str] = ()) -> list[View]:
    """Find the layers whose neighbours are kept, by the protocols that were asked for or used before.

    Raises
    ------
    EvaluationError
        If a feature set has none, or a named layer has none; the message has the command that makes them.
    """
    chosen: list[tuple[Source, EvalLayer, str, KnnProtocol, NeighbourCache]] = []
    for source in sources:
        features = source.features
        protocols = _protocols(source, config)
        found, missing = [], []
        for layer_name in features.find_layers(layers):
            layer = stored_layer(features, layer_name)
            for name, protocol in protocols.items():
                cache = NeighbourCache.of(features, layer, source.labels.train, source.queries, protocol.similarity)
                if not cache.exists():
                    missing.append(layer_name)
                else:
                    found.append((source, layer, name, protocol, cache))
        if missing and (layers or not found):
            named = list(dict.fromkeys(missing))
            raise EvaluationError(
                f"{features.path}: no neighbours of {', '.join(named)} are kept by {', '.join(protocols)}, and a "
                f"report is made of what is kept. {how_to_search(source, named, list(protocols))}"
            )
        if missing:
            text = "%s: without %s, whose neighbours are not kept; `bench evaluate` keeps them"
            logger.warning(text, features.name, ", ".join(dict.fromkeys(missing)))
        chosen += found
    names = _names([(source, layer.name, protocol) for source, layer, protocol, *_ in chosen])
    return [
        View(source=source, layer=layer, protocol_name=name, protocol=protocol, cache=cache, name=shown)
        for (source, layer, name, protocol, cache), shown in zip(chosen, names, strict=True)
    ]


def evaluate_views(views: Sequence[View], config: EvaluateConfig, layers: Sequence[str] = ()) -> list[Evaluated]:
    """Evaluate views; one whose lists are damaged is left out with a warning, like a layer that has none.

    Raises
    ------
    EvaluationError
        If layers were named and one is damaged, or nothing is left of a feature set; the message has the commands that
        search again.
    """
    evaluated, damaged = [], []
    for view in views:
        try:
            evaluated.append(evaluate_view(view, config))
        except KeptListsError:
            damaged.append(view)
    left = {id(each.view.source) for each in evaluated}
    fatal = [view for view in damaged if layers or id(view.source) not in left]
    if fatal:
        sources = {id(view.source): view.source for view in fatal}.values()
        raise EvaluationError(
            "\n".join(_of_damaged([view for view in fatal if view.source is source]) for source in sources)
        )
    for view in damaged:
        logger.warning("the report is without %s. %s", view.name, _of_damaged([view]))
    return evaluated


def _of_damaged(views: Sequence[View]) -> str:
    """Say whose lists of one feature set are damaged, and how to make them again."""
    source, layers = views[0].source, list(dict.fromkeys(view.layer.name for view in views))
    return (
        f"{source.features.path}: the kept neighbours of {', '.join(layers)} are damaged or gone. "
        f"{how_to_search(source, layers, list(dict.fromkeys(view.protocol_name for view in views)))}"
    )


def evaluate_view(view: View, config: EvaluateConfig) -> Evaluated:
    """Compute accuracies and predictions from kept lists.

    Raises
    ------
    KeptListsError
        If they can't be read.
    EvaluationError
        If they are too short for a k that was asked for.
    """
    logger.info("%s: evaluating kept neighbours", view.name)
    kept = view.kept()
    lists = kept.neighbours
    num_kept = lists.rows_QK.shape[1]
    ks, temperatures = _settings(view, config, num_kept)
    source = view.source
    base: dict[str, Any] = {
        "view": view, "num_kept": num_kept, "num_zeros": lists.num_zeros, "k": ks[0],
        "nearest_Q": lists.similarities_QK[:, 0].copy(), "rows_QK": lists.rows_QK[:, : ks[0]].astype(np.int32),
        "occurrences_N": np.bincount(
            lists.rows_QK[:, : ks[0]].ravel(), minlength=source.features.split("train").num_rows
        ).astype(np.int64),
    }  # fmt: skip
    if not source.has_labels:
        return Evaluated(**base)
    question = KnnQuestion(
        protocols={view.protocol_name: view.protocol}, k=ks, leave_one_out=source.leave_one_out,
        temperature=[each for each in temperatures if each is not None] or None,
    )  # fmt: skip
    found = classify([view.layer], *source.labels, question, find=_KeptLists(kept), name=source.features.name)
    results = [each for each in found if isinstance(each, KnnResult)]
    labels_QK = source.labels.train.by_row(source.features.split("train").num_rows)[lists.rows_QK]
    places_QK = first_places(labels_QK, num_classes=len(source.labels.class_names))
    weights_QK = vote_weights(lists.similarities_QK, vote=view.protocol.vote, temperature=temperatures[0])
    ranked_QT, fractions_QT = votes_by_place(places_QK, ks[0]).ranking_with_probabilities(weights_QK, k=ks[0], top=1)
    is_right_QK = labels_QK == source.queries.labels[:, None]
    grid = grid_of(
        is_right_QK, places_QK, lists.similarities_QK, vote=view.protocol.vote, ks=ks, temperatures=temperatures
    )
    predicted_Q = np.take_along_axis(labels_QK, ranked_QT[:, :1], axis=1)[:, 0]
    return Evaluated(
        **base, results=results, grid=grid, temperature=temperatures[0], predicted_Q=predicted_Q,
        confidence_Q=fractions_QT[:, 0],
    )  # fmt: skip


def _protocols(source: Source, config: EvaluateConfig) -> Mapping[str, KnnProtocol]:
    """Protocols that were asked for, or else that were used before."""
    if "protocol" in config.knn.model_fields_set:
        return find_protocols(config.knn.protocol)
    used = [str(each.get("protocol")) for each in source.classifications]
    return find_protocols([name for name in PROTOCOLS if name in used] or config.knn.protocol)


def _settings(view: View, config: EvaluateConfig, length: int) -> tuple[list[int], list[float | None]]:
    """Settings to report, k and temperatures: those asked for, or else the protocol's and those used before."""
    knn, protocol = config.knn, view.protocol
    if knn.k and (too_long := [k for k in knn.k if k > length]):
        source = view.source
        raise EvaluationError(
            f"{source.features.path}: lists of {length} neighbours are kept of {view.layer.name}, too short for k "
            f"{too_long[0]}. {how_to_search(source, [view.layer.name], [view.protocol_name], [max(knn.k)])}"
        )
    used = [each for each in view.source.classifications if each.get("protocol") == view.protocol_name]
    saved_k = {each["k"] for each in used if isinstance(each.get("k"), int) and each["k"] >= 1}
    ks = list(knn.k or [])
    if not ks:
        ks = [k for k in protocol.k if k <= length] or [length]
        ks = [ks[0], *sorted({k for k in {*ks, *saved_k} if k <= length} - {ks[0]})]
    if protocol.vote != "exponential":
        return ks, [None]
    saved_t = {float(t) for each in used if isinstance(t := each.get("temperature"), int | float) and t > 0}
    first = protocol.temperature[0]
    temperatures = list(knn.temperature or [first, *sorted({*protocol.temperature, *saved_t} - {first})])
    return ks, [*temperatures]


def _names(parts: Sequence[tuple[Source, str, str]]) -> list[str]:
    """Name views by what tells them apart."""
    sets = list(dict.fromkeys(source.features.path for source, *_ in parts))
    labels = {path: path.name for path in sets}
    if len(set(labels.values())) < len(sets):
        labels = {path: str(path) for path in sets}
    has_several_sets, has_several_protocols = len(sets) > 1, len({protocol for *_, protocol in parts}) > 1
    return [
        visible(
            " ".join(
                [f"{labels[source.features.path]} /"] * has_several_sets
                + [layer]
                + [f"({protocol})"] * has_several_protocols
            ),
            keep="",
        )
        for source, layer, protocol in parts
    ]


def how_to_search(source: Source, layers: Sequence[str], protocols: Sequence[str], ks: Sequence[int] = ()) -> str:
    """Name the command that keeps the lists, in a sentence."""
    command = evaluate_command(
        source.features, layers=layers, protocols=protocols, ks=ks, leave_one_out=source.leave_one_out
    )
    return f"Search with `{command}`"
