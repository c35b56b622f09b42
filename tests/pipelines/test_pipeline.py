"""Pipelines: every shipped one is valid and says what it needs; faults are reported together."""

from __future__ import annotations

import pytest

from pipelines.pipeline import SHIPPED as FOLDER
from pipelines.pipeline import PipelineError, load_pipeline, pipeline_names


@pytest.mark.parametrize("name", pipeline_names())
def test_every_shipped_pipeline_is_valid_and_opens_with_its_command_need_and_cost(name):
    assert load_pipeline(name).name == name
    head = (FOLDER / f"{name}.yaml").read_text().split("\nname:")[0]
    assert "bench " in head
    assert "Needs: " in head
    assert "Costs" in head


def test_overrides_reach_every_depth_and_leave_the_rest():
    pipeline = load_pipeline("in1k", {"evaluate.knn.k": [20, 200], "model.trunk": "resnet18", "layers": ["res5"]})
    assert pipeline.evaluate.knn.k == (20, 200)
    assert pipeline.evaluate.knn.temperature == (0.07, 0.1)
    assert pipeline.layers == ("res5",)


def test_fractions_are_numbers():
    mean = load_pipeline("folder", {"transform.mean": ["123/255", "117 / 255", 0.5]}).transform.mean
    assert mean == (123 / 255, 117 / 255, 0.5)


def test_all_faults_are_reported_at_once_with_the_nearest_names():
    overrides = {
        "transform.interpolaton": "bilinear",
        "transform.std": [0, 1, 1],
        "extract.precision": "float8",
        "evaluate.knn.k": [0],
        "weights": {"file": "a.pth", "random_seed": 1},
        "colour": "red",
    }
    with pytest.raises(PipelineError) as error:
        load_pipeline("digits", overrides)
    text = str(error.value)
    assert "6 settings are wrong" in text
    for part in (
        "Did you mean transform.interpolation",
        "transform.std",
        "float8",
        "evaluate.knn.k",
        "only one of",
        "colour",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected keys and values"),
        ("a: [", "not YAML"),
        ("layers: res5", "must be a list"),
        ("layers: []", "at least one"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(PipelineError, match=message):
        load_pipeline(str(tmp_path / "p.yaml"))


def test_an_empty_file_has_all_defaults(tmp_path):
    (tmp_path / "p.yaml").write_text("")
    assert load_pipeline(str(tmp_path / "p.yaml")).layers == ("flatten",)
