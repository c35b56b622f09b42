"""Kept clusterings as VISSL's tools write theirs: `<split>` is `train` or `test`, and rows are VISSL's image indices.

`tools/cluster_features_and_label.py` (ClusterFit) writes, for each split, `<features>_<split>_<layer>_N<K>_D<dim>` with
three endings:

| `.pkl` | `sample_indices`, `hard_labels`, `centroids`, `distances` (squared, as faiss gives them), `images` |
| `_labels.npy` | (n,) int64, the clusters |
| `_images.npy` | (n,) str, the paths |

`ClusterAssignmentLoader` in `vissl/utils/cluster_utils.py` writes, here into a folder for each clustering:

| `cluster_assignments.torch` | `config`, and `cluster_assignments`: {"TRAIN": {index: cluster}, "TEST": {...}} |
| `<split>_images.npy`, `<split>_labels.npy` | (n,) str, (n,) int64: a dataset of VISSL's type `disk_filelist` |

`config` says what the clustering was made from; it is not VISSL's configuration, which this project does not have.
"""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.clustering.kept import LoadedClustering, SplitClusters
from featbench.evaluate.features.layers import short
from featbench.pipelines.evaluation.files import Arrays, ExportError, save, save_array
from featbench.store import FeatureSet
from featbench.store.typing import Array

_SPLITS = {"train": "train", "val": "test"}

_PROTOCOL = 4
"""Latest version of pickle that Python 3.6 and 3.7 read; VISSL runs on 3.6 to 3.8."""


def vissl_files(features: FeatureSet, loaded: LoadedClustering, *, name: str, out: Path, paths: Arrays) -> list[Path]:
    """Write one clustering.

    Parameters
    ----------
    features : FeatureSet
        Has the clustering.
    loaded : LoadedClustering
        The clustering.
    name : str
        Name of its folder, that begins with layer and number of clusters.
    out : Path
        Folder; it exists.
    paths : mapping of str to ndarray
        Paths of all images, by split.

    Raises
    ------
    ExportError
        If a file exists, or an earlier version kept no distances.
    """
    kept, folder, written = loaded.kept, out / name, []
    layer = short(kept.layer) + name.removeprefix(f"{short(kept.layer)}_{kept.num_clusters}")
    for split, of in loaded.splits.items():
        prefix = f"{features.name}_{_SPLITS[split]}_{layer}_N{kept.num_clusters}_D{kept.dim}"
        images = paths[split][of.rows_N]
        content = _clusterfit(loaded, of, images, where=f"{features.path}: {kept.key}")
        folder.mkdir(exist_ok=True)
        written.append(save(out / f"{prefix}.pkl", partial(_save_pickle, content)))
        for place in (out / prefix, folder / _SPLITS[split]):
            written.append(save(Path(f"{place}_images.npy"), partial(save_array, images)))
            written.append(save(Path(f"{place}_labels.npy"), partial(save_array, of.clusters_N)))
    return [*written, save(folder / "cluster_assignments.torch", partial(_save_assignments, features, loaded))]


def _clusterfit(loaded: LoadedClustering, of: SplitClusters, images: Array, *, where: str) -> dict[str, Any]:
    """What ClusterFit pickles: lists with one entry a row; labels and distances are rows of faiss's (n, 1) arrays."""
    if of.distances_N is None:
        raise ExportError(
            f"{where}: an earlier version kept it without the distances that VISSL's files have. Cluster again with "
            f"`bench evaluate`, or export in another format"
        )
    return {
        "sample_indices": list(of.rows_N),
        "hard_labels": list(of.clusters_N[:, None]),
        "centroids": loaded.centroids_KD.astype(np.float32),
        "distances": list((of.distances_N**2).astype(np.float32)[:, None]),
        "images": images.tolist(),
    }


class _Pickler(pickle.Pickler):
    """Pickles arrays so that every version of NumPy reads them: NumPy 2 would name modules that NumPy 1 lacks."""

    def reducer_override(self, value: Any) -> Any:
        """Rebuild an array from its bytes, and a number from Python's."""
        if type(value) is np.ndarray:
            return np.ndarray, (value.shape, value.dtype.str, np.ascontiguousarray(value).tobytes())
        if type(value) is np.int64:
            return np.int64, (int(value),)
        return NotImplemented


def _save_pickle(content: dict[str, Any], file: Any) -> None:
    _Pickler(file, protocol=_PROTOCOL).dump(content)


def _save_assignments(features: FeatureSet, loaded: LoadedClustering, file: Any) -> None:
    import torch

    kept = loaded.kept
    config = {
        "features": features.name, "layer": kept.layer, "clusters": kept.num_clusters, "settings": dict(kept.settings),
        "made_from": list(kept.made_from),
    }  # fmt: skip
    assignments = {
        _SPLITS[split].upper(): dict(zip(of.rows_N.tolist(), of.clusters_N.tolist(), strict=True))
        for split, of in loaded.splits.items()
    }
    torch.save({"config": config, "cluster_assignments": assignments}, file)
