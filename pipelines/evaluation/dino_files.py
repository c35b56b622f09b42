"""Features as DINO's `eval_knn.py --dump_features` leaves them, and `--load_features` reads them.

`trainfeat.pth` and `testfeat.pth` are rows of length 1 in float32, flat; `trainlabels.pth` and `testlabels.pth` their
classes. Rows without a label or a readable image are left out. Rows go through a file, so that no layer is in memory as
a whole.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.features.layers import stored_layer
from featbench.pipelines.evaluation.answers import labelled_rows, splits_there
from featbench.pipelines.evaluation.files import save
from featbench.pipelines.evaluation.stored_files import blocks_of
from featbench.store import FeatureSet
from featbench.store.paths import partial_name
from featbench.store.typing import Ints

PARTS = {"train": "train", "val": "test"}
"""DINO's names of the splits."""

LEAST = 1e-12
"""Smallest length that a row is divided by, as in torch's `normalize`."""


def write_dino(features: FeatureSet, layer: str, out: Path) -> list[Path]:
    """Write one layer of both splits, or of the only one that there is.

    Raises
    ------
    ExportError
        If a split is without labelled rows, or a file exists.
    """
    stored_layer(features, layer)  # refuses one that is incomplete, or has no numbers
    written: list[Path] = []
    for split, part in splits_there(features, PARTS, reader="DINO").items():
        rows, classes = labelled_rows(features, split, reader="DINO")
        written.append(save(out / f"{part}feat.pth", partial(_save_rows, features, split, layer, rows, out)))
        written.append(save(out / f"{part}labels.pth", partial(_save_labels, classes[rows])))
    return written


def _save_rows(features: FeatureSet, split: str, layer: str, rows: Ints, out: Path, file: Any) -> None:
    import torch

    dim = features.layer_info(layer).dim
    raw = partial_name(out / f"{split}.raw")
    try:
        with raw.open("xb") as into:
            for start, block in blocks_of(features, split, layer):
                flat = block.reshape(len(block), dim)
                chosen = rows[(rows >= start) & (rows < start + len(flat))] - start
                values = flat[chosen].astype(np.float64)
                values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), LEAST)
                into.write(values.astype("<f4").tobytes())
        mapped = torch.from_file(str(raw), shared=True, size=len(rows) * dim, dtype=torch.float32)
        torch.save(mapped.reshape(len(rows), dim), file)
    finally:
        raw.unlink(missing_ok=True)


def _save_labels(classes: Ints, file: Any) -> None:
    import torch

    torch.save(torch.from_numpy(classes), file)
