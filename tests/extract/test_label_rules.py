"""Which class a label means, one label for each image, and what is no image: asked or refused where it is unclear."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.extract.data.filelists import list_files, numbered
from featbench.extract.data.list_formats import read_list
from featbench.extract.data.sources import open_sources
from featbench.extract.errors import DataError
from featbench.store import SplitRows
from featbench.store.typing import Ints
from tests.conftest import save_image

JUNK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(140)


@pytest.fixture
def numeric_folders(tmp_path: Path) -> Path:
    """Class folders 0 to 11, a flat val, and which class each of its images is of."""
    root = tmp_path / "numeric"
    for name in range(12):
        save_image(root / "train" / str(name) / "a.png", seed=name)
        save_image(root / "val" / f"v{name:02d}.png", seed=name)
    return root


def names_of(rows: SplitRows) -> list[str | None]:
    return [rows.class_names[label] if label >= 0 else None for label in rows.labels.tolist()]


def test_a_label_that_is_the_name_of_a_class_is_that_class(numeric_folders: Path) -> None:
    """Folders are in alphabetical order, in which 10 comes before 2 (CSAILVision/places365#22)."""
    lines = "".join(f"v{name:02d}.png,{name}\n" for name in range(12))
    (numeric_folders / "val.csv").write_text("path,label\n" + lines)
    sources = open_sources(source="folder", root=numeric_folders, val_labels=numeric_folders / "val.csv")
    assert names_of(sources["val"].rows) == [str(name) for name in range(12)]


def test_numbers_that_may_be_names_or_indices_of_classes_are_refused(numeric_folders: Path, tmp_path: Path) -> None:
    (numeric_folders / "train" / "0").rename(numeric_folders / "train" / "12")
    lines = "".join(f"v{name:02d}.png,{name}\n" for name in range(12))
    (numeric_folders / "val.csv").write_text("path,label\n" + lines)
    with pytest.raises(DataError, match="do the labels name the classes, or index them from 0.*'0' is not"):
        open_sources(source="folder", root=numeric_folders, val_labels=numeric_folders / "val.csv")


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["10", "2"], ["0", "1", "10", "2"], ["10", "2"]),
        (np.array([10, 2, -1]), ["0", "1", "10", "2"], ["10", "2", None]),
        (["1", "2", ""], ["001", "002", "003"], ["001", "002", None]),
        (np.array([3, 1]), ["001", "002", "003"], ["003", "001"]),
        (np.array([0, 2]), ["cat", "dog", "emu"], ["cat", "emu"]),
        (["0", "1", "-1"], ["n02", "n01"], ["n02", "n01", None]),
        (["dog", "", "cat"], None, ["dog", None, "cat"]),
        (["", "3"], None, [None, "3"]),
        (["1_12", "11_2", "+112", "112"], None, ["1_12", "11_2", "+112", "112"]),
    ],
)
def test_labels_mean_these_classes(
    tmp_path: Path, labels: Ints | list[str], classes: list[str] | None, expected: list[str | None]
) -> None:
    numbers, names = numbered(labels, classes, where=tmp_path / "list")
    assert [names[number] if number >= 0 else None for number in numbers.tolist()] == expected


def test_an_image_with_two_labels_is_refused_by_name(photographs: Path, tmp_path: Path) -> None:
    shutil.move(photographs / "val" / "cat", tmp_path / "flat")
    shutil.rmtree(photographs / "val")
    shutil.move(tmp_path / "flat", photographs / "val")
    labels = tmp_path / "val.csv"
    rows = "path,label\n000.jpg,cat\n001.jpg,cat\n002.jpg,dog's\n"
    labels.write_text(rows + "001.jpg,cat\n")
    sources = open_sources(source="folder", root=photographs, val_labels=labels)
    assert names_of(sources["val"].rows) == ["cat", "cat", "dog's"], "the same label twice is one label"
    labels.write_text(rows + "001.jpg,dog's\n")
    with pytest.raises(DataError, match=r"001\.jpg has several labels: 'cat' and \"dog's\""):
        open_sources(source="folder", root=photographs, val_labels=labels)


def coco(
    path: Path,
    annotations: list[tuple[int, int | None]],
    *,
    categories: tuple[tuple[int, str], ...] = ((1, "person"), (2, "dog")),
) -> Path:
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(3)],
        "annotations": [{"image_id": image, "category_id": category} for image, category in annotations],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    path.write_text(json.dumps(content))
    return path


def test_a_coco_image_of_two_categories_is_refused_and_one_without_has_no_label(tmp_path: Path) -> None:
    where = tmp_path / "coco.json"
    assert read_list(coco(where, [(0, 1), (0, 1), (2, 2)])).labels == ["person", "", "dog"]
    assert read_list(coco(where, [(0, 1), (1, None)], categories=())).labels == ["1", "", ""]
    with pytest.raises(DataError, match=r"1\.png has several labels: 'person' and 'dog'"):
        read_list(coco(where, [(0, 1), (1, 1), (1, 2)]))
    with pytest.raises(DataError, match="category 3 is none of its categories: 1, 2"):
        read_list(coco(where, [(0, 3)]))


