"""The images of a feature set, opened again where they were extracted from, or where they are now.

Features do not hold images. Their manifest has the data set's settings, by which its own sources are opened; images in
a folder are opened by their paths alone, without listing the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from featbench.extract.data.images import read_picture
from featbench.extract.data.pictures import Picture
from featbench.extract.errors import ImageError
from featbench.pipelines.extraction.sources import recorded_sources
from featbench.store import FeatureSet

IN_FOLDERS = ("folder", "filelist", "layout")
"""Kinds of sources whose images may be files below a folder."""


class Images(Protocol):
    """Images of one split by row."""

    def read(self, row: int) -> Picture:
        """Return the picture of a row, or raise BenchError."""


@dataclass(frozen=True, slots=True)
class FolderImages:
    """Files below a folder."""

    root: Path
    paths: list[str]

    def read(self, row: int) -> Picture:
        """Decode the file of a row.

        Raises
        ------
        ImageError
            If it is not below the folder, or can't be read.
        """
        path = self.root / self.paths[row]
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ImageError(f"{path}: outside of {self.root}")
        return read_picture(path, name=str(path))


def images_of(features: FeatureSet, folder: Path | None) -> Mapping[str, Images]:
    """Open the images of the splits of a feature set.

    Parameters
    ----------
    features : FeatureSet
        Knows where its images were.
    folder : Path, optional
        Where they are now.

    Raises
    ------
    BenchError
        If they are not known, or gone; the message says why.
    """
    splits = tuple(features.manifest.splits)
    settings = features.manifest.notes.get("pipeline")
    data: dict[str, Any] = dict(settings["data"]) if isinstance(settings, dict) and "data" in settings else {}
    if not data and folder is None:
        raise ImageError(
            "the features were imported, so where their images are is not known; name the folder that their paths are "
            "relative to with --data"
        )
    root = folder if folder is not None else data.get("root")
    if (not data or data.get("source") in IN_FOLDERS) and root is not None:
        found = {split: FolderImages(Path(root), features.paths(split)) for split in splits}
        if all(_has_one(each) for each in found.values()):
            return found
        if not data or not Path(root).exists():
            raise ImageError(f"there are no images in {root}; name the folder that has them now with --data")
    return _sources(features, data, folder)


def _has_one(images: FolderImages) -> bool:
    """Whether the first images, or any of them, are there."""
    return any((images.root / path).is_file() for path in images.paths[:20])


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


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """Scale an image down so that it fits into a square; smaller ones stay, tiny ones are enlarged without blur."""
    if max(image.size) <= side // 3:
        times = side // max(image.size)
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return small
