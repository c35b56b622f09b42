"""Real photographs as folders, file lists, archives and shards give the same features, bit for bit."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from featbench.store import FeatureSet
from tests.conftest import Bench

LAYERS = ("features.5", "features.12")


def write_lists(root: Path, images: dict[str, list[tuple[Path, int]]], folder: Path) -> list[str]:
    """VISSL's disk_filelist: paths and labels in two .npy."""
    for split, rows in images.items():
        np.save(folder / f"{split}.npy", np.array([str(path.relative_to(root)) for path, _ in rows]))
        np.save(folder / f"{split}_labels.npy", np.array([label for _, label in rows]))
    return [
        "data.source=filelist",
        *(f"data.{split}_list={folder / split}.npy" for split in ("train", "val")),
        *(f"data.{split}_labels={folder / split}_labels.npy" for split in ("train", "val")),
        f"data.root={root}",
    ]


def write_tar(root: Path, images: dict[str, list[tuple[Path, int]]], folder: Path) -> list[str]:
    """The folder tree, in an order of its own."""
    with tarfile.open(folder / "photographs.tar", "w") as archive:
        for rows in images.values():
            for path, _ in reversed(rows):
                archive.add(path, f"photographs/{path.relative_to(root)}")
    return [f"data.root={folder / 'photographs.tar'}", "data.val_split=test"]


def write_shards(root: Path, images: dict[str, list[tuple[Path, int]]], folder: Path) -> list[str]:
    """WebDataset shards of 100 samples."""
    for split, rows in images.items():
        for number, first in enumerate(range(0, len(rows), 100)):
            with tarfile.open(folder / f"{split}-{number:04d}.tar", "w") as archive:
                for index, (path, label) in enumerate(rows[first : first + 100]):
                    archive.add(path, f"{index:06d}{path.suffix}")
                    info = tarfile.TarInfo(f"{index:06d}.cls")
                    info.size = len(str(label))
                    archive.addfile(info, io.BytesIO(str(label).encode()))
    return ["data.source=webdataset", f"data.root={folder}"]


LAYOUTS = {
    "folder": lambda root, images, folder: [f"data.root={root}", "data.val_split=test"],
    "list": write_lists,
    "tar": write_tar,
    "shards": write_shards,
}


def compare_layouts(bench: Bench, shared: Path, root: Path, tmp_path: Path, *options: str) -> None:
    images = {}
    for split, name in (("train", "train"), ("val", "test")):
        paths = sorted((root / name).rglob("*.jpg"), key=lambda path: (path.parent.name, path.name))
        classes = sorted({path.parent.name for path in paths})
        images[split] = [(path, classes.index(path.parent.name)) for path in paths]
    made = {}
    for layout, write in LAYOUTS.items():
        (tmp_path / layout).mkdir()
        data = write(root, images, tmp_path / layout)
        result = bench(
            "extract", "folder", *data, "--name", layout, "--layers", ",".join(LAYERS), "--quiet",
            "--weights", shared / "data/weights/squeezenet1_0-imagenet.pth", "model.trunk=squeezenet1_0",
            "transform.mean=[123/255,117/255,104/255]", "transform.std=[1/255,1/255,1/255]", *options,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        made[layout] = FeatureSet.open(tmp_path / "features" / layout)
    for layout in ("list", "tar", "shards"):
        for split in ("train", "val"):
            assert np.array_equal(made[layout].labels(split), made["folder"].labels(split))
            for layer in LAYERS:
                theirs = made["folder"].layer(split, layer).read()
                assert len(theirs) == len(images[split])
                assert made[layout].layer(split, layer).read().tobytes() == theirs.tobytes(), f"{layout}, {layer}"
    assert made["tar"].manifest.fingerprint == made["folder"].manifest.fingerprint


def test_a_sample_of_photographs_has_the_same_features_in_every_layout(
    bench: Bench, shared: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for folder in (shared / "data/clothing" / split).iterdir():
            for path in sorted(folder.iterdir())[:1]:
                target = tmp_path / "data" / split / folder.name / path.name
                target.parent.mkdir(parents=True)
                shutil.copy(path, target)
    compare_layouts(bench, shared, tmp_path / "data", tmp_path, "transform.crop=96", "--workers", "0")


@pytest.mark.slow
def test_all_photographs_have_the_same_features_in_every_layout(bench: Bench, shared: Path, tmp_path: Path) -> None:
    compare_layouts(bench, shared, shared / "data/clothing", tmp_path)
