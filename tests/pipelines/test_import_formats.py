"""Files as people have them: names of arrays, kinds of labels, other containers, digits that float32 does not hold."""

from __future__ import annotations

import csv
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featbench.pipelines.foreign.arrays import Arrays, ImportingError, plain_labels
from featbench.pipelines.foreign.containers import open_container
from featbench.pipelines.foreign.importing import import_features
from featbench.store import FeatureSet
from featbench.store.typing import Floats, Ints
from tests.conftest import Bench, Records

N_TRAIN, N_VAL, DIM = 40, 20, 8


@pytest.fixture
def data() -> tuple[Floats, Ints]:
    random = np.random.default_rng(3)
    labels = np.arange(N_TRAIN + N_VAL) % 3
    return random.standard_normal((len(labels), DIM)).astype(np.float32), labels


@pytest.fixture
def imported(bench: Bench, tmp_path: Path, data: tuple[Floats, Ints]) -> Bench:
    """Import, and check that the set holds the first 40 rows as train and the last 20 as val."""

    def run(*arguments: str, labelled: bool = True) -> subprocess.CompletedProcess[str]:
        result = bench("import", "--name", "N", *arguments)
        assert result.returncode == 0, result.stderr
        made = FeatureSet.open(tmp_path / "features/N")
        features, labels = data
        for split, part in (("train", slice(N_TRAIN)), ("val", slice(N_TRAIN, None))):
            (layer,) = made.manifest.layers
            assert np.array_equal(made.layer(split, layer).read(), features[part])
            names = made.split(split).class_names
            classes = [names[label] if label >= 0 else None for label in made.labels(split)]
            assert classes == ([str(label) for label in labels[part]] if labelled else [None] * len(classes))
        return result

    return run


@pytest.fixture
def refused(bench: Bench, tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        result = bench("import", "--name", "N", *arguments)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert len(result.stderr) < 2000
        assert not (tmp_path / "features/N").exists()
        return result.stderr

    return run


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "Y_train", "X_val", "Y_val"),
        ("train_features", "train_labels", "valid_features", "valid_labels"),
        ("testfeat", "testlabels", "trainfeat", "trainlabels"),
    ],
)
@pytest.mark.parametrize("given", [("--train", "one.npz"), ("--train", "one.npz", "--val", "one.npz")])
def test_one_file_of_both_splits_gives_both(
    imported: Bench, tmp_path: Path, data: tuple[Floats, Ints], names: tuple[str, ...], given: tuple[str, ...]
) -> None:
    features, labels = data
    parts = [features[:N_TRAIN], labels[:N_TRAIN], features[N_TRAIN:], labels[N_TRAIN:]]
    arrays = dict(zip(names, parts if "test" not in names[0] else parts[2:] + parts[:2], strict=True))
    np.savez(tmp_path / "one.npz", **arrays)
    imported(*given)


def test_both_arrays_of_one_file_can_be_named(imported: Bench, tmp_path: Path, data: tuple[Floats, Ints]) -> None:
    features, labels = data
    np.savez(tmp_path / "o.npz", a=features[:N_TRAIN], b=labels[:N_TRAIN], c=features[N_TRAIN:], d=labels[N_TRAIN:])
    imported("--train", "o.npz", "--features-key", "a,c", "--labels-key", "b,d")


