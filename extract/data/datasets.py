"""Data sets of other libraries: torchvision's, Hugging Face's, scikit-learn's digits.

torchvision's data sets are never downloaded, and the digits come with scikit-learn. Hugging Face's
library downloads what is not in its cache, unless HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featbench.extract.data.images import content_of, read_picture, refuse_to_blame_an_image, to_rgb
from featbench.extract.data.listing import Entries, Listing
from featbench.extract.data.listing_cache import stamp_of
from featbench.extract.data.pictures import ImageSource, Picture, digest_of_bytes, digest_of_pixels
from featbench.extract.errors import DataError, ImageError
from featbench.store import SplitRows, abbreviate, suggest
from featbench.store.typing import Ints


class TorchvisionSource(ImageSource):
    """One of torchvision's data sets, whose files are already on disk."""

    def __init__(self, data: Any, name: str, split: str) -> None:
        self._data = data
        self.in_memory = hasattr(getattr(data, "data", None), "shape")
        labels = _labels_of(data, name)
        paths = [f"{name}/{split}/{row:07d}" for row in range(len(data))]
        self.rows = SplitRows(labels=labels, paths=paths, class_names=_class_names(data, labels))

    def read(self, row: int) -> Picture:
        """Return the picture of a row; its digest is that of its pixels."""
        name = self.rows.paths[row]
        try:
            image = to_rgb(self._data[row][0])
        except Exception as error:  # decoders raise builtin errors of many kinds
            refuse_to_blame_an_image(error, name=name)
            raise ImageError(f"{name}: cannot be read as an image: {error}") from error
        return Picture(image=image, digest=digest_of_pixels(image), name=name)


