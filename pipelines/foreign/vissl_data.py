"""VISSL's `DATA` as settings of `data`: where the images and labels of both splits are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featbench.pipelines.foreign.vissl_keys import Keys

CATALOGUE: Mapping[str, str] = {
    "imagenet1k_folder": "in1k",
    "imagenette_160_folder": "imagenette",
    "places205_folder": "places205",
    "places205_everstore": "places205",
    "places365_folder": "places365",
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "STL10": "stl10",
    "MNIST": "mnist",
    "inaturalist2018_filelist": "inat18",
    "SVHN": "svhn",
    "aircrafts_folder": "aircraft",
    "clevr_count_filelist": "clevr_count",
    "clevr_dist_filelist": "clevr_distance",
    "dsprites_loc_folder": "dsprites_location",
    "dsprites_orient_folder": "dsprites_orientation",
    "dtd_folder": "dtd",
    "food101_folder": "food101",
    "gtsrb_folder": "gtsrb",
    "kitti_dist_folder": "kitti_distance",
    "oxford_flowers_folder": "flowers102",
    "oxford_pets_folder": "pets",
    "patch_camelyon_folder": "pcam",
    "small_norb_azimuth_folder": "smallnorb_azimuth",
    "small_norb_elevation_folder": "smallnorb_elevation",
    "stanford_cars_folder": "cars",
    "sun397_filelist": "sun397",
    "ucf101_folder": "ucf101",
    "imagenet_a_filelist": "imagenet_a",
    "imagenet_r_filelist": "imagenet_r",
}
"""Data sets of the catalogue by VISSL's names, `DATASET_NAMES`."""

INTERNAL = ("everstore", "airstore")
"""Sources that exist only within Facebook."""

_SPLIT_KEYS = (
    "DATA_SOURCES", "LABEL_SOURCES", "DATA_PATHS", "LABEL_PATHS", "DATASET_NAMES", "DATA_LIMIT", "DROP_LAST",
)  # fmt: skip
_SOURCES = ("disk_folder", "disk_filelist", "torchvision_dataset")

Splits = Mapping[str, dict[str, Any]]


def translate_data(keys: Keys) -> dict[str, Any]:
    """Translate `DATA.*.DATA_SOURCES`, `DATA_PATHS`, `LABEL_PATHS` and `DATASET_NAMES` into the settings of `data`."""
    splits = {split: {key: keys.take(f"DATA.{split}.{key}") for key in _SPLIT_KEYS} for split in ("TRAIN", "TEST")}
    for split, given in splits.items():
        for key in ("DATA_SOURCES", "LABEL_SOURCES", "DATA_PATHS", "LABEL_PATHS", "DATASET_NAMES"):
            if isinstance(given[key], list) and len(given[key]) > 1:
                keys.fault(f"DATA.{split}.{key}: several sources are not supported")
        if given["DATA_LIMIT"] not in (None, -1):
            keys.fault(f"DATA.{split}.DATA_LIMIT: VISSL's subset can't be reproduced; set data.limit in the pipeline")
        if given["DROP_LAST"]:
            keys.fault(f"DATA.{split}.DROP_LAST: every image is evaluated here")
    keys.must_be("TEST_ONLY", False)
    data = _in_catalogue(keys, splits)
    if data is not None:
        return data
    sources = {_source(given) for given in splits.values()}
    labels = {_first(given["LABEL_SOURCES"]) for given in splits.values()} - {None}
    if len(sources) > 1 or labels - sources:
        keys.fault(
            f"DATA: sources of images {sorted(sources)} and of labels {sorted(map(str, labels))} must be the same"
        )
        return {}
    (source,) = sources
    paths = {split: _first(given["DATA_PATHS"]) for split, given in splits.items()}
    if source == "disk_folder":
        return {"source": "folder", **_folders(keys, paths)}
    if source == "disk_filelist":
        labels_of = {split: _first(given["LABEL_PATHS"]) for split, given in splits.items()}
        lists = {
            "train_list": paths["TRAIN"],
            "val_list": paths["TEST"],
            "train_labels": labels_of["TRAIN"],
            "val_labels": labels_of["TEST"],
        }
        return {"source": "filelist", **{key: path for key, path in lists.items() if path}}
    if source == "torchvision_dataset":
        return {
            "source": "torchvision",
            "dataset": _first(splits["TRAIN"]["DATASET_NAMES"]),
            **({"root": paths["TRAIN"]} if paths["TRAIN"] else {}),
        }
    keys.fault(f"DATA: source {source!r} is not among {', '.join(_SOURCES)}")
    return {}


def _in_catalogue(keys: Keys, splits: Splits) -> dict[str, Any] | None:
    """The data set of the catalogue that the names mean, if no paths are given; None if paths are, or names unknown."""
    names = {str(_first(given["DATASET_NAMES"])) for given in splits.values()}
    has_paths = any(_first(given[key]) for given in splits.values() for key in ("DATA_PATHS", "LABEL_PATHS"))
    internal = {_first(given["DATA_SOURCES"]) for given in splits.values()} & set(INTERNAL)
    if not has_paths and len(names) == 1 and (name := names.pop()) in CATALOGUE:
        # VISSL's own folders of Places have class folders, where the catalogue has the lists that come with it.
        is_folder = name in ("places205_folder", "places365_folder")
        return {"name": CATALOGUE[name]} | ({"source": "folder"} if is_folder else {})
    if internal and not has_paths:
        keys.fault(
            f"DATA: {', '.join(sorted(map(str, internal)))} exists only within Facebook. Give lists of paths and "
            f"labels, config.DATA.TRAIN.DATA_PATHS=[train.npy] config.DATA.TRAIN.LABEL_PATHS=[train_labels.npy], and "
            f"the same for TEST; or folders, config.DATA.TRAIN.DATA_PATHS=[/data/train]"
        )
        return {}
    for split, given in splits.items():
        if _first(given["DATASET_NAMES"]) and _first(given["DATA_SOURCES"]) != "torchvision_dataset":
            keys.note(f"DATA.{split}.DATASET_NAMES")  # the paths say where the images are
    return None


def _source(given: Mapping[str, Any]) -> str:
    """Source of a split's images; that of the labels, or a folder, for Facebook's storage with paths of one's own."""
    source = _first(given["DATA_SOURCES"]) or "disk_folder"
    if source not in INTERNAL:
        return str(source)
    path = _first(given["DATA_PATHS"])
    return "disk_folder" if path and not str(path).endswith((".npy", ".txt", ".csv", ".json")) else "disk_filelist"


def _folders(keys: Keys, paths: Mapping[str, str | None]) -> dict[str, str]:
    """The common parent folder of both splits, and their names in it."""
    train, val = paths["TRAIN"], paths["TEST"]
    if not train or not val:
        return {}  # --data will be required
    if Path(train) == Path(val):
        keys.fault(f"DATA: TRAIN and TEST are both {train}: every image would be its own neighbour")
        return {}
    root = os.path.commonpath([Path(path).parent for path in (train, val)])
    return {"root": root, "train_split": os.path.relpath(train, root), "val_split": os.path.relpath(val, root)}


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value or None
