"""`bench export`: features, neighbours, predictions and clusterings for other programs.

| file | shape | what |
|---|---|---|
| `<split>_<layer>` | (N, ...) float32, in the stored shape | features, with `<split>_labels` (N,) and `<split>_paths` |
| `<layer>_neighbours` | (Q, K) int64 | rows of train, nearest first |
| `<layer>_similarities` | (Q, K) float64 | of these |
| `<layer>_queries` | (Q,) int64 | row of each query in val |
| `<layer>_predictions` | (Q, 5) int64 | best classes, -1 where fewer have a vote |
| `<layer>_probabilities` | (Q, C) float64 | fraction of the votes for each class |
| `<layer>_confusion` | (C, C) int64 | queries by class (rows) and prediction (columns) |
| `<layer>_top_probabilities` | (Q, 5) float64 | of `predictions`; for `probabilities` beyond `--memory` |
| `<layer>_confused_pairs` | (P, 3) int64 | class, prediction, queries; for `confusion` beyond `--memory` |

`featbench.pipelines.evaluation.clustering_files` says what files clusterings are. Otherwise
names of classes are in `classes.txt`, one a line, control characters spelled out: the numbers above count its lines.
Without labels in train there are features and neighbours, of all readable rows; without labels in val, predictions too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.clustering.kept import KeptClustering, choose_clusterings
from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.features.labels import (
    MatchedLabels,
    has_labels,
    matched_labels,
    shared_names,
)
from featbench.evaluate.knn.per_class import confused_pairs, confusion_matrix
from featbench.evaluate.knn.predictions import Predictions
from featbench.evaluate.memory import in_words
from featbench.evaluate.neighbours.search import Neighbours
from featbench.pipelines.evaluation.answers import classes_of, neighbours_alone, predictions_of
from featbench.pipelines.evaluation.clustering_files import write_clusterings
from featbench.pipelines.evaluation.files import (
    OF_CLASSES,
    Arrays,
    ExportError,
    not_written,
    write_npy,
    write_npz,
    write_parquet,
)
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.evaluation.stored_files import write_stored
from featbench.pipelines.evaluation.tool_files import TOOLS, write_for_tool
from featbench.pipelines.evaluation.vissl_features import write_features
from featbench.store import FeatureSet, has_cached, save_cached
from featbench.store.names import visible
from featbench.store.paths import PREDICTIONS, cached_folder
from featbench.store.typing import Array

logger = logging.getLogger(__name__)

CONTENTS = ("features", "neighbours", "predictions", "clusters")
FORMATS = ("npy", "npz", "csv", "parquet", "faiss", "vissl", "zarr", *TOOLS)
ONLY_CLUSTERS = ("csv",)
"""Formats of clusterings alone."""


def export(
    features: FeatureSet,
    config: EvaluateConfig,
    *,
    out: Path,
    what: Sequence[str] | None = None,
    file_format: str = "npy",
    layers: Sequence[str] = (),
    clusters: Sequence[int] = (),
    images: Path | None = None,
    projection: str = "pca",
) -> list[Path]:
    """Write a feature set's contents as files of another format, and return their paths.

    Parameters
    ----------
    features : FeatureSet
        To export.
    config : EvaluateConfig
        Protocol (the first), k (the largest) and temperature (the first) of the predictions.
    out : Path
        Folder, made if it does not exist. `zarr` does not need it: it keeps predictions in the feature set.
    what : sequence of {"features", "neighbours", "predictions", "clusters"}, optional
        What to write; by default what the format is for, of arrays all but clusters.
    file_format : {"npy", "npz", "csv", "parquet", "faiss", "vissl", "zarr", "dino", "embedding-atlas", "fiftyone", \
"tensorboard-projector"}
        `vissl` are the files that VISSL leaves: features, `rank0_chunk*_<split>_<layer>_*.npy`, predictions,
        `kNN_<layer>_output_*.npy`, and clusterings. `csv` is
        for clusterings alone, `faiss` for them or for features; the last four are for those programs alone.
    layers : sequence of str
        All by default.
    clusters : sequence of int
        Of kept clusterings, those with these numbers of clusters; all by default.
    images : Path, optional
        Where images are now, for formats that show them; see `featbench.pipelines.extraction.pictures`.
    projection : {"pca", "umap"}
        How `embedding-atlas` gets two dimensions.

    Raises
    ------
    ExportError
        If the format or the contents are unknown, Parquet's library is not installed, a file exists, predictions are
        asked for where train has no labels, or a place can't be written.
    EvaluationError
        If clusterings are asked for and none is kept, or none of such a layer or number of clusters.
    """
    what = default_contents(file_format) if what is None else what
    _check_contents(what, file_format)
    if file_format in TOOLS or (file_format == "faiss" and "clusters" not in what):
        return write_for_tool(
            features, config, file_format, out=out, what=what, layers=layers, images=images, projection=projection
        )
    kept = choose_clusterings(features, layers=layers, clusters=clusters) if "clusters" in what else []
    others = [each for each in what if each != "clusters"]
    written = _export_layers(features, config, out, others, file_format, layers) if others else []
    return written + _write_clusterings(features, kept, out, file_format)


def default_contents(file_format: str) -> Sequence[str]:
    """Return what a format is for, if nothing else is asked for."""
    own: dict[str, Sequence[str]] = {"csv": ("clusters",), "faiss": ("features",), **TOOLS}
    return own.get(file_format, CONTENTS[:3])


def _check_contents(what: Sequence[str], file_format: str) -> None:
    if file_format not in FORMATS:
        raise ExportError(f"--format must be one of {', '.join(FORMATS)}; got {file_format}")
    unknown = [each for each in what if each not in CONTENTS]
    if unknown:
        raise ExportError(f"--what must be of {', '.join(CONTENTS)}; got {', '.join(unknown)}")
    if file_format in ONLY_CLUSTERS and list(what) != ["clusters"]:
        raise ExportError(f"--format {file_format} writes clusterings alone: give --what clusters")
    if file_format == "faiss" and list(what) not in (["clusters"], ["features"]):
        raise ExportError("--format faiss writes an index of features or of centroids: --what features, or clusters")
    if file_format in TOOLS and not set(what) <= set(TOOLS[file_format]):
        raise ExportError(
            f"--format {file_format} is for {' and '.join(TOOLS[file_format])}; got --what {','.join(what)}"
        )
    if file_format == "zarr" and "clusters" in what:
        raise ExportError("--format zarr saves in the feature set, whose clusterings are Zarr already")


def _write_clusterings(features: FeatureSet, kept: Sequence[KeptClustering], out: Path, file_format: str) -> list[Path]:
    if not kept:
        return []
    try:
        out.mkdir(parents=True, exist_ok=True)
        return write_clusterings(features, kept, out=out, file_format=file_format)
    except OSError as error:
        raise ExportError(not_written(out, error)) from error


def _export_layers(
    features: FeatureSet,
    config: EvaluateConfig,
    out: Path,
    what: Sequence[str],
    file_format: str,
    layers: Sequence[str],
) -> list[Path]:
    """Write features, neighbours and predictions."""
    names = features.find_layers(layers)
    if file_format == "vissl" and "features" in what:
        return _export_for_vissl(features, config, out, what, names)
    labels = _labels_to_vote(features, config, what, is_vissl=file_format == "vissl")
    if file_format == "zarr":
        return [_keep(features, name, config, what, labels) for name in names]
    write = {"npy": write_npy, "npz": write_npz, "parquet": write_parquet, "vissl": write_npy}[file_format]
    try:
        out.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        if "features" in what and file_format != "vissl":
            for split in features.manifest.splits:
                for name in names:
                    written += write_stored(features, split, name, out=out, file_format=file_format)
        for name, arrays in _contents(features, config, names, what, labels, is_vissl=file_format == "vissl"):
            written += write(out, name, arrays)
        if file_format != "vissl":
            classes = out / "classes.txt"
            names_of_classes = [visible(each, keep="") for each in shared_names(features)]
            classes.write_text("".join(f"{each}\n" for each in names_of_classes), encoding="utf-8")
            written.append(classes)
    except OSError as error:
        raise ExportError(not_written(out, error)) from error
    return written


def _export_for_vissl(
    features: FeatureSet, config: EvaluateConfig, out: Path, what: Sequence[str], layers: Sequence[str]
) -> list[Path]:
    """Write features as VISSL's extraction does, and the rest as its kNN does."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = write_features(features, layers, out)
    except OSError as error:
        raise ExportError(not_written(out, error)) from error
    rest = [each for each in what if each != "features"]
    return written + (_export_layers(features, config, out, rest, "vissl", layers) if rest else [])