class DigitsSource(ImageSource):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,200 to train, 597 to validate.

    They come with scikit-learn (the test part of UCI's Optical Recognition of Handwritten Digits).
    """

    in_memory = True
    NUM_TRAIN = 1200

    def __init__(self, split: str) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        rows = {"train": slice(0, self.NUM_TRAIN), "val": slice(self.NUM_TRAIN, None)}.get(split)
        if rows is None:
            raise DataError(f"digits has no split {split!r}; it has train and val")
        self._images = (digits.images[rows] * (255 / 16)).round().astype(np.uint8)
        first = rows.start
        self.rows = SplitRows(
            labels=digits.target[rows].astype(np.int64),
            paths=[f"digits/{first + row:04d}" for row in range(len(self._images))],
            class_names=tuple(str(name) for name in digits.target_names),
        )

    def read(self, row: int) -> Picture:
        """Return the picture of a row; its digest is that of its pixels."""
        image = Image.fromarray(self._images[row]).convert("RGB")
        return Picture(image=image, digest=digest_of_pixels(image), name=self.rows.paths[row])


class HuggingFaceSource(ImageSource):
    """One split of a data set that Hugging Face's `datasets` reads: from the hub, a folder, or `save_to_disk`."""

    in_memory = False

    def __init__(
        self,
        name: str | None,
        root: Path | None,
        split: str,
        options: Mapping[str, Any],
        *,
        label_column: str | None = None,
        decoder: str = "pillow",
    ) -> None:
        datasets = _import_datasets()
        data = _load(datasets, name, root, split, options)
        images = [column for column, kind in data.features.items() if isinstance(kind, datasets.Image)]
        if not images:
            raise DataError(f"{name or root}: no column of images; it has {abbreviate(list(data.features), show=8)}")
        if len(images) > 1:
            raise DataError(
                f"{name or root}: several columns of images: {abbreviate(images, show=8)}. Keep one of them in a data "
                f"set of its own (`remove_columns`, then `save_to_disk`)."
            )
        self._column = images[0]
        self._decoder = decoder
        labels = _label_column(datasets, data, label_column, where=str(name or root))
        self._data = data.cast_column(self._column, datasets.Image(decode=False))
        numbers, names = _labels_and_names(data, labels, where=str(name or root))
        paths = [f"{split}/{row:07d}" for row in range(len(data))]
        self.rows = SplitRows(labels=numbers, paths=paths, class_names=names, sizes=_lengths(self._data, self._column))
        self._name = f"{name or root}"

    def read(self, row: int) -> Picture:
        """Decode the picture of a row."""
        return read_picture(self._content(row), name=self._name_of(row), decoder=self._decoder)

    def digest(self, row: int) -> int:
        """Digest the stored bytes of a row."""
        return digest_of_bytes(self._content(row))

    def _content(self, row: int) -> bytes:
        stored = self._data[row][self._column]
        if stored is None:
            raise ImageError(f"{self._name_of(row)}: cannot be read as an image: this row has none")
        if stored["bytes"] is None:
            return content_of(Path(stored["path"]), name=self._name_of(row))
        return bytes(stored["bytes"])

    def _name_of(self, row: int) -> str:
        return f"{self._name}: {self.rows.paths[row]}"


def torchvision_data(name: str, root: Path, split: str, options: Mapping[str, Any]) -> Any:
    """Open one split of one of torchvision's data sets.

    Raises
    ------
    DataError
        If there is no data set of that name, its files are missing, or it has no such split.
    """
    import torchvision

    known = [n for n in torchvision.datasets.__all__ if n not in ("FakeData", "VisionDataset")]
    if name not in known:
        raise DataError(f"unknown torchvision data set {name!r}. {suggest(name, known)}")
    factory = getattr(torchvision.datasets, name)
    parameters = inspect.signature(factory).parameters
    chosen: dict[str, Any] = dict(options)
    if "train" in parameters:
        chosen["train"] = {"train": True, "val": False, "test": False}.get(split)
        if chosen["train"] is None:
            raise DataError(f"{name} has the splits train and test; got {split!r}")
    elif "split" in parameters:
        chosen["split"] = split
    else:
        raise DataError(
            f"torchvision's {name} has no splits, so train and val would be the same images. Put its images into "
            f"folders, train/<class>/ and val/<class>/, and use data.source=folder."
        )
    if "download" in parameters:
        chosen["download"] = False
    try:
        return factory(root, **chosen)
    except ValueError as error:
        raise DataError(f"{name} has no split {split!r}: {error}") from error
    except TypeError as error:
        raise DataError(f"torchvision's {name} does not take {chosen} (data.options): {error}") from error
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{root}: expected the files of torchvision's {name}; {_what_is_in(root)} ({error}). If it is a folder of "
            f"images, add data.source=folder. Otherwise put the data set there, for instance with "
            f"`python -c \"import torchvision; torchvision.datasets.{name}('{root}', download=True)\"`."
        ) from error


def _what_is_in(root: Path, *, show: int = 4) -> str:
    found = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir()) if root.is_dir() else []
    return f"it holds {abbreviate(found, show=show)}" if found else "it is empty"


def torchvision_listing(data: Any, root: Path) -> Listing | None:
    """List the files of a torchvision data set that has one for each image; None for others."""
    samples = next((s for s in (getattr(data, n, None) for n in ("samples", "_samples", "imgs")) if s), None)
    if not isinstance(samples, list) or not isinstance(samples[0], tuple):
        return None
    entries = Entries()
    base = str(root).rstrip("/") + "/"
    for path, label in samples:
        changed, size = stamp_of(path)
        entries.add(str(path).removeprefix(base), size=size, changed=changed, label=-1 if label is None else label)
    return entries.listing(class_names=_class_names(data, np.array(entries.columns["labels"])))


