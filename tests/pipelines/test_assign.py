"""`bench assign`: rows of one feature set in the clusters of another, by brute force in float64."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from featbench.store import FeatureSet
from featbench.store.typing import Doubles
from tests.clusterings import keep, nearest, rows_of
from tests.conftest import Bench, make_features


def made(
    path: Path,
    seed: int,
    *,
    dim: int = 5,
    names: tuple[str, ...] = ("x", "y"),
    num_rows: tuple[int, int] = (40, 20),
    labelled: bool = True,
) -> FeatureSet:
    """Two layers of blobs; row 2 has no label, and the image of row 3 could not be read."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, dim))
    values, labels, valid = {}, {}, {}
    for split, num in zip(("train", "val"), num_rows, strict=True):
        classes = np.arange(num) % 3
        values[split] = {name: centres[classes] + 0.3 * random.normal(size=(num, dim)) for name in names}
        values[split] = {name: each.astype(np.float32) for name, each in values[split].items()}
        for each in values[split].values():
            each[3] = np.nan
        valid[split], labels[split] = np.arange(num) != 3, classes if labelled else np.full(num, -1)
        labels[split][2] = -1
    class_names = dict.fromkeys(labels, ("a", "b", "c"))
    return make_features(path, values, labels, valid=valid, class_names=class_names)


@pytest.fixture
def both(tmp_path: Path) -> tuple[FeatureSet, FeatureSet]:
    """Feature sets `mine` and `theirs`, which has clusterings of both of its layers."""
    mine, theirs = (made(tmp_path / "features" / name, seed) for seed, name in enumerate(("mine", "theirs")))
    return mine, theirs


def assigned(bench: Bench, *arguments: str) -> list[dict[str, Any]]:
    result = bench("assign", "mine", "--clusters-of", "theirs", *arguments, "--quiet", "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_go_to_their_nearest_kept_centroid_and_metrics_are_scikit_learns(
    both: tuple[FeatureSet, FeatureSet], bench: Bench, tmp_path: Path, normalize: bool
) -> None:
    mine, theirs = both
    centroids = keep(theirs, "x", 4, normalize=normalize)["centroids"]
    records = {record["split"]: record for record in assigned(bench)}
    assert bench("export", "mine", "--what", "clusters", "--format", "npz", "--out", "out").returncode == 0
    name = "x_4_of_theirs" if normalize else "x_4_of_theirs_unnormalized"
    assert np.array_equal(np.load(tmp_path / f"out/{name}.npz")["centroids"], centroids)
    for split in ("train", "val"):
        rows, values = rows_of(mine, "x", split, normalize=normalize)
        clusters, distances, _ = nearest(values, centroids)
        found = np.load(tmp_path / f"out/{split}_{name}.npz")
        assert np.array_equal(found["rows"], rows)
        assert np.array_equal(found["clusters"], clusters)
        assert found["distances"] == pytest.approx(distances, rel=1e-12)
        labels = mine.labels(split)[rows]
        known, record = labels >= 0, records[split]
        assert record["nmi"] == pytest.approx(normalized_mutual_info_score(labels[known], clusters[known]), abs=1e-9)
        assert record["ari"] == pytest.approx(adjusted_rand_score(labels[known], clusters[known]), abs=1e-9)
        assert (record["clusters"], record["clusters_of"], record["certified"]) == (4, "theirs", True)
        assert record["mean_squared_distance"] == pytest.approx((distances**2).mean(), rel=1e-12)
    assert records["train"]["objective"] == pytest.approx((nearest(*_train(mine, normalize, centroids))[1] ** 2).sum())


def _train(features: FeatureSet, normalize: bool, centroids: Doubles) -> tuple[Doubles, Doubles]:
    return rows_of(features, "x", "train", normalize=normalize)[1], centroids


def test_all_layers_and_counts_are_assigned_or_those_that_are_chosen(
    both: tuple[FeatureSet, FeatureSet], bench: Bench
) -> None:
    for layer, count in (("x", 2), ("x", 4), ("y", 3)):
        keep(both[1], layer, count)

    def of(*arguments: str) -> list[tuple[str, int, str]]:
        return [(record["layer"], record["clusters"], record["split"]) for record in assigned(bench, *arguments)]

    assert of() == [(*each, split) for each in (("x", 2), ("x", 4), ("y", 3)) for split in ("train", "val")]
    assert of("--clusters", "4") == [("x", 4, "train"), ("x", 4, "val")]
    assert of("--layers", "y") == [("y", 3, "train"), ("y", 3, "val")]
    assert of("--layers", "y=x", "--clusters", "2") == [("y", 2, "train"), ("y", 2, "val")]
    assert [each[:2] for each in of("--layers", "y=x,y,y")[::2]] == [("y", 2), ("y", 4), ("y", 3)]


