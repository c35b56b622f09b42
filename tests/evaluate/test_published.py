"""VISSL's vote in its own arithmetic is what torch computes, and results say where it differs from the real vote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from featbench.evaluate.knn.published import published_ranking
from featbench.store.typing import Doubles, Ints
from tests.conftest import Bench, make_features


def torch_ranking(labels_QK: Ints, similarities_QK: Doubles, num_classes: int) -> Ints:
    """Votes as a product of one-hot rows and float32 exponentials, ranked by torch's sort."""
    weights = torch.exp(torch.tensor(similarities_QK, dtype=torch.float32) / 0.1)
    one_hot = torch.nn.functional.one_hot(torch.tensor(labels_QK), num_classes).float()
    votes_QC = (one_hot * weights[:, :, None]).sum(dim=1)
    return votes_QC.sort(dim=1, descending=True).indices.numpy()


@pytest.mark.parametrize("scale", [0.5, 8.0, 9.0, 60.0])
@pytest.mark.parametrize("num_classes", [3, 16])
def test_the_ranking_is_what_torch_computes(scale: float, num_classes: int) -> None:
    """Nothing overflows at 0.5, some weights at 8 and 9, all of them at 60."""
    random = np.random.default_rng(5)
    labels_QK = random.integers(0, num_classes, (200, 30))
    similarities_QK = -np.sort(-random.normal(scale, scale / 4, (200, 30)), axis=1)
    expected = torch_ranking(labels_QK, similarities_QK, num_classes)
    made = published_ranking(
        labels_QK, similarities_QK, k=30, temperature=0.1, num_classes=num_classes, top=num_classes
    )
    assert np.array_equal(made, expected)


@pytest.fixture
def large(tmp_path: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Ints]]:
    """Six well separated classes, in features whose inner products overflow exp(s / 0.1)."""
    random = np.random.default_rng(1)
    labels = {"train": np.arange(60) % 6, "val": np.arange(18) % 6}
    features = {
        split: {"heads": (20 * np.eye(6, 8)[each] + random.standard_normal((len(each), 8))).astype(np.float32)}
        for split, each in labels.items()
    }
    make_features(tmp_path / "features" / "x", features, labels)
    return features, labels


def test_results_say_what_vissl_prints_where_its_vote_overflows(
    bench: Bench, large: tuple[dict[str, dict[str, np.ndarray]], dict[str, Ints]]
) -> None:
    features, labels = large
    sims = features["val"]["heads"].astype(np.float64) @ features["train"]["heads"].T.astype(np.float64)
    order = np.argsort(-sims, axis=1, kind="stable")[:, :5]
    ranked = torch_ranking(labels["train"][order], np.take_along_axis(sims, order, axis=1), 6)
    top1 = (ranked[:, 0] == labels["val"]).mean()
    words = ("evaluate", "--features", "x", "--protocol", "vissl", "--k", "5", "--quiet")
    told = bench(*words)
    assert " 100.0" in told.stdout
    assert f"VISSL itself prints top-1 {100 * top1:.2f} here" in " ".join(told.stdout.split())
    assert told.stdout.count("VISSL itself") == 1
    (row,) = json.loads(bench(*words, "--as-published", "--json").stdout)
    assert row["top1"] == pytest.approx(top1)
    assert row["top5"] == pytest.approx((ranked[:, :5] == labels["val"][:, None]).any(axis=1).mean())
    assert row["as_published"] is True
    refused = bench(*words[:4], "dino,vissl", "--as-published")
    assert refused.returncode == 2
    assert "vissl alone; got dino" in refused.stderr


def test_the_benchmarks_own_row_comes_first_and_is_marked(bench: Bench, large: object) -> None:
    settings = "evaluate.knn={protocol: wu2018, k: [20, 5], temperature: [0.1, 0.07], benchmark: {name: B, protocol: wu2018, k: 20, temperature: 0.1}}"  # fmt: skip  # noqa: E501
    table = bench("evaluate", "--features", "x", settings, "--quiet").stdout
    marked = [line for line in table.splitlines() if "* 20" in line]
    assert len(marked) == 1
    assert "* The number of the benchmark: B." in table
    other = bench("evaluate", "--features", "x", settings, "--k", "5", "--quiet").stdout
    assert "*" not in other
