"""VISSL's YAML as it stands in its documentation runs here, and gives layers of the documented sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from featbench.extract.model.trunks import build_trunk
from featbench.pipelines.config.pipeline import PipelineError, make_pipeline
from featbench.pipelines.foreign.vissl import translate
from featbench.pipelines.foreign.vissl_reading import read_vissl
from featbench.store import FeatureSet
from tests.conftest import Bench

MANY_LAYERS = """
MODEL:
  FEATURE_EVAL_SETTINGS:
    EVAL_MODE_ON: True
    FREEZE_TRUNK_ONLY: True  # only freeze the trunk
    EXTRACT_TRUNK_FEATURES_ONLY: True   # we extract features from the trunk only
    SHOULD_FLATTEN_FEATS: False   # don't flatten the features and return as is
    LINEAR_EVAL_FEAT_POOL_OPS_MAP: [
      ["res4", ["AvgPool2d", [[8, 8], 3, 0]]],
      ["res5", ["AvgPool2d", [[6, 6], 1, 0]]],
    ]
  TRUNK:
    NAME: resnet
    RESNETS:
      DEPTH: 50
"""

TRUNK_OUTPUT = """
MODEL:
  FEATURE_EVAL_SETTINGS:
    EVAL_MODE_ON: True
    FREEZE_TRUNK_ONLY: True  # only freeze the trunk
    EXTRACT_TRUNK_FEATURES_ONLY: True   # we extract features from the trunk only
    SHOULD_FLATTEN_FEATS: False   # don't flatten the features and return as is
  TRUNK:
    NAME: resnet
    RESNETS:
      DEPTH: 50
"""

HEAD_OUTPUT = """
MODEL:
  FEATURE_EVAL_SETTINGS:
    EVAL_MODE_ON: True
    FREEZE_TRUNK_AND_HEAD: True   # both head and trunk will be frozen (including BN in eval mode)
    EVAL_TRUNK_AND_HEAD: True     # initialized the model head as well from weights
  TRUNK:
    NAME: resnet
    RESNETS:
      DEPTH: 50
  HEAD:
    # SimCLR 2-layer model head structure
    PARAMS: [
      ["mlp", {"dims": [2048, 2048], "use_relu": True}],
      ["mlp", {"dims": [2048, 128]}],
    ]
"""

DATA = """
DATA:
  NUM_DATALOADER_WORKERS: 0
  TRAIN: &split
    DATA_SOURCES: [disk_folder]
    LABEL_SOURCES: [disk_folder]
    DATASET_NAMES: [imagenet1k_folder]
    DATA_PATHS: [{root}/train]
    BATCHSIZE_PER_REPLICA: 2
    TRANSFORMS:
      - name: Resize
        size: 256
      - name: CenterCrop
        size: 224
      - name: ToTensor
      - name: Normalize
        mean: [0.485, 0.456, 0.406]
        std: [0.229, 0.224, 0.225]
    MMAP_MODE: False
    COPY_TO_LOCAL_DISK: False
  TEST:
    <<: *split
    DATA_PATHS: [{root}/val]
