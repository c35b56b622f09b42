"""Rows with any number of classes: imported from every form, classified as a loop says, scored as scikit-learn does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from featbench.evaluate.knn.multi_label import influences_on_ap, influences_on_f1, multi_label_scores, votes_for
from featbench.store import FeatureSet, StoreError
from featbench.store import verify as faults_of
from featbench.store.typing import Doubles, Floats, Int8s
from tests.conftest import Bench, Records

NAMES = ("cat", "dog", "owl", "yak")


@pytest.fixture
def rows() -> dict[str, tuple[Floats, Int8s]]:
    """Features and labels, some of which are not known."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(4, 8))
    found = {}
    for split, count in (("train", 90), ("val", 40)):
        labels = (random.uniform(size=(count, 4)) < 0.35).astype(np.int8)
        features = (labels @ directions + 0.7 * random.normal(size=(count, 8))).astype(np.float32)
        labels[random.uniform(size=(count, 4)) < 0.1] = -1
        found[split] = features, labels
    return found


def save(tmp_path: Path, rows: dict[str, tuple[Floats, Int8s]]) -> None:
    for split, (features, labels) in rows.items():
        np.savez(tmp_path / f"{split}.npz", features=features, labels=labels, class_names=np.array(NAMES))


def bring_in(bench: Bench, *more: str) -> FeatureSet:
    result = bench("import", "--name", "mine", "--train", "train.npz", "--val", "val.npz", *more)
    assert result.returncode == 0, result.stderr
    return FeatureSet.open(Path("features/mine"))


def expected_scores(rows: dict[str, tuple[Floats, Int8s]], k: int, temperature: float) -> Doubles:
    """The vote, neighbour by neighbour."""
    unit = {
        s: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for s, (x, _) in rows.items()
    }
    labels = rows["train"][1]
    scores = np.zeros((len(unit["val"]), 4))
    for query, similarities in enumerate(unit["val"] @ unit["train"].T):
        nearest = np.argsort(-similarities, kind="stable")[:k]
        for label in range(4):
            votes = [(labels[n, label], np.exp(similarities[n] / temperature)) for n in nearest]
            known = sum(weight for value, weight in votes if value >= 0)
            scores[query, label] = sum(weight for value, weight in votes if value == 1) / known if known else 0
    return scores


@pytest.mark.parametrize("k", [1, 7])
def test_scores_are_those_of_a_loop_and_of_scikit_learn(
    bench: Bench, records: Records, rows: dict[str, tuple[Floats, Int8s]], tmp_path: Path, k: int
) -> None:
    bench("ls")  # goes to the empty folder
    save(tmp_path, rows)
    bring_in(bench)
    found = records("--features", "mine", "--k", k, "--temperature", 0.1, "--per-class")
    truth, scores = rows["val"][1], expected_scores(rows, k, 0.1)
    known = [truth[:, label] >= 0 for label in range(4)]
    each = [average_precision_score(truth[known[i], i], scores[known[i], i]) for i in range(4)]
    f1 = [f1_score(truth[known[i], i], scores[known[i], i] >= 0.5) for i in range(4)]
    pairs = truth >= 0
    (record,) = (r for r in found if r["task"] == "multi_label")
    assert record["mean_ap"] == pytest.approx(np.mean(each), abs=1e-12)
    assert record["macro_f1"] == pytest.approx(np.mean(f1), abs=1e-12)
    assert record["micro_f1"] == pytest.approx(f1_score(truth[pairs], scores[pairs] >= 0.5), abs=1e-12)
    by_class = {r["class"]: r for r in found if r["task"] == "label"}
    assert [by_class[name]["ap"] for name in NAMES] == pytest.approx(each, abs=1e-12)
    assert [by_class[name]["num_val"] for name in NAMES] == [int(k.sum()) for k in known]


def test_average_precision_with_ties_is_scikit_learns() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        truth, scores = random.uniform(size=30) < 0.3, np.round(random.uniform(size=30), 1)
        truth[0] = True
        assert influences_on_ap(truth, scores)[0] == pytest.approx(average_precision_score(truth, scores), rel=1e-12)


