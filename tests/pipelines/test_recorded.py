"""`bench results`: what evaluations have recorded, chosen, and in other projects' formats."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.pipelines.recorded.choosing import best, latest, since_of
from featbench.store import FeatureSet
from tests.conftest import Bench, make_features

PIPELINE = {"pipeline": {"data": {"root": "/data/photos", "source": "folder", "name": None}}}
NUMBERS = {"res4": {1: 0.50, 20: 0.60}, "res5": {1: 0.75, 20: 0.70}}
"""Top-1 by layer and k, as written by hand."""


def knn(layer: str, k: int, top1: float, **others: Any) -> dict[str, Any]:
    record = {
        "task": "knn", "features": "x", "layer": layer, "protocol": "dino", "k": k, "temperature": 0.07, "top1": top1,
        "top1_low": top1 - 0.05, "top1_high": top1 + 0.05, "top5": 0.9, "mean_per_class": top1 - 0.01,
        "leave_one_out": False, "clusters": None, "split": None, "similarity": "cosine", "num_classes": 4,
    }  # fmt: skip
    return record | others


def kmeans(layer: str, clusters: int, nmi: float, **others: Any) -> dict[str, Any]:
    record = {
        "task": "kmeans", "features": "x", "layer": layer, "protocol": "kmeans", "k": None, "temperature": None,
        "clusters": clusters, "split": "val", "nmi": nmi, "ari": nmi / 2, "hungarian": nmi / 3, "num_classes": 4,
    }  # fmt: skip
    return record | others


def save(features: FeatureSet, records: list[Any], created: str = "2026-11-01T10:00:00+00:00", **others: Any) -> Path:
    content = {"records": records, "settings": {}, "fingerprint": features.manifest.fingerprint, "created": created}
    return features.save_result(created.replace(":", ""), content | others)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two feature sets; `a` has recorded `NUMBERS` and clusters, `b` is worse by 0.1."""
    store = tmp_path_factory.mktemp("recorded")
    random = np.random.default_rng(0)
    labels = {split: np.arange(24) % 4 for split in ("train", "val")}
    for name, trunk, less in (("a", "resnet50", 0.0), ("b", "vit", 0.1)):
        arrays = {
            split: {layer: random.normal(size=(24, 4)).astype(np.float32) for layer in NUMBERS} for split in labels
        }
        made_from = {
            "model": {"trunk": trunk},
            "transform": {"resize": 256, "crop": 224, "interpolation": "bilinear"},
        }
        made = make_features(store / name, arrays, labels, made_from=made_from)
        rows = [knn(layer, k, top1 - less) for layer, of in NUMBERS.items() for k, top1 in of.items()]
        save(made, [*rows, kmeans("res5", 4, 0.4 - less), kmeans("res5", 100, 0.9 - less)])
    return store


@pytest.fixture
def store(tmp_path: Path, original: Path) -> Path:
    return shutil.copytree(original, tmp_path / "features")


