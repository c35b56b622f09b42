"""Weighted kNN classification of rows that have any number of classes.

Each neighbour votes for all of its classes. The score of a class is the fraction of the votes, among the neighbours for
which it is known whether they have the class, that are for it.

Shape suffixes:  Q queries   K neighbours   C classes   N database rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import (
    Labelled,
    MatchedLabels,
    class_names_of,
    counts_of,
    has_split,
    refuse_no_queries,
)
from featbench.evaluate.features.layers import EvalLayer, layers_of
from featbench.evaluate.knn.classification import Find, KnnQuestion, temperatures_of, usable_k
from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.knn.vote import vote_weights
from featbench.evaluate.metrics import Estimate, within
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.planning import DEFAULT, Resources
from featbench.evaluate.other_results import LabelResult, LabelScore, MultiLabelResult
from featbench.evaluate.results import Result
from featbench.store import FeatureSet
from featbench.store.typing import Bools, Doubles, Int8s, Ints

THRESHOLD = 0.5
"""Score from which a class is predicted, for F1."""

_VOTES_AT_ONCE = 2**23
"""Votes of neighbours for classes that are in memory at a time."""


class LabelMatrices(NamedTuple):
    """Labels of both splits as columns of one numbering: 1, 0, or -1 where it is not known."""

    train_NC: Int8s
    val_NC: Int8s
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelScores:
    """Scores of one setting; means over the classes that a query is known to have."""

    mean_ap: Estimate
    micro_f1: Estimate
    macro_f1: Estimate
    labels: tuple[LabelScore, ...]
    """Scores of these classes, in order of their numbers."""


def is_multi_label(features: FeatureSet) -> bool:
    """Whether rows have any number of classes."""
    return all(info.is_multi_label for info in features.manifest.splits.values())


def label_matrices(features: FeatureSet, queries: tuple[FeatureSet, str] | None = None) -> LabelMatrices:
    """Match the columns of both splits by the names of their classes.

    A class that only one split has is not known in the other, and without such a class in train its score is 0.

    Parameters
    ----------
    features : FeatureSet
        Has `train`.
    queries : tuple of FeatureSet and str, optional
        The split that asks; by default its own `val`.
    """
    sides = ((features, "train"), queries or (features, "val"))
    names = [class_names_of(*side) for side in sides]
    every = tuple(dict.fromkeys([*names[0], *names[1]]))
    place = {name: index for index, name in enumerate(every)}

    def spread(side: tuple[FeatureSet, str], columns: Sequence[str]) -> Int8s:
        if not has_split(*side):
            return np.zeros((0, len(every)), np.int8)
        known = side[0].label_matrix(side[1])
        matrix = np.full((len(known), len(every)), -1, np.int8)
        matrix[:, [place[name] for name in columns]] = known
        return matrix

    train_NC, val_NC = (spread(side, columns) for side, columns in zip(sides, names, strict=True))
    return LabelMatrices(train_NC, val_NC, every)


def multi_label_results(
    features: FeatureSet,
    layers: Sequence[str | EvalLayer],
    *,
    protocol: Mapping[str, KnnProtocol],
    labels: MatchedLabels,
    k: Sequence[int] | None = None,
    temperature: Sequence[float] | None = None,
    leave_one_out: bool = False,
    per_class: bool = False,
    index: str | None = None,
    resources: Resources = DEFAULT,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
) -> list[Result]:
    """Classify rows with any number of classes.

    Parameters
    ----------
    features : FeatureSet
        Of which both splits have such labels.
    labels : MatchedLabels
        The readable rows of both splits.
    per_class : bool
        Also return a result for each class, at each protocol's first k and temperature.
    layers, protocol, k, temperature, leave_one_out, index, resources, on_rows
        As for `featbench.evaluate.knn.classification.knn_results`.

    Returns
    -------
    list of MultiLabelResult and LabelResult
        For each layer, protocol, temperature and k.

    Raises
    ------
    EvaluationError
        If no query is known to have a class.
    """
    asked = KnnQuestion(
        protocols=protocol, k=k, temperature=temperature, leave_one_out=leave_one_out, per_class=per_class
    )  # fmt: skip
    find = partial(find_neighbours, features, index=index, resources=resources)
    return score_layers(
        layers_of(features, layers), labels.train, labels.val, label_matrices(features), asked, find=find,
        on_rows=on_rows, name=str(features.path),
    )  # fmt: skip


def score_layers(
    layers: Sequence[EvalLayer],
    train: Labelled,
    val: Labelled,
    matrices: LabelMatrices,
    asked: KnnQuestion,
    *,
    find: Find,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
    name: str,
) -> list[Result]:
    """Classify the rows of val, or with leave-one-out those of train, by any rows of train.

    Parameters
    ----------
    layers : sequence of EvalLayer
        The layers.
    train, val : Labelled
        Rows that vote, and rows that ask.
    matrices : LabelMatrices
        Labels of all rows of both splits.
    asked : KnnQuestion
        Protocols, k, temperatures, and whether to return a result for each class.
    find, on_rows, name
        As for `featbench.evaluate.knn.classification.classify`.
    """
    leave_one_out = asked.leave_one_out
    queries = train if leave_one_out else val
    refuse_no_queries(name, queries)
    truth_QC = (matrices.train_NC if leave_one_out else matrices.val_NC)[queries.rows]
    if not (truth_QC == 1).any():
        raise EvaluationError(f"{name}: no row of {queries.split} is known to have a class")
    counts = counts_of(train, val)
    results: list[Result] = []
    for layer in layers:
        for protocol, rule in asked.protocols.items():
            ks = usable_k(asked.k, rule.k, len(train.rows) - leave_one_out)
            found = find(
                layer, database=train, queries=queries, k=max(ks), similarity=rule.similarity,
                on_rows=partial(on_rows, layer.name),
            )  # fmt: skip
            lists = found.neighbours.first(max(ks))
            temperatures = temperatures_of(protocol, rule, asked.temperature)
            for each, number in product(temperatures, ks):
                weights_QK = vote_weights(lists.similarities_QK, vote=rule.vote, temperature=each)
                scores = multi_label_scores(
                    matrices.train_NC, lists.rows_QK, weights_QK, truth_QC, matrices.class_names, k=number
                )
                setting: dict[str, Any] = {
                    "layer": layer.facts, "counts": counts, "similarity": rule.similarity,
                    "leave_one_out": leave_one_out, "protocol": protocol, "k": number, "temperature": each,
                }  # fmt: skip
                results.append(
                    MultiLabelResult(
                        **setting,
                        vote=rule.vote,
                        mean_ap=scores.mean_ap,
                        micro_f1=scores.micro_f1,
                        macro_f1=scores.macro_f1,
                        labels=scores.labels,
                        search=found.facts(number),
                    )
                )
                if asked.per_class and (each, number) == (temperatures[0], ks[0]):
                    results += [LabelResult(**setting, label=label) for label in scores.labels]
    return results


def multi_label_scores(
    train_NC: Int8s, rows_QK: Ints, weights_QK: Doubles, truth_QC: Int8s, class_names: Sequence[str], *, k: int
) -> MultiLabelScores:
    """Score votes for any number of classes.

    Parameters
    ----------
    train_NC : ndarray of shape (N, C), dtype=int8
        Labels of the database: 1, 0, or -1 for not known.
    rows_QK, weights_QK : ndarray of shape (Q, K)
        Neighbours and the weights of their votes.
    truth_QC : ndarray of shape (Q, C), dtype=int8
        Labels of the queries; those that are not known do not count.
    class_names : sequence of str
        Length C.
    k : int
        Neighbours that vote.

    References
    ----------
    Average precision and F1 as scikit-learn's `average_precision_score` and `f1_score`; intervals by how much each
    query changes them: see `featbench.evaluate.metrics.within`.
    """
    at_once = max(1, 2**24 // max(1, len(rows_QK)))
    labels: list[LabelScore] = []
    of_ap_Q, of_f1_Q = np.zeros((2, len(rows_QK)))
    counts_Q3 = np.zeros((len(rows_QK), 3))
    for start in range(0, train_NC.shape[1], at_once):
        some = slice(start, start + at_once)
        scores_QB = votes_for(train_NC[:, some], rows_QK[:, :k], weights_QK[:, :k])
        for place, name in enumerate(class_names[some]):
            truth_Q = truth_QC[:, start + place]
            known_Q = truth_Q >= 0
            is_there_Q, scores_Q = truth_Q[known_Q] == 1, scores_QB[known_Q, place]
            if not is_there_Q.any():
                continue
            is_predicted_Q = scores_Q >= THRESHOLD
            hits_Q3 = np.stack([is_there_Q & is_predicted_Q, is_predicted_Q, is_there_Q], axis=1).astype(np.float64)
            counts_Q3[known_Q] += hits_Q3
            ap, influences_Q = influences_on_ap(is_there_Q, scores_Q)
            f1, f1_Q = influences_on_f1(hits_Q3)
            of_ap_Q[known_Q] += influences_Q
            of_f1_Q[known_Q] += f1_Q
            labels.append(
                LabelScore(
                    name=name, num_positive=int(is_there_Q.sum()), num_queries=len(is_there_Q), f1=f1,
                    ap=within(ap, influences_Q),
                )
            )  # fmt: skip
    count = len(labels)
    return MultiLabelScores(
        mean_ap=within(float(np.mean([each.ap.value for each in labels])), of_ap_Q / count),
        micro_f1=within(*influences_on_f1(counts_Q3)),
        macro_f1=within(float(np.mean([each.f1 for each in labels])), of_f1_Q / count),
        labels=tuple(labels),
    )


def votes_for(train_NC: Int8s, rows_QK: Ints, weights_QK: Doubles) -> Doubles:
    """Fraction of the known votes for each class, shape (Q, C); 0 where none is known.

    Examples
    --------
    >>> train = np.array([[1, 0], [1, -1], [0, 1]], np.int8)
    >>> votes_for(train, np.array([[0, 1, 2]]), np.ones((1, 3))).tolist()
    [[0.6666666666666666, 0.5]]
    """
    num_queries, k = rows_QK.shape
    scores_QC = np.zeros((num_queries, train_NC.shape[1]))
    step = max(1, _VOTES_AT_ONCE // max(1, k * train_NC.shape[1]))
    for start in range(0, num_queries, step):
        some = slice(start, start + step)
        labels_QKC = train_NC[rows_QK[some]]
        votes_QC = np.einsum("qk,qkc->qc", weights_QK[some], labels_QKC == 1)
        known_QC = np.einsum("qk,qkc->qc", weights_QK[some], labels_QKC >= 0)
        np.divide(votes_QC, known_QC, out=scores_QC[some], where=known_QC > 0)
    return scores_QC


def influences_on_ap(is_there_Q: Bools, scores_Q: Doubles) -> tuple[float, Doubles]:
    """Average precision, and its derivative with respect to the weight of each query.

    It is the sum over the distinct scores, from high to low, of the gain in recall times the precision; ties count
    together. With a query's weight w, a score's hits are those of its queries with the class, each counted w times.

    Parameters
    ----------
    is_there_Q : ndarray of shape (Q,), dtype=bool
        Whether the query has the class; one must.
    scores_Q : ndarray of shape (Q,), dtype=float64

    Examples
    --------
    >>> influences_on_ap(np.array([True, False, True]), np.array([0.9, 0.8, 0.7]))[0]
    0.8333333333333333
    """
    order = np.argsort(-scores_Q, kind="stable")
    hits = np.cumsum(is_there_Q[order])
    ends = np.flatnonzero(np.append(np.diff(scores_Q[order]) != 0, True))
    precision, gains = hits[ends] / (ends + 1), np.diff(hits[ends], prepend=0)
    ap = float(gains @ precision / hits[-1])
    # A query lowers or raises the precision at its own score and at all lower ones.
    below = np.cumsum((gains / (ends + 1))[::-1])[::-1]
    of_precision = np.cumsum((gains * precision / (ends + 1))[::-1])[::-1]
    group = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
    influences_Q = np.empty(len(order))
    influences_Q[order] = is_there_Q[order] * (precision - ap + below)[group] - of_precision[group]
    return ap, influences_Q / hits[-1]


def influences_on_f1(hits_Q3: Doubles) -> tuple[float, Doubles]:
    """F1, and its derivative with respect to the weight of each query.

    Parameters
    ----------
    hits_Q3 : ndarray of shape (Q, 3), dtype=float64
        Classes of each query that are predicted rightly, that are predicted, and that it has.
    """
    num_right, num_predicted, num_positive = hits_Q3.sum(axis=0)
    total = num_predicted + num_positive
    if not total:
        return 0.0, np.zeros(len(hits_Q3))
    f1 = float(2 * num_right / total)
    return f1, (2 * hits_Q3[:, 0] - f1 * (hits_Q3[:, 1] + hits_Q3[:, 2])) / total
