"""Listings: compact, the same from the cache, and not believed once something has changed."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from featbench.extract.data import listing_cache, listing_file
from featbench.extract.data.folders import list_classes
from featbench.extract.data.image_sources import ListedSource
from featbench.extract.data.listing import Entries, Listing, Paths, first_duplicate
from featbench.extract.data.sources import open_sources
from featbench.extract.data.subsets import chosen_rows
from featbench.extract.errors import ChangedError, DataError
from featbench.store import RowFacts
from tests.conftest import save_image

NAMES = ["a/1.jpg", "", "émeu bleu/ü.png", "caf\udce9/x.jpg", "b" * 300]


def test_packed_paths_are_a_sequence_of_the_same_strings() -> None:
    paths = Paths.of(NAMES)
    assert list(paths) == NAMES
    assert [paths[row] for row in range(-len(NAMES), 0)] == NAMES
    assert paths[1:4] == NAMES[1:4]
    assert list(paths.take(np.array([4, 0, 2]))) == [NAMES[4], NAMES[0], NAMES[2]]
    assert list(pickle.loads(pickle.dumps(paths))) == NAMES
    with pytest.raises(IndexError):
        paths[len(NAMES)]


def test_a_path_costs_its_bytes_and_an_offset() -> None:
    names = (f"train/n{row // 1000:08d}/n{row // 1000:08d}_{row}.JPEG" for row in range(100_000))
    tracemalloc.start()
    paths = Paths.of(names)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(paths) == 100_000
    assert size < 100_000 * 50


def test_a_path_that_occurs_twice_is_found() -> None:
    names = [f"{row}.jpg" for row in range(1000)]
    assert first_duplicate(Paths.of(names)) is None
    assert first_duplicate(Paths.of([*names, "37.jpg"])) == "37.jpg"


@pytest.fixture
def settled(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The photographs, listed long after they were last changed, and a folder where any listing is cached."""
    monkeypatch.setattr(listing_cache, "MANY", 1)
    age(photographs)
    return photographs, tmp_path / "cache"


