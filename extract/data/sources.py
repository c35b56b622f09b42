"""Image sources: the rows of a split, in a fixed order, each with a label and a name.

A source lists all images first and opens them one by one. The order is the dataset's own and never
changes: row `i` is the same image in every run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.extract.data.datasets import (
    DigitsSource,
    HuggingFaceSource,
    TorchvisionSource,
    torchvision_data,
    torchvision_listing,
)
from featbench.extract.data.filelists import list_files
from featbench.extract.data.folders import ArchiveTree, list_classes, tree_of
from featbench.extract.data.image_sources import ListedSource, SubsetSource
from featbench.extract.data.jpeg import check_decoder
from featbench.extract.data.labels import BESIDE, labels_in
from featbench.extract.data.layouts import list_by_splits, list_layout
from featbench.extract.data.list_formats import read_classes
from featbench.extract.data.listing import Listing, hashes_of
from featbench.extract.data.listing_cache import cache_file, cached_or_made
from featbench.extract.data.multi_label import list_several
from featbench.extract.data.pictures import ImageSource
from featbench.extract.data.shards import find_shards, list_shards
from featbench.extract.data.subsets import chosen_rows
from featbench.extract.errors import DataError
from featbench.store import SplitRows, abbreviate, suggest
from featbench.store.names import normal_name

__all__ = ["DataError", "ImageSource", "open_sources"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Location of the images and labels of one split; see `featbench.extract.config.DataConfig`."""

    split: str
    root: Path | None
    dataset: str | None = None
    other: str = ""
    """Name of the other split."""

    list: Path | None = None
    labels: Path | None = None
    splits: Path | None = None
    classes: Path | None = None
    label_column: str | None = None
    multi_label: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    on_class_fault: str = "stop"
    on_error: str = "stop"
    cache: Path | None = None
    decoder: str = "pillow"
    archives: dict[Path, ArchiveTree] = field(default_factory=dict)
    """Archives that have already been read, while both splits are listed."""

    def listed(self, make: Callable[[], Listing], *made_from: Any, root: Path | None = None) -> ListedSource:
        """Return the cached listing for `made_from`, or make it."""
        root = (root or self.root or Path()).resolve()
        file = cache_file(self.cache, [str(root), *map(str, made_from)]) if self.cache is not None else None
        return ListedSource(cached_or_made(file, make, root=root), root, cached=file, decoder=self.decoder)


NO_SPLIT = "none"
"""Name of a train split that is not there."""


def open_sources(
    *,
    source: str,
    root: Path | None = None,
    dataset: str | None = None,
    train_split: str = "train",
    val_split: str = "val",
    train_list: Path | None = None,
    val_list: Path | None = None,
    train_labels: Path | None = None,
    val_labels: Path | None = None,
    splits: Path | None = None,
    classes: Path | None = None,
    label_column: str | None = None,
    multi_label: bool = False,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    per_class: int | None = None,
    seed: int = 0,
    on_class_fault: str = "stop",
    on_error: str = "stop",
    decoder: str = "pillow",
    cache: Path | None = None,
) -> dict[str, ImageSource]:
    """List both splits of a dataset.

    Parameters
    ----------
    cache : Path, optional
        Folder of cached listings.

    The other parameters are the settings of `featbench.extract.config.DataConfig`.

    Returns
    -------
    dict of str to ImageSource
        `train`, the database, and `val`, the queries, whatever their own names are; `val` alone if `train_split` is
        `none`.

    Raises
    ------
    DataError
        If something is missing or empty, or a class of val is not in train.
    """
    if source not in SOURCES:
        raise DataError(f"unknown data.source {source!r}. {suggest(source, SOURCES)}")
    check_decoder(decoder)
    if splits is not None:
        val_list = train_list = train_list or val_list  # one list of all images
    elif source == "filelist" and train_list == val_list and train_list is not None:
        raise DataError(f"train and val are both {val_list}: every image would be its own neighbour. Name two lists.")
    if (source != "filelist" or splits is not None) and train_split == val_split:
        raise DataError(
            f"train and val are both {val_split!r}: every image would be its own neighbour. Name two splits."
        )
    train = Place(
        split=train_split,
        other=val_split,
        splits=_found(splits, root),
        root=root,
        dataset=dataset,
        list=_found(train_list, root),
        labels=_found(train_labels, root),
        classes=_found(classes, root),
        label_column=label_column,
        multi_label=multi_label,
        options=options or {},
        on_class_fault=on_class_fault,
        on_error=on_error,
        decoder=decoder,
        cache=cache,
    )
    val = replace(
        train, split=val_split, other=train_split, list=_found(val_list, root), labels=_found(val_labels, root)
    )
    if multi_label and (per_class is not None or splits is not None):
        raise DataError("data.per_class and data.splits need one class for each image: leave out data.multi_label")
    if train_split == NO_SPLIT:
        queries = SOURCES[source](val)
        drawn_alone = limit is not None or per_class is not None
        return {"val": _drawn(queries, limit=limit, per_class=None, seed=seed) if drawn_alone else queries}
    sources = {"train": SOURCES[source](train), "val": SOURCES[source](val)}
    if source == "folder" and root is not None:
        _label_flat_val(sources, root, val.labels, on_class_fault, label_column)
    _compare_classes(sources["train"].rows, sources["val"].rows, on_class_fault)
    if source == "filelist":
        _warn_of_shared_images(sources["train"].rows, sources["val"].rows)
    if limit is None and per_class is None:
        return sources
    drawn: dict[str, ImageSource] = {
        "train": _drawn(sources["train"], limit=limit, per_class=per_class, seed=seed),
        "val": _drawn(sources["val"], limit=limit, per_class=None, seed=seed),
    }
    _compare_classes(drawn["train"].rows, drawn["val"].rows, "warn")
    return drawn


