"""Exports for other programs, read as each of them reads its files, and compared with scikit-learn and torch."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from featbench.pipelines.evaluation import atlas_files, stored_files
from featbench.pipelines.evaluation.dino_files import PARTS
from featbench.pipelines.extraction.pictures import Pictures
from featbench.store import FeatureSet
from tests.conftest import Arrays, Bench, make_features, save_image

K = 4
NAMES = ("<b>cat</b>", "tab\there", 'a "quoted" émeu')

Made = Callable[..., FeatureSet]


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    """Two layers, one of maps; some rows without a label, and one image that could not be read."""
    features, labels = arrays
    given = {split: each % 3 for split, each in labels.items()}
    given["train"][[3, 20]] = -1
    valid = {split: np.ones(len(each), np.bool_) for split, each in given.items()}
    valid["train"][7] = False
    return make_features(tmp_path / "features/x", features, given, class_names=dict.fromkeys(given, NAMES), valid=valid)


@pytest.fixture
def export(bench: Bench, made: FeatureSet, tmp_path: Path) -> Callable[..., Path]:
    def run(*arguments: object) -> Path:
        result = bench("export", "x", "--out", "out", *arguments)
        assert result.returncode == 0, result.stderr
        return tmp_path / "out"

    return run


def expected(made: FeatureSet, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of train that are used, nearest first, and their cosine distances, by scikit-learn."""
    train, val = (made.layer(split, layer).read() for split in ("train", "val"))
    used = np.flatnonzero(made.valid("train") & (made.labels("train") >= 0))
    found = NearestNeighbors(n_neighbors=K, metric="cosine").fit(train[used].astype(np.float64))
    distances, places = found.kneighbors(val.astype(np.float64))
    return used[places], distances


@pytest.mark.parametrize("file_format", ["npy", "npz", "parquet"])
def test_features_keep_their_shape(
    export: Callable[..., Path], made: FeatureSet, arrays: Arrays, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_files, "BLOCK_BYTES", 8 * 64 * 4)  # several blocks
    out = export("--what", "features", "--format", file_format)
    for split in ("train", "val"):
        for layer in ("res4", "res5"):
            path = out / f"{split}_{layer}.{file_format}"
            if file_format == "npy":
                found = np.load(path)
            elif file_format == "npz":
                found = np.load(path)["features"]
                assert zipfile.ZipFile(path).testzip() is None
            else:
                parquet = pytest.importorskip("pyarrow.parquet")
                found = np.array(parquet.read_table(path)["features"].to_pylist(), np.float32)
            used = made.valid(split)
            assert found.shape == arrays[0][split][layer].shape
            assert np.array_equal(found[used], arrays[0][split][layer][used])


def test_dinos_files_are_rows_of_length_one_and_its_vote_gives_the_accuracy(
    export: Callable[..., Path], made: FeatureSet, bench: Bench
) -> None:
    out = export("--format", "dino", "--layers", "res4")
    load = {name: torch.load(out / f"{name}.pth") for name in ("trainfeat", "testfeat", "trainlabels", "testlabels")}
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{name}.pth" for name in load)
    used = made.valid("train") & (made.labels("train") >= 0)
    stored = torch.from_numpy(made.layer("train", "res4").read()[used])
    torch.testing.assert_close(load["trainfeat"], torch.nn.functional.normalize(stored, dim=1, p=2))
    assert load["trainlabels"].tolist() == made.labels("train")[used].tolist()
    assert load["trainlabels"].dtype == torch.int64
    # The vote of eval_knn.py, for one k.
    similarity, places = (load["testfeat"] @ load["trainfeat"].T).topk(K)
    votes = torch.zeros(len(similarity), 3)
    votes.scatter_add_(1, load["trainlabels"][places], (similarity / 0.07).exp())
    right = (votes.argmax(1) == load["testlabels"]).double().mean().item()
    result = bench("evaluate", "--features", "x", "--layers", "res4", "--k", K, "--json", "--quiet")
    assert json.loads(result.stdout)[0]["top1"] == pytest.approx(right)


