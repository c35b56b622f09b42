"""VISSL's documented commands run as they are typed, from its own names of configurations and models."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks.synthetic import make_in1k, make_places205
from featbench.extract.model.trunks import build_trunk
from featbench.pipelines.cli.options import read_pipeline
from featbench.pipelines.config.pipeline import PipelineError
from featbench.pipelines.foreign.vissl_presets import CONFIGS, MODEL_FILES
from featbench.pipelines.foreign.vissl_reading import read_vissl
from featbench.store import BenchError
from tests.conftest import ROOT, Bench, save_image

IN1K = "config=benchmark/nearest_neighbor/eval_resnet_8gpu_in1k_kNN"
PLACES205 = "config=benchmark/nearest_neighbor/eval_resnet_8gpu_places205_kNN"
MODEL = "+config/benchmark/nearest_neighbor/models="
SMALL = "[{name: Resize, size: 32}, {name: CenterCrop, size: 32}, {name: ToTensor}, {name: Normalize, mean: [0,0,0], std: [1,1,1]}]"  # fmt: skip  # noqa: E501
SMALL_MODEL = ["config.MODEL.TRUNK.RESNETS.DEPTH=18", "config.MODEL.HEAD.PARAMS=[[mlp, {dims: [512, 128]}]]"]
FAST = [*SMALL_MODEL] + [f"config.DATA.{split}.TRANSFORMS={SMALL}" for split in ("TRAIN", "TEST")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 with a head, as VISSL writes it."""
    model = build_trunk("resnet", {"depth": 18}, heads=[("mlp", {"dims": [512, 128]})], seed=3)
    parts = {
        "trunk": {f"_feature_blocks.{key}": value for key, value in model.trunk.state_dict().items()},
        "heads": dict(model.heads.state_dict()),
    }
    path = tmp_path_factory.mktemp("weights") / "my_weights.torch"
    torch.save({"classy_state_dict": {"base_model": {"model": parts}}}, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders, the lists that Places205 is distributed with, and VISSL's lists of paths and labels."""
    root = tmp_path / "images"
    for split, count in (("train", 3), ("val", 1)):
        paths = [f"{split}/{name}/{index}.jpg" for name in ("a", "b") for index in range(count)]
        labels = [int(path.split("/")[1] == "b") for path in paths]
        for seed, path in enumerate(paths):
            save_image(root / path, seed=seed + 10 * count)
        lines = [f"{path} {label}" for path, label in zip(paths, labels, strict=True)]
        (root / f"{split}_places205.csv").write_text("\n".join(lines))
        np.save(root / f"{split}_images.npy", np.array([str(root / path) for path in paths]))
        np.save(root / f"{split}_labels.npy", np.array(labels))
    return root


def test_the_documented_command_gives_a_number(bench: Bench, images: Path, weights: Path) -> None:
    """Typed as in VISSL's documentation; only images, model and k are smaller, the data set is found by its name."""
    (images.parent / "datasets.yaml").write_text(yaml.safe_dump({"in1k": {"root": str(images)}}))
    given = f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={weights}"
    result = bench("run", IN1K, given, "config.NEAREST_NEIGHBOR.TOPK=2", *FAST, "--json")
    assert result.returncode == 0, result.stderr
    (record,) = json.loads(result.stdout)
    assert record["layer"] == "heads"
    assert (record["protocol"], record["k"], record["temperature"]) == ("vissl", 2, 0.1)
    assert (record["num_train"], record["num_val"], record["dim"]) == (6, 2, 128)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in1k", "places205"])
def test_the_documented_commands_run_with_vissls_images_and_k(
    bench: Bench, tmp_path: Path, weights: Path, name: str
) -> None:
    """Both data sets as they are distributed, 210 images for k = 200; only the trunk is smaller."""
    (make_in1k if name == "in1k" else make_places205)(tmp_path / name, num_classes=30, train=7, val=2)
    given = f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={weights}"
    command = ["run", IN1K if name == "in1k" else PLACES205, given, "--data", name, "--json"]
    for words, layer, dim in ((SMALL_MODEL, "heads", 128), ([f"{MODEL}trunk/resnet18"], "res5avg", 512)):
        result = bench(*command, *words)
        assert result.returncode == 0, result.stderr
        (record,) = json.loads(result.stdout)
        assert (record["layer"], record["dim"]) == (layer, dim)
        assert (record["protocol"], record["k"], record["temperature"]) == ("vissl", 200, 0.1)
        assert (record["num_train"], record["num_val"], record["num_classes"]) == (210, 60, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in1k", "places205"])
def test_make_prints_the_benchmarks_own_row_first(tmp_path: Path, weights: Path, name: str) -> None:
    (make_in1k if name == "in1k" else make_places205)(tmp_path / name, num_classes=30, train=7, val=2)
    made = subprocess.run(
        ["make", "-s", "-o", "install", name, f"BIN={Path(sys.executable).parent}", f"DATA={tmp_path / name}",
         f"WEIGHTS={weights}", f"ARGS=model.trunk=resnet18 --store {tmp_path}/features layers=[res4,res5]"],
        cwd=ROOT, env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    knn, _, kmeans = made.stdout.partition("\n\n")
    rows = [line for line in knn.splitlines() if line.startswith("res")]
    assert len(rows) == 16
    assert [bool(re.search(r"\* 200   0\.1 ", row)) for row in rows] == ([True] + [False] * 7) * 2
    assert all(len(row) <= 80 for row in rows)
    assert "VISSL's kNN (Wu et al.)" in knn
    assert re.search(r"^res5 +30 +val ", kmeans, re.MULTILINE)
    assert "interpolat" not in made.stderr


PLACES = (
    ["--data", "ROOT"],
    [f"config.DATA.{split}.{key}_PATHS=[ROOT/{name}_{end}.npy]"
     for split, name in (("TRAIN", "train"), ("TEST", "val"))
     for key, end in (("DATA", "images"), ("LABEL", "labels"))],
    ["config.DATA.TRAIN.LABEL_SOURCES=[disk_folder]", "config.DATA.TEST.LABEL_SOURCES=[disk_folder]",
     "config.DATA.TRAIN.DATA_PATHS=[ROOT/train]", "config.DATA.TEST.DATA_PATHS=[ROOT/val]"],
)  # fmt: skip


@pytest.mark.parametrize("where", PLACES, ids=["as distributed", "lists", "folders"])
def test_places205_is_taken_from_anywhere_but_facebooks_storage(images: Path, weights: Path, where: list[str]) -> None:
    from featbench.extract.data.sources import open_sources

    words = [word.replace("ROOT", str(images)) for word in where]
    options = {"data.root": images} if words[0] == "--data" else {}
    words = [PLACES205, f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={weights}", *(words if not options else [])]
    data = read_pipeline(words, options, quiet=True).data
    sources = open_sources(**{key: value for key, value in data.model_dump().items() if key != "name"})
    assert {split: len(source.rows.paths) for split, source in sources.items()} == {"train": 6, "val": 2}
    assert sources["train"].rows.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_without_images_the_refusal_says_what_to_type(bench: Bench, weights: Path) -> None:
    other = "config.DATA.TRAIN.DATASET_NAMES=[mine]"
    refused = bench("run", PLACES205, other, "config.DATA.TEST.DATASET_NAMES=[mine]", "--weights", weights)
    assert refused.returncode == 2
    assert "everstore exists only within Facebook" in refused.stderr
    assert "config.DATA.TRAIN.DATA_PATHS=[train.npy]" in refused.stderr


def test_a_model_overrides_the_benchmarks(tmp_path: Path) -> None:
    """SEER's 256 GF RegNet with its head, as in VISSL's documentation of overriding a component."""
    made = read_pipeline([IN1K, f"{MODEL}seer/regnet256gf_1", "config.MODEL.HEAD.PARAMS=[]", "layers=[res5]"], {})
    assert made.model.trunk == "regnet"
    assert made.model.options == {"depth": 27, "w_0": 640, "w_a": 230.83, "w_m": 2.53, "group_width": 373}
    assert made.name == "eval_resnet_8gpu_in1k_kNN_seer_regnet256gf_1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([IN1K[:-1]], "Did you mean benchmark/nearest_neighbor/eval_resnet_8gpu_in1k_kNN"),
        ([IN1K, "config.DISTRIBUTED.NUM_NODES=2"], "torchrun --nnodes=2 --nproc-per-node=8"),
        ([IN1K, "config.DISTRIBUTED.NUM_NODES=2", "config.DISTRIBUTED.RUN_ID=n1:99"], "--rdzv-endpoint=n1:99"),
        ([IN1K, "config.DISTRIBUTED.NUM_NODES=none"], "NUM_NODES: must be a whole number"),
        ([IN1K, "engine_name=extract_cluster"], "engine_name: 'extract_cluster' is not supported"),
        ([IN1K, "~config.DATA"], "deletion of keys is not supported"),
        (["config=benchmark/nearest_neighbor/models/swav/resnext50"], "Give one of these before it: benchmark/"),
        (["model.trunk=resnet50", "confg=x"], "confg: no such setting"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", "run", *words])
    with pytest.raises(BenchError) as error:
        read_pipeline(words, {}, quiet=True)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("there", "overrides", "expected"),
    [
        (0, [], {}),
        (1, [], {}),
        (4, [], {"gpus": 4}),
        (8, [], {"gpus": 8}),
        (8, ["NUM_PROC_PER_NODE=2"], {"gpus": 2}),
        (8, ["NUM_PROC_PER_NODE=1"], {}),
        (0, ["NUM_PROC_PER_NODE=2", "MACHINE.DEVICE=cpu"], {"ranks": 2, "device": "cpu"}),
        (0, ["MACHINE.DEVICE=cpu"], {"device": "cpu"}),
    ],
)
def test_distributed_becomes_the_gpus_that_are_there(
    monkeypatch: pytest.MonkeyPatch, there: int, overrides: list[str], expected: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    words = [f"config.{'' if '.' in word else 'DISTRIBUTED.'}{word}" for word in overrides]
    made = read_pipeline([IN1K, *words], {}, quiet=True).extract
    assert {key: value for key in ("gpus", "ranks") if (value := getattr(made, key)) is not None} == {
        key: value for key, value in expected.items() if key != "device"
    }
    assert made.device == expected.get("device", "auto")


def test_slurm_becomes_a_job() -> None:
    words = ["SLURM.USE_SLURM=true", "SLURM.PARTITION=gpu", "DISTRIBUTED.NUM_NODES=2", "SLURM.TIME_HOURS=3"]
    made = read_pipeline([IN1K, *(f"config.{word}" for word in words)], {}, quiet=True).extract.slurm
    assert made is not None
    assert {key: made[key] for key in ("nodes", "gpus_per_node", "partition", "time")} == {
        "nodes": 2, "gpus_per_node": 8, "partition": "gpu", "time": 180,
    }  # fmt: skip


def test_what_has_no_effect_is_listed_unless_quiet(bench: Bench) -> None:
    words = ["run", IN1K, "engine_name=extract_features", "config.HOOKS.PERF_STATS.MONITOR_PERF_STATS=true",
             "config.MODEL.WEIGHTS_INIT.PARAMS_FILE='specify the model weights'", "--dry-run"]  # fmt: skip
    listed = bench(*words).stderr
    for key in ("HOOKS.PERF_STATS.MONITOR_PERF_STATS", "engine_name=extract_features", "PARAMS_FILE"):
        assert key in listed
    assert bench(*words, "--quiet").stderr == ""


@pytest.fixture(scope="module")
def vissl() -> Path:
    """VISSL's own files, which are not part of this repository."""
    if not (root := os.environ.get("BENCH_VISSL")):
        pytest.skip("name a checkout of VISSL in BENCH_VISSL")
    return Path(root)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_built_in_configurations_mean_what_vissls_files_do(vissl: Path, name: str) -> None:
    base = [] if "/models/" not in name else ["benchmark/nearest_neighbor/eval_resnet_8gpu_in1k_kNN"]

    def meaning(root: Path | None) -> dict[str, Any] | list[str]:
        """Settings that decide a number, or the keys that are not supported."""
        try:
            made = read_vissl([], names=[*base, name], root=root).settings
        except PipelineError as error:
            return str(error).splitlines()[1:]
        return {key: value for key, value in made.items() if key != "extract"}

    assert meaning(None) == meaning(vissl)


def test_every_model_file_is_built_in(vissl: Path) -> None:
    models = vissl / "configs/config/benchmark/nearest_neighbor/models"
    assert {str(file.relative_to(models).with_suffix("")) for file in models.rglob("*.yaml")} == set(MODEL_FILES)


@pytest.mark.slow
def test_the_page_of_vissls_configurations_is_what_the_script_prints(vissl: Path) -> None:
    made = runpy.run_path(str(ROOT / "docs/vissl_configs.py"))
    found = list(made["outcomes"](vissl))
    page = (ROOT / "docs/vissl-configs.md").read_text()
    assert page == "\n".join([made["HEAD"], *made["rows"](found)]) + "\n"
    refused = [each.name for each in found if each.name.startswith("benchmark/nearest_neighbor/") and each.reason]
    assert not refused
