"""What a report shows of queries, neighbours and images."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from featbench.evaluate.knn.classification import evaluate_knn
from featbench.extract.errors import ImageError
from featbench.pipelines.evaluation.umap_maps import umap_of
from featbench.pipelines.extraction.pictures import FolderImages
from featbench.pipelines.report.maps import project
from featbench.pipelines.report.page import template
from featbench.store import FeatureSet
from featbench.store.typing import Array
from tests.conftest import Bench, make_features, save_image
from tests.pipelines.test_report import made, nearest_classes, read, rows_of

CLASSES = ("cat", "dog", "owl", "eel")


@pytest.fixture
def photographed(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A feature set with images in `photos`, of which one is gone and one is no image."""
    rows, labels = made(tmp_path / "features/mine", classes=CLASSES)
    for split, each in labels.items():
        for row in range(len(each)):
            save_image(tmp_path / f"photos/{split}/{row}.jpg", seed=row + 1000 * (split == "val"), size=(60, 40))
    (tmp_path / "photos/val/3.jpg").unlink()
    (tmp_path / "photos/val/5.jpg").write_bytes(b"no image")
    evaluate_knn(FeatureSet.open(tmp_path / "features/mine"), ["early", "late"], k=[20])
    return rows, labels


def unpacked(text: str, dtype: str, length: int) -> Array:
    return np.frombuffer(base64.b64decode(text), dtype).reshape(-1, length)


