"""`bench plan` says what a run will take, and whether it can work; `--dry-run` and the store keep the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from featbench.pipelines.config.pipeline import load_pipeline
from featbench.pipelines.plan import plan
from featbench.store import FeatureSet
from tests.conftest import Bench

SMALL = {
    "data.source": "folder",
    "model.trunk": "squeezenet1_0",
    "weights.random_seed": 0,
    "layers": ["features.5", "features.12"],
    "transform.resize": 32,
    "transform.crop": 32,
}


@pytest.fixture
def small(photographs: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of an extraction that takes a second."""
    return SMALL | {"data.root": str(photographs), "store": str(tmp_path / "features")}


def test_a_plan_agrees_with_what_extraction_then_writes(small: dict[str, Any], bench: Bench) -> None:
    made = plan(load_pipeline("folder", small), probe_seconds=0.2)
    assert made.images == {"train": 12, "val": 7}
    assert (made.classes, made.shared_classes) == ({"train": 3, "val": 3}, 3)
    assert made.rate > 0
    assert made.seconds == pytest.approx(19 / made.rate)
    words = [f"{key}={json.dumps(value)}" for key, value in small.items()]
    assert bench("extract", "folder", *words, "--quiet").returncode == 0
    features = FeatureSet.open(load_pipeline("folder", small).store / "folder")
    assert made.rows_per_chunk == features.manifest.rows_per_chunk
    written = {
        layer: sum(
            (features.path / key).stat().st_size - 4  # its checksum
            for key in features.records
            if key.split("/")[1] == layer
        )
        for layer in ("features.5", "features.12")
    }
    assert {layer.name: layer.bytes for layer in made.layers} == written
    again = plan(load_pipeline("folder", small))
    assert (again.disk_needed, again.pending, again.rate) == (0, 0, None)
    more = plan(load_pipeline("folder", small | {"layers": ["features.5", "features.7"]}), probe_seconds=0)
    assert [layer.there for layer in more.layers] == [True, False]
    assert more.disk_needed == more.layers[1].bytes
    other = plan(load_pipeline("folder", small | {"transform.crop": 30}), probe_seconds=0)
    assert any("transform.crop: it has 32, you ask for 30" in problem for problem in other.problems)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate.knn.k": [20]}, "evaluate.knn.k=[20] is more than the 12 images of train"),
        ({"evaluate.kmeans.clusters": [13]}, "evaluate.kmeans.clusters=[13] is more than"),
    ],
)
def test_a_plan_that_cannot_work_says_why(small: dict[str, Any], settings: dict[str, list[int]], message: str) -> None:
    assert any(message in problem for problem in plan(load_pipeline("folder", small | settings)).problems)


def test_too_little_disk_or_memory_is_a_problem(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("usage", "free")(1000))
    monkeypatch.setattr("featbench.pipelines.evaluation.resources.free_memory", lambda: 1000)
    disk, memory = plan(load_pipeline("folder", small)).problems
    assert "of disk, 0.0 MiB are free" in disk
    assert "--dtype float16" in disk
    assert "of memory" in memory


def test_the_command_exits_2_when_it_cannot_work_and_writes_nothing(
    bench: Bench, photographs: Path, tmp_path: Path
) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]
    fine = bench("plan", "folder", *words, "--data", photographs, "--probe", "0.1")
    assert fine.returncode == 0, fine.stderr
    for part in (
        "12 train, 7 val",
        "3 in both",
        "features.12",
        "free",
        "exact, cosine (the CPU, float32)",
        "images/s (measured)",
        "random (seed 0)",
    ):
        assert part in fine.stdout
    wrong = bench("plan", "folder", *words, "--data", photographs, "--k", "100")
    assert wrong.returncode == 2
    assert "cannot work" in wrong.stderr
    missing = bench("plan", "folder", *words, "--data", tmp_path / "nowhere")
    assert missing.returncode == 2
    assert "no such folder" in missing.stderr
    assert not (tmp_path / "features").exists()


def test_a_dry_run_prints_the_pipeline_that_is_then_stored_with_the_features(
    bench: Bench, photographs: Path, tmp_path: Path
) -> None:
    words = ["folder", *(f"{key}={json.dumps(value)}" for key, value in SMALL.items()), "--data", photographs]
    printed = bench("run", *words, "--dry-run")
    assert printed.returncode == 0, printed.stderr
    assert not (tmp_path / "features").exists()
    assert bench("extract", *words, "--quiet").returncode == 0
    notes = FeatureSet.open(tmp_path / "features" / "folder").manifest.notes
    assert notes["pipeline"] == yaml.safe_load(printed.stdout)


def test_another_part_of_the_data_is_another_feature_set(bench: Bench, photographs: Path) -> None:
    words = ["folder", *(f"{key}={json.dumps(value)}" for key, value in SMALL.items()), "--data", photographs]
    assert bench("extract", *words, "data.per_class=2", "--quiet").returncode == 0
    refused = bench("extract", *words, "data.per_class=3", "--quiet")
    assert refused.returncode == 2
    assert "data.per_class: it has 2, you ask for 3" in refused.stderr


def test_the_schema_is_printed_as_json(bench: Bench) -> None:
    assert json.loads(bench("schema").stdout)["properties"]["base"]["type"] == "string"
