"""Predicted classes of queries, with probabilities from the votes of their neighbours.

Shape suffixes:  Q queries   C classes   T ranked classes
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import MatchedLabels, matched_labels, refuse_no_queries
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import usable_k
from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.neighbours.cache import ALGORITHM
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.planning import DEFAULT, Resources
from featbench.evaluate.neighbours.search import Neighbours
from featbench.store import FeatureSet
from featbench.store.manifest import digest_of
from featbench.store.typing import Bools, Doubles, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Predictions for one setting, and what they are computed from."""

    setting: dict[str, Any]
    """Layer, protocol, k and temperature."""

    digest: str
    """Digest of everything that they are computed from."""

    neighbours: Neighbours
    """Lists of k neighbours."""

    labels_Q: Ints
    """Class of each query, an index into `class_names`; all -1 if val has no labels."""

    ranked_QT: Ints
    """The five best classes, best first; -1 where fewer have a vote."""

    probabilities_QT: Doubles
    """Fraction of the votes of the k neighbours for each of these classes; 0 beyond the last."""

    class_names: tuple[str, ...]
    votes: ClassVotes
    weights_QK: Doubles

    def is_right(self) -> Bools:
        """Whether the best class is the true class, for each query."""
        return np.asarray(self.ranked_QT[:, 0] == self.labels_Q)


def predict(
    features: FeatureSet,
    layer: EvalLayer,
    *,
    name: str,
    protocol: KnnProtocol,
    k: int | None = None,
    temperature: float | None = None,
    leave_one_out: bool = False,
    labels: MatchedLabels | None = None,
    resources: Resources = DEFAULT,
) -> Predictions:
    """Predict the class of each query.

    Parameters
    ----------
    features, layer
        Layer to evaluate.
    name, protocol : str, KnnProtocol
        Similarity and voting.
    k, temperature : optional
        The protocol's first by default.
    leave_one_out : bool
        Predict each row of train from the other rows of train.
    labels : MatchedLabels, optional
        Result of `matched_labels`, to match, and to warn of rows that are left out, only once.
    resources : Resources
        Memory, device and ranks of the search, if the cache has no lists.

    Raises
    ------
    EvaluationError
        As `evaluate_knn`, and if no row of train has a label.
    """
    train, val, names = labels or matched_labels(features, needed=False)
    if not train.has_labels:
        raise EvaluationError(f"{features.path}: no row of train has a label, so there are no classes to predict")
    queries = train if leave_one_out else val
    refuse_no_queries(features.path, queries)
    k = usable_k(None if k is None else [k], protocol.k, len(train.rows) - leave_one_out)[0]
    if protocol.vote == "exponential" and temperature is None:
        temperature = protocol.temperature[0]
    found = find_neighbours(
        features, layer, database=train, queries=queries, k=k, similarity=protocol.similarity, resources=resources
    ).neighbours
    rows_QK, similarities_QK = found.rows_QK[:, :k], found.similarities_QK[:, :k]
    votes = ClassVotes.of(train.by_row(features.split("train").num_rows)[rows_QK], num_classes=len(names))
    weights_QK = vote_weights(similarities_QK, vote=protocol.vote, temperature=temperature)
    ranked_QT, probabilities_QT = votes.ranking_with_probabilities(weights_QK, k=k)
    return Predictions(
        setting={"layer": layer.name, "protocol": name, "k": k, "temperature": temperature},
        digest=digest_of(
            [
                ALGORITHM[protocol.similarity],
                name,
                asdict(protocol),
                k,
                temperature,
                leave_one_out,
                dict(layer.made_from),
            ]
        ),
        neighbours=replace(found, rows_QK=rows_QK, similarities_QK=similarities_QK),
        labels_Q=queries.labels,
        ranked_QT=ranked_QT,
        probabilities_QT=probabilities_QT,
        class_names=names,
        votes=votes,
        weights_QK=weights_QK,
    )