def test_assignments_are_kept_with_their_origin_and_used_again(
    both: tuple[FeatureSet, FeatureSet], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = both
    keep(theirs, "x", 4)
    first = assigned(bench)
    shown = bench("info", "mine").stdout
    assert "centroids of theirs" in shown
    assert "bench assign" not in shown
    assert "bench assign NAME --clusters-of features/theirs" in bench("info", "theirs").stdout
    (told,) = json.loads(bench("info", "mine", "--json").stdout)["clusterings"]
    assert told["clusters_of"]["features"] == "theirs"
    assert told["clusters_of"]["fingerprint"] == theirs.manifest.fingerprint
    assert (told["current"], told["certified"]) == (True, True)

    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("assigned a second time")

    monkeypatch.setattr("featbench.evaluate.clustering.reuse.assign", fail)
    again = assigned(bench)
    timeless = [{key: value for key, value in record.items() if key != "seconds"} for record in (*first, *again)]
    assert timeless[:2] == timeless[2:]
    saved = [json.loads(path.read_text()) for path in sorted((mine.path / "results").glob("*.json"))]
    assert [each["settings"]["assign"]["fingerprint"] for each in saved] == [theirs.manifest.fingerprint] * 2
    result = bench("assign", "theirs", "--clusters-of", "mine")
    assert result.returncode == 2
    assert "it has only clusters of theirs. Give --clusters-of theirs" in result.stderr


def test_results_are_printed_as_a_table_and_as_csv(both: tuple[FeatureSet, FeatureSet], bench: Bench) -> None:
    keep(both[1], "x", 4)
    result = bench("assign", "mine", "--clusters-of", "theirs", "--layers", "x")
    assert result.returncode == 0
    assert "mine: clusters of theirs\n" in result.stdout
    assert "Results and what made them are in" in result.stderr
    records = list(csv.DictReader(io.StringIO(bench("assign", "mine", "--clusters-of", "theirs", "--csv").stdout)))
    assert [record["split"] for record in records] == ["train", "val"]


def test_clusterings_of_the_same_number_of_clusters_are_told_apart_by_their_keys(
    both: tuple[FeatureSet, FeatureSet], bench: Bench
) -> None:
    for seed in (0, 1):
        keep(both[1], "x", 4, seed=seed)
    keys = [each["key"] for each in json.loads(bench("info", "theirs", "--json").stdout)["clusterings"]]
    assert len(set(keys)) == 2
    assert [record["clustering"] for record in assigned(bench)] == [key for key in keys for _ in range(2)]
    lines = bench("assign", "mine", "--clusters-of", "theirs").stdout.splitlines()
    assert [line.split()[:4] for line in lines[2:6]] == [
        ["x", key, "4", split] for key in keys for split in ("train", "val")
    ]
    assert all(key in bench("info", "theirs").stdout for key in keys)


def test_rows_without_labels_are_assigned_without_metrics(
    both: tuple[FeatureSet, FeatureSet], bench: Bench, tmp_path: Path
) -> None:
    keep(both[1], "x", 4)
    made(tmp_path / "features/bare", 2, labelled=False)
    result = bench("assign", "bare", "--clusters-of", "theirs", "--json")
    assert result.returncode == 0, result.stderr
    assert [(record["nmi"], record["num_train"]) for record in json.loads(result.stdout)] == [(None, 39)] * 2


def test_fewer_rows_than_centroids_are_assigned(
    both: tuple[FeatureSet, FeatureSet], bench: Bench, tmp_path: Path
) -> None:
    keep(both[1], "x", 12)
    made(tmp_path / "features/few", 3, num_rows=(6, 5))
    result = bench("assign", "few", "--clusters-of", "theirs", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0]["num_empty"] >= 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine", "--clusters-of", "none"), "none: no such feature set. "),
        (("mine", "--clusters-of", "mine"), "features/mine: no clustering is kept. Cluster with `bench evaluate"),
        (("mine", "--clusters-of", "theirs", "--layers", "z"), "z"),
        (("mine", "--clusters-of", "theirs", "--layers", "x=z"), "no clustering is kept with layer z. Kept: x with 4."),
        (("mine", "--clusters-of", "theirs", "--clusters", "5"), "kept with 5 clusters. Kept: x with 4."),
        (("other", "--clusters-of", "theirs"), "has none of the clustered layers of theirs (x); it has a, b."),
        (("other", "--clusters-of", "theirs", "--layers", "a=x"), "have 7 numbers, centroids of x in theirs have 5."),
    ],
)
def test_what_cannot_be_assigned_is_refused(
    both: tuple[FeatureSet, FeatureSet], bench: Bench, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    keep(both[1], "x", 4)
    made(tmp_path / "features/other", 4, dim=7, names=("a", "b"))
    result = bench("assign", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert not list((tmp_path / "features").glob("*/results/*.json"))


def test_one_rank_of_several_assigns_and_prints(
    both: tuple[FeatureSet, FeatureSet], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(both[1], "x", 4)
    printed = []
    for rank in "10":
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for name, value in {"TORCHELASTIC_RUN_ID": "x", **numbers}.items():
            monkeypatch.setenv(name, value)
        result = bench("assign", "mine", "--clusters-of", "theirs", "--quiet")
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout)
    assert printed[0] == ""
    assert "mine: clusters of theirs" in printed[1]
    assert len(list((both[0].path / "results").glob("*.json"))) == 1


def test_damaged_centroids_are_refused(both: tuple[FeatureSet, FeatureSet], bench: Bench) -> None:
    keep(both[1], "x", 4)
    (file,) = (both[1].path / "clusters").glob("x-4-*/centroids/c/0/0")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = bench("assign", "mine", "--clusters-of", "theirs")
    assert result.returncode == 2
    assert "is damaged or gone" in result.stderr


def test_results_are_printed_though_the_store_cannot_be_written(
    both: tuple[FeatureSet, FeatureSet], bench: Bench
) -> None:
    mine, theirs = both
    keep(theirs, "x", 4)
    before = {path: path.stat().st_mtime_ns for path in theirs.path.rglob("*")}
    for folder in ("clusters", "results"):
        shutil.rmtree(mine.path / folder, ignore_errors=True)
        (mine.path / folder).write_text("in the way, as a read-only file system is")
    result = bench("assign", "mine", "--clusters-of", "theirs")
    assert result.returncode == 0
    assert "mine: clusters of theirs" in result.stdout
    assert "Results and what made them are" not in result.stderr
    assert "not cached" in result.stderr
    assert "the results are not kept" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in theirs.path.rglob("*")} == before