DISTRIBUTED: {{NUM_NODES: 1, NUM_PROC_PER_NODE: 1}}
MACHINE: {{DEVICE: gpu}}
CHECKPOINT: {{DIR: .}}
NEAREST_NEIGHBOR: {{SIGMA: 0.1, TOPK: 200, L2_NORM_FEATS: False}}
"""

HEADS = [("mlp", {"dims": [2048, 2048], "use_relu": True}), ("mlp", {"dims": [2048, 128]})]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_trunk("resnet", {"depth": 50}, heads=HEADS, seed=8)


@pytest.fixture(scope="module")
def checkpoint(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as VISSL writes it."""
    path = tmp_path_factory.mktemp("vissl") / "model_final_checkpoint_phase99.torch"
    parts = {
        "trunk": {f"_feature_blocks.{key}": value for key, value in model.trunk.state_dict().items()},
        "heads": dict(model.heads.state_dict()),
    }
    torch.save({"phase_idx": 99, "classy_state_dict": {"base_model": {"model": parts}}}, path)
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of one image each in train, and one image in val."""
    root = tmp_path_factory.mktemp("few")
    for seed, place in enumerate(("train/cat/0.png", "train/dog/0.png", "val/dog/1.png")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / place)
    return root


@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        (MANY_LAYERS, {"res4": (1024, 3, 3), "res5": (2048, 2, 2)}),  # 9,216 and 8,192 numbers
        (TRUNK_OUTPUT, {"flatten": (2048,)}),
        (HEAD_OUTPUT, {"heads": (128,)}),
    ],
)
def test_the_forms_of_vissls_documentation_run_as_they_stand(
    bench: Bench,
    tmp_path: Path,
    model: torch.nn.Module,
    checkpoint: Path,
    few: Path,
    form: str,
    sizes: dict[str, tuple[int, ...]],
) -> None:
    (tmp_path / "knn.yaml").write_text(form + DATA.format(root=few))
    result = bench("extract", "--vissl-config", "knn.yaml", f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={checkpoint}")
    assert result.returncode == 0, result.stderr
    assert "CHECKPOINT.DIR" in result.stderr, "what has no meaning is listed"
    features = FeatureSet.open(tmp_path / "features" / "knn")
    layers = features.manifest.layers
    assert {name: info.shape for name, info in layers.items()} == sizes
    assert features.manifest.made_from["weights"]["read_as"] == "VISSL; VISSL's blocks"
    if "heads" in sizes:
        (stored,) = next(iter(features.layer("val", "heads").blocks(8))).features
        pixels = np.asarray(Image.open(few / "val/dog/1.png"))[16:240, 16:240] / 255
        scaled = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.inference_mode():
            expected = model(torch.tensor(scaled, dtype=torch.float32).permute(2, 0, 1)[None])[0]
        assert np.allclose(stored, expected, atol=1e-4)


def test_an_imported_pipeline_extracts_what_vissls_yaml_does(
    bench: Bench, tmp_path: Path, checkpoint: Path, few: Path
) -> None:
    config = tmp_path / "small.yaml"
    small = DATA.replace("size: 256", "size: 64").replace("size: 224", "size: 64")
    config.write_text(TRUNK_OUTPUT.replace("DEPTH: 50", "DEPTH: 18") + small.format(root=few))
    printed = bench("import-vissl", config)
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "pipeline.yaml").write_text(printed.stdout)
    assert "# Ignored, without effect here:\n" in printed.stdout
    made = {}
    for name, words in (("a", ("pipeline.yaml",)), ("b", ("--vissl-config", config))):
        assert bench("extract", *words, "--random-weights", 3, "--name", name).returncode == 0
        made[name] = FeatureSet.open(tmp_path / "features" / name)
    assert made["a"].manifest.fingerprint == made["b"].manifest.fingerprint
    evaluated = bench("evaluate", "pipeline.yaml", "--features", "a", "--json", "--k", "1")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)[0]["protocol"] == "vissl"


def settings(text: str, *overrides: str, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    translation = read_vissl([path], overrides)
    make_pipeline(dict(translation.settings), where="translated")
    return translation.settings


def test_vissls_shipped_configuration_is_translated(tmp_path: Path) -> None:
    """Its head form, within `config`, with the parameters one level deeper, and other settings of kNN."""
    inner = yaml.safe_load(HEAD_OUTPUT + DATA.format(root="/d"))
    resnext = {"DEPTH": 101, "GROUPS": 32, "WIDTH_PER_GROUP": 8}
    inner["MODEL"]["TRUNK"] = {"NAME": "resnet", "TRUNK_PARAMS": {"RESNETS": resnext}}
    inner["NEAREST_NEIGHBOR"] = {"SIGMA": 0.07, "TOPK": [20, 200], "L2_NORM_FEATS": True, "USE_CUDA": False}
    made = settings(yaml.safe_dump({"config": inner}), "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=w.torch",
                    "+config.MODEL.WEIGHTS_INIT.STATE_DICT_KEY_NAME=loss",
                    "config.MODEL.WEIGHTS_INIT.REMOVE_PREFIX=momentum_teacher.module.", tmp_path=tmp_path)  # fmt: skip
    assert made["model"]["options"] == {"depth": 101, "groups": 32, "width_per_group": 8}
    assert made["model"]["heads"] == [[name, parameters] for name, parameters in HEADS]
    assert made["weights"] == {"file": "w.torch", "key": "loss", "remove_prefix": "momentum_teacher.module."}
    assert made["evaluate"] == {
        "knn": {"protocol": "wu2018", "k": [20, 200], "temperature": [0.07]},
        "device": "cpu",
    }  # fmt: skip
    assert made["data"] == {"source": "folder", "root": "/d", "train_split": "train", "val_split": "val"}
    assert made["transform"] == {
        "resize": 256, "crop": 224, "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }  # fmt: skip


def test_a_later_file_lies_on_top_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(HEAD_OUTPUT)
    (tmp_path / "model.yaml").write_text(
        "# @package _global_\nconfig: {MODEL: {TRUNK: {NAME: regnet, REGNET: {name: regnet_y_8gf}}, HEAD: {PARAMS: "
        "[['swav_head', {'dims': [2016, 2016, 128], 'use_bn': False, 'num_clusters': []}]]}}}"
    )
    made = read_vissl([tmp_path / "base.yaml", tmp_path / "model.yaml"]).settings
    assert made["model"]["trunk"] == "regnet_y_8gf"
    assert made["model"]["heads"][0][0] == "swav_head"
    assert made["name"] == "base_model"


def test_the_later_of_two_spellings_of_a_trunk_counts(tmp_path: Path) -> None:
    """Earlier versions of VISSL have the parameters one level deeper."""
    older = TRUNK_OUTPUT.replace("    RESNETS:\n      DEPTH: 50", "    TRUNK_PARAMS: {RESNETS: {DEPTH: 50}}")
    (tmp_path / "old.yaml").write_text(older)
    (tmp_path / "new.yaml").write_text("MODEL: {TRUNK: {RESNETS: {DEPTH: 200, WIDTH_MULTIPLIER: 2}}}")
    files = [tmp_path / "old.yaml", tmp_path / "new.yaml"]
    assert read_vissl(files).settings["model"]["options"] == {"depth": 200, "width_multiplier": 2}
    assert read_vissl(files[::-1]).settings["model"]["options"] == {"depth": 50, "width_multiplier": 2}
    last = read_vissl(files, ["config.MODEL.TRUNK.TRUNK_PARAMS.RESNETS.DEPTH=101"]).settings["model"]["options"]
    assert last["depth"] == 101


def test_lists_of_files_and_labels_are_taken(tmp_path: Path) -> None:
    config = yaml.safe_load(TRUNK_OUTPUT)
    kinds = {"DATA_SOURCES": ["disk_filelist"], "LABEL_SOURCES": ["disk_filelist"]}
    config["DATA"] = {
        split: {**kinds, "DATA_PATHS": [f"/d/{split}.npy"], "LABEL_PATHS": [f"/d/{split}_labels.npy"]}
        for split in ("TRAIN", "TEST")
    }
    assert settings(yaml.safe_dump(config), tmp_path=tmp_path)["data"] == {
        "source": "filelist",
        "train_list": "/d/TRAIN.npy",
        "val_list": "/d/TEST.npy",
        "train_labels": "/d/TRAIN_labels.npy",
        "val_labels": "/d/TEST_labels.npy",
    }


TRUNKS = [
    ("regnet", {"REGNET": {"depth": 27, "w_0": 640, "w_a": 230.83, "w_m": 2.53, "group_width": 373}},
     {"trunk": "regnet", "options": {"depth": 27, "w_0": 640, "w_a": 230.83, "w_m": 2.53, "group_width": 373}}),
    ("regnet", {"REGNET": {"name": "regnet_y_1.6gf"}}, {"trunk": "regnet_y_1_6gf"}),
    ("efficientnet", {"EFFICIENT_NETS": {"model_version": "B1", "bn_epsilon": 0.001, "width_divisor": 8}},
     {"trunk": "efficientnet", "options": {"version": "b1", "bn_epsilon": 0.001}}),
    ("regnet", {"REGNET": {"name": "regnet_y_256gf"}},
     {"trunk": "regnet", "options": {"depth": 27, "w_0": 640, "w_a": 124.47, "w_m": 2.04, "group_width": 848}}),
    ("regnet_y_16gf", {}, {"trunk": "regnet_y_16gf"}),
    ("resnet", {"RESNETS": {"DEPTH": 50, "WIDTH_MULTIPLIER": 2, "NORM": "BatchNorm", "LAYER4_STRIDE": 1}},
     {"trunk": "resnet", "options": {"depth": 50, "width_multiplier": 2, "layer4_stride": 1}}),
    ("vision_transformer", {"VISION_TRANSFORMERS": {
        "IMAGE_SIZE": 224, "PATCH_SIZE": 16, "HIDDEN_DIM": 384, "NUM_LAYERS": 12, "NUM_HEADS": 6, "MLP_DIM": 1536,
        "CLASSIFIER": "token", "DROPOUT_RATE": 0, "ATTENTION_DROPOUT_RATE": 0, "QKV_BIAS": True,
        "DROP_PATH_RATE": 0.1}},
     {"trunk": "vit", "options": {
         "patch_size": 16, "dim": 384, "depth": 12, "num_heads": 6, "qkv_bias": True, "mlp_ratio": 4.0}}),
    ("regnet_fsdp", {"REGNET": {"name": "anynet", "depths": [1, 2, 1, 1], "widths": [8, 16, 24, 32],
                                "group_widths": [8] * 4, "bottleneck_multipliers": [1.0] * 4, "strides": [2] * 4,
                                "stage_checkpoints": [[1], [2], [1], [1]]}},
     {"trunk": "anynet", "options": {"depths": [1, 2, 1, 1], "widths": [8, 16, 24, 32], "group_widths": [8] * 4,
                                     "bottleneck_multipliers": [1.0] * 4, "strides": [2] * 4}}),
    ("resnet_sk", {"RESNETS_SK": {"DEPTH": 152, "WIDTH_MULTIPLIER": 3, "SK_RATIO": 0.0625}},
     {"trunk": "resnet_sk", "options": {"depth": 152, "width_multiplier": 3, "sk_ratio": 0.0625}}),
    ("alexnet_jigsaw", {}, {"trunk": "alexnet_jigsaw"}),
    ("convnext", {"CONVNEXT": {"DEPTH": [3, 3, 9, 3], "DROP_PATH_RATE": 0.1}},
     {"trunk": "timm:convnext_tiny",
      "options": {"depths": [3, 3, 9, 3], "dims": [96, 192, 384, 768], "num_classes": 0}}),
    ("xcit", {"XCIT": {"NUM_LAYERS": 24}},
     {"trunk": "timm:xcit_small_12_p16_224",
      "options": {"patch_size": 16, "embed_dim": 384, "depth": 24, "num_heads": 8, "tokens_norm": True, "eta": 1,
                  "num_classes": 0}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "section", "expected"), TRUNKS)
def test_vissls_trunks_are_translated(
    name: str, section: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any] | str]
) -> None:
    config = yaml.safe_load(TRUNK_OUTPUT)
    config["MODEL"]["TRUNK"] = {"NAME": name, **section}
    made = translate(config, where="x.yaml").settings
    assert made["model"] == expected
    make_pipeline(dict(made), where="x")


def test_a_head_of_several_modules_keeps_its_place_in_the_names() -> None:
    """VISSL's file has heads.0.0.clf and heads.0.1.clf for it, and heads.0.clf, heads.1.clf for two heads."""
    config = yaml.safe_load(HEAD_OUTPUT)
    config["MODEL"]["HEAD"]["PARAMS"] = [[["mlp", {"dims": [512, 64]}], ["mlp", {"dims": [64, 8]}]]]
    heads = make_pipeline(dict(translate(config, where="x").settings), where="x").model.heads
    names = {name for name in build_trunk("resnet", {"depth": 18}, heads=heads).state_dict() if "heads" in name}
    assert names == {f"heads.0.{index}.clf.0.{kind}" for index in (0, 1) for kind in ("weight", "bias")}


