"""Files for TensorBoard's embedding projector: `tensorboard --logdir FOLDER` opens them.

`projector_config.pbtxt` names, for each layer, `<layer>/tensors.tsv`, a query a line, `<layer>/metadata.tsv`, and
`sprite.png`, small pictures of the queries, if they can be found.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.features.labels import shared_names
from featbench.pipelines.evaluation.answers import Answers, classes_of
from featbench.pipelines.evaluation.files import save
from featbench.pipelines.evaluation.stored_files import blocks_of
from featbench.store import BenchError, FeatureSet
from featbench.store.names import visible
from featbench.store.typing import Ints

logger = logging.getLogger(__name__)

SPRITE = "sprite.png"
MOST_PIXELS = 8192
"""Side of the sprite at most, as browsers draw it."""

SIDES = (64, 48, 32, 24, 16)
"""Pixels of a picture in it: the largest that fits."""

DIGITS = 7
"""Significant digits of a number; float32 has about seven."""


def write_embedding(features: FeatureSet, answers: Answers, folder: Path, what: Sequence[str]) -> list[Path]:
    """Write the vectors of a layer's queries, and what is known of them.

    Raises
    ------
    ExportError
        If a file exists.
    """
    folder.mkdir(exist_ok=True)
    return [
        save(folder / "tensors.tsv", partial(_write_tensors, features, answers)),
        save(folder / "metadata.tsv", partial(_write_metadata, features, answers, "predictions" in what)),
    ]


def write_projector(
    features: FeatureSet, split: str, stems: Sequence[str], out: Path, images: Path | None
) -> list[Path]:
    """Write the sprite, if there are images, and the file that names all others."""
    rows = queries_of(features, split)
    side = next((side for side in SIDES if math.ceil(math.sqrt(len(rows))) * side <= MOST_PIXELS), None)
    written = []
    if side is None:
        logger.warning("%s: too many queries for a sprite: %d", features.name, len(rows))
    else:
        written = _sprite(features, split, rows, side, out, images)
    config = "".join(_entry(stem, side if written else None) for stem in stems)
    return [*written, save(out / "projector_config.pbtxt", lambda file: file.write(config.encode()))]


def queries_of(features: FeatureSet, split: str) -> Ints:
    """Return the readable rows of a split."""
    return np.flatnonzero(features.valid(split)).astype(np.int64)


def _entry(stem: str, side: int | None) -> str:
    sprite = "" if side is None else (
        f'  sprite {{\n    image_path: "{SPRITE}"\n    single_image_dim: {side}\n    single_image_dim: {side}\n  }}\n'
    )  # fmt: skip
    return (
        f'embeddings {{\n  tensor_name: "{stem}"\n  tensor_path: "{stem}/tensors.tsv"\n'
        f'  metadata_path: "{stem}/metadata.tsv"\n{sprite}}}\n'
    )


def _write_tensors(features: FeatureSet, answers: Answers, file: Any) -> None:
    is_readable = features.valid(answers.split)
    for start, block in blocks_of(features, answers.split, answers.layer):
        flat = block.reshape(len(block), -1)[is_readable[start : start + len(block)]]
        np.savetxt(file, flat, fmt=f"%.{DIGITS}g", delimiter="\t")


def _write_metadata(features: FeatureSet, answers: Answers, with_predictions: bool, file: Any) -> None:
    rows, paths = queries_of(features, answers.split), features.paths(answers.split)
    names, classes = (*shared_names(features), ""), classes_of(features, answers.split)
    found = answers.predictions if with_predictions else None
    place = {int(row): query for query, row in enumerate(answers.neighbours.queries)}
    head = ["row", "path", "class", *(["prediction", "probability", "right"] if found else [])]
    file.write(("\t".join(head) + "\n").encode())
    for row in rows.tolist():
        cells = [str(row), visible(paths[row], keep=""), visible(names[classes[row]], keep="")]
        if found is not None:
            query = place.get(row)
            cells += ["", "", ""] if query is None else _predicted(found, query)
        file.write(("\t".join(cells) + "\n").encode(errors="surrogateescape"))


def _predicted(found: Any, query: int) -> list[str]:
    best, label = int(found.ranked_QT[query, 0]), int(found.labels_Q[query])
    is_right = "" if label < 0 else "right" if best == label else "wrong"
    return [visible(found.class_names[best], keep=""), f"{found.probabilities_QT[query, 0]:.4f}", is_right]


def _sprite(features: FeatureSet, split: str, rows: Ints, side: int, out: Path, images: Path | None) -> list[Path]:
    """Write pictures of all queries, from left to right and from top to bottom; none if none can be found."""
    from PIL import Image, ImageOps

    from featbench.pipelines.extraction.pictures import Pictures

    pictures, gone = Pictures.of(features, images), []
    if pictures.reason:
        logger.warning("%s: without pictures: %s", features.name, pictures.reason)
        return []
    columns = math.ceil(math.sqrt(len(rows)))
    sheet = Image.new("RGB", (columns * side, -(-len(rows) // columns) * side), "#dddddd")
    for number, row in enumerate(rows.tolist()):
        try:
            small = ImageOps.pad(pictures.image(split, row), (side, side), color="#dddddd")
        except BenchError as error:
            gone.append(str(error).splitlines()[0])
            continue
        sheet.paste(small, ((number % columns) * side, number // columns * side))
    if len(gone) == len(rows):
        logger.warning("%s: without pictures: %s", features.name, gone[0])
        return []
    if gone:
        logger.warning("%s: images that can't be shown: %d; %s", features.name, len(gone), gone[0])
    return [save(out / SPRITE, lambda file: sheet.save(file, "PNG"))]