def _folder(place: Place) -> ImageSource:
    root = _existing(place, "with the splits' folders, or the archive")

    def make() -> Listing:
        tree, folder = tree_of(root, place.split, place.archives)
        where = str(root / place.split)
        return list_classes(tree, folder, prefix=place.split, where=where, on_class_fault=place.on_class_fault)

    return place.listed(make, "folder", place.split, place.on_class_fault)


def _layout(place: Place) -> ImageSource:
    root = _existing(place, "of the data set, as it is distributed").resolve()
    return place.listed(partial(list_layout, place.dataset, root, place.split), "layout", place.dataset, place.split)


def _by_splits(place: Place, splits: Path) -> ImageSource:
    root = _existing(place, "that the lists' paths are relative to").resolve()
    classes = read_classes(place.classes) if place.classes is not None else None
    make = partial(list_by_splits, splits, root, place.split, images=place.list, other=place.other, classes=classes)
    return place.listed(make, "splits", splits.resolve(), place.list, place.classes, place.split)


def _filelist(place: Place) -> ImageSource:
    if place.splits is not None:
        return _by_splits(place, place.splits)
    if place.list is None:
        raise DataError("say which files list the images: data.train_list=FILE data.val_list=FILE")
    if place.multi_label:
        return _several(place, place.list)
    make = partial(
        list_files,
        place.list,
        root=place.root,
        labels=place.labels,
        classes=place.classes,
        label_column=place.label_column,
        on_missing=place.on_error,
    )
    base = place.root if place.root is not None else place.list.resolve().parent
    made_from = [path and path.resolve() for path in (place.list, place.labels, place.classes)]
    return place.listed(make, "filelist", *made_from, place.label_column, place.on_error, root=base)


def _several(place: Place, where: Path) -> ImageSource:
    if place.labels is not None:
        raise DataError(f"{place.labels}: with data.multi_label, classes are in the list itself, {where}")
    make = partial(
        list_several, where, root=place.root, classes=place.classes, label_column=place.label_column,
        on_missing=place.on_error,
    )  # fmt: skip
    base = place.root if place.root is not None else where.resolve().parent
    made_from = [path and path.resolve() for path in (where, place.classes)]
    return place.listed(make, "several", *made_from, place.label_column, place.on_error, root=base)


def _webdataset(place: Place) -> ImageSource:
    root = _existing(place, "with the shards").resolve()
    shards = find_shards(root, place.split)
    make = partial(list_shards, shards, root=root, classes=place.classes)
    return place.listed(make, "webdataset", *shards, place.classes)


