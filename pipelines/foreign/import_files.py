"""Files of features and labels: which array is which, and DINO's dumps.

Arrays are found by the names given, or else by usual ones (`features`, `x_train`, ...) or by shape and type; a choice
that was not by name is logged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from featbench.pipelines.foreign.arrays import Arrays, ImportingError, parse_names
from featbench.pipelines.foreign.containers import Container, first_bytes, open_container
from featbench.pipelines.foreign.tables import LABEL_COLUMNS, PATH_COLUMNS, values_of
from featbench.store import suggest
from featbench.store.documents import DocumentError, parse_json
from featbench.store.typing import Array

logger = logging.getLogger(__name__)

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "test", "testing", "te"),
}
FEATURES = ("features", "feats", "feature", "feat", "embeddings", "embedding", "x", "data")
LABELS = (*LABEL_COLUMNS, "classes")
PATHS = PATH_COLUMNS


def read_files(
    files: Mapping[str, Path],
    label_files: Mapping[str, Path],
    *,
    layer: str,
    features_key: str | None = None,
    labels_key: str | None = None,
    unlabelled: bool = False,
    multi_label: bool = False,
) -> dict[str, Arrays]:
    """Read both splits from one file or two, with labels beside the features or in separate files.

    Parameters
    ----------
    files : mapping of str to Path
        `train` and `val`, or one of them; `train` alone may hold both.
    label_files : mapping of str to Path
        Label files of any splits, or none.
    layer : str
        Name for the features.
    features_key, labels_key : str, optional
        Names of arrays, for both splits or `TRAIN,VAL`; usual names by default.
    unlabelled : bool
        Import without labels.
    multi_label : bool
        Whether rows have any number of classes; otherwise only a matrix that can't mean anything else is read so.

    Raises
    ------
    ImportingError
        If a file can't be read, or it is not clear which of its arrays are meant.
    """
    opened, is_shared = _open_files(files, features_key)
    names = {split: _features_name(opened[split], split, features_key, is_shared) for split in opened}
    if is_shared and names["train"] == names["val"] and _has_both(opened["train"]):
        raise ImportingError(
            f"{files['train']}: train and val would both be {names['val']!r}, though it holds both splits. Omit --val "
            f"and --features-key, or name both arrays: --features-key TRAIN,VAL (it has {', '.join(opened['train'])})"
        )
    found = {}
    for split, container in opened.items():
        features = container[names[split]]
        if split in label_files:
            labels = read_labels(label_files[split], multi_label=multi_label)
        elif unlabelled:
            labels = np.full(len(features) if features.ndim else 0, -1, np.int64)
        else:
            labels = container[_labels_name(container, split, labels_key, is_shared, features, names[split])]
        matrix, class_names = several(labels, where=split) if multi_label and not unlabelled else (labels, None)
        found[split] = Arrays(
            layers={layer: features}, labels=matrix, paths=_paths(container, split, is_shared),
            class_names=class_names or _class_names(container, matrix),
        )  # fmt: skip
    return found


def _open_files(files: Mapping[str, Path], features_key: str | None) -> tuple[dict[str, Container], bool]:
    """Open the file of each split, and say whether one file holds both; one file may hold only its own split."""
    opened = {split: open_container(path) for split, path in files.items()}
    if len(files) == 2:
        is_shared = len({path.resolve() for path in files.values()}) == 1
        return ({"train": opened["train"], "val": opened["train"]} if is_shared else opened), is_shared
    (container,) = opened.values()
    if "train" in files and (_has_both(container) or "," in (features_key or "")):
        return {"train": container, "val": container}, True
    return opened, False


def read_labels(path: Path, *, multi_label: bool = False) -> Array:
    """Read a file of labels: one array, an array called `labels`, or text with one label in each line.

    With `multi_label`, a line has any number of names, and a `.json` is a list with one of names for each row.
    """
    first_bytes(path)  # refuse what is not a regular file
    if multi_label and path.suffix.lower() == ".json":
        return _json_lists(path)
    if path.suffix.lower() in (".txt", ".csv", ".tsv", ".lst") and (lines := _single_column(path)) is not None:
        return values_of(lines)
    container = open_container(path)
    if len(container) == 1:
        return container.single()
    name = _first_of(container, LABELS)
    if name is None:
        raise ImportingError(f"{path}: several arrays, none of them called labels: {', '.join(container)}")
    return container[name]


def several(labels: Array, *, where: str) -> tuple[Array, tuple[str, ...] | None]:
    """Make a matrix of labels of rows with any number of classes; names of the classes if they were text.

    Raises
    ------
    ImportingError
        If they are neither text nor 1, 0 and -1.
    """
    if labels.dtype.kind in "US" and labels.ndim == 1:
        texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in labels]
        return parse_names(texts, where=where)
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and np.isin(labels, (-1, 0, 1)).all():
        return labels.astype(np.int8), None
    raise ImportingError(
        f"{where}: --multi-label needs lists of names, such as cat;dog, or a column of 1, 0 or -1 (not known) for each "
        f"class; got {labels.dtype} {labels.shape}"
    )


def _class_names(container: Container, labels: Array) -> tuple[str, ...] | None:
    """Names of the columns of a matrix, if the file has an array `class_names`."""
    if labels.ndim != 2 or "class_names" not in container:
        return None
    return tuple(str(name) for name in container["class_names"].tolist())


def _json_lists(path: Path) -> Array:
    """Read a list with a list of names for each row, as texts that `parse_names` reads."""
    try:
        rows = parse_json(path.read_bytes(), where=str(path))
    except (OSError, DocumentError) as error:
        raise ImportingError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ImportingError(f'{path}: expected a list with a list of names for each row, [["cat", "dog"], []]')
    return np.array([json.dumps(row) for row in rows], np.str_)


def read_dino(folder: Path, *, layer: str) -> dict[str, Arrays]:
    """Read what DINO's eval_knn.py dumps: trainfeat.pth, testfeat.pth, trainlabels.pth, testlabels.pth."""

    def load(name: str) -> Array:
        path = folder / name
        if not path.is_file():
            raise ImportingError(
                f"{path}: no such file; DINO's --dump_features writes trainfeat, testfeat and their labels"
            )
        return open_container(path).single()

    return {
        split: Arrays(layers={layer: load(f"{part}feat.pth")}, labels=load(f"{part}labels.pth"))
        for split, part in (("train", "train"), ("val", "test"))
    }


