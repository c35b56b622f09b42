"""Features as the files that VISSL's extraction leaves, which its own tools read.

`rank0_chunk{i}_{train|test}_{layer}_{features,targets,inds}.npy`: float32 rows, their classes as (N, 1), and their
numbers in the split. Rows without a label or a readable image are left out, since VISSL needs a class of each row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from featbench.pipelines.evaluation.answers import labelled_rows, splits_there
from featbench.pipelines.evaluation.files import ExportError, save, save_array
from featbench.store import FeatureSet
from featbench.store.typing import Array, Ints

BYTES_PER_FILE = 1 << 29
"""Files are about as long as each other: VISSL's kNN refuses those with fewer rows than its k."""

NOT_IN_NAMES = r"[^A-Za-z0-9.\-]"
"""Characters of a layer's name that VISSL would read as parts of a regular expression."""

SPLITS: Mapping[str, str] = {"train": "train", "val": "test"}
"""VISSL's names of the splits."""


def write_features(features: FeatureSet, layers: Sequence[str], out: Path) -> list[Path]:
    """Write layers of both splits, or of the only one, for VISSL's tools, and return the paths.

    Raises
    ------
    ExportError
        If no row of a split has a label, or a file exists.
    """
    stale = sorted(out.glob("rank*_chunk*_features.npy"))
    if stale:
        raise ExportError(
            f"{out}: has features of VISSL's already, such as {stale[0].name}, and its tools would merge both. Give an "
            f"empty folder with --out"
        )
    written: list[Path] = []
    for split, theirs in splits_there(features, SPLITS, reader="VISSL").items():
        rows, labels = labelled_rows(features, split, reader="VISSL")
        for layer in layers:
            for number, (values, chosen) in enumerate(_parts(features, split, layer, rows)):
                stem = f"rank0_chunk{number}_{theirs}_{re.sub(NOT_IN_NAMES, '_', layer)}"
                arrays = {"features": values, "targets": labels[chosen, None], "inds": chosen}
                written += [
                    save(out / f"{stem}_{name}.npy", partial(save_array, array)) for name, array in arrays.items()
                ]
    return written


def _parts(features: FeatureSet, split: str, layer: str, rows: Ints) -> Iterator[tuple[Array, Ints]]:
    """Values of a layer, and the rows that they are of, in parts of similar length."""
    stored = features.layer(split, layer)
    num_files = max(1, round(stored.num_rows * stored.dim * 4 / BYTES_PER_FILE))
    for block in stored.blocks(-(-stored.num_rows // num_files)):
        chosen = rows[(rows >= block.start) & (rows < block.start + len(block.features))]
        if len(chosen):
            yield block.features[chosen - block.start].astype(np.float32), chosen
