"""Real photographs through a network with real weights, against features that other code computed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.knn.classification import evaluate_knn
from featbench.store import FeatureSet
from featbench.store.typing import Ints
from tests.conftest import Bench, Records

LAYERS = (5, 10, 12)
K = (1, 5, 10, 20, 100, 200)
TEMPERATURES = (0.07, 0.1)


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, Any]:
    folder = shared / "reference" / "clothing_squeezenet"
    return {split: np.load(folder / f"features_{part}.npz") for split, part in (("train", "train"), ("val", "test"))}


def extract(bench: Bench, shared: Path, data: Path) -> subprocess.CompletedProcess[str]:
    """As a user would; the reference rounds sizes and margins otherwise than torchvision."""
    return bench(
        "extract", "folder", "--data", data, "--val-split", "test", "--name", "clothing",
        "--weights", shared / "data/weights/squeezenet1_0-imagenet.pth", "model.trunk=squeezenet1_0",
        "--layers", ",".join(f"features.{layer}" for layer in LAYERS),
        "transform.mean=[123/255,117/255,104/255]", "transform.std=[1/255,1/255,1/255]", "transform.rounding=nearest",
    )  # fmt: skip


def compare(features: FeatureSet, split: str, expected: Any, rows: Ints | slice) -> None:
    """Names, labels and each image's features."""
    assert [path.split("/", 1)[1] for path in features.paths(split)] == [
        name.split("/", 1)[1] for name in expected["names"][rows]
    ]
    assert (features.labels(split) == expected["labels"][rows]).all()
    for layer in LAYERS:
        ours = features.layer(split, f"features.{layer}").read().astype(np.float64)
        theirs = expected[f"features_{layer}"][rows].astype(np.float64)
        cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        assert cosines.min() >= 0.9999, f"features.{layer}: {cosines.min()}"


def test_a_sample_of_photographs_gives_the_references_features(
    bench: Bench, shared: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    """Five photographs of each class and split: a quick version of the next test."""
    rows = {}
    for split in ("train", "val"):
        labels = reference[split]["labels"]
        rows[split] = np.concatenate([np.flatnonzero(labels == label)[:5] for label in np.unique(labels)])
        for name in reference[split]["names"][rows[split]]:
            target = tmp_path / "data" / str(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(shared / "data/clothing" / str(name), target)
    result = extract(bench, shared, tmp_path / "data")
    assert result.returncode == 0, result.stderr
    features = FeatureSet.open(tmp_path / "features/clothing")
    for split in ("train", "val"):
        compare(features, split, reference[split], rows[split])


@pytest.mark.slow
def test_all_photographs_give_the_references_features_and_accuracies(
    bench: Bench, shared: Path, reference: dict[str, Any], records: Records, tmp_path: Path
) -> None:
    result = extract(bench, shared, shared / "data/clothing")
    assert result.returncode == 0, result.stderr
    features = FeatureSet.open(tmp_path / "features/clothing")
    for split in ("train", "val"):
        compare(features, split, reference[split], slice(None))
    expected = json.loads((shared / "reference/clothing_squeezenet/knn_faiss_flat.json").read_text())["results"]
    found = records("--features", "clothing", "--k", "1,5,10,20,100,200", "--temperature", "0.07,0.1")
    assert len(found) == len(LAYERS) * len(K) * len(TEMPERATURES)
    for record in found:
        layer = record["layer"].removeprefix("features.")
        theirs = expected[f"clothing_features_{layer}_l2_k{record['k']}_T{record['temperature']}"]
        assert abs(100 * record["top1"] - theirs["top1"]) <= 0.3, record


@pytest.mark.parametrize("layer", LAYERS)
def test_the_references_own_features_give_its_accuracies_exactly(
    bench: Bench, shared: Path, tmp_path: Path, layer: int
) -> None:
    folder = shared / "reference/clothing_squeezenet"
    result = bench(
        "import", "--train", folder / "features_train.npz", "--val", folder / "features_test.npz",
        "--features-key", f"features_{layer}", "--layer", "x", "--name", "N",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    expected = json.loads((folder / "knn_faiss_flat.json").read_text())["results"]
    peers = json.loads((folder / "knn_peers.json").read_text())[f"clothing_features_{layer}_l2"]
    features = FeatureSet.open(tmp_path / "features/N")
    for record in evaluate_knn(features, ["x"], k=K, temperature=TEMPERATURES):
        setting = f"k{record['k']}_T{record['temperature']}"
        theirs = expected[f"clothing_features_{layer}_l2_{setting}"]
        assert 100 * record["top1"] == pytest.approx(theirs["top1"], abs=1e-5)
        assert 100 * record["top5"] == pytest.approx(theirs["top5_scored_only"], abs=1e-5)
        assert 100 * record["top5_filled"] == pytest.approx(theirs["top5_stable_fill"], abs=1e-5)
        for peer in ("dino", "dinov2", "vissl", "lightly", "solo_cosine", "lemniscate"):
            assert 100 * record["top1"] == pytest.approx(peers[peer]["results"][setting]["top1"], abs=1e-5), peer
