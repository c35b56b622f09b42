"""Accuracy of each class, the pairs of classes that are confused most, and the confusion matrix.

Shape suffixes:  Q queries
"""

from __future__ import annotations

from typing import Any

import numpy as np

from featbench.evaluate.knn.per_class import class_accuracies, confused_pairs
from featbench.pipelines.report.evaluations import Evaluated
from featbench.store.typing import Ints

MOST_CLASSES = 200
"""Classes that a confusion matrix shows; of more, it shows only some of the worst."""

MOST_WORST = 50
MOST_PAIRS = 60


def class_numbers(evaluated: Evaluated) -> dict[str, list[Any]]:
    """Columns of a table with a row for each class that has queries: class, queries, right, ends of the interval in %,
    and the class it is most confused with, -1 for none.
    """
    source = evaluated.view.source
    numbers = range(len(source.labels.class_names))
    found = class_accuracies(evaluated.predicted_Q, source.queries.labels, [str(number) for number in numbers])
    return {
        "class": [int(each.name) for each in found],
        "queries": [each.num_queries for each in found],
        "right": [round(each.top1.value * each.num_queries) for each in found],
        "low": [round(100 * each.top1.low, 2) for each in found],
        "high": [round(100 * each.top1.high, 2) for each in found],
        "with": [-1 if each.most_confused_with is None else int(each.most_confused_with) for each in found],
    }


def worst_pairs(evaluated: Evaluated) -> list[list[int]]:
    """True class, predicted class and number of queries of the pairs that are confused most."""
    pairs = _pairs(evaluated)
    wrong = pairs[pairs[:, 0] != pairs[:, 1]]
    order = np.lexsort((wrong[:, 1], wrong[:, 0], -wrong[:, 2]))[:MOST_PAIRS]
    return [[int(value) for value in pair] for pair in wrong[order]]


def confusion(evaluated: Evaluated) -> tuple[list[int], list[list[int]]]:
    """Classes of the confusion matrix, and its cells that are not 0: true class, predicted class, number of queries."""
    pairs = _pairs(evaluated)
    classes = shown_classes(evaluated)
    is_shown = np.isin(pairs[:, 0], classes) & np.isin(pairs[:, 1], classes)
    return classes, [[int(value) for value in pair] for pair in pairs[is_shown]]


def shown_classes(evaluated: Evaluated) -> list[int]:
    """All classes with a query or a prediction; of too many, those with the lowest accuracy, in order of number."""
    labels_Q = evaluated.view.source.queries.labels
    known = np.union1d(labels_Q, evaluated.predicted_Q)
    if len(known) <= MOST_CLASSES:
        return [int(each) for each in known]
    asked, counts = np.unique(labels_Q, return_counts=True)
    right = np.bincount(labels_Q[evaluated.is_right()], minlength=int(known[-1]) + 1)[asked]
    worst = asked[np.argsort(right / counts, kind="stable")[:MOST_WORST]]
    return sorted(int(each) for each in worst)


def _pairs(evaluated: Evaluated) -> Ints:
    return confused_pairs(evaluated.predicted_Q, evaluated.view.source.queries.labels)
