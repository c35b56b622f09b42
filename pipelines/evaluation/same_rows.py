"""Whether two feature sets have the same rows: images and classes, in the same order."""

from __future__ import annotations

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import class_names_of
from featbench.store import FeatureSet
from featbench.store.names import normal_name


def refuse_other_rows(first: FeatureSet, second: FeatureSet, split: str = "val") -> None:
    """Refuse feature sets that differ in the rows of a split.

    Raises
    ------
    EvaluationError
        If the number of rows, a name or a class differs.
    """
    if first.path == second.path:
        return
    paths = first.paths(split), second.paths(split)
    names = [_class_of_each_row(features, split) for features in (first, second)]
    if len(paths[0]) != len(paths[1]):
        raise EvaluationError(
            f"{first.name} has {len(paths[0]):,} {split} images and {second.name} {len(paths[1]):,}: a comparison "
            f"needs the same images in the same order. Extract both from the same dataset."
        )
    differing = [row for row, same in enumerate(map(_same, *paths, *names)) if not same]
    if differing:
        row = differing[0]
        raise EvaluationError(
            f"{first.name} and {second.name} differ in {split} images or labels in {len(differing):,} of "
            f"{len(names[0]):,} rows, first in row {row}: {paths[0][row]} ({names[0][row]}) and {paths[1][row]} "
            f"({names[1][row]}). A comparison needs the same images in the same order. Extract both from the same "
            f"dataset."
        )


def _same(first_path: str, second_path: str, first_class: str, second_class: str) -> bool:
    return normal_name(first_path) == normal_name(second_path) and first_class == second_class


def _class_of_each_row(features: FeatureSet, split: str) -> list[str]:
    class_names = class_names_of(features, split)
    return [class_names[label] if label >= 0 else "" for label in features.labels(split)]
