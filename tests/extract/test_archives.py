"""Archives and shards: the images of the folder, without unpacking; damaged ones are refused by name."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from featbench.extract.data.archives import members
from featbench.extract.data.image_sources import ListedSource
from featbench.extract.data.sources import open_sources
from featbench.extract.errors import ChangedError, DataError


def packed(folder: Path, archive: Path, *, inside: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    """Pack a folder in an order of its own: the reverse."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", compression) as made:
            for path in files:
                made.write(path, inside + str(path.relative_to(folder)))
    else:
        with tarfile.open(archive, "w") as made:
            for path in files:
                made.add(path, inside + str(path.relative_to(folder)))
    return archive


def shard(folder: Path, split: str, *, label: Callable[..., Any]) -> None:
    """Write a split as a WebDataset of two shards, in the folder's order."""
    classes = sorted(path.name for path in (folder / split).iterdir())
    images = sorted((folder / split).rglob("*.jpg"), key=lambda path: (str(path.parent), path.name))
    for number, part in enumerate((images[: len(images) // 2], images[len(images) // 2 :])):
        with tarfile.open(folder / f"{split}-{number:03d}.tar", "w") as made:
            for index, path in enumerate(part):
                made.add(path, f"{number}{index:05d}.jpg")
                ending, text = label(path.parent.name, classes.index(path.parent.name))
                info = tarfile.TarInfo(f"{number}{index:05d}.{ending}")
                info.size = len(text.encode())
                made.addfile(info, io.BytesIO(text.encode()))


def same_images(ours: dict[str, ListedSource], theirs: dict[str, ListedSource]) -> None:
    for split in ("train", "val"):
        assert ours[split].rows.labels.tolist() == theirs[split].rows.labels.tolist()
        for row in range(len(theirs[split].rows.labels)):
            assert np.array_equal(np.asarray(ours[split].open(row)), np.asarray(theirs[split].open(row)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("all.tar", {}),
        ("all.tar", {"inside": "./photos/"}),
        ("all.zip", {"compression": zipfile.ZIP_DEFLATED}),
        ("all.zip", {}),
    ],
)
def test_an_archive_of_the_folder_is_the_folder(
    photographs: Path, tmp_path: Path, name: str, options: dict[str, int | str]
) -> None:
    folder = open_sources(source="folder", root=photographs)
    archive = open_sources(source="folder", root=packed(photographs, tmp_path / name, **options))
    same_images(archive, folder)
    for split in ("train", "val"):
        assert archive[split].rows.info() == folder[split].rows.info()


@pytest.mark.parametrize("inside", ["", "val/"])
def test_each_split_may_be_an_archive(photographs: Path, inside: str) -> None:
    folder = open_sources(source="folder", root=photographs)
    root = Path(shutil.copytree(photographs, photographs.parent / "mixed"))
    packed(root / "val", root / "val.tar", inside=inside)
    shutil.rmtree(root / "val")
    mixed = open_sources(source="folder", root=root)
    same_images(mixed, folder)
    assert mixed["val"].rows.info() == folder["val"].rows.info()


def test_a_zip_with_sizes_after_the_files_is_read(photographs: Path, tmp_path: Path) -> None:
    """As `zip` writes to a pipe."""

    class Pipe(io.RawIOBase):
        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            return self.file.write(data)

    with (tmp_path / "all.zip").open("wb") as file, zipfile.ZipFile(Pipe(file), "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(photographs.rglob("*.jpg")):
            made.write(path, path.relative_to(photographs))
    same_images(
        open_sources(source="folder", root=tmp_path / "all.zip"), open_sources(source="folder", root=photographs)
    )


def test_an_archive_that_changed_after_it_was_listed_is_an_error_by_name(photographs: Path, tmp_path: Path) -> None:
    archive = packed(photographs, tmp_path / "all.tar")
    source = open_sources(source="folder", root=archive)["val"]
    os.utime(archive, (1, 1))
    with pytest.raises(ChangedError, match=r"all\.tar: it was listed"):
        source.open(0)


def test_archives_that_cannot_be_read_in_place_are_refused(photographs: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w:gz") as made:
        made.add(photographs, "photos")
    with pytest.raises(DataError, match="compressed with gzip.*Decompress it"):
        open_sources(source="folder", root=tmp_path / "all.tar")
    whole = packed(photographs, tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.tar: (the end of the tar is missing|damaged)"):
        open_sources(source="folder", root=tmp_path / "cut.tar")
    (tmp_path / "text.tar").write_text("no archive" * 100)
    with pytest.raises(DataError, match=r"text\.tar: damaged or incomplete tar archive, or none"):
        open_sources(source="folder", root=tmp_path / "text.tar")
    (photographs / "train" / "cat" / "link.jpg").symlink_to("000.jpg")
    with pytest.raises(DataError, match=r"link\.jpg is a link.*--dereference"):
        open_sources(source="folder", root=packed(photographs, tmp_path / "links.tar"))


@pytest.mark.parametrize("name", ["../outside.jpg", "/outside.jpg", "a/../../b.jpg"])
def test_a_path_that_leads_out_of_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        made.writestr(name, b"x")
    with pytest.raises(DataError, match="leads out of the archive"):
        list(members(tmp_path / "bad.zip"))


def test_a_wrong_layout_within_an_archive_shows_what_was_expected_and_found(photographs: Path, tmp_path: Path) -> None:
    (photographs / "val").rename(photographs / "validation")
    archive = packed(photographs, tmp_path / "all.tar")
    with pytest.raises(DataError, match=r"(?s)all\.tar/val: no such folder in this archive.*<class>.*validation/"):
        open_sources(source="folder", root=archive)


LABELS = {
    "numbers": lambda name, number: ("cls", str(number)),
    "names": lambda name, number: ("cls", name),
    "json": lambda name, number: ("json", json.dumps({"label": number, "text": name})),
}


@pytest.mark.parametrize("label", LABELS)
def test_shards_give_the_images_and_labels_of_the_folder(photographs: Path, label: str) -> None:
    for split in ("train", "val"):
        shard(photographs, split, label=LABELS[label])
    folder = open_sources(source="folder", root=photographs)
    shards = open_sources(source="webdataset", root=photographs)
    same_images(shards, folder)
    assert shards["train"].rows.class_names == (
        ("0", "1", "2") if label != "names" else folder["train"].rows.class_names
    )
    braces = open_sources(
        source="webdataset", root=photographs, train_split="train-{000..001}.tar", val_split="val-00[01].tar"
    )
    assert braces["train"].rows.info() == shards["train"].rows.info()


def test_numbers_in_shards_index_the_classes_of_a_list(photographs: Path) -> None:
    for split in ("train", "val"):
        shard(photographs, split, label=LABELS["numbers"])
    (photographs / "classes.txt").write_text("cat\ndog\nemu\n")
    rows = open_sources(source="webdataset", root=photographs, classes="classes.txt")["train"].rows
    assert rows.class_names == ("cat", "dog", "emu")
    (photographs / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match="label 2 in row 9 is out of range: there are 2 classes"):
        open_sources(source="webdataset", root=photographs, classes="classes.txt")


def test_shards_that_are_missing_or_mixed_up_are_refused(photographs: Path) -> None:
    shard(photographs, "train", label=LABELS["numbers"])
    with pytest.raises(DataError, match=r"no shards val\*\.tar.*contains train"):
        open_sources(source="webdataset", root=photographs)
    with pytest.raises(DataError, match=r"no shards train-002\.tar"):
        open_sources(source="webdataset", root=photographs, train_split="train-{000..002}.tar")
    with tarfile.open(photographs / "train-002.tar", "w") as made:
        made.add(photographs / "val" / "cat" / "000.jpg", "one.left.jpg")
        made.add(photographs / "val" / "cat" / "001.jpg", "one.right.jpg")
    with pytest.raises(DataError, match=r"train-002\.tar: sample 'one' has 2 images"):
        open_sources(source="webdataset", root=photographs)
