"""Clusterings kept in a feature set: listed with what they were made from, loaded with their rows, or refused."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from featbench.evaluate.clustering.kept import choose_clusterings, kept_clusterings, load_clustering
from featbench.evaluate.clustering.teamwork import STEP
from featbench.evaluate.errors import EvaluationError
from featbench.store import FeatureSet, save_cached
from featbench.store.typing import Array, Ints
from tests.conftest import Bench, make_features

SETTINGS = {
    "normalize": True, "spherical": False, "init": "k-means++", "restarts": 10, "iterations": 100, "tolerance": 1e-6,
    "mini_batch": None, "seed": 0, "seeds": 1,
}  # fmt: skip
NUM_ROWS = {"train": 20, "val": 12}


def keep(
    features: FeatureSet, layer: str, count: int, *, earlier: bool = False, **settings: int | str
) -> dict[str, Array]:
    """Keep a clustering in which row i is in cluster i % count; returns its arrays."""
    arrays: dict[str, Array] = {
        "centroids": np.random.default_rng(count).normal(size=(count, features.layer_info(layer).dim))
    }
    if earlier:
        arrays["centroids"] = arrays["centroids"].astype(np.float32)
    for split, num_rows in NUM_ROWS.items():
        valid, labels = features.valid(split), features.labels(split)
        rows = np.flatnonzero(valid & (labels >= 0) if earlier else valid)
        assert len(rows) < num_rows
        arrays[split] = rows % count
        if not earlier:
            distances = np.linspace(0, 1, len(rows))
            arrays |= {f"{split}_rows": rows, f"{split}_distances": distances, f"{split}_others": distances + 1}
    facts = {
        "layer": layer, "made_from": [features.digest(split, layer) for split in NUM_ROWS], "objective": 7.25,
        "iterations": 17, "settings": SETTINGS | settings,
    }  # fmt: skip
    if earlier:
        facts["settings"] = {name: facts["settings"][name] for name in ("normalize", "iterations", "restarts", "seed")}
    else:
        facts |= {"clusters": count, "certified": True, "engine": "tiles", "seconds": 1.5, "seed": 0}
    digest = "".join(map(str, settings.values())) or "0"
    save_cached(features, "clusters", f"{layer}-{count}-{digest}", arrays, facts)
    return arrays


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    """Two layers; row 2 has no label, and the image of row 3 could not be read."""
    random = np.random.default_rng(0)
    labels = {split: np.arange(num_rows) % 3 for split, num_rows in NUM_ROWS.items()}
    valid = {split: np.arange(num_rows) != 3 for split, num_rows in NUM_ROWS.items()}
    values = {}
    for split, num_rows in NUM_ROWS.items():
        labels[split][2] = -1
        values[split] = {name: random.normal(size=(num_rows, dim)).astype("f4") for name, dim in (("b", 5), ("a", 4))}
        for each in values[split].values():
            each[3] = np.nan
    return make_features(tmp_path / "features/mine", values, labels, valid=valid)


def test_clusterings_are_listed_in_order_of_layers_and_counts_with_what_made_them(features: FeatureSet) -> None:
    for layer, count, settings in (("a", 10, {}), ("a", 3, {"spherical": True, "seed": 4}), ("b", 3, {})):
        keep(features, layer, count, **settings)
    found, faults = kept_clusterings(features)
    assert [(each.layer, each.num_clusters, each.dim) for each in found] == [("b", 3, 5), ("a", 3, 4), ("a", 10, 4)]
    assert not faults
    assert [each.settings["spherical"] for each in found] == [False, True, False]
    assert {(each.is_current, each.certified, each.iterations, each.objective) for each in found} == {
        (True, True, 17, 7.25)
    }


@pytest.mark.parametrize("earlier", [False, True])
def test_a_clustering_is_loaded_with_its_rows_also_if_an_earlier_version_kept_it(
    features: FeatureSet, earlier: bool
) -> None:
    arrays = keep(features, "a", 3, earlier=earlier)
    (kept,) = choose_clusterings(features)
    loaded = load_clustering(features, kept)
    assert loaded.centroids_KD.dtype == np.float64
    assert np.array_equal(loaded.centroids_KD, arrays["centroids"])
    for split, num_rows in NUM_ROWS.items():
        of = loaded.splits[split]
        assert of.rows_N.tolist() == [row for row in range(num_rows) if row != 3 and not (earlier and row == 2)]
        assert np.array_equal(of.clusters_N, of.rows_N % 3)
        assert (of.distances_N is None) == earlier
    assert kept.certified != earlier


def test_clusterings_of_features_that_changed_are_not_chosen(features: FeatureSet, tmp_path: Path) -> None:
    keep(features, "a", 3)
    keep(features, "b", 3)
    values = {split: {name: features.layer(split, name).read() for name in "ba"} for split in NUM_ROWS}
    values["val"]["a"][5] += 1
    splits = {split: features.labels(split) for split in NUM_ROWS}
    other = make_features(tmp_path / "other", values, splits, valid={split: features.valid(split) for split in splits})
    shutil.copytree(features.path / "clusters", other.path / "clusters", dirs_exist_ok=True)
    assert [(each.layer, each.is_current) for each in kept_clusterings(other)[0]] == [("b", True), ("a", False)]
    assert [each.layer for each in choose_clusterings(other)] == ["b"]
    with pytest.raises(EvaluationError, match=re.escape("no clustering is kept with layer a. Kept: b with 3.")):
        choose_clusterings(other, layers=["a"])
    shutil.rmtree(other.path / "clusters/b-3-0")
    with pytest.raises(EvaluationError, match="have changed since they were clustered"):
        choose_clusterings(other)


def test_clusterings_of_derived_layers_are_current_until_a_source_changes(
    features: FeatureSet, bench: Bench, tmp_path: Path
) -> None:
    for derived in (["--concat", "--pca", "2"], ["--center"], ["--concat", "--layers", "a"]):
        assert bench("evaluate", "--features", "mine", "--k", "1", "--clusters", "3", *derived).returncode == 0
    found = {each.layer: each.is_current for each in kept_clusterings(features)[0]}
    assert found == {"b+a.pca2": True, "b.center": True, "a.center": True, "a": True}
    values = {split: {name: features.layer(split, name).read() for name in "ba"} for split in NUM_ROWS}
    values["val"]["a"][5] += 1
    splits = {split: features.labels(split) for split in NUM_ROWS}
    other = make_features(tmp_path / "other", values, splits, valid={split: features.valid(split) for split in splits})
    shutil.copytree(features.path / "clusters", other.path / "clusters", dirs_exist_ok=True)
    found = {each.layer: each.is_current for each in kept_clusterings(other)[0]}
    assert found == {"b+a.pca2": False, "b.center": True, "a.center": False, "a": False}


def test_a_clustering_of_an_earlier_version_gives_way_to_the_same_one_computed_again(features: FeatureSet) -> None:
    keep(features, "a", 3, earlier=True)
    keep(features, "a", 3, earlier=True, seed=1)
    keep(features, "a", 3, restarts=4)
    keep(features, "b", 3, earlier=True)
    assert len(kept_clusterings(features)[0]) == 4
    chosen = [(each.layer, each.settings["seed"], each.certified) for each in choose_clusterings(features)]
    assert chosen == [("b", 0, False), ("a", 1, False), ("a", 0, True)]


def test_unknown_layers_and_numbers_of_clusters_are_refused_saying_which_are_kept(features: FeatureSet) -> None:
    with pytest.raises(EvaluationError, match=r"no clustering is kept[.] Cluster with `bench evaluate --features mine"):
        choose_clusterings(features)
    keep(features, "a", 3)
    keep(features, "b", 10)
    assert [each.key for each in choose_clusterings(features, layers=["a"], clusters=[3])] == ["a-3-0"]
    for asked, named in (
        ({"layers": ["c"]}, "layer c"), ({"clusters": [4]}, "4 clusters"),
        ({"layers": ["a"], "clusters": [10]}, "10 clusters"),
    ):  # fmt: skip
        with pytest.raises(EvaluationError, match=f"kept with {named}. Kept: b with 10, a with 3. "):
            choose_clusterings(features, **asked)


def test_damaged_clusterings_and_those_of_version_0_1_0_are_named_and_never_used(
    features: FeatureSet, tmp_path: Path
) -> None:
    for count in (2, 3, 4, 5):
        keep(features, "a", count)
    facts, codes, chunk, bad = (features.path / f"clusters/a-{count}-0" for count in (2, 3, 4, 5))
    (facts / "zarr.json").write_text((facts / "zarr.json").read_text().replace("17", "71"))
    shutil.rmtree(codes / "centroids")
    (file,) = (chunk / "train/c").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    save_cached(features, "clusters", bad.name, {"centroids": np.zeros(3)}, {"layer": "a"})
    found, faults = kept_clusterings(features)
    assert [each.key for each in found] == [codes.name, chunk.name]
    assert faults[facts.name] == "its digest differs"
    assert "facts of another version" in faults[bad.name]
    for kept in found:
        with pytest.raises(EvaluationError, match="damaged or gone"):
            load_clustering(features, kept)
    with tarfile.open(Path(__file__).resolve().parent.parent / "data/version_0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    older = FeatureSet.open(tmp_path / "features/imported")
    found, faults = kept_clusterings(older)
    assert not found
    assert "version 0.1.0" in " ".join(faults.values())
    with pytest.raises(EvaluationError, match="no clustering can be used"):
        choose_clusterings(older)


def test_damaged_labels_and_unfinished_layers_hide_no_clustering(features: FeatureSet, bench: Bench) -> None:
    """They are listed, as not current."""
    keep(features, "a", 3)
    for derived in ([], ["--center"]):
        assert bench("evaluate", "--features", "mine", "--k", "1", "--clusters", "3", *derived).returncode == 0
    (labels,) = (features.path / "train/labels/c").iterdir()
    labels.write_bytes(bytes(len(labels.read_bytes())))
    shutil.rmtree(features.path / "val/b")
    assert bench("verify", "mine", "--repair").returncode in (0, 2)
    shown = bench("info", "mine")
    assert shown.returncode == 0, shown.stderr
    assert len(re.findall(r"\n(?:a|b|a.center|b.center) +3 .* yes +no ", shown.stdout)) == 5


def test_what_an_interrupted_k_means_left_is_no_clustering(features: FeatureSet) -> None:
    keep(features, "a", 3)
    state = {"centroids": np.zeros((3, 4)), "counts": np.zeros(3, np.int64)}
    save_cached(features, "clusters", "a-3-0123456789abcdef.0state", state, {STEP: "state", "iteration": 7})
    found, faults = kept_clusterings(features)
    assert ([each.key for each in found], faults) == (["a-3-0"], {})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("train", np.full(19, 3)),  # a cluster that does not exist
        ("val", np.zeros(7, np.int64)),  # too few
        ("train_rows", np.arange(2, 21)),  # a row that does not exist
    ],
)
def test_rows_and_clusters_that_do_not_exist_are_refused(features: FeatureSet, name: str, values: Ints) -> None:
    arrays = keep(features, "a", 3)
    (kept,) = choose_clusterings(features)
    facts = json.loads((features.path / "clusters/a-3-0/zarr.json").read_text())["attributes"]["facts"]
    save_cached(features, "clusters", "a-3-0", arrays | {name: values}, facts)
    with pytest.raises(EvaluationError, match="can't be used"):
        load_clustering(features, kept)


def test_info_lists_clusterings_and_how_to_use_them(features: FeatureSet, bench: Bench) -> None:
    assert "kept clusterings" not in bench("info", "mine").stdout
    keep(features, "a", 3, init="random")
    shown = bench("info", "mine").stdout
    assert re.search(r"\na +3 +random, seed 0 +7.25 +17 +yes +yes +1.5 +\d+ KiB +a-3-random\n", shown)
    assert "bench export features/mine --what clusters" in shown
    (told,) = json.loads(bench("info", "mine", "--json").stdout)["clusterings"]
    assert told["settings"] == SETTINGS | {"init": "random"}
    assert (told["clusters"], told["objective"], told["current"]) == (3, 7.25, True)
