"""`bench diagnose`, and what `bench evaluate` takes from it: on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.conftest import Bench, Records, make_features

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    labels = {"train": np.arange(60) % 3, "val": np.arange(30) % 3}
    centers = random.normal(size=(3, 8))
    rows = {
        split: {
            "a": (centers[each] + random.normal(size=(len(each), 8))).astype(np.float32),
            "b": (centers[each] + 0.5 * random.normal(size=(len(each), 8))).astype(np.float32),
        }
        for split, each in labels.items()
    }
    rows["val"]["a"][0] = rows["train"]["a"][9]
    path = tmp_path / "features/mine"
    make_features(path, rows, labels, class_names={"train": CLASSES, "val": CLASSES})
    return path


def test_the_diagnosis_has_a_record_for_each_layer_and_kind(bench: Bench, features: Path) -> None:
    result = bench("diagnose", "mine", "--k", "3,5", "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    records = json.loads(result.stdout)
    kinds = [(each["layer"], each["task"], each["k"]) for each in records]
    for layer in ("a", "b"):
        of_layer = [kind[1:] for kind in kinds if kind[0] == layer and kind[1] not in ("agreement", "prediction_depth")]
        assert of_layer == [
            ("calibration", 3), ("calibration", 5), ("hubness", 3), ("hubness", 5), ("geometry", None)
        ]  # fmt: skip
    of_a = records[0]
    assert 0 <= of_a["ece"] <= of_a["rms_ce"] <= of_a["max_ce"] <= 1
    assert sum(each["num_queries"] for each in of_a["reliability"]) == 30
    assert list((features / "results").iterdir())


@pytest.mark.parametrize("form", [(), ("--csv",), ("--markdown",), ("--latex",)])
def test_every_format_shows_it(bench: Bench, features: Path, form: tuple[str, ...]) -> None:
    result = bench("diagnose", "mine", "--layers", "a", "--k", "3", "--leave-one-out", *form)
    assert result.returncode == 0, result.stderr
    assert "ECE" in result.stdout or "ece" in result.stdout


def test_suspects_are_written_with_paths_and_classes(bench: Bench, features: Path, tmp_path: Path) -> None:
    result = bench("diagnose", "mine", "--layers", "a", "--k", "3", "--suspects", "look/s.csv", "--duplicates", "1")
    assert result.returncode == 0, result.stderr
    with (tmp_path / "look/s.csv").open() as file:
        found = list(csv.DictReader(file))
    leaks = [each for each in found if each["kind"] == "leak"]
    assert [(each["split"], each["row"], each["other_row"], each["class"]) for each in leaks] == [
        ("val", "0", "9", "cat")
    ]
    assert all(each["path"] and each["other_path"] for each in found)
    again = bench("diagnose", "mine", "--suspects", "look/s.csv")
    assert again.returncode == 2
    assert "exists" in again.stderr


def test_a_cosine_of_zero_is_a_threshold_for_near_duplicates(bench: Bench, features: Path) -> None:
    result = bench("diagnose", "mine", "--layers", "a", "--suspects", "s.csv", "--duplicates", "0", "--json")
    (record,) = (each for each in json.loads(result.stdout) if each["task"] == "suspects")
    stored = zarr.open_group(features, mode="r")
    train, val = (np.asarray(stored[f"{split}/a"], np.float64) for split in ("train", "val"))
    nearest = (val @ train.T / np.outer(np.linalg.norm(val, axis=1), np.linalg.norm(train, axis=1))).max(axis=1)
    assert (record["duplicates_from"], record["num_leaks"]) == (0, (nearest >= 0).sum())


def test_the_accuracy_of_each_group_is_that_of_its_rows(
    bench: Bench, records: Records, features: Path, tmp_path: Path
) -> None:
    names = [f"val/{row:07d}" for row in range(30)]
    paths = _paths(features)
    cameras = ["left" if row % 2 else "right" for row in range(29)]
    lines = [
        "path,camera,day",
        *(
            f"{path},{camera},{'' if row else 'Monday'}"
            for row, (path, camera) in enumerate(zip(paths, cameras, strict=False))
        ),
    ]
    (tmp_path / "groups.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(names) == len(paths)
    found = records("--features", "mine", "--layers", "a", "--k", "1", "--group-by", "groups.csv")
    groups = {(each["group_by"], each["group"]): each for each in found if each["task"] == "group"}
    assert {name: each["num_queries"] for name, each in groups.items()} == {
        ("camera", "left"): 14, ("camera", "right"): 15, ("day", "Monday"): 1
    }  # fmt: skip
    rows = np.load(features.parent / "rows.npz") if (features.parent / "rows.npz").exists() else None
    assert rows is None
    assert sum(each["is_worst"] for each in groups.values() if each["group_by"] == "camera") == 1
    right = sum(each["top1"] * each["num_queries"] for name, each in groups.items() if name[0] == "camera")
    everything = next(each for each in found if each["task"] == "knn")
    assert abs(30 * everything["top1"] - right) <= 1 + 1e-9, "one row is in no group"


def _paths(features: Path) -> list[str]:
    from featbench.store import FeatureSet

    return FeatureSet.open(features).paths("val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("image,camera\na,b\n", "expected a column 'path'"),
        ("path\na\n", "expected a column of groups"),
        ("path,camera\na,left\n", "none of its 1 paths"),
        ("path,camera\na,left,x\n", "line 2: expected 2 cells"),
        ("path,camera\na,left\na,right\n", "line 3: a was listed before"),
        ("path,camera,camera\na,left,x\n", "named twice"),
        ("path,camera\n\xff", None),
    ],
)
def test_files_of_groups_that_do_not_fit_are_refused(
    bench: Bench, features: Path, tmp_path: Path, content: str, message: str | None
) -> None:
    (tmp_path / "g.csv").write_bytes(content.encode("latin-1"))
    result = bench("evaluate", "--features", "mine", "--k", "1", "--group-by", "g.csv")
    assert result.returncode == 2
    assert (message or "can't be read as CSV") in result.stderr
    assert "Traceback" not in result.stderr


def test_the_setting_is_chosen_on_train_and_reported_on_val(records: Records, features: Path) -> None:
    found = records("--features", "mine", "--k", "1,3,9", "--temperature", "0.05,0.5", "--select", "leave-one-out")
    trials = [each for each in found if each["task"] == "knn"]
    (chosen,) = (each for each in found if each["task"] == "selection")
    assert len(trials) == chosen["num_settings"] == 12
    assert all(each["leave_one_out"] for each in trials)
    best = max(trials, key=lambda each: each["top1"])
    assert [chosen[name] for name in ("layer", "k", "temperature")] == [best[n] for n in ("layer", "k", "temperature")]
    on_val = records("--features", "mine", "--k", "1,3,9", "--temperature", "0.05,0.5")
    same = [each for each in on_val if all(each[n] == chosen[n] for n in ("layer", "k", "temperature"))]
    assert chosen["top1"] == same[0]["top1"]
    assert chosen["best_on_val_top1"] == max(each["top1"] for each in on_val)
    assert chosen["optimism"] == pytest.approx(chosen["best_on_val_top1"] - chosen["top1"])


def test_choosing_needs_labels(bench: Bench, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = {split: {n: random.normal(size=(20, 4)).astype(np.float32) for n in "ab"} for split in ("train", "val")}
    nothing = {split: np.full(20, -1) for split in rows}
    make_features(tmp_path / "features/plain", rows, nothing, class_names={"train": (), "val": ()})
    result = bench("evaluate", "--features", "plain", "--k", "1", "--select", "leave-one-out")
    assert result.returncode == 2
    assert "--select needs labels" in result.stderr
    diagnosed = bench("diagnose", "plain", "--suspects", "s.csv", "--json")
    assert diagnosed.returncode == 0, diagnosed.stderr
    tasks = {each["task"]: each for each in json.loads(diagnosed.stdout)}
    assert tasks.keys() == {"hubness", "geometry", "suspects", "agreement", "left_out"}
    missing = ["calibration", "prediction depth", "label error", "accuracy without suspects"]
    assert (tasks["left_out"]["left_out"], tasks["left_out"]["features"]) == (missing, "plain")
    assert f"plain: no row of train and val has a label, so there is no {', no '.join(missing[:3])} and no" in (
        diagnosed.stderr
    )
    assert diagnosed.stderr.count("rows of train can vote, so k is") == 1, "two layers, one warning"


def test_a_spectrum_that_does_not_fit_into_the_memory_is_left_out(bench: Bench, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = {split: {"a": random.normal(size=(20, 3000)).astype(np.float32)} for split in ("train", "val")}
    labels = {split: np.arange(20) % 2 for split in rows}
    make_features(tmp_path / "features/wide", rows, labels)
    result = bench("diagnose", "wide", "--k", "2", "--memory", "120MiB")
    assert result.returncode == 0, result.stderr
    assert "there is no spectrum" in result.stderr


@pytest.fixture
def others(features: Path) -> Path:
    """Two more feature sets of the same rows, one better and one worse."""
    from featbench.store import FeatureSet

    mine = FeatureSet.open(features)
    random = np.random.default_rng(5)
    labels = {split: mine.labels(split) for split in ("train", "val")}
    for name, scale in (("better", 3.0), ("worse", 0.0)):
        rows = {
            split: {"c": (scale * np.eye(3)[each] + random.normal(size=(len(each), 3))).astype(np.float32)}
            for split, each in labels.items()
        }
        made = make_features(features.parent / name, rows, labels, class_names={"train": CLASSES, "val": CLASSES})
        assert made.paths("val") == mine.paths("val")
    return features.parent


def test_layers_and_models_are_compared_pair_by_pair(bench: Bench, others: Path) -> None:
    result = bench("diagnose", "mine", "better", "--k", "3", "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    records = json.loads(result.stdout)
    pairs = [each for each in records if each["task"] == "agreement"]
    assert [(p["features"], p["layer"], p["other_features"], p["other_layer"]) for p in pairs] == [
        ("mine", "a", "mine", "b"), ("mine", "a", "better", "c"), ("mine", "b", "better", "c")
    ]  # fmt: skip
    (depth,) = (each for each in records if each["task"] == "prediction_depth")
    assert sum(each["num_queries"] for each in depth["depths"]) == 30
    assert "shared neighbours" in bench("diagnose", "mine", "better", "--k", "3").stdout


def test_models_with_other_rows_are_not_compared(bench: Bench, others: Path, tmp_path: Path) -> None:
    labels = {"train": np.arange(60) % 3, "val": np.arange(29) % 3}
    rows = {split: {"c": np.ones((len(each), 3), np.float32)} for split, each in labels.items()}
    make_features(others / "short", rows, labels, class_names={"train": CLASSES, "val": CLASSES})
    for command in (("diagnose", "mine", "short"), ("compare", "mine", "better", "short")):
        result = bench(*command, "--k", "3")
        assert result.returncode == 2
        assert "30 val images and short 29" in result.stderr


def test_three_sets_are_ranked_with_corrected_p_values(bench: Bench, others: Path) -> None:
    result = bench("compare", "worse", "mine", "better", "--k", "1,5", "--json")
    assert result.returncode == 0, result.stderr
    records = json.loads(result.stdout)
    ranked = [each for each in records if each["task"] == "ranking"]
    pairs = [each for each in records if each["task"] == "comparison"]
    assert [each["rank"] for each in ranked] == [1, 2, 3]
    assert ranked[2]["features"] == "worse"
    assert [each["top1"] for each in ranked] == sorted((each["top1"] for each in ranked), reverse=True)
    assert all(each["p_holm"] >= each["p_value"] for each in pairs)
    assert all(each["difference"] * 30 == pytest.approx(each["only_first"] - each["only_second"]) for each in pairs)
    two = bench("compare", "mine", "worse", "--k", "1,5", "--select", "leave-one-out")
    assert two.returncode == 0, two.stderr
    assert "leave-one-out on train" in two.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("compare", "mine"), "needs two feature sets"),
        (("compare", "mine", "mine", "better"), "named twice"),
        (("diagnose", "mine", "mine"), "named twice"),
        (("diagnose", "mine", "better", "--suspects", "s.csv"), "name one"),
        (("compare", "mine", "better", "worse", "--layers", "zzz"), "no layer 'zzz'"),
    ],
)
def test_what_can_not_be_compared_is_refused(
    bench: Bench, others: Path, command: tuple[str, ...], message: str
) -> None:
    result = bench(*command)
    assert result.returncode == 2
    assert message in result.stderr


def test_the_smallest_sets_and_rows_of_zeros_have_finite_numbers(bench: Bench, tmp_path: Path) -> None:
    """JSON has neither infinity nor NaN."""
    rows = {"train": {"a": np.eye(3, 4, dtype=np.float32)[[0, 1, 2, 2]]}, "val": {"a": np.eye(1, 4, dtype=np.float32)}}
    rows["train"]["a"][1] = 0
    labels = {"train": np.arange(4) % 2, "val": np.zeros(1, np.int64)}
    make_features(tmp_path / "features/tiny", rows, labels)
    for more in ((), ("--leave-one-out",), ("--suspects", "s.csv")):
        result = bench("diagnose", "tiny", "--k", "1", "--json", *more)
        assert result.returncode == 0, result.stderr

        def refuse(name: str) -> None:
            raise AssertionError(name)

        assert json.loads(result.stdout, parse_constant=refuse)
