"""What a writer refuses, it refuses before anything is written, and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featbench.store import (
    ChunkWriter,
    FeatureSet,
    LayerInfo,
    Manifest,
    SplitRows,
    StoreError,
    add_layers,
    make_ready,
    open_or_create,
)
from featbench.store.typing import Array, Bools, Doubles
from tests.conftest import Arrays, make_features


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    """A complete layer res5, and a layer more of which nothing is written."""
    features, labels = arrays
    made = make_features(
        tmp_path / "f", {split: {"res5": layers["res5"]} for split, layers in features.items()}, labels, dtype="float16"
    )
    add_layers(made, {"more": LayerInfo(tap="more", pooling=None, shape=(2,))})
    return made


def write(made: FeatureSet, values: Doubles, *, chunk: int = 1, valid: Bools | None = None) -> None:
    work = next(work for work in made.pending(["more"]) if (work.split, work.chunk) == ("val", chunk))
    return ChunkWriter(made, rank=1).write(work, {"more": values}, np.ones(8, bool) if valid is None else valid)


NAMED = [
    ([7], r"1 of the rows of val chunk 1: row 15 \(val/15\.jpg\)\. The"),
    ([0, 1, 7], r"3 of the rows .*: row 8 \(val/8\.jpg\), 9 \(val/9\.jpg\), 15 \(val/15\.jpg\)\. The"),
    ([0, 1, 2, 3], r"4 of the rows .*: row 8 \(val/8\.jpg\), 9 \(val/9\.jpg\), 10 \(val/10\.jpg\), \.\.\.\. The"),
]


@pytest.mark.parametrize(
    ("value", "what"),
    [(np.nan, "NaN or infinite values"), (1e6, "values beyond float16's largest"), (1e-9, "only values below float16")],
)
def test_values_that_cannot_be_stored_are_refused_by_row_of_which_three_are_named(
    made: FeatureSet, value: float, what: str
) -> None:
    for bad, named in NAMED:
        values = np.ones((8, 2))
        values[bad] = value
        with pytest.raises(StoreError, match=rf"'more' has {what}.* in {named} chunk was not written"):
            write(made, values)
    assert FeatureSet.open(made.path).num_committed("val", "more") == 0
    assert not (made.path / "val/more/c").exists()


def test_rows_that_hold_some_zeros_or_small_values_are_stored(made: FeatureSet) -> None:
    values = np.ones((8, 2))
    values[0], values[1], values[2] = 0, (0, 1), (1e-9, 1)
    write(made, values)
    assert (made.path / "val/more/c/1/0").stat().st_size == 8 * 2 * 2 + 4
    assert FeatureSet.open(made.path).num_committed("val", "more") == 1
    stored = np.fromfile(made.path / "val/more/c/1/0", np.float16, 16).reshape(8, 2)
    assert np.array_equal(stored, values.astype(np.float16))


def test_rows_that_were_readable_before_and_no_longer_are_are_counted_and_the_first_named(made: FeatureSet) -> None:
    valid = ~np.isin(np.arange(8), [3, 5])
    with pytest.raises(StoreError, match=r"2 images of val can no longer be read.*the first is val/11\.jpg"):
        write(made, np.ones((8, 2)), valid=valid)


def test_values_of_images_that_could_not_be_read_do_not_count(tmp_path: Path, arrays: Arrays) -> None:
    features, labels = arrays
    valid = {split: np.arange(len(each)) != 9 for split, each in labels.items()}
    for each in (np.nan, 1e39, 1e-60):
        for split in features:
            features[split]["res5"] = features[split]["res5"].astype(np.float64)
            features[split]["res5"][9] = each
        made = make_features(
            tmp_path / f"{each}", {split: {"res5": v["res5"]} for split, v in features.items()}, labels, valid=valid
        )
        assert np.flatnonzero(np.isnan(made.layer("val", "res5").read()).any(axis=1)).tolist() == [9]


@pytest.fixture
def with_digests(tmp_path: Path) -> tuple[FeatureSet, Array]:
    """Ten rows in chunks of 4, whose layer x was made from images of digests 1 to 10; row 6 has none."""
    rows = {"val": SplitRows(labels=np.zeros(10, np.int64), paths=[f"{i}.jpg" for i in range(10)], class_names=("a",))}
    manifest = Manifest(
        made_from={"model": {"trunk": "fake"}},
        dtype="float32",
        compression="none",
        rows_per_chunk=4,
        splits={split: each.info() for split, each in rows.items()},
        notes={"weights": "fake"},
    )
    made = open_or_create(tmp_path / "f", manifest, rows, digests=True)
    make_ready(made, rows, {"x": LayerInfo(tap="x", pooling=None, shape=(2,))})
    digests = np.arange(1, 11, dtype=np.uint64)
    digests[6] = 0
    write_layer(made, "x", digests)
    add_layers(made, {"more": LayerInfo(tap="more", pooling=None, shape=(2,))})
    return made, digests


def write_layer(made: FeatureSet, layer: str, digests: Array) -> None:
    writer = ChunkWriter(made)
    for work in made.pending([layer]):
        rows = made.grid(work.split).rows(work.chunk)
        values = np.ones((len(rows), 2), np.float32)
        writer.write(work, {layer: values}, np.ones(len(rows), bool), digests[rows.start : rows.stop])


@pytest.mark.parametrize(
    ("changed", "named"), [([5], r"5\.jpg"), ([4, 7], r"4\.jpg.*7\.jpg"), ([9], r"9\.jpg"), ([0], r"0\.jpg")]
)
def test_other_images_under_the_same_names_are_refused_by_name(
    with_digests: tuple[FeatureSet, Array], changed: list[int], named: str
) -> None:
    made, digests = with_digests
    digests[changed] = 99
    with pytest.raises(StoreError, match=rf"images of val are not those .* made from: {named}\. Their names"):
        write_layer(made, "more", digests)


@pytest.mark.parametrize("digest", [0, 1, 99])
def test_images_without_a_digest_are_not_compared(with_digests: tuple[FeatureSet, Array], digest: int) -> None:
    """Neither those that had none before, nor those that have none now."""
    made, digests = with_digests
    digests[6] = digest
    digests[[0, 9]] = 0
    write_layer(made, "more", digests)
    assert not FeatureSet.open(made.path).pending(["more"])
