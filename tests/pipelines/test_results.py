"""`bench protocols`, `compare` and `export`, and the questions that `bench evaluate` takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from featbench.evaluate.knn.classification import evaluate_knn
from featbench.evaluate.metrics import paired_difference
from featbench.store import FeatureSet, load_cached
from featbench.store.typing import Bools
from tests.conftest import Bench, Records, make_features


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two feature sets of the same images, `a` noisier than `b`; each split numbers its classes by itself."""
    store = tmp_path_factory.mktemp("two")
    random = np.random.default_rng(0)
    labels = {"train": random.integers(0, 3, 60), "val": random.integers(0, 3, 40)}
    centres = random.standard_normal((3, 5))
    for name, noise in (("a", 1.5), ("b", 0.8)):
        features = {
            split: {
                "x": (centres[each] + noise * random.standard_normal((len(each), 5))).astype(np.float32),
                "y": random.standard_normal((len(each), 2)).astype(np.float32),
            }
            for split, each in labels.items()
        }
        names = {"train": ("ant", "bee", "cat"), "val": ("bee", "ant", "cat")}
        own = {"train": labels["train"], "val": np.array([1, 0, 2])[labels["val"]]}
        make_features(store / name, features, own, class_names=names)
    return store


@pytest.fixture
def two(tmp_path: Path, original: Path) -> Path:
    """A copy of them, in the store that commands look into."""
    return shutil.copytree(original, tmp_path / "features")


def right(path: Path, layer: str, k: int) -> Bools:
    """Which queries a vote of the k nearest gets right, by brute force."""
    features = FeatureSet.open(path)
    train, val = (features.layer(split, layer).read().astype(np.float64) for split in ("train", "val"))
    cosines = val @ train.T / np.linalg.norm(train, axis=1) / np.linalg.norm(val, axis=1)[:, None]
    labels = features.labels("train")
    predicted = []
    for row in cosines:
        nearest = np.argsort(-row)[:k]
        predicted.append(np.bincount(labels[nearest], np.exp(row[nearest] / 0.07)).argmax())
    names = [features.split(split).class_names for split in ("train", "val")]
    wanted = features.labels("val")
    return np.array([names[0][one] == names[1][other] for one, other in zip(predicted, wanted, strict=True)])


def test_compare_gives_difference_interval_and_mcnemars_p(bench: Bench, two: Path) -> None:
    result = bench("compare", "a", "b", "--layers", "x", "--k", "5", "--json")
    assert result.returncode == 0, result.stderr
    (record,) = json.loads(result.stdout)
    first, second = right(two / "a", "x", 5), right(two / "b", "x", 5)
    assert record["difference"] == pytest.approx(second.mean() - first.mean())
    only_first, only_second = (first & ~second).sum(), (second & ~first).sum()
    assert (record["only_first"], record["only_second"]) == (only_first, only_second)
    assert record["p_value"] == pytest.approx(binomtest(only_first, only_first + only_second).pvalue)
    assert record["low"] < record["difference"] < record["high"]
    shown = bench("compare", "a", "b", "--k", "5").stdout
    assert "a against b: top-1 of 40 queries" in shown
    assert f"{100 * record['difference']:+.1f} ±" in shown


def test_layers_of_one_feature_set_can_be_compared(bench: Bench, two: Path) -> None:
    (record,) = json.loads(bench("compare", "b", "b", "--layers", "x,y", "--k", "5", "--json").stdout)
    assert (record["first"], record["second"]) == ("b/x", "b/y")
    assert record["difference"] == pytest.approx(right(two / "b", "y", 5).mean() - right(two / "b", "x", 5).mean())
    result = bench("compare", "b", "b", "--layers", "x")
    assert result.returncode == 2
    assert "give two" in result.stderr


def test_other_queries_are_never_compared(bench: Bench, two: Path) -> None:
    random = np.random.default_rng(1)
    features = {split: {"x": random.standard_normal((40, 5)).astype(np.float32)} for split in ("train", "val")}
    labels = {"train": np.arange(40) % 3, "val": FeatureSet.open(two / "a").labels("val")}
    labels["val"][7] = (labels["val"][7] + 1) % 3
    names = {split: FeatureSet.open(two / "a").split(split).class_names for split in labels}
    make_features(two / "c", features, labels, class_names=names)
    result = bench("compare", "a", "c", "--layers", "x", "--k", "5")
    assert result.returncode == 2
    assert "differ in val images or labels in 1 of 40 rows, first in row 7" in result.stderr


def test_the_paired_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        first = random.random(200) < 0.7
        second = np.where(random.random(200) < 0.3, random.random(200) < 0.9, first)  # 0.7 * 0.7 + 0.3 * 0.9 = 0.76
        estimate = paired_difference(first, second)
        covered += estimate.low <= 0.06 <= estimate.high
    assert 930 <= covered <= 975


