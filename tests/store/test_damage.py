"""Whatever happens to the files, a reader refuses or `verify` names it; `repair` leaves only it to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from featbench.store import DamagedError, FeatureSet, verify
from featbench.store.verification import repair
from tests.conftest import Arrays, make_features, write_pending


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    return make_features(tmp_path / "f", *arrays)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, 100, -1, -5])
def test_a_flipped_bit_of_a_chunk_is_refused_by_name(made: FeatureSet, at: int) -> None:
    flip(made.path / "train/res5/c/2/0", at)
    with pytest.raises(DamagedError, match=r"train/res5, chunk 2: .*verify.*--repair"):
        made.layer("train", "res5").read()
    assert [fault.where for fault in verify(made.path)] == ["train/res5 chunk 2"]


def test_a_shorter_chunk_is_refused_with_both_sizes(made: FeatureSet) -> None:
    path = made.path / "val/res4/c/0/0/0/0"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedError, match=r"val/res4, chunk 0: .*has 506 bytes, 516 were written"):
        made.layer("val", "res4").read()


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_or_empty_chunk_is_refused(made: FeatureSet, content: bytes | None) -> None:
    path = made.path / "train/res5/c/1/0"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DamagedError, match="train/res5, chunk 1"):
        made.layer("train", "res5").read()


def test_a_chunk_in_anothers_place_is_refused(made: FeatureSet) -> None:
    """Both are intact, so only the journal tells them apart."""
    shutil.copy(made.path / "train/res5/c/0/0", made.path / "train/res5/c/1/0")
    with pytest.raises(DamagedError, match="train/res5, chunk 1: .*journalled"):
        made.layer("train", "res5").read()


@pytest.mark.parametrize("name", ["labels", "paths", "valid"])
def test_damaged_labels_paths_and_flags_are_refused(made: FeatureSet, name: str) -> None:
    flip(made.path / f"val/{name}/c/0", 0)
    with pytest.raises(DamagedError, match=f"val/{name}"):
        getattr(made, name)("val")


@pytest.mark.parametrize("key", ["train/res5", "train/labels", "val/res4"])
def test_changed_metadata_of_an_array_is_refused(made: FeatureSet, key: str) -> None:
    """Zarr reads another shape or type from the same bytes without a word."""
    path = made.path / key / "zarr.json"
    path.write_text(path.read_text().replace("float32", "float16").replace("int64", "uint64"))
    split, name = key.split("/")
    assert f"{key}/zarr.json" in [fault.where for fault in verify(made.path)]
    with pytest.raises(DamagedError, match=r"zarr\.json: not what was written"):
        made.labels(split) if name == "labels" else made.layer(split, name).read()


def test_a_changed_manifest_is_refused(made: FeatureSet) -> None:
    path = made.path / "zarr.json"
    path.write_text(path.read_text().replace("fake", "real"))
    with pytest.raises(DamagedError, match="manifest is not what was written"):
        FeatureSet.open(made.path)


def test_a_torn_last_record_does_not_count_and_is_removed(made: FeatureSet, arrays: Arrays) -> None:
    path = made.journals / "rank-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = FeatureSet.open(made.path)
    assert len(again.pending(["res4", "res5"])) == 1
    write_pending(again, arrays[0])
    assert not again.pending(["res4", "res5"])
    assert not list(verify(made.path))


def test_a_changed_record_is_refused(made: FeatureSet) -> None:
    path = made.journals / "rank-00000.jsonl"
    flip(path, path.read_bytes().index(b"res5"))
    again = FeatureSet.open(made.path)
    with pytest.raises(DamagedError, match=r"rank-00000\.jsonl: line \d+ is not what was written"):
        again.layer("train", "res5")
    assert "journals/" in next(iter(verify(again.path))).where


@pytest.mark.parametrize(
    "target", ["train/res5/c/3/0", "val/valid/c/1", "journals/rank-00000.jsonl", "train/labels/c/0"]
)
def test_after_a_repair_only_damaged_chunks_are_rewritten_with_the_same_bytes(
    made: FeatureSet, arrays: Arrays, target: str
) -> None:
    features, labels = arrays
    before = {path: path.read_bytes() for path in made.path.rglob("c/**/*") if path.is_file()}
    flip(made.path / target, 5)
    faults = list(verify(made.path))
    assert faults
    # Which images a chunk's layers came from is not known without its flags, so its layers go with them.
    assert len(repair(made.path)) == (3 if "valid" in target else 1)
    made = FeatureSet.open(made.path)
    assert len(made.pending(["res4", "res5"])) <= 1
    make_features(made.path, features, labels)
    made = FeatureSet.open(made.path)
    assert not list(verify(made.path))
    assert {path: path.read_bytes() for path in made.path.rglob("c/**/*") if path.is_file()} == before


@pytest.mark.parametrize("key", ["zarr.json", "train/zarr.json", "val/res4/zarr.json", "journals/zarr.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_metadata_is_restored_byte_by_byte(made: FeatureSet, key: str, content: bytes | None) -> None:
    path = made.path / key
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    assert next(fault.where for fault in verify(made.path)) == key
    assert repair(made.path) == [key]
    assert path.read_bytes() == before
    assert not list(verify(made.path))


def test_a_damaged_copy_of_the_metadata_is_rewritten(made: FeatureSet) -> None:
    copy = made.journals / "metadata.json"
    before = copy.read_bytes()
    flip(copy, 200)
    assert [fault.where for fault in verify(made.path)] == ["journals/metadata.json"]
    repair(made.path)
    assert copy.read_bytes() == before


def test_a_copy_from_before_a_layer_was_added_does_not_remove_the_layer(made: FeatureSet, arrays: Arrays) -> None:
    """A run that is killed between the manifest and its copy leaves such a one."""
    copy = made.journals / "metadata.json"
    old = copy.read_bytes()
    features, labels = arrays
    more = {split: {**layers, "more": layers["res5"] * 2} for split, layers in features.items()}
    made = make_features(made.path, more, labels)
    new = copy.read_bytes()
    copy.write_bytes(old)
    repair(made.path)
    assert copy.read_bytes() == new
    assert not list(verify(made.path))
    assert "more" in FeatureSet.open(made.path).manifest.layers


def test_what_cannot_be_restored_is_reported(made: FeatureSet) -> None:
    (made.path / "zarr.json").write_bytes(b"")
    (made.journals / "metadata.json").unlink()
    assert repair(made.path) == []
    assert "zarr.json" in [fault.where for fault in verify(made.path)]