def test_influences_are_the_derivatives_of_scikit_learns_metrics() -> None:
    random = np.random.default_rng(3)
    truth, scores = random.uniform(size=25) < 0.4, np.round(random.uniform(size=25), 1)
    hits = np.stack([truth & (scores >= 0.5), scores >= 0.5, truth], axis=1).astype(np.float64)
    of_ap, of_f1 = influences_on_ap(truth, scores)[1], influences_on_f1(hits)[1]
    for query in range(25):
        more, less = np.ones((2, 25))
        more[query], less[query] = 1 + 1e-5, 1 - 1e-5
        aps = [average_precision_score(truth, scores, sample_weight=w) for w in (more, less)]
        f1s = [f1_score(truth, scores >= 0.5, sample_weight=w) for w in (more, less)]
        assert of_ap[query] == pytest.approx((aps[0] - aps[1]) / 2e-5, abs=1e-8)
        assert of_f1[query] == pytest.approx((f1s[0] - f1s[1]) / 2e-5, abs=1e-8)


def test_intervals_are_those_of_a_bootstrap_over_the_queries() -> None:
    random = np.random.default_rng(4)
    rows, weights = random.integers(400, size=(600, 9)), random.uniform(size=(600, 9))
    train = (random.uniform(size=(400, 5)) < 0.3).astype(np.int8)
    truth = (votes_for(train, rows, weights) + random.normal(0, 0.2, (600, 5)) > 0.4).astype(np.int8)
    names = list("abcde")
    found = multi_label_scores(train, rows, weights, truth, names, k=9)
    draws = [
        multi_label_scores(train, rows[s], weights[s], truth[s], names, k=9)
        for s in random.integers(600, size=(200, 600))
    ]
    for name in ("mean_ap", "micro_f1", "macro_f1"):
        estimate = getattr(found, name)
        spread = np.std([getattr(each, name).value for each in draws])
        assert (estimate.high - estimate.value) / 1.959964 == pytest.approx(spread, rel=0.15), name


def test_pieces_of_classes_and_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    train = random.integers(-1, 2, size=(50, 9)).astype(np.int8)
    rows, weights = random.integers(50, size=(20, 6)), random.uniform(size=(20, 6))
    truth = random.integers(-1, 2, size=(20, 9)).astype(np.int8)
    whole = multi_label_scores(train, rows, weights, truth, [str(i) for i in range(9)], k=6)
    scores = votes_for(train, rows, weights)
    monkeypatch.setattr("featbench.evaluate.knn.multi_label._VOTES_AT_ONCE", 100)
    assert np.array_equal(votes_for(train, rows, weights), scores)
    assert multi_label_scores(train, rows, weights, truth, [str(i) for i in range(9)], k=6) == whole


def test_labels_are_stored_as_they_were_and_verified(
    bench: Bench, rows: dict[str, tuple[Floats, Int8s]], tmp_path: Path
) -> None:
    bench("ls")
    save(tmp_path, rows)
    features = bring_in(bench)
    assert features.split("train").class_names == NAMES
    assert features.split("train").is_multi_label
    for split in ("train", "val"):
        assert np.array_equal(features.label_matrix(split), rows[split][1])
        assert (features.labels(split) == -1).all()
    assert not list(faults_of(features.path))
    assert FeatureSet.open(features.path).manifest.fingerprint == features.manifest.fingerprint
    assert bench("info", "mine").returncode == 0
    assert bench("export", "mine", "--what", "features,neighbours", "--k", "3").returncode == 0
    assert bench("evaluate", "--features", "mine", "--k", "3", "--clusters", "4", "--per-class").returncode == 0
    assert bench("diagnose", "mine", "--k", "3").returncode == 0


