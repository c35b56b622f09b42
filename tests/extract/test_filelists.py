"""File lists and the labels of flat folders; what is wrong with a list is said with its name and row."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from featbench.extract.data import labels
from featbench.extract.data.sources import open_sources
from featbench.extract.errors import DataError
from tests.conftest import save_image

CLASSES = ["cat", "dog's", "émeu bleu"]


def rows_of(root: Path, split: str) -> tuple[list[str], list[int]]:
    """Paths and class numbers of a split of the photographs, in the folder's order."""
    paths = sorted((root / split).rglob("*.jpg"), key=lambda path: (str(path.parent), path.name))
    return [str(path.relative_to(root)) for path in paths], [CLASSES.index(path.parent.name) for path in paths]


def write_npy(folder: Path, split: str, paths: list[str], labels: list[int]) -> dict[str, Path]:
    np.save(folder / f"{split}.npy", np.array(paths))
    np.save(folder / f"{split}_labels.npy", np.array(labels))
    return {f"{split}_list": folder / f"{split}.npy", f"{split}_labels": folder / f"{split}_labels.npy"}


def write_bytes_npy(folder: Path, split: str, paths: list[str], labels: list[int]) -> dict[str, Path]:
    np.save(folder / f"{split}.npy", np.array([path.encode() for path in paths]))
    np.save(folder / f"{split}_labels.npy", np.array([CLASSES[label] for label in labels]))
    return {f"{split}_list": folder / f"{split}.npy", f"{split}_labels": folder / f"{split}_labels.npy"}


def write_txt(folder: Path, split: str, paths: list[str], labels: list[int]) -> dict[str, Path]:
    text = "".join(f"/{path} {label}\n" for path, label in zip(paths, labels, strict=True))
    (folder / f"{split}.txt").write_text(text)
    return {f"{split}_list": folder / f"{split}.txt"}


def write_places205(folder: Path, split: str, paths: list[str], labels: list[int]) -> dict[str, Path]:
    """Its lists end in .csv and are separated by spaces."""
    write_txt(folder, split, paths, labels).popitem()[1].rename(folder / f"{split}.csv")
    return {f"{split}_list": folder / f"{split}.csv"}


def write_csv(folder: Path, split: str, paths: list[str], labels: list[int]) -> dict[str, Path]:
    text = "".join(f'{row},"{path}",{CLASSES[labels[row]]}\n' for row, path in enumerate(paths))
    (folder / f"{split}.csv").write_text(f"row,path,class\n{text}")
    return {f"{split}_list": folder / f"{split}.csv"}


def write_two_csvs(folder: Path, split: str, paths: list[str], labels: list[int]) -> dict[str, Path]:
    (folder / f"{split}.csv").write_text("path\n" + "\n".join(paths) + "\n")
    (folder / f"{split}_labels.csv").write_text("class\n" + "\n".join(CLASSES[label] for label in labels) + "\n")
    return {f"{split}_list": folder / f"{split}.csv", f"{split}_labels": folder / f"{split}_labels.csv"}


def write_json(folder: Path, split: str, paths: list[str], labels: list[int]) -> dict[str, Path]:
    content = {
        "images": [{"id": 7 * row, "file_name": path} for row, path in enumerate(paths)],
        "annotations": [{"image_id": 7 * row, "category_id": 10 + label} for row, label in enumerate(labels)][::-1],
        "categories": [{"id": 10 + number, "name": name} for number, name in enumerate(CLASSES)],
    }
    (folder / f"{split}.json").write_text(json.dumps(content))
    return {f"{split}_list": folder / f"{split}.json"}


def lists(root: Path, folder: Path, write: Callable[..., Any]) -> dict[str, Path]:
    return {
        key: value for split in ("train", "val") for key, value in write(folder, split, *rows_of(root, split)).items()
    }


@pytest.mark.parametrize(
    "write", [write_npy, write_bytes_npy, write_txt, write_places205, write_csv, write_two_csvs, write_json]
)
def test_every_kind_of_list_gives_the_rows_of_the_folder(
    photographs: Path, tmp_path: Path, write: Callable[..., Any]
) -> None:
    listed = open_sources(source="filelist", root=photographs, **lists(photographs, tmp_path, write))
    folder = open_sources(source="folder", root=photographs)
    for split in ("train", "val"):
        ours, theirs = listed[split].rows, folder[split].rows
        assert list(ours.paths) == list(theirs.paths)
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.class_names in (("0", "1", "2"), theirs.class_names)
        assert np.array_equal(np.asarray(listed[split].open(1)), np.asarray(folder[split].open(1)))


