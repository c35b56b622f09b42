"""Public data sets are read in the layout in which they are distributed; wrong files are one clear message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featbench.extract.data.layouts import LAYOUTS
from featbench.extract.data.sources import open_sources
from featbench.extract.errors import DataError
from featbench.pipelines.config.catalogue import read_catalogue
from featbench.pipelines.foreign.vissl_data import CATALOGUE
from tests.conftest import save_image

Classes = dict[str, list[tuple[str, str]]]
"""Path and class of each image, by split."""


def images(root: Path, *paths: str) -> None:
    for seed, path in enumerate(paths):
        save_image(root / path, seed=seed, size=(8, 8))


def tiny_imagenet(root: Path) -> Classes:
    images(root, "train/n1/images/n1_0.JPEG", "train/n2/images/n2_0.JPEG", "train/n2/images/n2_1.JPEG",
           "val/images/val_0.JPEG", "val/images/val_1.JPEG")  # fmt: skip
    (root / "train/n1/n1_boxes.txt").write_text("n1_0.JPEG\t0\t10\t63\t58\n")
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t32\t44\t62\nval_1.JPEG\tn1\t52\t55\t57\t59\n")
    return {
        "train": [("train/n1/images/n1_0.JPEG", "n1"), ("train/n2/images/n2_0.JPEG", "n2"),
                  ("train/n2/images/n2_1.JPEG", "n2")],
        "val": [("val/images/val_0.JPEG", "n2"), ("val/images/val_1.JPEG", "n1")],
    }  # fmt: skip


def cub200(root: Path) -> Classes:
    inner = root / "CUB_200_2011"
    images(inner, "images/001.Albatross/a.jpg", "images/001.Albatross/b.jpg", "images/002.Auklet/c.jpg")
    (inner / "images.txt").write_text("1 001.Albatross/a.jpg\n2 001.Albatross/b.jpg\n3 002.Auklet/c.jpg\n")
    (inner / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n")
    (inner / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n")
    (inner / "classes.txt").write_text("1 001.Albatross\n2 002.Auklet\n")
    return {
        "train": [("CUB_200_2011/images/001.Albatross/b.jpg", "001.Albatross"),
                  ("CUB_200_2011/images/002.Auklet/c.jpg", "002.Auklet")],
        "val": [("CUB_200_2011/images/001.Albatross/a.jpg", "001.Albatross")],
    }  # fmt: skip


def sun397(root: Path) -> Classes:
    images(root / "SUN397", "a/abbey/1.jpg", "a/apartment/outdoor/2.jpg", "a/abbey/3.jpg")
    (root / "Training_01.txt").write_text("/a/abbey/1.jpg\n/a/apartment/outdoor/2.jpg\n")
    (root / "Testing_01.txt").write_text("/a/abbey/3.jpg\n")
    return {
        "train": [("SUN397/a/abbey/1.jpg", "abbey"), ("SUN397/a/apartment/outdoor/2.jpg", "apartment/outdoor")],
        "val": [("SUN397/a/abbey/3.jpg", "abbey")],
    }


def imagenet_v2(root: Path) -> Classes:
    """Twelve classes, so that the order of the folders' names is not that of their numbers."""
    names = [f"n{number:02d}" for number in range(12)]
    images(root, *(f"train/{name}/x.JPEG" for name in names))
    top = "imagenetv2-matched-frequency-format-val"
    images(root, f"{top}/2/y.jpeg", f"{top}/10/y.jpeg")
    return {
        "train": [(f"train/{name}/x.JPEG", name) for name in names],
        "val": [(f"{top}/2/y.jpeg", "n02"), (f"{top}/10/y.jpeg", "n10")],
    }


def imagenet100(root: Path) -> Classes:
    images(root, "train.X1/n2/a.JPEG", "train.X2/n1/b.JPEG", "val.X/n1/c.JPEG", "val.X/n2/d.JPEG")
    return {
        "train": [("train.X2/n1/b.JPEG", "n1"), ("train.X1/n2/a.JPEG", "n2")],
        "val": [("val.X/n1/c.JPEG", "n1"), ("val.X/n2/d.JPEG", "n2")],
    }


