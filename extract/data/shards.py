"""WebDataset shards: tar archives in which files of the same name with different endings are one sample.

A sample has an image (`.jpg`, `.png`, ...) and a label: `.cls`, a number or a name, or `.json` with `label`.
Rows are in the order of the shards. The tar's headers are read once and images are read in place, so
the `webdataset` package is not needed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path

import numpy as np

from featbench.extract.data.archives import Member, members, read_member
from featbench.extract.data.filelists import numbered
from featbench.extract.data.folders import note_leavings
from featbench.extract.data.images import EXTENSIONS, is_leaving
from featbench.extract.data.list_formats import read_classes
from featbench.extract.data.listing import Entries, Listing, first_duplicate
from featbench.extract.data.listing_cache import stamp_of
from featbench.extract.errors import DataError
from featbench.store import abbreviate
from featbench.store.documents import DocumentError, parse_json

MAX_LABEL_BYTES = 2**24
"""Largest text of a label, in bytes."""

LABEL_KEYS = ("label", "cls", "class", "target")


def find_shards(root: Path, split: str) -> list[Path]:
    """Shards of a split: `<split>*.tar` in the root, `*.tar` in its folder, or a pattern such as `val-{000..049}.tar`.

    Raises
    ------
    DataError
        If there are none, or one that the braces name is missing.
    """
    patterns = _braces(split) if re.search(r"[{*?\[]", split) else [f"{split}*.tar", f"{split}/*.tar"]
    found = {pattern: sorted(root.glob(pattern)) for pattern in patterns}
    missing = [pattern for pattern, shards in found.items() if not shards]
    if len(missing) == len(patterns) or (missing and "{" in split):
        there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        raise DataError(
            f"{root}: no shards {abbreviate(missing)}. It contains {abbreviate(there, show=8) or 'nothing'}. Name the "
            f"splits' shards with --train-split and --val-split, such as 'train-{{0000..0146}}.tar'."
        )
    return [shard for shards in found.values() for shard in shards]


def list_shards(shards: Sequence[Path], *, root: Path, classes: Path | None = None) -> Listing:
    """List the samples of some shards.

    Parameters
    ----------
    shards : sequence of Path
        Tar archives.
    root : Path
        Folder that the rows' paths are relative to.
    classes : Path, optional
        Names of the classes that the labels count, one a line.

    Raises
    ------
    DataError
        If a sample has two images or none, or only some have a label.
    """
    entries = Entries()
    labels: list[str] = []
    num_leavings = 0
    watched = [(str(path), *stamp_of(path)) for path in (*shards, classes) if path is not None]
    for number, shard in enumerate(shards):
        inner = str(shard.relative_to(root)) if shard.is_relative_to(root) else shard.name
        with shard.open("rb") as file:
            there = list(members(shard))
            wanted = [member for member in there if not any(map(is_leaving, member.path.split("/")))]
            num_leavings += len(there) - len(wanted)
            for key, parts in groupby(wanted, key=lambda member: _key(member.path)):
                sample = list(parts)
                image = _image(shard, key, sample)
                entries.add(f"{inner}/{image.path}", size=image.size, label=-1, start=image.start, archive=number)
                label = _label(shard, key, sample, file.fileno())
                if label is not None:
                    labels.append(label)
    note_leavings(f"{shards[0]}, ...", num_leavings)
    if labels and len(labels) != len(entries):
        raise DataError(
            f"{shards[0]}, ...: {len(entries):,} samples, {len(labels):,} of them with a label (.cls, or .json with "
            f"{', '.join(LABEL_KEYS)}). All must have one, or none."
        )
    known = read_classes(classes) if classes is not None else None
    numbers, names = numbered(labels, known, where=shards[0]) if labels else (np.full(len(entries), -1), known or ())
    listing = entries.listing(labels=numbers, class_names=names, archives=map(str, shards), watched=watched)
    if not len(listing):
        raise DataError(f"{shards[0]}, ...: no samples in {len(shards)} shard(s)")
    twice = first_duplicate(listing.paths)
    if twice is not None:
        raise DataError(f"{twice} occurs twice. Make the shards again: each sample is one row.")
    return listing


def _key(path: str) -> str:
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.partition(".")[0])


def _image(shard: Path, key: str, sample: Sequence[Member]) -> Member:
    images = [member for member in sample if member.path.lower().endswith(EXTENSIONS)]
    if len(images) != 1:
        raise DataError(
            f"{shard}: sample {key!r} has {len(images)} images; expected one. A sample is all files of one name up to "
            f"the first dot; here: {abbreviate([member.path for member in sample], show=5)}."
        )
    return images[0]


def _label(shard: Path, key: str, sample: Sequence[Member], descriptor: int) -> str | None:
    for member in sample:
        ending = member.path[len(key) :].lower()
        if ending not in (".cls", ".cls.txt", ".json"):
            continue
        if member.size > MAX_LABEL_BYTES:
            raise DataError(f"{shard}: {member.path} has {member.size:,} bytes, more than a label can have")
        text = read_member(shard, descriptor, start=member.start, size=member.size).decode(errors="replace").strip()
        if ending != ".json":
            return text
        try:
            facts = parse_json(text, where=member.path)
        except DocumentError as error:
            raise DataError(f"{shard}: {error}") from error
        label = next((facts[name] for name in LABEL_KEYS if name in facts), None) if isinstance(facts, dict) else facts
        if label is not None:
            return str(label)
    return None


def _braces(pattern: str) -> list[str]:
    """Expand braces.

    Examples
    --------
    >>> _braces("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [list(_choices(piece)) if at % 2 else [piece] for at, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inner: str) -> Iterator[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if span is None:
        yield from inner.split(",")
        return
    for number in range(int(span[1]), int(span[2]) + 1):
        yield str(number).zfill(len(span[1]))
