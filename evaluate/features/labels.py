"""Which rows are used, and their classes: classes of the two splits are matched by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.results import Counts
from featbench.store import FeatureSet, SplitInfo, StoreError, UnknownNameError
from featbench.store.names import clashing_names, likeness, normal_name
from featbench.store.typing import Bools, Ints

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Rows of one split that are used: those with a label and a readable image.

    If no row of the split has a label, or labels are not needed (`with_unlabelled`), all rows with a readable image are
    used. The class of a row without a label is -1.
    """

    split: str

    rows: Ints
    """Positions in the split, shape (n,), rising."""

    labels: Ints
    """Class of each row, shape (n,); an index into the class names of both splits."""

    left_out: int = 0
    """Number of rows that are not used."""

    @property
    def has_labels(self) -> bool:
        """Whether all rows have classes."""
        return bool((self.labels >= 0).all())

    @property
    def num_labelled(self) -> int:
        """Rows that have a class."""
        return int((self.labels >= 0).sum())

    def by_row(self, num_rows: int) -> Ints:
        """Class of each row of the split, -1 for rows that are not used."""
        labels = np.full(num_rows, -1, np.int64)
        labels[self.rows] = self.labels
        return labels


class MatchedLabels(NamedTuple):
    """Labels of both splits, in one numbering."""

    train: Labelled
    val: Labelled
    class_names: tuple[str, ...]


class LabelSource(Protocol):
    """What matching labels needs: a `FeatureSet`, or arrays in memory."""

    @property
    def name(self) -> str:
        """Its name in warnings."""

    @property
    def path(self) -> object:
        """Its name in errors."""

    def split(self, split: str) -> SplitInfo:
        """Metadata of a split."""

    def labels(self, split: str) -> Ints:
        """Labels, indices into the split's class names; -1 where there is none."""

    def valid(self, split: str) -> Bools:
        """Whether each row can be used."""