def test_train_taken_for_val_from_a_file_of_both_splits_is_refused(
    refused: Callable[..., str], tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    features, labels = data
    np.savez(tmp_path / "o.npz", x_train=features[:9], y_train=labels[:9], x_test=features[9:15], y_test=labels[9:15])
    said = refused("--train", "o.npz", "--val", "o.npz", "--features-key", "x_train", "--labels-key", "y_train")
    assert "train and val would both be 'x_train'" in said


def test_the_same_features_as_train_and_val_are_warned_of(
    bench: Bench, tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    np.savez(tmp_path / "o.npz", features=data[0], labels=data[1])
    result = bench("import", "--train", "o.npz", "--val", "o.npz", "--name", "N")
    assert result.returncode == 0
    assert "train and val hold the same features" in result.stderr


def test_arrays_without_usual_names_are_found_where_only_one_fits(
    imported: Bench, tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    for name, part in (("t", slice(N_TRAIN)), ("v", slice(N_TRAIN, None))):
        np.savez(tmp_path / f"{name}.npz", data[0][part], data[1][part])
    result = imported("--train", "t.npz", "--val", "v.npz")
    assert "using array 'arr_0' as features" in result.stderr
    assert "using array 'arr_1' as labels" in result.stderr


def test_where_several_arrays_could_be_meant_one_asks(
    refused: Callable[..., str], tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    np.savez(tmp_path / "t.npz", a=data[0], b=data[0], labels=data[1])
    assert "several of a, b, labels could be the features. Choose with --features-key" in refused(
        "--train", "t.npz", "--val", "t.npz"
    )


def test_an_array_of_objects_spoils_no_others(imported: Bench, tmp_path: Path, data: tuple[Floats, Ints]) -> None:
    for name, part in (("t", slice(N_TRAIN)), ("v", slice(N_TRAIN, None))):
        paths = np.array([f"{i}.jpg" for i in range(len(data[0][part]))], object)
        np.savez(tmp_path / f"{name}.npz", features=data[0][part], labels=data[1][part], paths=paths, meta={"a": 1})
    assert "'paths' holds Python objects" in imported("--train", "t.npz", "--val", "v.npz").stderr


def test_labels_that_are_objects_are_refused_by_name(
    refused: Callable[..., str], tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    np.savez(tmp_path / "t.npz", features=data[0], labels=np.array(["a"] * len(data[0]), object))
    assert "'labels' holds Python objects, which are not read; save" in refused("--train", "t.npz", "--val", "t.npz")


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.astype(np.float64),
        lambda y: y.astype(np.float16),
        lambda y: y[:, None],
        lambda y: y[:, None].astype(np.float32),
        lambda y: y.astype(">u2"),
        lambda y: y.astype("U5"),
        lambda y: y.astype("S5"),
    ],
)
def test_labels_are_taken_in_every_form_that_means_classes(
    imported: Bench, tmp_path: Path, data: tuple[Floats, Ints], change: Callable[..., Any]
) -> None:
    for name, part in (("t", slice(N_TRAIN)), ("v", slice(N_TRAIN, None))):
        np.savez(tmp_path / f"{name}.npz", features=data[0][part], labels=change(data[1][part]))
    imported("--train", "t.npz", "--val", "v.npz")


def test_truth_values_are_two_classes_and_nan_is_no_label() -> None:
    assert plain_labels(np.array([True, False]), where="x").tolist() == [1, 0]
    assert plain_labels(np.array([[2.0], [np.nan]]), where="x").tolist() == [2, -1]
    with pytest.raises(ImportingError, match=r"got 0\.5 in row 2"):
        plain_labels(np.array([1.0, np.nan, 0.5]), where="x")
    with pytest.raises(ImportingError, match="does not fit into int64"):
        plain_labels(np.array([2**64 - 1], np.uint64), where="x")
    with pytest.raises(ImportingError, match="not text in UTF-8"):
        plain_labels(np.array([b"\xff"]), where="x")


def save_as(kind: str, path: Path, features: Floats, labels: Ints) -> None:
    if kind == "pt":
        torch.save({"features": torch.tensor(features).requires_grad_(), "labels": torch.tensor(labels)}, path)
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            pa.table({"features": list(features), "labels": labels, "note": ["x"] * len(labels)}), path
        )
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerow([*(f"f{i}" for i in range(features.shape[1])), "label"])
            writer.writerows([*map(repr, map(float, row)), label] for row, label in zip(features, labels, strict=True))


@pytest.mark.parametrize("kind", ["pt", "parquet", "csv", "tsv"])
def test_other_containers_are_read(imported: Bench, tmp_path: Path, data: tuple[Floats, Ints], kind: str) -> None:
    for name, part in (("t", slice(N_TRAIN)), ("v", slice(N_TRAIN, None))):
        save_as(kind, tmp_path / f"{name}.{kind}", data[0][part], data[1][part])
    imported("--train", f"t.{kind}", "--val", f"v.{kind}")


def test_kinds_are_told_by_content_and_not_by_suffix(
    imported: Bench, tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    for name, part in (("t", slice(N_TRAIN)), ("v", slice(N_TRAIN, None))):
        with (tmp_path / f"{name}.dat").open("wb") as file:
            np.savez(file, features=data[0][part], labels=data[1][part])
    imported("--train", "t.dat", "--val", "v.dat")


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_labels_may_be_lines_of_text(imported: Bench, tmp_path: Path, data: tuple[Floats, Ints], suffix: str) -> None:
    for name, part in (("t", slice(N_TRAIN)), ("v", slice(N_TRAIN, None))):
        np.save(tmp_path / f"{name}.npy", np.asfortranarray(data[0][part].astype(">f4")))
        (tmp_path / f"{name}l.{suffix}").write_text("label\n" + "".join(f"{label}\n" for label in data[1][part]))
    imported(
        "--train", "t.npy", "--val", "v.npy", "--train-labels", f"tl.{suffix}", "--val-labels", f"vl.{suffix}"
    )  # fmt: skip


def test_features_without_labels_are_imported_where_that_is_said(
    imported: Bench, refused: Callable[..., str], tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    for name, part in (("t", slice(N_TRAIN)), ("v", slice(N_TRAIN, None))):
        np.save(tmp_path / f"{name}.npy", data[0][part])
    assert "a single array, without labels" in refused("--train", "t.npy", "--val", "v.npy")
    imported("--train", "t.npy", "--val", "v.npy", "--unlabelled", labelled=False)


def test_dumps_of_tensors_that_require_gradients_are_read(
    bench: Bench, tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    for part, rows in (("train", slice(N_TRAIN)), ("test", slice(N_TRAIN, None))):
        torch.save(torch.tensor(data[0][rows]).requires_grad_(), tmp_path / f"{part}feat.pth")
        torch.save(torch.tensor(data[1][rows])[:, None].float(), tmp_path / f"{part}labels.pth")
    result = bench("import", "--dino", ".", "--name", "N")
    assert result.returncode == 0, result.stderr
    assert np.array_equal(FeatureSet.open(tmp_path / "features/N").layer("train", "features").read(), data[0][:N_TRAIN])


def write_odd_file(path: Path, kind: str) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps(([1], [2])))
    elif kind == "dict":
        np.save(path.open("wb"), {"a": 1}, allow_pickle=True)
    elif kind == "hdf5":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "huge":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 999), }"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("pickle", "x.pkl", "Pickles are not read"),
        ("dict", "x.npy", "holds Python objects"),
        ("hdf5", "x.h5", "an HDF5 file: open it with h5py"),
        ("fifo", "x.npz", "not a regular file"),
        ("folder", "x.npz", "a folder; expected a file"),
        ("zarr", "x.zarr", "a Zarr store: save its arrays"),
        ("empty", "x.npz", "the file is empty"),
        ("module", "x.pt", "needs more than tensors"),
        ("huge", "x.npy", "not a plain .npy"),
    ],
)
def test_a_kind_that_is_not_read_is_named_with_what_to_do(
    refused: Callable[..., str], tmp_path: Path, kind: str, name: str, says: str
) -> None:
    write_odd_file(tmp_path / name, kind)
    message = refused("--train", name, "--val", name)
    assert says in message
    assert message.count(f"{name}: ") == 1


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(ImportingError, match="cannot be the path of a file"):
        open_container(Path("x\0.npz"))


