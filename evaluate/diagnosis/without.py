"""Accuracy without the suspects: what it would be with duplicates, likely label errors and outliers left out.

Shape suffixes:  Q queries   K neighbours
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from featbench.evaluate.counting import OnRows, counted, counting
from featbench.evaluate.diagnosis.results import WithoutResult
from featbench.evaluate.diagnosis.suspects import Kind, Suspicions
from featbench.evaluate.features.labels import Labelled, MatchedLabels
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import Find, temperatures_of
from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.metrics import proportion
from featbench.store.typing import Doubles, Ints

KINDS: Mapping[str, Sequence[Kind]] = {
    "nothing": (),
    "duplicates": ("leak", "duplicate"),
    "label errors": ("label error",),
    "outliers": ("outlier",),
    "all of them": ("leak", "duplicate", "label error", "outlier"),
}
"""What is left out, by its name in a result."""


def accuracies_without(
    layer: EvalLayer,
    labels: MatchedLabels,
    suspicions: Suspicions,
    *,
    find: Find,
    name: str,
    protocol: KnnProtocol,
    k: int,
    temperature: Sequence[float] | None = None,
    on_rows: OnRows = lambda rows: None,
) -> list[WithoutResult]:
    """Classify val by train without each kind of suspects, which are left out of both splits.

    Lists that are kept are shortened; only where one becomes too short, the smaller train is searched again.

    Parameters
    ----------
    layer, labels
        The layer, and the result of `matched_labels`.
    suspicions : Suspicions
        What to leave out.
    find : callable
        Finds neighbours.
    name, protocol, k, temperature
        The vote; of several temperatures the first.
    on_rows : callable
        Called with rows of train as they are searched, or need not be: twice with each, for each of `KINDS`.
    """
    at, num_rows = temperatures_of(name, protocol, temperature)[0], layer.layers["train"].num_rows
    results = []
    for without, kinds in KINDS.items():
        train, val = (_without(each, suspicions, kinds) for each in (labels.train, labels.val))
        top1 = None
        with counted(on_rows, 2 * num_rows) as count:
            if len(train.rows) >= k and len(val.rows):
                ask = partial(counting(find), on_rows=count)
                rows_QK, similarities_QK = lists_without(ask, layer, labels, train, val, protocol=protocol, k=k)
                labels_QK = labels.train.by_row(num_rows)[rows_QK]
                weights_QK = vote_weights(similarities_QK, vote=protocol.vote, temperature=at)
                votes = ClassVotes.of(labels_QK, num_classes=len(labels.class_names))
                top1 = proportion(votes.ranking(weights_QK, k=k, top=1)[:, 0] == val.labels)
        results.append(
            WithoutResult(
                layer=layer.facts,
                protocol=name,
                k=k,
                temperature=at,
                without=without,
                num_train=len(train.rows),
                num_val=len(val.rows),
                top1=top1,
            )
        )
    return results


def lists_without(
    find: Find,
    layer: EvalLayer,
    labels: MatchedLabels,
    train: Labelled,
    val: Labelled,
    *,
    protocol: KnnProtocol,
    k: int,
) -> tuple[Ints, Doubles]:
    """Rows and similarities of the k nearest of some rows of train, for some rows of val."""
    similarity: Any = protocol.similarity
    found = find(layer, database=labels.train, queries=labels.val, k=k, similarity=similarity).neighbours
    asked_Q = np.searchsorted(labels.val.rows, val.rows)
    rows_QK, similarities_QK = found.rows_QK[asked_Q], found.similarities_QK[asked_Q]
    stays = np.zeros(layer.layers["train"].num_rows, np.bool_)
    stays[train.rows] = True
    stays_QK = stays[rows_QK]
    if (stays_QK.sum(axis=1) < k).any():
        found = find(layer, database=train, queries=val, k=k, similarity=similarity).neighbours
        return found.rows_QK[:, :k], found.similarities_QK[:, :k]
    order_QK = np.argsort(~stays_QK, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows_QK, order_QK, axis=1), np.take_along_axis(similarities_QK, order_QK, axis=1)


def _without(labelled: Labelled, suspicions: Suspicions, kinds: Sequence[Kind]) -> Labelled:
    gone = [suspicions.removed[kind][labelled.split] for kind in kinds]
    stays = ~np.isin(labelled.rows, np.concatenate(gone)) if gone else np.ones(len(labelled.rows), np.bool_)
    return replace(labelled, rows=labelled.rows[stays], labels=labelled.labels[stays])