def matched_labels(features: LabelSource, *, needed: bool = True) -> MatchedLabels:
    """Match the labels of train and val by the names of their classes, in Unicode's normal form.

    Parameters
    ----------
    features : LabelSource
        Such as a `FeatureSet`.
    needed : bool
        Whether to refuse a split without any label; otherwise all of its rows are used.

    Returns
    -------
    train, val : Labelled
        Classes of train come first; one that only val has gets an index after them, so it can't be predicted.
    class_names : tuple of str

    A split `val` that does not exist has no rows.

    Raises
    ------
    EvaluationError
        If there is no split `train`, a split has no labelled row although labels are needed, or no row at all, or two
        classes have names that differ in their Unicode spelling alone.
    """
    if not has_split(features, "train"):
        raise EvaluationError(
            f"{features.path}: it has no train split to search, only queries. Name it with --queries or --ood of an "
            f"evaluation of another feature set"
        )
    train_names, val_names = (class_names_of(features, split) for split in ("train", "val"))
    names = shared_names(features)
    position = {name: index for index, name in enumerate(names)}
    train = _labelled(features, "train", np.array([position[name] for name in train_names], np.int64), needed)
    val = _labelled(features, "val", np.array([position[name] for name in val_names], np.int64), needed)
    unknown = np.setdiff1d(val.labels, train.labels)
    if len(unknown) and train.has_labels and val.has_labels:
        wrong = int(np.isin(val.labels, unknown).sum())
        named = ", ".join(names[index] for index in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        text = "%s: classes of val without an image in train (%s): their images count as wrong, %d of them%s"
        alike = alike_names([names[index] for index in unknown], train_names)
        logger.warning(text, features.name, named, wrong, f". {alike}" if alike else "")
    for split, labelled in (("train", train), ("val", val)):
        if labelled.left_out:
            text = "%s: rows of %s without a label or a readable image, left out: %d"
            logger.warning(text, features.name, split, labelled.left_out)
    return MatchedLabels(train, val, names)


def with_unlabelled(features: LabelSource, labels: MatchedLabels) -> MatchedLabels:
    """Add the readable rows without a label, whose class is -1: k-means needs no labels.

    Parameters
    ----------
    features : LabelSource
    labels : MatchedLabels
        Result of `matched_labels` of the same features.
    """
    train, val = (_with_unlabelled(features, labelled) for labelled in (labels.train, labels.val))
    return MatchedLabels(train, val, labels.class_names)


def _with_unlabelled(features: LabelSource, labelled: Labelled) -> Labelled:
    if not has_split(features, labelled.split):
        return labelled
    every = readable_rows(features, labelled.split)
    return replace(every, labels=labelled.by_row(len(every.rows) + every.left_out)[every.rows])


def counts_of(train: Labelled, val: Labelled) -> Counts:
    """Count the rows that are used."""
    labels = np.union1d(train.labels, val.labels)
    return Counts(
        num_train=len(train.rows),
        num_val=len(val.rows),
        num_left_out=train.left_out + val.left_out,
        num_classes=int((labels >= 0).sum()),
    )


def shared_names(features: LabelSource) -> tuple[str, ...]:
    """Return the class names of both splits, those of train first; needs no labelled row."""
    return tuple(dict.fromkeys([*class_names_of(features, "train"), *class_names_of(features, "val")]))


def has_split(features: LabelSource, split: str) -> bool:
    """Whether there is such a split: a feature set may have only one."""
    try:
        features.split(split)
    except UnknownNameError:
        return False
    return True


def with_rows(*splits: Labelled) -> list[Labelled]:
    """Leave out splits that a feature set does not have."""
    return [labelled for labelled in splits if len(labelled.rows)]


def refuse_no_queries(name: object, queries: Labelled) -> None:
    """Refuse to ask with a split that does not exist.

    Raises
    ------
    EvaluationError
        If it has no rows.
    """
    if not len(queries.rows):
        raise EvaluationError(
            f"{name}: it has no split {queries.split} to ask with: use --leave-one-out, or `bench evaluate --queries`"
        )


def has_labels(features: LabelSource, split: str) -> bool:
    """Whether a readable row of the split has a label."""
    return has_split(features, split) and bool((features.valid(split) & (features.labels(split) >= 0)).any())


def readable_rows(features: LabelSource, split: str) -> Labelled:
    """Select all readable rows of a split, without labels.

    Raises
    ------
    EvaluationError
        If there is none.
    """
    valid = features.valid(split)
    rows = np.flatnonzero(valid).astype(np.int64)
    if not len(rows):
        raise EvaluationError(f"{features.path}: no row of {split} has a readable image")
    return Labelled(split=split, rows=rows, labels=np.full(len(rows), -1, np.int64), left_out=int((~valid).sum()))


def class_names_of(features: LabelSource, split: str) -> tuple[str, ...]:
    """Return the class names of a split in Unicode's normal form NFC.

    Raises
    ------
    EvaluationError
        If two of them are the same in it.
    """
    names = features.split(split).class_names if has_split(features, split) else ()
    if clash := clashing_names(names):
        raise EvaluationError(
            f"{features.path}: two classes of {split} have the same name in two Unicode spellings, "
            f"{clash[0]!a} and {clash[1]!a}. Give them one name and make the feature set again."
        )
    return tuple(map(normal_name, names))


def alike_names(unmatched: Sequence[str], known: Sequence[str], *, show: int = 3) -> str:
    """Describe names that differ from a known name only in case, spaces or look-alike characters."""
    by_likeness = {likeness(name): name for name in known}
    pairs = [(name, by_likeness[likeness(name)]) for name in unmatched if likeness(name) in by_likeness]
    pairs = [(name, other) for name, other in pairs if name != other]
    if not pairs:
        return ""
    listed = ", ".join(f"{name!a} and {other!a}" for name, other in pairs[:show])
    more = f", ... ({len(pairs)} in all)" if len(pairs) > show else ""
    return f"Differing only in case, spaces or look-alike characters from a class of train: {listed}{more}"


def _labelled(features: LabelSource, split: str, class_of: Ints, needed: bool) -> Labelled:
    if not has_split(features, split):
        return Labelled(split=split, rows=np.zeros(0, np.int64), labels=np.zeros(0, np.int64))
    labels = features.labels(split)
    if labels.max(initial=-1) >= len(class_of) or labels.min(initial=0) < -1:
        raise EvaluationError(
            f"{features.path}: labels of {split} reach {labels.max()}, but it has {len(class_of)} class names"
        )
    rows = np.flatnonzero(features.valid(split) & (labels >= 0)).astype(np.int64)
    if not len(rows) and not needed:
        return readable_rows(features, split)
    if not len(rows) and features.split(split).is_multi_label:
        raise EvaluationError(f"{features.path}: rows of {split} have any number of classes; this needs one for each")
    if not len(rows):
        raise EvaluationError(
            f"{features.path}: no row of {split} has a label, and this needs labels. Put the images into one "
            f"folder for each class and extract again, or import labels with the features."
        )
    return Labelled(split=split, rows=rows, labels=class_of[labels[rows]], left_out=len(labels) - len(rows))


def refuse_if_gone(features: FeatureSet) -> None:
    """Refuse to save results if the feature set is no longer the one that was opened.

    Raises
    ------
    EvaluationError
        If it was renamed, removed or replaced.
    """
    try:
        found = FeatureSet.open(features.path).manifest
        is_same = (found.fingerprint, found.created) == (features.manifest.fingerprint, features.manifest.created)
    except StoreError:
        is_same = False
    if not is_same:
        raise EvaluationError(
            f"{features.path} was renamed, removed or replaced while it was evaluated. Run the same command again, "
            f"with its new name."
        )
