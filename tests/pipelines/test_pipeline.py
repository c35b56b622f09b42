"""Pipelines: every shipped one is valid and says what it needs; faults are reported together."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import yaml

from featbench.pipelines.config.pipeline import SHIPPED as FOLDER
from featbench.pipelines.config.pipeline import PipelineError, as_yaml, json_schema, load_pipeline, pipeline_names
from featbench.store import LayerSpec
from tests.conftest import Bench

SHIPPED = [
    *("in1k", "places205", "places365", "inat18", "cifar10", "cifar100", "stl10", "mnist", "fashion_mnist"),
    *("imagenette", "digits", "folder"),
]


def test_the_shipped_pipelines_are_these() -> None:
    assert pipeline_names() == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_pipeline_is_valid_and_opens_with_its_command_need_and_cost(name: str) -> None:
    assert load_pipeline(name).name == name
    head = (FOLDER / f"{name}.yaml").read_text().split("\nname:")[0]
    assert "bench " in head
    assert "Needs: " in head
    assert "Costs" in head


@pytest.fixture
def jsonschema() -> ModuleType:
    return pytest.importorskip("jsonschema", reason="jsonschema is not installed")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_pipeline_satisfies_the_schema(name: str, jsonschema: ModuleType) -> None:
    jsonschema.validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), json_schema())


def test_the_schema_refuses_what_the_loader_refuses(jsonschema: ModuleType) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid({"base": "in1k", "layers": ["res4", ["res5", ["Identity", []]]]})
    assert validator.is_valid({"transform": {"mean": ["123/255", 0.5, 0]}})
    for wrong in (
        {"colour": 1},
        {"transform": {"resize": 0}},
        {"extract": {"precision": "float8"}},
        {"layers": "res5"},
    ):
        assert not validator.is_valid(wrong), wrong


@pytest.mark.parametrize("name", SHIPPED)
def test_the_printed_pipeline_is_the_pipeline(name: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(name, {"data.limit": 7, "weights.torchvision": "DEFAULT", "weights.random_seed": None})
    (tmp_path / "printed.yaml").write_text(as_yaml(pipeline))
    assert load_pipeline(str(tmp_path / "printed.yaml")) == pipeline


def test_a_pipeline_extends_its_base_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "base: in1k\nmodel: {trunk: resnet18}\nlayers: [res5]\nevaluate: {knn: {temperature: 0.2}}\n"
    )
    mine, base = load_pipeline(str(tmp_path / "mine.yaml")), load_pipeline("in1k")
    assert (mine.name, mine.model.trunk, mine.layers) == ("mine", "resnet18", (LayerSpec.of("res5"),))
    assert mine.evaluate.knn.temperature == (0.2,)
    assert (mine.evaluate.knn.k, mine.transform, mine.data) == (base.evaluate.knn.k, base.transform, base.data)


def test_a_base_may_lie_beside_the_file_and_have_a_base(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: digits\nweights: {torchvision: DEFAULT}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nlayers: [res3]\n")
    pipeline = load_pipeline(str(tmp_path / "b.yaml"))
    assert (pipeline.name, pipeline.layers, pipeline.data.source) == ("b", (LayerSpec.of("res3"),), "digits")
    assert pipeline.weights.random_seed is None, "weights are taken whole"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: b.yaml", r"base a\.yaml extends it in turn|base b\.yaml extends it in turn"),
        ("base: in2k", "no pipeline 'in2k'. Did you mean in1k"),
        ("base: [in1k, digits]", "base must be the name or path of one pipeline"),
        ("base: datasets", "no pipeline 'datasets'"),
    ],
)
def test_a_base_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(PipelineError, match=message):
        load_pipeline(str(tmp_path / "a.yaml"))


def test_overrides_reach_every_depth_and_leave_the_rest() -> None:
    pipeline = load_pipeline("in1k", {"evaluate.knn.k": [20, 200], "model.trunk": "resnet18", "layers": ["res5"]})
    assert pipeline.evaluate.knn.k == (20, 200)
    assert pipeline.evaluate.knn.temperature == (0.1, 0.07)
    assert pipeline.layers == (LayerSpec.of("res5"),)


def test_fractions_are_numbers() -> None:
    mean = load_pipeline("folder", {"transform.mean": ["123/255", "117 / 255", 0.5]}).transform.mean
    assert mean == (123 / 255, 117 / 255, 0.5)


def test_all_faults_are_reported_at_once_with_the_nearest_names() -> None:
    overrides = {
        "transform.interpolaton": "bilinear",
        "transform.std": [0, 1, 1],
        "extract.precision": "float8",
        "evaluate.knn.k": [0],
        "weights": {"file": "a.pth", "random_seed": 1},
        "colour": "red",
        "data.name": "digitz",
        "data.train_list": "a.npy",
    }
    with pytest.raises(PipelineError) as error:
        load_pipeline("digits", overrides)
    text = str(error.value)
    assert "8 settings are wrong" in text
    for part in (
        "Did you mean transform.interpolation",
        "transform.std",
        "float8",
        "evaluate.knn.k",
        "only one of",
        "colour",
        "data.name: no data set 'digitz' in the catalogue. Did you mean digits?",
        "data.train_list: has no effect with data.source=folder",
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
def test_a_file_that_is_no_pipeline_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(PipelineError, match=message):
        load_pipeline(str(tmp_path / "p.yaml"))


def test_an_empty_file_has_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    assert load_pipeline(str(tmp_path / "p.yaml")).layers == (LayerSpec.of("flatten"),)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "[" * 5000, "name: a\nname: b", "name: 2001-99-99", "1: 2", "- a", "\x00"])
@pytest.mark.parametrize("kind", ["pipeline", "vissl", "protocol", "catalogue", "override"])
def test_yaml_of_every_kind_that_is_too_much_is_one_short_message(
    bench: Bench, tmp_path: Path, text: str, kind: str
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    command = {
        "pipeline": ("extract", "x.yaml", "--dry-run"),
        "vissl": ("import-vissl", "x.yaml"),
        "protocol": ("protocols", "x.yaml"),
        "catalogue": ("datasets",),
        "override": ("extract", "digits", f"model.options={text}", "--dry-run"),
    }[kind]
    if kind == "catalogue":
        (tmp_path / "datasets.yaml").write_text(text)
    if kind == "override" and text in ("1: 2", "- a"):
        pytest.skip("a value may be this")
    result = bench(*command)
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stderr
    assert 0 < len(result.stderr) < 4000


def test_settings_of_ten_thousand_faults_are_listed_in_part(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("".join(f"nosuch{i}: 1\n" for i in range(10_000)))
    result = bench("extract", "x.yaml", "--dry-run")
    assert result.returncode == 2
    assert "(10000 in all)" in result.stderr
    assert len(result.stderr) < 10_000


def test_a_byte_that_is_not_text_is_refused_where_a_name_must_be(bench: Bench) -> None:
    result = bench("extract", "digits", "--layers", "res\udcff")
    assert result.returncode == 2
    assert "a byte that is not UTF-8" in result.stderr


@pytest.mark.parametrize(
    "setting", ["data: {root: $}", "store: $", "name: $", "model: {trunk: $}", "model: {options: {a: [$]}}"]
)
def test_a_nul_in_any_setting_is_refused_by_name(bench: Bench, tmp_path: Path, setting: str) -> None:
    (tmp_path / "x.yaml").write_text(setting.replace("$", '"a\\0b"'))
    result = bench("extract", "x.yaml", "--random-weights", "0")
    assert result.returncode == 2
    assert f"{setting.split(':')[0]}" in result.stderr
    assert "contains the character NUL" in result.stderr