def _class_names(data: Any, labels: Ints) -> tuple[str, ...]:
    classes = getattr(data, "classes", None) or [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    names = ["/".join(c) if isinstance(c, tuple) else str(c) for c in classes]
    # ImageNet has two classes "crane", a bird and a machine.
    return tuple(name if names.count(name) == 1 else f"{name} #{i}" for i, name in enumerate(names))


def _labels_of(data: Any, name: str) -> Ints:
    """Return a data set's labels: those that it lists, or else those that it returns with each image."""
    for attribute in ("targets", "labels", "_labels", "y"):
        labels = _whole_numbers(getattr(data, attribute, None))
        if labels is not None and len(labels) == len(data):
            return labels
    given = [data[row][1] for row in range(len(data))]
    labels = _whole_numbers(given)
    if labels is None:
        raise DataError(
            f"torchvision's {name} returns {_shown(given[0])} with an image: expected one integer, its class. "
            f"Perhaps data.options can change that, such as target_type; otherwise list the images and their classes "
            f"in a file, with data.source=filelist."
        )
    return labels


def _whole_numbers(labels: Any) -> Ints | None:
    """Labels of shape (N,), -1 for None; None if they are not integers."""
    if labels is None:
        return None
    if isinstance(labels, list):
        labels = [-1 if label is None else label for label in labels]
    try:
        values = np.asarray(labels)
    except (ValueError, TypeError, RuntimeError):  # sequences of different lengths
        return None
    return values.astype(np.int64) if values.ndim == 1 and values.dtype.kind in "iub" else None


def _shown(value: Any) -> str:
    text = f"{value!r}"
    return f"{type(value).__name__} {text}" if len(text) < 60 else f"a {type(value).__name__}"


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data.source=huggingface needs Hugging Face's datasets: pip install 'featbench[huggingface]' ({error})"
        ) from error
    datasets.disable_progress_bars()
    return datasets


def _load(datasets: Any, name: str | None, root: Path | None, split: str, options: Mapping[str, Any]) -> Any:
    if name is None and root is None:
        raise DataError("say which data set: data.dataset=NAME on the hub, or --data FOLDER")
    where = name or str(root)
    try:
        if name is None and root is not None and (root / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(str(root))
            if split not in splits:
                raise DataError(f"{root}: no split {split!r}. {suggest(split, splits)}")
            return splits[split]
        data_dir = {"data_dir": str(root)} if name is not None and root is not None else {}
        return datasets.load_dataset(where, split=split, **data_dir, **options)
    except DataError:
        raise
    except Exception as error:  # errors of many kinds: no connection, no such data set, no such split
        raise DataError(f"{where}: Hugging Face's datasets can't read the split {split!r}: {error}") from error


def _label_column(datasets: Any, data: Any, named: str | None, *, where: str) -> str | None:
    """Return the column of labels; None if the user said that there is none."""
    columns: list[str] = list(data.features)
    choose = "Say which with data.label_column=NAME, or go on without labels with data.label_column=none."
    if named is not None:
        if named in columns:
            return named
        if named.lower() == "none":
            return None
        raise DataError(f"{where}: no column {named!r}. {suggest(named, columns)}")
    found: list[str] = [column for column, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)]
    found += [column for column in ("label", "labels") if column in columns and column not in found]
    if len(found) > 1:
        raise DataError(f"{where}: which column holds the labels: {' or '.join(found)}? {choose}")
    if not found:
        raise DataError(f"{where}: no column of labels is recognized; it has {abbreviate(columns, show=8)}. {choose}")
    return found[0]


def _labels_and_names(data: Any, column: str | None, *, where: str) -> tuple[Ints, tuple[str, ...]]:
    if column is None:
        return np.full(len(data), -1, np.int64), ()
    values = data.with_format(None)[column][:]
    odd = next((value for value in values if value is not None and not isinstance(value, (int, str))), None)
    if odd is not None:
        raise DataError(
            f"{where}: the column {column!r} holds {type(odd).__name__}, such as {str(odd)[:60]}: expected one whole "
            f"number or name for each image. Name another with data.label_column=NAME."
        )
    names = getattr(data.features[column], "names", None)
    if names is not None:
        return np.array([-1 if value is None else value for value in values], np.int64), tuple(names)
    present = sorted({value for value in values if value is not None and value not in ("", -1)})
    place = {value: number for number, value in enumerate(present)}
    return np.array([place.get(value, -1) for value in values], np.int64), tuple(map(str, present))


def _lengths(data: Any, column: str) -> Ints:
    """Bytes of each image, from the offsets; empty if rows were selected or the files are elsewhere."""
    import pyarrow.compute as pc

    stored = pc.struct_field(data.data.column(column), "bytes")
    if len(stored) != len(data) or stored.null_count:
        return np.empty(0, np.int64)
    return np.asarray(pc.binary_length(stored).to_numpy(), np.int64)