def test_equal_classifiers_have_no_difference_and_p_one() -> None:
    same = np.array([True, False, True])
    assert paired_difference(same, same).p_value == 1
    assert paired_difference(same, same).value == 0


@pytest.mark.parametrize("file_format", ["npy", "npz", "parquet", "zarr"])
def test_export_writes_what_was_found(bench: Bench, two: Path, tmp_path: Path, file_format: str) -> None:
    if file_format == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    result = bench("export", "b", "--layers", "x", "--k", "5", "--format", file_format, "--out", out)
    assert result.returncode == 0, result.stderr
    if file_format == "npy":
        found = {
            name: np.load(out / f"x_{name}.npy") for name in ("neighbours", "predictions", "probabilities", "labels")
        }
    elif file_format == "npz":
        found = np.load(out / "x.npz")
    elif file_format == "parquet":
        table = parquet.read_table(out / "x.parquet")
        found = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    else:
        features = FeatureSet.open(two / "b")
        kept = load_cached(features, "predictions", result.stdout.split("/")[-1].strip())
        assert kept
        found, facts = kept
        assert facts["class_names"] == ["ant", "bee", "cat"]
    assert found["neighbours"].shape == (40, 5)
    assert np.array_equal(found["predictions"][:, 0] == found["labels"], right(two / "b", "x", 5))
    assert np.allclose(found["probabilities"].sum(axis=1), 1)


def test_export_leaves_what_vissl_leaves(bench: Bench, two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert bench("export", "b", "--layers", "x", "--k", "5", "--format", "vissl", "--out", out).returncode == 0
    names = ("predictions", "targets", "image_indices")
    arrays = {name: np.load(out / f"kNN_x_output_{name}.npy") for name in names}
    assert {path.name for path in out.iterdir()} == {f"kNN_x_output_{name}.npy" for name in names}
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "predictions": ((40, 3), "int64"),
        "targets": ((40, 1), "int64"),
        "image_indices": ((40,), "int64"),
    }
    assert (np.sort(arrays["predictions"], axis=1) == np.arange(3)).all(), "all classes, ranked"
    assert np.array_equal(arrays["predictions"][:, 0] == arrays["targets"][:, 0], right(two / "b", "x", 5))


