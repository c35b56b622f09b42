"""Kept results: what is believed when they are read back is under a digest; the rest is computed again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featbench.store import FeatureSet, list_cached, load_cached, save_cached
from tests.conftest import Arrays, make_features

KIND, KEY = "neighbours", "res5-cosine-0123456789abcdef"
VALUES = {"rows": np.arange(12).reshape(4, 3), "similarities": np.linspace(1, 0, 12).reshape(4, 3)}
FACTS = {"recall": 0.64, "engine": "faiss IVF4,Flat", "num_zeros": 12, "of": {"seconds": 1.5}}


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    made = make_features(tmp_path / "f", *arrays)
    save_cached(made, KIND, KEY, VALUES, FACTS)
    return made


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_cached_result_is_loaded_as_saved(made: FeatureSet) -> None:
    found = load_cached(made, KIND, KEY)
    assert found
    values, facts = found
    assert facts == FACTS
    assert all(np.array_equal(values[name], VALUES[name]) for name in VALUES)
    assert values["rows"].dtype == np.int64


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("zarr.json", "0.64", "0.94"),
        ("zarr.json", '"num_zeros": 12', '"num_zeros": 13'),
        ("zarr.json", '"num_zeros"', '"num_zeroes"'),
        ("zarr.json", '"seconds": 1.5', '"seconds": 2.5'),
        ("zarr.json", '"engine"', '"motor"'),
        ("zarr.json", '"facts"', '"fakts"'),
        ("zarr.json", '"digest"', '"sha256"'),
        ("zarr.json", '"arrays"', '"sha256"'),
        ("zarr.json", '"similarities"', '"../../val/res5"'),
        ("zarr.json", '"shape": [\n', '"shape": "",\n"x": [\n'),
        ("zarr.json", "attributes", "atributes"),
        ("rows/zarr.json", "int64", "uint64"),
        ("similarities/zarr.json", "float64", "int64"),
    ],
)
def test_a_changed_fact_name_type_or_shape_is_damage_with_one_warning(
    made: FeatureSet, caplog: pytest.LogCaptureFixture, file: str, old: str, new: str
) -> None:
    edit(made.path / KIND / KEY / file, old, new)
    with caplog.at_level(logging.WARNING):
        assert load_cached(made, KIND, KEY, without_digest=True) is None
        assert load_cached(made, KIND, KEY) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "damaged" in caplog.text
    assert "so it is not used" in caplog.text
    save_cached(made, KIND, KEY, VALUES, FACTS)
    assert load_cached(made, KIND, KEY)[1] == FACTS


def test_another_shape_of_the_same_bytes_is_damage(made: FeatureSet) -> None:
    for file in ("rows/zarr.json", "zarr.json"):
        path = made.path / KIND / KEY / file
        content = json.loads(path.read_bytes())
        for part in (content, *content["attributes"].get("arrays", {}).values()):
            if part.get("shape") == [4, 3]:
                part["shape"] = [3, 4]
        if file != "zarr.json":
            content["chunk_grid"]["configuration"]["chunk_shape"] = [4, 3]
        path.write_text(json.dumps(content))
    assert load_cached(made, KIND, KEY) is None


def test_a_result_under_another_key_is_not_loaded(made: FeatureSet) -> None:
    """Someone renamed a folder, or copied it into another feature set's."""
    shutil.copytree(made.path / KIND / KEY, made.path / KIND / "res4-cosine-0123456789abcdef")
    assert load_cached(made, KIND, "res4-cosine-0123456789abcdef") is None
    assert load_cached(made, KIND, KEY) is not None


