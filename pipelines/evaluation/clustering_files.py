"""Kept clusterings as files of other programs.

`<name>` is the layer and the number of clusters, such as `res5_100`, and the settings that are not the default
(`res5_100_spherical_seed3`). `<split>` is `train` or `val`.

| format | file | what |
|---|---|---|
| npy | `<name>_centroids.npy` | (K, D) float64, in units of the rows: of length 1 if they were normalized |
| | `<split>_<name>_clusters.npy`, `_rows.npy` | (n,) int64: cluster of each row that was clustered, and the row |
| | `<split>_<name>_distances.npy` | (n,) float64: Euclidean distance to the centroid |
| | `<split>_<name>_paths.npy` | (n,) str |
| npz | `<name>.npz`, `<split>_<name>.npz` | the same arrays, without the beginning of their names |
| csv | `<split>_<name>_clusters.csv` | columns row, path, cluster, distance |
| parquet | `<split>_<name>_clusters.parquet`, `<name>_centroids.parquet` | the same columns; centroids |
| faiss | `<name>.faiss` | flat index of the centroids in float32: of inner products if spherical, else of L2 |
| vissl | see `featbench.pipelines.evaluation.vissl_clusters` | |
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.clustering.kept import (
    KeptClustering,
    LoadedClustering,
    SplitClusters,
    centroid_index,
    load_clustering,
)
from featbench.pipelines.evaluation.files import (
    Arrays,
    save,
    write_csv,
    write_npy,
    write_npz,
    write_parquet,
)
from featbench.pipelines.evaluation.kept_names import file_name
from featbench.pipelines.evaluation.vissl_clusters import vissl_files
from featbench.store import FeatureSet
from featbench.store.typing import Array


def write_clusterings(
    features: FeatureSet, kept: Sequence[KeptClustering], *, out: Path, file_format: str
) -> list[Path]:
    """Write kept clusterings as files, and return their paths.

    Parameters
    ----------
    features : FeatureSet
        Has the clusterings.
    kept : sequence of KeptClustering
        Which.
    out : Path
        Folder; it exists.
    file_format : {"npy", "npz", "csv", "parquet", "faiss", "vissl"}
        See above.

    Raises
    ------
    EvaluationError
        If a clustering is damaged.
    ExportError
        If a file exists, the format needs a library that is not installed, or VISSL's files need distances, which an
        earlier version did not keep.
    """
    written: list[Path] = []
    names = _distinct_names(kept)
    paths = {split: np.array(features.paths(split), np.str_) for split in features.manifest.splits}
    for name, each in zip(names, kept, strict=True):
        loaded = load_clustering(features, each)
        if file_format == "vissl":
            written += vissl_files(features, loaded, name=name, out=out, paths=paths)
        elif file_format == "faiss":
            written.append(save(out / f"{name}.faiss", partial(_save_index, loaded)))
        elif file_format in ("csv", "parquet"):
            written += _write_tables(loaded, name=name, out=out, paths=paths, file_format=file_format)
        else:
            write = {"npy": write_npy, "npz": write_npz}[file_format]
            written += write(out, name, {"centroids": loaded.centroids_KD})
            for split, of in loaded.splits.items():
                written += write(out, f"{split}_{name}", _arrays(of, paths[split]))
    return written


def _distinct_names(kept: Sequence[KeptClustering]) -> list[str]:
    """Names for files; those that two clusterings have in common end in the digests of their keys."""
    names = [file_name(each) for each in kept]
    return [
        name if names.count(name) == 1 else f"{name}_{each.key.rpartition('-')[2]}"
        for name, each in zip(names, kept, strict=True)
    ]


def _arrays(of: SplitClusters, paths: Array) -> Arrays:
    arrays = {"clusters": of.clusters_N, "rows": of.rows_N, "paths": paths[of.rows_N]}
    return arrays if of.distances_N is None else arrays | {"distances": of.distances_N}


def _write_tables(loaded: LoadedClustering, *, name: str, out: Path, paths: Arrays, file_format: str) -> list[Path]:
    write = {"csv": write_csv, "parquet": write_parquet}[file_format]
    written = []
    for split, of in loaded.splits.items():
        columns = {"row": of.rows_N, "path": paths[split][of.rows_N], "cluster": of.clusters_N}
        columns |= {} if of.distances_N is None else {"distance": of.distances_N}
        written += write(out, f"{split}_{name}_clusters", columns)
    if file_format == "parquet":
        written += write_parquet(out, f"{name}_centroids", {"centroid": loaded.centroids_KD})
    return written


def _save_index(loaded: LoadedClustering, file: Any) -> None:
    file.write(centroid_index(loaded))