def test_exported_features_are_the_stored_ones(bench: Bench, two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "val_x.npy.partial").write_text("a file of the user's")
    assert bench("export", "b", "--what", "features", "--out", out).returncode == 0
    assert (out / "val_x.npy.partial").read_text() == "a file of the user's"
    assert {path.suffix for path in out.iterdir()} == {".npy", ".txt", ".partial"}
    features = FeatureSet.open(two / "b")
    for split in ("train", "val"):
        for layer in ("x", "y"):
            assert np.array_equal(np.load(out / f"{split}_{layer}.npy"), features.layer(split, layer).read())
        names = (out / "classes.txt").read_text().splitlines()
        classes = [names[label] for label in np.load(out / f"{split}_labels.npy")]
        assert classes == [features.split(split).class_names[label] for label in features.labels(split)]
        assert np.load(out / f"{split}_paths.npy").tolist() == features.paths(split)
    result = bench("export", "b", "--what", "features", "--out", out)
    assert result.returncode == 2
    assert "exists; export into another folder" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--format", "xml"],
            "--format must be one of npy, npz, csv, parquet, faiss, vissl, zarr, embedding-atlas",
        ),
        (["--what", "weights"], "--what must be of features, neighbours, predictions, clusters; got weights"),
    ],
)
def test_unknown_exports_are_refused(bench: Bench, two: Path, arguments: list[str], message: str) -> None:
    result = bench("export", "b", *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_protocols_are_listed_and_compared(bench: Bench) -> None:
    listed = bench("protocols").stdout
    for name in ("vissl", "wu2018", "moco", "dino", "dinov2", "solo", "lightly", "mmselfsup", "scan"):
        assert f"\n{name} " in listed
    differences = json.loads(bench("protocols", "diff", "dino", "vissl", "--json").stdout)
    assert differences["similarity"] == {"dino": "cosine", "vissl": "inner_product"}
    assert differences["temperature"] == {"dino": [0.07], "vissl": [0.1]}
    assert "vote" not in differences
    result = bench("protocols", "diff", "dino", "visl")
    assert result.returncode == 2
    assert "Did you mean vissl?" in result.stderr


def test_protocols_of_ones_own_come_from_yaml(bench: Bench, records: Records, two: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine:\n  like: dino\n  k: 5\n  temperature: 0.5\n")
    found = records("--features", "b", "--layers", "x", "--protocol", "mine.yaml,dino", "--k", "5")
    assert [(r["protocol"], r["temperature"]) for r in found] == [("mine", 0.5), ("dino", 0.07)]
    assert evaluate_knn(FeatureSet.open(two / "b"), ["x"], k=[5], temperature=[0.5])[0]["top1"] == found[0]["top1"]
    assert json.loads(bench("protocols", "diff", "mine.yaml", "dino", "--json").stdout).keys() == {"k", "temperature"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mine: {like: dino, kay: 5}", "protocol mine: unknown setting 'kay'. Known: similarity, vote, k, "),
        ("mine: {like: dono}", "unknown protocol 'dono'. Did you mean dino or dinov2?"),
        ("mine: {vote: uniform}", "protocol mine: needs k, or `like` with the name of another protocol"),
        ("mine: {like: dino, vote: uniform}", "protocol mine: the exponential vote needs positive temperatures"),
        ("mine: {like: dino, similarity: manhattan}", "similarity must be one of cosine, inner_product, euclidean"),
        ("mine: {like: dino, k: [0]}", "k must be a list of positive whole numbers; got [0]"),
        ("- dino", "expected names with settings"),
        ("a: [", "mine.yaml: not YAML"),
    ],
)
def test_faults_of_own_protocols_are_named(bench: Bench, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    result = bench("protocols", "mine.yaml")
    assert result.returncode == 2
    assert message in result.stderr
    assert "mine.yaml" in result.stderr


def test_all_questions_can_be_asked_at_once(bench: Bench, records: Records, two: Path) -> None:
    found = records(
        "--features", "b", "--layers", "x", "--protocol", "dino,solo", "--k", "1,5", "--temperature", "0.07,0.1",
        "--retrieval", "--per-class", "--shots", "2,50%", "--tries", "2", "--duplicates", "0.99", "--clusters", "3",
    )  # fmt: skip
    counts = {task: sum(record["task"] == task for record in found) for task in {r["task"] for r in found}}
    assert counts == {"knn": 8, "retrieval": 1, "class": 6, "few_shot": 16, "kmeans": 2}
    assert len({tuple(record) for record in found}) == 1, "all have the same keys"
    shown = bench("evaluate", "--features", "b", "--layers", "x", "--k", "1,5", "--retrieval", "--per-class",
                  "--shots", "2", "--duplicates", "0.99").stdout  # fmt: skip
    for text in ("certified exact", "R-precision", "by class", "standard deviation of 5 tries", "without"):
        assert text in shown


def test_a_k_larger_than_the_images_of_a_draw_is_left_out_with_a_warning(bench: Bench, two: Path) -> None:
    """Two for each of three classes are six."""
    result = bench("evaluate", "--features", "b", "--layers", "x", "--k", "3,7", "--shots", "5,2", "--json")
    assert result.returncode == 0, result.stderr
    few = [record for record in json.loads(result.stdout) if record["task"] == "few_shot"]
    assert {(record["shots"], record["k"]) for record in few} == {("5", 3), ("5", 7), ("2", 3)}
    assert "7" in result.stderr


def test_rechecked_queries_are_counted_and_said(bench: Bench, records: Records, tmp_path: Path) -> None:
    """There are more equal rows than a shortlist holds; only float64 can show that they are equal."""
    features = {split: {"x": np.ones((n, 4), np.float32)} for split, n in (("train", 400), ("val", 30))}
    make_features(
        tmp_path / "features/f", features, {split: np.arange(len(v["x"])) % 2 for split, v in features.items()}
    )
    (record,) = records("--features", "f", "--k", "5", "--search-device", "cpu")
    assert (record["certified"], record["num_rechecked"], record["engine"]) == (True, 30, "the CPU, float32")
    shown = " ".join(bench("evaluate", "--features", "f", "--k", "5").stdout.split())
    assert "certified exact, after an exact re-check of some queries: x 30" in shown


def test_a_table_is_printed_also_where_every_query_is_a_duplicate(bench: Bench, two: Path) -> None:
    result = bench("evaluate", "--features", "a", "--k", "1", "--duplicates", "-0.99", "--quiet")
    assert result.returncode == 0, result.stderr
    assert "none (40)" in result.stdout


def test_info_says_how_many_rows_have_no_label(bench: Bench, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = {"train": np.array([0, -1, 1, -1, -1]), "val": np.array([0, 1])}
    features = {
        split: {"x": random.standard_normal((len(each), 3)).astype(np.float32)} for split, each in labels.items()
    }
    make_features(tmp_path / "features" / "some", features, labels)
    printed = " ".join(bench("info", "some").stdout.split())
    assert "train without a label 3 of 5 rows" in printed
    assert "val without a label 0 of 2 rows" in printed