def test_a_set_of_one_class_a_row_has_no_matrix_and_the_manifest_of_before(bench: Bench, tmp_path: Path) -> None:
    bench("ls")
    np.savez(tmp_path / "train.npz", features=np.eye(3, dtype=np.float32), labels=np.arange(3))
    np.savez(tmp_path / "val.npz", features=np.eye(3, dtype=np.float32), labels=np.arange(3))
    features = bring_in(bench)
    assert "is_multi_label" not in (features.path / "zarr.json").read_text()
    with pytest.raises(StoreError, match="one class each"):
        features.label_matrix("train")


LISTS = [["cat", "dog"], [], ["owl"], ["cat"], ["dog", "owl", "cat"], ["owl"]]
MATRIX = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("form", ["json", "txt", "column", "strings"])
def test_lists_of_names_are_read_from_every_form(bench: Bench, tmp_path: Path, form: str) -> None:
    bench("ls")
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    joined = [";".join(names) for names in LISTS]
    more: list[str] = ["--multi-label"]
    for split in ("train", "val"):
        arrays: dict[str, Any] = {"features": features}
        if form == "strings":
            arrays["labels"] = np.array(["|".join(names) for names in LISTS])
        elif form == "column":
            (tmp_path / f"{split}.csv").write_text("labels\n" + "\n".join(name or '""' for name in joined) + "\n")
        elif form == "json":
            (tmp_path / f"{split}.json").write_text(json.dumps(LISTS))
        else:
            (tmp_path / f"{split}.txt").write_text("\n".join(name or "[]" for name in joined) + "\n")
        np.savez(tmp_path / f"{split}.npz", **arrays)
        if form != "strings":
            ending = {"column": "csv"}.get(form, form)
            more += [f"--{split}-labels", f"{split}.{ending}"]
    if form == "column":  # quotes are not part of a text file with one column
        for split in ("train", "val"):
            path = tmp_path / f"{split}.csv"
            path.write_text(path.read_text().replace('""', "[]"))
    made = bring_in(bench, *more)
    assert made.split("train").class_names == ("cat", "dog", "owl")
    assert made.label_matrix("val").tolist() == MATRIX


def test_one_hot_rows_need_the_flag(bench: Bench, tmp_path: Path) -> None:
    bench("ls")
    for split in ("train", "val"):
        np.savez(tmp_path / f"{split}.npz", features=np.eye(3, dtype=np.float32), labels=np.eye(3, dtype=np.int64))
    result = bench("import", "--name", "mine", "--train", "train.npz", "--val", "val.npz")
    assert result.returncode == 2
    assert "one-hot" in result.stderr
    assert bring_in(bench, "--multi-label").label_matrix("train").tolist() == np.eye(3).tolist()


def test_targets_of_vissls_shards_with_several_columns_are_labels_of_each_class(bench: Bench, tmp_path: Path) -> None:
    bench("ls")
    random = np.random.default_rng(3)
    labels = {part: random.integers(-1, 2, size=(10, 4)).astype(np.int64) for part in ("train", "test")}
    for part, each in labels.items():
        for rank in (0, 1):
            stem = tmp_path / f"shards/rank{rank}_chunk0_{part}_res5"
            stem.parent.mkdir(exist_ok=True)
            np.save(f"{stem}_features.npy", random.normal(size=(5, 3)).astype(np.float32))
            np.save(f"{stem}_targets.npy", each[rank::2])
            np.save(f"{stem}_inds.npy", np.arange(rank, 10, 2))
    result = bench("import", "--name", "mine", "--vissl", "shards")
    assert result.returncode == 0, result.stderr
    features = FeatureSet.open(Path("features/mine"))
    assert np.array_equal(features.label_matrix("val"), labels["test"])


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.array([[0, 2], [1, 1], [0, 0]]), (), "a column of 1, 0 or -1"),
        (np.array([[0, 2], [1, 1], [0, 0]]), ("--multi-label",), "--multi-label needs"),
        (np.array(["", "", ""]), ("--multi-label",), "no row has a class"),
        (np.array(['["a"', "b", "c"]), ("--multi-label",), "no list of names"),
        (np.array(["[1]", "b", "c"]), ("--multi-label",), "no list of names"),
    ],
)
def test_labels_that_are_no_lists_are_refused(
    bench: Bench, tmp_path: Path, labels: Any, options: tuple[str, ...], message: str
) -> None:
    bench("ls")
    for split in ("train", "val"):
        np.savez(tmp_path / f"{split}.npz", features=np.eye(3, dtype=np.float32), labels=labels)
    result = bench("import", "--name", "mine", "--train", "train.npz", "--val", "val.npz", *options)
    assert result.returncode == 2
    assert message in result.stderr


