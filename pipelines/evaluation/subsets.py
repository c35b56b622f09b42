"""Fixed subsets of train, as a file lists their images: few labels, drawn once for all who publish with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from featbench.evaluate.features.labels import Labelled
from featbench.pipelines.config.catalogue import subsets_of
from featbench.store import BenchError, FeatureSet
from featbench.store.names import normal_name


class SubsetError(BenchError):
    """A file of a subset that can't be used."""


def subset_file(features: FeatureSet, name: str, place: str) -> Path:
    """Find the file of a subset: the given one, or the one that the catalogue has under that name.

    Parameters
    ----------
    features : FeatureSet
        Whose pipeline says which data set it is.
    name, place : str
        As given, NAME=FILE; both are the same if only a name was given.

    Raises
    ------
    SubsetError
        If there is neither.
    """
    if name != place or Path(place).exists():
        return Path(place)
    data = features.manifest.notes.get("pipeline", {}).get("data", {}).get("name")
    known = subsets_of(data) if data else {}
    if name in known:
        return known[name]
    named = f" ({', '.join(known)})" if known else ""
    of = f"the catalogue's {data}" if data else f"{features.path}, which names no data set,"
    raise SubsetError(
        f"{name}: no such file, and {of} has no subset of that name{named}. Give "
        f"--subset {name}=FILE, or in datasets.yaml a root and subsets"
    )


def subset_of(train: Labelled, file: Path, paths: Sequence[str]) -> Labelled:
    """Select the rows of train that a file lists, one image a line: by its path, or the last part of it.

    Parameters
    ----------
    train : Labelled
        Rows of train.
    file : Path
        Text, such as SimCLR's `1percent.txt` with lines like `n01440764_10074.JPEG`.
    paths : sequence of str
        What the feature set calls each row of train.

    Raises
    ------
    SubsetError
        If the file can't be read, or a line is no image of train, or that of several.
    """
    try:
        wanted = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SubsetError(f"{file}: can't be read as a list of images ({error})") from error
    if not wanted:
        raise SubsetError(f"{file}: lists no image")
    places = _places(paths)
    missing = [name for name in wanted if not places.get(normal_name(name))]
    if missing:
        raise SubsetError(
            f"{file}: {len(missing):,} of its {len(wanted):,} images are not in train, first {missing[0]!r}; an image "
            f"of train is called {paths[0]!r}. Give their paths, or the last part of them, one a line"
        )
    several = [name for name in wanted if len(places[normal_name(name)]) > 1]
    if several:
        raise SubsetError(
            f"{file}: {several[0]!r} is the name of {len(places[normal_name(several[0])])} images of train. Give paths"
        )
    rows = np.unique([places[normal_name(name)][0] for name in wanted])
    stays = np.isin(train.rows, rows)
    return replace(train, rows=train.rows[stays], labels=train.labels[stays])


def _places(paths: Sequence[str]) -> dict[str, list[int]]:
    """Rows by path, and by the last part of it where that is not a path, too."""
    by_path: dict[str, list[int]] = {}
    by_name: dict[str, list[int]] = {}
    for row, path in enumerate(map(normal_name, paths)):
        by_path.setdefault(path, []).append(row)
        by_name.setdefault(PurePosixPath(path).name, []).append(row)
    return by_name | by_path
