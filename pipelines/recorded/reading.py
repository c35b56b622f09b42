"""Reading the results that evaluations have recorded in the feature sets of a store.

Each record gets, beside what the evaluation wrote, where it comes from: model, weights, data set, and when it was made.
A file that is damaged, or was written by another program, costs one line of warning.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featbench.evaluate.results import FIRST, Record, uniform
from featbench.store import FeatureSet
from featbench.store.documents import brief_text
from featbench.store.errors import first_line
from featbench.store.manifest import Manifest, digest_of
from featbench.store.paths import RESULTS, VAL
from featbench.store.regular import read_regular

logger = logging.getLogger(__name__)

ORIGIN = (
    "features", "model", "weights", "data", "task", "layer", "protocol", "k", "temperature", "split", "clusters",
)  # fmt: skip
"""First keys of each record."""

TEXTS = ("task", "layer", "protocol", "split", "similarity", "weights", "queries", "bank", "clusters_of")
NUMBERS = (
    "k",
    "temperature",
    "clusters",
    "top1",
    "top5",
    "mean_per_class",
    "nmi",
    "ami",
    "ari",
    "hungarian",
    "mean_ap",
)
"""Keys whose values are checked, since tables are made of them."""

_CHECKED_NUMBERS = tuple(f"{key}{end}" for key in NUMBERS for end in ("", "_low", "_high"))

SETTINGS = (
    "path", "task", "layer", "protocol", "k", "temperature", "split", "clusters", "similarity", "leave_one_out",
    "as_published", "queries", "bank", "labels", "ood", "shots", "tries", "class", "clusters_of", "group", "other",
    "settings",
)  # fmt: skip
"""Keys that say what was asked, none of them a number that was measured."""


class RecordError(ValueError):
    """A file that is not one of recorded results."""


def recorded_results(feature_sets: Iterable[FeatureSet]) -> list[Record]:
    """Read all results recorded in some feature sets, oldest first in each; all records have the same keys."""
    found = [record for features in feature_sets for record in results_of(features)]
    ordered = [{key: record.get(key) for key in ORIGIN} | record for record in found]
    return [{key: record[key] for key in dict.fromkeys([*ORIGIN, *record])} for record in uniform(ordered)]


def results_of(features: FeatureSet) -> Iterator[Record]:
    """Read the results recorded in a feature set, oldest first."""
    origin = origin_of(features)
    for path in result_files(features):
        try:
            yield from _records_in(path, features, origin)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("%s: not read: %s", path, brief_text(_reason(error)))


def of_evaluation(features: FeatureSet, records: Iterable[Record]) -> list[Record]:
    """Add to the records of an evaluation that was just made what `results_of` adds to recorded ones."""
    origin, created = origin_of(features), datetime.now(UTC).isoformat(timespec="seconds")
    return [
        dict.fromkeys(ORIGIN) | record | origin | {"settings": "", "created": created, "file": None}
        for record in records
    ]


def result_files(features: FeatureSet) -> list[Path]:
    """Files of recorded results of a feature set, oldest first."""
    return sorted(path for path in (features.path / RESULTS).glob("*.json") if not path.name.startswith("."))


def origin_of(features: FeatureSet) -> Record:
    """What the manifest says of model, weights, data set and transform."""
    manifest = features.manifest
    transform = manifest.made_from.get("transform")
    transform = transform if isinstance(transform, Mapping) else {}
    model = manifest.made_from.get("model")
    return {
        "features": features.name,
        "model": str(model.get("trunk")) if isinstance(model, Mapping) else "imported",
        "weights": str(manifest.notes.get("weights", "")),
        "data": data_of(manifest),
        "image_size": transform.get("crop"),
        "resize": transform.get("resize"),
        "interpolation": transform.get("interpolation"),
        "path": str(features.path),
    }


def data_of(manifest: Manifest) -> str:
    """Name of the data set: the catalogue's, or that of its folder; "" if it is not known."""
    pipeline = manifest.notes.get("pipeline")
    data = pipeline.get("data") if isinstance(pipeline, Mapping) else None
    if not isinstance(data, Mapping):
        return ""
    root, lists = data.get("root"), data.get("val_list") or data.get("train_list")
    named = data.get("name") or data.get("dataset") or (root and Path(str(root)).name)
    return str(named or (lists and Path(str(lists)).stem) or data.get("source") or "")


def identity(record: Mapping[str, Any]) -> str:
    """What a record is the answer to, as text; of equal ones the later replaces the earlier."""
    return repr([record.get(key) for key in SETTINGS])


def _records_in(path: Path, features: FeatureSet, origin: Record) -> list[Record]:
    content = json.loads(read_regular(path), parse_constant=_no_number)
    if not isinstance(content, dict) or not isinstance(content.get("records"), list):
        raise RecordError("no results of bench (it has no list of records)")
    if content.get("fingerprint") != features.manifest.fingerprint:
        raise RecordError("results of other features (its fingerprint is not that of the feature set)")
    created = content["created"]
    datetime.fromisoformat(created)
    of_task = _other_settings(content.get("settings"))
    records = [checked_record(record) for record in content["records"]]
    return [
        record | origin | {
            "weights": origin["weights"] or record.get("weights") or "",
            "settings": of_task["kmeans" if record["task"] == "kmeans" else "knn"], "created": created,
            "file": path.name,
        }
        for record in records
    ]  # fmt: skip


def _other_settings(settings: Any) -> dict[str, str]:
    """Settings of an evaluation that its records do not name, as short digests: of k-means, and of all else."""
    settings = settings if isinstance(settings, Mapping) else {}
    kmeans = settings.get("kmeans")
    of_kmeans = dict(kmeans) if isinstance(kmeans, Mapping) else {}
    for key in ("clusters", "ami"):  # the number of clusters is in the record, and AMI is only one more metric
        of_kmeans.pop(key, None)
    return {"kmeans": digest_of(of_kmeans)[:12], "knn": digest_of(settings.get("index"))[:12]}


def checked_record(record: Any) -> Record:
    """Return a record, if the values that tables, filters and other formats are made of are of their kind.

    Raises
    ------
    RecordError
        If one is not.
    """
    if not isinstance(record, dict) or not isinstance(record.get("task"), str):
        raise RecordError("a record is not one of bench")
    for key in _CHECKED_NUMBERS:
        value = record.get(key)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise RecordError(f"{key} is not a number: {value!r}")
    for key in TEXTS:
        value = record.get(key)
        if value is not None and type(value) is not str:
            raise RecordError(f"{key} is not text: {value!r}")
    if type(record.get("layer", "")) is not str:
        raise RecordError("a record has no layer")
    return dict.fromkeys(FIRST) | record


def _no_number(text: str) -> Any:
    raise RecordError(f"a number is {text}")


def _reason(error: BaseException) -> str:
    if isinstance(error, RecordError):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return "damaged (it is not JSON)"
    return f"damaged ({type(error).__name__}: {first_line(error)})"


def is_of_val(record: Mapping[str, Any]) -> bool:
    """Whether a record is about val, rather than about train itself."""
    return not record.get("leave_one_out") and record.get("split") in (None, VAL)