def _contents(
    features: FeatureSet,
    config: EvaluateConfig,
    layers: Sequence[str],
    what: Sequence[str],
    labels: MatchedLabels | None,
    *,
    is_vissl: bool,
) -> Iterator[tuple[str, Arrays]]:
    """Yield groups of arrays with a name for each group; one layer in memory at a time."""
    if "features" in what and not is_vissl:
        for split in features.manifest.splits:
            paths = np.array(features.paths(split), np.str_)
            yield split, {"labels": classes_of(features, split), "paths": paths}
    if is_vissl:
        assert labels is not None
        for layer in layers:
            yield f"kNN_{layer}_output", _as_vissl(predictions_of(features, layer, config, labels))
    elif "neighbours" in what or "predictions" in what:
        for layer in layers:
            yield layer, _answers(features, layer, config, what, labels)[0]


def _labels_to_vote(
    features: FeatureSet, config: EvaluateConfig, what: Sequence[str], *, is_vissl: bool
) -> MatchedLabels | None:
    """Match the labels once for all layers; None if train has none, or no layer is searched."""
    if is_vissl:
        _refuse_without_labels(features)
    elif not {"neighbours", "predictions"} & set(what) or not has_labels(features, "train"):
        return None
    labels = matched_labels(features, needed=False)
    if is_vissl:
        _refuse_too_many_classes(features, config, labels)
    return labels