def test_a_list_with_an_ambiguous_column_of_labels_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b.png")
    where = tmp_path / "list.csv"
    where.write_text("path,species\na.png,cat\nb.png,dog\n")
    with pytest.raises(DataError, match=r"no column of labels is recognized; it has path, species\..*column=none"):
        list_files(where, root=tmp_path)
    assert list_files(where, root=tmp_path, label_column="species").class_names == ("cat", "dog")
    assert list_files(where, root=tmp_path, label_column="none").labels.tolist() == [-1, -1]
    with pytest.raises(DataError, match="no column 'specie'. Did you mean species"):
        list_files(where, root=tmp_path, label_column="specie")
    where.write_text("path,label,class\na.png,1,cat\nb.png,2,dog\n")
    with pytest.raises(DataError, match="which column holds the labels: label or class"):
        list_files(where, root=tmp_path)
    where.write_text("img,label\na.png,cat\nb.png,dog\n")
    assert list(list_files(where, root=tmp_path).paths) == ["a.png", "b.png"]
    where.write_text("ImageId,PredictionString\na.png,n01 1 2 3 4 n01 5 6 7 8\nb.png,\n")
    assert read_list(where).labels == ["n01", ""]
    where.write_text("ImageId,PredictionString\na.png,n01 1 2 3 4 n02 5 6 7 8\n")
    with pytest.raises(DataError, match=r"a\.png has several labels: n01, n02"):
        read_list(where)


def hugging_face(folder: Path, **columns: tuple[list[Any], Callable[..., Any]]) -> Path:
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (8, 6), (200, 10, 10)).save(buffer, "PNG")
    features = {"image": datasets.Image()}
    rows: dict[str, list[Any]] = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 3}
    for name, (values, kind) in columns.items():
        rows[name] = values
        features[name] = kind(datasets)
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict({"train": data, "val": data}).save_to_disk(str(folder))
    return folder


def test_ambiguous_hugging_face_columns_of_labels_are_refused(tmp_path: Path) -> None:
    colour = ([0, 1, 0], lambda datasets: datasets.ClassLabel(names=["red", "blue"]))
    label = ([2, None, 5], lambda datasets: datasets.Value("int64"))
    both = hugging_face(tmp_path / "both", colour=colour, label=label)
    with pytest.raises(DataError, match="which column holds the labels: colour or label"):
        open_sources(source="huggingface", root=both)
    assert names_of(open_sources(source="huggingface", root=both, label_column="colour")["val"].rows) == [
        "red", "blue", "red",
    ]  # fmt: skip
    rows = open_sources(source="huggingface", root=both, label_column="label")["train"].rows
    assert (names_of(rows), rows.class_names) == (["2", None, "5"], ("2", "5"))
    other = hugging_face(tmp_path / "other", species=label)
    with pytest.raises(DataError, match=r"no column of labels is recognized; it has image, species\."):
        open_sources(source="huggingface", root=other)
    assert open_sources(source="huggingface", root=other, label_column="none")["val"].rows.labels.tolist() == [-1] * 3
    some = hugging_face(tmp_path / "some", label=([0, None, 1], lambda d: d.ClassLabel(names=["red", "blue"])))
    assert names_of(open_sources(source="huggingface", root=some)["val"].rows) == ["red", None, "blue"]
    lists = hugging_face(tmp_path / "lists", label=([[0], [1], []], lambda d: d.Sequence(d.Value("int64"))))
    with pytest.raises(DataError, match="the column 'label' holds list"):
        open_sources(source="huggingface", root=lists)


LEAVINGS = (
    "train/cat/._000.jpg", "train/cat/.ipynb_checkpoints/000-checkpoint.jpg", "train/cat/@eaDir/000.jpg/SYNOPHOTO.jpg",
    "train/cat/Thumbs.db", "train/.DS_Store", "__MACOSX/train/cat/._000.jpg", "train/__MACOSX/cat/000.jpg",
    "train/.hidden/x.jpg", "train/cat/deep/.git/x.png", "train/lost+found/x.jpg", "train/$RECYCLE.BIN/S-1/$R1.jpg",
    "train/System Volume Information/x.jpg", "train/#recycle/cat/000.jpg",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "nested zip"])
def test_system_files_are_never_images(
    photographs: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = open_sources(source="folder", root=photographs)
    for name in LEAVINGS:
        path = photographs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JUNK)
    root, files = photographs, sorted(path for path in photographs.rglob("*") if path.is_file())
    if kind == "tar":
        root = tmp_path / "all.tar"
        with tarfile.open(root, "w") as made:
            for path in files:
                made.add(path, f"./{path.relative_to(photographs)}")
    elif kind != "folder":
        root = tmp_path / "all.zip"
        inside = "photos/" if kind.startswith("nested") else ""
        with zipfile.ZipFile(root, "w") as made:
            for path in files:
                name = str(path.relative_to(photographs))
                made.write(path, name if name.startswith("__MACOSX") else inside + name)
    found = open_sources(source="folder", root=root)
    assert "left out" in caplog.text
    for split in ("train", "val"):
        assert found[split].rows.info() == wanted[split].rows.info()


def test_system_files_are_no_samples_of_a_shard(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.jpg").read_bytes()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as made:
            for name, content in (("0.jpg", image), ("0.cls", b"3"), ("._0.jpg", JUNK), ("__MACOSX/._0.jpg", JUNK)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    rows = open_sources(source="webdataset", root=tmp_path)["train"].rows
    assert (list(rows.paths), rows.class_names) == (["train.tar/0.jpg"], ("3",))
