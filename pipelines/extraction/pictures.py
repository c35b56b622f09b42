"""The images of a feature set, opened again to be looked at: where they were extracted from, or where they are now.

Features do not hold images. Their manifest has the data set's settings, by which its own sources are opened; images in
a folder are opened by their paths alone, without listing the folder. An image that has changed since is not shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from featbench.extract.data.images import read_picture
from featbench.extract.data.pictures import Picture
from featbench.extract.errors import ImageError
from featbench.pipelines.extraction.sources import recorded_sources
from featbench.store import BenchError, FeatureSet, MismatchError
from featbench.store.paths import DIGESTS
from featbench.store.typing import UInt64s

IN_FOLDERS = ("folder", "filelist", "layout")
"""Kinds of sources whose images may be files below a folder."""


class ChangedError(MismatchError):
    """An image that is not the one that features were made from."""


class Images(Protocol):
    """Images of one split by row."""

    def read(self, row: int) -> Picture:
        """Return the picture of a row, or raise BenchError."""


@dataclass(frozen=True, slots=True)
class FolderImages:
    """Files below a folder."""

    root: Path
    paths: list[str]

    def has_any(self) -> bool:
        """Whether one of the first images is there."""
        return any(_is_below(path) and (self.root / path).is_file() for path in self.paths[:20])

    def read(self, row: int) -> Picture:
        """Decode the file of a row.

        Raises
        ------
        ImageError
            If it is not below the folder, or can't be read.
        """
        path = self.paths[row]
        if not _is_below(path):  # the feature set may come from someone else
            raise ImageError(f"{path}: outside of {self.root}")
        return read_picture(self.root / path, name=path)


def _is_below(path: str) -> bool:
    """Whether a path leads nowhere else than below the folder that it is relative to; links in there are the user's."""
    return not PurePath(path).is_absolute() and ".." not in PurePath(path).parts


def images_of(features: FeatureSet, folder: Path | None, *, option: str = "--images") -> Mapping[str, Images]:
    """Open the images of the splits of a feature set.

    Parameters
    ----------
    features : FeatureSet
        Knows where its images were.
    folder : Path, optional
        Where they are now; for imported features, the folder that their paths are relative to.
    option : str
        Option that names the folder, for messages.

    Raises
    ------
    BenchError
        If they are not known, or gone; the message says why.
    """
    settings = features.manifest.notes.get("pipeline")
    data: dict[str, Any] = dict(settings["data"]) if isinstance(settings, dict) and "data" in settings else {}
    if not data and folder is None:
        raise ImageError(
            "the features were not extracted by bench, so it does not know their images; name the folder that their "
            f"paths are relative to with {option}"
        )
    root = folder if folder is not None else data.get("root")
    if (not data or data.get("source") in IN_FOLDERS) and root is not None:
        found = {split: FolderImages(Path(root), features.paths(split)) for split in features.manifest.splits}
        is_there = [each.has_any() for each in found.values()]
        if all(is_there) or (any(is_there) and not data):
            return found
        if not data or not Path(root).exists():
            raise ImageError(f"there are no images in {root}; name the folder that has them now with {option}")
    return _sources(features, data, folder)


def _sources(features: FeatureSet, data: Mapping[str, Any], folder: Path | None) -> Mapping[str, Images]:
    """Open the data set by its own settings; its rows must be those of the features."""
    found: dict[str, Images] = {}
    for split, source in recorded_sources(features, data, folder).items():
        if split not in features.manifest.splits:
            continue
        if list(source.rows.paths) != features.paths(split):
            raise ImageError(f"the data set's {split} has other images now")
        found[split] = source
    return found


@dataclass(slots=True)
class Pictures:
    """Reads images of a feature set; where that is not possible, says why."""

    features: FeatureSet
    images: Mapping[str, Images] = field(default_factory=dict)
    reason: str = ""
    """Why there are no images at all; empty if there are."""

    _digests: dict[tuple[str, int], UInt64s] = field(default_factory=dict)
    """By split and chunk, of those chunks that were needed."""

    @classmethod
    def of(cls, features: FeatureSet, root: Path | None = None, *, option: str = "--images") -> Pictures:
        """Find the images that a feature set was made from; parameters are those of `images_of`."""
        try:
            return cls(features, images_of(features, root, option=option))
        except (BenchError, OSError) as error:
            return cls(features, reason=str(error).splitlines()[0])

    def image(self, split: str, row: int) -> Image.Image:
        """Return the image of a row.

        Raises
        ------
        ChangedError
            If it is another one than the features were made from.
        BenchError
            If it is gone.
        """
        if split not in self.images:
            raise MismatchError(self.reason or f"the data set has no {split}")
        picture = self.images[split].read(row)
        if self._digest(split, row) not in (0, picture.digest):
            raise ChangedError(f"{picture.name}: the image has changed since its features were made")
        return picture.image

    def _digest(self, split: str, row: int) -> int:
        """Digest of the image of a row; 0 where none is stored."""
        if not self.features.has_digests(split):
            return 0
        grid = self.features.grid(split)
        chunk = row // grid.rows_per_chunk
        if (split, chunk) not in self._digests:
            is_written = self.features.is_committed(split, DIGESTS)[chunk]
            none = np.zeros(len(grid.rows(chunk)), np.uint64)
            self._digests[split, chunk] = self.features.digests_chunk(split, chunk) if is_written else none
        return int(self._digests[split, chunk][row - grid.rows(chunk).start])


def rows_of_picture(features: FeatureSet, split: str, digest: int) -> list[int]:
    """Return the rows of a split whose image has this digest; none if digests are not stored."""
    if not features.has_digests(split):
        return []
    return [int(row) for row in np.flatnonzero(features.written_digests(split) == np.uint64(digest))]