def test_a_trunk_that_gives_only_its_final_vector_has_one_layer() -> None:
    config = yaml.safe_load(MANY_LAYERS)
    config["MODEL"]["TRUNK"] = {"NAME": "convnext"}
    with pytest.raises(PipelineError, match="convnext gives its final vector alone"):
        translate(config, where="x")
    config["MODEL"]["FEATURE_EVAL_SETTINGS"]["LINEAR_EVAL_FEAT_POOL_OPS_MAP"] = [["lastCLS", ["Identity", []]]]
    assert translate(config, where="x").settings["layers"] == ["lastCLS=flatten"]


def test_two_poolings_of_one_tap_are_two_layers() -> None:
    """In VISSL the second overwrites the first."""
    config = yaml.safe_load(MANY_LAYERS)
    config["MODEL"]["FEATURE_EVAL_SETTINGS"]["LINEAR_EVAL_FEAT_POOL_OPS_MAP"].append(["res5", ["Identity", []]])
    assert translate(config, where="x").settings["layers"] == [
        "res4=res4:AvgPool2d(8,3,0)", "res5:AvgPool2d(6,1,0)", "res5:Identity()",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.MODEL.FEATURE_EVAL_SETTINGS.EVAL_MODE_ON=false", "EVAL_MODE_ON: must be True"),
        ("config.MODEL.INPUT_TYPE=hsv", "MODEL.INPUT_TYPE: 'hsv' is not supported, only 'rgb', 'bgr' or 'lab'"),
        ("config.MODEL.INPUT_TYPE=lab", "only ['Resize', 'CenterCrop', 'ImgPil2LabTensor'], in that order"),
        ("config.MODEL.TRUNK.NAME=xcitt", "'xcitt' is not among resnet, vision_transformer"),
        ("config.MODEL.HEAD.PARAMS=[[mpl, {dims: [2048, 128]}]]", "unknown head 'mpl'. Did you mean mlp"),
        ("config.MODEL.TRUNK.RESNETS.NORM=GroupNorm", "RESNETS.NORM: 'GroupNorm' is not supported"),
        ("config.MODEL.TRUNK.RESNETS.DEPHT=50", "RESNETS.DEPHT: not supported here"),
        ("config.MODEL.WEIGHTS_INIT.SKIP_LAYERS=[conv1]", "would leave them random"),
        ("config.MODEL.WEIGHTS_INIT.PARAMS_FILE=https://x.org/w.torch", "downloads nothing"),
        ("config.DATA.TRAIN.DATA_LIMIT=500", "set data.limit in the pipeline"),
        ("config.DATA.TRAIN.DATA_SOURCES=[synthetic]", "sources of images"),
        ("config.DATA.TEST.TRANSFORMS=[{name: ToTensor}]", "TRANSFORMS of TRAIN and TEST differ"),
        ("config.NEAREST_NEIGHBOR.FEATURES.PATH=/f", "bench import --vissl /f"),
        ("config.NEAREST_NEIGHBOR.SIGMAA=0.2", "NEAREST_NEIGHBOR.SIGMAA: not supported here"),
        ("config.TEST_ONLY=true", "TEST_ONLY"),
    ],
)
def test_a_key_that_would_change_the_result_is_refused_by_name(tmp_path: Path, override: str, message: str) -> None:
    """Unknown keys too: VISSL's own loader drops a misspelt key."""
    with pytest.raises(PipelineError) as error:
        settings(MANY_LAYERS + DATA.format(root="/d"), override, tmp_path=tmp_path)
    assert message in str(error.value)
    assert "1 of VISSL's keys" in str(error.value)