def test_odd_names_keep_their_letters_in_a_csv(photographs: Path, tmp_path: Path) -> None:
    odd = 'a "quoted", odd\n name\u2028.jpg'
    for split in ("train", "val"):
        save_image(photographs / split / odd)
        quoted = odd.replace('"', '""')
        (tmp_path / f"{split}.csv").write_text(f'path,label\n"{split}/{quoted}",0\n', encoding="utf-8")
    given = {f"{split}_list": tmp_path / f"{split}.csv" for split in ("train", "val")}
    source = open_sources(source="filelist", root=photographs, **given)["train"]
    assert list(source.rows.paths) == [f"train/{odd}"]
    assert source.open(0).size == (40, 30)


def test_paths_may_be_absolute_and_need_no_root(photographs: Path, tmp_path: Path) -> None:
    """VISSL's lists hold absolute paths."""
    given = {}
    for split in ("train", "val"):
        paths, labels = rows_of(photographs, split)
        given |= write_npy(tmp_path, split, [str(photographs / path) for path in paths], labels)
    rooted = open_sources(source="filelist", root=photographs, **given)
    assert list(rooted["val"].rows.paths) == rows_of(photographs, "val")[0]
    assert open_sources(source="filelist", **given)["val"].open(0).size == rooted["val"].open(0).size


def test_empty_labels_are_no_label(photographs: Path, tmp_path: Path) -> None:
    given = lists(photographs, tmp_path, write_npy)
    unlabelled = open_sources(
        source="filelist", root=photographs, train_list=given["train_list"], val_list=given["val_list"]
    )
    assert set(unlabelled["train"].rows.labels.tolist()) == {-1}


def test_numbers_index_the_names_of_a_list_of_classes(photographs: Path, tmp_path: Path) -> None:
    given = lists(photographs, tmp_path, write_npy)
    (tmp_path / "classes.txt").write_text("/z/emu 2\n/c/cat 0\n/d/dog 1\n")
    rows = open_sources(source="filelist", root=photographs, classes=tmp_path / "classes.txt", **given)["val"].rows
    assert rows.class_names == ("/c/cat", "/d/dog", "/z/emu")
    assert rows.labels.tolist() == rows_of(photographs, "val")[1]


