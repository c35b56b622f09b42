"""Other images under the same names and sizes are never mixed with the features of the old ones."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featbench.extract.data import listing_cache, same_images
from featbench.store import FeatureSet, journal, verify
from featbench.store.metadata import save
from featbench.store.verification import repair
from tests.conftest import Bench, save_image

SMALL = [
    "--random-weights", "0", "model.trunk=squeezenet1_0", "transform.resize=32", "transform.crop=32",
    "extract.workers=0", "extract.batch_size=4", "storage.rows_per_chunk=4", "--quiet",
]  # fmt: skip


@pytest.fixture
def bitmaps(tmp_path: Path) -> Path:
    """Twelve images of train and six of val, all of one size in bytes."""
    root = tmp_path / "bitmaps"
    for split, count in (("train", 12), ("val", 6)):
        for index in range(count):
            save_image(root / split / f"class {index % 2}" / f"{index}.bmp", seed=index)
    return root


def extracted(bench: Bench, root: Path, *words: str, layers: str = "features.3", expected: int = 0) -> str:
    result = bench("extract", "folder", "--data", root, "--name", "mine", "--layers", layers, *SMALL, *words)
    assert result.returncode == expected, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def replace_contents(path: Path, seed: int = 99) -> None:
    """Another image of the same size in bytes, with the same times."""
    before = path.stat()
    save_image(path, seed=seed)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_digests_are_those_of_the_files(bench: Bench, bitmaps: Path, tmp_path: Path) -> None:
    extracted(bench, bitmaps)
    features = FeatureSet.open(tmp_path / "features/mine")
    for split in ("train", "val"):
        expected = [
            int.from_bytes(hashlib.blake2b((bitmaps / path).read_bytes(), digest_size=8).digest(), "little")
            for path in features.paths(split)
        ]
        assert features.written_digests(split).tolist() == expected
    assert not list(verify(features.path))


@pytest.mark.parametrize("keeps_times", [True, False])
def test_a_further_layer_of_other_images_is_refused_by_name(
    bench: Bench, bitmaps: Path, tmp_path: Path, keeps_times: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted(bench, bitmaps)
    before = {path: path.read_bytes() for path in (tmp_path / "features/mine").rglob("c/*/*")}
    image = bitmaps / "train" / "class 1" / "7.bmp"
    replace_contents(image)
    if not keeps_times:
        image.touch()
    message = extracted(bench, bitmaps, layers="features.3,features.6", expected=2)
    assert "train/class 1/7.bmp" in message
    assert "--overwrite" in message
    monkeypatch.setattr(same_images, "OTHERS", 0)  # the one that is read is compared too
    monkeypatch.setattr(same_images, "SUSPECTS", 0)
    assert "train/class 1/7.bmp" in extracted(bench, bitmaps, layers="features.3,features.6", expected=2)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_other_images_are_noticed_where_nothing_is_missing(bench: Bench, bitmaps: Path) -> None:
    extracted(bench, bitmaps)
    replace_contents(bitmaps / "val" / "class 0" / "2.bmp")
    assert "val/class 0/2.bmp" in extracted(bench, bitmaps, expected=2)
    extracted(bench, bitmaps, "--overwrite")
    extracted(bench, bitmaps)


def test_a_resumed_run_notices_that_the_images_of_finished_chunks_are_others(
    bench: Bench, bitmaps: Path, tmp_path: Path
) -> None:
    extracted(bench, bitmaps)
    features = FeatureSet.open(tmp_path / "features/mine")
    journal.rewrite_journals(features.folder, keep=lambda record: not record.key.endswith(("/2", "/2/0")))
    replace_contents(bitmaps / "train" / "class 0" / "0.bmp")
    assert "train/class 0/0.bmp" in extracted(bench, bitmaps, expected=2)


def test_a_copied_data_set_goes_on_with_a_kept_listing_too(
    bench: Bench, bitmaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_cache, "MANY", 1)
    for path in (bitmaps, *bitmaps.rglob("*")):
        os.utime(path, (1, 1))
    extracted(bench, bitmaps)
    assert list((tmp_path / "features/.listings").iterdir())
    for path in bitmaps.rglob("*.bmp"):
        path.touch()
    extracted(bench, bitmaps, layers="features.3,features.6")
    shutil.copytree(bitmaps, tmp_path / "copied", copy_function=shutil.copyfile)
    extracted(bench, tmp_path / "copied", layers="features.3,features.6,features.8")


def test_an_archive_whose_images_were_replaced_is_refused_by_name(bench: Bench, bitmaps: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "all"), "tar", bitmaps)
    extracted(bench, tmp_path / "all.tar")
    replace_contents(bitmaps / "val" / "class 1" / "3.bmp")
    shutil.make_archive(str(tmp_path / "all"), "tar", bitmaps)
    assert "val/class 1/3.bmp" in extracted(bench, tmp_path / "all.tar", layers="features.6", expected=2)


def without_digests(path: Path) -> None:
    """Make a feature set what it was before digests were kept."""
    features = FeatureSet.open(path)
    manifest = features.manifest
    metadata = {key: value for key, value in manifest.metadata.items() if "digests" not in key}
    journal.rewrite_journals(features.folder, keep=lambda record: "/digests/" not in record.key)
    for split in ("train", "val"):
        shutil.rmtree(path / split / "digests")
    save(features.folder, dataclasses.replace(manifest, metadata=metadata))


def test_a_feature_set_without_digests_opens_and_is_extended_with_a_note(
    bench: Bench, bitmaps: Path, tmp_path: Path
) -> None:
    extracted(bench, bitmaps)
    path = tmp_path / "features/mine"
    without_digests(path)
    assert not list(verify(path))
    assert "no digests" not in extracted(bench, bitmaps), "nothing is compared"
    assert "stored no digests of images" in extracted(bench, bitmaps, layers="features.6")
    assert not list(verify(path))
    assert FeatureSet.open(path).written_digests("train").tolist() == [0] * 12
    assert not list(repair(path))


@pytest.mark.parametrize("lost", ["digests", "valid"])
def test_a_chunk_that_lost_its_digests_is_written_again_whole(
    bench: Bench, bitmaps: Path, tmp_path: Path, lost: str
) -> None:
    """Otherwise one layer of the chunk could come from other images than the next."""
    extracted(bench, bitmaps, layers="features.3,features.6")
    path = tmp_path / "features/mine"
    before = {file: file.read_bytes() for file in path.rglob("c/**/*") if file.is_file()}
    damaged = path / "train" / lost / "c/1"
    damaged.write_bytes(bytes(len(damaged.read_bytes())))
    repair(path)
    pending = FeatureSet.open(path).pending(["features.3", "features.6"])
    assert [(work.split, work.chunk, work.layers, work.valid) for work in pending] == [
        ("train", 1, ("features.3", "features.6"), True)
    ]
    extracted(bench, bitmaps, layers="features.3,features.6")
    assert {file: file.read_bytes() for file in before} == before
    assert not list(verify(path))


def test_a_torn_journal_leaves_no_layer_without_its_flags_and_digests(
    bench: Bench, bitmaps: Path, tmp_path: Path
) -> None:
    """A crash may cut the journal anywhere; what is left of a chunk is then still known to be of its images."""
    extracted(bench, bitmaps)
    path = tmp_path / "features/mine"
    whole = (path / "journals/rank-00000.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for end in range(len(lines) + 1):
        (path / "journals/rank-00000.jsonl").write_bytes(b"".join(lines[:end]))
        features = FeatureSet.open(path)
        for split in ("train", "val"):
            for chunk, key in enumerate(features.chunk_keys(split, "features.3")):
                if key in features.records:
                    assert features.chunk_keys(split, "valid")[chunk] in features.records
                    assert features.chunk_keys(split, "digests")[chunk] in features.records


def test_an_image_that_could_not_be_read_has_no_digest(bench: Bench, bitmaps: Path, tmp_path: Path) -> None:
    (bitmaps / "train" / "class 0" / "0.bmp").write_bytes(b"no image")
    extracted(bench, bitmaps, "--on-error", "skip")
    features = FeatureSet.open(tmp_path / "features/mine")
    assert np.flatnonzero(features.written_digests("train") == 0).tolist() == [0]
    assert np.flatnonzero(~features.valid("train")).tolist() == [0]
    extracted(bench, bitmaps, "--on-error", "skip", layers="features.6")


def test_images_in_memory_have_the_digests_of_their_pixels(bench: Bench, tmp_path: Path) -> None:
    words = ["extract", "digits", "--name", "mine", *SMALL, "data.limit=20", "storage.rows_per_chunk=20"]
    words = [word for word in words if word != "storage.rows_per_chunk=4"]
    assert bench(*words, "--layers", "features.3").returncode == 0
    assert len(set(FeatureSet.open(tmp_path / "features/mine").written_digests("val").tolist())) == 20
    assert bench(*words, "--layers", "features.6").returncode == 0


def test_a_layer_cannot_be_called_digests(bench: Bench, bitmaps: Path) -> None:
    assert "cannot be the name of a layer" in extracted(bench, bitmaps, layers="digests=features.3", expected=2)


def test_other_pixels_of_one_size_are_other_digests() -> None:
    from featbench.extract.data.pictures import digest_of_pixels

    black, white = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2), (255, 255, 255))
    assert len({digest_of_pixels(image) for image in (black, white, black.transpose(2))}) == 3
