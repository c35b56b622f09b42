"""Image sources: the rows of a split, in a fixed order, each with a label and a name.

A source lists everything at once and opens images one by one. The order is the dataset's own and
never changes: row `i` is the same image in every run.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from extract.images import EXTENSIONS, ImageError, read_rgb, to_rgb
from store import BenchError, SplitRows, nearest, some

logger = logging.getLogger(__name__)


class DataError(BenchError):
    """A dataset is not as it must be."""


class ImageSource(Protocol):
    """One split. `open` may be called from several processes, in any order."""

    rows: SplitRows
    in_memory: bool
    """Whether `open` costs next to nothing, so that no extra process need do it."""

    def open(self, row: int) -> Image.Image:
        """Return the image of a row in mode RGB, or raise ImageError."""
        ...


class FolderSource:
    """A folder of class folders; images anywhere below a class folder belong to it.

    Classes are the folders in alphabetical order, rows the files in alphabetical order within their
    class, as in torchvision's ImageFolder. A folder with images and no class folders has no labels.
    """

    in_memory = False

    def __init__(self, root: Path, split: str, *, on_class_fault: str = "stop") -> None:
        self._root = root
        folder = root / split
        classes = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
        )
        paths: list[str] = []
        labels: list[int] = []
        ignored = 0
        empty: list[str] = []
        sizes: list[int] = []
        for label, name in enumerate(classes):
            found, found_sizes, others = _images_below(root, folder / name)
            paths += found
            sizes += found_sizes
            labels += [label] * len(found)
            ignored += others
            if not found:
                empty.append(name)
        loose, loose_sizes, others = _images_below(root, folder, recurse=False)
        ignored += others
        if not paths and not loose:
            raise DataError(
                f"{folder}: no images. Expected {folder}/<class>/<image>, with images ending in "
                f"{', '.join(EXTENSIONS[:5])}, ...; found {_contents(folder)}."
            )
        if not classes or not paths:
            classes, paths, sizes, labels = [], loose, loose_sizes, [-1] * len(loose)
        elif loose:
            logger.warning(
                "%s: images outside any class folder, left out: %d, such as %s", folder, len(loose), loose[0]
            )
        if empty and classes:
            text = f"{folder}: class folders without an image: {some(empty, show=8)}."
            if on_class_fault == "stop":
                raise DataError(f"{text} Fill or delete them, or go on with data.on_class_fault=warn.")
            logger.warning("%s", text)
        if ignored:
            logger.warning("%s: files that are not images by their endings, left out: %d", folder, ignored)
        names = tuple(name.encode(errors="surrogateescape").decode(errors="replace") for name in classes)
        self.rows = SplitRows(labels=np.array(labels, np.int64), paths=paths, class_names=names, sizes=sizes)

    def open(self, row: int) -> Image.Image:
        """Decode the image of a row."""
        path = self._root / self.rows.paths[row]
        return read_rgb(path, name=str(path))


class TorchvisionSource:
    """One of torchvision's data sets whose files are on disk already; nothing is downloaded."""

    def __init__(self, name: str, root: Path, split: str) -> None:
        import torchvision

        known = [n for n in torchvision.datasets.__all__ if n not in ("FakeData", "VisionDataset")]
        if name not in known:
            raise DataError(f"unknown torchvision data set {name!r}. {nearest(name, known)}")
        self._data = _torchvision_split(getattr(torchvision.datasets, name), name, root, split)
        self.in_memory = hasattr(getattr(self._data, "data", None), "shape")
        labels = _labels_of(self._data)
        classes = getattr(self._data, "classes", None) or [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
        names = ["/".join(c) if isinstance(c, tuple) else str(c) for c in classes]
        # ImageNet has two classes "crane", a bird and a machine.
        class_names = tuple(name if names.count(name) == 1 else f"{name} #{i}" for i, name in enumerate(names))
        paths = [f"{name}/{split}/{row:07d}" for row in range(len(self._data))]
        self.rows = SplitRows(labels=labels, paths=paths, class_names=class_names)

    def open(self, row: int) -> Image.Image:
        """Return the image of a row."""
        try:
            return to_rgb(self._data[row][0])
        except Exception as error:  # decoders raise builtin errors of many kinds
            raise ImageError(f"{self.rows.paths[row]}: cannot be read as an image: {error}") from error


class DigitsSource:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,200 to train, 597 to validate.

    They come with scikit-learn (the test part of UCI's Optical Recognition of Handwritten Digits).
    """

    in_memory = True
    NUM_TRAIN = 1200

    def __init__(self, split: str) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        part = {"train": slice(0, self.NUM_TRAIN), "val": slice(self.NUM_TRAIN, None)}.get(split)
        if part is None:
            raise DataError(f"digits has no split {split!r}; it has train and val")
        self._images = (digits.images[part] * (255 / 16)).round().astype(np.uint8)
        first = part.start
        self.rows = SplitRows(
            labels=digits.target[part].astype(np.int64),
            paths=[f"digits/{first + row:04d}" for row in range(len(self._images))],
            class_names=tuple(str(name) for name in digits.target_names),
        )

    def open(self, row: int) -> Image.Image:
        """Return the image of a row."""
        return Image.fromarray(self._images[row]).convert("RGB")


def open_sources(
    *,
    source: str,
    root: Path | None = None,
    dataset: str | None = None,
    train_split: str = "train",
    val_split: str = "val",
    on_class_fault: str = "stop",
) -> dict[str, ImageSource]:
    """List both splits of a dataset.

    Returns
    -------
    dict of str to ImageSource
        `train`, the database, and `val`, the queries, whatever their own names are.

    Raises
    ------
    DataError
        If something is missing or empty, or a class of val is not in train.
    """
    names = {"train": train_split, "val": val_split}
    if train_split == val_split:
        raise DataError(
            f"train and val are both {val_split!r}: every image would be its own neighbour. Name two splits."
        )
    sources: dict[str, ImageSource]
    if source == "digits":
        sources = {split: DigitsSource(name) for split, name in names.items()}
    elif root is None:
        raise DataError("no images: say where they are with --data FOLDER (data.root)")
    elif not root.is_dir():
        raise DataError(
            f"{root}: no such folder. Give the folder that holds {train_split}/ and {val_split}/ with --data"
        )
    elif source == "torchvision":
        if dataset is None:
            raise DataError(
                "say which of torchvision's data sets to read with data.dataset, such as data.dataset=CIFAR10"
            )
        sources = {split: TorchvisionSource(dataset, root, name) for split, name in names.items()}
    else:
        for split, name in names.items():
            if not (root / name).is_dir():
                raise DataError(
                    f"{root / name}: no such folder, wanted as the {split} split. {root} holds {_contents(root)}. "
                    f"Say which folder it is with --{split}-split NAME."
                )
        sources = {split: FolderSource(root, name, on_class_fault=on_class_fault) for split, name in names.items()}
    _compare_classes(sources["train"].rows, sources["val"].rows, on_class_fault)
    return sources


def _compare_classes(train: SplitRows, val: SplitRows, on_class_fault: str) -> None:
    def used(rows: SplitRows) -> set[str]:
        return {rows.class_names[label] for label in np.unique(rows.labels) if label >= 0}

    only_val, only_train = sorted(used(val) - used(train)), sorted(used(train) - used(val))
    if only_train and used(val):
        logger.warning("classes of train without an image in val: %s", some(only_train, show=8))
    if only_val and used(train):
        text = f"classes of val without an image in train, which can never be right: {some(only_val, show=8)}" + (
            f" (train alone has {some(only_train, show=8)})" if only_train else ""
        )
        if on_class_fault == "stop":
            raise DataError(f"{text}. Rename or remove the folders, or go on with data.on_class_fault=warn.")
        logger.warning("%s; they count as wrong", text)


def _images_below(root: Path, folder: Path, *, recurse: bool = True) -> tuple[list[str], list[int], int]:
    """Images below a folder, as paths relative to `root`, their sizes, and how many other files there are."""
    found: list[str] = []
    sizes: list[int] = []
    ignored = 0
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS):
                path = os.path.join(parent, name)  # noqa: PTH118 (a million times)
                found.append(os.path.relpath(path, root))
                sizes.append(_size(path))
            elif not name.startswith("."):
                ignored += 1
        if not recurse:
            break
    return found, sizes, ignored


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (a million times)
    except OSError:  # a broken link: reading it will say so
        return -1


def _torchvision_split(factory: Any, name: str, root: Path, split: str) -> Any:
    """Open a data set by whichever of `train=` and `split=` its constructor takes."""
    import inspect

    parameters = inspect.signature(factory).parameters
    options: dict[str, Any] = {}
    if "train" in parameters:
        options["train"] = {"train": True, "val": False, "test": False}.get(split)
        if options["train"] is None:
            raise DataError(f"{name} has the splits train and test; got {split!r}")
    elif "split" in parameters:
        options["split"] = split
    else:
        raise DataError(
            f"torchvision's {name} has no splits, so train and val would be the same images. Put its images into "
            f"folders, train/<class>/ and val/<class>/, and use data.source=folder."
        )
    if "download" in parameters:
        options["download"] = False
    try:
        return factory(root, **options)
    except ValueError as error:
        raise DataError(f"{name} has no split {split!r}: {error}") from error
    except TypeError as error:
        raise DataError(f"torchvision's {name} needs more than a folder and a split: {error}") from error
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{root}: the files of torchvision's {name} are not there ({error}). Put them there, for instance with "
            f"`python -c \"import torchvision; torchvision.datasets.{name}('{root}', download=True)\"`."
        ) from error


def _labels_of(data: Any) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    for name in ("targets", "labels", "_labels", "y"):
        labels = getattr(data, name, None)
        if labels is not None:
            return np.asarray(labels, dtype=np.int64).reshape(-1)
    return np.array([data[row][1] for row in range(len(data))], np.int64)


def _contents(folder: Path) -> str:
    entries = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    return some(entries, show=8) if entries else "nothing"
