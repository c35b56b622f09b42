"""A configuration of VISSL's with any value of the wrong kind is refused by name; it is never a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from featbench.pipelines.config.pipeline import PipelineError, as_yaml, make_pipeline
from featbench.pipelines.foreign.vissl import translate
from featbench.pipelines.foreign.vissl_reading import read_vissl
from tests.conftest import Bench

CONFIG = yaml.safe_load("""
DATA:
  NUM_DATALOADER_WORKERS: 2
  TRAIN: &split
    DATA_SOURCES: [disk_folder]
    LABEL_SOURCES: [disk_folder]
    DATA_PATHS: [/data/train]
    LABEL_PATHS: []
    BATCHSIZE_PER_REPLICA: 2
    DATA_LIMIT: -1
    TRANSFORMS: &steps
      - {name: Resize, size: 256}
      - {name: CenterCrop, size: 224}
      - {name: ToTensor}
      - {name: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
  TEST: {DATA_SOURCES: [disk_folder], LABEL_SOURCES: [disk_folder], DATA_PATHS: [/data/val], TRANSFORMS: *steps}
MODEL:
  FEATURE_EVAL_SETTINGS:
    EVAL_MODE_ON: True
    EXTRACT_TRUNK_FEATURES_ONLY: True
    LINEAR_EVAL_FEAT_POOL_OPS_MAP: [["res4", ["AvgPool2d", [[8, 8], 3, 0]]]]
  TRUNK: {NAME: resnet, RESNETS: {DEPTH: 50, WIDTH_MULTIPLIER: 1}, VISION_TRANSFORMERS: {HIDDEN_DIM: 4, MLP_DIM: 8}}
  HEAD: {PARAMS: [["mlp", {"dims": [2048, 128]}]]}
  WEIGHTS_INIT: {PARAMS_FILE: /w.torch, STATE_DICT_KEY_NAME: classy_state_dict, SKIP_LAYERS: [num_batches_tracked]}
NEAREST_NEIGHBOR: {TOPK: 200, SIGMA: 0.1, L2_NORM_FEATS: False, FEATURES: {PATH: ""}}
""")

WRONG = [
    None,
    0,
    -3,
    1.5,
    "x",
    "",
    [],
    {},
    True,
    [1],
    [[]],
    [None],
    {"a": 1},
    {"name": "Resize"},
    [{}],
    "\x1b[2J",
    10**40,
]


def places(value: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(path: tuple[int | str, ...], value: Any) -> dict[str, dict[str, Any]]:
    config = copy.deepcopy(json.loads(json.dumps(CONFIG)))
    section = config
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return config


def answer(make: Callable[..., Any]) -> str:
    try:
        return as_yaml(make())
    except PipelineError as error:
        refusal = str(error)
    assert 0 < len(refusal) < 5000
    return refusal


def test_the_configuration_itself_is_taken() -> None:
    assert "layers" in answer(lambda: make_pipeline(dict(translate(CONFIG, where="x").settings), where="x"))


@pytest.mark.parametrize(
    "trunk",
    [
        "resnet",
        "vision_transformer",
        "regnet",
        "regnet_y_16gf",
        "regnet_fsdp",
        "xcit",
        "beit",
        "convnext",
        "swin_transformer",
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_or_has_a_meaning(trunk: str) -> None:
    for path in list(places(CONFIG))[1:]:
        if trunk != "resnet" and path[:2] != ("MODEL", "TRUNK"):
            continue
        for value in WRONG:
            config = changed(path, value)
            if path not in (("MODEL",), ("MODEL", "TRUNK")):
                config["MODEL"]["TRUNK"]["NAME"] = trunk if path != ("MODEL", "TRUNK", "NAME") else value
            answer(lambda config=config: make_pipeline(dict(translate(config, where="x").settings), where="x"))


@pytest.mark.parametrize(
    "word", ["config.DATA=3", "config.MODEL.TRUNK=3", "config.=1", "config.MODEL..X=1", "config.A.B.C={}"]
)
def test_overrides_replace_whatever_is_there(tmp_path: Path, word: str) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(CONFIG))
    answer(
        lambda: make_pipeline(
            dict(read_vissl([tmp_path / "x.yaml"], [word, "config.DATA.TRAIN.X=1"]).settings), where="x"
        )
    )


@pytest.mark.parametrize("text", ["config: 3", "config: [1]", "3", "[]", "config: {MODEL: 3}", "{1: {2: 3}}"])
def test_what_is_no_configuration_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(PipelineError):
        read_vissl([tmp_path / "x.yaml"])


@pytest.mark.parametrize("given", [" ", "", ",", "5", "null", "[a]", "a,,b"])
def test_names_of_files_are_not_read_as_yaml(bench: Bench, given: str) -> None:
    result = bench("extract", "--vissl-config", given)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "No such file" in result.stderr or "a folder" in result.stderr
