"""Feature sets: what is written comes back; what is missing, stale or other is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from featbench.store import (
    FeatureSet,
    IncompleteError,
    LayerInfo,
    MismatchError,
    SplitRows,
    StoreError,
    add_layers,
    open_or_create,
    verify,
)
from featbench.store.manifest import ATTRIBUTE, DIGEST, digest_of
from tests.conftest import Arrays, make_features, write_pending


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("compression", ["none", "zstd", "lz4"])
@pytest.mark.parametrize("rows_per_chunk", [1, 8, 64])
def test_features_are_read_as_they_were_written(
    tmp_path: Path, arrays: Arrays, dtype: str, compression: str, rows_per_chunk: int
) -> None:
    features, labels = arrays
    made = make_features(
        tmp_path / "f", features, labels, dtype=dtype, compression=compression, rows_per_chunk=rows_per_chunk
    )
    for split, layers in features.items():
        assert (made.labels(split) == labels[split]).all()
        assert made.valid(split).all()
        assert made.paths(split)[3] == f"{split}/3.jpg"
        for name, values in layers.items():
            expected = values.astype(dtype).astype(np.float32).reshape(len(values), -1)
            blocks = [(block.start, block.features.copy()) for block in made.layer(split, name).blocks(17)]
            assert np.array_equal(np.concatenate([block for _, block in blocks]), expected)
            assert [start for start, _ in blocks] == np.cumsum([0] + [len(block) for _, block in blocks])[:-1].tolist()
            assert np.array_equal(made.layer(split, name).read(), expected)


def test_another_program_reads_the_arrays_with_plain_zarr(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    make_features(tmp_path / "f", features, labels)
    group = zarr.open(str(tmp_path / "f"), mode="r")
    assert np.array_equal(group["train/res4"][:], features["train"]["res4"])
    assert np.array_equal(group["val/labels"][:], labels["val"])
    assert group["train/paths"][2] == "train/2.jpg"
    assert np.isnan(group["train/res4"].fill_value)
    assert group["train/res4"].attrs["tap"] == "res4"


def test_chunks_are_whole_rows_and_never_omitted(tmp_path: Path) -> None:
    """Zarr leaves out chunks that equal the fill value, unless told otherwise."""
    zeros = {split: {"z": np.zeros((10, 2), np.float32)} for split in ("train", "val")}
    made = make_features(tmp_path / "f", zeros, {split: np.zeros(10, int) for split in zeros}, rows_per_chunk=4)
    assert sorted(path.name for path in (tmp_path / "f/train/z/c").iterdir()) == ["0", "1", "2"]
    assert not made.layer("train", "z").read().any()


def test_chunks_that_equal_the_fill_value_are_written_too(tmp_path: Path) -> None:
    """A chunk of images that could not be read is all NaN, labels that are missing are all -1."""
    features = {split: {"x": np.ones((10, 2), np.float32)} for split in ("train", "val")}
    labels = {split: np.full(10, -1) for split in features}
    valid = {split: np.arange(10) >= 4 for split in features}
    made = make_features(
        tmp_path / "f", features, labels, class_names=dict.fromkeys(features, ()), rows_per_chunk=4, valid=valid
    )
    assert (made.labels("val") == -1).all()
    assert np.isnan(made.layer("train", "x").read()).all(axis=1).tolist() == [True] * 4 + [False] * 6
    assert not list(verify(made.path))


def test_chunks_in_no_journal_are_pending(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    made = make_features(tmp_path / "f", {s: {"res5": v["res5"]} for s, v in features.items()}, labels)
    add_layers(made, {"res4": LayerInfo(tap="res4", pooling=None, shape=(4, 2, 2))})
    work = made.pending(["res5", "res4"])
    assert {item.layers for item in work} == {("res4",)}
    assert [(item.split, item.chunk) for item in work] == [("val", i) for i in range(3)] + [
        ("train", i) for i in range(7)
    ]
    assert not any(item.valid for item in work)
    write_pending(made, features, limit=4)
    assert len(made.pending(["res5", "res4"])) == 6


def test_an_incomplete_layer_is_refused_by_name(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    made = make_features(tmp_path / "f", {s: {"res5": v["res5"]} for s, v in features.items()}, labels)
    add_layers(made, {"res4": LayerInfo(tap="res4", pooling=None, shape=(4, 2, 2))})
    write_pending(made, features, limit=5)
    with pytest.raises(IncompleteError, match=r"train/res4 is incomplete: 2 of 7 chunks.*bench extract"):
        FeatureSet.open(tmp_path / "f").layer("train", "res4")
    FeatureSet.open(tmp_path / "f").layer("val", "res4").read()


def test_a_chunk_file_in_no_journal_does_not_count(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels)
    (made.journals / "rank-00000.jsonl").unlink()
    assert len(FeatureSet.open(tmp_path / "f").pending(["res5"])) == 10


def test_other_settings_are_refused_and_listed(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    make_features(tmp_path / "f", features, labels, made_from={"model": {"trunk": "resnet18"}, "seed": 1})
    before = (tmp_path / "f/zarr.json").read_bytes()
    with pytest.raises(MismatchError) as error:
        make_features(tmp_path / "f", features, labels, made_from={"model": {"trunk": "resnet50"}, "seed": 1})
    assert 'model.trunk: it has "resnet18", you ask for "resnet50"' in str(error.value)
    assert "seed" not in str(error.value)
    assert "--overwrite" in str(error.value)
    assert (tmp_path / "f/zarr.json").read_bytes() == before


def test_other_labels_are_other_settings(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    make_features(tmp_path / "f", features, labels)
    changed = {**labels, "val": (labels["val"] + 1) % 3}
    with pytest.raises(MismatchError, match=r"data\.val\.listing"):
        make_features(tmp_path / "f", features, changed)


def test_a_layers_name_cannot_be_given_to_another_tap(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels)
    with pytest.raises(MismatchError, match="layer 'res5' exists as tap res5"):
        add_layers(made, {"res5": LayerInfo(tap="layer4.0", pooling=None, shape=(6,))})


def test_a_value_that_float16_cannot_hold_is_refused_by_row(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    features["val"]["res5"][4, 2] = 70_000
    with pytest.raises(StoreError, match=r"'res5' has values beyond float16.*row 4 \(val/4\.jpg\).*--dtype float32"):
        make_features(tmp_path / "f", features, labels, dtype="float16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_row(tmp_path: Path, arrays: Arrays, value: float) -> None:
    features, labels = arrays
    features["val"]["res4"][9, 1, 0, 0] = value
    with pytest.raises(StoreError, match=r"'res4' has NaN or infinite values in 1 of the rows.*row 9 \(val/9\.jpg\)"):
        make_features(tmp_path / "f", features, labels)
    assert FeatureSet.open(tmp_path / "f").num_committed("val", "res4") == 1, "the chunk before it stays committed"


def test_rows_that_could_not_be_read_are_stored_as_nan_and_marked(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    valid = {split: np.arange(len(each)) % 5 != 2 for split, each in labels.items()}
    made = make_features(tmp_path / "f", features, labels, valid=valid)
    assert (made.valid("train") == valid["train"]).all()
    assert np.isnan(made.layer("train", "res5").read()).all(axis=1).tolist() == (~valid["train"]).tolist()
    assert not list(verify(made.path))


def test_a_newer_format_is_refused(tmp_path: Path, arrays: Arrays) -> None:
    make_features(tmp_path / "f", *arrays)
    path = tmp_path / "f/zarr.json"
    content = json.loads(path.read_text())
    content["attributes"][ATTRIBUTE]["format"] = 99
    content["attributes"][DIGEST] = digest_of(content["attributes"][ATTRIBUTE])
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"format 99; this version reads up to 1\. Update"):
        FeatureSet.open(tmp_path / "f")


def test_a_folder_that_is_not_a_feature_set_is_refused(tmp_path: Path, arrays: Arrays) -> None:
    make_features(tmp_path / "resnet50", *arrays)
    (tmp_path / "empty").mkdir()
    zarr.create_group(str(tmp_path / "foreign"))
    with pytest.raises(StoreError, match="no such feature set. Did you mean resnet50"):
        FeatureSet.open(tmp_path / "resnet5")
    with pytest.raises(StoreError, match="resnet50 is a feature set itself; its store is "):
        FeatureSet.open(tmp_path / "resnet50/resnet50")
    with pytest.raises(StoreError, match="no zarr.json"):
        FeatureSet.open(tmp_path / "empty")
    with pytest.raises(StoreError, match="not a feature set"):
        FeatureSet.open(tmp_path / "foreign")


def test_an_unknown_layer_or_split_is_refused_with_a_suggestion(tmp_path: Path, arrays: Arrays) -> None:
    made = make_features(tmp_path / "f", *arrays)
    with pytest.raises(StoreError, match="Did you mean res5"):
        made.layer("train", "res_5")
    with pytest.raises(StoreError, match="Did you mean train"):
        made.layer("trian", "res5")


def test_two_extractions_at_once_are_refused_and_a_dead_one_is_taken_over(tmp_path: Path, arrays: Arrays) -> None:
    made = make_features(tmp_path / "f", *arrays)
    code = (
        "import sys, time; from pathlib import Path; from featbench.store import FeatureSet\n"
        f"with FeatureSet.open(Path({str(tmp_path / 'f')!r})).lock():\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"process {holder.pid} on {os.uname().nodename}"), made.lock():
            pass
    finally:
        holder.kill()
        holder.wait()
    with made.lock():
        assert str(os.getpid()) in (made.journals / "lock").read_text()


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path, arrays: Arrays) -> None:
    made = make_features(tmp_path / "f", *arrays)
    leftover = tmp_path / f"f/train/res5/c/0/.0.{'a' * 32}.partial"
    leftover.write_bytes(b"half")
    assert made.sweep() == 1
    assert not leftover.exists()


def test_a_full_disk_is_one_message_and_written_chunks_stay(tmp_path: Path, arrays: Arrays) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the system refuses to let a file grow."""
    features, labels = arrays
    make_features(tmp_path / "f", {s: {"res5": v["res5"]} for s, v in features.items()}, labels)
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(tmp_path)!r})
import numpy as np
from pathlib import Path
from featbench.store import ChunkWriter, FeatureSet, LayerInfo, StoreError, add_layers
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
features = FeatureSet.open(Path({str(tmp_path / "f")!r}))
add_layers(features, {{"big": LayerInfo(tap="big", pooling=None, shape=(4096,))}})
writer = ChunkWriter(features)
work = features.pending(["big"])
def write(item):
    rows = len(features.grid(item.split).rows(item.chunk))
    writer.write(item, {{"big": np.ones((rows, 4096), np.float32)}}, np.ones(rows, bool))
