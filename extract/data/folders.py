"""Class folders, on disk or in an archive: the images of a split and their classes.

Classes are the folders in alphabetical order; rows are the images, sorted by folder and name within
the class, as in torchvision's ImageFolder, also in an archive. For images without class folders,
`featbench.extract.data.labels` finds the labels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from featbench.extract.data.archives import ENDINGS, members
from featbench.extract.data.images import EXTENSIONS, is_leaving
from featbench.extract.data.listing import Entries, Listing
from featbench.extract.data.listing_cache import stamp_of
from featbench.extract.errors import DataError
from featbench.store import abbreviate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a folder, and the location of its bytes."""

    folder: str
    name: str
    size: int
    changed: int = 0
    start: int = 0


class Tree(Protocol):
    """Folders and files, on disk or in an archive; paths are relative to it, with `/`."""

    archives: tuple[str, ...]
    """The archive's path, or none."""

    watched: list[tuple[str, int, int]]
    """What changes when the tree does, as far as it has been listed: (path, time of change in ns, size)."""

    num_leavings: int
    """Hidden and system files and folders that have been left out so far."""

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files directly in a folder, hidden ones left out."""
        ...

    def images(self, folder: str, *, recurse: bool = True) -> tuple[list[ImageFile], int]:
        """Images in a folder, in any order, and the number of other files."""
        ...


class DiskTree:
    """A folder on disk; links are followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.archives: tuple[str, ...] = ()
        self.watched: list[tuple[str, int, int]] = []
        self.num_leavings = 0

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files directly in a folder, hidden ones left out."""
        entries = [entry for entry in self._scan(folder) if not is_leaving(entry.name)]
        folders = [entry.name for entry in entries if _is_folder(entry)]
        return folders, [entry.name for entry in entries if not _is_folder(entry)]

    def images(self, folder: str, *, recurse: bool = True) -> tuple[list[ImageFile], int]:
        """Images in a folder, in any order, and the number of other files."""
        found: list[ImageFile] = []
        ignored = 0
        pending = [(folder, self._ancestors(folder))]
        while pending:
            here, ancestors = pending.pop()
            for entry in self._scan(here):
                if is_leaving(entry.name):
                    self.num_leavings += 1
                elif _is_folder(entry):
                    if recurse:
                        pending.append((f"{here}/{entry.name}", self._descend(entry, ancestors)))
                elif entry.name.lower().endswith(EXTENSIONS):
                    found.append(_image_of(entry, here))
                else:
                    ignored += 1
        return found, ignored

    def _scan(self, folder: str) -> Iterator[os.DirEntry[str]]:
        path = self._root / folder
        try:
            self.watched.append((str(path), *stamp_of(path)))  # before it is read
            with os.scandir(path) as entries:
                yield from entries
        except OSError as error:
            raise DataError(f"{path}: cannot be read as a folder: {error.strerror or error}") from error

    def _ancestors(self, folder: str) -> frozenset[tuple[int, int]]:
        inner = PurePosixPath(folder)
        return frozenset(_identity(self._root / each) for each in (inner, *inner.parents))

    def _descend(self, entry: os.DirEntry[str], ancestors: frozenset[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        identity = _identity(Path(entry.path))
        if identity in ancestors:
            raise DataError(
                f"{entry.path}: this link leads back to a folder that it lies in, so the images below would never "
                f"end. Remove it."
            )
        return ancestors | {identity}


class ArchiveTree:
    """An archive's folders and files; `enter` makes one of its folders the root."""

    def __init__(self, archive: Path) -> None:
        self.archives: tuple[str, ...] = (str(archive),)
        self.watched = [(str(archive), *stamp_of(archive))]
        self._folders: dict[str, _Folder] = {"": _Folder()}
        self.num_leavings = 0
        for member in members(archive):
            if any(is_leaving(part) for part in member.path.split("/")):
                self.num_leavings += 1
                continue
            folder, _, name = member.path.rpartition("/")
            files = self._folder(folder).files
            if name in files:
                raise DataError(f"{archive}: contains {member.path} twice. Make the archive again, without `--append`.")
            files[name] = (member.start, member.size)
        self._top = ""

    def enter(self, folder: str) -> None:
        """Make paths relative to one of the folders from now on."""
        self._top = self._inner(folder)

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files directly in a folder, hidden ones left out."""
        here = self._folders.get(self._inner(folder), _Folder())
        return list(here.folders), list(here.files)

    def images(self, folder: str, *, recurse: bool = True) -> tuple[list[ImageFile], int]:
        """Images in a folder, in any order, and the number of other files."""
        found: list[ImageFile] = []
        ignored = 0
        pending = [folder]
        while pending:
            here = pending.pop()
            content = self._folders[self._inner(here)]
            for name, (start, size) in content.files.items():
                if name.lower().endswith(EXTENSIONS):
                    found.append(ImageFile(here, name, size, start=start))
                else:
                    ignored += 1
            if recurse:
                pending += [f"{here}/{name}" for name in content.folders]
        return found, ignored

    def _folder(self, path: str) -> _Folder:
        if path not in self._folders:
            self._folders[path] = _Folder()
            parent, _, name = path.rpartition("/")
            self._folder(parent).folders.append(name)
        return self._folders[path]

    def _inner(self, folder: str) -> str:
        return "/".join(part for part in (self._top, folder) if part)


@dataclass(slots=True)
class _Folder:
    folders: list[str] = field(default_factory=list)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)


def tree_of(root: Path, split: str, opened: dict[Path, ArchiveTree]) -> tuple[Tree, str]:
    """Find a split: a folder of the root, of the archive that the root is, or an archive in the root.

    Parameters
    ----------
    root, split
        Folder or archive, and the split's name.
    opened : dict
        Archives that have already been read for the other split.

    Returns
    -------
    tree, folder : Tree, str
        The split's class folders are in `folder` of `tree`.

    Raises
    ------
    DataError
        If it is not found.
    """
    if root.is_file():
        tree = opened[root] = opened.get(root) or ArchiveTree(root)
        outermost = contents(tree)
        while split not in (children := tree.children(""))[0]:
            if len(children[0]) != 1 or children[1]:
                raise _no_split(root, split, outermost)
            tree.enter(children[0][0])  # `tar -cf photos.tar photos` puts everything into one folder
        return tree, split
    if (root / split).is_dir():
        return DiskTree(root), split
    for ending in ENDINGS:
        archive = root / f"{split}{ending}"
        if archive.is_file():
            tree = ArchiveTree(archive)
            if tree.children("") == ([split], []):
                tree.enter(split)
            return tree, ""
    raise _no_split(root, split, contents(DiskTree(root)))


def list_classes(tree: Tree, folder: str, *, prefix: str, where: str, on_class_fault: str = "stop") -> Listing:
    """List the images of a split, class by class.

    Parameters
    ----------
    tree, folder
        Location of its class folders.
    prefix : str
        Prefix of the paths: the split's name.
    where : str
        Name of the split in messages.
    on_class_fault : {"stop", "warn"}
        What to do about a class folder without images, or two names that differ only in case.

    Raises
    ------
    DataError
        If there are no images, or a folder can't be read.
    """
    classes = sorted(tree.children(folder)[0])
    entries = Entries()
    ignored = 0
    empty: list[str] = []
    for label, name in enumerate(classes):
        images, others = tree.images(_joined(folder, name))
        _add(entries, images, folder, prefix, label)
        ignored += others
        if not images:
            empty.append(name)
    loose, others = tree.images(folder, recurse=False)
    ignored += others
    if not len(entries) and not loose:
        raise DataError(
            f"{where}: no images. Expected {where}/<class>/<image>, with images ending in "
            f"{', '.join(EXTENSIONS[:5])}, ...; found {contents(tree, folder)}."
        )
    if not len(entries):
        classes, empty = [], []
        _add(entries, loose, folder, prefix, -1)
    elif loose:
        logger.warning(
            "%s: images outside any class folder, left out: %d, such as %s", where, len(loose), loose[0].name
        )
    if ignored:
        logger.warning("%s: files without an ending of images, left out: %d", where, ignored)
    note_leavings(where, tree.num_leavings)
    _refuse_clashes(where, classes, on_class_fault)
    if empty:
        _fault(
            f"{where}: class folders without an image: {abbreviate(empty, show=8)}. Fill or delete them", on_class_fault
        )
    return entries.listing(class_names=classes, archives=tree.archives, watched=tree.watched)


def note_leavings(where: str, count: int) -> None:
    """Report how many hidden files and folders, such as `._x.jpg` and `.ipynb_checkpoints`, were left out."""
    if count:
        logger.warning("%s: hidden and system files and folders, left out: %d", where, count)


def contents(tree: Tree, folder: str = "") -> str:
    """Describe the contents of a folder, for messages."""
    folders, files = tree.children(folder)
    names = sorted([f"{name}/" for name in folders] + files)
    return abbreviate(names, show=8) if names else "nothing"


def _add(entries: Entries, images: list[ImageFile], folder: str, prefix: str, label: int) -> None:
    for image in sorted(images, key=lambda image: (image.folder, image.name)):
        inner = image.folder[len(folder) :].lstrip("/")
        path = "/".join(part for part in (prefix, inner, image.name) if part)
        entries.add(path, size=image.size, label=label, changed=image.changed, start=image.start)


def _refuse_clashes(where: str, classes: Sequence[str], on_class_fault: str) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            text = f"{where}: the classes {other!r} and {name!r} differ only in upper and lower case, so they may be "
            _fault(f"{text}one class that was written twice. Merge or rename them", on_class_fault)


def _fault(text: str, on_class_fault: str) -> None:
    if on_class_fault == "stop":
        raise DataError(f"{text}, or continue with data.on_class_fault=warn.")
    logger.warning("%s.", text)


def _no_split(root: Path, split: str, holds: str) -> DataError:
    place = "in this archive" if root.is_file() else f"and neither {split}.tar nor {split}.zip"
    return DataError(
        f"{root / split}: no such folder {place}, needed for the {split} split. Expected\n"
        f"  {root}/{split}/<class>/<image>\n"
        f"{root} contains {holds}. Give the folder's name with --train-split or --val-split NAME."
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _image_of(entry: os.DirEntry[str], folder: str) -> ImageFile:
    try:
        facts = entry.stat()
    except OSError:  # a broken link: reported when it is read
        return ImageFile(folder, entry.name, -1)
    return ImageFile(folder, entry.name, facts.st_size, changed=facts.st_mtime_ns)


def _identity(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino


def _joined(folder: str, name: str) -> str:
    return str(PurePosixPath(folder, name)) if folder else name