def test_lists_are_the_nearest_rows(photographed: Any, tmp_path: Path, bench: Bench) -> None:
    rows, labels = photographed
    assert bench("report", "mine", "--queries", "48", "--thumbnail", "0").returncode == 0
    data = read(tmp_path / "report.html").data
    found = data["neighbours"]
    at = [data["pictures"]["row"][query["place"]] for query in found["queries"]]
    assert sorted(at) == list(range(48))
    for name, view, lists in zip(("early", "late"), data["views"], found["views"], strict=True):
        assert view["name"] == name
        cosines, classes = nearest_classes(rows, labels, name, 20)
        assert (unpacked(lists["labels"], "<i4", 20) == classes[at]).all()
        np.testing.assert_allclose(unpacked(lists["similarities"], "<f8", 20), cosines[at], rtol=1e-12)
        shown = np.array(lists["places"])
        assert (np.array(data["pictures"]["label"])[shown] == classes[at][:, : shown.shape[1]]).all()
    assert not data["pictures"]["thumbnails"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's vote")
def test_the_pages_vote_is_that_of_a_float64_reference(tmp_path: Path) -> None:
    """For every k and temperature, with ties: by score, then by the nearest neighbour."""
    random = np.random.default_rng(0)
    similarities = -np.sort(-random.choice(np.linspace(0.2, 0.9, 9), size=(40, 12)), axis=1)
    labels = random.integers(0, 4, size=similarities.shape)
    asked = [
        (k, vote, t) for k in (1, 2, 5, 12) for vote, t in (("exponential", 0.07), ("exponential", 1), ("uniform", 0))
    ]
    (tmp_path / "vote.js").write_text(template("vote.js"))
    (tmp_path / "ask.js").write_text(
        "const {countVotes} = require('./vote.js'); const {labels, similarities, asked} = require('./data.json');"
        "console.log(JSON.stringify(asked.map(([k, vote, t]) => labels.map((each, q) =>"
        "countVotes(each, similarities[q], k, vote, t).map(({label, share}) => [label, share])))));"
    )
    (tmp_path / "data.json").write_text(
        json.dumps({"labels": labels.tolist(), "similarities": similarities.tolist(), "asked": asked})
    )
    run = subprocess.run(["node", "ask.js"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    for (k, vote, temperature), found in zip(asked, json.loads(run.stdout), strict=True):
        for query, ranked in enumerate(found):
            scores: dict[int, float] = {}
            for label, similarity in zip(labels[query, :k], similarities[query], strict=False):
                weight = 1.0 if vote == "uniform" else np.exp((similarity - similarities[query, 0]) / temperature)
                scores[int(label)] = scores.get(int(label), 0.0) + weight
            expected = sorted(scores, key=lambda each: -scores[each])  # stable: equal scores stay in order of nearness
            assert [label for label, _ in ranked] == expected
            shares = [scores[label] / sum(scores.values()) for label in expected]
            np.testing.assert_allclose([share for _, share in ranked], shares, rtol=1e-12)


def test_pictures_are_in_the_page_once_and_missing_ones_are_said(
    photographed: Any, tmp_path: Path, bench: Bench
) -> None:
    result = bench("report", "mine", "--queries", "48", "--thumbnail", "32", "--data", "photos")
    assert result.returncode == 0, result.stderr
    page = read(tmp_path / "report.html")
    pictures = page.data["pictures"]
    assert len(set(pictures["thumbnails"])) == len(pictures["thumbnails"])
    place = pictures["path"].index("val/7.jpg")
    content = base64.b64decode(pictures["thumbnails"][pictures["picture"][place]].split(",")[1])
    image = Image.open(io.BytesIO(content))
    assert image.size == (32, 21)
    with Image.open(tmp_path / "photos/val/7.jpg") as original:
        small = np.asarray(original.convert("RGB").resize((32, 21)), float)
    assert np.abs(np.asarray(image.convert("RGB"), float) - small).mean() < 12
    missing = [path for path, at in zip(pictures["path"], pictures["picture"], strict=True) if at < 0]
    assert sorted(missing) == ["val/3.jpg", "val/5.jpg"]
    assert "2 images can't be read any more" in "".join(page.texts)


def test_without_images_the_page_says_so_and_shows_the_rest(photographed: Any, tmp_path: Path, bench: Bench) -> None:
    result = bench("report", "mine")
    assert result.returncode == 0
    assert "name the folder that their paths are relative to with --data" in result.stderr
    page = read(tmp_path / "report.html")
    assert set(page.data["pictures"]["picture"]) == {-1}
    assert len(page.data["neighbours"]["queries"]) == 48
    assert "with --data" in "".join(page.texts)


def test_images_may_be_links_but_no_path_leads_out_of_the_folder(tmp_path: Path) -> None:
    """A feature set may come from someone else; links in the user's own folder do not."""
    save_image(tmp_path / "elsewhere/a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").symlink_to(tmp_path / "elsewhere/a.png")
    out = str(tmp_path / "elsewhere/a.png")
    images = FolderImages(tmp_path / "photos", ["a.png", "../elsewhere/a.png", out, "b/../../elsewhere/a.png"])
    assert images.has_any()
    assert images.read(0).image.size
    for row in (1, 2, 3):
        with pytest.raises(ImageError, match="outside of"):
            images.read(row)
    assert not FolderImages(tmp_path / "photos", images.paths[1:]).has_any()


def test_queries_can_be_named(photographed: Any, tmp_path: Path, bench: Bench) -> None:
    assert bench("report", "mine", "--queries", "0", "--query", "11.jpg", "--query", "val/2?.jpg").returncode == 0
    data = read(tmp_path / "report.html").data
    paths = [data["pictures"]["path"][query["place"]] for query in data["neighbours"]["queries"]]
    assert paths == ["val/11.jpg", *(f"val/2{digit}.jpg" for digit in range(10))]
    result = bench("report", "mine", "--query", "nothing.jpg")
    assert result.returncode == 2
    assert "no image of val" in result.stderr


def test_the_first_queries_are_wrong_and_the_most_confident(photographed: Any, tmp_path: Path, bench: Bench) -> None:
    rows, labels = photographed
    assert bench("report", "mine", "--layers", "early", "--k", "20", "--temperature", "0.1").returncode == 0
    data = read(tmp_path / "report.html").data
    wrong = [query for query in data["neighbours"]["queries"] if query["group"] == "wrong"]
    cosines, classes = nearest_classes(rows, labels, "early", 20)
    shares = np.zeros((48, 4))
    for place in range(20):
        shares[np.arange(48), classes[:, place]] += np.exp((cosines[:, place] - cosines[:, 0]) / 0.1)
    shares /= shares.sum(axis=1, keepdims=True)
    is_wrong = shares.argmax(axis=1) != labels["val"]
    expected = sorted(np.flatnonzero(is_wrong), key=lambda query: -shares[query].max())[: len(wrong)]
    assert [data["pictures"]["row"][query["place"]] for query in wrong] == expected


def test_clusters_have_the_sizes_classes_and_images_that_numpy_finds(
    photographed: Any, tmp_path: Path, bench: Bench
) -> None:
    rows, labels = photographed
    assert bench("evaluate", "--features", "mine", "--layers", "late", "--clusters", "3").returncode == 0
    assert bench("report", "mine").returncode == 0
    data = read(tmp_path / "report.html").data
    (clustering,) = data["clusterings"]
    (kept,) = (tmp_path / "features/mine/clusters").glob("late-*")
    clusters = zarr.open_group(str(kept), mode="r")["train"][:]
    unit = rows["train"]["late"].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert len(clustering["clusters"]) == 3
    for shown in clustering["clusters"]:
        members = np.flatnonzero(clusters == shown["number"])
        counts = np.bincount(labels["train"][members], minlength=4)
        assert shown["size"] == len(members)
        assert shown["purity"] == pytest.approx(counts.max() / len(members), abs=1e-4)
        assert dict(shown["classes"]) == {label: count for label, count in enumerate(counts) if count}
        distances = np.linalg.norm(unit[members] - unit[members].mean(axis=0), axis=1)
        nearest = members[np.argsort(distances)][: len(shown["places"])]
        assert [data["pictures"]["row"][place] for place in shown["places"]] == nearest.tolist()
    assert {name for _, name, _ in clustering["metrics"]} >= {"nmi", "ari", "purity"}


def test_hubs_are_in_the_most_lists(photographed: Any, tmp_path: Path, bench: Bench) -> None:
    rows, _ = photographed
    assert bench("report", "mine", "--layers", "late", "--k", "5").returncode == 0
    data = read(tmp_path / "report.html").data
    x, y = (rows[split]["late"].astype(np.float64) for split in ("train", "val"))
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), y / np.linalg.norm(y, axis=1, keepdims=True)
    counts = np.bincount(np.argsort(-(y @ x.T), axis=1)[:, :5].ravel(), minlength=len(x))
    hubs = data["rows"][0]["hubs"]
    assert [count for _, count in hubs["rows"]] == sorted(counts, reverse=True)[:12]
    for place, count in hubs["rows"]:
        assert counts[data["pictures"]["row"][place]] == count
    assert hubs["antihubs"] == pytest.approx((counts == 0).mean(), abs=1e-4)


def test_near_duplicates_and_images_left_out_are_shown(tmp_path: Path, bench: Bench) -> None:
    random = np.random.default_rng(0)
    rows = {split: {"x": random.normal(size=(20, 16)).astype(np.float32)} for split in ("train", "val")}
    rows["val"]["x"][7] = 2 * rows["train"]["x"][3]
    labels = dict.fromkeys(("train", "val"), np.arange(20) % 2)
    valid = {split: np.ones(20, np.bool_) for split in rows}
    valid["train"][9] = False
    make_features(tmp_path / "features/N", rows, labels, valid=valid)
    evaluate_knn(FeatureSet.open(tmp_path / "features/N"), ["x"], k=[2])
    assert bench("report", "N", "--k", "2").returncode == 0
    data = read(tmp_path / "report.html").data
    duplicates = data["rows"][0]["duplicates"]
    assert duplicates["count"] == 1
    ((query, row, cosine),) = duplicates["pairs"]
    assert [data["pictures"]["path"][place] for place in (query, row)] == ["val/7.jpg", "train/3.jpg"]
    assert cosine == pytest.approx(1, abs=1e-6)
    (part,) = data["leftOut"]
    assert (part["split"], part["paths"]) == ("train", ["train/9.jpg"])


def test_the_map_has_the_principal_components(photographed: Any, tmp_path: Path, bench: Bench) -> None:
    rows, labels = photographed
    assert bench("report", "mine", "--layers", "late").returncode == 0
    data = read(tmp_path / "report.html").data
    (chart,) = (each for each in data["charts"] if each["key"] == "map-pca")
    table = rows_of(chart["table"])
    unit = rows["val"]["late"].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    for name, expected in (("x", u[:, 0] * s[0]), ("y", u[:, 1] * s[1])):
        found = np.array([row[name] for row in table])
        np.testing.assert_allclose(found * np.sign(found @ expected), expected, atol=1e-4)
    assert [row["class"] for row in table] == [CLASSES[label] for label in labels["val"]]


def test_a_map_that_does_not_exist_is_refused(photographed: Any, bench: Bench) -> None:
    result = bench("report", "mine", "--map", "pca,som")
    assert result.returncode == 2
    assert "--map must be of pca, tsne, umap; got som" in result.stderr


@pytest.mark.parametrize("name", ["report", "embedding-atlas"])
def test_umap_that_is_not_installed_or_broken_is_one_message(
    name: str, photographed: Any, tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {
        "report": ("report", "mine", "--map", "umap"),
        "embedding-atlas": ("export", "mine", "--format", "embedding-atlas", "--projection", "umap", "--out", "out"),
    }[name]

    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setitem(sys.modules, "umap", None)  # importing it fails
    for found, said in (
        (absent, "pip install 'featbench[umap]'"),
        (lambda package: "0.5", "umap-learn can't be loaded"),
    ):
        monkeypatch.setattr("featbench.pipelines.evaluation.umap_maps.version", found)
        result = bench(*words)
        assert result.returncode == 2
        assert said in result.stderr
        assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_umaps_map_keeps_classes_together_and_is_the_same_each_time() -> None:
    """On well separated classes the nearest point on the map is of the same class, as scikit-learn finds."""
    umap = pytest.importorskip("umap")
    random = np.random.default_rng(0)
    labels = np.arange(120) % 4
    features = random.normal(size=(4, 16))[labels] * 4 + random.normal(size=(120, 16))
    first, second = (umap_of(umap, features) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()
    places = NearestNeighbors(n_neighbors=2).fit(first).kneighbors(first, return_distance=False)[:, 1]
    assert (labels[places] == labels).mean() > 0.95
    for count in (1, 2, 3, 4, 5, 6):
        assert project(features[:count], "umap").shape == (count, 2)