def test_results_of_version_0_1_0_are_loaded_only_if_the_caller_checks_the_facts(made: FeatureSet) -> None:
    path = made.path / KIND / KEY / "zarr.json"
    content = json.loads(path.read_bytes())
    digests = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in VALUES.items()}
    content["attributes"] = {"facts": FACTS, "sha256": digests}
    path.write_text(json.dumps(content))
    assert load_cached(made, KIND, KEY) is None
    found = load_cached(made, KIND, KEY, without_digest=True)
    assert found
    values, facts = found
    assert facts == FACTS
    assert np.array_equal(values["rows"], VALUES["rows"])
    edit(path, digests["rows"], digests["similarities"])
    assert load_cached(made, KIND, KEY, without_digest=True) is None


def test_keys_may_have_any_length(made: FeatureSet) -> None:
    long = "+".join(f"layer{number}.1.conv2.AvgPool2d_8_8_0" for number in range(20))
    for key in (long, long + "x"):
        save_cached(made, KIND, key, VALUES, FACTS | {"key": key})
    assert load_cached(made, KIND, long)[1]["key"] == long
    assert load_cached(made, KIND, long + "x")[1]["key"] == long + "x"


def test_results_are_listed_by_key_with_the_facts_and_shapes_that_were_saved(made: FeatureSet) -> None:
    save_cached(made, KIND, "a-first-1", {"one": np.zeros(3)}, {"size": 1})
    (made.path / KIND / ".b.claim").touch()
    (made.path / KIND / ".c.0123456789abcdef0123456789abcdef.partial").mkdir()
    save_cached(made, KIND, "long" * 50, {"one": np.zeros(3)}, {})  # its key is not in its name
    first, second = list_cached(made, KIND)
    assert (first.key, first.facts, first.shapes, first.fault) == ("a-first-1", {"size": 1}, {"one": (3,)}, None)
    assert (second.key, second.facts) == (KEY, FACTS)
    assert second.shapes == {"rows": (4, 3), "similarities": (4, 3)}
    assert list_cached(made, "clusters") == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("0.64", "0.94", "its digest differs"),
        ('"dtype": "int64"', '"dtype": "int32"', "its digest differs"),
        ('"digest"', '"sha256"', "digest"),
        ("attributes", "atributes", "attributes"),
        ("{", "", "zarr.json is not JSON"),
    ],
)
def test_of_a_damaged_result_only_the_fault_is_listed(
    made: FeatureSet, caplog: pytest.LogCaptureFixture, old: str, new: str, fault: str
) -> None:
    edit(made.path / KIND / KEY / "zarr.json", old, new)
    (found,) = list_cached(made, KIND)
    assert (found.key, found.facts, found.shapes) == (KEY, {}, {})
    assert fault in found.fault
    assert not caplog.records


def test_results_without_metadata_or_of_version_0_1_0_are_listed_with_their_fault(made: FeatureSet) -> None:
    path = made.path / KIND / KEY / "zarr.json"
    content = json.loads(path.read_bytes())
    content["attributes"] = {"facts": FACTS, "sha256": {}}
    path.write_text(json.dumps(content))
    (made.path / KIND / "empty-1").mkdir()
    older, empty = sorted(list_cached(made, KIND), key=lambda each: each.key, reverse=True)
    assert "version 0.1.0" in older.fault
    assert empty.fault == "zarr.json is missing"
    assert (older.facts, empty.facts) == ({}, {})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("file", ["rows/c/0/0", "similarities/c/1/0", "rows/zarr.json"])
def test_damage_of_arrays_is_listed_if_they_are_read_too(
    made: FeatureSet, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], file: str
) -> None:
    monkeypatch.setattr("featbench.store.cache.ROWS_PER_CHUNK", 3)
    save_cached(made, KIND, KEY, VALUES, FACTS)
    assert [each.fault for each in list_cached(made, KIND, with_arrays=True)] == [None]
    damage(made.path / KIND / KEY / file)
    (found,) = list_cached(made, KIND, with_arrays=True)
    assert (found.facts, found.fault) == ({}, f"array {file.split('/')[0]} is damaged or missing")
    assert [each.fault for each in list_cached(made, KIND)] == [None]
    assert load_cached(made, KIND, KEY) is None
