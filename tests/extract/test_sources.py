"""Sources: rows in a fixed order with the right labels; a wrong folder is one clear message."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from featbench.extract.data.datasets import DigitsSource, TorchvisionSource
from featbench.extract.data.sources import open_sources
from featbench.extract.errors import DataError
from featbench.store.typing import Ints
from tests.conftest import save_image


def test_rows_and_classes_are_those_of_torchvisions_imagefolder(photographs: Path) -> None:
    sources = open_sources(source="folder", root=photographs)
    for split in ("train", "val"):
        peer = torchvision.datasets.ImageFolder(photographs / split)
        assert list(sources[split].rows.class_names) == peer.classes
        assert [str(photographs / path) for path in sources[split].rows.paths] == [path for path, _ in peer.samples]
        assert sources[split].rows.labels.tolist() == peer.targets
        assert np.array_equal(np.asarray(sources[split].open(2)), np.asarray(peer[2][0]))


def test_splits_may_have_any_names(photographs: Path) -> None:
    (photographs / "val").rename(photographs / "validation")
    with pytest.raises(
        DataError, match=r"(?s)val: no such folder .*<class>/<image>.* contains train/, validation/.*--val-split"
    ):
        open_sources(source="folder", root=photographs)
    assert len(open_sources(source="folder", root=photographs, val_split="validation")["val"].rows.labels) == 7


def test_a_folder_without_images_says_what_it_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "readme.txt").write_text("hello")
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"no images\. Expected .*<class>/<image>.*found a/, readme\.txt"):
        open_sources(source="folder", root=tmp_path)


@pytest.mark.parametrize("root", [None, "missing"])
def test_a_missing_root_is_refused(tmp_path: Path, root: str | None) -> None:
    with pytest.raises(DataError, match="--data"):
        open_sources(source="folder", root=root and tmp_path / root)


def test_an_empty_class_stops_or_warns(photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photographs / "train" / "zebra").mkdir()
    with pytest.raises(DataError, match="class folders without an image: zebra"):
        open_sources(source="folder", root=photographs)
    with caplog.at_level(logging.WARNING):
        sources = open_sources(source="folder", root=photographs, on_class_fault="warn")
    assert "zebra" in caplog.text
    assert sources["train"].rows.class_names == ("cat", "dog's", "zebra", "émeu bleu")


def test_a_class_only_in_val_stops_or_warns(photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photographs / "val" / "cat").rename(photographs / "val" / "Cat")
    with pytest.raises(DataError, match=r"classes of val without an image in train.*: Cat \(only in train: cat\)"):
        open_sources(source="folder", root=photographs)
    with caplog.at_level(logging.WARNING):
        open_sources(source="folder", root=photographs, on_class_fault="warn")
    assert "count as wrong" in caplog.text


def test_images_without_class_folders_have_no_label(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / split / "a.jpg")
    sources = open_sources(source="folder", root=tmp_path)
    assert sources["train"].rows.labels.tolist() == [-1]
    assert sources["train"].rows.class_names == ()


def test_other_files_are_ignored_and_counted(photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photographs / "train" / "cat" / "notes.txt").write_text("x")
    (photographs / "train" / ".DS_Store").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(open_sources(source="folder", root=photographs)["train"].rows.labels) == 12
    assert "left out: 1" in caplog.text


def test_digits_are_split_as_documented() -> None:
    train, val = DigitsSource("train"), DigitsSource("val")
    assert (len(train.rows.labels), len(val.rows.labels)) == (1200, 597)
    assert train.open(0).size == (8, 8)
    with pytest.raises(DataError, match="no split 'test'"):
        DigitsSource("test")


def idx(values: Ints) -> bytes:
    """The file format of MNIST."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
    return head + values.astype(np.uint8).tobytes()