def by_class(*, train: str, val: str) -> Classes:
    return {
        split: [(path, path.rpartition("/")[0].rpartition("/")[2]) for path in paths.split()]
        for split, paths in (("train", train), ("val", val))
    }


def imagenet_a(root: Path, top: str = "imagenet-a") -> Classes:
    """Only some of ImageNet's classes, and a README among their folders."""
    images(root, "train/n1/a.JPEG", "train/n2/b.JPEG", "train/n3/c.JPEG", f"{top}/n3/d.jpg", f"{top}/n1/e.jpg")
    (root / top / "README.txt").write_text("https://example.org")
    return by_class(train="train/n1/a.JPEG train/n2/b.JPEG train/n3/c.JPEG", val=f"{top}/n1/e.jpg {top}/n3/d.jpg")


def imagenet_r(root: Path) -> Classes:
    return imagenet_a(root, "imagenet-r")


def imagenet_sketch(root: Path) -> Classes:
    return imagenet_a(root, "sketch")


def eurosat(root: Path) -> Classes:
    """A list of names without their folders, with the endings of another version of the images."""
    images(root, "2750/River/River_1.jpg", "2750/River/River_2.jpg", "2750/Forest/Forest_1.jpg")
    (root / "eurosat-train.txt").write_text("River_2.tif\nForest_1.tif\n")
    (root / "eurosat-test.txt").write_text("River_1.tif\n")
    return by_class(train="2750/River/River_2.jpg 2750/Forest/Forest_1.jpg", val="2750/River/River_1.jpg")


def resisc45(root: Path) -> Classes:
    top = "NWPU-RESISC45"
    images(root, f"{top}/lake/lake_001.jpg", f"{top}/lake/lake_002.jpg", f"{top}/river/river_001.jpg")
    (root / "resisc45-train.txt").write_text("river_001.jpg\nlake_001.jpg\n")
    (root / "resisc45-test.txt").write_text("lake_002.jpg\n")
    return by_class(train=f"{top}/river/river_001.jpg {top}/lake/lake_001.jpg", val=f"{top}/lake/lake_002.jpg")


def ucmerced(root: Path) -> Classes:
    top = "UCMerced_LandUse/Images"
    images(root, f"{top}/river/river01.tif", f"{top}/river/river00.tif")
    (root / "uc_merced-train.txt").write_text("river01.tif\n")
    (root / "uc_merced-test.txt").write_text("river00.tif\n")
    return by_class(train=f"{top}/river/river01.tif", val=f"{top}/river/river00.tif")


def caltech101(root: Path) -> Classes:
    """CoOp's list names the classes itself, and the same names are in several folders."""
    top = "101_ObjectCategories"
    images(root, f"{top}/Faces/image_0001.jpg", f"{top}/ant/image_0001.jpg", f"{top}/ant/image_0002.jpg")
    content = {
        "train": [["ant/image_0002.jpg", 1, "ant"], ["Faces/image_0001.jpg", 0, "face"]],
        "val": [["none/image_0001.jpg", 2, "none"]],
        "test": [["ant/image_0001.jpg", 1, "ant"]],
    }
    (root / "split_zhou_Caltech101.json").write_text(json.dumps(content))
    return {
        "train": [(f"{top}/ant/image_0002.jpg", "ant"), (f"{top}/Faces/image_0001.jpg", "face")],
        "val": [(f"{top}/ant/image_0001.jpg", "ant")],
    }


