"""Make data sets laid out like ImageNet-1k and Places205, of any number of small images, to try pipelines on.

    python -m benchmarks.synthetic in1k FOLDER --train 2 --val 1            class folders for train and val
    python -m benchmarks.synthetic in1k FOLDER --flat                       val as distributed, with a devkit
    python -m benchmarks.synthetic places205 FOLDER                         file lists

Each class has its own colors, so that its images are more alike than others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from featbench.store.typing import Ints


def make_in1k(
    root: Path, *, num_classes: int = 1000, train: int = 1, val: int = 1, flat: bool = False, size: int = 32
) -> None:
    """Write train/<wnid>/ and val/<wnid>/, or val/ flat with the development kit's labels."""
    wnids = [f"n{1_440_764 + 1_117 * number:08d}" for number in range(num_classes)]
    for label, wnid in enumerate(wnids):
        for index in range(train):
            write(root / "train" / wnid / f"{wnid}_{index}.JPEG", label, index, size)
        for index in range(0 if flat else val):
            write(
                root / "val" / wnid / f"ILSVRC2012_val_{label * val + index + 1:08d}.JPEG", label, train + index, size
            )
    if flat:
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(num_classes), val))
        for row, label in enumerate(labels.tolist()):
            write(root / "val" / f"ILSVRC2012_val_{row + 1:08d}.JPEG", label, train + row, size)
        write_devkit(root / "ILSVRC2012_devkit_t12" / "data", wnids, labels)


def write_devkit(folder: Path, wnids: Sequence[str], labels: Ints) -> None:
    """Write ImageNet's ground truth and synsets, whose numbers do not follow the order of WordNet ids."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(1).permutation(len(wnids)) + 1
    synsets = np.array(
        sorted((int(number), wnid) for number, wnid in zip(numbers, wnids, strict=True)),
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")],
    )
    savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[label]}\n" for label in labels))


def make_places205(root: Path, *, num_classes: int = 205, train: int = 5, val: int = 1, size: int = 32) -> None:
    """Write images in folders of letters, and lists of a path and a label, separated by a space."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for label in range(num_classes):
        folder = f"{'abcdefghij'[label % 10]}/scene_{label}"
        for split, first, count in (("train", 0, train), ("val", train, val)):
            for index in range(first, first + count):
                write(root / folder / f"gsun_{index}.jpg", label, index, size)
                lists[split].append(f"{folder}/gsun_{index}.jpg {label}\n")
    for split, lines in lists.items():
        (root / f"{split}_places205.csv").write_text("".join(lines))


def write(path: Path, label: int, index: int, size: int) -> None:
    """Write an image of the class's colors with some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.random.default_rng(label).integers(30, 226, (3, 3, 3))
    noisy = colors + np.random.default_rng([label, index]).integers(-30, 31, colors.shape)
    image = Image.fromarray(noisy.astype(np.uint8)).resize((size + index % 5, size), Image.Resampling.BICUBIC)
    image.save(path, "JPEG")


def main() -> None:
    """Read the command line and write one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=("in1k", "places205"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, help="1,000 or 205 by default")
    parser.add_argument("--train", type=int, default=1, help="images of each class")
    parser.add_argument("--val", type=int, default=1, help="images of each class")
    parser.add_argument("--flat", action="store_true", help="in1k: val without class folders")
    options = parser.parse_args()
    if options.layout == "in1k":
        classes = options.classes or 1000
        make_in1k(options.folder, num_classes=classes, train=options.train, val=options.val, flat=options.flat)
    else:
        make_places205(options.folder, num_classes=options.classes or 205, train=options.train, val=options.val)


if __name__ == "__main__":
    main()
