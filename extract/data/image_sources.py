"""Sources of listed images, in separate files or in archives, and subsets of sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from featbench.extract.data.archives import read_member
from featbench.extract.data.images import content_of, read_picture, refuse_to_blame_an_image
from featbench.extract.data.labels import with_labels
from featbench.extract.data.listing import Checks, Listing, Paths
from featbench.extract.data.listing_cache import stamp_of
from featbench.extract.data.listing_file import DamagedListingError
from featbench.extract.data.pictures import ImageSource, Picture, digest_of_bytes
from featbench.extract.errors import ChangedError, ImageError
from featbench.store import SplitRows
from featbench.store.typing import Ints


class ListedSource(ImageSource):
    """Images of a listing, in separate files or in archives.

    An image that has changed since it was listed stops the run, since its features would not be those
    of the dataset in the fingerprint.
    """

    in_memory = False

    def __init__(self, listing: Listing, root: Path, *, cached: Path | None = None, decoder: str = "pillow") -> None:
        self._listing = listing
        self._root = root
        self._cached = cached
        self._decoder = decoder
        names = (name.encode(errors="surrogateescape").decode(errors="replace") for name in listing.class_names)
        self.rows = SplitRows(
            labels=listing.labels,
            paths=listing.paths,
            class_names=tuple(names),
            sizes=listing.sizes,
            facts=listing.facts,
        )

    def read(self, row: int) -> Picture:
        """Decode the picture of a row.

        Raises
        ------
        ImageError
            If it can't be read.
        ChangedError
            If the file's size has changed since it was listed, or it no longer exists, or its archive
            has changed.
        """
        return read_picture(self._content(row), name=self._name(row), decoder=self._decoder)

    def digest(self, row: int) -> int:
        """Digest the bytes of a row's file; errors are those of `read`."""
        return digest_of_bytes(self._content(row))

    def changed(self) -> Ints:
        """Times of last change of the rows' files, or of their archives, when they were listed: ns, shape (N,)."""
        listing = self._listing
        return listing.stamps[listing.archive, 0] if len(listing.archives) else listing.changed

    def _content(self, row: int) -> bytes:
        listing = self._listing
        if listing.groups is not None:
            self._check_listing(listing.groups, row)
        size = int(listing.sizes[row])
        if not len(listing.archives):
            path = self._root / listing.paths[row]
            if size >= 0:
                self._check(path, size, stamp_of(path)[1])
            return content_of(path, name=str(path))
        number = int(listing.archive[row])
        archive = Path(listing.archives[number])
        if (found := stamp_of(archive)) != tuple(listing.stamps[number].tolist()):
            self._changed(archive, int(listing.stamps[number, 1]), found[1])
        try:
            with archive.open("rb") as file:
                return read_member(archive, file.fileno(), start=int(listing.starts[row]), size=size)
        except OSError as error:
            refuse_to_blame_an_image(error, name=self._name(row))
            raise ImageError(f"{self._name(row)}: cannot be read: {error.strerror or error}") from error

    def _name(self, row: int) -> str:
        listing = self._listing
        path = listing.paths[row]
        if len(listing.archives):
            return f"{listing.archives[int(listing.archive[row])]}: {path}"
        return str(self._root / path)

    def labelled(self, labels: Path, class_names: Sequence[str], *, label_column: str | None = None) -> ListedSource:
        """Return the same images with labels from a list; see `featbench.extract.data.labels`."""
        listing = with_labels(self._listing, labels, class_names, label_column=label_column)
        return ListedSource(listing, self._root, cached=self._cached, decoder=self._decoder)

    def _check_listing(self, groups: Checks, row: int) -> None:
        try:
            groups.check(row)
        except DamagedListingError as error:
            if self._cached is not None:
                self._cached.unlink(missing_ok=True)
            raise ChangedError(
                f"{self._cached}: the cached listing is damaged: {error}. It was removed. Run the same command again: "
                f"the images are listed again."
            ) from error

    def _check(self, path: Path, listed: int, found: int) -> None:
        """Compare sizes; the time of change alone does not count, since the digest decides."""
        if found != listed:
            self._changed(path, listed, found)

    def _changed(self, path: Path, listed: int, found: int) -> NoReturn:
        if self._cached is not None:
            self._cached.unlink(missing_ok=True)
        was = f"it was listed with {listed:,} bytes"
        now = "is gone" if found < 0 else f"has {found:,} bytes and was changed since"
        raise ChangedError(
            f"{path}: {was} and {now}. Restore it, or run the same command again: the images are listed again, and "
            f"features of the old images are refused."
        )


class SubsetSource(ImageSource):
    """A subset of the rows of another source."""

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

    def read(self, row: int) -> Picture:
        """Return the picture of a row of the subset."""
        return self._source.read(int(self._chosen[row]))

    def digest(self, row: int) -> int:
        """Return the digest of a row of the subset."""
        return self._source.digest(int(self._chosen[row]))

    def changed(self) -> Ints:
        """Times of last change of the rows' files when they were listed; see `ImageSource`."""
        return self._source.changed()[self._chosen]