@pytest.mark.parametrize(("split", "theirs"), [("train", "train"), ("val", "test")])
def test_a_feature_set_of_one_split_gives_the_files_of_that_split(
    split: str, theirs: str, tmp_path: Path, bench: Bench
) -> None:
    rows = np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "rows.npz", features=rows, labels=np.arange(4) % 2)
    assert bench("import", "--name", "one", f"--{split}", "rows.npz", "--layer", "x").returncode == 0
    for file_format, what, name in (("dino", "features", "DINO"), ("vissl", "features", "VISSL")):
        result = bench("export", "one", "--format", file_format, "--what", what, "--out", file_format)
        assert result.returncode == 0, result.stderr
        other = {"train": "val", "val": "train"}[split]
        assert f"one has no {other}: {name}'s files of {PARTS[other]} are not written" in result.stderr
    assert sorted(path.name for path in (tmp_path / "dino").iterdir()) == [f"{theirs}feat.pth", f"{theirs}labels.pth"]
    assert torch.load(tmp_path / f"dino/{theirs}feat.pth").tolist() == rows.tolist()
    assert np.load(tmp_path / f"vissl/rank0_chunk0_{theirs}_x_features.npy").tolist() == rows.tolist()
    assert not [path for path in (tmp_path / "vissl").iterdir() if f"_{PARTS[other]}_" in path.name]


def test_the_faiss_index_finds_the_rows_of_train(export: Callable[..., Path], made: FeatureSet) -> None:
    out = export("--format", "faiss")
    listed = list(csv.reader((out / "rows.csv").open(encoding="utf-8", newline="")))
    rows = np.flatnonzero(made.valid("train"))
    assert [int(row) for row, *_ in listed[1:]] == rows.tolist()
    assert listed[1][1:] == ["train/0.jpg", NAMES[made.labels("train")[0]]]
    for layer in ("res4", "res5"):
        index = faiss.read_index(str(out / f"{layer}.faiss"))
        train, val = (made.layer(split, layer).read() for split in ("train", "val"))
        unit = train[rows].astype(np.float64) / np.linalg.norm(train[rows].astype(np.float64), axis=1, keepdims=True)
        theirs = faiss.IndexIDMap(faiss.IndexFlatIP(train.shape[1]))
        theirs.add_with_ids(unit.astype(np.float32), rows)
        assert (out / f"{layer}.faiss").read_bytes() == bytes(faiss.serialize_index(theirs).data)
        query = val / np.linalg.norm(val, axis=1, keepdims=True)
        found = NearestNeighbors(n_neighbors=K, metric="cosine").fit(train[rows]).kneighbors(val)[1]
        assert np.array_equal(index.search(query, K)[1], rows[found])
        facts = json.loads((out / f"{layer}.faiss.json").read_text())
        assert (facts["rows"], facts["scale_queries_to_length_1"]) == (len(rows), True)


def test_a_euclidean_index_has_the_rows_as_they_are(export: Callable[..., Path], made: FeatureSet) -> None:
    out = export("--format", "faiss", "--layers", "res5", "--protocol", "solo_euclidean")
    index: Any = faiss.read_index(str(out / "res5.faiss"))
    rows = np.flatnonzero(made.valid("train"))
    inner: Any = faiss.downcast_index(index.index)
    stored = faiss.vector_to_array(inner.codes).view(np.float32).reshape(len(rows), -1)
    assert np.array_equal(stored, made.layer("train", "res5").read()[rows])