def test_digits_that_float32_does_not_hold_are_counted(bench: Bench, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = 1e9 + labels[:, None] * 3.0 + random.normal(size=(300, 4)) * 0.3
    np.savez(tmp_path / "t.npz", features=features[:200], labels=labels[:200])
    np.savez(tmp_path / "v.npz", features=features[200:], labels=labels[200:])
    said = bench("import", "--train", "t.npz", "--val", "v.npz", "--name", "N").stderr
    lost = 200 - len(np.unique(features[:200].astype(np.float32), axis=0))
    assert (
        f"train: layer features is float64 and is stored as float32: rows that become equal to another one: {lost}"
        in said
    )
    assert "subtract the mean of train" in said
    np.savez(tmp_path / "t.npz", features=features[:200] - 1e9, labels=labels[:200])
    np.savez(tmp_path / "v.npz", features=features[200:] - 1e9, labels=labels[200:])
    assert "float32" not in bench("import", "--train", "t.npz", "--val", "v.npz", "--name", "M").stderr


def test_rounding_that_leaves_rows_distinct_is_reported_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = 1e7 + np.random.default_rng(0).normal(size=(50, 32))
    assert len(np.unique(features.astype(np.float32), axis=0)) == 50
    error = np.square(features - features.astype(np.float32)).sum() / np.square(features - features.mean(0)).sum()
    both = {s: Arrays(layers={"x": features + i}, labels=np.arange(50) % 3) for i, s in enumerate(("train", "val"))}
    import_features(both, store=tmp_path, name="N")
    assert f"the rounding error is {100 * np.sqrt(error):.3g}% of the standard deviation" in caplog.text


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 3e39), ("float16", 7e4)])
def test_values_beyond_the_stored_types_largest_are_refused_before_anything_is_written(
    tmp_path: Path, dtype: str, largest: float
) -> None:
    features = np.ones((5, 3))
    features[3, 1] = largest
    splits = {split: Arrays(layers={"x": features}, labels=np.arange(5) % 2) for split in ("train", "val")}
    with pytest.raises(ImportingError, match=rf"beyond {dtype}'s largest, .* in 1 rows: first in row 3"):
        import_features(splits, store=tmp_path, name="N", dtype=dtype)
    assert not (tmp_path / "N").exists()