def _torchvision(place: Place) -> ImageSource:
    if place.root is None or not place.root.is_dir():
        raise _no_root(place, "with the files of torchvision's data set")
    if place.dataset is None:
        raise DataError("say which of torchvision's data sets to read with data.dataset, such as data.dataset=CIFAR10")
    data = torchvision_data(place.dataset, place.root, place.split, place.options)
    listing = torchvision_listing(data, place.root)
    if listing:
        return ListedSource(listing, place.root, decoder=place.decoder)
    return TorchvisionSource(data, place.dataset, place.split)


def _huggingface(place: Place) -> ImageSource:
    return HuggingFaceSource(
        place.dataset,
        place.root,
        place.split,
        place.options,
        label_column=place.label_column,
        decoder=place.decoder,
    )


SOURCES: Mapping[str, Callable[[Place], ImageSource]] = {
    "folder": _folder,
    "filelist": _filelist,
    "layout": _layout,
    "webdataset": _webdataset,
    "torchvision": _torchvision,
    "huggingface": _huggingface,
    "digits": lambda place: DigitsSource(place.split),
}


def _existing(place: Place, what: str) -> Path:
    if place.root is None or not place.root.exists():
        raise _no_root(place, what)
    return place.root


def _no_root(place: Place, what: str) -> DataError:
    if place.root is None:
        return DataError(f"no images: say where they are with --data FOLDER (data.root), the folder {what}")
    return DataError(f"{place.root}: no such folder. Give the folder {what} with --data")


def _found(path: Path | None, root: Path | None) -> Path | None:
    """The path of a list may be relative to the root."""
    return root / path if path is not None and root is not None and (root / path).exists() else path


def _drawn(source: ImageSource, *, limit: int | None, per_class: int | None, seed: int) -> ImageSource:
    rows = source.rows
    return SubsetSource(source, chosen_rows(rows.paths, rows.labels, limit=limit, per_class=per_class, seed=seed))


def _label_flat_val(
    sources: dict[str, ImageSource], root: Path, labels: Path | None, on_class_fault: str, label_column: str | None
) -> None:
    """Find labels of val images without class folders, if train has class folders, as in ImageNet's distribution."""
    val, classes = sources["val"], sources["train"].rows.class_names
    if labels is None and classes and not val.rows.class_names:
        labels = labels_in(root)
        if labels is None:
            text = (
                f"{root}: train has {len(classes):,} class folders, val has {len(val.rows.labels):,} images and "
                f"no class folder. Name a list of their labels with data.val_labels=FILE "
                f"(or put {' or '.join(BESIDE[:2])} there)"
            )
            if on_class_fault == "stop":
                raise DataError(f"{text}, or continue without labels with data.on_class_fault=warn.")
            logger.warning("%s.", text)
    if labels is not None and isinstance(val, ListedSource):
        if val.rows.class_names:
            raise DataError(f"{labels}: labels for val, whose images have class folders. Remove one of the two.")
        sources["val"] = val.labelled(labels, classes, label_column=label_column)


def _warn_of_shared_images(train: SplitRows, val: SplitRows) -> None:
    shared = np.flatnonzero(np.isin(hashes_of(val.paths), hashes_of(train.paths)))
    if len(shared):
        text = "images that are in both train and val: %d, such as %s; each is its own nearest neighbour"
        logger.warning(text, len(shared), val.paths[int(shared[0])])


def used_classes(rows: SplitRows) -> set[str]:
    """Names of the classes that any row has, in Unicode's normal form."""
    used = rows.used_labels()  # may be known without going through all rows
    if used is None:
        used = tuple(np.flatnonzero((rows.labels == 1).any(axis=0)).tolist())
    return {normal_name(rows.class_names[label]) for label in used}


def _compare_classes(train: SplitRows, val: SplitRows, on_class_fault: str) -> None:
    in_train, in_val = used_classes(train), used_classes(val)
    only_val, only_train = sorted(in_val - in_train), sorted(in_train - in_val)
    if only_train and in_val:
        logger.warning("classes of train without an image in val: %s", abbreviate(only_train, show=8))
    if only_val and in_train:
        text = f"classes of val without an image in train, never predicted: {abbreviate(only_val, show=8)}" + (
            f" (only in train: {abbreviate(only_train, show=8)})" if only_train else ""
        )
        if on_class_fault == "stop":
            raise DataError(f"{text}. Rename or remove the folders, or continue with data.on_class_fault=warn.")
        logger.warning("%s; they count as wrong", text)