def objectnet(root: Path) -> Classes:
    """Two of ImageNet's classes are one of ObjectNet's, and one of ObjectNet's is none of ImageNet's."""
    top = "objectnet-1.0"
    images(root, "train/n1/a.JPEG", "train/n2/b.JPEG", "train/n3/c.JPEG",
           f"{top}/images/alarm_clock/d.png", f"{top}/images/air_freshener/e.png")  # fmt: skip
    folder = root / top / "mappings"
    folder.mkdir()
    labels = {"alarm_clock": "Alarm clock", "air_freshener": "Air freshener"}
    (folder / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    shared = {"Alarm clock": "digital clock; analog clock"}
    (folder / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    (folder / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps({"0": 2, "1": 0, "2": 1}))
    (folder / "imagenet_to_label_2012_v2").write_text("tench\nanalog clock\ndigital clock\n")
    return {
        "train": [("train/n1/a.JPEG", "alarm_clock"), ("train/n2/b.JPEG", "n2"), ("train/n3/c.JPEG", "alarm_clock")],
        "val": [(f"{top}/images/alarm_clock/d.png", "alarm_clock")],
    }


MAKERS: list[Callable[[Path], Classes]] = [
    tiny_imagenet, cub200, sun397, imagenet_v2, imagenet100, imagenet_a, imagenet_r, imagenet_sketch, eurosat, resisc45,
    ucmerced, caltech101, objectnet,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_a_data_set_is_read_as_it_is_distributed(tmp_path: Path, make: Callable[[Path], Classes]) -> None:
    expected = make(tmp_path)
    entry = read_catalogue()[make.__name__]
    settings = {key: value for key, value in entry.items() if key not in ("about", "needs")}
    for split, source in open_sources(**settings, root=tmp_path).items():
        rows = source.rows
        found = [(path, rows.class_names[label]) for path, label in zip(rows.paths, rows.labels, strict=True)]
        assert found == expected[split]


@pytest.mark.parametrize(
    ("vissls", "val", "classes"),
    [
        ("dsprites_loc_folder", "val", ("bin_0", "bin_15")),
        ("dsprites_orient_folder", "val", ("bin_0", "bin_15")),
        ("kitti_dist_folder", "val", ("below_8", "no_vehicle")),
        ("small_norb_azimuth_folder", "test", ("0", "340")),
        ("small_norb_elevation_folder", "test", ("30", "70")),
        ("ucf101_folder", "val", ("Archery", "YoYo")),
        ("clevr_dist_filelist", "val", ("below_10.0", "below_8.0")),
    ],
)
def test_a_data_set_is_read_as_vissls_script_writes_it(
    tmp_path: Path, vissls: str, val: str, classes: tuple[str, str]
) -> None:
    entry = read_catalogue()[CATALOGUE[vissls]]
    paths = {
        split: [f"{folder}/{name}/image_1.jpg" for name in classes]
        for split, folder in (("train", "train"), ("val", val))
    }
    images(tmp_path, *paths["train"], *paths["val"])
    if entry["source"] == "filelist":  # with paths that begin at the root of the machine
        for split, of_split in paths.items():
            np.save(tmp_path / f"{split}_images.npy", [str(tmp_path / path) for path in of_split])
            np.save(tmp_path / f"{split}_labels.npy", list(classes))
    settings = {key: value for key, value in entry.items() if key not in ("about", "needs")}
    for split, source in open_sources(**settings, root=tmp_path).items():
        assert source.rows.class_names == classes
        assert [path.removeprefix(f"{tmp_path}/") for path in source.rows.paths] == paths[split]
        assert source.rows.labels.tolist() == [0, 1]


def test_every_layout_is_in_the_catalogue() -> None:
    entries = read_catalogue().values()
    assert {entry["dataset"] for entry in entries if entry.get("source") == "layout"} == set(LAYOUTS)


@pytest.mark.parametrize(
    ("make", "damage", "message"),
    [
        (tiny_imagenet, ("val/val_annotations.txt", "val_9.JPEG n1"), r"missing images: 1 of 1, such as .*val_9"),
        (tiny_imagenet, ("val/val_annotations.txt", "val_0.JPEG"), r"line 1 has 1 words; expected at least 2"),
        (cub200, ("CUB_200_2011/train_test_split.txt", "1 1\n"), "do not list the same images"),
        (cub200, ("CUB_200_2011/image_class_labels.txt", "1 1\n2 1\n3 7\n"), r"class 7 is not in classes\.txt"),
        (sun397, ("Training_01.txt", "/a/abbey/none.jpg\n"), "missing images: 1 of 1"),
        (eurosat, ("eurosat-train.txt", "River_7.jpg\n"), r"1 of its 1 images are not in .*2750: River_7"),
        (eurosat, ("split_zhou_EuroSAT.json", "{}"), "which are different splits"),
        (caltech101, ("split_zhou_Caltech101.json", '{"train": []}'), "has no split 'val'; it has train"),
        (caltech101, ("split_zhou_Caltech101.json", '{"train": [["a.jpg", 1]]}'), "expected a path, a number and a"),
        (caltech101, ("split_zhou_Caltech101.json", "["), "cannot be read"),
        (objectnet, ("objectnet-1.0/mappings/imagenet_to_label_2012_v2", "tench\n"), "contradict each other: 'digital"),
        (
            objectnet,
            ("objectnet-1.0/mappings/pytorch_to_imagenet_2012_id.json", '{"0": 0}'),
            "train has 3 classes",
        ),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    tmp_path: Path, make: Callable[[Path], Classes], damage: tuple[str, str], message: str
) -> None:
    make(tmp_path)
    (tmp_path / damage[0]).write_text(damage[1])
    with pytest.raises(DataError, match=message):
        open_sources(source="layout", dataset=make.__name__, root=tmp_path)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_folder_without_the_data_set_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        open_sources(source="layout", dataset=name, root=tmp_path)
    with pytest.raises(DataError, match=rf"no layout '{name}s'. Did you mean {name}"):
        open_sources(source="layout", dataset=f"{name}s", root=tmp_path)


@pytest.mark.parametrize(("train", "val", "flags"), [("fit", "held", ("fit", "held")), ("train", "val", ("1", "0"))])
@pytest.mark.parametrize("with_labels", [False, True])
def test_a_list_of_splits_divides_one_folder(
    tmp_path: Path, train: str, val: str, flags: tuple[str, str], with_labels: bool
) -> None:
    """Such as EuroSAT, RESISC45 and Caltech-101, which are distributed without splits."""
    images(tmp_path, "b/1.jpg", "b/2.jpg", "a/3.jpg")
    (tmp_path / "splits.txt").write_text(f"a/3.jpg {flags[0]}\nb/1.jpg {flags[0]}\nb/2.jpg {flags[1]}\n")
    (tmp_path / "labels.csv").write_text("b/1.jpg,7\nb/2.jpg,7\na/3.jpg,11\n")
    given = {"train_list": Path("labels.csv")} if with_labels else {}
    made = open_sources(
        source="filelist", root=tmp_path, splits=Path("splits.txt"), train_split=train, val_split=val, **given
    )
    names = ("7", "11") if with_labels else ("a", "b")
    assert {split: list(source.rows.paths) for split, source in made.items()} == {
        "train": ["b/1.jpg", "a/3.jpg"] if with_labels else ["a/3.jpg", "b/1.jpg"],
        "val": ["b/2.jpg"],
    }
    assert made["val"].rows.class_names == names
    assert made["val"].rows.labels.tolist() == [0 if with_labels else 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/3.jpg train\nb/1.jpg val\n", r"no split for 1 of 3 images, such as b/2\.jpg"),
        ("a/3.jpg x\nb/1.jpg x\nb/2.jpg y\n", r"no image of the split 'train'; its splits are x, y"),
        ("a/3.jpg\nb/1.jpg\n", "only one column"),
    ],
)
def test_a_list_of_splits_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    images(tmp_path, "b/1.jpg", "b/2.jpg", "a/3.jpg")
    (tmp_path / "splits.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_sources(source="filelist", root=tmp_path, splits=tmp_path / "splits.txt")
