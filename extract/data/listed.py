"""Sources of listed images, in files of their own or in archives, and parts of sources."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from extract.data.archives import read_member
from extract.data.images import read_rgb
from extract.data.kept import stamp_of
from extract.data.labels import with_labels
from extract.data.listing import ChangedError, Ints, Listing, Paths
from store import SplitRows


class ImageSource(Protocol):
    """One split. `open` may be called from several processes, in any order."""

    rows: SplitRows
    in_memory: bool
    """Whether `open` costs next to nothing, so that no extra process need do it."""

    def open(self, row: int) -> Image.Image:
        """Return the image of a row in mode RGB, or raise ImageError."""
        ...


class ListedSource:
    """Images that a listing names, in files of their own or in archives.

    An image that is not the one that was listed stops the run, since its features would be those of
    another dataset than the fingerprint says.
    """

    in_memory = False

    def __init__(self, listing: Listing, root: Path, *, kept: Path | None = None) -> None:
        self._listing = listing
        self._root = root
        self._kept = kept
        names = (name.encode(errors="surrogateescape").decode(errors="replace") for name in listing.class_names)
        self.rows = SplitRows(labels=listing.labels, paths=listing.paths, class_names=tuple(names), sizes=listing.sizes)

    def open(self, row: int) -> Image.Image:
        """Decode the image of a row.

        Raises
        ------
        ImageError
            If it can't be read.
        ChangedError
            If the file, or the archive that holds it, has changed or gone since it was listed.
        """
        listing = self._listing
        size = int(listing.sizes[row])
        path = self._root / listing.paths[row]
        if not len(listing.archives):
            if size >= 0:
                self._check(path, (int(listing.changed[row]), size))
            return read_rgb(path, name=str(path))
        number = int(listing.archive[row])
        archive = Path(listing.archives[number])
        self._check(archive, tuple(listing.stamps[number].tolist()))
        with archive.open("rb") as file:
            content = read_member(archive, file.fileno(), start=int(listing.starts[row]), size=size)
        return read_rgb(io.BytesIO(content), name=f"{archive}: {listing.paths[row]}")

    def labelled(self, labels: Path, class_names: Sequence[str]) -> ListedSource:
        """Return the same images with labels from a list; see `extract.data.labels`."""
        return ListedSource(with_labels(self._listing, labels, class_names), self._root, kept=self._kept)

    def _check(self, path: Path, listed: tuple[int, ...]) -> None:
        found = stamp_of(path)
        if found == listed:
            return
        if self._kept is not None:
            self._kept.unlink(missing_ok=True)
        was = f"it was listed with {listed[1]:,} bytes"
        now = "is gone" if found[1] < 0 else f"has {found[1]:,} bytes and was changed since"
        raise ChangedError(
            f"{path}: {was} and {now}. Put it back, or run the same command again: the images are listed anew, and "
            f"features of what they were are refused."
        )


class SubsetSource:
    """Some rows of another source."""

    def __init__(self, source: ImageSource, chosen: Ints) -> None:
        rows = source.rows
        self._source = source
        self._chosen = chosen
        self.in_memory = source.in_memory
        paths = rows.paths
        self.rows = SplitRows(
            labels=rows.labels[chosen],
            paths=paths.take(chosen) if isinstance(paths, Paths) else [paths[row] for row in chosen.tolist()],
            class_names=rows.class_names,
            sizes=np.asarray(rows.sizes)[chosen] if len(rows.sizes) else (),
        )

    def open(self, row: int) -> Image.Image:
        """Open the image of a row of the part."""
        return self._source.open(int(self._chosen[row]))
