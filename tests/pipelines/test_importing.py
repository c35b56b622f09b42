"""Features from elsewhere: npz, npy, VISSL's shards, DINO's dumps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featbench.pipelines.foreign.importing import Arrays as ImportedArrays
from featbench.pipelines.foreign.importing import ImportingError, import_features
from featbench.store import FeatureSet, MismatchError
from featbench.store.typing import Floats, Ints
from tests.conftest import Arrays, Bench, Records


@pytest.fixture
def split_arrays(arrays: Arrays) -> dict[str, tuple[Floats, Ints]]:
    features, labels = arrays
    return {split: (features[split]["res4"], labels[split]) for split in features}


def save_npz(folder: Path, split_arrays: dict[str, tuple[Floats, Ints]]) -> None:
    for split, (features, labels) in split_arrays.items():
        np.savez(folder / f"{split}.npz", features=features, labels=labels)


def check(path: Path, layer: str, split_arrays: dict[str, tuple[Floats, Ints]]) -> None:
    made = FeatureSet.open(path)
    for split, (features, labels) in split_arrays.items():
        assert np.array_equal(made.layer(split, layer).read(), features.reshape(len(features), -1))
        assert np.array_equal(made.labels(split), labels)


def test_npz_files_become_a_feature_set(
    bench: Bench, records: Records, tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    save_npz(tmp_path, split_arrays)
    command = (
        "import",
        "--train",
        "train.npz",
        "--val",
        "val.npz",
        "--layer",
        "avgpool",
        "--store",
        "S",
        "--name",
        "N",
    )
    result = bench(*command)
    assert result.returncode == 0, result.stderr
    assert "50 train and 21 val rows" in result.stdout
    check(tmp_path / "S/N", "avgpool", split_arrays)
    (record,) = records("--store", "S", "--features", "N", "--k", "5", "--layers", "avgpool")
    assert record["weights"] == "imported features"


def test_pairs_of_npy_files_become_a_feature_set(
    bench: Bench, tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    for split, (features, labels) in split_arrays.items():
        np.save(tmp_path / f"{split}.npy", features.astype(np.float64))
        np.save(tmp_path / f"{split}_labels.npy", labels)
    result = bench(
        "import", "--train", "train.npy", "--train-labels", "train_labels.npy",
        "--val", "val.npy", "--val-labels", "val_labels.npy", "--layer", "x", "--name", "N",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    check(tmp_path / "features/N", "x", split_arrays)


def test_names_of_classes_are_labels_too(tmp_path: Path) -> None:
    values = np.eye(3, dtype=np.float32)
    splits = {
        "train": ImportedArrays(layers={"x": values}, labels=np.array(["cat", "ant", "bee"])),
        "val": ImportedArrays(layers={"x": values[1:]}, labels=np.array(["cat", "bee"])),
    }
    made = import_features(splits, store=tmp_path, name="N")
    assert made.split("train").class_names == ("ant", "bee", "cat")
    assert made.split("val").class_names == ("bee", "cat")
    assert made.labels("train").tolist() == [2, 0, 1]


def save_vissl(
    folder: Path,
    split_arrays: dict[str, tuple[Floats, Ints]],
    layers: dict[str, float],
    *,
    ranks: int = 3,
    chunks: int = 2,
) -> Path:
    """What VISSL writes: each rank has every third row, shuffled; the last ranks repeat rows to fill up."""
    folder.mkdir()
    for split, name in (("train", "train"), ("val", "test")):
        features, labels = split_arrays[split]
        order = np.random.default_rng(1).permutation(len(labels))
        padded = np.concatenate([order, order[: -len(order) % ranks]])
        for rank in range(ranks):
            for chunk, rows in enumerate(np.array_split(padded[rank::ranks], chunks)):
                rows = np.sort(rows)
                for layer, factor in layers.items():
                    stem = f"rank{rank}_chunk{chunk}_{name}_{layer}"
                    np.save(folder / f"{stem}_features.npy", factor * features[rows].astype(np.float64))
                    np.save(folder / f"{stem}_targets.npy", labels[rows][:, None])
                    np.save(folder / f"{stem}_inds.npy", rows)
    return folder


def test_vissls_shards_are_merged_in_order_and_repeated_rows_taken_once(
    bench: Bench, tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    save_vissl(tmp_path / "vissl", split_arrays, {"res4": 1.0, "my_res5": 2.0})
    result = bench("import", "--vissl", "vissl", "--name", "N")
    assert result.returncode == 0, result.stderr
    check(tmp_path / "features/N", "res4", split_arrays)
    doubled = {split: (2 * features, labels) for split, (features, labels) in split_arrays.items()}
    check(tmp_path / "features/N", "my_res5", doubled)
    assert bench("import", "--vissl", "vissl", "--name", "one", "--layer", "res4").returncode == 0
    assert list(FeatureSet.open(tmp_path / "features/one").manifest.layers) == ["res4"]


def test_dinos_dumps_become_a_feature_set(
    bench: Bench, tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    for split, part in (("train", "train"), ("val", "test")):
        features, labels = split_arrays[split]
        torch.save(torch.from_numpy(features.reshape(len(features), -1)), tmp_path / f"{part}feat.pth")
        torch.save(torch.from_numpy(labels), tmp_path / f"{part}labels.pth")
    result = bench("import", "--dino", ".", "--layer", "cls", "--name", "N")
    assert result.returncode == 0, result.stderr
    check(tmp_path / "features/N", "cls", split_arrays)


def test_importing_again_does_nothing_and_another_layer_joins(
    bench: Bench, tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    save_npz(tmp_path, split_arrays)
    command = ("import", "--train", "train.npz", "--val", "val.npz", "--name", "N")
    assert bench(*command, "--layer", "a").returncode == 0
    assert bench(*command, "--layer", "a").returncode == 0
    assert bench(*command, "--layer", "b").returncode == 0
    assert list(FeatureSet.open(tmp_path / "features/N").manifest.layers) == ["a", "b"]


def test_other_features_under_the_same_layer_are_refused(
    tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    def splits(factor: float) -> dict[str, ImportedArrays]:
        return {
            s: ImportedArrays(layers={"x": factor * features}, labels=labels)
            for s, (features, labels) in split_arrays.items()
        }

    import_features(splits(1.0), store=tmp_path, name="N")
    with pytest.raises(MismatchError, match="layer 'x' exists as tap imported"):
        import_features(splits(2.0), store=tmp_path, name="N")
    made = import_features(splits(2.0), store=tmp_path, name="N", overwrite=True)
    assert np.array_equal(made.layer("val", "x").read(), 2 * split_arrays["val"][0].reshape(21, -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, y: (f[:-1], y), "49 rows of features and 50 labels"),
        (lambda f, y: (f, y + 0.5), "labels must be whole numbers"),
        (lambda f, y: (f, np.stack([y, y], 1)), "Several labels for one row must be a column of 1, 0 or -1"),
        (lambda f, y: (f, np.eye(3)[y]), "one-hot: give labels.argmax"),
        (lambda f, y: (f, y * 1j), "labels must be one integer or name"),
        (lambda f, y: (f, np.where(y == 0, np.inf, y)), "labels must be whole numbers"),
        (lambda f, y: (f.reshape(len(f), -1)[:, :0], y), "rows are empty"),
        (lambda f, y: (f, y - 5), "labels must be -1"),
        (lambda f, y: (f[:, 0, 0, 0], y), r"features of x must be floats \(N, \.\.\.\)"),
        (lambda f, y: ((f * 10).astype(int), y), "features of x must be floats"),
        (lambda f, y: (f[:, :3], y), r"rows have shape \(3, 2, 2\) in train, \(4, 2, 2\) in val"),
        (lambda f, y: (f[:0], y[:0]), "no rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]], change: Callable[..., Any], message: str
) -> None:
    changed = {**split_arrays, "train": change(*split_arrays["train"])}
    splits = {
        split: ImportedArrays(layers={"x": features}, labels=labels) for split, (features, labels) in changed.items()
    }
    with pytest.raises(ImportingError, match=message):
        import_features(splits, store=tmp_path, name="N")
    assert not (tmp_path / "N").exists()


def test_features_that_are_not_finite_are_refused_by_row(
    bench: Bench, tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    split_arrays["train"][0][33, 1] = np.inf
    save_npz(tmp_path, split_arrays)
    result = bench("import", "--train", "train.npz", "--val", "val.npz", "--layer", "x", "--name", "N")
    assert result.returncode == 2
    assert "'x' has NaN or infinite values" in result.stderr
    assert "row 33" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "gone.npz", "--val", "val.npz"], "gone.npz: cannot be read"),
        (["--train", "text.npz", "--val", "val.npz"], "not a plain .npy or .npz"),
        (
            ["--train", "train.npz", "--val", "val.npz", "--features-key", "feats"],
            "no array 'feats'. Did you mean features",
        ),
        (["--vissl", "."], "no layer with rank"),
        (["--vissl", "nowhere"], "no such folder"),
        (["--dino", "."], "trainfeat.pth: no such file"),
        (["--train", "train.npz", "--val", "val.npz", "--dtype", "int8"], "--dtype must be"),
    ],
)
def test_files_that_cannot_be_imported_are_named(
    bench: Bench, tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]], arguments: list[str], message: str
) -> None:
    save_npz(tmp_path, split_arrays)
    (tmp_path / "text.npz").write_text("hello")
    result = bench("import", "--name", "N", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_labels_that_do_not_begin_at_zero_make_no_empty_class(tmp_path: Path) -> None:
    values = np.eye(3, dtype=np.float32)
    splits = {s: ImportedArrays(layers={"x": values}, labels=np.array([7, -1, 3])) for s in ("train", "val")}
    made = import_features(splits, store=tmp_path, name="N")
    assert made.split("train").class_names == ("3", "7")
    assert made.labels("train").tolist() == [1, -1, 0]


def test_vissl_folders_with_both_test_and_val_are_refused(
    bench: Bench, tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    folder = save_vissl(tmp_path / "vissl", split_arrays, {"res4": 1.0})
    for path in list(folder.glob("*_test_*")):
        path.with_name(path.name.replace("_test_", "_val_")).write_bytes(path.read_bytes())
    result = bench("import", "--vissl", "vissl", "--name", "N")
    assert result.returncode == 2
    assert "shards of both test and val" in result.stderr


def test_a_name_that_leads_out_of_the_store_is_refused(
    tmp_path: Path, split_arrays: dict[str, tuple[Floats, Ints]]
) -> None:
    splits = {split: ImportedArrays(layers={"x": f}, labels=y) for split, (f, y) in split_arrays.items()}
    with pytest.raises(ImportingError, match="--name must be"):
        import_features(splits, store=tmp_path / "S", name="../x")
