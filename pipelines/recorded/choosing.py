"""Choosing among recorded results: by what they are of, the latest of equal ones, the best of a group."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from featbench.evaluate.results import Record
from featbench.pipelines.recorded.reading import identity, is_of_val
from featbench.store import BenchError, suggest
from featbench.store.documents import brief_text
from featbench.store.names import natural

USUAL_TASKS = ("knn", "multi_label", "kmeans")
"""Tasks that are shown unless others are asked for."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "setting": ("path", "layer"), "layer": ("path",), "model": ("data",),
}  # fmt: skip
"""For each thing of which the best is wanted: what the rows have in common among which it is chosen."""

SCORES = ("top1", "top5", "mean_per_class", "mean_ap", "nmi", "ami", "ari", "hungarian")
"""Numbers by which the best is chosen; more is better."""

OF_CLUSTERS = ("clusters", "nmi", "ami", "ari", "hungarian", "hungarian_low", "hungarian_high")
"""What the best row of a layer also gets from the layer's clusters."""


class ChoiceError(BenchError):
    """Results that do not exist, or can't be asked for so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which results are wanted; what is empty does not restrict them."""

    features: Sequence[str] = ()
    """Names of feature sets, or patterns such as epoch*."""

    model: Sequence[str] = ()
    data: Sequence[str] = ()
    layers: Sequence[str] = ()
    protocol: Sequence[str] = ()
    k: Sequence[int] = ()
    task: Sequence[str] = USUAL_TASKS
    """`all` for every task."""

    since: datetime | None = None

    def of(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that are wanted.

        Raises
        ------
        ChoiceError
            If a name matches nothing that is recorded.
        """
        for key, names in (("features", self.features), ("model", self.model), ("data", self.data)):
            records = _matching(records, key, names, fnmatchcase)
        if "all" not in self.task:
            known = {record["task"] for record in records} | set(USUAL_TASKS)
            if unknown := [task for task in self.task if task not in known]:
                raise ChoiceError(f"no result of task {brief_text(unknown[0])}. {suggest(unknown[0], sorted(known))}")
            records = [record for record in records if record["task"] in self.task]
        for key, names in (("layer", self.layers), ("protocol", self.protocol)):
            records = _matching(records, key, names, str.__eq__)
        if self.k:
            if not (found := [record for record in records if record["k"] in self.k]):
                have = sorted({record["k"] for record in records if record["k"] is not None})
                raise ChoiceError(f"no result has k {_listed(self.k)}; recorded are {_listed(have) or 'none'}")
            records = found
        since = self.since
        return list(records) if since is None else [each for each in records if _made(each) >= since]


def latest(records: Sequence[Record]) -> list[Record]:
    """Keep, of answers to the same question, the one that was recorded last."""
    found: dict[str, Record] = {}
    for record in sorted(records, key=_made):
        found[identity(record)] = record
    kept = set(map(id, found.values()))
    return [record for record in records if id(record) in kept]


def best(records: Sequence[Record], what: str, *, by: str = "top1") -> list[Record]:
    """Choose the record with the highest score in each group, highest first.

    Parameters
    ----------
    records : sequence of Record
    what : {"setting", "layer", "model"}
        `setting`: the best protocol, k and temperature of each layer; `layer`: the best layer of each feature set;
        `model`: the best feature set of each data set.
    by : str
        One of `SCORES`; records without it, and those about train, are not candidates.

    Raises
    ------
    ChoiceError
        If `what` or `by` is unknown, or no record has that score.
    """
    if what not in GROUPS:
        raise ChoiceError(f"--best must be one of {', '.join(GROUPS)}; got {brief_text(what)}")
    if by not in SCORES:
        raise ChoiceError(f"--by must be one of {', '.join(SCORES)}; got {brief_text(by)}")
    candidates = [record for record in records if is_of_val(record) and record.get(by) is not None]
    if records and not candidates:
        have = [name for name in SCORES if any(record.get(name) is not None for record in records)]
        raise ChoiceError(f"no result has {by} to choose by. Say which with --by: {', '.join(have) or 'there is none'}")
    found: dict[tuple[Any, ...], Record] = {}
    for record in candidates:
        group = tuple(record[key] for key in GROUPS[what])
        if group not in found or record[by] > found[group][by]:  # the first of equals
            found[group] = record
    return sorted((_with_clusters(each, records) for each in found.values()), key=lambda each: -each[by])


def ordered(records: Sequence[Record]) -> list[Record]:
    """Order records for a table: by feature set, task, layer as recorded, protocol, k."""
    tasks = {task: position for position, task in enumerate(USUAL_TASKS)}
    layers: dict[tuple[str, str], int] = {}
    for record in records:
        layers.setdefault((record["path"], record["layer"]), len(layers))

    def key(record: Record) -> tuple[Any, ...]:
        numbers = (record["k"] or 0, record["temperature"] or 0.0, record["clusters"] or 0)
        return (
            natural(record["features"]), record["path"], tasks.get(record["task"], len(tasks)), record["task"],
            layers[record["path"], record["layer"]], record["protocol"] or "", *numbers,
        )  # fmt: skip

    return sorted(records, key=key)


def since_of(text: str, *, now: datetime | None = None) -> datetime:
    """Read a date (2026-11-01), a time (2026-11-01T12:00), or an age (12h, 7d, 2w); UTC unless it has a zone.

    Examples
    --------
    >>> since_of("36h", now=datetime(2026, 11, 3, tzinfo=UTC)).isoformat()
    '2026-11-01T12:00:00+00:00'
    """
    if age := re.fullmatch(r"(\d{1,5})([hdw])", text):
        hours = int(age[1]) * {"h": 1, "d": 24, "w": 168}[age[2]]
        return (now or datetime.now(UTC)) - timedelta(hours=hours)
    try:
        since = datetime.fromisoformat(text)
    except ValueError:
        raise ChoiceError(
            f"--since must be a date such as 2026-11-01 or 2026-11-01T12:00, or an age such as 12h, 7d or 2w; got "
            f"{brief_text(text)}"
        ) from None
    return since if since.tzinfo else since.replace(tzinfo=UTC)


def _matching(
    records: Sequence[Record], key: str, names: Sequence[str], matches: Callable[[str, str], bool]
) -> Sequence[Record]:
    if not names:
        return records
    have = list(dict.fromkeys(str(record[key]) for record in records if record[key]))
    for name in names:
        if not any(matches(each, name) for each in have):
            hint = suggest(name, map(brief_text, have)) if have else "None is recorded."
            raise ChoiceError(f"no result has {key} {brief_text(name)}. {hint}")
    return [each for each in records if each[key] and any(matches(str(each[key]), name) for name in names)]


def _with_clusters(record: Record, records: Sequence[Record]) -> Record:
    """Add the numbers of the layer's clusters: as many as classes, if there are such."""
    clusterings = [
        each
        for each in records
        if each["task"] == "kmeans" and each["split"] == "val" and each.get("nmi") is not None
        and (each["path"], each["layer"]) == (record["path"], record["layer"])
    ]  # fmt: skip
    if record["task"] == "kmeans" or not clusterings:
        return record
    chosen = min(clusterings, key=lambda each: each["clusters"] != each.get("num_classes"))
    return record | {name: chosen.get(name) for name in OF_CLUSTERS}


def _made(record: Mapping[str, Any]) -> datetime:
    made = datetime.fromisoformat(record["created"])
    return made if made.tzinfo else made.replace(tzinfo=UTC)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
