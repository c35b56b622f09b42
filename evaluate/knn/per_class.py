"""Accuracy of each class, and the class it is most confused with.

Memory grows with queries and classes, not with pairs of classes, except for `confusion_matrix`;
`confused_pairs` has the same counts without zeros.

Shape suffixes:  Q queries   C classes   K neighbours
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featbench.evaluate.metrics import proportion
from featbench.evaluate.results import ClassAccuracy
from featbench.store.typing import Ints


def confusion_matrix(predictions_Q: Ints, labels_Q: Ints, *, num_classes: int) -> Ints:
    """Count queries by true class (rows) and predicted class (columns), shape (C, C).

    Examples
    --------
    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = np.bincount(labels_Q * num_classes + predictions_Q, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def confused_pairs(predictions_Q: Ints, labels_Q: Ints) -> Ints:
    """Count queries by true and predicted class, where there is any: shape (P, 3), in the order of both.

    Examples
    --------
    >>> confused_pairs(np.array([0, 1, 1]), np.array([0, 0, 1])).tolist()
    [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
    """
    pairs, counts = np.unique(np.stack([labels_Q, predictions_Q], axis=1), axis=0, return_counts=True)
    return np.concatenate([pairs, counts[:, None]], axis=1).astype(np.int64)


def class_accuracies(predictions_Q: Ints, labels_Q: Ints, names: Sequence[str]) -> list[ClassAccuracy]:
    """Accuracy of each class that has a query, with its 95% interval, and the class it is most often confused with."""
    order = np.argsort(labels_Q, kind="stable")
    labels, starts = np.unique(labels_Q[order], return_index=True)
    accuracies = []
    for label, predicted in zip(labels, np.split(predictions_Q[order], starts[1:]), strict=True):
        others, counts = np.unique(predicted[predicted != label], return_counts=True)
        worst = int(counts.argmax()) if len(counts) else None  # the first of equal counts
        accuracies.append(
            ClassAccuracy(
                name=names[label],
                num_queries=len(predicted),
                top1=proportion(predicted == label),
                most_confused_with=None if worst is None else names[others[worst]],
                confusion_rate=0.0 if worst is None else float(counts[worst] / len(predicted)),
            )
        )
    return accuracies
