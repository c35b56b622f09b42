"""A table for Embedding Atlas: a point for each readable image of both splits, train first.

`embedding-atlas res5.parquet --x x --y y --neighbors neighbors --disable-projection` opens it. `neighbors` is a struct
of `ids`, which count the rows of the file from 0, and `distances`; it is empty but for the queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.features.labels import readable_rows, shared_names
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.memory import in_words
from featbench.pipelines.evaluation.answers import Answers, classes_of
from featbench.pipelines.evaluation.files import ExportError, load_parquet, save
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.evaluation.stored_files import blocks_of
from featbench.pipelines.evaluation.umap_maps import FEWEST, load_umap, umap_of
from featbench.store import FeatureSet
from featbench.store.typing import Array, Doubles, Floats, Ints

PROJECTIONS = ("pca", "umap")

ROWS_AT_ONCE = 16_384

SAMPLE = 20_000
"""Rows that the principal components are computed of, at most."""


def write_atlas(
    features: FeatureSet, answers: Answers, path: Path, config: EvaluateConfig, what: Sequence[str], projection: str
) -> list[Path]:
    """Write the table of one layer.

    Parameters
    ----------
    features, answers
        The layer, and what is known of its queries.
    path : Path
        File to write.
    config : EvaluateConfig
        Memory.
    what : sequence of {"neighbours", "predictions"}
        What is written of the queries.
    projection : {"pca", "umap"}
        How x and y are computed, of rows of length 1 if the similarity is the cosine.

    Raises
    ------
    ExportError
        If the projection does not fit into the memory.
    """
    memory = resources_of(config).bytes
    at_P2 = _projected(features, answers, memory) if projection == "pca" else _by_umap(features, answers, memory)
    table = _Table(features=features, answers=answers, at_P2=at_P2, what=tuple(what))
    return [save(path, partial(_write, table))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    features: FeatureSet
    answers: Answers
    at_P2: Floats
    what: tuple[str, ...]


def check_atlas(projection: str) -> None:
    """Refuse what can't be written before anything is searched.

    Raises
    ------
    ExportError, UmapError
        If pyarrow is not installed, or the projection is unknown or not installed.
    """
    load_parquet()
    if projection not in PROJECTIONS:
        raise ExportError(f"--projection must be one of {', '.join(PROJECTIONS)}; got {projection}")
    if projection == "umap":
        load_umap(option="--projection umap", instead="take pca")


def _splits(features: FeatureSet) -> list[tuple[str, Ints]]:
    """The readable rows of each split, train first."""
    return [
        (split, readable_rows(features, split).rows) for split in ("train", "val") if split in features.manifest.splits
    ]


def _projected(features: FeatureSet, answers: Answers, memory: int) -> Floats:
    """The first two principal components of train, for all rows; fitted on evenly spaced rows if it is large."""
    stored, train = stored_layer(features, answers.layer), readable_rows(features, "train").rows
    most = max(3, min(SAMPLE, memory // (4 * 8 * stored.dim)))
    sample = train[np.linspace(0, len(train) - 1, min(most, len(train))).astype(np.int64)]
    mean_D, axes_D2 = _components(_scaled(Selection(layer=stored.layers["train"], rows=sample).read(), answers))
    parts = []
    for split, rows in _splits(features):
        is_used = np.zeros(features.split(split).num_rows, np.bool_)
        is_used[rows] = True
        for start, block in blocks_of(features, split, answers.layer):
            flat = block.reshape(len(block), -1)[is_used[start : start + len(block)]]
            parts.append(((_scaled(flat, answers) - mean_D) @ axes_D2).astype(np.float32))
    return np.concatenate(parts)


def _components(features_ND: Doubles) -> tuple[Doubles, Doubles]:
    """Mean and first two principal axes; the first two numbers of a row if there is nothing to reduce."""
    from sklearn.decomposition import PCA

    dim = features_ND.shape[1]
    if min(features_ND.shape) < 3 or not np.ptp(features_ND, axis=0).any():
        return np.zeros(dim), np.eye(dim, 2)
    fitted = PCA(2, svd_solver="arpack", random_state=0).fit(features_ND)
    return fitted.mean_, fitted.components_.T


def _scaled(features_ND: Floats, answers: Answers) -> Doubles:
    """Rows in float64, of length 1 if the similarity is the cosine."""
    values = features_ND.astype(np.float64)
    if answers.similarity == "cosine":
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        values /= np.where(lengths > 0, lengths, 1)
    return values


def _by_umap(features: FeatureSet, answers: Answers, memory: int) -> Floats:
    stored = stored_layer(features, answers.layer)
    needed = 3 * 4 * stored.dim * sum(len(rows) for _, rows in _splits(features))
    if needed > memory:
        raise ExportError(
            f"--projection umap holds all features in memory, about {in_words(needed)}, more than the "
            f"{in_words(memory)} of --memory. Take pca, or allow more with --memory"
        )
    parts = [Selection(layer=stored.layers[split], rows=rows).read() for split, rows in _splits(features)]
    metric = {"cosine": "cosine", "euclidean": "euclidean", "inner_product": "cosine"}[answers.similarity]
    rows = np.concatenate(parts)
    if len(rows) < FEWEST:
        return _projected(features, answers, memory)
    return umap_of(load_umap(option="--projection umap", instead="take pca"), rows, metric=metric).astype(np.float32)


def _write(table: _Table, file: Any) -> None:
    pa, parquet = load_parquet()

    lists = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float64()))])
    schema = pa.schema(
        [("split", pa.string()), ("row", pa.int64()), ("path", pa.string()), ("class", pa.string()),
         ("x", pa.float32()), ("y", pa.float32()), ("prediction", pa.string()), ("probability", pa.float64()),
         ("right", pa.bool_()), ("neighbors", lists)]
    )  # fmt: skip
    kept = [name for name in schema.names if _is_kept(table, name)]
    schema = pa.schema([schema.field(name) for name in kept])
    with parquet.ParquetWriter(file, schema) as writer:
        for columns in _pieces(table):
            writer.write_table(pa.table({name: columns[name] for name in kept}, schema=schema))


def _is_kept(table: _Table, name: str) -> bool:
    if name == "neighbors":
        return "neighbours" in table.what
    if name in ("prediction", "probability", "right"):
        return "predictions" in table.what and table.answers.predictions is not None
    return True


def _pieces(table: _Table) -> Iterator[dict[str, Any]]:
    """Yield the columns of some rows at a time."""
    features, answers, start = table.features, table.answers, 0
    place = np.full(features.split("train").num_rows, -1, np.int64)  # of each row of train in the file
    train = readable_rows(features, "train").rows
    place[train] = np.arange(len(train))
    for split, rows in _splits(features):
        paths, classes, names = features.paths(split), classes_of(features, split), (*shared_names(features), None)
        position = np.full(features.split(split).num_rows, -1, np.int64)  # of each row among the queries
        if split == answers.split:
            position[answers.neighbours.queries] = np.arange(len(answers.neighbours.queries))
        for first in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[first : first + ROWS_AT_ONCE]
            x, y = table.at_P2[start : start + len(some)].T
            start += len(some)
            yield {
                "split": [split] * len(some), "row": some, "path": [paths[row] for row in some],
                "class": [names[label] for label in classes[some]], "x": np.ascontiguousarray(x),
                "y": np.ascontiguousarray(y), **_of_queries(answers, position[some], place),
            }  # fmt: skip


def _of_queries(answers: Answers, positions: Ints, place: Array) -> dict[str, Any]:
    """Neighbours and predictions of some rows; empty and null for those that are no queries."""
    is_query = positions >= 0
    ids = iter(place[answers.neighbours.rows_QK[positions[is_query]]].tolist())
    distances = iter(answers.distances(positions[is_query]).tolist())
    neighbours = [
        {"ids": next(ids), "distances": next(distances)} if asked else {"ids": [], "distances": []}
        for asked in is_query.tolist()
    ]
    columns: dict[str, Any] = {"neighbors": neighbours}
    found = answers.predictions
    if found is None:
        return columns
    none = [None] * len(positions)
    columns |= {"prediction": list(none), "probability": list(none), "right": list(none)}
    for at in np.flatnonzero(is_query).tolist():
        query = positions[at]
        best = int(found.ranked_QT[query, 0])
        columns["prediction"][at] = found.class_names[best]
        columns["probability"][at] = float(found.probabilities_QT[query, 0])
        if found.labels_Q[query] >= 0:
            columns["right"][at] = bool(best == found.labels_Q[query])
    return columns
