"""Other queries of the same bank, images from elsewhere, and feature sets of one split."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from featbench.evaluate.knn.ood import ood_metrics
from featbench.pipelines.evaluation.subsets import SubsetError, subset_file
from featbench.pipelines.foreign.importing import Arrays, import_features
from featbench.store import FeatureSet
from featbench.store import verify as faults_of
from featbench.store.typing import Doubles, Floats, Ints
from tests.conftest import Bench, Records

CLASSES = np.array(["ant", "bee", "cat", "dog"])


Rows = dict[str, tuple[Floats, Ints]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A folder with files of features and labels, and feature sets of them; and the features and labels, by name."""
    folder = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0)
    centers = random.normal(size=(4, 6))
    found = {}
    for name, count in (("train", 80), ("val", 40), ("v2", 30), ("pair", 20)):
        labels = random.integers(4, size=count) if name != "pair" else random.integers(2, size=count)
        found[name] = (centers[labels] + random.normal(size=(count, 6))).astype(np.float32), labels
    found["far"] = (3 * random.normal(size=(25, 6))).astype(np.float32), np.zeros(25, np.int64)
    arrays = {}
    for name, (features, labels) in found.items():
        np.savez(folder / f"{name}.npz", features=features, labels=CLASSES[labels])
        arrays[name] = Arrays(layers={"features": features}, labels=CLASSES[labels])
    arrays["wide"] = Arrays(layers={"features": np.ones((5, 9), np.float32)}, labels=np.arange(5))
    import_features({"train": arrays["train"], "val": arrays["val"]}, store=folder / "features", name="mine")
    import_features({"train": arrays["train"]}, store=folder / "features", name="alone")
    for name in ("v2", "pair", "far", "wide"):
        import_features({"val": arrays[name]}, store=folder / "features", name=name)
    return folder, found


