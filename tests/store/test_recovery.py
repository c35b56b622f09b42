"""Every feature set that lost a part has a way on: `--repair`, extraction, `--overwrite`."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import zarr

from featbench.store import DamagedError, FeatureSet, StoreError, verify
from featbench.store.creation import remove
from featbench.store.verification import repair
from tests.conftest import Arrays, make_features


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    return make_features(tmp_path / "f", *arrays)


def chunks(path: Path) -> dict[Path, bytes]:
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("c/**/*") if file.is_file()}


PARTS = [
    "journals", "neighbours", "clusters", "train", "val/res5", "train/labels", "val/valid", "zarr.json",
    "train/zarr.json", "journals/metadata.json", "journals/zarr.json", "journals/rank-00000.jsonl", "train/res4/c",
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_set_without_a_part_can_be_repaired_and_extracted_again(made: FeatureSet, arrays: Arrays, part: str) -> None:
    before = chunks(made.path)
    path = made.path / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert list(verify(made.path))
    repair(made.path)
    assert not [fault for fault in verify(made.path) if fault.where.endswith(".json")]
    make_features(made.path, *arrays)
    assert not list(verify(made.path))
    assert chunks(made.path) == before


@pytest.mark.parametrize("part", PARTS)
def test_a_set_without_a_part_can_be_replaced(made: FeatureSet, arrays: Arrays, part: str) -> None:
    path = made.path / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    remove(made.path)
    assert list(made.path.parent.iterdir()) == []
    make_features(made.path, *arrays)
    assert not list(verify(made.path))


def test_a_set_without_journals_is_refused_with_advice(made: FeatureSet) -> None:
    shutil.rmtree(made.journals)
    with pytest.raises(DamagedError, match=r"no folder 'journals'.*verify .* --repair"), made.lock():
        pass
    assert not made.journals.exists()


def test_a_folder_that_is_no_feature_set_is_neither_replaced_nor_repaired(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(StoreError, match="not a feature set"):
        remove(mine)
    with pytest.raises(StoreError, match="not a feature set"):
        repair(mine)
    assert [path.name for path in mine.iterdir()] == ["zarr.json"]


def test_a_set_is_deleted_only_once_its_name_is_gone_for_good(
    made: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could bring back the half of it that was left, under its name."""
    done = []
    for name in ("rename", "fsync", "unlink"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, _name=name, _real=real, **kwargs: done.append(_name) or _real(*args, **kwargs)
        )
    remove(made.path)
    assert done[:3] == ["rename", "fsync", "unlink"]


def more(arrays: Arrays) -> Arrays:
    features, labels = arrays
    return {split: {**layers, "more": layers["res5"] * 2} for split, layers in features.items()}, labels


def test_the_copy_of_the_metadata_is_renewed_by_the_next_start(made: FeatureSet, arrays: Arrays) -> None:
    copy = made.journals / "metadata.json"
    old = copy.read_bytes()
    make_features(made.path, *more(arrays))
    new = copy.read_bytes()
    for content in (old, b"", b"{}", None):
        copy.unlink() if content is None else copy.write_bytes(content)
        assert [fault.where for fault in verify(made.path)] == ["journals/metadata.json"]
        make_features(made.path, *more(arrays))
        assert copy.read_bytes() == new
        assert not list(verify(made.path))


def test_repair_never_restores_a_manifest_without_a_journalled_layer(made: FeatureSet, arrays: Arrays) -> None:
    copy = made.journals / "metadata.json"
    old = copy.read_bytes()
    make_features(made.path, *more(arrays))
    root = (made.path / "zarr.json").read_bytes()
    copy.write_bytes(old)
    (made.path / "zarr.json").write_bytes(root[:-9])
    assert "from before these layers were added: more" in next(iter(verify(made.path))).what
    assert repair(made.path) == []
    assert (made.path / "zarr.json").read_bytes() == root[:-9]
    (made.path / "zarr.json").write_bytes(root)
    assert repair(made.path) == ["journals/metadata.json"]
    assert not list(verify(made.path))


def test_adding_a_layer_keeps_what_the_copy_knows_of_damaged_metadata(made: FeatureSet, arrays: Arrays) -> None:
    path = made.path / "val/res5/zarr.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"float32", b"float64"))
    features, labels = more(arrays)
    make_features(made.path, {split: {"more": layers["more"]} for split, layers in features.items()}, labels)
    assert [fault.where for fault in verify(made.path)] == ["val/res5/zarr.json"]
    assert repair(made.path) == ["val/res5/zarr.json"]
    assert path.read_bytes() == before
    assert not list(verify(made.path))


def consolidate(path: Path, *parts: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in parts or ("",):
            zarr.consolidate_metadata(str(path), path=part)


@pytest.mark.parametrize("parts", [("",), ("train", "val", ""), ("val",)])
def test_consolidated_metadata_is_no_damage_and_hides_no_layer(
    made: FeatureSet, arrays: Arrays, parts: tuple[str, ...]
) -> None:
    root = (made.path / "zarr.json").read_bytes()
    consolidate(made.path, *parts)
    assert not list(verify(made.path))
    assert (made.layer("val", "res5").read() == arrays[0]["val"]["res5"]).all()
    features, labels = more(arrays)
    again = make_features(made.path, features, labels)
    assert not list(verify(made.path))
    assert (again.layer("val", "more").read() == features["val"]["more"]).all()
    assert "more" in zarr.open_group(str(made.path), mode="r")["train"].array_keys()
    manifest = json.loads((made.path / "zarr.json").read_bytes())
    assert "consolidated_metadata" not in manifest
    assert list(manifest) == list(json.loads(root))


def test_damage_besides_consolidated_metadata_is_noticed_and_repaired(made: FeatureSet) -> None:
    path = made.path / "zarr.json"
    before = path.read_bytes()
    consolidate(made.path)
    path.write_bytes(path.read_bytes().replace(b'"featbench_sha256"', b'"featbench_sha257"'))
    assert [fault.where for fault in verify(made.path)] == ["zarr.json"]
    assert repair(made.path) == ["zarr.json"]
    assert path.read_bytes() == before
    assert FeatureSet.open(made.path).manifest == made.manifest
