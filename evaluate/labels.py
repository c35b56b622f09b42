"""Which rows take part, and what their classes are: the two splits speak of classes by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from store import BenchError, FeatureSet

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]


class EvaluationError(BenchError):
    """An evaluation that can't be done, or not as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Rows of one split that have a label and a readable image, in order."""

    split: str

    rows: Ints
    """Positions in the split, shape (n,), rising."""

    labels: Ints
    """Class of each, shape (n,); an index into the names that both splits share."""

    left_out: int = 0
    """Rows without a label or a readable image."""

    def by_row(self, num_rows: int) -> Ints:
        """Class of each row of the split, -1 where one does not take part."""
        labels = np.full(num_rows, -1, np.int64)
        labels[self.rows] = self.labels
        return labels


def matched_labels(features: FeatureSet) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Match the labels of train and val by the names of their classes.

    Returns
    -------
    train, val : Labelled
        Classes of train come first; one that only val has gets an index after them, so it can't be predicted.
    class_names : tuple of str

    Raises
    ------
    EvaluationError
        If a split has no labelled row.
    """
    train_names, val_names = (features.split(split).class_names for split in ("train", "val"))
    names = tuple(dict.fromkeys([*train_names, *val_names]))
    position = {name: index for index, name in enumerate(names)}
    train = _labelled(features, "train", np.array([position[name] for name in train_names], np.int64))
    val = _labelled(features, "val", np.array([position[name] for name in val_names], np.int64))
    unknown = np.setdiff1d(val.labels, train.labels)
    if len(unknown):
        wrong = int(np.isin(val.labels, unknown).sum())
        named = ", ".join(names[index] for index in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        text = "%s: classes of val without an image in train (%s): their images count as wrong, %d of them"
        logger.warning(text, features.name, named, wrong)
    for split, part in (("train", train), ("val", val)):
        if part.left_out:
            text = "%s: rows of %s without a label or a readable image, left out: %d"
            logger.warning(text, features.name, split, part.left_out)
    return train, val, names


def _labelled(features: FeatureSet, split: str, class_of: Ints) -> Labelled:
    labels = features.labels(split)
    if labels.max(initial=-1) >= len(class_of) or labels.min(initial=0) < -1:
        raise EvaluationError(
            f"{features.path}: labels of {split} reach {labels.max()}, but it has {len(class_of)} class names"
        )
    usable = features.valid(split) & (labels >= 0)
    rows = np.flatnonzero(usable).astype(np.int64)
    if not len(rows):
        raise EvaluationError(
            f"{features.path}: no row of {split} has a label, so there is nothing to evaluate. Put the images into one "
            f"folder for each class and extract again, or import labels with the features."
        )
    return Labelled(split=split, rows=rows, labels=class_of[labels[rows]], left_out=len(labels) - len(rows))
