"""A feature set from someone else can't lead this program out of its folder, nor make it fail with a traceback."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.store import BenchError, DamagedError, FeatureSet, StoreError, load_cached, save_cached, verify
from featbench.store.creation import remove
from featbench.store.durable import write_durably
from featbench.store.lock import join_run
from featbench.store.manifest import ATTRIBUTE, DIGEST, digest_of
from featbench.store.typing import Floats
from featbench.store.verification import repair
from tests.conftest import Arrays, make_features, write_pending


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    return make_features(tmp_path / "store/f", *arrays)


def edit_manifest(made: FeatureSet, change: Callable[..., Any]) -> None:
    """Change the manifest, with a digest that is right."""
    path = made.path / "zarr.json"
    document = json.loads(path.read_bytes())
    change(document["attributes"][ATTRIBUTE])
    document["attributes"][DIGEST] = digest_of(document["attributes"][ATTRIBUTE])
    path.write_text(json.dumps(document, indent=2))


def edit_copy(made: FeatureSet, change: Callable[..., Any]) -> None:
    path = made.journals / "metadata.json"
    files = json.loads(path.read_bytes())["files"]
    change(files)
    path.write_text(json.dumps({"files": files, "sha256": digest_of(files)}))


def everything_but(folder: Path, made: FeatureSet) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(made.path)
    }


OUTSIDE = ["../../outside/zarr.json", "/tmp/outside-of-a-feature-set/zarr.json", "..", "train/../../x/zarr.json"]


@pytest.mark.parametrize("key", OUTSIDE)
def test_repair_writes_nothing_that_a_copy_names_outside_of_the_set(tmp_path: Path, made: FeatureSet, key: str) -> None:
    before = everything_but(tmp_path, made)
    edit_copy(made, lambda files: files.update({key: "owned"}))
    (made.path / "train/zarr.json").unlink()
    assert repair(made.path) == ["train/zarr.json"]
    assert not list(verify(made.path))
    assert everything_but(tmp_path, made) == before
    (made.path / "zarr.json").unlink()
    assert repair(made.path) == ["zarr.json"]
    assert everything_but(tmp_path, made) == before


ELSEWHERE = ["../x", "/x", "a//b", ".x", "", "..", "a\x00b", "a\n", "a/zarr.json"]


@pytest.mark.parametrize(
    ("where", "name"),
    [(where, name) for where in ("layers", "splits", "metadata") for name in ELSEWHERE]
    + [("layers", "labels"), ("layers", "zarr.json"), ("layers", "a/b"), ("splits", "a/b")],
)
def test_a_manifest_whose_names_lead_elsewhere_is_refused(made: FeatureSet, where: str, name: str) -> None:

    def change(manifest: dict[str, Any]) -> None:
        manifest[where][name] = next(iter(manifest[where].values()))

    edit_manifest(made, change)
    with pytest.raises(DamagedError, match="the manifest has invalid contents"):
        FeatureSet.open(made.path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows_per_chunk",), 0),
        (("rows_per_chunk",), "8"),
        (("splits", "train", "num_rows"), -1),
        (("splits", "train", "class_names"), 7),
        (("splits",), {}),
        (("splits",), []),
        (("layers", "res5", "shape"), "ab"),
        (("layers", "res5", "shape"), [2.5]),
        (("layers", "res5"), None),
        (("dtype",), "object"),
        (("compression",), "gzip"),
        (("notes",), None),
        (("made_from",), [1]),
    ],
)
def test_a_manifest_with_values_of_another_kind_is_refused(made: FeatureSet, path: tuple[str, ...], value: Any) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    edit_manifest(made, change)
    with pytest.raises(DamagedError, match="the manifest has invalid contents"):
        FeatureSet.open(made.path)


def test_a_manifest_with_a_key_of_a_later_version_is_read(made: FeatureSet) -> None:
    edit_manifest(made, lambda manifest: manifest.update(colour="blue"))
    assert set(FeatureSet.open(made.path).manifest.layers) == {"res4", "res5"}


def write_what_is_pending(path: Path, features: dict[str, dict[str, Floats]]) -> bool:
    """Return whether it was written."""
    try:
        again = FeatureSet.open(path)
        with again.lock():
            write_pending(again, features)
    except StoreError:
        return False
    return True


@pytest.mark.parametrize("target", ["journals", "journals/lock", "journals/rank-00000.jsonl", "train/res5", "train"])
def test_nothing_is_written_through_a_link_that_leads_out(
    tmp_path: Path, made: FeatureSet, arrays: Arrays, target: str
) -> None:
    """The lock would be emptied, the journal appended to, chunks written."""
    path, outside = made.path / target, tmp_path / "outside"
    journal = made.journals / "rank-00000.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-4]))
    if target == "journals/lock":
        path.write_bytes(b"precious")
    path.rename(outside)
    path.symlink_to(outside)
    before = {file: file.read_bytes() for file in [outside, *outside.rglob("*")] if file.is_file()}
    assert not write_what_is_pending(made.path, arrays[0])
    assert {file: file.read_bytes() for file in [outside, *outside.rglob("*")] if file.is_file()} == before


@pytest.mark.parametrize("content", [b"[]", b"7", b'{"run": 1}', b'{"run":"a","host":"b","pid":"c","since":"d"}', b"["])
def test_a_lock_file_with_invalid_contents_names_no_holder(made: FeatureSet, content: bytes) -> None:
    with made.lock("one"):
        (made.journals / "lock").write_bytes(content)
        with pytest.raises(StoreError, match="an unknown process"), FeatureSet.open(made.path).lock("two"):
            pass


@pytest.mark.parametrize("text", ['{"key":"../x","size":9,"crc32c":1}', '{"key":3}', "[]", "{", '{"key":"train/x"}'])
def test_a_journal_line_that_no_writer_writes_is_damage(made: FeatureSet, text: str) -> None:
    import google_crc32c

    journal = made.journals / "rank-00000.jsonl"
    with journal.open("ab") as file:
        file.write(f"{google_crc32c.value(text.encode()):08x} {text}\n".encode())
    with pytest.raises(DamagedError, match="is not what was written"):
        FeatureSet.open(made.path).labels("train")
    assert len(repair(made.path)) == 1
    assert not list(verify(made.path))


def test_writing_is_refused_where_a_lock_could_end_unnoticed(made: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX's locks end when any part of the process closes the file, and a process never excludes itself."""
    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    with pytest.raises(StoreError, match="no locks of open files"), made.lock():
        pass
    assert made.layer("train", "res5").read().shape == (50, 6)


