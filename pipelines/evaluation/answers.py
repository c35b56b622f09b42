"""What is known of the queries of a layer: their neighbours, and the classes that these predict."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.features.labels import (
    MatchedLabels,
    class_names_of,
    has_labels,
    matched_labels,
    readable_rows,
    shared_names,
)
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.knn.classification import usable_k
from featbench.evaluate.knn.multi_label import is_multi_label
from featbench.evaluate.knn.predictions import Predictions, predict
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.search import Neighbours
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.files import ExportError
from featbench.pipelines.evaluation.resources import resources_of
from featbench.store import FeatureSet
from featbench.store.manifest import digest_of
from featbench.store.typing import Doubles, Ints

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Lists of the queries of one layer, and predictions if train has labels."""

    layer: str
    split: str
    """Split that the queries are from."""

    similarity: Similarity
    neighbours: Neighbours
    predictions: Predictions | None

    def distances(self, queries: Ints) -> Doubles:
        """Return the distances of some queries: 1 - cosine, minus the inner product, or Euclidean."""
        similarities_QK = self.neighbours.similarities_QK[queries]
        distances_QK: Doubles = 1 - similarities_QK if self.similarity == "cosine" else -similarities_QK
        return distances_QK


def answers_of(features: FeatureSet, layer: str, config: EvaluateConfig, labels: MatchedLabels | None) -> Answers:
    """Find the neighbours of a layer's queries, and predict their classes; kept lists are used.

    Parameters
    ----------
    features, layer
        Whose.
    config : EvaluateConfig
        Protocol, k and temperature, the first of each.
    labels : MatchedLabels, optional
        None if no row of train has a label.
    """
    similarity = next(iter(find_protocols(config.knn.protocol).values())).similarity
    split = "train" if config.knn.leave_one_out else "val"
    predictions = None if labels is None else predictions_of(features, layer, config, labels)
    neighbours = neighbours_alone(features, layer, config)[0] if predictions is None else predictions.neighbours
    return Answers(
        layer=layer, split=split, similarity=similarity, neighbours=neighbours, predictions=predictions
    )  # fmt: skip


def labels_to_vote(features: FeatureSet) -> MatchedLabels | None:
    """Match the labels; None if train has none."""
    return matched_labels(features, needed=False) if has_labels(features, "train") else None


def predictions_of(features: FeatureSet, layer: str, config: EvaluateConfig, labels: MatchedLabels) -> Predictions:
    """Predict the classes of a layer's queries."""
    name, protocol = next(iter(find_protocols(config.knn.protocol).items()))
    return predict(
        features,
        stored_layer(features, layer),
        name=name,
        protocol=protocol,
        k=max(config.knn.k) if config.knn.k else None,
        temperature=config.knn.temperature[0] if config.knn.temperature else None,
        leave_one_out=config.knn.leave_one_out,
        labels=labels,
        resources=resources_of(config),
    )


def neighbours_alone(
    features: FeatureSet, layer: str, config: EvaluateConfig
) -> tuple[Neighbours, dict[str, Any], str]:
    """Find neighbours among all readable rows; also returns the setting, and a digest of all that they depend on."""
    name, protocol = next(iter(find_protocols(config.knn.protocol).items()))
    database = readable_rows(features, "train")
    queries = database if config.knn.leave_one_out else readable_rows(features, "val")
    largest = len(database.rows) - config.knn.leave_one_out
    k = usable_k([max(config.knn.k)] if config.knn.k else None, protocol.k[:1], largest)[0]
    stored = stored_layer(features, layer)
    found = find_neighbours(
        features, stored, database=database, queries=queries, k=k, similarity=protocol.similarity,
        resources=resources_of(config),
    ).neighbours  # fmt: skip
    cut = dataclasses.replace(found, rows_QK=found.rows_QK[:, :k], similarities_QK=found.similarities_QK[:, :k])
    facts = {"layer": layer, "protocol": name, "k": k, "temperature": None, "class_names": []}
    digest = digest_of([protocol.similarity, k, config.knn.leave_one_out, dict(stored.made_from)])
    return cut, facts, digest


def classes_of(features: FeatureSet, split: str) -> Ints:
    """Classes of a split's rows, numbered by the names of both splits; -1 for none."""
    place = {name: index for index, name in enumerate(shared_names(features))}
    places = np.array([*(place[name] for name in class_names_of(features, split)), -1], np.int64)
    return places[features.labels(split)]


def splits_there(features: FeatureSet, theirs: Mapping[str, str], *, reader: str) -> dict[str, str]:
    """Return those splits that a feature set has, with another project's names for them; warn of the others."""
    found = {split: name for split, name in theirs.items() if split in features.manifest.splits}
    for split, name in theirs.items():
        if split not in found:
            logger.warning("%s has no %s: %s's files of %s are not written", features.name, split, reader, name)
    return found


def labelled_rows(features: FeatureSet, split: str, *, reader: str) -> tuple[Ints, Ints]:
    """Return the rows of a split that have a label and a readable image, and the classes of all of its rows.

    Parameters
    ----------
    reader : str
        The project whose files can't do without a label, for messages.

    Raises
    ------
    ExportError
        If there are none.
    """
    classes = classes_of(features, split)
    rows = np.flatnonzero((classes >= 0) & features.valid(split))
    if not len(rows):
        several = "; its rows have several classes each" if is_multi_label(features) else ""
        raise ExportError(
            f"{features.path}: no row of {split} has a single label and a readable image, as {reader} needs{several}"
        )
    if len(rows) < len(classes):
        left_out = len(classes) - len(rows)
        logger.warning("%s: rows of %s without label or image, left out: %d", features.name, split, left_out)
    return rows, classes
