"""A run writes into the feature set that it checked, or it stops; nothing of it lands in another."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from featbench.store import (
    ChunkWriter,
    FeatureSet,
    Manifest,
    MismatchError,
    SplitRows,
    StoreError,
    Work,
    WorkQueue,
    open_or_create,
    verify,
)
from featbench.store.creation import make_ready
from featbench.store.typing import Floats
from tests.conftest import Arrays, make_features

LAYERS = ["res4", "res5"]


def begun(path: Path, arrays: Arrays, *, trunk: str) -> FeatureSet:
    """Make a feature set of which no chunk is written, and what belongs into it."""
    features, labels = arrays
    made = make_features(path, features, labels, made_from={"model": {"trunk": trunk}})
    for journal in made.journals.glob("*.jsonl"):
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(line for line in lines if b"labels" in line or b"paths" in line))
    return FeatureSet.open(path)


def write_one(made: FeatureSet, writer: ChunkWriter, work: Work, features: dict[str, dict[str, Floats]]) -> None:
    rows = made.grid(work.split).rows(work.chunk)
    values = {name: each[rows.start : rows.stop] for name, each in features[work.split].items()}
    writer.write(work, values, np.ones(len(rows), np.bool_))


def content(path: Path) -> dict[Path, bytes]:
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def other(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    """Another model's feature set, half finished, beside the one that a run is about to write."""
    made = begun(tmp_path / "other", arrays, trunk="two")
    writer = ChunkWriter(made)
    for work in made.pending(LAYERS)[:3]:
        write_one(made, writer, work, arrays[0])
    return made


def test_a_set_that_was_replaced_between_opening_and_locking_is_refused(
    tmp_path: Path, arrays: Arrays, other: FeatureSet
) -> None:
    made = begun(tmp_path / "f", arrays, trunk="one")
    made.pending(LAYERS)
    shutil.rmtree(made.path)
    other.path.rename(made.path)
    before = content(made.path)
    with pytest.raises(MismatchError, match=r"replaced while this run was starting.*\n.*two.*one"), made.lock():
        pass
    with pytest.raises(MismatchError):
        ChunkWriter(made)
    assert {key: text for key, text in content(made.path).items() if key.name != "lock"} == {
        key: text for key, text in before.items() if key.name != "lock"
    }


def test_journals_of_a_set_that_was_made_again_with_the_same_settings_are_read_again(
    tmp_path: Path, arrays: Arrays
) -> None:
    """Another run replaced it by --overwrite with the same settings: what was done before is gone."""
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels, made_from={"model": {"trunk": "one"}})
    assert made.pending(LAYERS) == []
    shutil.rmtree(made.path)
    begun(tmp_path / "f", arrays, trunk="one")
    with made.lock():
        assert len(made.pending(LAYERS)) == 10


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["renamed", "replaced", "removed"])
def test_a_running_writer_stops_when_its_folder_is(
    tmp_path: Path, arrays: Arrays, other: FeatureSet, how: str, rank: int
) -> None:
    """Each rank finds out for itself, whether it came first or not."""
    features, _ = arrays
    made = begun(tmp_path / "f", arrays, trunk="one")
    first = FeatureSet.open(made.path)
    with first.lock("run") as preparing:
        preparing.share()
        with made.lock("run") as lock:
            queue = iter(WorkQueue(made, LAYERS, lock, rank=rank, world_size=2))
            writer = ChunkWriter(made, rank=lock.claim_journal(rank))
            write_one(made, writer, next(queue), features)
            work = next(queue)
            if how == "removed":
                shutil.rmtree(made.path)
            else:
                made.path.rename(tmp_path / "moved")
            if how == "replaced":
                other.path.rename(made.path)
            before = content(made.path) if made.path.exists() else None
            with pytest.raises(StoreError, match="renamed, removed or replaced while this run was writing"):
                write_one(made, writer, work, features)
            with pytest.raises(StoreError, match="renamed, removed or replaced"):
                list(queue)
    assert (content(made.path) if made.path.exists() else None) == before
    if how == "replaced":
        assert not [fault for fault in verify(made.path) if "pending" not in fault.what]
    if how == "renamed":
        moved = FeatureSet.open(tmp_path / "moved")
        assert len(moved.pending(LAYERS)) == 9
        assert not [fault for fault in verify(moved.path) if "pending" not in fault.what]


