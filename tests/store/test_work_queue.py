"""Claims cost the same however many journals there are, and marks never hide or repeat a chunk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.store import ChunkWriter, FeatureSet, Work, WorkQueue
from featbench.store.journal import Journal
from featbench.store.lock import RunLock
from featbench.store.records import Record
from tests.conftest import Arrays, make_features

LAYERS = ["res4", "res5"]


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    """Feature set without chunks: 7 of train, 3 of val are pending."""
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels)
    for journal in made.journals.glob("*.jsonl"):
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(line for line in lines if b"labels" in line or b"paths" in line))
    return FeatureSet.open(tmp_path / "f")


def write(features: FeatureSet, item: Work, arrays: Arrays, *, rank: int = 0) -> None:
    rows = features.grid(item.split).rows(item.chunk)
    values = {name: array[rows.start : rows.stop] for name, array in arrays[0][item.split].items()}
    ChunkWriter(features, rank=rank).write(item, values, np.ones(len(rows), np.bool_))


def named(items: Iterator[Work]) -> list[tuple[str, int]]:
    return [(item.split, item.chunk) for item in items]


def everything(made: FeatureSet) -> list[tuple[str, int]]:
    return [(split, chunk) for split in ("train", "val") for chunk in range(made.grid(split).num_chunks)]


@pytest.mark.parametrize("num_journals", [2, 60])
def test_a_claim_opens_no_journal(made: FeatureSet, monkeypatch: pytest.MonkeyPatch, num_journals: int) -> None:
    for number in range(1, num_journals):
        (made.journals / f"rank-{number:05d}.jsonl").touch()
    with made.lock("one") as lock:
        lock.share()
        handed = iter(WorkQueue(made, LAYERS, lock))
        next(handed)
        opened, really_open = [], os.open

        def noted(path: object, *more: Any, **options: Any) -> int:
            opened.append(path)
            return really_open(path, *more, **options)

        monkeypatch.setattr(os, "open", noted)
        for _ in range(8):
            next(handed)
        assert not opened


def test_what_was_marked_and_not_journalled_is_handed_out(made: FeatureSet) -> None:
    """The rank that marked it died in between."""
    with made.lock("one") as lock:
        lock.share()
        with made.lock("one") as dead:
            for split, chunk in (("train", 2), ("val", 0)):
                assert dead.claim_chunk(made.chunk_number(split, chunk))
                dead.mark_chunk(made.chunk_number(split, chunk))
        assert sorted(named(WorkQueue(made, LAYERS, lock))) == everything(made)


def test_what_was_marked_and_is_being_journalled_is_left_to_the_rank_that_does(made: FeatureSet) -> None:
    with made.lock("one") as lock:
        lock.share()
        with made.lock("one") as other:
            assert other.claim_chunk(made.chunk_number("val", 1))
            other.mark_chunk(made.chunk_number("val", 1))
            handed = named(WorkQueue(made, LAYERS, lock))
            assert sorted(handed) == [each for each in everything(made) if each != ("val", 1)]


@pytest.mark.parametrize("marks", [True, False])
def test_what_another_rank_journals_meanwhile_is_not_handed_out(
    made: FeatureSet, arrays: Arrays, monkeypatch: pytest.MonkeyPatch, marks: bool
) -> None:
    """Also if the first process of the run is of a version that knows no marks: then journals are read."""
    with made.lock("one") as lock:
        lock.share()
        lock.has_marks = marks
        if not marks:
            monkeypatch.setattr(RunLock, "mark_chunk", lambda self, number: None)
        handed = iter(WorkQueue(made, LAYERS, lock))
        seen = [next(handed)]
        others = FeatureSet.open(made.path)
        written = others.pending(LAYERS)[3:6]
        with others.lock("one"):
            for rank, item in enumerate(written, start=5):
                write(others, item, arrays, rank=rank)
        assert sorted(named(seen) + named(handed)) == sorted(set(everything(made)) - set(named(written)))


def test_a_mark_is_durable_before_the_record(made: FeatureSet, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    with made.lock("one") as lock:
        lock.share()
        item = next(iter(WorkQueue(made, LAYERS, lock)))
        events, fsync, inode = [], os.fsync, (made.path / "journals/lock").stat().st_ino

        def noted(file: int) -> None:
            events.append("lock" if os.fstat(file).st_ino == inode else "other")
            fsync(file)

        def append(self: Journal, records: list[Record]) -> None:
            events.append("marked" if lock.is_marked(made.chunk_number(item.split, item.chunk)) else "unmarked")

        monkeypatch.setattr(os, "fsync", noted)
        monkeypatch.setattr(Journal, "append", append)
        write(made, item, arrays)
        assert events[-2:] == ["lock", "marked"]


def test_a_new_run_begins_without_marks(made: FeatureSet) -> None:
    with made.lock("one") as lock:
        lock.share()
        lock.mark_chunk(3)
        assert lock.marks(10).tolist() == [number == 3 for number in range(10)]
    with made.lock("two") as lock:
        assert lock.has_marks
        assert not lock.marks(10).any()
        holder = json.loads((made.path / "journals/lock").read_bytes())
        assert (holder["run"], holder["pid"]) == ("two", os.getpid())


def test_a_run_whose_first_process_knows_no_marks_is_joined_without_them(made: FeatureSet) -> None:
    with made.lock("one") as first:
        first.share()
        path = made.path / "journals/lock"
        holder = json.loads(path.read_bytes())
        del holder["marks"]
        with path.open("r+") as file:
            file.truncate()
            file.write(json.dumps(holder))
        with made.lock("one") as second:
            assert not second.has_marks
