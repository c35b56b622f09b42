"""A curve: what was measured of each checkpoint of a training run, kept in the store as JSON and CSV.

`docs/many-models.md` says what the files hold. The JSON is also what a watch that starts again goes on from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from featbench.evaluate.results import Record
from featbench.pipelines.config.pipeline import NAME_PATTERN
from featbench.pipelines.recorded.reading import checked_record
from featbench.pipelines.suites.positions import Position
from featbench.pipelines.terminal.formats import as_csv
from featbench.store import BenchError
from featbench.store.documents import brief_text
from featbench.store.durable import cannot_write, write_durably
from featbench.store.errors import first_line
from featbench.store.lock import exclusive
from featbench.store.names import natural
from featbench.store.paths import curve_file
from featbench.store.regular import read_regular

VERSION = 1

NUMBERS = (
    "top1", "top1_low", "top1_high", "top5", "mean_per_class", "mean_ap", "nmi", "ami", "ari", "hungarian",
    "many_to_one", "purity", "objective",
)  # fmt: skip
"""Columns of the CSV that are measured."""


class CurveError(BenchError):
    """A curve that can't be read, or belongs to another folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One checkpoint file, as it was when it was evaluated."""

    file: str
    """Relative to the watched folder."""

    size: int
    modified_ns: int
    """With `size`, tells whether the file has changed since."""

    settings: str
    """Digest of the settings that the numbers depend on."""

    features: str
    """Name of its feature set."""

    epoch: int | None = None
    step: int | None = None
    state: Literal["started", "done", "failed"] = "started"
    error: str | None = None
    is_broken: bool = False
    """Whether the file itself is to blame: it is not tried again until it changes."""

    made: bool = False
    """Whether the watch created the feature set, and may remove it."""

    removed: bool = False
    """Whether it has removed it."""

    fingerprint: str | None = None
    """Fingerprint of the feature set."""

    created: str = ""
    """When it was evaluated; UTC, ISO 8601."""

    logged: tuple[str, ...] = ()
    """Where its numbers have been sent: tensorboard, wandb, mlflow."""

    records: tuple[Record, ...] = field(default=(), repr=False)
    """What `bench run` recorded of it, without empty values."""

    @property
    def position(self) -> Position:
        """Where it is in the training run."""
        return Position(self.epoch, self.step)

    @property
    def mark(self) -> tuple[str, int, int]:
        """The file, as it was."""
        return self.file, self.size, self.modified_ns


@dataclass(slots=True, kw_only=True)
class Curve:
    """All points of one training run."""

    name: str
    folder: str
    """Absolute path of the watched folder."""

    points: list[Point] = field(default_factory=list)

    def put(self, point: Point) -> None:
        """Add a point, or replace the one of the same file in the same state."""
        self.points = [each for each in self.points if each.mark != point.mark] + [point]
        self.points.sort(key=_order)

    def find(self, mark: tuple[str, int, int]) -> Point | None:
        """Return the point of a file, if it has not changed since."""
        return next((point for point in self.points if point.mark == mark), None)

    @property
    def done(self) -> list[Point]:
        """Points with numbers, in order of the training run."""
        return [point for point in self.points if point.state == "done"]


def _order(point: Point) -> tuple[Any, ...]:
    value = point.position.value
    return (value is None, value or 0, point.modified_ns if value is None else 0, natural(point.file))


def load_curve(store: Path, name: str, folder: Path) -> Curve:
    """Read a curve, or begin one.

    Raises
    ------
    CurveError
        If the file is damaged, or the curve is that of another folder.
    """
    path = curve_file(store, name, "json")
    try:
        curve = read_curve(path)
    except FileNotFoundError:
        return Curve(name=name, folder=str(folder.resolve()))
    if curve.folder != str(folder.resolve()):
        raise CurveError(f"{path}: the curve {name} is that of {brief_text(curve.folder)}. Choose another --name")
    return curve


def curves_of(store: Path) -> Iterator[Curve | CurveError]:
    """Yield the curves of a store in order of their names; in place of one that can't be read, the error."""
    for path in sorted(curve_file(store, "any", "json").parent.glob("*.json")):
        try:
            yield read_curve(path)
        except FileNotFoundError:  # removed in the meantime
            continue
        except CurveError as error:
            yield error


