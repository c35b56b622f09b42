"""The table of recorded results: kNN and k-means of all models, data sets and layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from featbench.evaluate.metrics import Estimate
from featbench.evaluate.results import Record
from featbench.pipelines.cli.cells import LAYER, named, percent, temperature_of
from featbench.pipelines.recorded.reading import is_of_val
from featbench.pipelines.terminal.table import Column, Table

Cell = Callable[[Mapping[str, Any]], str]


def recorded_table(records: Sequence[Record], *, is_best: bool = False, by: str = "top1", title: str = "") -> Table:
    """Make the table of recorded results; columns in which no row has a value are left out.

    Parameters
    ----------
    records : sequence of Record
        As `featbench.pipelines.recorded.reading` returns them.
    is_best : bool
        Whether each row was chosen as the best of others.
    by : str
        Score that they were chosen by.
    title : str
    """
    shown = [record for record in records if record["split"] != "train" or not _has_val(record, records)]
    columns = [each for each in _COLUMNS if any(each[1](record) for record in shown)] or list(_COLUMNS[:1])
    columns = [each for each in columns if each[0].name != "data" or _differ(shown, "data")]
    columns = [each for each in columns if each[0].name != "task" or any(_is_unusual(record) for record in shown)]
    names = [column.name for column, _ in columns]
    at = names.index(_HEADINGS[by]) if _HEADINGS.get(by) in names else None
    bold = [] if at is None else [(row, at) for row in _best_rows(shown, by)]
    return Table(
        title=title,
        columns=tuple(column for column, _ in columns),
        rows=tuple(tuple(cell(record) for _, cell in columns) for record in shown),
        notes=tuple(_notes(shown, names, is_best=is_best, by=by)),
        bold=frozenset(bold),
        num_grouped=0 if is_best else 1,
    )


def _best_rows(records: Sequence[Record], by: str) -> list[int]:
    """Positions of the highest scores on each data set."""
    highest: dict[str, float] = {}
    candidates = [(i, each) for i, each in enumerate(records) if is_of_val(each) and each.get(by) is not None]
    for _, record in candidates:
        highest[record["data"]] = max(record[by], highest.get(record["data"], record[by]))
    return [i for i, record in candidates if record[by] == highest[record["data"]]]


def _has_val(record: Record, records: Sequence[Record]) -> bool:
    key = ("path", "layer", "clusters", "clusters_of")
    same = [record.get(name) for name in key]
    return any(each["split"] == "val" and [each.get(name) for name in key] == same for each in records)


def _differ(records: Sequence[Record], key: str) -> bool:
    return len({record[key] for record in records}) > 1


def _is_unusual(record: Record) -> bool:
    return record["task"] not in ("knn", "kmeans", "multi_label")


def _notes(records: Sequence[Record], names: Sequence[str], *, is_best: bool, by: str) -> list[str]:
    notes = ["% with 95% interval."] if records else ["Nothing is recorded."]
    data = {record["data"] for record in records if record["data"]}
    if len(data) == 1 and not _differ(records, "data"):
        notes = [f"Data: {named(data.pop())}; {notes[0]}"]
    if is_best:
        notes.append(
            f"Chosen by {_HEADINGS[by]} of val itself, which favours all of them; bench evaluate --select does not."
        )
    elif any(record["task"] == "kmeans" for record in records):
        notes.append(
            "k-means: k is the number of clusters; its numbers are those of val, or of train if there is no val."
        )
    if is_best and "NMI" in names:
        notes.append("NMI, AMI, ARI and one-to-one: of the layer's clusters.")
    if any(record.get("leave_one_out") for record in records):
        notes.append("(train): each row of train among the others.")
    return notes


def _name(key: str) -> Cell:
    return lambda record: named(record.get(key) or "")


def _protocol(record: Mapping[str, Any]) -> str:
    name = "k-means" if record["task"] == "kmeans" else _name("protocol")(record)
    marks = ["train"] * (record.get("leave_one_out") is True) + ["as published"] * (record.get("as_published") is True)
    marks += [f"of {record['clusters_of']}"] if record.get("clusters_of") else []
    return f"{name} ({', '.join(marks)})" if marks else name


def _k(record: Mapping[str, Any]) -> str:
    k = record["clusters"] if record["task"] == "kmeans" else record["k"]
    return "" if k is None else f"{k:,}"


def _estimate(key: str) -> Cell:
    def cell(record: Mapping[str, Any]) -> str:
        value, low, high = (record.get(name) for name in (key, f"{key}_low", f"{key}_high"))
        if value is None:
            return ""
        if low is not None and high is not None:
            return percent(Estimate(value, low, high))
        spread = record.get(f"{key}_sd")
        return f"{100 * value:.1f}" + ("" if spread is None else f" ±{100 * spread:.1f}")

    return cell


_HEADINGS = {
    "top1": "top-1", "top5": "top-5", "mean_per_class": "mean/class", "mean_ap": "mAP", "nmi": "NMI", "ami": "AMI",
    "ari": "ARI", "hungarian": "one-to-one",
}  # fmt: skip

_COLUMNS: tuple[tuple[Column, Cell], ...] = (
    (Column(name="features", is_right=False), _name("features")),
    (Column(name="model", is_right=False, drop=9), _name("model")),
    (Column(name="weights", is_right=False, drop=12), _name("weights")),
    (Column(name="data", is_right=False, drop=3), _name("data")),
    (Column(name="task", is_right=False), _name("task")),
    (LAYER, _name("layer")),
    (Column(name="protocol", is_right=False, drop=2), _protocol),
    (Column(name="k"), _k),
    (Column(name="T", drop=7), lambda record: temperature_of(record["temperature"])),
    (Column(name="top-1"), _estimate("top1")),
    (Column(name="top-5", drop=4), _estimate("top5")),
    (Column(name="mean/class", drop=8), _estimate("mean_per_class")),
    (Column(name="mAP"), _estimate("mean_ap")),
    (Column(name="NMI", drop=1), _estimate("nmi")),
    (Column(name="AMI", drop=10), _estimate("ami")),
    (Column(name="ARI", drop=6), _estimate("ari")),
    (Column(name="one-to-one", drop=5), _estimate("hungarian")),
    (Column(name="date (UTC)", is_right=False, drop=11), lambda record: str(record["created"])[:16].replace("T", " ")),
)
