"""What each query is taken for, with the probabilities that its neighbours' votes amount to.

Shape suffixes:  Q queries   C classes   T ranked classes
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels
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
    """Predictions for one setting, and what they rest on."""

    setting: dict[str, Any]
    """Layer, protocol, k and temperature."""

    digest: str
    """Of all that they are computed from."""

    neighbours: Neighbours
    """Lists of k."""

    labels_Q: Ints
    """Class of each query, an index into `class_names`; -1 throughout if val has no labels."""

    ranked_QT: Ints
    """The five best classes, best first; -1 where fewer have a vote."""

    probabilities_QT: Doubles
    """Part of the votes of the k neighbours that each of these classes has; 0 where there is none."""

    class_names: tuple[str, ...]
    ballot: ClassVotes
    weights_QK: Doubles

    def is_right(self) -> Bools:
        """Whether the best class is that of each query."""
        return np.asarray(self.ranked_QT[:, 0] == self.labels_Q)


def predict(
    features: FeatureSet,
    view: EvalLayer,
    *,
    name: str,
    rule: KnnProtocol,
    k: int | None = None,
    temperature: float | None = None,
    leave_one_out: bool = False,
    resources: Resources = DEFAULT,
) -> Predictions:
    """Predict the class of each query.

    Parameters
    ----------
    features, view
        What to evaluate.
    name, rule : str, KnnProtocol
        Similarity and voting.
    k, temperature : optional
        The protocol's first by default.
    leave_one_out : bool
        Predict train by train.
    resources : Resources
        Memory, device and ranks of a search, if there must be one.

    Raises
    ------
    EvaluationError
        As `evaluate_knn`, and if no row of train has a label.
    """
    train, val, names = matched_labels(features, needed=False)
    if not train.has_labels:
        raise EvaluationError(f"{features.path}: no row of train has a label, so there are no classes to predict")
    queries = train if leave_one_out else val
    k = usable_k(None if k is None else [k], rule.k, len(train.rows) - leave_one_out)[0]
    if rule.vote == "exponential" and temperature is None:
        temperature = rule.temperature[0]
    found = find_neighbours(
        features, view, database=train, queries=queries, k=k, similarity=rule.similarity, resources=resources
    ).neighbours
    rows_QK, similarities_QK = found.rows_QK[:, :k], found.similarities_QK[:, :k]
    ballot = ClassVotes.of(train.by_row(features.split("train").num_rows)[rows_QK], num_classes=len(names))
    weights_QK = vote_weights(similarities_QK, vote=rule.vote, temperature=temperature)
    ranked_QT, probabilities_QT = ballot.ranking_with_shares(weights_QK, k=k)
    return Predictions(
        setting={"layer": view.name, "protocol": name, "k": k, "temperature": temperature},
        digest=digest_of(
            [ALGORITHM[rule.similarity], name, asdict(rule), k, temperature, leave_one_out, dict(view.made_from)]
        ),
        neighbours=replace(found, rows_QK=rows_QK, similarities_QK=similarities_QK),
        labels_Q=queries.labels,
        ranked_QT=ranked_QT,
        probabilities_QT=probabilities_QT,
        class_names=names,
        ballot=ballot,
        weights_QK=weights_QK,
    )