@pytest.mark.parametrize("name", ["labels", "paths", "valid", "..", "zarr.json", "a/b", "x" * 300, "a\0b"])
def test_names_that_cannot_be_a_layers_are_refused(tmp_path: Path, name: str) -> None:
    splits = {s: Arrays(layers={name: np.ones((2, 2), np.float32)}, labels=np.arange(2)) for s in ("train", "val")}
    with pytest.raises(Exception, match="cannot be the name of a layer"):
        import_features(splits, store=tmp_path, name="N")
    assert not (tmp_path / "N").exists()


def test_two_class_names_that_are_one_in_unicode_are_refused() -> None:
    with pytest.raises(ImportingError, match=r"'cafe\\u0301' and 'caf\\xe9'"):
        plain_labels(np.array(["café", "cafe\u0301"]), where="train")


def test_class_names_of_other_unicode_spelling_are_the_same_classes(
    bench: Bench, records: Records, tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    names = {"train": np.array(["Café", "Übel", "z"]), "val": np.array(["Cafe\u0301", "U\u0308bel", "z"])}
    for split, part in (("train", slice(N_TRAIN)), ("val", slice(N_TRAIN, None))):
        np.savez(tmp_path / f"{split}.npz", features=data[0][part], labels=names[split][data[1][part]])
    assert bench("import", "--train", "train.npz", "--val", "val.npz", "--name", "N").returncode == 0
    (record,) = records("--features", "N", "--k", "5", "--store", "features")
    assert record["num_classes"] == 3


def test_names_that_are_not_the_same_but_look_alike_are_spelled_out(
    bench: Bench, tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    names = {"train": np.array(["tabby cat", "dog", "z"]), "val": np.array(["Tabby_Cat", "dog\u200b", "z"])}
    for split, part in (("train", slice(N_TRAIN)), ("val", slice(N_TRAIN, None))):
        np.savez(tmp_path / f"{split}.npz", features=data[0][part], labels=names[split][data[1][part]])
    assert bench("import", "--train", "train.npz", "--val", "val.npz", "--name", "N").returncode == 0
    said = bench("evaluate", "--features", "N", "--k", "5").stderr
    assert "'Tabby_Cat' and 'tabby cat', 'dog\\u200b' and 'dog'" in said


@pytest.mark.parametrize("kind", ["tuple", "list", "rows", "mappings"])
def test_tensors_in_lists_and_mappings_are_found(tmp_path: Path, data: tuple[Floats, Ints], kind: str) -> None:
    features, labels = (torch.from_numpy(each) for each in data)
    content = {
        "tuple": (features, labels), "list": [features.requires_grad_(), labels], "rows": list(features),
        "mappings": {"train": {"features": features, "labels": labels}},
    }[kind]  # fmt: skip
    torch.save(content, tmp_path / "x.pt")
    found = open_container(tmp_path / "x.pt")
    names = {"rows": [""], "mappings": ["train_features", "train_labels"]}.get(kind, ["0", "1"])
    assert list(found) == names
    assert np.array_equal(found[names[0]], data[0])


def test_features_of_several_batches_are_refused_with_what_joins_them(
    tmp_path: Path, data: tuple[Floats, Ints]
) -> None:
    torch.save(list(torch.from_numpy(data[0]).split(8)), tmp_path / "x.pt")
    with pytest.raises(ImportingError, match=r"torch.cat"):
        open_container(tmp_path / "x.pt")


def test_tensors_without_data_are_no_features(tmp_path: Path) -> None:
    torch.save({"features": torch.zeros(3, 4, device="meta")}, tmp_path / "x.pt")
    with pytest.raises(ImportingError, match="without dense tensors"):
        open_container(tmp_path / "x.pt")