def listed(bench: Bench, *arguments: object) -> list[dict[str, Any]]:
    result = bench("results", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_all_evaluations_of_all_feature_sets_are_listed(store: Path, bench: Bench) -> None:
    found = listed(bench)
    assert {(each["features"], each["model"], each["weights"]) for each in found} == {
        ("a", "resnet50", "fake"), ("b", "vit", "fake"),
    }  # fmt: skip
    top1 = {(each["layer"], each["k"]): each["top1"] for each in found if each["features"] == "a" and each["k"]}
    assert top1 == {(layer, k): value for layer, of in NUMBERS.items() for k, value in of.items()}
    assert len({tuple(each) for each in found}) == 1, "all records have the same keys"
    text = bench("results").stdout
    assert "75.0 ±5.0" in text
    assert "k-means" in text


def test_what_evaluate_prints_is_what_results_lists(store: Path, bench: Bench) -> None:
    """Each number and interval, also after the same evaluation was made again."""
    arguments = (
        "evaluate",
        "--features",
        "a",
        "--layers",
        "res4",
        "--k",
        "3,7",
        "--clusters",
        "4",
        "--json",
        "--quiet",
    )
    printed = json.loads(bench(*arguments).stdout)
    bench(*arguments)
    found = listed(bench, "--features", "a", "--since", "1h")
    for record in printed:
        (same,) = [
            each for each in found if all(each[key] == record[key] for key in ("task", "k", "split", "clusters"))
        ]
        assert {key: same[key] for key in record if key not in ("seconds", "neighbours_reused", "weights")} == {
            key: value for key, value in record.items() if key not in ("seconds", "neighbours_reused", "weights")
        }
    assert len(found) == len(printed)
    assert len(listed(bench, "--features", "a", "--since", "1h", "--all")) == 2 * len(printed)


def test_of_equal_settings_the_last_one_recorded_counts() -> None:
    base = {"path": "p", "settings": "", "created": "2026-11-02T00:00:00+00:00"}
    old = knn("res5", 1, 0.1) | base | {"created": "2026-11-01T00:00:00+00:00"}
    new, other = knn("res5", 1, 0.2) | base, knn("res5", 2, 0.3) | base
    assert [each["top1"] for each in latest([new, old, other])] == [0.2, 0.3]


@pytest.mark.parametrize(
    ("what", "by", "expected"),
    [
        ("layer", "top1", [("a", "res5", 1, 0.4), ("b", "res5", 1, 0.3)]),
        ("model", "top1", [("a", "res5", 1, 0.4)]),
        ("setting", "top1",
         [("a", "res5", 1, 0.4), ("b", "res5", 1, 0.3), ("a", "res4", 20, None), ("b", "res4", 20, None)]),
        ("layer", "nmi", [("a", "res5", None, 0.9), ("b", "res5", None, 0.8)]),
    ],
)  # fmt: skip
def test_the_best_of_each_group_is_chosen_with_the_clusters_of_its_layer(
    what: str, by: str, expected: list[Any], store: Path, bench: Bench
) -> None:
    """The clusters are those with as many as there are classes, here 4."""
    found = listed(bench, "--best", what, "--by", by)
    chosen = [(each["features"], each["layer"], each["k"], each["nmi"]) for each in found]
    assert [each[:3] for each in chosen] == [each[:3] for each in expected]
    assert [each[3] for each in chosen] == [each[3] and pytest.approx(each[3]) for each in expected]


def test_leave_one_out_is_no_candidate_for_the_best() -> None:
    base = {"path": "p", "data": ""}
    rows = [knn("res5", 1, 0.9, leave_one_out=True) | base, knn("res5", 1, 0.5) | base]
    assert [each["top1"] for each in best(rows, "layer")] == [0.5]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--layers", "res4"), {("a", "res4"), ("b", "res4")}),
        (("--features", "a*"), {("a", "res4"), ("a", "res5")}),
        (("--model", "vit,none*", "--features", "b"), None),
        (("--model", "vi?", "--task", "kmeans"), {("b", "res5")}),
        (("--k", "20"), {("a", "res4"), ("b", "res4"), ("a", "res5"), ("b", "res5")}),
        (("--since", "2026-10-31"), {("a", "res4"), ("b", "res4"), ("a", "res5"), ("b", "res5")}),
        (("--since", "2027-01-01"), set()),
    ],
)
def test_filters(arguments: tuple[str, ...], expected: set[Any] | None, store: Path, bench: Bench) -> None:
    if expected is None:
        assert "no result has model none*" in bench("results", *arguments).stderr
        return
    assert {(each["features"], each["layer"]) for each in listed(bench, *arguments)} == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--layers", "res6"), "no result has layer res6. Did you mean res5 or res4?"),
        (("--features", "z"), "no result has features z."),
        (("--task", "kmean"), "no result of task kmean. Did you mean kmeans?"),
        (("--protocol", "din"), "Did you mean dino?"),
        (("--k", "7"), "no result has k 7; recorded are 1, 20"),
        (("--k", "x"), "--k must be numbers of neighbours"),
        (("--since", "yesterday"), "--since must be a date such as 2026-11-01"),
        (("--best", "layers"), "--best must be one of setting, layer, model"),
        (("--best", "layer", "--by", "top2"), "--by must be one of top1,"),
        (("--best", "layer", "--by", "mean_ap"), "no result has mean_ap to choose by"),
        (("--format", "csv"), "--format must be timm or mteb"),
        (("--format", "timm", "--json"), "give only one of"),
        (("--store", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_what_can_not_be_chosen_is_one_message(
    arguments: tuple[str, ...], said: str, store: Path, bench: Bench
) -> None:
    result = bench("results", *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert not result.stdout


DAMAGED: dict[str, Any] = {
    "empty": b"",
    "half": b'{"records": [{"task": "knn", "la',
    "binary": bytes(range(256)),
    "list": b"[1, 2]",
    "foreign": b'{"accuracy": 0.5}',
    "deep": b"[" * 100_000,
    "records of numbers": {"records": [1]},
    "without a date": {"records": [], "created": None},
    "no date": {"records": [], "created": "yesterday"},
    "text for a number": {"records": [knn("res5", 1, 0.5) | {"top1": "high"}]},
    "NaN": {"records": [knn("res5", 1, float("nan"))]},
    "a list for a layer": {"records": [knn("res5", 1, 0.5) | {"layer": ["a"]}]},
    "other features": {"records": [knn("res5", 1, 0.5)], "fingerprint": "0" * 64},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_or_foreign_file_costs_one_line_of_warning(kind: str, store: Path, bench: Bench) -> None:
    features, content = FeatureSet.open(store / "a"), DAMAGED[kind]
    if isinstance(content, bytes):
        (store / "a/results/z.json").write_bytes(content)
    else:
        features.save_result("z", {"fingerprint": features.manifest.fingerprint, "created": "2026-12-01"} | content)
    result = bench("results", "--json")
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "results/" in result.stderr
    assert "not read" in result.stderr
    assert len(json.loads(result.stdout)) == 12, "the others are listed"


def test_a_pipe_or_a_folder_in_place_of_a_file_is_not_waited_for(store: Path, bench: Bench) -> None:
    os.mkfifo(store / "a/results/pipe.json")
    (store / "a/results/folder.json").mkdir()
    result = bench("results")
    assert result.returncode == 0
    assert len(result.stderr.splitlines()) == 2


def test_an_empty_store_says_so(tmp_path: Path, bench: Bench) -> None:
    (tmp_path / "features").mkdir()
    result = bench("results")
    assert (result.returncode, result.stdout.strip()[-20:]) == (0, "Nothing is recorded.")
    assert bench("results", "--json").stdout.strip() == "[]"


def test_csv_and_parquet_hold_the_records_of_json(store: Path, bench: Bench) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records = listed(bench)
    rows = list(csv.DictReader(io.StringIO(bench("results", "--csv").stdout)))
    assert [row["top1"] for row in rows] == ["" if each["top1"] is None else repr(each["top1"]) for each in records]
    result = bench("results", "--parquet", "all.parquet")
    assert result.returncode == 0, result.stderr
    assert parquet.read_table(store.parent / "all.parquet").to_pylist() == records
    elsewhere = bench("results", "--parquet", "all.parquet/more.parquet")
    assert elsewhere.returncode == 2
    assert "all.parquet is a file, not a folder" in elsewhere.stderr
    again = bench("results", "--parquet", "all.parquet")
    assert again.returncode == 2
    assert "all.parquet exists" in again.stderr


def test_timm_s_columns(store: Path, bench: Bench) -> None:
    """The first nine are those of its results-imagenet.csv, in its units."""
    rows = list(csv.DictReader(io.StringIO(bench("results", "--format", "timm").stdout)))
    header = "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation"
    assert list(rows[0])[:9] == header.split(",")
    assert [rows[0][key] for key in header.split(",")] == [
        "resnet50.a", "224", "75.0", "25.0", "90.0", "10.0", "", "0.875", "bilinear",
    ]  # fmt: skip


def test_mteb_s_json_is_read_by_mteb(store: Path, bench: Bench) -> None:
    printed = bench("results", "--format", "mteb").stdout
    (first, _) = json.loads(printed)["model_results"]
    assert first["model_name"] == "resnet50.a"
    assert [(task["task_name"], task["scores"]["val"][0]["main_score"]) for task in first["task_results"]] == [
        ("aKNN", 0.75), ("aClustering", 0.4),
    ]  # fmt: skip
    mteb = pytest.importorskip("mteb.results")
    read = mteb.ModelResult.model_validate(first)
    assert read.task_results[0].scores["val"][0]["accuracy"] == 0.75


def test_names_of_layers_and_sets_are_shown_and_do_nothing_to_a_terminal(store: Path, bench: Bench) -> None:
    features = FeatureSet.open(store / "a")
    hostile = "\x1b[2J[red]\u202e|" + "x" * 300
    save(features, [knn(hostile, 1, 0.99)], created="2026-12-01T00:00:00+00:00")
    for form in ((), ("--markdown",), ("--latex",), ("--csv",), ("--format", "timm")):
        result = bench("results", *form)
        assert result.returncode == 0
        assert "\x1b" not in result.stdout
        assert "\u202e" not in result.stdout
    assert "\\x1b[2J[red]" in bench("results", "--best", "layer").stdout


def test_ages_and_dates() -> None:
    now = datetime(2026, 11, 8, tzinfo=UTC)
    assert since_of("1w", now=now) == now - timedelta(days=7)
    assert since_of("2026-11-01T05:00") == datetime(2026, 11, 1, 5, tzinfo=UTC)
