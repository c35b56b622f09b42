"""The nearest train images of one image: from the kept lists, or by an exact search."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import (
    Labelled,
    MatchedLabels,
    has_labels,
    has_split,
    matched_labels,
    readable_rows,
)
from featbench.evaluate.features.layers import EvalLayer, stored_layer
from featbench.evaluate.features.memory_layer import MemoryLayer
from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.neighbours.cache import NeighbourCache
from featbench.evaluate.neighbours.cached_search import search_neighbours
from featbench.evaluate.neighbours.search import Neighbours
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.neighbours.queries import Asked, find_query, is_file_of
from featbench.store import FeatureSet
from featbench.store.typing import Floats, Ints, Json

if TYPE_CHECKING:
    from featbench.pipelines.extraction.rebuilding import RebuiltModel

logger = logging.getLogger(__name__)

DEFAULT_K = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """One image of train."""

    rank: int
    row: int
    path: str
    label: str | None
    similarity: float
    is_right: bool | None
    """Whether it has the query's class; None if either has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The neighbours of one image, and how they vote."""

    features: str
    layer: str
    protocol: str
    similarity: str
    k: int
    temperature: float | None
    query: Asked
    label: str | None
    """Class of the query; None if it has none, or it is not known."""

    neighbours: tuple[Neighbour, ...]
    votes: tuple[tuple[str, float], ...]
    """Classes with their share of the votes, the best first; at most five."""

    how: str
    """Where the lists come from."""

    @property
    def predicted(self) -> str | None:
        """The class with the most votes."""
        return self.votes[0][0] if self.votes else None

    def record(self) -> Json:
        """Return it as plain values for JSON."""
        query = {"path": self.query.path, "row": self.query.row, "label": self.label}
        return {
            "features": self.features,
            "layer": self.layer,
            "protocol": self.protocol,
            "similarity": self.similarity,
            "k": self.k,
            "temperature": self.temperature,
            "query": query,
            "predicted": self.predicted,
            "is_right": None if None in (self.predicted, self.label) else self.predicted == self.label,
            "votes": dict(self.votes),
            "how": self.how,
            "neighbours": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a record for each neighbour."""
        return [
            {
                "rank": each.rank, "similarity": each.similarity, "label": each.label, "path": each.path,
                "row": each.row, "same_class": each.is_right,
            }
            for each in self.neighbours
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked, apart from the image."""

    features: FeatureSet
    layer: EvalLayer
    labels: MatchedLabels
    split: str
    protocol: KnnProtocol
    k: int
    config: EvaluateConfig

    @property
    def queries(self) -> Labelled:
        return self.labels.train if self.split == "train" else self.labels.val


def neighbours_of(
    features: FeatureSet,
    name: str,
    config: EvaluateConfig,
    *,
    layer: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> Answer:
    """Find the nearest train images of an image.

    Parameters
    ----------
    features : FeatureSet
        Searched.
    name : str
        A row of val, by its number, its path or an end of its path that no other has; or an image file.
    config : EvaluateConfig
        Protocol, k and temperature, the first of each; with `leave_one_out`, rows of train are asked about.
    layer : str, optional
        The last by default.
    weights, device, trust_code
        For an image file; see `featbench.pipelines.extraction.rebuilding.rebuild`.

    Raises
    ------
    BenchError
        If there is no such image, it can't be read, or the model can't be built again.
    """
    chosen = features.find_layers([layer] if layer else [])[-1]
    split = "train" if config.knn.leave_one_out else "val"
    protocol_name, protocol = _the_protocol(config)
    question = _question(features, chosen, config, split=split, protocol=protocol)
    asked = find_query(features, name, split=split)
    model = values = None
    if asked.file is not None:
        asked, model, values = _of_file(features, chosen, asked, split, weights, device, trust_code)
    found, how = _lists(question, asked) if values is None else _search_for(question, values)
    temperature = None
    if protocol.vote == "exponential":
        temperature = config.knn.temperature[0] if config.knn.temperature else protocol.temperature[0]
    return _answer(
        question, protocol_name, asked, found, temperature, how if model is None else f"{how}; {_ran(model)}"
    )


def _the_protocol(config: EvaluateConfig) -> tuple[str, KnnProtocol]:
    """Return the name of the protocol and the protocol; refuse several settings, as one image has one vote."""
    temperatures = config.knn.temperature or ()
    if len(temperatures) > 1:
        raise EvaluationError(f"--temperature: one for the vote; got {', '.join(f'{each:g}' for each in temperatures)}")
    protocols = find_protocols(config.knn.protocol)
    if len(protocols) > 1:
        raise EvaluationError(f"--protocol: one for the vote; got {', '.join(protocols)}")
    return next(iter(protocols.items()))


def _question(
    features: FeatureSet, layer: str, config: EvaluateConfig, *, split: str, protocol: KnnProtocol
) -> _Question:
    labels = matched_labels(features, needed=False)
    if not has_labels(features, "train"):
        labels = MatchedLabels(readable_rows(features, "train"), labels.val, labels.class_names)
    most = len(labels.train.rows) - (split == "train")
    k = max(config.knn.k) if config.knn.k else min(DEFAULT_K, most)
    if not 1 <= k <= most:
        raise EvaluationError(f"-k must be in [1, {most:,}], the images of train; got {k:,}")
    return _Question(
        features=features, layer=stored_layer(features, layer), labels=labels, split=split, protocol=protocol, k=k,
        config=config,
    )  # fmt: skip


def _of_file(
    features: FeatureSet,
    layer: str,
    asked: Asked,
    split: str,
    weights: Path | None,
    device: str,
    trust_code: bool,
) -> tuple[Asked, RebuiltModel | None, Floats | None]:
    """Return the row that a file is, or the features that the model has for it."""
    from featbench.pipelines.extraction.rebuilding import read_alike, rebuild

    assert asked.file is not None
    if (row := _own_row(features, asked.file, split)) is not None:
        return Asked(path=features.paths(split)[row], row=row), None, None
    picture = read_alike(features, asked.file)  # which fails sooner than the model is built
    model = rebuild(features, layer, weights=weights, device=device, trust_code=trust_code)
    return asked, model, model(picture)


def _own_row(features: FeatureSet, file: Path, split: str) -> int | None:
    """Return the row that a file is, by its path and its content; None if it is none of the split's."""
    from featbench.extract.data.images import content_of
    from featbench.extract.data.pictures import digest_of_bytes
    from featbench.pipelines.extraction.pictures import rows_of_picture

    if not has_split(features, split):
        return None
    rows = rows_of_picture(features, split, digest_of_bytes(content_of(file, name=str(file))))
    return next((row for row in rows if is_file_of(features, file, row, split=split)), None)


def _ran(model: RebuiltModel) -> str:
    return f"its features by {model.built.weights.text} on {model.device}"


def _lists(question: _Question, asked: Asked) -> tuple[Neighbours, str]:
    """Return the kept list of a row, or search for it alone."""
    assert asked.row is not None
    features, queries = question.features, question.queries
    if not features.valid(question.split)[asked.row]:
        raise EvaluationError(f"{asked.path}: this image could not be read, so it has no features")
    kept = _kept(question, asked.row)
    if kept is not None:
        return kept, "from the kept lists"
    label = queries.by_row(features.split(question.split).num_rows)[asked.row]
    alone = Labelled(split=question.split, rows=np.array([asked.row], np.int64), labels=np.array([label]))
    return _searched(question, question.layer, alone)


def _kept(question: _Question, row: int) -> Neighbours | None:
    position = np.flatnonzero(question.queries.rows == row)
    if not len(position):
        return None
    lists = NeighbourCache.of(
        question.features, question.layer, question.labels.train, question.queries, question.protocol.similarity
    ).load(question.k)
    if lists is None:
        return None
    found, at = lists.neighbours, position[:1]
    return replace(
        found, rows_QK=found.rows_QK[at, : question.k], similarities_QK=found.similarities_QK[at, : question.k],
        queries=found.queries[at],
    )  # fmt: skip


def _search_for(question: _Question, values: Floats) -> tuple[Neighbours, str]:
    """Search for the neighbours of features that are not stored."""
    stored = question.layer
    layer = replace(
        stored,
        layers={"train": stored.layers["train"], "val": MemoryLayer(values[None], key="the image")},
        made_from={},
    )
    one = Labelled(split="val", rows=np.zeros(1, np.int64), labels=np.full(1, -1, np.int64))
    return _searched(question, layer, one)


def _searched(question: _Question, layer: EvalLayer, queries: Labelled) -> tuple[Neighbours, str]:
    found = search_neighbours(
        layer, database=question.labels.train, queries=queries, k=question.k, similarity=question.protocol.similarity,
        resources=resources_of(question.config),
    ).neighbours  # fmt: skip
    return found.first(question.k), "searched now, exactly"


def _answer(
    question: _Question, protocol: str, asked: Asked, found: Neighbours, temperature: float | None, how: str
) -> Answer:
    features, labels, names = question.features, question.labels, question.labels.class_names
    of_train = labels.train.by_row(features.split("train").num_rows)
    paths = features.paths("train")
    name_of = _class_names(features, "train", of_train, names)
    label = None
    if asked.row is not None:
        classes = question.queries.by_row(features.split(question.split).num_rows)
        label = _class_names(features, question.split, classes, names)(asked.row)
    is_multi = features.split("train").is_multi_label
    rows, similarities = found.rows_QK[0].tolist(), found.similarities_QK[0].tolist()
    listed = []
    for rank, (row, similarity) in enumerate(zip(rows, similarities, strict=True), start=1):
        name = name_of(row)
        is_right = None if name is None or label is None or is_multi else name == label
        listed.append(
            Neighbour(rank=rank, row=row, path=paths[row], label=name, similarity=similarity, is_right=is_right)
        )
    return Answer(
        features=features.name, layer=question.layer.name, protocol=protocol,
        similarity=question.protocol.similarity, k=question.k, temperature=temperature, query=asked, label=label,
        neighbours=tuple(listed), votes=_votes(question, found, of_train[found.rows_QK], temperature), how=how,
    )  # fmt: skip


def _class_names(features: FeatureSet, split: str, classes: Ints, names: Sequence[str]) -> Callable[[int], str | None]:
    """Return what gives the class of a row, or its classes if it can have several."""
    if not features.split(split).is_multi_label:
        return lambda row: names[classes[row]] if classes[row] >= 0 else None
    matrix, own = features.label_matrix(split), features.split(split).class_names
    return lambda row: "; ".join(own[number] for number in np.flatnonzero(matrix[row] == 1)) or None


def _votes(question: _Question, found: Neighbours, labels_QK: Any, temperature: float | None) -> Any:
    if (labels_QK < 0).any():
        return ()
    names: Sequence[str] = question.labels.class_names
    votes = ClassVotes.of(labels_QK, num_classes=len(names))
    weights_QK = vote_weights(found.similarities_QK, vote=question.protocol.vote, temperature=temperature)
    ranked_QT, shares_QT = votes.ranking_with_probabilities(weights_QK, k=question.k)
    return tuple(
        (names[number], share)
        for number, share in zip(ranked_QT[0].tolist(), shares_QT[0].tolist(), strict=True)
        if number >= 0
    )