@pytest.fixture
def rows(made: tuple[Path, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Copy what was made into an empty working folder."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return dict(made[1])


def top1(rows: Rows, name: str, *, k: int, keep: Any = None) -> float:
    """The vote of DINO's protocol, query by query."""
    bank, labels = rows["train"]
    if keep is not None:
        bank, labels = bank[np.isin(labels, keep)], labels[np.isin(labels, keep)]
    unit = [x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (bank, rows[name][0])]
    right = []
    for similarities, truth in zip(unit[1] @ unit[0].T, rows[name][1], strict=True):
        order = np.argsort(-similarities, kind="stable")[:k]
        votes = np.zeros(4)
        np.add.at(votes, labels[order], np.exp(similarities[order] / 0.07))
        right.append(votes.argmax() == truth)
    return float(np.mean(right))


def test_other_queries_are_classified_by_the_same_bank(rows: Rows, records: Records) -> None:
    found = records("--features", "mine", "--k", "1,5", "--queries", "v2", "--queries", "two=pair")
    by_name = {(each["queries"], each["k"]): each for each in found if each["task"] == "queries"}
    for name, of in (("v2", "v2"), ("two", "pair")):
        for k in (1, 5):
            record = by_name[name, k]
            assert record["top1"] == pytest.approx(top1(rows, of, k=k), abs=1e-12)
            assert (record["bank"], record["num_train"], record["num_val"]) == ("all", 80, len(rows[of][1]))
    assert {each["task"] for each in found} == {"knn", "queries"}


def test_the_bank_can_be_the_subset_of_the_queries_classes(rows: Rows, records: Records) -> None:
    found = records("--features", "mine", "--k", "5", "--queries", "two=pair", "--bank", "subset")
    (record,) = (each for each in found if each["task"] == "queries")
    assert record["top1"] == pytest.approx(top1(rows, "pair", k=5, keep=[0, 1]), abs=1e-12)
    assert record["num_train"] == int((rows["train"][1] < 2).sum())
    assert record["bank"] == "subset"


def test_numbers_are_positions_among_the_classes_of_train(
    rows: Rows, bench: Bench, records: Records, tmp_path: Path
) -> None:
    """As the folders 0 to 999 of ImageNet-V2, which are in the order of the classes' names."""
    np.savez(tmp_path / "n.npz", features=rows["v2"][0], labels=rows["v2"][1])
    assert bench("import", "--name", "numbered", "--val", "n.npz").returncode == 0
    found = records("--features", "mine", "--k", "5", "--queries", "n=numbered")
    (record,) = (each for each in found if each["task"] == "queries")
    assert record["top1"] == pytest.approx(top1(rows, "v2", k=5), abs=1e-12)
    np.savez(tmp_path / "n.npz", features=rows["v2"][0], labels=np.repeat("zebra", len(rows["v2"][0])))
    assert bench("import", "--name", "zebras", "--val", "n.npz").returncode == 0
    refused = bench("evaluate", "--features", "mine", "--k", "5", "--queries", "z=zebras")
    assert refused.returncode == 2
    assert "z: train has none of its classes, such as 'zebra'" in refused.stderr
    assert "objectnet: the catalogue does not say where its images are" in (
        bench("evaluate", "--features", "mine", "--queries", "objectnet").stderr
    )


def openood(inside: Doubles, outside: Doubles) -> tuple[float, ...]:
    """AUROC, AUPR of both sides and FPR at 95% of both, by scikit-learn as OpenOOD calls it."""
    labels = np.repeat([1, 0], [len(inside), len(outside)])
    scores = np.concatenate([inside, outside])
    areas, rates = [], []
    for truth, confidence in ((labels, scores), (1 - labels, -scores)):
        precision, recall, _ = metrics.precision_recall_curve(truth, confidence)
        areas.append(metrics.auc(recall, precision))
        # Without this, points on a straight line through ties are left out, and the first at 95% may be among them.
        false, true, _ = metrics.roc_curve(truth, confidence, drop_intermediate=False)
        rates.append(false[np.argmax(true >= 0.95)])
    return metrics.roc_auc_score(labels, scores), *areas, *rates


@pytest.mark.parametrize("digits", [1, 12])
def test_ood_metrics_are_those_of_openood(digits: int) -> None:
    random = np.random.default_rng(1)
    for size in range(18, 120):
        inside, outside = (np.round(random.normal(mean, 1, count), digits) for mean, count in ((1, size), (0, 70)))
        found = ood_metrics(inside, outside)
        rates = (found.fpr_at_95.value, found.fpr_at_95_out.value)
        ours = (found.auroc.value, found.aupr_in, found.aupr_out, *rates)
        assert ours == pytest.approx(openood(inside, outside), abs=1e-12)


def test_images_from_elsewhere_are_told_by_the_distance_to_neighbour_k(rows: Rows, records: Records) -> None:
    found = records("--features", "mine", "--k", "1,7", "--ood", "far")
    unit = {
        name: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
        for name, (x, _) in rows.items()
    }
    for k in (1, 7):
        inside, outside = (-np.sort(-unit[name] @ unit["train"].T, axis=1)[:, k - 1] for name in ("val", "far"))
        (record,) = (each for each in found if each["task"] == "ood" and each["k"] == k)
        ours = [record[name] for name in ("auroc", "aupr_in", "aupr_out", "fpr_at_95", "fpr_at_95_out")]
        assert ours == pytest.approx(openood(inside, outside), abs=1e-12)
        assert record["auroc_low"] < record["auroc"] < record["auroc_high"]


def test_one_split_is_imported_and_asked_leave_one_out(bench: Bench, rows: Rows) -> None:
    result = bench("import", "--name", "alone", "--train", "train.npz", "--overwrite")
    assert result.returncode == 0, result.stderr
    assert "--leave-one-out" in result.stdout
    queries = bench("import", "--name", "queries", "--val", "v2.npz")
    assert "--queries NAME=queries" in queries.stdout
    assert list(FeatureSet.open(Path("features/alone")).manifest.splits) == ["train"]
    assert not list(faults_of(Path("features/alone")))
    both = json.loads(bench("evaluate", "--features", "mine", "--k", "5", "--leave-one-out", "--json").stdout)
    alone = json.loads(bench("evaluate", "--features", "alone", "--k", "5", "--leave-one-out", "--json").stdout)
    assert alone[0]["top1"] == both[0]["top1"]
    for command in (
        ("evaluate", "--features", "alone", "--k", "5", "--leave-one-out", "--retrieval", "--per-class", "--pca", "3"),
        ("evaluate", "--features", "alone", "--k", "5", "--leave-one-out", "--queries", "v2", "--queries", "mine"),
        ("diagnose", "alone", "--k", "5", "--leave-one-out", "--suspects", "s.csv"),
        ("export", "alone", "--leave-one-out", "--k", "5"),
        ("ls",), ("info", "alone"), ("verify", "alone"), ("info", "v2"),
    ):  # fmt: skip
        done = bench(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_one_split_is_clustered_as_it_is_with_val(rows: Rows, bench: Bench, records: Records) -> None:
    words = ("--k", "3", "--leave-one-out", "--clusters", "3,classes", "--layers", "features")
    both, alone = records("--features", "mine", *words), records("--features", "alone", *words)
    of_both, of_alone = ([each for each in found if each["task"] == "kmeans"] for found in (both, alone))
    assert [(each["split"], each["clusters"]) for each in of_alone] == [("train", 3), ("train", 4)]
    changing = {"features", "num_val", "seconds", "fingerprint", "tap"}
    of_train = [each for each in of_both if each["split"] == "train"]
    for one, other in zip(of_alone, of_train, strict=True):
        assert {key: one[key] for key in one.keys() - changing} == {key: other[key] for key in one.keys() - changing}
    again = [each for each in records("--features", "alone", *words) if each["task"] == "kmeans"]  # from the cache
    assert [each["objective"] for each in again] == [each["objective"] for each in of_alone]
    info = bench("info", "alone")
    assert info.returncode == 0, info.stderr
    assert "yes" in info.stdout.split("clusterings")[-1]
    for command in (
        ("report", "alone", "--thumbnail", "0"),
        ("export", "alone", "--what", "clusters", "--format", "csv", "--out", "out"),
        ("export", "alone", "--what", "clusters", "--format", "vissl", "--out", "out2"),
        ("assign", "mine", "--clusters-of", "alone", "--clusters", "3"),
        ("assign", "alone", "--clusters-of", "mine", "--clusters", "3"),
    ):
        result = bench(*command)
        assert result.returncode == 0, (command, result.stderr)
    assert not list(faults_of(Path("features/alone")))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("evaluate", "--features", "alone"), "use --leave-one-out"),
        (("evaluate", "--features", "alone", "--select", "leave-one-out"), "has no split val"),
        (("evaluate", "--features", "alone", "--shots", "1"), "has no split val"),
        (("evaluate", "--features", "alone", "--leave-one-out", "--ood", "far"), "has no split val"),
        (("diagnose", "alone", "--k", "3"), "use --leave-one-out"),
        (("compare", "alone", "mine"), "no split 'val'"),
        (("export", "alone"), "no split val"),
        (("evaluate", "--features", "v2"), "no train split"),
        (("evaluate", "--features", "mine", "--queries", "nowhere"), "nowhere: no feature set by that name or path"),
        (("evaluate", "--features", "mine", "--queries", "=v2"), "need NAME=SET"),
        (("evaluate", "--features", "mine", "--queries", "x=mine:train"), "rows of the bank"),
        (("evaluate", "--features", "mine", "--queries", "v2:train"), "no split 'train'"),
        (("evaluate", "--features", "mine", "--queries", "wide"), "Queries need the same layer"),
        (("evaluate", "--features", "mine", "--queries", "v2", "--pca", "2"), "ask stored layers"),
    ],
)
def test_what_can_not_be_asked_is_refused_with_one_message(
    bench: Bench, rows: Rows, tmp_path: Path, command: tuple[str, ...], message: str
) -> None:
    result = bench(*command)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr


