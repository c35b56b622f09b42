"""Features are exported as the files that VISSL's tools read, and come back as they were."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from featbench.pipelines.evaluation import vissl_features
from featbench.store import FeatureSet
from tests.conftest import Arrays, Bench, make_features


def load_features(folder: Path, split: str, layer: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As VISSL's loader does: files are found by a pattern of the layer's name, and rows are sorted by their index."""
    found = {}
    for path in folder.iterdir():
        if match := re.match(rf"(.*)_{split}_{layer}_features.npy", path.name):
            names = (f"{match[1]}_{split}_{layer}_{what}.npy" for what in ("features", "targets", "inds"))
            features, targets, indices = (np.load(folder / name) for name in names)
            assert features.dtype == np.float32
            assert targets.dtype == indices.dtype == np.int64
            found |= {int(index): (features[row], targets[row]) for row, index in enumerate(indices)}
    order = sorted(found)
    return np.array([found[i][0] for i in order]), np.array([found[i][1] for i in order]), np.array(order)


def test_vissls_loader_gets_the_rows_that_have_a_label(
    bench: Bench, tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = arrays
    labels = {split: each.copy() for split, each in labels.items()}
    labels["train"][[3, 20]] = -1
    make_features(tmp_path / "features/x", features, labels)
    monkeypatch.setattr(vissl_features, "BYTES_PER_FILE", 16 * 4 * 20)
    made = bench("export", "x", "--what", "features", "--format", "vissl", "--out", "theirs")
    assert made.returncode == 0, made.stderr
    assert "rows of train without label or image, left out: 2" in made.stderr
    for split, theirs in (("train", "train"), ("val", "test")):
        for layer in ("res4", "res5"):
            values, targets, indices = load_features(tmp_path / "theirs", theirs, layer)
            kept = np.flatnonzero(labels[split] >= 0)
            assert np.array_equal(indices, kept)
            assert np.array_equal(values, features[split][layer][kept].reshape(len(kept), -1))
            assert np.array_equal(targets, labels[split][kept, None])
    assert len(list((tmp_path / "theirs").glob("*_train_res4_features.npy"))) > 1


def test_features_come_back_by_the_import_of_vissls_files(bench: Bench, tmp_path: Path, arrays: Arrays) -> None:
    make_features(tmp_path / "features/x", *arrays)
    assert bench("export", "x", "--what", "features", "--format", "vissl", "--out", "theirs").returncode == 0
    assert bench("import", "--vissl", "theirs", "--name", "back").returncode == 0
    back, first = (FeatureSet.open(tmp_path / "features" / name) for name in ("back", "x"))
    for split in ("train", "val"):
        assert np.array_equal(back.layer(split, "res5").read(), first.layer(split, "res5").read())
        assert np.array_equal(back.labels(split), first.labels(split))
    again = bench("export", "x", "--what", "features", "--format", "vissl", "--out", "theirs")
    assert again.returncode == 2
    assert "its tools would merge both" in again.stderr


def test_predictions_are_written_beside_features(bench: Bench, tmp_path: Path, arrays: Arrays) -> None:
    make_features(tmp_path / "features/x", *arrays)
    words = ("--what", "features,predictions", "--format", "vissl", "--out", "theirs", "--k", "5", "--layers", "res5")
    made = bench("export", "x", *words)
    assert made.returncode == 0, made.stderr
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert {"rank0_chunk0_test_res5_inds.npy", "kNN_res5_output_predictions.npy"} <= names
