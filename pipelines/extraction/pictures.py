"""The images of a feature set, read again to be looked at; they may be gone, and features may have none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from featbench.extract.data.images import read_picture
from featbench.extract.data.pictures import ImageSource, Picture
from featbench.pipelines.extraction.rebuilding import recorded_pipeline
from featbench.pipelines.extraction.sources import recorded_sources
from featbench.store import BenchError, FeatureSet, MismatchError


@dataclass(slots=True)
class Pictures:
    """Reads images of a feature set; where that is not possible, says why."""

    features: FeatureSet
    sources: dict[str, ImageSource] = field(default_factory=dict)
    root: Path | None = None
    """Folder that the paths of the feature set are relative to, if it has no sources."""

    reason: str = ""
    """Why there are no images at all; empty if there are."""

    paths: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, features: FeatureSet, root: Path | None = None) -> Pictures:
        """Find the images that a feature set was made from.

        Parameters
        ----------
        features : FeatureSet
            Extracted or imported.
        root : Path, optional
            Where the images are now; for imported features, the folder that their paths are relative to.
        """
        try:
            settings = recorded_pipeline(features)
        except MismatchError:
            reason = "" if root else "the features were not extracted by bench, so it does not know their images"
            return cls(features, root=root, reason=reason)
        try:
            return cls(features, recorded_sources(features, settings["data"], root))
        except BenchError as error:
            return cls(features, reason=str(error).splitlines()[0])

    def image(self, split: str, row: int) -> Image.Image:
        """Return the image of a row.

        Raises
        ------
        BenchError
            If it is gone, or is another one than the features were made from.
        """
        if self.reason:
            raise MismatchError(self.reason)
        if split not in self.paths:
            self.paths[split] = self.features.paths(split)
        path = self.paths[split][row]
        if self.root is not None:
            return read_picture(self.root / path, name=path).image
        rows = self.sources[split].rows
        if row >= len(rows.paths) or str(rows.paths[row]) != path:
            raise MismatchError(f"{path}: the data set has other images now")
        picture = self.sources[split].read(row)
        if not self._is_same(split, row, picture):
            raise MismatchError(f"{path}: the image has changed since its features were made")
        return picture.image

    def _is_same(self, split: str, row: int, picture: Picture) -> bool:
        if not self.features.has_digests(split):
            return True
        grid = self.features.grid(split)
        chunk = row // grid.rows_per_chunk
        stored = int(self.features.digests_chunk(split, chunk)[row - grid.rows(chunk).start])
        return stored in (0, picture.digest)


def rows_of_picture(features: FeatureSet, split: str, digest: int) -> list[int]:
    """Return the rows of a split whose image has this digest; none if digests are not stored."""
    if not features.has_digests(split):
        return []
    return [int(row) for row in np.flatnonzero(features.written_digests(split) == np.uint64(digest))]
