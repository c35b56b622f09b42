"""`bench export --what clusters`: every format reads back as what was kept, by its own library."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from featbench.store import FeatureSet, save_cached
from featbench.store.typing import Array, Doubles, Ints
from tests.clusterings import keep, rows_of
from tests.conftest import Bench, make_features

NUM_ROWS = {"train": 30, "val": 14}


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    """One layer; the image of row 3 could not be read, and a path has a comma, a quote and a line end."""
    random = np.random.default_rng(0)
    values = {split: {"x": random.normal(size=(num, 5)).astype(np.float32)} for split, num in NUM_ROWS.items()}
    for each in values.values():
        each["x"][3] = np.nan
    labels = {split: np.arange(num) % 3 for split, num in NUM_ROWS.items()}
    valid = {split: np.arange(num) != 3 for split, num in NUM_ROWS.items()}
    return make_features(tmp_path / "features/mine", values, labels, valid=valid)


def exported(bench: Bench, *arguments: object) -> list[str]:
    result = bench("export", "mine", "--what", "clusters", "--out", "out", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def paths_of(features: FeatureSet, split: str) -> list[str]:
    return [path for row, path in enumerate(features.paths(split)) if row != 3]


@pytest.mark.parametrize("file_format", ["npy", "npz", "csv", "parquet"])
def test_clusters_read_back_as_they_were_kept(
    features: FeatureSet, bench: Bench, tmp_path: Path, file_format: str
) -> None:
    arrays = keep(features, "x", 4)
    out = tmp_path / "out"
    assert sorted(exported(bench, "--format", file_format)) == sorted(f"out/{path.name}" for path in out.iterdir())
    for split in NUM_ROWS:
        expected = {
            "clusters": arrays[split], "rows": arrays[f"{split}_rows"], "distances": arrays[f"{split}_distances"],
            "paths": np.array(paths_of(features, split)),
        }  # fmt: skip
        if file_format == "npy":
            found = {name: np.load(out / f"{split}_x_4_{name}.npy") for name in expected}
        elif file_format == "npz":
            found = dict(np.load(out / f"{split}_x_4.npz"))
        elif file_format == "csv":
            with (out / f"{split}_x_4_clusters.csv").open(newline="", encoding="utf-8") as file:
                lines = list(csv.DictReader(file))
            kinds = {"cluster": int, "row": int, "distance": float, "path": str}
            found = {f"{name}s": np.array([kind(line[name]) for line in lines]) for name, kind in kinds.items()}
        else:
            parquet = pytest.importorskip("pyarrow.parquet")
            table = parquet.read_table(out / f"{split}_x_4_clusters.parquet")
            assert table.column_names == ["row", "path", "cluster", "distance"]
            found = {f"{name}s": np.array(table[name].to_pylist()) for name in table.column_names}
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert found["clusters"].dtype == np.int64
        assert found["distances"].dtype == np.float64
    if file_format == "npy":
        centroids = np.load(out / "x_4_centroids.npy")
        assert centroids.dtype == np.float64
    elif file_format == "npz":
        centroids = np.load(out / "x_4.npz")["centroids"]
    elif file_format == "parquet":
        centroids = np.array(parquet.read_table(out / "x_4_centroids.parquet")["centroid"].to_pylist())
    if file_format != "csv":
        assert np.array_equal(centroids, arrays["centroids"])


def test_paths_with_quotes_commas_and_line_ends_survive_csv(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ['a,"b"\n.jpg', "=1+1", "é\r\n", "plain"]
    values = {split: {"x": np.eye(4, dtype=np.float32)} for split in NUM_ROWS}
    made = make_features(tmp_path / "features/mine", values, {split: np.arange(4) for split in NUM_ROWS})
    keep(made, "x", 2)
    monkeypatch.setattr(FeatureSet, "paths", lambda self, split: odd)
    exported(bench, "--format", "csv")
    with (tmp_path / "out/val_x_2_clusters.csv").open(newline="", encoding="utf-8") as file:
        assert [line["path"] for line in csv.DictReader(file)] == odd


@pytest.mark.parametrize("spherical", [False, True])
def test_the_exported_index_finds_the_kept_clusters(
    features: FeatureSet, bench: Bench, tmp_path: Path, spherical: bool
) -> None:
    arrays = keep(features, "x", 4, spherical=spherical)
    (path,) = exported(bench, "--format", "faiss")
    assert path == ("out/x_4_spherical.faiss" if spherical else "out/x_4.faiss")
    index = faiss.read_index(str(tmp_path / path))
    assert index.metric_type == (faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2)
    assert (index.ntotal, index.d) == (4, 5)
    assert np.array_equal(index.reconstruct_n(0, 4), arrays["centroids"].astype(np.float32))
    for split in NUM_ROWS:
        _, values = rows_of(features, "x", split)
        scores, found = index.search(values.astype(np.float32), 1)
        assert np.array_equal(found[:, 0], arrays[split])
        squares = 2 - 2 * scores[:, 0] if spherical else scores[:, 0]
        assert squares == pytest.approx(arrays[f"{split}_distances"] ** 2, abs=1e-5)


def clusterfit(
    values: Doubles, indices: Ints, images: list[str], centroids: Doubles
) -> tuple[dict[str, object], Array, Ints]:
    """What `tools/cluster_features_and_label.py` of VISSL saves, line by line, with the centroids given."""
    search = faiss.IndexFlatL2(centroids.shape[1])
    search.add(centroids)
    indices_, distances, target_clusters = [], [], []
    shard_distances, shard_cluster_labels = search.search(values.astype(np.float32), 1)
    indices_.extend(indices)
    distances.extend(shard_distances)
    target_clusters.extend(shard_cluster_labels)
    content = {
        "sample_indices": indices_,
        "hard_labels": target_clusters,
        "centroids": centroids,
        "distances": distances,
        "images": images,
    }
    return content, np.array(images), np.array(target_clusters, dtype=np.int64).reshape(-1)


def test_vissls_clusterfit_files_are_as_its_script_leaves_them(
    features: FeatureSet, bench: Bench, tmp_path: Path
) -> None:
    arrays = keep(features, "x", 4)
    exported(bench, "--format", "vissl")
    out = tmp_path / "out"
    for split, theirs in (("train", "train"), ("val", "test")):
        rows, values = rows_of(features, "x", split)
        expected, images, labels = clusterfit(
            values, rows, paths_of(features, split), arrays["centroids"].astype(np.float32)
        )
        prefix = out / f"mine_{theirs}_x_N4_D5"
        content = (out / f"{prefix}.pkl").read_bytes()
        assert b"_core" not in content, "NumPy before 1.26 has no such module"
        assert content[:2] == b"\x80\x04", "Python 3.6 reads pickles up to version 4"
        found = pickle.loads(content)
        assert list(found) == list(expected)
        for name in expected:
            ours, reference = found[name], expected[name]
            assert type(ours) is type(reference)
            assert len(ours) == len(reference)
            assert type(ours[0]) is type(reference[0])
            ours, reference = np.array(ours), np.array(reference)
            assert (ours.dtype, ours.shape) == (reference.dtype, reference.shape)
            assert np.allclose(ours, reference, atol=1e-5) if name == "distances" else np.array_equal(ours, reference)
        for path, reference in ((f"{prefix}_images.npy", images), (f"{prefix}_labels.npy", labels)):
            loaded = np.load(path)
            assert loaded.dtype == reference.dtype
            assert np.array_equal(loaded, reference)


def test_vissls_cluster_assignments_load_as_its_loader_loads_them(
    features: FeatureSet, bench: Bench, tmp_path: Path
) -> None:
    arrays = keep(features, "x", 4)
    exported(bench, "--format", "vissl")
    folder = tmp_path / "out/x_4"
    with (folder / "cluster_assignments.torch").open("rb") as file:
        content = torch.load(file)
    assert content.keys() == {"config", "cluster_assignments"}
    assert content["cluster_assignments"].keys() == {"TRAIN", "TEST"}
    for split, theirs in (("train", "TRAIN"), ("val", "TEST")):
        assignments = content["cluster_assignments"][theirs]
        assert assignments == dict(zip(arrays[f"{split}_rows"].tolist(), arrays[split].tolist(), strict=True))
        assert {type(each) for pair in assignments.items() for each in pair} == {int}
        images, labels = (np.load(folder / f"{theirs.lower()}_{name}.npy") for name in ("images", "labels"))
        assert images.tolist() == paths_of(features, split)
        assert labels.tolist() == list(assignments.values())
        assert labels.dtype == np.int64


def test_files_are_named_by_the_settings_that_are_not_the_default(features: FeatureSet, bench: Bench) -> None:
    for count, settings in ((2, {}), (4, {}), (4, {"seed": 7, "normalize": False, "tolerance": 0.5})):
        keep(features, "x", count, **settings)
    for folder in "ab":
        keep(features, "x", 4, init=f"{folder}/start.npy")
    names = [path.removeprefix("out/").removesuffix(".faiss") for path in exported(bench, "--format", "faiss")]
    assert len(set(names)) == 5
    assert {"x_2", "x_4", "x_4_unnormalized_tolerance0.5_seed7"} < set(names)
    assert sum(name.startswith("x_4_start_") for name in names) == 2, "the two end in digests"


def test_numbers_of_clusters_choose(features: FeatureSet, bench: Bench) -> None:
    for count in (2, 3, 4):
        keep(features, "x", count)
    assert exported(bench, "--clusters", "2,4", "--format", "faiss") == ["out/x_2.faiss", "out/x_4.faiss"]


def test_existing_files_are_refused(features: FeatureSet, bench: Bench, tmp_path: Path) -> None:
    keep(features, "x", 4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x_4_centroids.npy").write_text("mine")
    result = bench("export", "mine", "--what", "clusters", "--out", "out")
    assert result.returncode == 2
    assert "x_4_centroids.npy exists; export into another folder" in result.stderr
    assert (tmp_path / "out/x_4_centroids.npy").read_text() == "mine"


def test_clusterings_of_earlier_versions_have_no_distances(features: FeatureSet, bench: Bench, tmp_path: Path) -> None:
    arrays = keep(features, "x", 4)
    (folder,) = (features.path / "clusters").glob("x-4-*")
    facts = {
        "layer": "x", "made_from": [features.digest(split, "x") for split in NUM_ROWS], "objective": 1.5,
        "iterations": 9, "settings": {"normalize": True, "iterations": 100, "restarts": 10, "seed": 0},
    }  # fmt: skip
    earlier = {name: arrays[name] for name in NUM_ROWS} | {"centroids": arrays["centroids"].astype(np.float32)}
    save_cached(features, "clusters", folder.name, earlier, facts)
    exported(bench, "--format", "csv")
    lines = (tmp_path / "out/val_x_4_clusters.csv").read_text().splitlines()
    assert lines[0] == "row,path,cluster"
    assert lines[4] == f"4,val/4.jpg,{arrays['val'][3]}"
    result = bench("export", "mine", "--what", "clusters", "--format", "vissl", "--out", "theirs")
    assert result.returncode == 2
    assert "without the distances that VISSL's files have" in result.stderr
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--what", "clusters", "--format", "zarr"), "whose clusterings are Zarr already"),
        (("--what", "features", "--format", "csv"), "--format csv writes clusterings alone: give --what clusters"),
        (("--what", "clusters,features", "--format", "faiss"), "--format faiss writes an index of features or of cent"),
        (("--what", "clusters", "--clusters", "many"), "--clusters must be numbers of clusters, such as 100,1000"),
        (("--what", "clusters", "--clusters", "5"), "no clustering is kept with 5 clusters. Kept: x with 4."),
        (("--what", "clusters", "--layers", "y"), "no clustering is kept with layer y. Kept: x with 4."),
    ],
)
def test_what_cannot_be_exported_is_refused(
    features: FeatureSet, bench: Bench, tmp_path: Path, arguments: list[str], message: str
) -> None:
    keep(features, "x", 4)
    result = bench("export", "mine", *arguments, "--out", "out")
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_feature_set_without_clusterings_says_how_to_make_one(features: FeatureSet, bench: Bench) -> None:
    result = bench("export", "mine", "--what", "clusters")
    assert result.returncode == 2
    assert "no clustering is kept. Cluster with `bench evaluate --features mine --clusters N`" in result.stderr
