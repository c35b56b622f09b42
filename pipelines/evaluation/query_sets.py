"""What the names of other queries mean: feature sets, or images that are extracted for them first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.knn.queries import QuerySet, refuse_other_model
from featbench.pipelines.config.catalogue import read_catalogue, settings_of
from featbench.pipelines.config.pipeline import NAME_PATTERN
from featbench.store import FeatureSet, suggest
from featbench.store.feature_set import feature_sets, looks_like_feature_set
from featbench.store.paths import QUERIES

LISTS = (".txt", ".csv", ".tsv", ".npy", ".json")
"""Endings of lists of images."""

ARCHIVES = (".tar", ".zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracting:
    """How queries that are images are extracted."""

    layers: Sequence[str] = ()
    """Layers of the bank."""

    on_error: str | None = None
    """What to do about an image that can't be read; by default as for the bank."""

    run: Mapping[str, Any] | None = None
    """Settings of a pipeline's `extract` that say where it runs, such as `ranks`."""

    trust_code: bool = False
    quiet: bool = False


def find_query_sets(features: FeatureSet, named: Mapping[str, str], extracting: Extracting) -> dict[str, QuerySet]:
    """Open the queries of an evaluation, and extract those that are images, unless they are kept.

    Parameters
    ----------
    features : FeatureSet
        The bank.
    named : mapping of str to str
        By name: a feature set beside the bank or by its path (`SET:train` is its train split), or images: a folder, an
        archive, a list, or a data set of the catalogue. A name that is its own place can be that of kept queries.
    extracting : Extracting
        How to extract images.

    Raises
    ------
    BenchError
        If there is no such thing, it has no such split, or it is of another model.
    """
    for place in named.values():
        try:
            Path(place).exists()
        except OSError as error:
            raise EvaluationError(f"{place[:80]}...: can't be looked up ({error.strerror})") from error
    return {name: _find(features, name, place, extracting) for name, place in named.items()}


def _find(features: FeatureSet, name: str, place: str, extracting: Extracting) -> QuerySet:
    if not name or not place:
        raise EvaluationError(f"--queries and --ood need NAME=SET, or NAME=FOLDER of images; got {name}={place}")
    where, _, split = place.rpartition(":") if place.endswith((":train", ":val")) else (place, "", "")
    kept = features.path / QUERIES / name
    if (path := _feature_set(features, where)) is not None:
        other = FeatureSet.open(path)
    elif place == name and _is_whole(kept, extracting.layers):
        other = FeatureSet.open(kept)
    elif (data := images_at(place)) is not None:
        other = _extracted(features, name, kept, data, extracting)
    elif place == name and looks_like_feature_set(kept):
        raise EvaluationError(
            f"{kept}: some rows or layers are not extracted yet. Say where the images are, as before: {name}=IMAGES"
        )
    else:
        raise EvaluationError(f"{place}: {_unknown(features, place)}")
    chosen = split or ("val" if "val" in other.manifest.splits else "train")
    other.split(chosen)
    if (other.path.resolve(), chosen) == (features.path.resolve(), "train"):
        raise EvaluationError(f"{name}: these are the rows of the bank; classify them with --leave-one-out")
    refuse_other_model(features, other)
    return QuerySet(name=name, features=other, split=chosen)


def _is_whole(kept: Path, layers: Sequence[str]) -> bool:
    """Whether queries are kept with all rows of some layers."""
    if not looks_like_feature_set(kept):
        return False
    features = FeatureSet.open(kept)
    return set(layers) <= features.manifest.layers.keys() and not features.pending(list(layers))


def _feature_set(features: FeatureSet, where: str) -> Path | None:
    """Path of a feature set, by its name beside the bank or by its path."""
    return next((path for path in (features.path.parent / where, Path(where)) if looks_like_feature_set(path)), None)


def images_at(place: str) -> dict[str, Any] | None:
    """Settings that read the images of a folder, an archive, a list, shards, or a data set of the catalogue.

    Returns
    -------
    dict or None
        As a pipeline's `data`; None if there is no such thing.
    """
    path = Path(place).expanduser()
    if path.suffix.lower() in LISTS and path.is_file():
        return {"source": "filelist", "val_list": str(path)}
    if path.is_dir() or (path.suffix in ARCHIVES and path.is_file()):
        real = path.resolve()
        split = real.stem if path.is_file() else real.name  # an archive is found by its name without the ending
        return {"source": "folder", "root": str(real.parent), "val_split": split}
    if "{" in path.name or "*" in path.name:
        return {"source": "webdataset", "root": str(path.parent), "val_split": path.name}
    return {"name": place} if place in read_catalogue() else None


def _extracted(
    features: FeatureSet, name: str, kept: Path, data: Mapping[str, Any], extracting: Extracting
) -> FeatureSet:
    if not re.fullmatch(NAME_PATTERN, name):
        raise EvaluationError(
            f"{name!r}: queries that are extracted are kept under their name, which must be letters, digits, '_', '.' "
            f"and '-', not starting with '.' or '-'. Say NAME=FOLDER"
        )
    if "name" in data and _has_no_root(str(data["name"])):
        raise EvaluationError(
            f"{data['name']}: the catalogue does not say where its images are. Write "
            f"`{data['name']}: {{root: FOLDER}}` into datasets.yaml, or name their folder: {name}=FOLDER"
        )
    from featbench.pipelines.extraction.queries import extract_queries  # heavy: imports torch

    settings = data if extracting.on_error is None else {**data, "on_error": extracting.on_error}
    return extract_queries(
        features, extracting.layers, kept, settings, run=extracting.run, trust_code=extracting.trust_code,
        quiet=extracting.quiet,
    )  # fmt: skip


def _has_no_root(name: str) -> bool:
    """Whether a data set of the catalogue is a folder, and it is not known where."""
    settings = settings_of(name)
    return settings.get("root") is None and settings.get("source") in ("folder", "layout", "filelist", "webdataset")


def _unknown(features: FeatureSet, place: str) -> str:
    folder = features.path / QUERIES
    kept = [each.path.name for each in feature_sets(folder)] if folder.is_dir() else []
    return (
        "no feature set by that name or path, no folder, archive or list of images, and no data set of "
        "`bench datasets`. " + suggest(place, [*(each.path.name for each in feature_sets(features.path.parent)), *kept])
    )
