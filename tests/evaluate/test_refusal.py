"""What k-means would refuse is refused before any search of the same command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.clustering import refusal
from featbench.evaluate.clustering.settings import DEFAULT_SETTINGS
from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels, with_unlabelled
from featbench.evaluate.features.memory_layer import layer_in_memory
from featbench.evaluate.neighbours.planning import DEFAULT
from featbench.pipelines.evaluation.run import evaluate
from featbench.pipelines.terminal.progress import Progress
from featbench.store import FeatureSet, list_cached
from featbench.store.paths import CLUSTERS, NEIGHBOURS
from featbench.store.typing import Floats
from tests.conftest import make_features

Change = Callable[[dict[str, Floats]], None]


def features_of(path: Path, change: Change = lambda values: None) -> FeatureSet:
    random = np.random.default_rng(0)
    values = {split: random.standard_normal((20, 4)).astype(np.float32) for split in ("train", "val")}
    ordinary = {split: each.copy() for split, each in values.items()}
    change(values)
    labels = {split: np.arange(20) % 2 for split in values}
    labels["train"] = np.where(np.arange(20) < 10, labels["train"], -1)  # the search does not see the other rows
    features = {split: {"ordinary": ordinary[split], "x": values[split]} for split in values}
    return make_features(path, features, labels)


def run(features: FeatureSet, *, memory: str | None = None, **kmeans: Any) -> list[dict[str, Any]]:
    config = EvaluateConfig(knn={"k": [3]}, kmeans=kmeans, memory=memory)
    return list(evaluate(features.path, config, progress=Progress(quiet=True)).records)


def equal_rows(values: dict[str, Floats]) -> None:
    values["train"][:] = values["train"][0]


def multiples_of_one_row(values: dict[str, Floats]) -> None:
    values["train"][:] = 2.0 ** np.arange(20)[:, None] * values["train"][0]


@pytest.mark.parametrize(
    ("change", "settings", "text"),
    [
        (equal_rows, {"clusters": [1, 3]}, r"train/x: all 20 rows are equal.*divided into 3 clusters"),
        (multiples_of_one_row, {"clusters": [3]}, r"train/x: all 20 rows are equal once they are scaled"),
        (lambda values: None, {"clusters": [21]}, r"clusters must be in \[1, 20\].*got 21"),
        (lambda values: None, {"clusters": [3, 4], "init": "start.npy"}, r"expected 4 x 4.*got 3 x 4"),
        (lambda values: None, {"clusters": [3], "init": "none.npy"}, "can't be read"),
        (lambda values: None, {"clusters": [3], "memory": "50MiB"}, "k-means does not fit into 50 MiB"),
    ],
)
def test_it_is_refused_and_nothing_is_searched(
    change: Change, settings: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("start.npy", np.eye(4)[:3])
    features = features_of(tmp_path / "f", change)
    with pytest.raises(EvaluationError, match=text):
        run(features, **settings)
    assert [list(list_cached(features, kind)) for kind in (NEIGHBOURS, CLUSTERS)] == [[], []]


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (equal_rows, {"clusters": [1]}),
        (multiples_of_one_row, {"clusters": [3], "normalize": False}),
        (lambda values: None, {"clusters": [3], "init": "start.npy"}),
        (lambda values: None, {"clusters": [1, 20]}),
    ],
)
def test_what_can_be_clustered_is_not_refused(
    change: Change, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("start.npy", np.eye(4)[:3])
    records = run(features_of(tmp_path / "f", change), **settings)
    assert {record.get("clusters") for record in records} - {None} == set(settings["clusters"])


def test_layers_that_are_clustered_already_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(tmp_path / "f")
    reads: list[str] = []
    monkeypatch.setattr(refusal, "_refuse_rows", lambda request, plan: reads.append(request.layer.name))
    for clusters in ([2], [2], [2, 3]):
        run(features, clusters=clusters)
        reads.append("")
    assert reads == ["ordinary", "x", "", "", "ordinary", "x", ""]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_rows_that_are_not_finite_are_named(value: float, split: str, tmp_path: Path) -> None:
    """The writer refuses them, but not all features were written by it."""
    features = features_of(tmp_path / "f")
    values = {name: np.ones((20, 4), np.float32) for name in ("train", "val")}
    values["train"][3, 0], values[split][13, 1] = 2, value
    train, val, _ = with_unlabelled(features, matched_labels(features, needed=False))
    layer = replace(layer_in_memory("x", values), made_from={"train": "a", "val": "b"})
    with pytest.raises(EvaluationError, match=f"{split}/x: 1 rows hold NaN or infinity: row 13"):
        refusal.refuse_impossible(
            features, [layer], train, val, clusters=[2], settings=DEFAULT_SETTINGS, num_seeds=1, resources=DEFAULT
        )