def read_curve(path: Path) -> Curve:
    """Read the JSON file of a curve.

    Raises
    ------
    CurveError
        If it is damaged.
    FileNotFoundError
        If there is none.
    """
    try:
        content = json.loads(read_regular(path))
        if content["version"] > VERSION:
            raise CurveError(f"{path}: written by a newer version of bench (curve {content['version']})")
        known = {each.name for each in fields(Point)}
        written = [{key: each[key] for key in each if key in known} for each in content["points"]]
        points = TypeAdapter(list[Point]).validate_python(written)
        for point in points:
            _refuse_odd(point)
        return Curve(name=str(content["name"]), folder=str(content["folder"]), points=sorted(points, key=_order))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CurveError(
            f"{path}: a curve that can't be read ({brief_text(first_line(error))}). Move it away to begin another; "
            f"feature sets that exist are not extracted again"
        ) from error


@contextmanager
def only_watch(store: Path, name: str) -> Iterator[None]:
    """Keep other watches from writing to a curve.

    Raises
    ------
    CurveError
        If one does.
    """
    lock = curve_file(store, name, "lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurveError(cannot_write(lock, error)) from error
    with exclusive(lock) as is_mine:
        if not is_mine:
            raise CurveError(f"{lock}: another bench watch keeps the curve {name}. Choose another --name")
        yield


def _refuse_odd(point: Point) -> None:
    """Refuse records that are not those of an evaluation, and a name that would lead out of the store."""
    for record in point.records:
        checked_record(record)
    if point.features and not re.fullmatch(NAME_PATTERN, point.features):
        raise ValueError(f"{point.features!r} can't be the name of a feature set")


def save_curve(store: Path, curve: Curve) -> None:
    """Write a curve as JSON and as CSV, each completely or not at all."""
    content = {
        "version": VERSION,
        "name": curve.name,
        "folder": curve.folder,
        "points": [asdict(p) for p in curve.points],
    }
    text = json.dumps(content, indent=1, ensure_ascii=True)
    write_durably(curve_file(store, curve.name, "json"), f"{text}\n".encode())
    write_durably(curve_file(store, curve.name, "csv"), as_csv(rows_of(curve)).encode("utf-8", "backslashreplace"))


def rows_of(curve: Curve) -> list[Record]:
    """Flat rows of a curve: for each point, layer and setting one."""
    return [
        {"epoch": point.epoch, "step": point.step, "file": point.file, "features": point.features}
        | {key: record.get(key) for key in ("task", "layer", "protocol", "k", "temperature", "clusters", "split")}
        | {key: record.get(key) for key in NUMBERS}
        | {"created": point.created}
        for point in curve.done
        for record in point.records
    ]


def compact(records: Sequence[Record]) -> tuple[Record, ...]:
    """Records without empty values."""
    return tuple({key: value for key, value in record.items() if value is not None} for record in records)


SCORES = {"knn": "top1", "multi_label": "mean_ap"}
"""The number that a curve is drawn of, by task; `multi_label` is kNN of rows with any number of classes."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The kNN setting that a curve is drawn of."""

    task: str
    protocol: str
    k: int
    temperature: float | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Setting | None:
        """The setting of a record; None if it is not kNN of val."""
        if record.get("leave_one_out") or SCORES.get(record["task"], "") not in record:
            return None
        return cls(record["task"], record["protocol"], record["k"], record.get("temperature"))


USUAL_K = 20
"""Shown where several were asked for, as papers report it."""


def shown_setting(points: Sequence[Point]) -> Setting | None:
    """Return the setting that tables show and the best is chosen by: k = 20, or else the first; None without labels."""
    every = [setting for point in points for each in point.records if (setting := Setting.of(each)) is not None]
    usual = [setting for setting in every if setting.k == USUAL_K] or every
    return usual[0] if usual else None


def score_by_layer(point: Point, setting: Setting | None) -> dict[str, float]:
    """Top-1, or mean average precision, of each layer in a setting."""
    if setting is None:
        return {}
    return {each["layer"]: each[SCORES[each["task"]]] for each in point.records if Setting.of(each) == setting}


def nmi_by_layer(point: Point) -> dict[str, float]:
    """NMI of each layer's first clustering, of val."""
    found: dict[str, float] = {}
    for record in point.records:
        if record["task"] == "kmeans" and record.get("split") == "val" and "nmi" in record:
            found.setdefault(record["layer"], record["nmi"])
    return found


def best_point(points: Sequence[Point]) -> Point | None:
    """Return the point with the highest top-1 (or mAP) of any layer, or without kNN the highest NMI."""
    setting = shown_setting(points)

    def score(point: Point) -> float:
        return max((score_by_layer(point, setting) or nmi_by_layer(point)).values(), default=-1.0)

    best = max(points, key=score, default=None)  # the first of equals
    return None if best is None or score(best) < 0 else best
