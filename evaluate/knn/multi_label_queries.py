"""Other queries with any number of classes, and few rows of train that vote on such queries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from featbench.evaluate.counting import OnRows
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, MatchedLabels, readable_rows
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import Find, KnnQuestion
from featbench.evaluate.knn.multi_label import LabelMatrices, label_matrices, score_layers
from featbench.evaluate.knn.queries import QuerySet
from featbench.evaluate.other_results import MultiLabelQueriesResult, MultiLabelResult
from featbench.evaluate.results import Result
from featbench.store import FeatureSet
from featbench.store.typing import Bools

logger = logging.getLogger(__name__)


def refuse_other_labels(bank: FeatureSet, queries: QuerySet) -> None:
    """Refuse queries with one class each of a bank whose rows have any number, and the other way round.

    Raises
    ------
    EvaluationError
        If they are such.
    """
    several = "have any number of classes"
    is_several = queries.features.split(queries.split).is_multi_label
    if is_several == bank.split("train").is_multi_label:
        return
    one = "have one class each" if queries.features.split(queries.split).class_names else "have no labels"
    ours, theirs = ("have one class each", several) if is_several else (several, one)
    cure = (
        "Give them one class each; several right ones are what --any-of takes, of a set whose val they are"
        if is_several
        else "Bring them in with lists of classes (`bench import --multi-label`, or a list with several classes a line)"
    )
    raise EvaluationError(
        f"{queries.name}: its rows {theirs}, those of {bank.path} {ours}, so they can't be compared. {cure}; "
        f"or ask without their labels by --ood"
    )


def multi_label_query_results(
    features: FeatureSet,
    layers: Sequence[EvalLayer],
    labels: MatchedLabels,
    queries: QuerySet,
    asked: KnnQuestion,
    *,
    find: Find,
    bank: str = "all",
    on_rows: OnRows = lambda rows: None,
) -> list[Result]:
    """Classify other queries with any number of classes by the rows of train.

    Parameters
    ----------
    features : FeatureSet
        The bank.
    layers, labels, queries, asked, find, bank, on_rows
        As for `featbench.evaluate.knn.queries.query_results`; with `subset` those rows of train vote that are known to
        have a class that a query has.

    Raises
    ------
    EvaluationError
        If no query is known to have a class, or no row of train has one of theirs.
    """
    val = replace(readable_rows(queries.features, queries.split), split="val")
    matrices = label_matrices(features, (queries.features, queries.split))
    asked_C = (matrices.val_NC[val.rows] == 1).any(axis=0)
    known_C = (matrices.train_NC[labels.train.rows] == 1).any(axis=0)
    if unknown := [matrices.class_names[place] for place in np.flatnonzero(asked_C & ~known_C)]:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        logger.warning("%s: classes that no row of train has, whose score is 0: %s", queries.name, shown)
    train = _of_classes(labels.train, matrices, asked_C) if bank == "subset" else labels.train
    if not len(train.rows):
        raise EvaluationError(f"{queries.name}: train has no row of the queries' classes, so the bank is empty")
    results = score_layers(
        [queries.layer(layer) for layer in layers], train, val, matrices, asked, find=find,
        on_rows=lambda layer, rows: on_rows(rows), name=queries.name,
    )  # fmt: skip
    return _named(results, queries.name, bank)


def multi_label_subset_results(
    features: FeatureSet,
    layers: Sequence[EvalLayer],
    train: Labelled,
    val: Labelled,
    asked: KnnQuestion,
    *,
    find: Find,
    name: str,
    on_rows: OnRows = lambda rows: None,
) -> list[Result]:
    """Classify val by some rows of train alone; `name` is what these rows are called."""
    results = score_layers(
        layers, train, val, label_matrices(features), asked, find=find, on_rows=lambda layer, rows: on_rows(rows),
        name=name,
    )  # fmt: skip
    return _named(results, "val", name)


def _of_classes(train: Labelled, matrices: LabelMatrices, wanted_C: Bools) -> Labelled:
    """Rows that are known to have one of some classes."""
    stays = (matrices.train_NC[train.rows][:, wanted_C] == 1).any(axis=1)
    return replace(train, rows=train.rows[stays], labels=train.labels[stays])


def _named(results: Sequence[Result], queries: str, bank: str) -> list[Result]:
    return [
        MultiLabelQueriesResult(result=each, queries=queries, bank=bank)
        for each in results
        if isinstance(each, MultiLabelResult)
    ]