def test_all_faults_are_named_at_once_and_exit_2(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "v.yaml").write_text(MANY_LAYERS)
    result = bench("import-vissl", "v.yaml", "config.MODEL.INPUT_TYPE=hsv", "config.FOO=1")
    assert result.returncode == 2
    assert "2 of VISSL's keys can't be translated" in result.stderr
    assert "FOO: not supported here" in result.stderr
    missing = bench("extract", "--vissl-config", "nowhere.yaml")
    assert missing.returncode == 2
    assert "nowhere.yaml: cannot be read" in missing.stderr


@pytest.mark.parametrize("name", ["resnet", "alexnet_colorization", "regnet"])
def test_models_of_colorization_take_lightness_alone(name: str) -> None:
    steps = [{"name": "Resize", "size": 256}, {"name": "CenterCrop", "size": 227}, {"name": "ImgPil2LabTensor"}]
    config = yaml.safe_load(MANY_LAYERS)
    config["DATA"] = {split: {"TRANSFORMS": steps} for split in ("TRAIN", "TEST")}
    config["MODEL"] |= {"INPUT_TYPE": "lab", "TRUNK": {"NAME": name}}
    if name == "regnet":
        config["MODEL"]["TRUNK"]["REGNET"] = {"name": "regnet_y_400mf"}
        with pytest.raises(PipelineError, match="'lab' is supported for resnet and alexnet_colorization"):
            translate(config, where="x")
        return
    made = translate(config, where="x").settings
    expected = {"resize": 256, "interpolation": "bilinear", "crop": 227, "mean": [0] * 3, "std": [1] * 3}
    assert made["transform"] == expected | {"channels": "lab"}
    assert made["model"].get("options", {}).get("lightness", False) is (name == "resnet")


@pytest.mark.parametrize(("second", "taken"), [([224, 200], True), (224, False)])
def test_a_second_resize_squashes_the_image(second: list[int] | int, taken: bool) -> None:
    steps = [{"name": "Resize", "size": 256}, {"name": "Resize", "size": second}, {"name": "ToTensor"},
             {"name": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1]}]  # fmt: skip
    config = yaml.safe_load(MANY_LAYERS)
    config["DATA"] = {split: {"TRANSFORMS": steps} for split in ("TRAIN", "TEST")}
    if not taken:
        with pytest.raises(PipelineError, match="is not supported, only"):
            translate(config, where="x")
        return
    made = translate(config, where="x").settings["transform"]
    assert (made["resize"], made["crop"], made["squash"]) == (256, None, [224, 200])


def test_a_random_head_is_not_evaluated() -> None:
    """Without EVAL_TRUNK_AND_HEAD VISSL leaves the head as it was initialised."""
    config = yaml.safe_load(HEAD_OUTPUT)
    del config["MODEL"]["FEATURE_EVAL_SETTINGS"]["EVAL_TRUNK_AND_HEAD"]
    with pytest.raises(PipelineError, match="which would be random otherwise"):
        translate(config, where="x")
