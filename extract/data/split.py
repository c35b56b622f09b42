"""One split of a data set: paths and class names, and what most layouts are read by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featbench.extract.data.folders import DiskTree
from featbench.extract.data.several_formats import SeveralLabels
from featbench.extract.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images of a split."""

    paths: Sequence[str]
    labels: Sequence[str]
    """Name of each image's class."""

    files: tuple[Path, ...] = ()
    """Lists that this was read from."""

    classes: tuple[str, ...] | None = None
    """Names of all classes in their order; by default those that occur, sorted."""

    several: SeveralLabels | None = None
    """Instead of `labels`, if an image has any number of classes."""


Read = Callable[[Path, str], Split]
"""List one split, given the root and the split's name."""


def lines_of(file: Path) -> list[list[str]]:
    """Words of each line of a text file."""
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    return [line.split() for line in text.splitlines() if line.strip()]


def columns_of(file: Path, count: int) -> dict[str, str]:
    """The second word of each line by its first."""
    lines = lines_of(file)
    odd = next((number for number, words in enumerate(lines, start=1) if len(words) < count), None)
    if odd is not None:
        raise DataError(f"{file}: line {odd} has {len(lines[odd - 1])} words; expected at least {count}")
    found = {words[0]: words[1] for words in lines}
    if len(found) < len(lines):
        raise DataError(f"{file}: {len(lines) - len(found)} names are listed twice")
    return found


def class_folders(root: Path, tops: Sequence[str]) -> Split:
    """Class folders within one or more folders, sorted by class, then by name."""
    tree = DiskTree(root)
    rows = [
        (name, f"{image.folder}/{image.name}")
        for top in tops
        for name in sorted(tree.children(top)[0])
        for image in tree.images(f"{top}/{name}".lstrip("/"))[0]
    ]
    rows.sort()
    if not rows:
        raise DataError(f"{root}: no images in {', '.join(f'{top}/<class>' for top in tops)}")
    return Split(paths=[path for _, path in rows], labels=[name for name, _ in rows])


def folder_with(root: Path, names: Sequence[str]) -> Path:
    """The folder that has all of these files: the root, or the only one in it."""
    inner = [root, *(sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else [])]
    found = [folder for folder in inner if all((folder / name).exists() for name in names)]
    if not found:
        raise DataError(f"{root}: expected {', '.join(names)} there, or in one of its folders")
    return found[0]