def test_the_atlas_has_neighbours_by_their_place_in_the_file(
    export: Callable[..., Path], made: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(atlas_files, "ROWS_AT_ONCE", 20)
    table = parquet.read_table(export("--format", "embedding-atlas", "--k", K) / "res4.parquet").to_pylist()
    num_train = int(made.valid("train").sum())
    assert [each["split"] for each in table] == ["train"] * num_train + ["val"] * 21
    rows_QK, distances_QK = expected(made, "res4")
    for query, each in enumerate(table[num_train:]):
        found = [table[place] for place in each["neighbors"]["ids"]]
        assert [other["row"] for other in found] == rows_QK[query].tolist()
        np.testing.assert_allclose(each["neighbors"]["distances"], distances_QK[query], atol=1e-7)
        assert each["class"] == NAMES[made.labels("val")[query]]
        assert each["right"] == (each["prediction"] == each["class"])
    assert table[3]["class"] is None  # without a label
    assert all(each["neighbors"] == {"ids": [], "distances": []} for each in table[:num_train])
    train = made.layer("train", "res4").read().astype(np.float64)[made.valid("train")]
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    centred = train - train.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    at = np.array([[each["x"], each["y"]] for each in table[:num_train]])
    np.testing.assert_allclose(np.abs(at), np.abs(centred @ axes.T), atol=1e-5)


def test_the_projector_has_a_line_for_each_query(export: Callable[..., Path], made: FeatureSet) -> None:
    out = export("--format", "tensorboard-projector", "--k", K)
    for layer in ("res4", "res5"):
        tensors = np.loadtxt(out / layer / "tensors.tsv", delimiter="\t")
        np.testing.assert_allclose(tensors, made.layer("val", layer).read(), rtol=2e-6)
        lines = [line.split("\t") for line in (out / layer / "metadata.tsv").read_text().splitlines()]
        assert lines[0] == ["row", "path", "class", "prediction", "probability", "right"]
        assert len(lines) == 22
        assert {len(line) for line in lines} == {6}
        classes = [NAMES[label].replace("\t", "\\t") for label in made.labels("val")]
        assert [line[2] for line in lines[1:]] == classes
        assert [line[5] for line in lines[1:]] == ["right" if line[2] == line[3] else "wrong" for line in lines[1:]]
    text = (out / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "res4/tensors.tsv"' in text
    assert "sprite" not in text  # imported features have no images


def test_images_are_named_for_fiftyone_and_drawn_for_the_projector(
    export: Callable[..., Path], made: FeatureSet, tmp_path: Path, bench: Bench
) -> None:
    for split in ("train", "val"):
        for row, path in enumerate(made.paths(split)):
            save_image(tmp_path / "photos" / path, seed=row, size=(20, 20))
    out = export("--format", "fiftyone", "--layers", "res5", "--k", K, "--images", tmp_path / "photos")
    labels, files, found = (
        json.loads((out / "val" / f"{name}.json").read_text()) for name in ("labels", "data", "res5_predictions")
    )
    assert labels["classes"] == list(NAMES)
    assert set(labels["labels"]) == set(files) == set(found["labels"])
    rows_QK, distances_QK = expected(made, "res5")
    for row in range(21):
        name = f"row{row:07d}"
        assert Path(files[name]) == tmp_path / f"photos/val/{row}.jpg"
        assert labels["labels"][name] == NAMES[made.labels("val")[row]]
        attributes = found["labels"][name]["attributes"]
        assert attributes["neighbours"] == [f"train/{each}.jpg" for each in rows_QK[row]]
        np.testing.assert_allclose(attributes["similarities"], 1 - distances_QK[row], atol=1e-7)
    train = json.loads((out / "train/labels.json").read_text())["labels"]
    assert "row0000003" not in train  # without a label
    again = bench("export", "x", "--out", "out", "--format", "fiftyone", "--images", tmp_path / "photos")
    assert again.returncode == 2
    assert "exists; export into another folder" in again.stderr
    projector = bench("export", "x", "--out", "p", "--format", "tensorboard-projector", "--layers", "res5",
                      "--images", tmp_path / "photos")  # fmt: skip
    assert projector.returncode == 0, projector.stderr
    sprite = Image.open(tmp_path / "p/sprite.png")
    assert sprite.size == (5 * 64, 5 * 64)
    photo = Image.open(tmp_path / "photos/val/7.jpg").resize((64, 64), Image.Resampling.BICUBIC)
    apart = np.asarray(sprite.crop((128, 64, 192, 128)), int) - np.asarray(photo, int)
    assert np.abs(apart).mean() < 3
    assert "single_image_dim: 64" in (tmp_path / "p/projector_config.pbtxt").read_text()


def test_images_that_are_no_files_are_written_for_fiftyone(
    export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of archives and arrays: here every image is a square of its row's grey."""
    monkeypatch.setattr(Pictures, "of", lambda features, root: Pictures(features))
    monkeypatch.setattr(Pictures, "image", lambda self, split, row: Image.new("L", (3, 3), row))
    out = export("--format", "fiftyone", "--layers", "res5", "--k", K)
    files = json.loads((out / "val/data.json").read_text())
    assert files["row0000020"] == "images/row0000020.png"
    for name, file in files.items():
        assert np.unique(np.asarray(Image.open(out / "val" / file))).tolist() == [int(name.removeprefix("row"))]
    assert len(files) == 21


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "dino", "--what", "predictions"), "--format dino is for features; got --what predictions"),
        (("--format", "faiss", "--what", "neighbours"), "an index of features or of centroids"),
        (("--format", "csv", "--what", "features"), "writes clusterings alone"),
        (("--format", "embedding-atlas", "--projection", "tsne"), "--projection must be one of pca, umap; got tsne"),
        (("--format", "embedding-atlas", "--images", "nowhere"), "nowhere: no such folder"),
        (("--format", "fiftyone"), "FiftyOne shows images, and none of train can be found"),
        (("--format", "atlas"), "--format must be one of"),
    ],
)
def test_what_a_program_can_not_take_is_refused(
    bench: Bench, made: FeatureSet, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    result = bench("export", "x", "--out", "out", *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert not list(tmp_path.glob("out/**/*.*"))


def test_a_full_disk_leaves_no_half_of_a_file(
    bench: Bench, made: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savetxt", full)
    result = bench("export", "x", "--out", "out", "--format", "tensorboard-projector")
    assert result.returncode == 2
    assert "No space left on device" in result.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