def age(root: Path, by: int = 10 * 10**9) -> None:
    for path in (root, *root.rglob("*")):
        then = path.stat().st_mtime_ns - by
        os.utime(path, ns=(then, then))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often a split is listed from its files."""
    from featbench.extract.data import sources

    calls = []
    monkeypatch.setattr(sources, "list_classes", lambda *a, **k: calls.append(1) or list_classes(*a, **k))
    return calls


def test_a_cached_listing_equals_the_listing(settled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = settled
    calls = counted(monkeypatch)
    first = open_sources(source="folder", root=root, cache=folder)
    again = open_sources(source="folder", root=root, cache=folder)
    assert len(calls) == 2
    for split in ("train", "val"):
        assert again[split].rows.info() == first[split].rows.info()
        assert list(again[split].rows.paths) == list(first[split].rows.paths)
        assert again[split].open(1).size == first[split].open(1).size


@pytest.mark.parametrize("change", ["add", "remove", "rename", "rewrite", "damage the listing"])
def test_a_cached_listing_is_made_again_when_something_has_changed(
    settled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    root, folder = settled
    open_sources(source="folder", root=root, cache=folder)
    file = root / "train" / "cat" / "000.jpg"
    if change == "add":
        save_image(root / "train" / "cat" / "new.jpg")
    elif change == "remove":
        file.unlink()
    elif change == "rename":
        file.rename(file.with_name("renamed.jpg"))
    elif change == "rewrite":
        save_image(file, seed=99)
    else:
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:-100])
    calls = counted(monkeypatch)
    again = open_sources(source="folder", root=root, cache=folder)
    assert calls
    assert again["train"].rows.info() == open_sources(source="folder", root=root)["train"].rows.info()


def test_any_flipped_bit_of_a_cached_listing_means_listing_again(
    settled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = settled
    fresh = open_sources(source="folder", root=root, cache=folder)
    place = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    content, random = place.read_bytes(), np.random.default_rng(0)
    calls = counted(monkeypatch)
    bits = [*range(0, 8 * 64, 37), *random.integers(0, 8 * len(content), 150).tolist()]
    for number, bit in enumerate(bits, start=1):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        place.write_bytes(damaged)
        again = open_sources(source="folder", root=root, cache=folder)
        assert len(calls) == number, f"bit {bit}"
        assert all(again[split].rows.info() == fresh[split].rows.info() for split in ("train", "val"))


def made_listing(count: int) -> Listing:
    entries = Entries()
    for row in range(count):
        entries.add(f"n{row % 1000:08d}/{row}.jpg", size=row % 7919, label=row % 1000, changed=row, start=2 * row)
    return entries.listing(class_names=tuple(map(str, range(1000))))


def test_of_a_large_listing_the_rows_that_are_read_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_file, "LARGE", 0)
    monkeypatch.setattr(listing_file, "ROWS_PER_GROUP", 10)
    listing, file = made_listing(95), tmp_path / "cached"
    listing_file.write_listing(file, listing, RowFacts(listing="0" * 64, used_labels=(0, 94)))
    mapped = listing_file.map_listing(file)
    assert mapped.groups is not None
    for row in range(95):
        mapped.groups.check(row)
    assert list(mapped.paths) == list(listing.paths)
    assert mapped.facts == RowFacts(listing="0" * 64, used_labels=(0, 94))

    content = bytearray(file.read_bytes())
    content[content.index(b"/47.jpg") + 1] ^= 1
    file.write_bytes(content)
    source = ListedSource(listing_file.map_listing(file), tmp_path, cached=file)
    with pytest.raises(ChangedError, match="is gone"):  # there are no images, and the group is sound
        source.read(39)
    file.write_bytes(content)  # which that has removed
    source = ListedSource(listing_file.map_listing(file), tmp_path, cached=file)
    with pytest.raises(ChangedError, match=r"rows 40 and following .* Run the same command again"):
        source.read(40)
    assert not file.exists()


def test_a_mapped_listing_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    listing, file = made_listing(100_000), tmp_path / "cached"
    listing_file.write_listing(file, listing, RowFacts(listing="0" * 64, used_labels=None))
    tracemalloc.start()
    mapped = listing_file.map_listing(file)
    assert mapped.paths[99_999] == listing.paths[99_999]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.stat().st_size > 50 * 100_000
    assert most < 500_000
    assert not mapped.labels.flags.owndata


def test_a_listing_of_a_folder_that_was_just_changed_is_not_cached(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change within the clock's tick would not show."""
    monkeypatch.setattr(listing_cache, "MANY", 1)
    (photographs / "train" / "cat" / "000.jpg").touch()
    save_image(photographs / "train" / "cat" / "new.jpg")
    open_sources(source="folder", root=photographs, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*"))) <= 1


@pytest.mark.parametrize(("change", "message"), [("vanish", "is gone"), ("rewrite", "was changed since")])
def test_an_image_that_changed_after_it_was_listed_is_an_error_by_name(
    settled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    root, folder = settled
    monkeypatch.setattr(listing_cache, "SAMPLE", 1)  # only row 0 is looked up before the listing is believed
    open_sources(source="folder", root=root, cache=folder)
    name = root / "train" / "cat" / "003.jpg"
    if change == "vanish":
        stamp = name.parent.stat()
        name.unlink()
        os.utime(name.parent, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
    else:
        save_image(name, seed=99, size=(90, 80))
    source = open_sources(source="folder", root=root, cache=folder)["train"]
    with pytest.raises(ChangedError, match=rf"003\.jpg: it was listed with [\d,]+ bytes and .*{message}"):
        source.open(3)
    calls = counted(monkeypatch)
    open_sources(source="folder", root=root, cache=folder)
    assert len(calls) == 1, "the cached listing was discarded"


def test_a_subset_is_the_same_for_the_same_seed_and_part_of_a_larger_one() -> None:
    paths, labels = [f"{row}.jpg" for row in range(500)], np.arange(500) % 7
    part = chosen_rows(paths, labels, limit=50, seed=1)
    assert part.tolist() == sorted(set(part.tolist()))
    assert len(part) == 50
    assert set(part) <= set(chosen_rows(paths, labels, limit=90, seed=1))
    assert part.tolist() != chosen_rows(paths, labels, limit=50, seed=2).tolist()
    by_class = chosen_rows(paths, labels, per_class=13)
    assert np.bincount(labels[by_class]).tolist() == [13] * 7
    assert np.bincount(labels[chosen_rows(paths, labels, per_class=13, limit=20)]).sum() == 20
    assert len(chosen_rows(paths, labels, limit=10_000)) == 500


def test_limits_reach_the_splits(photographs: Path) -> None:
    sources = open_sources(source="folder", root=photographs, per_class=2)
    assert np.bincount(sources["train"].rows.labels).tolist() == [2, 2, 2]
    assert len(sources["val"].rows.labels) == 7
    whole = open_sources(source="folder", root=photographs)["train"]
    for row, path in enumerate(sources["train"].rows.paths):
        original = list(whole.rows.paths).index(path)
        assert np.array_equal(np.asarray(sources["train"].open(row)), np.asarray(whole.open(original)))
    limited = open_sources(source="folder", root=photographs, limit=4)
    assert [len(source.rows.labels) for source in limited.values()] == [4, 4]
    assert limited["val"].rows.info() != open_sources(source="folder", root=photographs)["val"].rows.info()


def test_a_link_that_leads_back_is_refused_by_name(photographs: Path) -> None:
    (photographs / "train" / "cat" / "again").symlink_to(photographs / "train")
    with pytest.raises(DataError, match="cat/again: this link leads back"):
        open_sources(source="folder", root=photographs)


def test_links_to_other_folders_are_followed(photographs: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "elsewhere" / "more.jpg")
    (photographs / "train" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (photographs / "train" / "cat" / "self").symlink_to(photographs / "train" / "cat" / "self")
    assert "train/cat/more/more.jpg" in list(open_sources(source="folder", root=photographs)["train"].rows.paths)


def test_classes_that_differ_only_in_case_stop_or_warn(photographs: Path) -> None:
    save_image(photographs / "train" / "Cat" / "a.jpg")
    with pytest.raises(DataError, match="'Cat' and 'cat' differ only in upper and lower case"):
        open_sources(source="folder", root=photographs)
    assert len(open_sources(source="folder", root=photographs, on_class_fault="warn")["train"].rows.labels) == 13
