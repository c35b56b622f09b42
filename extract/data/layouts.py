"""Public data sets as they are distributed, where neither class folders nor one list gives images and labels.

Each layout lists one split: paths relative to the root, and the class of each. Data sets that have class folders for
both splits, or a list with labels, need no layout: see `folder` and `filelist`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from featbench.extract.data.filelists import numbered
from featbench.extract.data.folders import DiskTree
from featbench.extract.data.list_formats import read_list
from featbench.extract.data.listing import Listing
from featbench.extract.data.looked_up import look_up
from featbench.extract.data.multi_label import listing_of
from featbench.extract.data.published_splits import by_lists, objectnet
from featbench.extract.data.several_formats import SeveralLabels, read_several
from featbench.extract.data.split import Read, Split, class_folders, columns_of, folder_with, lines_of
from featbench.extract.errors import DataError
from featbench.store import abbreviate, suggest


def tiny_imagenet(root: Path, split: str) -> Split:
    """Tiny ImageNet: train/<class>/images/, and val/images/ with val_annotations.txt."""
    if split != "val":
        return class_folders(root, [split])
    file = root / "val" / "val_annotations.txt"
    if not file.is_file():
        return class_folders(root, [split])  # as some rearrange it
    classes = columns_of(file, 2)
    return Split(paths=[f"val/images/{name}" for name in classes], labels=list(classes.values()), files=(file,))


def cub200(root: Path, split: str) -> Split:
    """CUB-200-2011: images/, with a list each of paths, of splits and of classes, by the number of the image."""
    names = ("images.txt", "train_test_split.txt", "image_class_labels.txt", "classes.txt")
    folder = folder_with(root, names)
    files = tuple(folder / name for name in names)
    paths, in_train, numbers, classes = (columns_of(file, 2) for file in files)
    if not paths.keys() == in_train.keys() == numbers.keys():
        raise DataError(f"{folder}: {', '.join(names[:3])} do not list the same images")
    flag = {"train": "1", "test": "0", "val": "0"}.get(split)
    if flag is None:
        raise DataError(f"{folder}: CUB-200 has the splits train and test; got {split!r}")
    unknown = next((number for number in numbers.values() if number not in classes), None)
    if unknown is not None:
        raise DataError(f"{files[2]}: class {unknown} is not in classes.txt")
    inner = folder.relative_to(root).as_posix()
    prefix = "images/" if inner == "." else f"{inner}/images/"
    chosen = [each for each in paths if in_train[each] == flag]
    return Split(
        paths=[prefix + paths[each] for each in chosen],
        labels=[classes[numbers[each]] for each in chosen],
        files=files,
        classes=tuple(classes.values()),
    )


def sun397(root: Path, split: str) -> Split:
    """SUN397: <letter>/<class>/ and the first of its ten partitions, Training_01.txt and Testing_01.txt."""
    name = {"train": "Training_01.txt", "test": "Testing_01.txt", "val": "Testing_01.txt"}.get(split, split)
    file = next((path for path in (root / name, root / "Partitions" / name) if path.is_file()), None)
    if file is None:
        raise DataError(f"{root}: expected {name} there or in Partitions/, from SUN397's Partitions.zip")
    paths = [words[0].lstrip("/") for words in lines_of(file)]
    top = "SUN397/" if (root / "SUN397").is_dir() else ""
    # /a/apartment_building/outdoor/sun_x.jpg: the class is all between the letter and the name.
    return Split(
        paths=[top + path for path in paths],
        labels=["/".join(path.split("/")[1:-1]) for path in paths],
        files=(file,),
    )


def imagenet_v2(root: Path, split: str) -> Split:
    """ImageNet-V2: folders 0 to 999, which number ImageNet's classes in the order of their ids; train is ImageNet's."""
    if split == "train":
        return class_folders(root, [split])
    classes = sorted(DiskTree(root).children("train")[0])
    found = class_folders(root, [split])
    wrong = next((name for name in found.labels if not name.isdecimal() or int(name) >= len(classes)), None)
    if wrong is not None:
        raise DataError(f"{root / split}: the folder {wrong} numbers none of the {len(classes)} classes of train")
    rows = sorted(zip([int(name) for name in found.labels], found.paths, strict=True))
    return Split(paths=[path for _, path in rows], labels=[classes[number] for number, _ in rows])


def imagenet100(root: Path, split: str) -> Split:
    """ImageNet-100 as Kaggle has it: train.X1 to train.X4, and val.X."""
    tops = sorted(path.name for path in root.glob(f"{split}.X*") if path.is_dir())
    if not tops:
        raise DataError(f"{root}: expected folders {split}.X*, as Kaggle distributes ImageNet-100")
    return class_folders(root, tops)


def voc(root: Path, split: str, *, year: int) -> Split:
    """PASCAL VOC: for each class a list in ImageSets/Main of 1, -1 or, if it is difficult and so not known, 0."""
    inner = [root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root]
    folder = next((path for path in inner if (path / "ImageSets").is_dir()), root)
    lists = sorted((folder / "ImageSets" / "Main").glob(f"*_{split}.txt"))
    if not lists:
        raise DataError(f"{root}: expected VOCdevkit/VOC{year}/ImageSets/Main/<class>_{split}.txt there")
    flags = [columns_of(file, 2) for file in lists]
    if any(each.keys() != flags[0].keys() for each in flags):
        raise DataError(f"{folder}/ImageSets/Main: the lists *_{split}.txt do not have the same images")
    known = {"1": 1, "-1": 0, "0": -1}
    for file, each in zip(lists, flags, strict=True):
        if odd := set(each.values()) - known.keys():
            raise DataError(f"{file}: expected 1, -1 or 0 for each image; got {min(odd)!r}")
    matrix = np.array([[known[flag] for flag in each.values()] for each in flags], np.int8).T
    top = f"{folder.relative_to(root).as_posix()}/".removeprefix("./")
    paths = [f"{top}JPEGImages/{name}.jpg" for name in flags[0]]
    names = tuple(file.name.removesuffix(f"_{split}.txt") for file in lists)
    return Split(
        paths=paths, labels=(), files=tuple(lists),
        several=SeveralLabels(paths=paths, matrix_NC=np.ascontiguousarray(matrix), class_names=names),
    )  # fmt: skip


def coco(root: Path, split: str, *, year: int) -> Split:
    """COCO: annotations/instances_<split><year>.json, and images in <split><year>/; classes are the categories."""
    file = root / "annotations" / f"instances_{split}{year}.json"
    if not file.is_file():
        raise DataError(f"{file}: no such file, which lists COCO's images and their objects")
    found = read_several(file)
    paths = [f"{split}{year}/{path}" for path in found.paths]
    return Split(paths=paths, labels=(), files=(file,), several=found)


LAYOUTS: Mapping[str, Read] = {
    "voc2007": partial(voc, year=2007),
    "voc2012": partial(voc, year=2012),
    "coco2014": partial(coco, year=2014),
    "coco2017": partial(coco, year=2017),
    "tiny_imagenet": tiny_imagenet,
    "cub200": cub200,
    "sun397": sun397,
    "imagenet_v2": imagenet_v2,
    "imagenet100": imagenet100,
    "objectnet": objectnet,
    "eurosat": partial(by_lists, stem="eurosat", tops=("2750", "EuroSAT_RGB", "EuroSAT"), coop="EuroSAT"),
    "resisc45": partial(by_lists, stem="resisc45", tops=("NWPU-RESISC45",)),
    "ucmerced": partial(by_lists, stem="uc_merced", tops=("UCMerced_LandUse/Images", "Images")),
    "caltech101": partial(by_lists, stem="caltech101", tops=("101_ObjectCategories",), coop="Caltech101"),
}
"""By the values of `data.dataset`."""


def list_layout(name: str | None, root: Path, split: str) -> Listing:
    """List one split of a data set by its layout.

    Raises
    ------
    DataError
        If the layout is unknown, its files are missing, or they contradict each other.
    """
    if name is None or name not in LAYOUTS:
        raise DataError(f"data.source=layout: no layout {name!r}. {suggest(str(name), LAYOUTS)}")
    return _listing(LAYOUTS[name](root, split), root, where=f"{root}: {name}, {split}")


def list_by_splits(
    splits: Path, root: Path, split: str, *, images: Path | None, other: str, classes: tuple[str, ...] | None = None
) -> Listing:
    """List one split of images in one folder, by a list that says which split each belongs to.

    Parameters
    ----------
    splits : Path
        A list of a path and a split in each line: the splits' names, or 1 for train and 0 for the other.
    root : Path
        Folder that paths are relative to.
    split : str
        The split to list.
    images : Path, optional
        A list of paths and labels; by default the folders of the root are the classes.
    other : str
        The name of the other split.
    classes : tuple of str, optional
        Names of the classes, which numeric labels index from 0.

    Raises
    ------
    DataError
        If an image has no split or no label, or a split is neither of the two.
    """
    said = read_list(splits)
    if said.labels is None:
        raise DataError(f"{splits}: expected a path and a split in each line; there is only one column")
    split_of = dict(zip(map(str, said.paths), map(str, said.labels), strict=True))
    if images is None:
        found = class_folders(root, [""])
        paths, labels = list(found.paths), list(found.labels)
    else:
        listed = read_list(images)
        if listed.labels is None:
            raise DataError(f"{images}: expected a path and a label in each line; there is only one column")
        paths, labels = [str(path) for path in listed.paths], [str(label) for label in listed.labels]
    without = [path for path in paths if path not in split_of]
    if without:
        raise DataError(f"{splits}: no split for {len(without):,} of {len(paths):,} images, such as {without[0]}")
    if set(split_of.values()) <= {"0", "1"}:
        flag = "1" if split == "train" else "0"
    else:
        flag = split
    if flag not in split_of.values():
        raise DataError(
            f"{splits}: no image of the split {split!r}; its splits are {abbreviate(sorted(set(split_of.values())))}. "
            f"Name them with --train-split and --val-split (the other is {other!r})"
        )
    chosen = [row for row, path in enumerate(paths) if split_of[path] == flag]
    files = (splits, images) if images is not None else (splits,)
    # Labels that are numbers count classes of both splits alike.
    names = classes or tuple(sorted(set(labels), key=lambda label: label.zfill(20) if label.isdecimal() else label))
    part = Split(
        paths=[paths[row] for row in chosen], labels=[labels[row] for row in chosen], files=files, classes=names
    )
    return _listing(part, root, where=str(splits))


def _listing(split: Split, root: Path, *, where: str) -> Listing:
    if split.several is not None:
        return listing_of(split.paths, split.several, root, where=where, files=split.files)
    names = split.classes or tuple(sorted(set(split.labels)))
    labels, names = numbered(list(split.labels), names, where=Path(where))
    return look_up(
        split.paths, root, where=where, labels=labels, class_names=names, files=split.files,
        cure="Unpack the data set again, or give its folder with --data",
    )  # fmt: skip