@pytest.mark.slow
def test_queries_alone_are_extracted_and_asked(bench: Bench, photographs: Path, records: Records) -> None:
    shared = ("model.trunk=resnet18", "--random-weights", "0", "--layers", "avgpool", "transform.resize=32",
              "transform.crop=32", "--data", photographs, "--workers", 0)  # fmt: skip
    assert bench("extract", "folder", "--name", "all", *shared).returncode == 0
    result = bench("extract", "folder", "--name", "val", "--train-split", "none", *shared)
    assert result.returncode == 0, result.stderr
    assert list(FeatureSet.open(Path("features/val")).manifest.splits) == ["val"]
    again = bench("extract", "folder", "--name", "val", "--train-split", "none", *shared)
    assert "Nothing to do" in again.stderr
    found = records("--features", "all", "--k", "3", "--queries", "val")
    ours = next(each for each in found if each["task"] == "knn")
    theirs = next(each for each in found if each["task"] == "queries")
    assert theirs["top1"] == ours["top1"]
    bench("extract", "folder", "--name", "other", "--train-split", "none", *shared[:2], "1", *shared[3:])
    refused = bench("evaluate", "--features", "all", "--k", "3", "--queries", "other")
    assert refused.returncode == 2
    assert "was not made as" in refused.stderr


def test_a_listed_subset_of_train_votes_alone(rows: Rows, records: Records, bench: Bench, tmp_path: Path) -> None:
    paths = FeatureSet.open(Path("features/mine")).paths("train")
    chosen = [3, 7, 8, 20, 33, 41, 60, 61, 79]
    lines = [paths[row] if row % 2 else paths[row].rpartition("/")[2] for row in chosen]
    (tmp_path / "few.txt").write_text("\n".join([*lines, lines[0], ""]))
    found = records("--features", "mine", "--k", "3", "--subset", "few=few.txt")
    (record,) = (each for each in found if each["task"] == "queries")
    assert (record["bank"], record["queries"], record["num_train"]) == ("few", "val", 9)
    few = {"train": (rows["train"][0][chosen], rows["train"][1][chosen]), "val": rows["val"]}
    assert record["top1"] == pytest.approx(top1(few, "val", k=3), abs=1e-12)


