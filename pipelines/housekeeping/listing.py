"""What a store holds: one record for each feature set, with its size, how complete it is, and its best number."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from featbench.evaluate.results import Record
from featbench.pipelines.recorded.choosing import latest
from featbench.pipelines.recorded.reading import is_of_val, origin_of, result_files, results_of
from featbench.store import FeatureSet, StoreError, paths
from featbench.store.usage import PARTS, quick_size, size_on_disk, usage_of, usage_of_layers

logger = logging.getLogger(__name__)

BEST_BY = ("top1", "mean_ap", "nmi")
"""Numbers that the best result of a feature set is chosen by; the first that there is."""


def store_records(feature_sets: Iterable[FeatureSet]) -> list[Record]:
    """What lies in a store: one record for each feature set."""
    return [_store_record(features) for features in feature_sets]


def _store_record(features: FeatureSet) -> Record:
    manifest, origin = features.manifest, origin_of(features)
    return {
        "name": features.name,
        **{key: origin[key] for key in ("model", "weights", "data")},
        "num_train": _num_rows(features, paths.TRAIN),
        "num_val": _num_rows(features, paths.VAL),
        "layers": list(manifest.layers),
        **_state(features),
        **_best(features),
        "created": manifest.created,
        "path": str(features.path),
    }


def _state(features: FeatureSet) -> Record:
    try:
        written, total = features.progress()
        return {"bytes": quick_size(features), "chunks_written": written, "chunks_total": total}
    except StoreError as error:  # damaged journals do not hide the others
        logger.warning("%s", error)
        return {"bytes": None, "chunks_written": None, "chunks_total": None}


def _best(features: FeatureSet) -> Record:
    """The best of the recorded results, about val."""
    records = [record for record in latest(list(results_of(features))) if is_of_val(record)]
    keys = ("layer", "protocol", "k", "temperature", "clusters")
    for name in BEST_BY:
        tasks = ("knn", "multi_label", "kmeans")
        having = [each for each in records if each["task"] in tasks and each.get(name) is not None]
        if having:
            best = max(having, key=lambda each: float(each[name]))
            return {"best_by": name, "best": best[name], **{f"best_{key}": best.get(key) for key in keys}}
    return {"best_by": None, "best": None, **{f"best_{key}": None for key in keys}}


def usage_records(feature_sets: Iterable[FeatureSet]) -> list[Record]:
    """How much disk each feature set takes, by part; the largest first."""
    found = []
    for features in feature_sets:
        parts = usage_of(features)
        found.append({"name": features.name, "total": sum(parts.values()), **parts, "path": str(features.path)})
    return sorted(found, key=lambda record: -record["total"])


def part_records(features: FeatureSet) -> list[Record]:
    """How much disk each part of a feature set takes, its layers one by one."""
    parts = usage_of(features)
    rows = [("layer", name, size) for name, size in usage_of_layers(features).items()]
    rows += [("part", name, parts[name]) for name in PARTS[1:]]
    return [{"name": features.name, "kind": kind, "part": part, "bytes": size} for kind, part, size in rows]


def beside_records(store: Path, listed: Iterable[Record]) -> list[Record]:
    """How much disk all else in a store takes: its own folders, half-written ones, damaged feature sets, and others."""
    found, names = [], {record["name"] for record in listed}
    for path in sorted(store.iterdir()):
        if path.name in names:
            continue
        size = size_on_disk(path)
        if size:
            found.append({"name": path.name, "total": size, **dict.fromkeys(PARTS), "path": str(path)})
    return found


def num_results(features: FeatureSet) -> int:
    """Number of evaluations recorded in a feature set."""
    return len(result_files(features))


def _num_rows(features: FeatureSet, split: str) -> int:
    return features.manifest.splits[split].num_rows if split in features.manifest.splits else 0
