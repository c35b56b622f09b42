"""Which image is asked about: a row of the feature set, by number, path or the end of its path, or an image file."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import has_split
from featbench.store import FeatureSet
from featbench.store.names import visible

SHOWN = 5
"""Paths that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The image that is asked about."""

    path: str
    """As the feature set calls it, or of the file."""

    row: int | None
    """Row of its split; None for a file that is not in it."""

    file: Path | None = None
    """The file to run the model on; None for a row of the feature set."""


def find_query(features: FeatureSet, name: str, *, split: str = "val") -> Asked:
    """Find out which image a name means.

    A number is a row. A path of the split is that row; a file that exists is that file, or the row of which it is the
    path, spelled in full; otherwise the end of one path of the split is that row.

    Parameters
    ----------
    features : FeatureSet
        Whose rows may be asked about.
    name : str
        What the user typed.
    split : {"val", "train"}
        Whose rows these are.

    Raises
    ------
    EvaluationError
        If there is no such image, or it could be several.
    """
    if not name:
        raise EvaluationError("name the image that is asked about: its path, the end of its path, its row, or a file")
    paths = features.paths(split) if has_split(features, split) else []
    if name.isdecimal() and not Path(name).exists():
        return _by_number(features, paths, int(name), split)
    exact = [row for row, path in enumerate(paths) if path == name]
    if len(exact) == 1:
        return Asked(path=name, row=exact[0])
    if not exact and Path(name).exists():
        return Asked(path=name, row=None, file=Path(name))
    rows = exact or _ending_with(paths, name)
    if len(rows) > 1:
        listed = "\n  ".join(f"{row}  {visible(paths[row], keep='')}" for row in rows[:SHOWN])
        more = f"\n  ... ({len(rows):,} in all)" if len(rows) > SHOWN else ""
        raise EvaluationError(
            f"{visible(name)}: {len(rows):,} images of {split} have a path that ends so; give more of it, or the row's "
            f"number:\n  {listed}{more}"
        )
    if not rows:
        raise EvaluationError(_unknown(features, paths, name, split))
    return Asked(path=paths[rows[0]], row=rows[0])


def is_file_of(features: FeatureSet, file: Path, row: int, *, split: str) -> bool:
    """Whether a file lies where the row's image does: its full path ends with the row's path."""
    ours, theirs = PurePosixPath(features.paths(split)[row]).parts, file.resolve().parts
    return bool(ours) and theirs[-len(ours) :] == ours


def _by_number(features: FeatureSet, paths: list[str], row: int, split: str) -> Asked:
    if not paths:
        ways = "; ask about train with --leave-one-out" if split == "val" else ""
        raise EvaluationError(f"{features.path}: it has no split {split}, and there is no file {row}{ways}")
    if row >= len(paths):
        raise EvaluationError(
            f"{features.path}: {split} has {len(paths):,} rows, numbered from 0; got {row}, and there is no such file"
        )
    return Asked(path=paths[row], row=row)


def _ending_with(paths: list[str], name: str) -> list[int]:
    """Rows whose path ends with a name: at a folder's border if there are such, otherwise anywhere."""
    ending = [row for row, path in enumerate(paths) if path.endswith(name)] if name else []
    at_border = [row for row in ending if paths[row].endswith(f"/{name}")]
    return at_border or ending


def _unknown(features: FeatureSet, paths: list[str], name: str, split: str) -> str:
    text = f"{visible(name)}: no path of {split} in {features.path} is this or ends so, and there is no such file."
    if not paths:
        return f"{text} It has no split {split}."
    if split == "val" and _ending_with(features.paths("train"), name):
        return f"{text} It is an image of train: ask about it with --leave-one-out."
    wanted = PurePosixPath(name).name.lower()
    by_name: dict[str, int] = {}
    for row, path in enumerate(paths):
        by_name.setdefault(PurePosixPath(path).name.lower(), row)
    close = difflib.get_close_matches(wanted, by_name, n=3, cutoff=0.6)
    found = [visible(paths[by_name[each]], keep="") for each in close]
    if found:
        return f"{text} Did you mean {' or '.join(found)}?"
    return f"{text} Its paths look like {visible(paths[0], keep='')}."
