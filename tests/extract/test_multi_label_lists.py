"""Lists of images that have any number of classes: every form gives the same matrix; the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.extract.data.sources import open_sources
from featbench.extract.errors import DataError
from featbench.pipelines.config.catalogue import read_catalogue
from featbench.store import FeatureSet
from tests.conftest import Bench, Records, save_image

PATHS = ["b/2.jpg", "a/1.jpg", "3.jpg"]
LABELS = [["dining table", "cat"], [], ["cat"]]
MATRIX = [[1, 1], [0, 0], [1, 0]]

FORMS = {
    "x.txt": "b/2.jpg dining table;cat\n\na/1.jpg\n3.jpg cat\n",
    "tabs.txt": "b/2.jpg\tdining table|cat\na/1.jpg\t\n3.jpg\tcat\n",
    "names.csv": 'path,year,labels\nb/2.jpg,7,"[""dining table"", ""cat""]"\na/1.jpg,8,\n3.jpg,9,cat;\n',
    "columns.csv": "\ufefffile_name,cat,dining table\nb/2.jpg,1,1\na/1.jpg,0,0\n3.jpg,1,0.0\n",
    "x.tsv": "image\tlabels\nb/2.jpg\tcat;dining table\na/1.jpg\t\n3.jpg\tcat\n",
    "object.json": json.dumps(dict(zip(PATHS, LABELS, strict=True))),
    "objects.json": json.dumps([{"Path": p, "labels": c} for p, c in zip(PATHS, LABELS, strict=True)]),
    "coco.json": json.dumps(
        {
            "images": [{"id": i, "file_name": path} for i, path in enumerate(PATHS)],
            "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dining table"}],
            "annotations": [{"image_id": i, "category_id": c} for i, c in ((0, 9), (0, 7), (2, 7), (2, 7))],
        }
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in PATHS:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


def listed(folder: Path, name: str, text: str, **settings: Any) -> Any:
    (folder / name).write_text(text)
    return open_sources(
        source="filelist", multi_label=True, val_list=folder / name, root=folder, train_split="none", **settings
    )["val"].rows


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_list_gives_the_same_classes(folder: Path, name: str) -> None:
    rows = listed(folder, name, FORMS[name])
    assert list(rows.paths) == PATHS
    assert rows.class_names == ("cat", "dining table")
    assert rows.labels.tolist() == MATRIX
    assert rows.info().is_multi_label


def test_classes_can_be_numbers_of_a_list_of_names_and_not_known(folder: Path) -> None:
    (folder / "names").write_text("cat\ndining table\nowl\n")
    rows = listed(folder, "x.txt", "b/2.jpg 1;0\na/1.jpg\n3.jpg cat\n", classes=folder / "names")
    assert rows.labels.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    rows = listed(folder, "y.csv", "path,owl\nb/2.jpg,1\na/1.jpg,-1\n3.jpg,\n")
    assert (rows.labels.tolist(), rows.class_names) == ([[1], [-1], [-1]], ("owl",))
    assert listed(folder, "x.json", FORMS["object.json"], limit=2).labels.shape == (2, 2)


def test_a_cached_listing_has_the_same_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featbench.extract.data.listing_cache.MANY", 1)
    monkeypatch.setattr("featbench.extract.data.listing_cache.YOUNG_NS", 0)
    first = listed(folder, "x.txt", FORMS["x.txt"], cache=folder / "cache")
    monkeypatch.setattr("featbench.extract.data.sources.list_several", lambda *_, **__: pytest.fail("listed again"))
    assert list((folder / "cache").iterdir())
    again = open_sources(
        source="filelist", multi_label=True, val_list=folder / "x.txt", root=folder, train_split="none",
        cache=folder / "cache",
    )["val"].rows  # fmt: skip
    assert again.labels.tolist() == first.labels.tolist() == MATRIX
    assert again.info() == first.info()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.npy", "", "must end in .txt"),
        ("x.txt", "", "lists nothing"),
        ("x.txt", "b/2.jpg\n", "no image has a class"),
        ("x.txt", "nothing here\n", "line 1 is 'nothing here'"),
        ("x.txt", "b/2.jpg cat\nb/2.jpg dog\n", "is listed twice"),
        ("x.txt", "gone.jpg cat\n", "missing images: 1 of 1"),
        ("x.txt", "b/2.jpg [cat\n", "is no list of classes"),
        ("x.csv", "b/2.jpg,cat\n", "no column of paths"),
        ("x.csv", "path,cat\nb/2.jpg,2\n", "line 2: expected 1, 0 or -1 \\(not known\\) for each class; got '2'"),
        ("x.csv", "path,cat\nb/2.jpg\n", "line 2 has 1 columns"),
        ("x.csv", "path\nb/2.jpg\n", "expected a column called labels"),
        ("x.json", "{", "not JSON"),
        ("x.json", "[1]", "expected COCO's images and annotations"),
        ("x.json", '{"b/2.jpg": "cat"}', "'cat' is no list of classes"),
        ("x.json", '{"images": []}', "expected COCO's images"),
    ],
)
def test_what_can_not_be_read_is_refused(folder: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(folder, name, text)


def voc2007(root: Path) -> dict[str, list[list[int]]]:
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists.parents[1] / "JPEGImages").mkdir()
    flags = {
        "trainval": [("000001", "-1", " 1"), ("000002", " 1", "-1")],
        "test": [("000003", " 1", " 0")],
    }
    for split, rows in flags.items():
        for name, _, _ in rows:
            (lists.parents[1] / "JPEGImages" / f"{name}.jpg").touch()
        (lists / f"{split}.txt").write_text("\n".join(name for name, _, _ in rows))
        (lists / f"cat_{split}.txt").write_text("".join(f"{name} {cat}\n" for name, cat, _ in rows))
        (lists / f"dog_{split}.txt").write_text("".join(f"{name} {dog}\n" for name, _, dog in rows))
    return {"train": [[0, 1], [1, 0]], "val": [[1, -1]]}


def coco2017(root: Path) -> dict[str, list[list[int]]]:
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        for path in PATHS:
            (root / f"{split}2017" / path).parent.mkdir(exist_ok=True)
            (root / f"{split}2017" / path).touch()
        (root / "annotations" / f"instances_{split}2017.json").write_text(FORMS["coco.json"])
    return {"train": MATRIX, "val": MATRIX}


@pytest.mark.parametrize("make", [voc2007, coco2017])
def test_data_sets_are_read_as_distributed(tmp_path: Path, make: Callable[[Path], dict[str, list[list[int]]]]) -> None:
    expected = make(tmp_path)
    settings = {k: v for k, v in read_catalogue()[make.__name__].items() if k not in ("about", "needs")}
    sources = open_sources(**settings, root=tmp_path)
    assert {split: source.rows.labels.tolist() for split, source in sources.items()} == expected
    assert all((tmp_path / path).is_file() for source in sources.values() for path in source.rows.paths)


def test_images_with_several_classes_are_extracted_and_classified(
    tmp_path: Path, bench: Bench, records: Records
) -> None:
    for split in ("train", "val"):
        lines = ["path,cat,owl"]
        for seed in range(3):
            path = save_image(tmp_path / "photos" / f"{split}{seed}.png", seed=seed)
            lines.append(f"{path.name},{seed % 2},{int(seed > 0)}")
        (tmp_path / "photos" / f"{split}.csv").write_text("\n".join(lines))
    words = (
        "data.source=filelist", "data.multi_label=true", "data.root=photos", "data.train_list=photos/train.csv",
        "data.val_list=photos/val.csv", "name=mine", "model.trunk=squeezenet1_0", "weights.random_seed=0",
        "layers=[features.3]", "transform.resize=32", "transform.crop=32", "extract.workers=0",
    )  # fmt: skip
    result = bench("extract", "folder", *words, "--quiet")
    assert result.returncode == 0, result.stderr
    (record,) = (r for r in records("--features", "mine", "--k", "1") if r["task"] == "multi_label")
    assert (record["mean_ap"], record["micro_f1"], record["num_labels"]) == (1, 1, 2)  # the same images in both
    matrix = FeatureSet.open(Path("features/mine")).label_matrix("val")
    assert np.array_equal(matrix, [[0, 0], [1, 1], [0, 1]])
    assert "data.per_class" in bench("extract", "folder", *words, "data.per_class=1", "name=other").stderr