def test_a_lock_survives_other_openings_and_closings_of_its_file(made: FeatureSet) -> None:
    path = made.journals / "lock"
    with join_run(path, "one"):
        path.read_text()
        os.close(os.open(path, os.O_RDWR))
        with pytest.raises(BenchError, match="another extraction is writing"), join_run(path, "two"):
            pass


def test_a_file_is_written_durably_below_folders_that_are_durable_in_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())) or fsync(fd))
    write_durably(tmp_path / "a/b/c.json", b"x")
    folders = [path for path in synced if ".partial" not in path]
    assert folders == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]


def test_a_name_that_is_too_long_is_not_called_a_full_disk(tmp_path: Path, arrays: Arrays) -> None:
    with pytest.raises(StoreError, match="too long for the file system. Choose a shorter one"):
        make_features(tmp_path / ("x" * 250), *arrays)


@pytest.mark.root
def test_a_set_that_is_a_mount_point_is_not_called_a_full_disk(tmp_path: Path, made: FeatureSet) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", made.path, mounted], check=True)
    try:
        with pytest.raises(StoreError, match="a file system is mounted here.*Unmount it"):
            remove(mounted)
        assert not list(verify(mounted))
    finally:
        subprocess.run(["umount", mounted], check=True)


FILES = ["zarr.json", "journals/metadata.json", "journals/rank-00000.jsonl", "journals/lock", "train/res5/zarr.json",
         "train/res5/c/0/0", "train/labels/c/0", "neighbours/k/zarr.json", "neighbours/k/rows/zarr.json",
         "neighbours/k/rows/c/0"]  # fmt: skip


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_pipes_devices_and_folders_in_place_of_files_neither_block_nor_are_written_to(
    made: FeatureSet, arrays: Arrays, kind: str
) -> None:
    """Reading a pipe never ends without a writer, and /dev/zero never ends."""
    save_cached(made, "neighbours", "k", {"rows": np.arange(3)}, {})
    for name in FILES:
        path = made.path / name
        path.rename(made.path.parent / "aside")
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        assert load_cached(made, "neighbours", "k") is None or not name.startswith("neighbours")
        found = within_seconds(lambda: list(verify(made.path)))
        assert bool(found) == (name != "journals/lock" and not name.startswith("neighbours")), name
        writes = within_seconds(lambda: write_what_is_pending(made.path, arrays[0]))
        assert not (writes and name in ("zarr.json", "journals/rank-00000.jsonl", "journals/lock")), name
        assert not (name == "journals/rank-00000.jsonl" and within_seconds(lambda: repaired(made.path))), name
        path.rmdir() if kind == "a folder" else path.unlink()
        (made.path.parent / "aside").rename(path)
        assert not list(verify(made.path))


def repaired(path: Path) -> list[str] | None:
    try:
        return repair(path)
    except StoreError:
        return None


def within_seconds(act: Callable[..., Any]) -> Any:
    """Do it, unless it waits."""
    before = signal.signal(signal.SIGALRM, lambda *arguments: pytest.fail("it waits"))
    signal.alarm(20)
    try:
        return act()
    except StoreError as error:
        return [error]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
