"""Recorded results in the forms of other projects: timm's tables of results, and MTEB's JSON.

Of each feature set and data set one number goes there, so both take rows that `choosing.best` has chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featbench.evaluate.results import Record

TIMM = (
    "model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct", "interpolation",
)  # fmt: skip
"""Columns of timm's `results-*.csv`."""

FORMATS = ("timm", "mteb")


def timm_rows(records: Sequence[Record]) -> list[Record]:
    """Return rows with the columns of timm's tables, and after them which data, layer and setting they are of.

    Accuracies are percentages with three digits. The number of parameters is not recorded, and stays empty.
    """
    return [_timm_row(record) for record in records if record.get("top1") is not None]


def _timm_row(record: Record) -> Record:
    values: Record = {
        "model": model_name(record), "img_size": _side(record.get("image_size")), "param_count": None,
        "crop_pct": _crop_fraction(record), "interpolation": record.get("interpolation"),
    }  # fmt: skip
    for name in ("top1", "top5"):
        values |= {name: _percent(record.get(name)), f"{name}_err": _percent(_error(record.get(name)))}
    setting = {key: record.get(key) for key in ("data", "layer", "protocol", "k", "temperature")}
    return {name: values[name] for name in TIMM} | setting


def mteb_results(records: Sequence[Record]) -> dict[str, Any]:
    """Return results as MTEB's `BenchmarkResults` writes them: for each model its tasks, for each task its scores.

    Parameters
    ----------
    records : sequence of Record
        With at most one kNN result for each feature set; it may carry numbers of the layer's clusters.
    """
    models: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        model = (model_name(record), str(record.get("fingerprint") or record["weights"]))
        models.setdefault(model, []).extend(_tasks(record))
    return {
        "model_results": [
            {"model_name": name, "model_revision": revision, "task_results": tasks}
            for (name, revision), tasks in models.items()
        ]
    }


def _tasks(record: Record) -> list[dict[str, Any]]:
    setting = {key: record.get(key) for key in ("layer", "protocol", "k", "temperature")}
    data, tasks = record["data"] or record["features"], []
    if record.get("top1") is not None:
        scores = {"accuracy": record["top1"], "main_score": record["top1"], "top5_accuracy": record.get("top5")}
        tasks.append(_task(f"{data}KNN", scores | setting, record))
    if record.get("nmi") is not None:
        scores = {"nmi": record["nmi"], "ari": record.get("ari"), "cluster_accuracy": record.get("hungarian")}
        clusters = {"main_score": record["nmi"], "layer": record["layer"], "clusters": record.get("clusters")}
        tasks.append(_task(f"{data}Clustering", scores | clusters, record))
    return tasks


def _task(name: str, scores: Mapping[str, Any], record: Record) -> dict[str, Any]:
    seconds = record.get("seconds")
    return {
        "dataset_revision": "unknown",
        "task_name": name,
        "mteb_version": None,
        "scores": {"val": [{**scores, "hf_subset": "default", "languages": []}]},
        "evaluation_time": seconds,
        "kg_co2_emissions": None,
    }


def model_name(record: Mapping[str, Any]) -> str:
    """Name of a model as timm writes it: architecture, a full stop, and which weights: here the feature set's name.

    Examples
    --------
    >>> model_name({"model": "timm:vit_small", "features": "mine"}), model_name({"model": "net.py:f", "features": "a"})
    ('vit_small.mine', 'net.py:f.a')
    """
    return f"{str(record['model']).removeprefix('timm:')}.{record['features']}"


def _side(size: Any) -> Any:
    return size[0] if isinstance(size, list | tuple) and size else size


def _crop_fraction(record: Record) -> float | None:
    crop, resize = (_side(record.get(key)) for key in ("image_size", "resize"))
    return round(crop / resize, 3) if isinstance(crop, int) and isinstance(resize, int) and resize else None


def _error(accuracy: float | None) -> float | None:
    return None if accuracy is None else 1 - accuracy


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 3)
