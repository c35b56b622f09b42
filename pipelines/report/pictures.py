"""Thumbnails for the page: each image is asked for any number of times, and is read and in the page once."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from featbench.pipelines.extraction.pictures import ChangedError
from featbench.pipelines.extraction.pictures import Pictures as CheckedPictures
from featbench.pipelines.report.evaluations import Source
from featbench.store import BenchError, FeatureSet
from featbench.store.names import visible

logger = logging.getLogger(__name__)

QUALITY = 62
"""Quality of WebP files, from 0 to 100."""

READERS = 4
"""Threads; most of their time is spent in decoders, outside of Python's lock."""

DEFAULT_BUDGET = 6_500_000
"""Bytes of all thumbnails as text, so that a page is below 10 MB, unless its size was chosen."""

Key = tuple[int, str, int]
"""Number of the data set, split and row."""


@dataclass(slots=True, kw_only=True)
class Pictures:
    """Images of the page, by place: path, class and thumbnail of each."""

    sources: Sequence[Source]
    side: int
    """Pixels of the longer side; 0 for none."""

    budget: int | None
    """Most bytes of all thumbnails as text; None for any."""

    folder: Path | None = None
    """Where images are now, if not where they were."""

    places: dict[Key, int] = field(default_factory=dict)
    _small: set[Key] = field(default_factory=set)
    _listings: dict[tuple[str, ...], int] = field(default_factory=dict)

    def place(self, source: Source, split: str, row: int, *, is_small: bool = False) -> int:
        """Ask for an image, and return its place; what is asked for first is read first.

        A small one has half the side, unless it is also asked for in full.
        """
        key = (self._number(source), split, int(row))
        if key not in self.places:
            self.places[key] = len(self.places)
            if is_small:
                self._small.add(key)
        elif not is_small:
            self._small.discard(key)
        return self.places[key]

    def _number(self, source: Source) -> int:
        """Number of the data set of a feature set: the same for all that have the same images."""
        splits = source.features.manifest.splits
        listing = tuple(splits[split].listing for split in sorted(splits))
        return self._listings.setdefault(listing, len(self._listings))

    def content(self) -> dict[str, Any]:
        """Read all that were asked for, and return the columns `path`, `split`, `label`, `row` and `picture`.

        `picture` is a place in `thumbnails`, or -1; `faults` has a sentence for each reason why one is missing.
        """
        columns: dict[str, list[Any]] = {name: [] for name in ("path", "split", "label", "row", "picture")}
        described = [_Described.of(self._first_source(number)) for number in range(len(self._listings))]
        thumbnails: dict[bytes, int] = {}
        faults: dict[str, int] = {}
        size = 0
        for (number, split, row), (image, fault) in zip(self.places, self._read(described), strict=True):
            of = described[number]
            columns["path"].append(visible(of.paths[split][row], keep=""))
            columns["split"].append(split)
            columns["label"].append(int(of.labels[split][row]))
            columns["row"].append(row)
            place = -1
            if image is not None and image in thumbnails:
                place = thumbnails[image]
            elif image is not None and self.budget is not None and size + 4 * len(image) // 3 > self.budget:
                fault = "left out to keep this file small: --thumbnail and --queries say how large it may be"
            elif image is not None:
                place = thumbnails.setdefault(image, len(thumbnails))
                size += 4 * len(image) // 3
            if fault is not None:
                faults[fault] = faults.get(fault, 0) + 1
            columns["picture"].append(place)
        texts = [f"data:image/webp;base64,{base64.b64encode(image).decode()}" for image in thumbnails]
        said = [f"{count:,} {'image' if count == 1 else 'images'} {fault}" for fault, count in faults.items()]
        return columns | {"thumbnails": texts, "faults": said, "side": self.side}

    def _first_source(self, number: int) -> Source:
        return next(source for source in self.sources if self._number(source) == number)

    def _read(self, described: Sequence[_Described]) -> Iterator[tuple[bytes | None, str | None]]:
        """Thumbnail of each image that was asked for, in order, or the reason why there is none."""
        if not self.side:
            yield from ((None, None) for _ in self.places)
            return
        logger.info("reading %s images", f"{len(self.places):,}")
        opened = [_opened(each.features, self.folder) for each in described]
        pending = iter(self.places)
        with ThreadPoolExecutor(READERS) as pool:
            while some := list(islice(pending, 256)):  # not all at once: they are large until they are scaled
                yield from pool.map(lambda key: _thumbnail(opened[key[0]], key[1], key[2], self._side(key)), some)

    def _side(self, key: Key) -> int:
        return max(1, self.side // 2) if key in self._small else self.side


@dataclass(frozen=True, slots=True)
class _Described:
    """Paths and labels of a data set."""

    features: FeatureSet
    paths: Mapping[str, Sequence[str]]
    labels: Mapping[str, Any]

    @classmethod
    def of(cls, source: Source) -> _Described:
        features = source.features
        labels = {
            each.split: each.by_row(features.split(each.split).num_rows)
            for each in (source.labels.train, source.labels.val)
            if each.split in features.manifest.splits
        }
        return cls(features, {split: features.paths(split) for split in features.manifest.splits}, labels)


def _opened(features: FeatureSet, folder: Path | None) -> CheckedPictures:
    """Open the images of a data set; if they are gone, warn."""
    found = CheckedPictures.of(features, folder, option="--data")
    if found.reason:
        logger.warning("%s: without pictures: %s", features.name, found.reason)
    return found


def _thumbnail(pictures: CheckedPictures, split: str, row: int, side: int) -> tuple[bytes | None, str | None]:
    """Read, check and scale one image."""
    if split not in pictures.images:
        return None, None
    try:
        image = pictures.image(split, row)
    except ChangedError:
        return None, "changed since the features were extracted, and are not shown"
    except (BenchError, OSError):
        return None, "can't be read any more"
    out = io.BytesIO()
    thumbnail(image, side).save(out, "WEBP", quality=QUALITY, method=4)
    return out.getvalue(), None


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """Scale an image down so that it fits into a square; smaller ones stay, tiny ones are enlarged without blur."""
    if max(image.size) <= side // 3:
        times = side // max(image.size)
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return small
