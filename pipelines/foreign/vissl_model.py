"""VISSL's `MODEL.TRUNK` and `MODEL.HEAD` as settings of `model`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from featbench.pipelines.foreign.vissl_keys import Keys, is_ignored
from featbench.store import suggest

CLASSY_REGNETS = {
    "regnet_y_256gf": {"depth": 27, "w_0": 640, "w_a": 124.47, "w_m": 2.04, "group_width": 848},
}
"""RegNets that are other networks in ClassyVision, whose names VISSL uses."""


def translate_model(keys: Keys) -> dict[str, Any]:
    """Translate `MODEL.TRUNK` and `MODEL.HEAD` into the settings of `model`."""
    keys.must_be("MODEL.INPUT_TYPE", "rgb")
    keys.must_be("MODEL.MULTI_INPUT_HEAD_MAPPING", [])
    keys.must_be("MODEL.SINGLE_PASS_EVERY_CROP", False)
    keys.must_be("MODEL.HEAD.BATCHNORM_EPS", 1e-5)
    trunk = keys.take("MODEL.TRUNK.NAME")
    translators = {"resnet": _resnet, "vision_transformer": _vision_transformer, "regnet": _regnet}
    if trunk in translators:
        model = translators[trunk](keys)
    elif isinstance(trunk, str) and re.fullmatch(r"regnet_[xy]_[0-9.]+[mg]f", trunk):
        model = _regnet(keys, name=trunk)
    else:
        keys.fault(
            f"MODEL.TRUNK.NAME: {trunk!r} is not among {', '.join(translators)}. {suggest(str(trunk), translators)} "
            f"For a torchvision or timm model, write a pipeline with model.trunk"
        )
        model = {}
    keys.drop("MODEL.TRUNK")  # settings of other trunks
    heads = keys.take("MODEL.HEAD.PARAMS", [])
    if len(heads) == 1 and heads[0] and isinstance(heads[0][0], list):
        heads = heads[0]  # heads in sequence, for the only output
    if not all(isinstance(head, list) and head and isinstance(head[0], str) for head in heads):
        keys.fault("MODEL.HEAD.PARAMS: parallel heads are not supported, only heads in sequence")
        heads = []
    return model | ({"heads": [[head[0], head[1] if len(head) > 1 else {}] for head in heads]} if heads else {})


def _resnet(keys: Keys) -> dict[str, Any]:
    given = keys.section("MODEL.TRUNK.RESNETS")
    known = {
        "DEPTH": "depth",
        "WIDTH_MULTIPLIER": "width_multiplier",
        "GROUPS": "groups",
        "WIDTH_PER_GROUP": "width_per_group",
        "LAYER4_STRIDE": "layer4_stride",
    }
    options = {known[key]: value for key, value in given.items() if key in known}
    _no_others(keys, "RESNETS", given, known, must_be={"NORM": "BatchNorm", "STANDARDIZE_CONVOLUTIONS": False})
    return {"trunk": "resnet", "options": {"depth": 50} | options}


def _regnet(keys: Keys, name: str | None = None) -> dict[str, Any]:
    given = keys.section("MODEL.TRUNK.REGNET")
    name = name or given.pop("name", None)
    if name is not None:
        _no_others(keys, "REGNET", given, ())
        if name == "anynet":
            keys.fault("MODEL.TRUNK.REGNET.name: anynet is not supported; give depth, w_0, w_a, w_m and group_width")
        if name in CLASSY_REGNETS:
            return {"trunk": "regnet", "options": dict(CLASSY_REGNETS[name])}
        return {"trunk": name.replace(".", "_")}
    known = ("depth", "w_0", "w_a", "w_m", "group_width", "bottleneck_multiplier", "stem_width", "se_ratio", "use_se")
    usual = {
        "bn_epsilon": 1e-5,
        "stem_type": "simple_stem_in",
        "block_type": "res_bottleneck_block",
        "activation": "relu",
    }
    options = {key: value for key, value in given.items() if key in known}
    if not options.pop("use_se", True):
        options["se_ratio"] = None
    _no_others(keys, "REGNET", given, (*known, "bn_momentum"), must_be=usual)
    return {"trunk": "regnet", "options": options}


def _vision_transformer(keys: Keys) -> dict[str, Any]:
    given = {key.upper(): value for key, value in keys.section("MODEL.TRUNK.VISION_TRANSFORMERS").items()}
    known = {
        "PATCH_SIZE": "patch_size",
        "HIDDEN_DIM": "dim",
        "NUM_LAYERS": "depth",
        "NUM_HEADS": "num_heads",
        "QKV_BIAS": "qkv_bias",
        "USE_CLASS_TOKEN": "class_token",
    }
    options = {"patch_size": 16, "dim": 768, "depth": 12, "num_heads": 12, "qkv_bias": False}
    options |= {known[key]: value for key, value in given.items() if key in known}
    if "MLP_DIM" in given:
        options["mlp_ratio"] = given["MLP_DIM"] / options["dim"]
    idle = ("MLP_DIM", "IMAGE_SIZE", "CLASSIFIER", "DROPOUT_RATE", "ATTENTION_DROPOUT_RATE", "DROP_PATH_RATE", "NAME")
    _no_others(keys, "VISION_TRANSFORMERS", given, (*known, *idle), must_be={"QK_SCALE": False, "HYBRID": None})
    return {"trunk": "vit", "options": options}


def _no_others(
    keys: Keys,
    section: str,
    given: Mapping[str, Any],
    known: Sequence[str] | Mapping[str, Any],
    must_be: Mapping[str, Any] | None = None,
) -> None:
    """Record unknown keys of a trunk's section, unless they have no effect."""
    for key, value in given.items():
        if key in (must_be or {}):
            if value != (must_be or {})[key]:
                keys.fault(f"MODEL.TRUNK.{section}.{key}: {value!r} is not supported, only {(must_be or {})[key]!r}")
        elif key not in known and not is_ignored(f"{section}.{key}"):
            keys.fault(f"MODEL.TRUNK.{section}.{key}: not supported here")
