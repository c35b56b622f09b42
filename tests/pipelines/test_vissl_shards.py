"""Shards of VISSL's: which rows may occur twice, whose run they are, and when targets are classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featbench.pipelines.foreign.arrays import ImportingError
from featbench.pipelines.foreign.vissl_shards import read_vissl
from featbench.store.typing import Array, Doubles, Floats, Ints
from tests.conftest import Bench

N = {"train": 60, "test": 20}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def features() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    return {split: random.normal(size=(n, 8)).astype(np.float32) for split, n in N.items()}


def save(
    folder: Path,
    features: dict[str, Floats],
    *,
    targets: dict[str, Ints] | None = None,
    ranks: int = 1,
    layer: str = "res5",
    rows: Ints | None = None,
    only: list[int] | None = None,
) -> None:
    """One run's shards: rank r has rows r, r + ranks, ..., filled up as DistributedSampler does."""
    for split, values in features.items():
        order = np.arange(len(values)) if rows is None else rows
        order = np.concatenate([order, order[: -len(order) % ranks]])
        labels = np.arange(len(values)) % 3 if targets is None else targets[split]
        for rank in range(ranks):
            part = np.sort(order[rank::ranks])
            stem = f"rank{rank}_chunk0_{split}_{layer}"
            if only is None or rank in only:
                np.save(folder / f"{stem}_features.npy", values[part])
                np.save(folder / f"{stem}_targets.npy", labels[part])
                np.save(folder / f"{stem}_inds.npy", part)


@pytest.mark.parametrize("ranks", [1, 7])
def test_exact_copies_that_fill_up_ranks_are_dropped(folder: Path, features: dict[str, Floats], ranks: int) -> None:
    save(folder, features, ranks=ranks)
    found = read_vissl(folder, {})
    assert np.array_equal(found["train"].layers["res5"], features["train"])
    assert np.array_equal(found["val"].labels, np.arange(20) % 3)


def test_shards_left_by_another_run_are_refused_by_file(folder: Path, features: dict[str, Floats]) -> None:
    save(folder, {split: values + 1 for split, values in features.items()}, ranks=4)
    save(folder, features, ranks=2)
    with pytest.raises(
        ImportingError, match=r"row 2 is in rank0_chunk0_train_res5_features\.npy and in rank2_chunk0"
    ) as e:
        read_vissl(folder, {})
    assert "different runs" in str(e.value)


def test_a_copy_that_differs_in_one_bit_is_no_copy(folder: Path, features: dict[str, Floats]) -> None:
    save(folder, features, ranks=7)
    path = folder / "rank6_chunk0_train_res5_features.npy"
    values = np.load(path)
    values[0, 0] = np.nextafter(values[0, 0], np.float32(9))
    np.save(path, values)
    with pytest.raises(ImportingError, match="row 2 is in.*--copy-tolerance"):
        read_vissl(folder, {})


@pytest.mark.parametrize(("moved", "tolerance", "is_copy"), [(2e-6, 1e-5, True), (2e-5, 1e-5, False), (2e-6, 0, False)])
def test_copies_may_differ_by_rounding_where_that_is_allowed(
    folder: Path, features: dict[str, Floats], moved: float, tolerance: float, is_copy: bool
) -> None:
    save(folder, features, ranks=7)
    path = folder / "rank6_chunk0_train_res5_features.npy"
    values = np.load(path)
    values[0] *= np.float32(1 + moved)
    np.save(path, values)
    if is_copy:
        found = read_vissl(folder, {}, copy_tolerance=tolerance)
        assert np.array_equal(found["train"].layers["res5"], features["train"])
    else:
        with pytest.raises(ImportingError, match="of their length apart"):
            read_vissl(folder, {}, copy_tolerance=tolerance)


def test_copies_with_other_targets_are_refused(folder: Path, features: dict[str, Floats]) -> None:
    save(folder, features, ranks=4)
    other = {split: (np.arange(n) + 1) % 3 for split, n in N.items()}
    save(folder, features, ranks=3, targets=other, only=[0, 1])
    with pytest.raises(ImportingError, match="with the targets 1 and 0"):
        read_vissl(folder, {})