def _answers(
    features: FeatureSet, layer: str, config: EvaluateConfig, what: Sequence[str], labels: MatchedLabels | None
) -> tuple[Arrays, dict[str, Any], str]:
    """The neighbours and predictions to export, their setting, and a digest of all that they depend on."""
    if labels is not None:
        found = predictions_of(features, layer, config, labels)
        arrays = _neighbours(found.neighbours)
        arrays |= _predictions(found, resources_of(config).bytes) if "predictions" in what else {}
        keep = {name for each in what if each in _ARRAYS for name in _ARRAYS[each]}
        facts = {**found.setting, "class_names": list(found.class_names)}
        return {name: array for name, array in arrays.items() if name in keep}, facts, found.digest
    if "neighbours" not in what:
        _refuse_without_labels(features)
    if "predictions" in what:
        logger.warning("%s: no row of train has a label, so there are neighbours but no predictions", features.name)
    found_alone, facts, digest = neighbours_alone(features, layer, config)
    return _neighbours(found_alone), facts, digest


def _refuse_too_many_classes(features: FeatureSet, config: EvaluateConfig, labels: MatchedLabels) -> None:
    """VISSL's predictions have a number for each query and class."""
    queries = labels.train if config.knn.leave_one_out else labels.val
    num_queries, num_classes = len(queries.rows), len(labels.class_names)
    needed, memory = 8 * num_classes * num_queries, resources_of(config).bytes
    if needed > memory:
        raise ExportError(
            f"{features.path}: VISSL's predictions of {num_queries:,} queries and {num_classes:,} classes take "
            f"{in_words(needed)}, more than the {in_words(memory)} of --memory. Allow more with --memory, or export in "
            f"another format"
        )


def _refuse_without_labels(features: FeatureSet) -> None:
    if not has_labels(features, "train"):
        raise ExportError(
            f"{features.path}: no row of train has a label, so nothing can be predicted. Export "
            f"--what features,neighbours"
        )


_ARRAYS = {
    "neighbours": ("neighbours", "similarities", "queries"),
    "predictions": (
        "queries",
        "labels",
        "predictions",
        "probabilities",
        "top_probabilities",
        "confusion",
        "confused_pairs",
    ),
}


def _neighbours(found: Neighbours) -> dict[str, Array]:
    return {"neighbours": found.rows_QK, "similarities": found.similarities_QK, "queries": found.queries}


def _predictions(found: Predictions, memory: int) -> dict[str, Array]:
    """Predictions; without the zeros where a number for each class, or each pair of classes, exceeds the memory."""
    num_queries, num_classes = len(found.labels_Q), len(found.class_names)
    known = found.labels_Q >= 0
    best, labels = found.ranked_QT[known, 0], found.labels_Q[known]
    arrays: dict[str, Array] = {"labels": found.labels_Q, "predictions": found.ranked_QT}
    if 8 * num_queries * num_classes <= memory:
        arrays["probabilities"] = found.votes.probabilities(found.weights_QK, k=found.setting["k"])
    else:
        arrays["top_probabilities"] = found.probabilities_QT
    if 8 * num_classes**2 <= memory:
        arrays["confusion"] = confusion_matrix(best, labels, num_classes=num_classes)
    else:
        arrays["confused_pairs"] = confused_pairs(best, labels)
    return arrays


def _as_vissl(found: Predictions) -> Arrays:
    """All classes in order for each query, its class and its index, int64, as VISSL's `knn_utils.py` saves them."""
    return {
        "predictions": found.votes.complete_ranking(found.weights_QK, k=found.setting["k"]),
        "targets": found.labels_Q[:, None],
        "image_indices": np.arange(len(found.labels_Q), dtype=np.int64),
    }


def _keep(
    features: FeatureSet, layer: str, config: EvaluateConfig, what: Sequence[str], labels: MatchedLabels | None
) -> Path:
    """Save neighbours and predictions in the feature set, as Zarr."""
    wanted = [each for each in what if each in _ARRAYS]
    if not wanted:
        raise ExportError(
            "--format zarr saves only neighbours and predictions, in the feature set, whose features are Zarr already"
        )
    arrays, facts, digest = _answers(features, layer, config, wanted, labels)
    all_of_it = set(wanted) == set(_ARRAYS) or "predictions" not in arrays
    key = f"{layer}-{facts['protocol']}-{digest[:16]}" + ("" if all_of_it else f"-{wanted[0]}")
    save_cached(features, PREDICTIONS, key, {n: a for n, a in arrays.items() if n not in OF_CLASSES}, facts)
    if not has_cached(features, PREDICTIONS, key):
        raise ExportError(
            f"{features.path}: cannot be written, so nothing was saved. Export in another format, with --out"
        )
    return cached_folder(features.path, PREDICTIONS, key)