def test_writes_after_an_unnoticed_rename_go_into_the_renamed_folder(
    tmp_path: Path, arrays: Arrays, other: FeatureSet
) -> None:
    """Between the last look at the path and the write there is always a moment."""
    features, _ = arrays
    made = begun(tmp_path / "f", arrays, trunk="one")
    with made.lock():
        writer = ChunkWriter(made)
        work = made.pending(LAYERS)[0]
        made.path.rename(tmp_path / "moved")
        other.path.rename(made.path)
        before = content(made.path)
        made.check = lambda: None  # type: ignore[method-assign]
        write_one(made, writer, work, features)
    assert content(made.path) == before
    moved = FeatureSet.open(tmp_path / "moved")
    assert len(moved.pending(LAYERS)) == 9
    assert not [fault for fault in verify(moved.path) if "pending" not in fault.what]


def test_a_lock_that_was_removed_stops_the_run_that_held_it(tmp_path: Path, arrays: Arrays) -> None:
    made = begun(tmp_path / "f", arrays, trunk="one")
    with made.lock() as lock:
        lock.share()
        writer = ChunkWriter(made)
        (made.journals / "lock").unlink()
        with pytest.raises(StoreError, match="or the lock in it"):
            write_one(made, writer, made.pending(LAYERS)[0], arrays[0])


def test_a_layer_is_not_added_to_a_set_that_was_replaced(tmp_path: Path, arrays: Arrays, other: FeatureSet) -> None:
    made = begun(tmp_path / "f", arrays, trunk="one")
    info = {"more": made.manifest.layers["res5"]}
    shutil.rmtree(made.path)
    other.path.rename(made.path)
    before = content(made.path)
    with pytest.raises(MismatchError):
        make_ready(made, {}, info)
    assert content(made.path) == before


def test_overwriting_a_link_replaces_its_target_and_keeps_the_link(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    disk = tmp_path / "disk"
    disk.mkdir()
    made = make_features(disk / "real", features, labels, made_from={"model": {"trunk": "one"}})
    link = tmp_path / "store"
    link.mkdir()
    (link / "f").symlink_to(disk / "real")
    manifest = made.manifest
    splits = _rows(made)
    for _ in range(2):  # the second time, the link leads to what was made the first time
        again = open_or_create(link / "f", _other(manifest), splits, overwrite=True)
        assert again.manifest.layers == {}
        assert (link / "f").is_symlink()
        assert FeatureSet.open(disk / "real").manifest.made_from == {"model": {"trunk": "two"}}
        assert [path.name for path in disk.iterdir()] == ["real"]
        assert [path.name for path in link.iterdir()] == ["f"]


def _rows(made: FeatureSet) -> dict[str, SplitRows]:
    return {
        split: SplitRows(labels=made.labels(split), paths=made.paths(split), class_names=info.class_names)
        for split, info in made.manifest.splits.items()
    }


def _other(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, made_from={"model": {"trunk": "two"}}, layers={}, metadata={})


def test_files_of_a_user_that_look_like_leftovers_survive(tmp_path: Path, arrays: Arrays) -> None:
    """Layers and feature sets whose names look like leftovers belong to the user."""
    features, labels = arrays
    named = {split: {"x.partial": layers["res5"], "y": layers["res5"]} for split, layers in features.items()}
    made = make_features(tmp_path / "a", named, labels)
    before = made.layer("train", "x.partial").read()
    beside = [tmp_path / ".a.b.0123456789abcdef0123456789abcdef.partial", tmp_path / ".a.notes.partial"]
    doomed = tmp_path / ".a.0123456789abcdef0123456789abcdef.partial"
    for folder in (*beside, doomed):
        folder.mkdir()
    made = make_features(tmp_path / "a", named, labels)
    assert (made.layer("train", "x.partial").read() == before).all()
    assert not list(verify(made.path))
    assert all(folder.exists() for folder in beside)
    assert not doomed.exists()


def test_a_running_writer_stops_when_another_set_is_copied_over_its_own(
    tmp_path: Path, arrays: Arrays, other: FeatureSet
) -> None:
    """Folder and lock are the same files as before, their contents are not."""
    features, _ = arrays
    made = begun(tmp_path / "f", arrays, trunk="one")
    with made.lock() as lock:
        writer = ChunkWriter(made, rank=lock.claim_journal(0))
        first, second, *_ = made.pending(LAYERS)
        write_one(made, writer, first, features)
        shutil.copytree(other.path, made.path, dirs_exist_ok=True)
        before = content(made.path)
        with pytest.raises(MismatchError, match=r"replaced while this run was starting or writing.*\n.*two.*one"):
            write_one(made, writer, second, features)
    assert content(made.path) == before
    assert not [fault for fault in verify(made.path) if not fault.is_pending]