def test_other_queries_and_listed_rows_of_train_are_scored_as_a_loop_says(
    bench: Bench, records: Records, rows: dict[str, tuple[Floats, Int8s]], tmp_path: Path
) -> None:
    bench("ls")
    save(tmp_path, rows)
    features, labels = rows["val"]
    order, nothing = [3, 1, 0], np.full((len(labels), 1), -1, np.int8)
    theirs = np.concatenate([labels[:, order], nothing], axis=1)  # without owls; nothing is known of newts
    names = np.array([*(NAMES[at] for at in order), "newt"])
    np.savez(tmp_path / "other.npz", features=features, labels=theirs, class_names=names)
    bring_in(bench)
    assert bench("import", "--name", "other", "--val", "other.npz", "--multi-label").returncode == 0
    few = [row for row in range(90) if row % 3]
    Path("few.txt").write_text(
        "".join(f"{FeatureSet.open(Path('features/mine')).paths('train')[row]}\n" for row in few)
    )
    ask = ("--features", "mine", "--k", 7, "--temperature", 0.1)
    found = records(*ask, "--queries", "o=other", "--subset", "few=few.txt", "--ood", "far=other")
    by_name = {(r["queries"], r["bank"]): r for r in found if r["task"] == "queries"}
    for key, bank, classes in ((("o", "all"), range(90), order), (("val", "few"), few, range(4))):
        x, y = rows["train"]
        scores = expected_scores({"train": (x[list(bank)], y[list(bank)]), "val": rows["val"]}, 7, 0.1)
        known = {at: labels[:, at] >= 0 for at in classes}
        aps = [average_precision_score(labels[known[at], at], scores[known[at], at]) for at in classes]
        assert by_name[key]["mean_ap"] == pytest.approx(np.mean(aps), abs=1e-12)
        assert by_name[key]["num_labels"] == len(aps)
    (some,) = (r for r in records(*ask, "--queries", "o=other", "--bank", "subset") if r["task"] == "queries")
    has_one = (rows["train"][1][:, order] == 1).any(axis=1)
    assert (some["num_train"], some["num_val"]) == (has_one.sum(), 40)
    np.savez(tmp_path / "one.npz", features=features, labels=np.arange(40) % 2)
    assert bench("import", "--name", "one", "--train", "one.npz", "--val", "one.npz").returncode == 0
    for asked, queries in (("mine", "one"), ("one", "other")):
        result = bench("evaluate", "--features", asked, "--k", "3", "--queries", f"q={queries}")
        assert result.returncode == 2
        assert "so they can't be compared" in result.stderr


@pytest.mark.parametrize("option", [("--select", "leave-one-out"), ("--retrieval",), ("--shots", "1")])
def test_what_needs_one_class_a_row_is_refused(
    bench: Bench, rows: dict[str, tuple[Floats, Int8s]], tmp_path: Path, option: tuple[str, ...]
) -> None:
    bench("ls")
    save(tmp_path, rows)
    bring_in(bench)
    result = bench("evaluate", "--features", "mine", "--k", "3", *option)
    assert result.returncode == 2
    assert f"{option[0]} needs one class for each" in result.stderr
    Path("real.json").write_text("[]")
    assert "--any-of has nothing to add" in bench("evaluate", "--features", "mine", "--any-of", "r=real.json").stderr