write(work[0])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write(work[1])
except StoreError as error:
    print(error)
print(len(features.pending(["big"])), len(work))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot write" in result.stdout, result.stderr
    assert "What was committed before is safe" in result.stdout
    assert result.stdout.splitlines()[-1] == "9 10"
    assert not list((tmp_path / "f").rglob("*.partial"))


def test_rows_of_another_shape_are_refused(tmp_path: Path, arrays: Arrays) -> None:
    """Zarr cuts off what does not fit, without a word."""
    features, labels = arrays
    made = make_features(tmp_path / "f", {s: {"res5": v["res5"]} for s, v in features.items()}, labels)
    add_layers(made, {"res4": LayerInfo(tap="res4", pooling=None, shape=(4, 2, 1))})
    with pytest.raises(StoreError, match=r"'res4' of val chunk 0 has shape \(8, 4, 2, 2\), expected \(8, 4, 2, 1\)"):
        write_pending(made, features)


@pytest.mark.parametrize("factor", [1e-9, 1e39])
def test_values_that_vanish_or_overflow_in_the_stored_type_are_refused(
    tmp_path: Path, arrays: Arrays, factor: float
) -> None:
    features, labels = arrays
    scaled = {s: {"res5": v["res5"].astype(np.float64) * factor} for s, v in features.items()}
    with pytest.raises(StoreError, match=r"below float16's smallest|beyond float32's largest"):
        make_features(tmp_path / "f", scaled, labels, dtype="float16" if factor < 1 else "float32")