def test_a_subset_can_be_named_by_the_catalogue(rows: Rows, tmp_path: Path) -> None:
    made = FeatureSet.open(Path("features/mine"))
    notes = {"pipeline": {"data": {"name": "in1k"}}}
    features = FeatureSet(made.path, replace(made.manifest, notes=notes))
    with pytest.raises(SubsetError, match="no such file, and the catalogue's in1k has no subset of that name"):
        subset_file(features, "1%", "1%")
    (tmp_path / "datasets.yaml").write_text("in1k: {root: imagenet}")
    assert subset_file(features, "1%", "1%") == Path("imagenet/imagenet_subsets/1percent.txt")
    assert subset_file(features, "1%", "mine.txt") == Path("mine.txt")
    with pytest.raises(SubsetError, match=r"has no subset of that name \(1%, 10%\). Give --subset 5%=FILE"):
        subset_file(features, "5%", "5%")
    with pytest.raises(SubsetError, match="names no data set"):
        subset_file(made, "1%", "1%")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "lists no image"), ("nowhere.jpg", "1 of its 1 images are not in train"), ("\xff", "can't be read")],
)
def test_a_subset_that_does_not_fit_is_refused_before_the_search(
    rows: Rows, bench: Bench, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "few.txt").write_bytes(content.encode("latin-1"))
    result = bench("evaluate", "--features", "mine", "--k", "1", "--subset", "few=few.txt")
    assert result.returncode == 2
    assert message in result.stderr
    assert "rows/s" not in result.stderr


@pytest.mark.parametrize("form", ["rows", "imagenet", "names"])
def test_any_of_several_labels_is_right(rows: Rows, bench: Bench, records: Records, tmp_path: Path, form: str) -> None:
    random = np.random.default_rng(2)
    several = [sorted(set(random.integers(4, size=random.integers(0, 3)).tolist())) for _ in range(40)]
    order = random.permutation(40)
    paths = [f"val/x/ILSVRC2012_val_{n + 1:08d}.JPEG" if form == "imagenet" else f"val/{n}.jpg" for n in order.tolist()]
    content: Any = several
    if form == "imagenet":  # the list is by the numbers in the names, the rows are in another order
        content = [several[row] for row in np.argsort(order)]
    elif form == "names":
        content = {Path(path).name: [str(CLASSES[c]) for c in each] for path, each in zip(paths, several, strict=True)}
    (tmp_path / "real.json").write_text(json.dumps(content))
    np.savez(tmp_path / "named.npz", features=rows["val"][0], labels=CLASSES[rows["val"][1]], paths=np.array(paths))
    assert bench("import", "--name", "r", "--train", "train.npz", "--val", "named.npz").returncode == 0
    found = records("--features", "r", "--k", "5", "--any-of", "real=real.json")
    (record,) = (each for each in found if each["task"] == "any_of")
    unit = [x.astype(np.float64) / np.linalg.norm(x, axis=1).astype(np.float64)[:, None] for x, _ in rows.values()]
    right = []
    for similarities, classes in zip(unit[1] @ unit[0].T, several, strict=True):
        order_K = np.argsort(-similarities, kind="stable")[:5]
        votes = np.zeros(4)
        np.add.at(votes, rows["train"][1][order_K], np.exp(similarities[order_K] / 0.07))
        right += [votes.argmax() in classes] * bool(classes)
    assert record["top1"] == pytest.approx(np.mean(right), abs=1e-12)
    assert record["num_any_of"] == len(right) < 40
    assert record["top1_own"] == next(each["top1"] for each in found if each["task"] == "knn")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0]]", "1 lists of classes, but val has 40 rows"),
        ("{}", "names no image of val"),
        ("3", "expected a list of lists"),
        ("[" + ", ".join(["[0]"] * 39 + ["7"]) + "]", "7 is no list of classes"),
        ("[" + ", ".join(["[0]"] * 39 + ["[9]"]) + "]", "9 is no class of train"),
        ("[" + ", ".join(["[0]"] * 39 + ['["gnu"]']) + "]", "'gnu' is no class of train"),
        ("[", "can't be read as JSON"),
    ],
)
def test_labels_of_which_any_is_right_that_do_not_fit_are_refused(
    rows: Rows, bench: Bench, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "real.json").write_text(content)
    result = bench("evaluate", "--features", "mine", "--k", "1", "--any-of", "real=real.json")
    assert result.returncode == 2
    assert message in result.stderr
