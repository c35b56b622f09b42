"""Export without labels: features and neighbours of all rows, predictions where train has labels."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from featbench.pipelines.foreign.importing import Arrays, import_features
from featbench.store import FeatureSet, load_cached
from featbench.store.typing import Array, Doubles, Floats, Ints
from tests.conftest import Bench

TRAIN, VAL, DIM, K = 50, 20, 8, 3


@pytest.fixture
def features() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    return {s: random.normal(size=(n, DIM)).astype(np.float32) for s, n in (("train", TRAIN), ("val", VAL))}


@pytest.fixture
def make(tmp_path: Path, features: dict[str, Floats]) -> Callable[..., FeatureSet]:
    def run(**labels: Ints | Array) -> FeatureSet:
        splits = {split: Arrays(layers={"x": values}, labels=labels[split]) for split, values in features.items()}
        return import_features(splits, store=tmp_path / "features", name="N")

    return run


NONE = {"train": np.full(TRAIN, -1), "val": np.full(VAL, -1)}
CLASSES = np.arange(TRAIN) % 5


def read(
    out: Path, file_format: str, made: FeatureSet, result: subprocess.CompletedProcess[str]
) -> dict[str, Doubles | Ints]:
    if file_format == "npy":
        return {path.stem.removeprefix("x_"): np.load(path) for path in out.glob("x_*.npy")}
    if file_format == "npz":
        return dict(np.load(out / "x.npz"))
    if file_format == "parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(out / "x.parquet")
        return {name: np.array(table[name].to_pylist()) for name in table.column_names}
    return load_cached(FeatureSet.open(made.path), "predictions", result.stdout.split("/")[-1].strip())[0]


@pytest.mark.parametrize("file_format", ["npy", "npz", "parquet", "zarr"])
def test_without_any_label_neighbours_of_all_rows_are_written(
    bench: Bench, make: Callable[..., FeatureSet], features: dict[str, Floats], tmp_path: Path, file_format: str
) -> None:
    made = make(**NONE)
    result = bench("export", "N", "--k", K, "--format", file_format, "--out", "out")
    assert result.returncode == 0, result.stderr
    assert "neighbours but no predictions" in result.stderr
    found = read(tmp_path / "out", file_format, made, result)
    expected = NearestNeighbors(n_neighbors=K, metric="cosine").fit(features["train"]).kneighbors(features["val"])
    assert set(found) == {"neighbours", "similarities", "queries"}
    assert np.array_equal(found["neighbours"], expected[1])
    assert np.allclose(found["similarities"], 1 - expected[0], atol=1e-6)


@pytest.mark.parametrize("file_format", ["npy", "npz", "parquet"])
def test_features_need_no_labels(
    bench: Bench, make: Callable[..., FeatureSet], features: dict[str, Floats], tmp_path: Path, file_format: str
) -> None:
    make(**NONE)
    result = bench("export", "N", "--what", "features", "--format", file_format, "--out", "out")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/classes.txt").read_text() == ""
    if file_format == "npy":
        assert np.array_equal(np.load(tmp_path / "out/val_x.npy"), features["val"])
        assert set(np.load(tmp_path / "out/val_labels.npy")) == {-1}


@pytest.mark.parametrize("file_format", ["npy", "npz", "parquet", "zarr"])
def test_queries_without_labels_are_classified(
    bench: Bench, make: Callable[..., FeatureSet], features: dict[str, Floats], tmp_path: Path, file_format: str
) -> None:
    made = make(train=CLASSES, val=NONE["val"])
    result = bench("export", "N", "--k", 1, "--format", file_format, "--out", "out")
    assert result.returncode == 0, result.stderr
    found = read(tmp_path / "out", file_format, made, result)
    right = KNeighborsClassifier(1, metric="cosine").fit(features["train"], CLASSES).predict(features["val"])
    assert np.array_equal(found["predictions"][:, 0], right)
    assert set(found["labels"]) == {-1}


def test_vissls_files_of_queries_without_labels_say_so(
    bench: Bench, make: Callable[..., FeatureSet], tmp_path: Path
) -> None:
    make(train=CLASSES, val=NONE["val"])
    assert bench("export", "N", "--k", K, "--format", "vissl", "--out", "out").returncode == 0
    assert set(np.load(tmp_path / "out/kNN_x_output_targets.npy").ravel()) == {-1}


@pytest.mark.parametrize(
    "arguments", [("--format", "vissl"), ("--what", "predictions"), ("--format", "zarr", "--what", "predictions")]
)
def test_predictions_need_labels_of_train(
    bench: Bench, make: Callable[..., FeatureSet], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    make(train=NONE["train"], val=np.arange(VAL) % 3)
    result = bench("export", "N", *arguments)
    assert result.returncode == 2
    assert "nothing can be predicted. Export --what features,neighbours" in result.stderr


def test_neighbours_of_train_itself_leave_each_row_out(
    bench: Bench, make: Callable[..., FeatureSet], features: dict[str, Floats], tmp_path: Path
) -> None:
    make(**NONE)
    assert bench("export", "N", "--k", K, "--leave-one-out", "--what", "neighbours", "--out", "out").returncode == 0
    expected = NearestNeighbors(n_neighbors=K + 1, metric="cosine").fit(features["train"]).kneighbors()[1][:, :K]
    assert np.array_equal(np.load(tmp_path / "out/x_neighbours.npy"), expected)


@pytest.mark.parametrize("labels", [NONE, {"train": CLASSES, "val": np.arange(VAL) % 5}])
def test_a_store_that_cannot_be_written_is_an_error_and_no_path(
    bench: Bench, make: Callable[..., FeatureSet], labels: dict[str, Ints]
) -> None:
    made = make(**labels)
    shutil.rmtree(made.path / "predictions", ignore_errors=True)
    (made.path / "predictions").write_text("in the way, as a read-only file system is")
    result = bench("export", "N", "--k", K, "--format", "zarr")
    assert result.returncode == 2
    assert "Export in another format, with --out" in result.stderr
    assert "predictions/" not in result.stdout


def test_a_store_that_cannot_be_written_gives_every_other_format(
    bench: Bench, make: Callable[..., FeatureSet], tmp_path: Path
) -> None:
    made = make(train=CLASSES, val=np.arange(VAL) % 5)
    shutil.rmtree(made.path / "neighbours", ignore_errors=True)
    (made.path / "neighbours").write_text("in the way")
    for file_format in ("npy", "npz", "parquet", "vissl"):
        result = bench("export", "N", "--k", K, "--format", file_format, "--out", file_format)
        assert result.returncode == 0, result.stderr
        assert all((tmp_path / line).is_file() for line in result.stdout.split())


def test_each_class_has_one_line_whatever_its_name(
    bench: Bench, make: Callable[..., FeatureSet], tmp_path: Path
) -> None:
    names = np.array(["a\nb", "c\rd", "é\u2028f", "g"])
    make(train=names[np.arange(TRAIN) % 4], val=names[np.arange(VAL) % 4])
    assert bench("export", "N", "--what", "features", "--out", "out").returncode == 0
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == ["a\\nb", "c\\rd", "g", "é\\u2028f"]


@pytest.mark.parametrize("file_format", ["npy", "npz", "parquet", "vissl", "zarr"])
def test_what_has_a_number_for_each_class_is_written_without_zeros_or_refused(
    bench: Bench, tmp_path: Path, file_format: str
) -> None:
    """With 20,000 classes, the confusion matrix takes 3.2 GB, and probabilities of 1,000 queries 160 MB."""
    random = np.random.default_rng(0)
    labels = {"train": np.arange(20_000), "val": random.integers(20_000, size=1000)}
    rows = {"train": random.normal(size=(20_000, 2)).astype(np.float32)}
    rows["val"] = rows["train"][labels["val"]]
    rows["val"][:100] = rows["train"][:100]
    splits = {s: Arrays(layers={"x": rows[s]}, labels=y) for s, y in labels.items()}
    import_features(splits, store=tmp_path / "features", name="N")
    result = bench("export", "N", "--k", 1, "--format", file_format, "--out", "out", "--memory", "140MiB")
    if file_format == "vissl":
        assert result.returncode == 2
        assert "1,000 queries and 20,000 classes take 153 MiB, more than the 140 MiB" in result.stderr
        assert not list(tmp_path.glob("out/*"))
        return
    assert result.returncode == 0, result.stderr
    if file_format == "npy":
        pairs = np.load(tmp_path / "out/x_confused_pairs.npy")
        predicted = np.where(np.arange(1000) < 100, np.arange(1000), labels["val"])
        expected: dict[tuple[int, int], int] = {}
        for pair in zip(labels["val"].tolist(), predicted.tolist(), strict=True):
            expected[pair] = expected.get(pair, 0) + 1
        assert {(a, b): count for a, b, count in pairs.tolist()} == expected
        assert np.load(tmp_path / "out/x_top_probabilities.npy")[:, 0].tolist() == [1.0] * 1000
        assert not list(tmp_path.glob("out/x_probabilities*"))


@pytest.mark.parametrize("file_format", ["dino", "vissl"])
def test_rows_of_several_classes_are_named_as_the_reason(
    bench: Bench, make: Callable[..., FeatureSet], file_format: str
) -> None:
    make(train=np.eye(5, dtype=np.int8)[CLASSES], val=np.eye(5, dtype=np.int8)[CLASSES[:VAL]])
    result = bench("export", "N", "--format", file_format, "--what", "features", "--out", "out")
    assert result.returncode == 2
    assert "its rows have several classes each" in result.stderr


@pytest.mark.parametrize(("out", "named"), [("file", "file"), ("file/below", "file")])
@pytest.mark.parametrize("file_format", ["npy", "embedding-atlas"])
def test_a_file_in_place_of_the_folder_is_named(
    bench: Bench, make: Callable[..., FeatureSet], tmp_path: Path, file_format: str, out: str, named: str
) -> None:
    make(train=CLASSES, val=CLASSES[:VAL])
    (tmp_path / "file").write_text("kept")
    result = bench("export", "N", "--k", K, "--format", file_format, "--out", out)
    assert result.returncode == 2
    assert f"{named} is a file, not a folder" in result.stderr
    assert (tmp_path / "file").read_text() == "kept"


def test_without_val_the_way_to_ask_is_an_option_that_exists(
    bench: Bench, features: dict[str, Floats], tmp_path: Path
) -> None:
    import_features({"train": Arrays(layers={"x": features["train"]}, labels=CLASSES)}, store=tmp_path / "features",
                    name="N")  # fmt: skip
    result = bench("export", "N", "--k", K, "--out", "out")
    assert result.returncode == 2
    assert "use --leave-one-out, or `bench evaluate --queries`" in result.stderr
    result = bench("neighbours", "N", "3")
    assert result.returncode == 2
    assert "it has no split val" in result.stderr
    assert "--leave-one-out" in result.stderr