def test_shards_of_other_width_are_refused_by_file(folder: Path, features: dict[str, Floats]) -> None:
    save(folder, features, ranks=2)
    save(folder, {split: values[:, :4] for split, values in features.items()}, ranks=2, only=[1])
    with pytest.raises(ImportingError, match=r"rank0_chunk0_train.* and rank1_chunk0_train.*from different runs"):
        read_vissl(folder, {})


def test_ranks_with_different_numbers_of_rows_are_warned_of(
    folder: Path, features: dict[str, Floats], caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, features)
    save(folder, {"train": features["train"]}, ranks=4, only=[3])
    read_vissl(folder, {})
    assert "VISSL gives each rank the same number of rows, the shards hold rank 0: 60, rank 3: 15" in caplog.text


def multilabel(n: int) -> Ints:
    random = np.random.default_rng(1)
    targets = (random.random((n, 20)) < 0.15).astype(np.int64)
    targets[:, 0] = np.arange(n) % 2
    return targets


def test_several_columns_of_targets_are_several_labels_unless_they_are_class_numbers(
    folder: Path, features: dict[str, Floats]
) -> None:
    targets = {split: multilabel(n) for split, n in N.items()}
    save(folder, features, targets=targets)
    assert np.array_equal(read_vissl(folder, {})["train"].labels, targets["train"])
    save(folder, features, targets={split: 3 * each for split, each in targets.items()})
    with pytest.raises(ImportingError, match=r"Several labels for one row must be.*labels\[:, column\]"):
        read_vissl(folder, {})


@pytest.mark.parametrize("ranks", [1, 3])
def test_targets_that_are_row_numbers_are_no_classes(folder: Path, features: dict[str, Floats], ranks: int) -> None:
    save(folder, features, targets={split: np.arange(n)[:, None] for split, n in N.items()}, ranks=ranks)
    with pytest.raises(ImportingError, match="the targets are the numbers of the rows.*LABEL_SOURCES"):
        read_vissl(folder, {})
    assert set(read_vissl(folder, {}, unlabelled=True)["train"].labels) == {-1}
    given = {"train": np.arange(60) % 5, "val": np.array(["a", "b"] * 10)}
    found = read_vissl(folder, {}, label_files=given)
    assert np.array_equal(found["train"].labels, given["train"])
    assert np.array_equal(found["val"].labels, given["val"])


def test_given_labels_belong_to_row_numbers_and_must_reach_the_last(folder: Path, features: dict[str, Floats]) -> None:
    rows = np.arange(0, 20, 2)
    save(folder, features, rows=rows)
    labels = np.arange(60) % 7
    found = read_vissl(folder, {}, label_files={"train": labels})
    assert np.array_equal(found["train"].labels, labels[rows])
    with pytest.raises(ImportingError, match="5 labels, but the shards have row 18"):
        read_vissl(folder, {}, label_files={"train": labels[:5]})


@pytest.mark.parametrize("layer", ["labels", "paths", "valid", "..", "a b"])
def test_layers_that_cannot_be_called_so_get_another_name_or_are_refused(
    bench: Bench, folder: Path, features: dict[str, Floats], layer: str
) -> None:
    save(folder, features, layer=layer)
    result = bench("import", "--vissl", ".", "--name", "N")
    assert result.returncode == 2
    assert f"{layer!r} cannot be the name of a layer" in result.stderr
    assert not (folder / "features").exists()
    assert bench("import", "--vissl", ".", "--name", "N", "--layer", f"mine={layer}").returncode == 0


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("inds", np.arange(60) - 1, "expected row numbers from 0 on"),
        ("inds", np.arange(60) * 1.0, "expected row numbers from 0 on"),
        ("inds", np.arange(59), "different numbers of rows"),
        ("inds", np.array(3), "different numbers of rows"),
        ("features", np.array([None]), "holds Python objects"),
        ("targets", np.array([None]), "holds Python objects"),
    ],
)
def test_shards_that_do_not_fit_together_are_named(
    folder: Path, features: dict[str, Floats], kind: str, values: Doubles | Ints | Array, says: str
) -> None:
    save(folder, features)
    np.save(folder / f"rank0_chunk0_train_res5_{kind}.npy", values)
    with pytest.raises(ImportingError, match=says):
        read_vissl(folder, {})
