"""The catalogue of data sets: their layouts, and where they are on this machine.

`pipelines/config/datasets.yaml` has the layouts of public data sets, without roots. Users add roots, and data sets
of their own, in `~/.config/featbench/datasets.yaml` or in `datasets.yaml` of the working folder; each file overrides
the ones before it, key by key. A pipeline names its data set as `data.name`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from featbench.extract.config import DataConfig
from featbench.pipelines.config.documents import read_yaml
from featbench.pipelines.config.faults import describe
from featbench.store import BenchError, suggest
from featbench.store.documents import DocumentError, brief_text

FILE = "datasets.yaml"
SHIPPED = Path(__file__).parent / FILE


MOST_FAULTS = 30
"""Faults that one message lists at most."""


_OF_THE_CATALOGUE = ("about", "needs", "subsets")
"""Keys that are no settings of `data`."""


class CatalogueError(BenchError):
    """A catalogue can't be read, or does not have a data set."""


class Entry(DataConfig):
    """A data set: any settings of `data`, a description, and the files that it needs."""

    about: str = ""
    """One line that describes it."""

    needs: tuple[str, ...] | None = None
    """Files and folders that must be in the root; by default what the source reads first."""

    subsets: dict[str, Path] = Field(default_factory=dict)
    """Lists of images of train by the names that `--subset` takes, relative to the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A data set of the catalogue, and what this machine has of it."""

    name: str
    entry: Entry
    missing: tuple[str, ...]
    """Files that it needs and that are not there; empty also if it has no root."""

    @property
    def found(self) -> bool:
        """Whether every file that it needs is there."""
        return not self.missing and (self.entry.root is not None or not _needs(self.entry))


def catalogue_files() -> list[Path]:
    """Files that make up the catalogue; later ones override earlier ones."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [SHIPPED, config / "featbench" / FILE, Path(FILE)]


def read_catalogue() -> dict[str, dict[str, Any]]:
    """Read all files of the catalogue: settings by name of the data set.

    Raises
    ------
    CatalogueError
        If one is not a catalogue.
    """
    entries: dict[str, dict[str, Any]] = {}
    for path in catalogue_files():
        for name, settings in _read(path).items():
            entries[name] = entries.get(name, {}) | settings
    return entries


def is_local(name: str) -> bool:
    """Whether `datasets.yaml` of the working folder has settings for a data set."""
    return name in _read(Path(FILE))


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of `data` that the catalogue has for a data set.

    Raises
    ------
    CatalogueError
        If it is not in the catalogue.
    """
    entries = read_catalogue()
    if name not in entries:
        raise CatalogueError(f"no data set {name!r} in the catalogue. {suggest(name, entries)} See `bench datasets`.")
    return {key: value for key, value in entries[name].items() if key not in _OF_THE_CATALOGUE}


def subsets_of(name: str) -> dict[str, Path]:
    """Lists of images of train that the catalogue names for a data set, none if it has no root.

    Raises
    ------
    CatalogueError
        If the files of the catalogue contradict each other.
    """
    entry = _entry(name, read_catalogue().get(name, {}))
    return {} if entry.root is None else {subset: entry.root / file for subset, file in entry.subsets.items()}


def list_datasets() -> list[Listed]:
    """List the data sets of the catalogue, and which files of them are missing."""
    listed = []
    for name, settings in sorted(read_catalogue().items()):
        entry = _entry(name, settings)
        missing = tuple(need for need in _needs(entry) if entry.root is not None and not _is_there(entry.root, need))
        listed.append(Listed(name=name, entry=entry, missing=missing))
    return listed


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        content = read_yaml(path) or {}
    except DocumentError as error:
        raise CatalogueError(str(error)) from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise CatalogueError(f"{path}: expected data sets and their settings, such as `in1k: {{root: /data/imagenet}}`")
    for name, settings in content.items():
        try:
            Entry.model_validate(settings)
        except ValidationError as error:
            faults = "\n  ".join(
                brief_text(f"{name}.{'.'.join(map(str, fault['loc']))}: {_text(fault)}", most=600)
                for fault in error.errors()[:MOST_FAULTS]
            )
            raise CatalogueError(f"{path}: wrong settings:\n  {faults}") from error
    return {str(name): _placed(settings, path.parent) for name, settings in content.items()}


def _text(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"no such setting. {suggest(str(fault['loc'][-1]), Entry.model_fields)}"
    return describe([fault])


def _placed(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Expand `~` and `$VARIABLES` in the root, which is relative to the catalogue's folder."""
    if settings.get("root") is None:
        return settings
    root = Path(os.path.expandvars(str(settings["root"]))).expanduser()
    return settings | {"root": str(folder / root)}


def _entry(name: str, settings: Mapping[str, Any]) -> Entry:
    try:
        return Entry.model_validate(settings)
    except ValidationError as error:
        raise CatalogueError(f"data set {name!r}: the files of the catalogue contradict each other: {error}") from error


def _needs(entry: Entry) -> tuple[str, ...]:
    if entry.needs is not None:
        return entry.needs
    if entry.source == "filelist":
        lists = (entry.train_list, entry.val_list, entry.train_labels, entry.val_labels, entry.splits, entry.classes)
        return tuple(str(path) for path in lists if path is not None)
    return (entry.train_split, entry.val_split) if entry.source == "folder" else ()


def _is_there(root: Path, need: str) -> bool:
    if root.is_file() or (root / need).exists() or (Path(need).is_absolute() and Path(need).exists()):
        return True
    from featbench.extract.data.archives import ENDINGS  # heavy: imports zarr

    return any((root / f"{need}{ending}").exists() for ending in ENDINGS)