def test_torchvisions_data_sets_are_read_if_their_files_exist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(5 * 28 * 28).reshape(5, 28, 28) % 256
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array([3, 1, 4, 1, 5])))
    sources = open_sources(source="torchvision", dataset="MNIST", root=tmp_path, val_split="test")
    assert sources["val"].rows.labels.tolist() == [3, 1, 4, 1, 5]
    assert sources["train"].open(1).mode == "RGB"
    assert np.array_equal(np.asarray(sources["train"].open(1))[..., 0], images[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "CIFAR10"}, "expected the files of torchvision's CIFAR10; it is empty.*download=True"),
        ({"dataset": "CIFAR11"}, "Did you mean CIFAR10"),
        ({"dataset": None}, r"data\.dataset=CIFAR10"),
        ({"dataset": "CIFAR10", "train_split": "trian"}, "splits train and test; got 'trian'"),
    ],
)
def test_a_missing_data_set_is_refused(tmp_path: Path, options: dict[str, str | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_sources(source="torchvision", root=tmp_path, **{"val_split": "test", **options})


class Gives:
    """A data set that keeps its labels in some form and gives others with each image."""

    def __init__(self, kept: list[int | None] | None, given: list[float | None]) -> None:
        self.targets, self.given = kept, given

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, row: int) -> tuple[Image.Image, float | None]:
        return Image.new("RGB", (4, 4)), self.given[row]


@pytest.mark.parametrize(
    ("kept", "given", "expected"),
    [
        (torch.arange(12).reshape(3, 4), [0, 4, 8], [0, 4, 8]),  # QMNIST keeps eight numbers for each image
        ([2, None, 0], [2, None, 0], [2, -1, 0]),  # CLEVR's test split
        (None, [1, 0, None], [1, 0, -1]),
    ],
)
def test_labels_of_torchvisions_data_sets_are_one_number_for_each_image(
    kept: list[int | None] | torch.Tensor | None, given: list[int | None], expected: list[int]
) -> None:
    assert TorchvisionSource(Gives(kept, given), "X", "train").rows.labels.tolist() == expected


@pytest.mark.parametrize("given", [[torch.zeros(40)] * 3, [{"boxes": 1}] * 3, [0.5, 1.5, 2.5], ["a", "b", "c"]])
def test_labels_of_torchvisions_data_sets_must_be_one_integer(given: list[Any]) -> None:
    with pytest.raises(DataError, match=r"torchvision's X returns .* expected one integer.*target_type"):
        TorchvisionSource(Gives(None, given), "X", "train")


def test_a_data_set_without_splits_is_refused(tmp_path: Path) -> None:
    """EuroSAT's train and val would be the same images, each its own neighbour."""
    with pytest.raises(DataError, match="EuroSAT has no splits"):
        open_sources(source="torchvision", root=tmp_path, dataset="EuroSAT", val_split="test")


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / split / "plain" / "a.jpg").parent.rename(tmp_path / split / "caf\udce9")
    rows = open_sources(source="folder", root=tmp_path)["train"]
    assert rows.rows.class_names == ("caf\ufffd",)
    assert rows.open(0).size == (40, 30)
    assert rows.rows.info().num_rows == 1


def test_files_of_a_torchvision_data_set_are_listed_with_their_sizes(tmp_path: Path) -> None:
    """So that a file that changes is noticed, and a million of them are no list of strings."""
    folder = tmp_path / "imagenette2-160"
    for split, count in (("train", 3), ("val", 2)):
        for wnid in ("n01440764", "n03888257"):
            for index in range(count):
                save_image(folder / split / wnid / f"{index}.JPEG", seed=index)
    options = {"size": "160px"}
    sources = open_sources(source="torchvision", dataset="Imagenette", root=tmp_path, options=options)
    peer = torchvision.datasets.Imagenette(tmp_path, "train", size="160px")
    rows = sources["train"].rows
    assert rows.labels.tolist() == [label for _, label in peer._samples]
    assert [str(tmp_path / path) for path in rows.paths] == [path for path, _ in peer._samples]
    assert rows.sizes.tolist() == [(tmp_path / path).stat().st_size for path in rows.paths]
    assert rows.class_names == ("tench/Tinca tinca", "parachute/chute")
    assert np.array_equal(np.asarray(sources["train"].open(4)), np.asarray(peer[4][0]))
    with pytest.raises(DataError, match=r"does not take .*'colour'.*data\.options"):
        open_sources(source="torchvision", dataset="Imagenette", root=tmp_path, options={"colour": 1})


def test_an_unknown_source_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown data\.source 'filelists'. Did you mean filelist"):
        open_sources(source="filelists", root=tmp_path)
