"""A layer of train as a flat faiss index, whose ids are rows of train, and what the rows are.

| file | what |
|---|---|
| `<layer>.faiss` | `IndexIDMap` of an `IndexFlatIP` (rows of length 1 for the cosine), or `IndexFlatL2` for euclidean |
| `<layer>.faiss.json` | feature set, fingerprint, layer, similarity, whether queries must be scaled to length 1 |
| `rows.csv` | row (the id), path and class |
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.features.labels import readable_rows, shared_names
from featbench.evaluate.features.layers import short, stored_layer
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.answers import classes_of
from featbench.pipelines.evaluation.files import save
from featbench.pipelines.evaluation.stored_files import blocks_of
from featbench.store import FeatureSet
from featbench.store.typing import Floats, Ints


def write_faiss(features: FeatureSet, config: EvaluateConfig, layers: Sequence[str], out: Path) -> list[Path]:
    """Write an index of each layer, and the list of the rows.

    Raises
    ------
    ExportError
        If a file exists.
    """
    similarity = next(iter(find_protocols(config.knn.protocol).values())).similarity
    rows = readable_rows(features, "train").rows
    written = []
    for layer in layers:
        stored_layer(features, layer)
        stem = short(layer)
        written.append(save(out / f"{stem}.faiss", partial(_write_index, features, layer, rows, similarity)))
        facts = {
            "features": features.name, "fingerprint": features.manifest.fingerprint, "layer": layer, "split": "train",
            "rows": len(rows), "dim": features.layer_info(layer).dim, "similarity": similarity,
            "scale_queries_to_length_1": similarity == "cosine",
            "ids": "rows of train, as listed in rows.csv",
        }  # fmt: skip
        written.append(save(out / f"{stem}.faiss.json", partial(_write_facts, facts)))
    return [*written, save(out / "rows.csv", partial(_write_rows, features, rows))]


def _write_index(features: FeatureSet, layer: str, rows: Ints, similarity: Similarity, file: Any) -> None:
    from featbench.evaluate.neighbours.index_file import write_flat_index

    blocks = _chosen(features, layer, rows, is_scaled=similarity == "cosine")
    write_flat_index(file, blocks, rows, dim=features.layer_info(layer).dim, similarity=similarity)


def _chosen(features: FeatureSet, layer: str, rows: Ints, *, is_scaled: bool) -> Iterator[Floats]:
    """Yield the rows that are readable, flat, and scaled to length 1; rows of zeros stay."""
    for start, block in blocks_of(features, "train", layer):
        chosen = rows[(rows >= start) & (rows < start + len(block))] - start
        values = block.reshape(len(block), -1)[chosen]
        if is_scaled:
            lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
            values = (values / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        yield values


def _write_facts(facts: dict[str, Any], file: Any) -> None:
    file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")


def _write_rows(features: FeatureSet, rows: Ints, file: Any) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True, errors="surrogateescape")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "path", "class"))
    paths, classes, names = features.paths("train"), classes_of(features, "train"), (*shared_names(features), "")
    writer.writerows((row, paths[row], names[classes[row]]) for row in rows.tolist())
    text.detach()