def broken(photographs: Path, folder: Path, fault: str) -> dict[str, Path]:
    """Lists with one fault each."""
    given = lists(photographs, folder, write_npy)
    paths, labels = rows_of(photographs, "train")
    classes = folder / "classes.txt"
    classes.write_text("\n".join(CLASSES))
    if fault == "lengths":
        np.save(given["train_labels"], labels[:-2])
    elif fault == "range":
        np.save(given["train_labels"], [*labels[:-1], 3])
        given["classes"] = classes
    elif fault == "from one":
        np.save(given["train_labels"], np.array(labels) + 1)
        given["classes"] = classes
    elif fault == "negative":
        np.save(given["train_labels"], [-2, *labels[1:]])
    elif fault == "unknown":
        np.save(given["train_labels"], ["catt", *(CLASSES[label] for label in labels[1:])])
        given["classes"] = classes
    elif fault == "outside":
        np.save(given["train_list"], ["train/../../secret.jpg", *paths[1:]])
    elif fault == "twice":
        np.save(given["train_list"], [paths[1], *paths[1:]])
    elif fault == "missing":
        np.save(given["train_list"], ["train/cat/nowhere.jpg", *paths[1:]])
    elif fault == "pickle":
        np.save(given["train_list"], np.array(paths, object), allow_pickle=True)
    elif fault == "floats":
        np.save(given["train_labels"], np.array(labels, float))
    elif fault == "ending":
        given["train_list"] = given["train_list"].rename(folder / "train.lst")
    elif fault == "absent":
        given["train_list"].unlink()
    elif fault == "none":
        del given["train_list"]
    elif fault == "same":
        given["train_list"] = given["val_list"]
    elif fault == "columns":
        given["train_list"] = folder / "train.csv"
        given["train_list"].write_text("train/cat/000.jpg,0\ntrain/cat/001.jpg\n")
    return given


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("lengths", r"train_labels\.npy has 10 labels, .*train\.npy has 12 paths.*same length"),
        ("range", r"train_labels\.npy: label 3 in row 11 is out of range: there are 3 classes, numbered from 0\.$"),
        ("from one", "Do they count from 1"),
        ("negative", "label -2 in row 0: must be 0 or more"),
        ("unknown", "unknown class 'catt'. Did you mean cat"),
        ("outside", r"train/\.\./\.\./secret\.jpg in row 0 leads out of the root"),
        ("twice", r"train/cat/001\.jpg is listed twice"),
        ("missing", r"missing images: 1 of 12, such as .*nowhere\.jpg"),
        ("pickle", r"not a plain \.npy.*np\.save"),
        ("floats", "expected strings or integers; got float64"),
        ("ending", r"a list must end in \.npy, \.txt, \.csv.*got '?\.lst"),
        ("absent", r"train\.npy: cannot be read: No such file"),
        ("none", r"data\.train_list=FILE"),
        ("same", "every image would be its own neighbour"),
        ("columns", r"train\.csv: line 2 is 'train/cat/001\.jpg': expected a path and a label"),
    ],
)
def test_a_list_with_a_fault_is_refused_by_name(photographs: Path, tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_sources(source="filelist", root=photographs, **broken(photographs, tmp_path, fault))


def test_an_image_in_both_lists_is_warned_of(
    photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = lists(photographs, tmp_path, write_npy)
    paths, _ = rows_of(photographs, "val")
    np.save(given["val_list"], [rows_of(photographs, "train")[0][0], *paths[1:]])
    with caplog.at_level(logging.WARNING):
        open_sources(source="filelist", root=photographs, **given)
    assert "in both train and val: 1, such as train/cat/000.jpg" in caplog.text


def test_images_that_are_not_there_may_be_left_out(photographs: Path, tmp_path: Path) -> None:
    given = broken(photographs, tmp_path, "missing")
    assert open_sources(source="filelist", root=photographs, on_error="skip", **given)["train"].rows.sizes[0] == -1
    with pytest.raises(DataError, match="missing images: 12 of 12"):
        open_sources(source="filelist", root=tmp_path, on_error="skip", **lists(photographs, tmp_path, write_npy))


# ---------------------------------------------------------------- ImageNet's val as it is distributed

WNIDS = ["n01440764", "n01443537", "n02113799"]
NUMBERS = [3, 1, 2]
"""The development kit's numbers are not in the order of the WordNet ids."""


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three classes: train in class folders, val flat, with the labels 2, 0, 1, 0 of the sorted classes."""
    root = tmp_path / "imagenet"
    for wnid in WNIDS:
        save_image(root / "train" / wnid / f"{wnid}_1.JPEG")
    for number in range(1, 5):
        save_image(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", seed=number)
    return root


def write_devkit(root: Path) -> Path:
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    synsets = np.array(
        [(number, wnid, "words") for number, wnid in sorted(zip(NUMBERS, WNIDS, strict=True))],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")],
    )
    savemat(data / "meta.mat", {"synsets": synsets})
    truth = [NUMBERS[label] for label in (2, 0, 1, 0)]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))
    return data.parent


def write_solution(root: Path) -> None:
    names = [
        f"ILSVRC2012_val_{number:08d},{WNIDS[label]} 1 2 3 4" for number, label in enumerate((2, 0, 1, 0), start=1)
    ]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(names[::-1]) + "\n")


def test_flat_val_is_labelled_by_the_development_kit(imagenet: Path) -> None:
    devkit = write_devkit(imagenet)
    rows = open_sources(source="folder", root=imagenet)["val"].rows
    assert rows.labels.tolist() == [2, 0, 1, 0]
    assert rows.class_names == tuple(WNIDS)
    with tarfile.open(imagenet.parent / "devkit.tar.gz", "w:gz") as made:
        made.add(devkit, devkit.name)
    packed = open_sources(source="folder", root=imagenet, val_labels=imagenet.parent / "devkit.tar.gz")
    assert packed["val"].rows.labels.tolist() == [2, 0, 1, 0]


def test_flat_val_may_be_an_archive_as_it_is_distributed(imagenet: Path) -> None:
    write_devkit(imagenet)
    unpacked = open_sources(source="folder", root=imagenet)["val"].rows
    with tarfile.open(imagenet / "val.tar", "w") as made:
        for path in sorted((imagenet / "val").iterdir()):
            made.add(path, path.name)
            path.unlink()
    (imagenet / "val").rmdir()
    packed = open_sources(source="folder", root=imagenet)["val"]
    assert packed.rows.info() == unpacked.info()
    assert packed.open(3).size == (40, 30)


def test_flat_val_is_labelled_by_a_list(imagenet: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_solution(imagenet)
    assert open_sources(source="folder", root=imagenet)["val"].rows.labels.tolist() == [2, 0, 1, 0]
    (imagenet / "val.txt").write_text("".join(f"ILSVRC2012_val_{n:08d}.JPEG {n % 3}\n" for n in range(1, 6)))
    with caplog.at_level(logging.WARNING):
        numbers = open_sources(source="folder", root=imagenet, val_labels="val.txt")["val"].rows
    assert numbers.labels.tolist() == [1, 2, 0, 1]
    assert "labels whose image is not there: 1" in caplog.text


def test_flat_val_without_labels_stops_or_warns(imagenet: Path) -> None:
    with pytest.raises(DataError, match=r"train has 3 class folders, val has 4 images and no class folder.*val_labels"):
        open_sources(source="folder", root=imagenet)
    unlabelled = open_sources(source="folder", root=imagenet, on_class_fault="warn")
    assert unlabelled["val"].rows.labels.tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ILSVRC2012_val_00000001.JPEG n01440764\n", r"no label for val/ILSVRC2012_val_00000002\.JPEG"),
        ("".join(f"ILSVRC2012_val_{n:08d}.JPEG n0144076\n" for n in range(1, 5)), "unknown class 'n0144076'. Did you"),
        ("".join(f"ILSVRC2012_val_{n:08d}.JPEG {n}\n" for n in range(1, 5)), "out of range: there are 3 classes"),
        ("".join(f"ILSVRC2012_val_{n:08d}.JPEG\n" for n in range(1, 5)), "expected a path and a label"),
    ],
)
def test_labels_that_do_not_fit_a_flat_val_are_refused(imagenet: Path, text: str, message: str) -> None:
    (imagenet / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_sources(source="folder", root=imagenet, val_labels="labels.txt")


def test_a_damaged_development_kit_is_refused(imagenet: Path) -> None:
    devkit = write_devkit(imagenet)
    (devkit / "data" / "meta.mat").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match=r"meta\.mat is not that of ImageNet's development kit"):
        open_sources(source="folder", root=imagenet)
    (devkit / "data" / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"data/meta\.mat cannot be read"):
        open_sources(source="folder", root=imagenet)


@pytest.mark.parametrize("truth", ["1\nx\n", "9999999\n", "\x00\n"])
def test_a_development_kit_with_other_numbers_is_refused(imagenet: Path, truth: str) -> None:
    (write_devkit(imagenet) / "data/ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    with pytest.raises(DataError, match="does not hold one of data/meta.mat's numbers"):
        open_sources(source="folder", root=imagenet)


@pytest.mark.parametrize("kind", ["large", "large archive", "cut", "changed"])
def test_a_hostile_development_kit_is_refused_without_reading_it_all(
    imagenet: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(labels, "MOST_BYTES", 2**18)
    source = devkit = write_devkit(imagenet)
    if kind.startswith("large"):
        (devkit / "data" / "a.bin").write_bytes(bytes(2**19))
        (devkit / "data" / "meta.mat").write_bytes(bytes(2**19))
    if kind != "large":
        source = imagenet.parent / "devkit.tar.gz"
        with tarfile.open(source, "w:gz") as made:
            made.add(devkit, devkit.name)
        content = source.read_bytes()
        source.write_bytes(
            {"cut": content[:-30], "changed": content[:200] + b"\xff" * 9 + content[209:]}.get(kind, content)
        )
    with pytest.raises(DataError, match=r"bytes; |cannot be read from ImageNet's development kit|is not in it; it has"):
        open_sources(source="folder", root=imagenet, val_labels=source)


def test_labels_for_class_folders_are_refused(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Remove one of the two"):
        open_sources(
            source="folder", root=photographs, val_labels=write_csv(tmp_path, "val", ["a.jpg"], [0])["val_list"]
        )


# ---------------------------------------------------------------- Hugging Face


def test_a_hugging_face_data_set_gives_the_images_of_the_folder(photographs: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `huggingface` is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    splits = {}
    for split in ("train", "val"):
        paths, labels = rows_of(photographs, split)
        images = [{"bytes": (photographs / path).read_bytes(), "path": None} for path in paths]
        splits[split] = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    ours = open_sources(source="huggingface", root=tmp_path / "saved")
    folder = open_sources(source="folder", root=photographs)
    for split in ("train", "val"):
        assert ours[split].rows.class_names == tuple(CLASSES)
        assert ours[split].rows.labels.tolist() == folder[split].rows.labels.tolist()
        assert list(ours[split].rows.sizes) == list(folder[split].rows.sizes)
        for row in range(len(ours[split].rows.labels)):
            assert np.array_equal(np.asarray(ours[split].open(row)), np.asarray(folder[split].open(row)))
    with pytest.raises(DataError, match="no split 'test'. Known: train, val"):
        open_sources(source="huggingface", root=tmp_path / "saved", val_split="test")


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'featbench\[huggingface\]'"):
        open_sources(source="huggingface", root=tmp_path)
