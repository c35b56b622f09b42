"""Files for other programs: which there are, and what each takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.features.labels import refuse_no_queries
from featbench.pipelines.evaluation.answers import answers_of, labels_to_vote
from featbench.pipelines.evaluation.atlas_files import check_atlas, write_atlas
from featbench.pipelines.evaluation.dino_files import write_dino
from featbench.pipelines.evaluation.faiss_files import write_faiss
from featbench.pipelines.evaluation.fiftyone_files import write_datasets, write_predictions
from featbench.pipelines.evaluation.files import ExportError, not_written
from featbench.pipelines.evaluation.projector_files import write_embedding, write_projector
from featbench.store import FeatureSet

TOOLS: dict[str, tuple[str, ...]] = {
    "embedding-atlas": ("neighbours", "predictions"),
    "fiftyone": ("neighbours", "predictions"),
    "tensorboard-projector": ("features", "predictions"),
    "dino": ("features",),
}
"""Formats of other programs, and what each takes."""


def write_for_tool(
    features: FeatureSet,
    config: EvaluateConfig,
    file_format: str,
    *,
    out: Path,
    what: Sequence[str],
    layers: Sequence[str] = (),
    images: Path | None = None,
    projection: str = "pca",
) -> list[Path]:
    """Write layers for one program, and return the paths; see `featbench.pipelines.evaluation.export.export`.

    Raises
    ------
    ExportError
        If a file exists, something is missing that the program needs, or a place can't be written.
    """
    names = features.find_layers(layers)
    if images is not None and not images.is_dir():
        raise ExportError(f"{images}: no such folder; name the folder of the images with --images")
    if file_format == "embedding-atlas":
        check_atlas(projection)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if file_format == "dino":
            return [path for name in names for path in write_dino(features, name, _place(out, name, names))]
        if file_format == "faiss":
            return write_faiss(features, config, names, out)
        return _with_answers(features, config, file_format, out, what, names, images, projection)
    except OSError as error:
        raise ExportError(not_written(out, error)) from error


def _with_answers(
    features: FeatureSet,
    config: EvaluateConfig,
    file_format: str,
    out: Path,
    what: Sequence[str],
    names: Sequence[str],
    images: Path | None,
    projection: str,
) -> list[Path]:
    """Write for programs that show queries with what is known of them; one layer in memory at a time."""
    labels = labels_to_vote(features)
    if labels is not None and not config.knn.leave_one_out:
        refuse_no_queries(features.path, labels.val)
    written: list[Path] = []
    if file_format == "fiftyone":
        written += write_datasets(features, out, images)
    embeddings: list[str] = []
    for name in names:
        answers = answers_of(features, name, config, labels)
        stem = file_stem(name)
        if file_format == "embedding-atlas":
            written += write_atlas(features, answers, out / f"{stem}.parquet", config, what, projection)
        elif file_format == "fiftyone":
            written += write_predictions(features, answers, out / answers.split / f"{stem}_predictions.json", what)
        else:
            written += write_embedding(features, answers, out / stem, what)
            embeddings.append(stem)
    if file_format == "tensorboard-projector":
        split = "train" if config.knn.leave_one_out else "val"
        written += write_projector(features, split, embeddings, out, images)
    return written


def file_stem(layer: str) -> str:
    """Return the name of a layer as a name of files."""
    return re.sub(r"[^A-Za-z0-9.+_\-]", "_", layer)


def _place(out: Path, name: str, names: Sequence[str]) -> Path:
    """Return a folder for a layer, if there are several."""
    if len(names) == 1:
        return out
    folder = out / file_stem(name)
    folder.mkdir(exist_ok=True)
    return folder
