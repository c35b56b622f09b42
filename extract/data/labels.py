"""Labels of a folder without class folders, such as ImageNet's val as it is distributed.

They are read from a list (a `.csv` such as Kaggle's LOC_val_solution.csv, or any list that
`featbench.extract.data.list_formats` reads), or from ImageNet's development kit: a list of 50,000 numbers, and a
table of which class each number means.
"""

from __future__ import annotations

import io
import logging
import lzma
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from featbench.extract.data.filelists import numbered
from featbench.extract.data.list_formats import FileList, read_list
from featbench.extract.data.listing import Listing
from featbench.extract.errors import DataError
from featbench.store import abbreviate
from featbench.store.documents import DocumentError, read_document
from featbench.store.typing import Ints

logger = logging.getLogger(__name__)

BESIDE = ("LOC_val_solution.csv", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz")
"""Files that are looked for in the root, or beside an archive, if no labels are given."""

GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"

MOST_BYTES = 2**26
"""Largest size of the development kit unpacked; the real one has 3 MB."""


def labels_in(root: Path) -> Path | None:
    """Labels of a flat val folder that are in the root, or beside it if it is an archive."""
    folder = root if root.is_dir() else root.parent
    return next((folder / name for name in BESIDE if (folder / name).exists()), None)


def with_labels(
    listing: Listing, source: Path, class_names: Sequence[str], *, label_column: str | None = None
) -> Listing:
    """Label the images of a flat folder by name, from a list or a development kit.

    Parameters
    ----------
    listing : Listing
        Without labels.
    source : Path
        A list, or the development kit: unpacked, or its `.tar.gz`.
    class_names : sequence of str
        Classes of the other split: labels are their names, or numbers that count them from 0.
    label_column : str, optional
        Which column of a `.csv` holds the labels.

    Raises
    ------
    DataError
        If an image has no label, or a label is no class of the other split.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder, given as the labels of images without class folders")
    is_devkit = source.is_dir() or source.name.endswith((".tar.gz", ".tgz", ".tar"))
    labels = (
        _by_devkit(listing, source) if is_devkit else _by_name(listing, read_list(source, label_column=label_column))
    )
    numbers, names = numbered(labels, class_names or None, where=source)
    return replace(listing, labels=numbers, class_names=names, facts=None)


def _by_name(listing: Listing, listed: FileList) -> Sequence[str]:
    if listed.labels is None:
        raise DataError(f"{listed.where}: expected a path and a label in each line; there is only one column")
    labels: dict[str, str] = {}
    for path, label in zip(listed.paths, listed.labels, strict=True):
        name = PurePosixPath(str(path)).name
        if labels.setdefault(name, str(label)) != str(label):
            raise DataError(
                f"{listed.where}: {name} has several labels: {labels[name]!r} and {str(label)!r}. Each image counts as "
                f"one class here: keep one of them."
            )
    stems: dict[str, str | None] = {}
    for name, label in labels.items():
        stem = PurePosixPath(name).stem
        stems[stem] = label if stems.get(stem, label) == label else None
    found = []
    for path in listing.paths:
        name = PurePosixPath(path).name
        label = labels.get(name, stems.get(PurePosixPath(name).stem))
        if label is None:
            raise DataError(f"{listed.where}: no label for {path}; it has {len(labels):,} labels")
        found.append(label)
    if len(labels) != len(found):
        logger.warning("%s: labels whose image is not there: %d", listed.where, len(labels) - len(found))
    return found


def _by_devkit(listing: Listing, devkit: Path) -> Sequence[str]:
    wnids = _wnids(_devkit_file(devkit, META), devkit)
    try:
        truth = [wnids[int(line)] for line in _devkit_file(devkit, GROUND_TRUTH).split()]
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{devkit}: {GROUND_TRUTH} does not hold one of {META}'s numbers in each line: {error}"
        ) from error
    found = []
    for path in listing.paths:
        number = re.search(r"_(\d{8})\.[A-Za-z]+$", path)
        if number is None or not 1 <= int(number[1]) <= len(truth):
            raise DataError(
                f"{path}: ImageNet's development kit has labels for ILSVRC2012_val_00000001 to {len(truth):08d}; "
                f"label other images with a list, data.val_labels=labels.csv"
            )
        found.append(truth[int(number[1]) - 1])
    if len(found) != len(truth):
        logger.warning("%s: labels whose image is not there: %d", devkit, len(truth) - len(found))
    return found


def _wnids(meta: bytes, devkit: Path) -> dict[int, str]:
    """WordNet id of each of the development kit's numbers, which are not in the order of the ids."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        numbers: Ints = np.array([int(each) for each in synsets["ILSVRC2012_ID"]], np.int64)
        return dict(zip(numbers.tolist(), map(str, synsets["WNID"]), strict=True))
    except Exception as error:  # scipy raises many kinds of errors for damaged files
        raise DataError(f"{devkit}: {META} is not that of ImageNet's development kit: {error}") from error


def _devkit_file(devkit: Path, name: str) -> bytes:
    try:
        if devkit.is_dir():
            return read_document(devkit / name, most_bytes=MOST_BYTES)
        with tarfile.open(devkit) as archive:
            return _member(archive, devkit, name)
    except (DocumentError, OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{devkit}: {name} cannot be read from ImageNet's development kit: {error}") from error


def _member(archive: tarfile.TarFile, devkit: Path, name: str) -> bytes:
    """Read one file of an archive whose unpacked size is limited to `MOST_BYTES`."""
    names, unpacked = [], 0
    for member in archive:
        names.append(member.name)
        unpacked += member.size
        if unpacked > MOST_BYTES:
            raise DataError(f"{devkit}: unpacks to more than {MOST_BYTES:,} bytes; ImageNet's development kit has 3 MB")
        if member.name.endswith(name) and (file := archive.extractfile(member)) is not None:
            return file.read()
    raise DataError(f"{devkit}: {name} is not in it; it has {abbreviate(names, show=5)}")
