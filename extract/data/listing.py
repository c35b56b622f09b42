"""Listings: the images of a split, in a few arrays.

A million paths as Python strings take hundreds of megabytes, and every loading process would
gradually copy them, since reading a string changes its reference count. Here they are one array of
bytes with offsets, which processes share.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import numpy as np

from featbench.store import RowFacts
from featbench.store.typing import Bytes, Ints


class Paths(Sequence[str]):
    """Many paths in two arrays: bytes, and the offset at which each path ends.

    Names that are not UTF-8 are decoded as in Python's file functions (surrogateescape).

    Examples
    --------
    >>> Paths.of(["a/1.jpg", "b/2.jpg"])[1]
    'b/2.jpg'
    """

    def __init__(self, text: Bytes, ends: Ints) -> None:
        self.text = text
        self.ends = ends

    @classmethod
    def of(cls, paths: Iterable[str]) -> Paths:
        """Pack paths."""
        text, ends = bytearray(), array("q")
        for path in paths:
            text += path.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        start, text = 0, self.text.data
        for first in range(0, len(self), 10_000):  # without converting all offsets to Python integers
            for end in self.ends[first : first + 10_000].tolist():
                yield str(text[start:end], "utf-8", "surrogateescape")
                start = end

    def take(self, rows: Ints) -> Paths:
        """The paths of some rows, in their order."""
        starts = np.concatenate([[0], self.ends[:-1]])[rows]
        lengths = self.ends[rows] - starts
        ends = np.cumsum(lengths)
        within = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
        return Paths(self.text[np.repeat(starts, lengths) + within], ends)


class Checks(Protocol):
    """Checks rows of a listing before they are used."""

    def check(self, row: int) -> None:
        """Raise an error if the row is not what was written."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The images of a split in their order; all arrays have N rows."""

    paths: Paths
    """Relative to the root, or as given in a list."""

    sizes: Ints
    """Size of the image's file in bytes; -1 if there is none, such as for a broken link."""

    changed: Ints
    """Time of the file's last change in ns; 0 in an archive."""

    starts: Ints
    """Offset of a file in its archive; 0 for separate files."""

    archive: Ints
    """Index into `archives`."""

    labels: Ints
    """Index into `class_names`, or -1 where a row has no label."""

    class_names: tuple[str, ...]
    archives: Paths
    """Archives that contain the images; empty for separate files."""

    watched: Paths
    """Folders and files that change when the listing does: archives first, class folders, lists."""

    stamps: Ints
    """Shape (W, 2): time of last change in ns and size of each of `watched` when the split was listed."""

    facts: RowFacts | None = None
    """What was found out about all rows when the listing was cached."""

    groups: Checks | None = None
    """Checks the rows of a listing in a file that was not read as a whole."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(slots=True)
class Entries:
    """Images that are being listed."""

    text: bytearray = field(default_factory=bytearray)
    columns: dict[str, array[int]] = field(
        default_factory=lambda: {
            name: array("q") for name in ("ends", "sizes", "changed", "starts", "archive", "labels")
        }
    )

    def __len__(self) -> int:
        return len(self.columns["ends"])

    def add(self, path: str, *, size: int, label: int, changed: int = 0, start: int = 0, archive: int = 0) -> None:
        """Append one image."""
        columns = self.columns
        self.text += path.encode("utf-8", "surrogateescape")
        columns["ends"].append(len(self.text))
        columns["sizes"].append(size)
        columns["changed"].append(changed)
        columns["starts"].append(start)
        columns["archive"].append(archive)
        columns["labels"].append(label)

    def listing(
        self,
        *,
        class_names: Sequence[str] = (),
        archives: Iterable[str] = (),
        watched: Iterable[tuple[str, int, int]] = (),
        **replaced: Any,
    ) -> Listing:
        """Return the finished listing, in the memory of these entries; `watched` are (path, time in ns, size)."""
        columns = {name: np.frombuffer(values, np.int64) for name, values in self.columns.items()}
        paths = Paths(np.frombuffer(self.text, np.uint8), columns.pop("ends"))
        seen = list(watched)
        facts: dict[str, Any] = {
            "paths": paths,
            **columns,
            "class_names": tuple(class_names),
            "archives": Paths.of(archives),
            "watched": Paths.of(path for path, _, _ in seen),
            "stamps": np.array([stamp for _, *stamp in seen], np.int64).reshape(-1, 2),
        }
        return Listing(**(facts | replaced))


def hashes_of(paths: Sequence[str]) -> Ints:
    """Return Python's hash of each path: the same within a process, for equal paths."""
    return np.fromiter((hash(path) for path in paths), np.int64, len(paths))


def first_duplicate(paths: Paths) -> str | None:
    """Return a path that occurs twice, or None; takes 16 bytes for each path."""
    hashes = hashes_of(paths)
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    for at in equal.tolist():
        first, second = paths[int(order[at])], paths[int(order[at + 1])]
        if first == second:
            return first
    return None