def _has_both(container: Container) -> bool:
    """Whether a file has features of both splits, by their names."""
    return all(_first_of(container, _of_split(FEATURES, split)) is not None for split in SPLIT_NAMES)


def _features_name(container: Container, split: str, asked: str | None, is_shared: bool) -> str:
    if asked is not None:
        return _asked(container, _for_split(asked, split, "--features-key"), "--features-key")
    if len(container) == 1:
        return next(iter(container))
    usual = _usual(container, FEATURES, split, is_shared)
    if usual is not None:
        return usual
    fitting = [
        name
        for name, facts in container.facts.items()
        if facts.dtype is not None and facts.dtype.kind == "f" and facts.shape is not None and len(facts.shape) >= 2
    ]
    if len(fitting) != 1:
        raise ImportingError(
            f"{container.path}: no array 'features', and {'several' if fitting else 'none'} of "
            f"{', '.join(container) or 'no arrays'} could be the features. Choose with --features-key."
        )
    logger.info("%s: using array %r as features", container.path, fitting[0])
    return fitting[0]


def _labels_name(
    container: Container, split: str, asked: str | None, is_shared: bool, features: Array, features_name: str
) -> str:
    if asked is not None:
        return _asked(container, _for_split(asked, split, "--labels-key"), "--labels-key")
    others = [name for name in container if name != features_name]
    if not others:
        raise ImportingError(
            f"{container.path}: a single array, without labels. Give them with --train-labels and --val-labels, or "
            f"import without labels with --unlabelled"
        )
    usual = _usual(container, LABELS, split, is_shared)
    if usual is not None and usual != features_name:
        return usual
    shapes = ((len(features),), (len(features), 1)) if features.ndim else ()
    fitting = [
        name
        for name in others
        if (facts := container.facts[name]).shape in shapes and facts.dtype is not None and facts.dtype.kind in "biuUS"
        and name.lower() not in PATHS
    ]  # fmt: skip
    if len(fitting) != 1:
        raise ImportingError(
            f"{container.path}: no array 'labels', and {'several' if fitting else 'none'} of {', '.join(others)} could "
            f"be the labels. Choose with --labels-key, give --{split}-labels, or import without labels with "
            f"--unlabelled."
        )
    logger.info("%s: using array %r as labels", container.path, fitting[0])
    return fitting[0]


def _asked(container: Container, name: str, option: str) -> str:
    if name not in container:
        raise ImportingError(f"{container.path}: no array {name!r}. {suggest(name, container)} Choose with {option}.")
    return name


def _for_split(asked: str, split: str, option: str) -> str:
    names = asked.split(",")
    if len(names) > 2:
        raise ImportingError(f"{option} takes one name, or TRAIN,VAL; got {asked}")
    return names[0 if split == "train" else -1]


def _usual(container: Container, usual: Sequence[str], split: str, is_shared: bool) -> str | None:
    """Return the usual name that a file has; in a file of both splits, preferably one that names the split."""
    of_split = _first_of(container, _of_split(usual, split))
    plain = _first_of(container, usual)
    return (of_split or plain) if is_shared else (plain or of_split)


def _of_split(usual: Sequence[str], split: str) -> Iterator[str]:
    for name, part in product(usual, SPLIT_NAMES[split]):
        yield from (f"{name}_{part}", f"{part}_{name}", f"{name}{part}", f"{part}{name}")


def _first_of(container: Container, wanted: Sequence[str] | Iterator[str]) -> str | None:
    lowered = {name.lower(): name for name in reversed(list(container))}
    return next((lowered[name] for name in wanted if name in lowered), None)


def _paths(container: Container, split: str, is_shared: bool) -> tuple[str, ...] | None:
    name = _usual(container, PATHS, split, is_shared)
    if name is None:
        return None
    try:
        values = container[name]
    except ImportingError as error:
        logger.warning("%s; rows are named by their numbers", error)
        return None
    if values.dtype.kind not in "US" or values.ndim != 1:
        logger.warning("%s: %s is not text; rows are named by their numbers", container.path, name)
        return None
    return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values)


def _single_column(path: Path) -> list[str] | None:
    """Return the lines of a text file with one column, without its header; None if it has several columns."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except (OSError, ValueError):
        return None
    if not lines or any("," in line or "\t" in line for line in lines):
        return None
    return lines[1:] if lines[0].lower() in LABEL_COLUMNS else lines
