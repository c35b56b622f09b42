"""Watching the folder of a training run: each checkpoint that appears is evaluated as `bench run` would."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featbench.evaluate.results import Record
from featbench.extract.weights.checkpoints import WeightsError, read_checkpoint, weight_files
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.suites.checkpoints import SUFFIXES, label_of_match
from featbench.pipelines.suites.curve import Curve, Point, best_point, compact, save_curve
from featbench.pipelines.suites.positions import Position, position_of
from featbench.pipelines.suites.running import run_one
from featbench.pipelines.suites.suite import Member, name_after
from featbench.store import BenchError, FeatureSet, StoreError
from featbench.store.creation import remove
from featbench.store.manifest import digest_of

logger = logging.getLogger(__name__)

SETTLE_S = 2.0
"""A file is complete if its size and its time have not changed for this long."""

YOUNG_S = 60.0
"""A file that can't be read is waited for this long after it was last written to; then it is broken."""

KEEP = ("best", "last")
"""Whose feature sets can be kept while the others are removed."""

Mark = tuple[str, int, int]
"""A file, its size, and when it was modified."""


class WatchError(BenchError):
    """A folder that can't be watched."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """One training run: its folder, how its checkpoints are evaluated, and the curve so far."""

    folder: Path
    pattern: str
    """Which files below the folder; empty for all checkpoints directly in it."""

    load: Callable[[Path, str], Pipeline]
    """Makes the pipeline of a checkpoint, with the name of its feature set."""

    run: Callable[[Pipeline], list[Record]]
    """Runs a pipeline, computing only what is missing, and returns its records."""

    store: Path
    curve: Curve
    settings: str
    """Digest of the settings that the numbers depend on."""

    trust: bool = False
    """Whether checkpoints may run code when they are read."""

    keep: Sequence[str] = ()
    """What to keep of the feature sets that the watch made; all, if empty."""

    on_point: Callable[[Point], Point] = lambda point: point
    """Called with each new point; returns it with where it was logged."""

    sleep: Callable[[float], None] = time.sleep
    _tried: set[Mark] = field(default_factory=set)
    _waiting: set[Mark] = field(default_factory=set)

    def look(self) -> Iterator[Point]:
        """Evaluate the checkpoints that are new, oldest first, and yield the point of each."""
        for path, mark in self._complete():
            point = self._evaluate(path, mark)
            if point is None:
                continue
            if point.state == "done":
                point = self.on_point(point)
            self._save(point)
            self.clean_up()
            yield point

    def log_earlier(self) -> None:
        """Hand over the points that were evaluated before, too."""
        for point in self.curve.done:
            if (now := self.on_point(point)) != point:
                self._save(now)

    def clean_up(self) -> None:
        """Remove the feature sets that the watch made, but for those that are kept."""
        if not self.keep:
            return
        done = self.curve.done
        kept = {point.features for point in done[-1:] if "last" in self.keep}
        best = best_point(done)
        if "best" in self.keep:
            if best is None:  # nothing says which
                return
            kept.add(best.features)
        for point in done:
            if point.made and not point.removed and point.features not in kept:
                self._remove(point)

    def _remove(self, point: Point) -> None:
        path = self.store / point.features
        try:
            if path.is_dir():
                if FeatureSet.open(path).manifest.fingerprint != point.fingerprint:
                    logger.warning("%s: not removed: it is not what the watch made there", path)
                    self._save(replace(point, made=False))
                    return
                remove(path)
                logger.info("removed %s", path)
        except StoreError as error:  # another run writes to it: the next look tries again
            logger.warning("%s: not removed: %s", path, error)
            return
        self._save(replace(point, removed=True))

    def _complete(self) -> Iterator[tuple[Path, Mark]]:
        """Find the files that are to be evaluated and have not changed for a while, in order of their time."""
        before = {mark: path for path, mark in self._found() if not self._is_dealt_with(mark)}
        if not before:
            return
        self.sleep(SETTLE_S)
        now = {mark for _, mark in self._found()}
        for mark, path in sorted(before.items(), key=lambda each: (each[0][2], each[0][0])):
            if mark in now:
                yield path, mark

    def _found(self) -> Iterator[tuple[Path, Mark]]:
        seen: set[Path] = set()
        for path in sorted(self.folder.glob(self.pattern or "*")):
            relative = path.relative_to(self.folder)
            if any(part.startswith(".") for part in relative.parts):
                continue
            if not self.pattern and not (path.is_file() and path.name.lower().endswith(SUFFIXES)):
                continue
            with suppress(OSError, WeightsError):
                real = path.resolve()
                if real not in seen:  # last.ckpt may be a link to another
                    seen.add(real)
                    yield path, mark_of(path, str(relative))

    def _is_dealt_with(self, mark: Mark) -> bool:
        point = self.curve.find(mark)
        if mark in self._tried:
            return True
        if point is None or point.settings != self.settings:
            return False
        return point.state == "done" or (point.state == "failed" and point.is_broken)

    def _evaluate(self, path: Path, mark: Mark) -> Point | None:
        """Evaluate a checkpoint; None if it is not complete yet."""
        try:
            position = position_of(path, read_checkpoint(path, trust=self.trust))
        except WeightsError as error:
            if time.time() - mark[2] / 1e9 < YOUNG_S:
                if mark not in self._waiting:
                    logger.info("%s: can't be read yet; waiting until it is whole", path)
                self._waiting.add(mark)
                return None
            logger.error("skipped until it changes: %s", error)
            self._tried.add(mark)
            return self._point(mark, position_of(path), "", state="failed", error=str(error), is_broken=True)
        self._tried.add(mark)
        name = self._name(path, mark, position)
        before = self.curve.find(mark)
        is_ours = before is not None and before.made and before.features == name
        made = is_ours or not (self.store / name).exists()
        point = self._point(mark, position, name, made=made)
        self._save(point)
        try:
            pipeline = self.load(path, name)
        except BenchError as error:
            logger.error("%s failed: %s", name, error)
            return replace(point, state="failed", error=str(error))
        outcome = run_one(Member(title=name, pipeline=pipeline), self.run)
        if outcome.error is not None:
            return replace(point, state="failed", error=outcome.error, is_broken=outcome.is_of_weights)
        fingerprint = FeatureSet.open(self.store / name).manifest.fingerprint
        records = compact(outcome.records)
        return replace(point, state="done", fingerprint=fingerprint, records=records)

    def _point(self, mark: Mark, position: Position, name: str, **others: Any) -> Point:
        file, size, modified_ns = mark
        return Point(
            file=file, size=size, modified_ns=modified_ns, settings=self.settings, features=name, epoch=position.epoch,
            step=position.step, created=datetime.now(UTC).isoformat(timespec="seconds"), **others,
        )  # fmt: skip

    def _name(self, path: Path, mark: Mark, position: Position) -> str:
        """Name of a checkpoint's feature set: as in a suite, and if the file has changed since, with its position."""
        name = name_after(self.curve.name, label_of_match(self.pattern or "*", path.relative_to(self.folder)))
        taken = {point.features for point in self.curve.points if point.mark != mark and point.features}
        if name not in taken:
            return name
        digest = hashlib.sha256(repr(mark).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        placed = [f"{name}-{position}"] if str(position) else []
        return next(each for each in [*placed, f"{name}-{digest}"] if each not in taken)

    def _save(self, point: Point) -> None:
        self.curve.put(point)
        save_curve(self.store, self.curve)


def mark_of(path: Path, name: str) -> Mark:
    """Size and time of a file, or of the files of weights in a folder.

    Raises
    ------
    OSError, WeightsError
        If it does not exist, or the folder has none.
    """
    found = [file.stat() for file in weight_files(path)]
    return name, sum(each.st_size for each in found), max(each.st_mtime_ns for each in found)


def digest_of_settings(pipeline: Pipeline) -> str:
    """Digest of all settings of a pipeline that numbers depend on, but for the checkpoint."""
    settings = pipeline.model_dump(mode="json")
    extract = {key: settings["extract"][key] for key in ("batch_size", "precision", "compile")}
    weights = {key: value for key, value in settings["weights"].items() if key not in ("file", "trust")}
    evaluate = {
        key: value for key, value in settings["evaluate"].items() if key not in ("memory", "device", "precision")
    }
    same = {key: settings[key] for key in ("data", "transform", "model", "layers", "storage")}
    return digest_of({**same, "extract": extract, "weights": weights, "evaluate": evaluate})[:16]
