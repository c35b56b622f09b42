"""Folders in FiftyOne's own format of classified images, `FiftyOneImageClassificationDataset`.

Each split has `data.json`, where each image is on disk (FiftyOne finds it only if it is named, by `data_path`), and
`labels.json`, their classes; the split of the queries also `<layer>_predictions.json`, a second file of labels with
confidences, and the neighbours as attributes. Samples are named by their row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.features.labels import shared_names
from featbench.pipelines.evaluation.answers import Answers, classes_of
from featbench.pipelines.evaluation.files import ExportError, save
from featbench.store import BenchError, FeatureSet
from featbench.store.paths import partial_name

logger = logging.getLogger(__name__)

LISTED = 20
"""Neighbours that are attributes of a prediction."""


def write_datasets(features: FeatureSet, out: Path, images: Path | None) -> list[Path]:
    """Write both splits, with their classes.

    Images that are no files of their own (in archives, shards, or arrays) are written as PNG files beside.

    Raises
    ------
    ExportError
        If none of the images can be found, or a file exists.
    """
    written: list[Path] = []
    names = shared_names(features)
    for split in features.manifest.splits:
        folder = out / split
        if (folder / "data.json").exists():
            raise ExportError(f"{folder / 'data.json'} exists; export into another folder, or remove it")
        folder.mkdir(exist_ok=True)
        files = _files(features, split, folder, images)
        classes = classes_of(features, split)
        labels = ((name_of(row), names[classes[row]]) for row in files if classes[row] >= 0)
        written.append(save(folder / "labels.json", partial(_write_labels, names, labels)))
        manifest = ((name_of(row), str(path)) for row, path in files.items())
        written.append(save(folder / "data.json", partial(_write_pairs, manifest)))
    return written


def write_predictions(features: FeatureSet, answers: Answers, path: Path, what: Sequence[str]) -> list[Path]:
    """Write the predictions of a layer, as a second file of labels; none if train has no labels.

    Raises
    ------
    ExportError
        If the file exists.
    """
    found = answers.predictions
    if found is None or "predictions" not in what:
        logger.warning("%s: no predictions of %s are written", features.name, answers.layer)
        return []
    paths = features.paths("train") if "neighbours" in what else []
    labels = (
        (name_of(int(row)), _label(answers, query, paths)) for query, row in enumerate(answers.neighbours.queries)
    )
    return [save(path, partial(_write_labels, found.class_names, labels))]


def name_of(row: int) -> str:
    """Return what a sample is called.

    Examples
    --------
    >>> name_of(12)
    'row0000012'
    """
    return f"row{row:07d}"


def _label(answers: Answers, query: int, paths: Sequence[str]) -> dict[str, Any]:
    found = answers.predictions
    assert found is not None
    label = {
        "label": found.class_names[int(found.ranked_QT[query, 0])],
        "confidence": float(found.probabilities_QT[query, 0]),
    }
    if not paths:
        return label
    rows = answers.neighbours.rows_QK[query, :LISTED]
    similarities = answers.neighbours.similarities_QK[query, :LISTED]
    attributes = {"neighbours": [paths[row] for row in rows], "similarities": similarities.tolist()}
    return label | {"attributes": attributes}


def _files(features: FeatureSet, split: str, folder: Path, images: Path | None) -> dict[int, Path]:
    """Return where the image of each readable row is; images that are no files are written."""
    from featbench.pipelines.extraction.pictures import Pictures

    root, paths = images or _recorded_root(features), features.paths(split)
    rows = np.flatnonzero(features.valid(split)).tolist()
    found = {} if root is None else {row: root / paths[row] for row in rows}
    if found and all(path.is_file() for path in found.values()):
        return {row: path.resolve() for row, path in found.items()}
    pictures, made, gone = Pictures.of(features, images), {}, []
    for row in rows:
        if found and found[row].is_file():
            made[row] = found[row].resolve()
            continue
        path = folder / "images" / f"{name_of(row)}.png"
        try:
            picture = pictures.image(split, row)
        except BenchError as error:
            gone.append(str(error).splitlines()[0])
            if pictures.reason:
                break
            continue
        path.parent.mkdir(exist_ok=True)
        _save_png(picture, path)
        made[row] = path.relative_to(folder)  # as FiftyOne reads it, so that the folder can be moved
    if not made:
        why = gone[0] if gone else "it has no readable rows"
        hint = "" if "--images" in why else ". Say where they are with --images"
        raise ExportError(f"{features.path}: FiftyOne shows images, and none of {split} can be found: {why}{hint}")
    if gone:
        logger.warning(
            "%s: images of %s that can't be found are left out: %d; %s", features.name, split, len(gone), gone[0]
        )
    return made


def _save_png(picture: Any, path: Path) -> None:
    unfinished = partial_name(path)
    try:
        picture.save(unfinished, "PNG")
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _recorded_root(features: FeatureSet) -> Path | None:
    root = features.manifest.notes.get("pipeline", {}).get("data", {}).get("root")
    return None if root is None else Path(root)


def _write_labels(names: Sequence[str], labels: Iterable[tuple[str, Any]], file: Any) -> None:
    file.write(b'{"classes": ' + json.dumps(list(names), ensure_ascii=True).encode() + b', "labels": ')
    _write_pairs(labels, file)
    file.write(b"}\n")


def _write_pairs(pairs: Iterable[tuple[str, Any]], file: Any) -> None:
    """Write a JSON object, one line for each of its values."""
    file.write(b"{")
    for number, (key, value) in enumerate(pairs):
        file.write(f"{',' if number else ''}\n{json.dumps(key)}: {json.dumps(value)}".encode())
    file.write(b"}\n")