def test_a_killed_run_can_be_resumed_with_more_layers(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    made = make_features(tmp_path / "f", {s: {"res5": v["res5"]} for s, v in features.items()}, labels)
    journal = made.journals / "rank-00000.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-6]))
    make_features(tmp_path / "f", features, labels)
    assert not list(verify(tmp_path / "f"))


def test_images_that_become_unreadable_between_two_layers_are_noticed(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    make_features(tmp_path / "f", {s: {"res5": v["res5"]} for s, v in features.items()}, labels)
    valid = {split: np.arange(len(each)) != 3 for split, each in labels.items()}
    with pytest.raises(StoreError, match=r"1 images of val can no longer be read.*val/3\.jpg"):
        make_features(tmp_path / "f", features, labels, valid=valid)


def test_layers_added_by_another_process_stay(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    made = make_features(tmp_path / "f", {s: {"res5": v["res5"]} for s, v in features.items()}, labels)
    late = FeatureSet.open(tmp_path / "f")
    add_layers(made, {"res4": LayerInfo(tap="res4", pooling=None, shape=(4, 2, 2))})
    add_layers(late, {"res3": LayerInfo(tap="res3", pooling=None, shape=(2,))})
    assert set(FeatureSet.open(tmp_path / "f").manifest.layers) == {"res3", "res4", "res5"}


def test_other_images_under_the_same_names_are_other_settings(tmp_path: Path) -> None:
    rows = SplitRows(labels=np.zeros(2, np.int64), paths=["a", "b"], class_names=("x",), sizes=[10, 20])
    assert rows.info() != dataclasses.replace(rows, sizes=[10, 21]).info()


def test_two_classes_of_one_name_are_refused() -> None:
    rows = SplitRows(labels=np.zeros(2, np.int64), paths=["a", "b"], class_names=("crane", "crane"))
    with pytest.raises(StoreError, match="two classes are called 'crane'"):
        rows.info()


def test_a_damaged_feature_set_can_be_replaced(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels)
    (made.path / "zarr.json").write_text("{")
    rows = SplitRows(labels=labels["val"], paths=["x"] * 21, class_names=("a", "b", "c"))
    splits = {"train": rows, "val": rows}
    manifest = dataclasses.replace(made.manifest, layers={}, splits={s: each.info() for s, each in splits.items()})
    again = open_or_create(made.path, manifest, splits, overwrite=True)
    assert again.manifest.layers == {}
    assert not list(tmp_path.glob(".*"))


def test_a_chunk_too_large_for_memory_is_refused_before_anything_is_written(tmp_path: Path, arrays: Arrays) -> None:
    made = make_features(tmp_path / "f", *arrays)
    with pytest.raises(StoreError, match=r"would take 3\.0 GiB"):
        add_layers(made, {"wide": LayerInfo(tap="wide", pooling=None, shape=(10**8,))})
    assert not (made.path / "train/wide").exists()
