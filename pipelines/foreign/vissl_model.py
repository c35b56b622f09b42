"""VISSL's `MODEL.TRUNK` and `MODEL.HEAD` as settings of `model`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from featbench.pipelines.foreign.vissl_keys import Keys, is_ignored
from featbench.store import suggest

CLASSY_REGNETS = {
    "regnet_y_256gf": {"depth": 27, "w_0": 640, "w_a": 124.47, "w_m": 2.04, "group_width": 848},
}
"""RegNets that are other networks in ClassyVision, whose names VISSL uses."""


def translate_model(keys: Keys) -> dict[str, Any]:
    """Translate `MODEL.TRUNK` and `MODEL.HEAD` into the settings of `model`."""
    keys.must_be("MODEL.MULTI_INPUT_HEAD_MAPPING", [])
    keys.must_be("MODEL.SINGLE_PASS_EVERY_CROP", False)
    keys.must_be("MODEL.HEAD.BATCHNORM_EPS", 1e-5)
    trunk = keys.take("MODEL.TRUNK.NAME")
    if trunk in _TRUNKS:
        model = _TRUNKS[trunk](keys)
    elif isinstance(trunk, str) and re.fullmatch(r"regnet_[xy]_[0-9.]+[mg]f", trunk):
        model = _regnet(keys, name=trunk)
    else:
        keys.fault(
            f"MODEL.TRUNK.NAME: {trunk!r} is not among {', '.join(_TRUNKS)}. {_guess(str(trunk))}"
            f"For a torchvision or timm model, write a pipeline with model.trunk"
        )
        model = {}
    keys.drop("MODEL.TRUNK")  # settings of other trunks
    heads = [_head(head, keys) for head in keys.take("MODEL.HEAD.PARAMS", [])]
    return model | ({"heads": heads} if heads else {})


def _head(head: Any, keys: Keys) -> list[Any]:
    """Translate one entry of `HEAD.PARAMS`: a name with its settings, or a list of them, which is one head."""
    if isinstance(head, list) and head and isinstance(head[0], list):
        return ["sequence", {"heads": [_head(each, keys) for each in head]}]
    if not (isinstance(head, list) and head and isinstance(head[0], str)):
        keys.fault("MODEL.HEAD.PARAMS: expected heads such as ['mlp', {'dims': [2048, 128]}]")
        return ["identity", {}]
    name, settings = head[0], head[1] if len(head) > 1 else {}
    if name not in HEADS:
        keys.fault(f"MODEL.HEAD.PARAMS: unknown head {name!r}. {suggest(name, HEADS)}. Known: {', '.join(HEADS)}")
    return [name, settings]


HEADS = (
    "mlp", "mlp_fsdp", "mlp_res", "eval_mlp", "eval_mlp_fsdp", "swav_head", "swav_head_fsdp", "dino_head",
    "dino_head_fsdp", "msn_head", "ibot_head", "ibot_distillation_head", "vision_transformer_head", "identity",
)  # fmt: skip
"""Heads of `featbench.extract.model.heads`, whose import takes seconds."""


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
    for key in _FSDP:
        given.pop(key, None)
    name = name or given.pop("name", None)
    if name == "anynet":
        return _anynet(keys, given)
    if name is not None:
        _no_others(keys, "REGNET", given, ())
        if name in CLASSY_REGNETS:
            return {"trunk": "regnet", "options": dict(CLASSY_REGNETS[name])}
        return {"trunk": name.replace(".", "_")}
    known = ("depth", "w_0", "w_a", "w_m", "group_width", "bottleneck_multiplier", "stem_width", "se_ratio", "use_se")
    options = {key: value for key, value in given.items() if key in known}
    if not options.pop("use_se", True):
        options["se_ratio"] = None
    _no_others(keys, "REGNET", given, (*known, "bn_momentum"), must_be=_USUAL_REGNET)
    return {"trunk": "regnet", "options": options}


_FSDP = ("stage_checkpoints", "stage_checkpointing")
"""How FSDP groups blocks, which decides only their names."""

_USUAL_REGNET = {
    "bn_epsilon": 1e-5,
    "stem_type": "simple_stem_in",
    "block_type": "res_bottleneck_block",
    "activation": "relu",
}


def _anynet(keys: Keys, given: dict[str, Any]) -> dict[str, Any]:
    known = (
        "depths",
        "widths",
        "group_widths",
        "bottleneck_multipliers",
        "strides",
        "stem_width",
        "se_ratio",
        "use_se",
    )
    options = {key: value for key, value in given.items() if key in known}
    if not options.pop("use_se", True):
        options["se_ratio"] = None
    _no_others(keys, "REGNET", given, (*known, "bn_momentum"), must_be=_USUAL_REGNET)
    return {"trunk": "anynet", "options": options}


def _resnet_sk(keys: Keys) -> dict[str, Any]:
    known = {"DEPTH": "depth", "WIDTH_MULTIPLIER": "width_multiplier", "SK_RATIO": "sk_ratio"}
    return {"trunk": "resnet_sk", "options": _renamed(keys, "RESNETS_SK", known)}


def _alexnet(keys: Keys, variant: str) -> dict[str, Any]:
    return {"trunk": f"alexnet_{variant}"}


def _efficientnet(keys: Keys) -> dict[str, Any]:
    given = keys.section("MODEL.TRUNK.EFFICIENT_NETS")
    version = str(given.get("model_version", "")).lower()
    if not re.fullmatch("b[0-7]", version):
        keys.fault(f"MODEL.TRUNK.EFFICIENT_NETS.model_version: expected B0 to B7, got {given.get('model_version')!r}")
    options = {"version": version, "bn_epsilon": given.get("bn_epsilon", 1e-3)}
    known = ("model_version", "bn_epsilon", "bn_momentum", "drop_connect_rate")
    usual = {"width_divisor": 8, "min_width": None, "use_se": True}
    _no_others(keys, "EFFICIENT_NETS", given, known, must_be=usual)
    return {"trunk": "efficientnet", "options": options}


def _convnext(keys: Keys) -> dict[str, Any]:
    usual = {"DEPTH": [3, 3, 27, 3], "DIMS": [96, 192, 384, 768]}
    options = _renamed(keys, "CONVNEXT", {"DEPTH": "depths", "DIMS": "dims"}, usual)
    return {"trunk": "timm:convnext_tiny", "options": {**options, "num_classes": 0}}


def _swin(keys: Keys) -> dict[str, Any]:
    known = {
        "PATCH_SIZE": "patch_size", "EMBED_DIM": "embed_dim", "DEPTHS": "depths", "NUM_HEADS": "num_heads",
        "WINDOW_SIZE": "window_size", "MLP_RATIO": "mlp_ratio", "QKV_BIAS": "qkv_bias",
    }  # fmt: skip
    usual = {"EMBED_DIM": 96, "DEPTHS": [2, 2, 6, 2], "NUM_HEADS": [3, 6, 12, 24]}
    options = _renamed(keys, "SWIN_TRANSFORMER", known, usual, must_be={"QK_SCALE": False})
    return {"trunk": "timm:swin_tiny_patch4_window7_224", "options": {**options, "num_classes": 0}}


def _xcit(keys: Keys) -> dict[str, Any]:
    known = {
        "PATCH_SIZE": "patch_size", "HIDDEN_DIM": "embed_dim", "NUM_LAYERS": "depth", "NUM_HEADS": "num_heads",
        "MLP_RATIO": "mlp_ratio", "QKV_BIAS": "qkv_bias", "TOKENS_NORM": "tokens_norm", "ETA": "eta",
    }  # fmt: skip
    usual = {"PATCH_SIZE": 16, "HIDDEN_DIM": 384, "NUM_LAYERS": 12, "NUM_HEADS": 8, "TOKENS_NORM": True, "ETA": 1}
    idle = ("CHECKPOINT_XCA_BLOCK", "CHECKPOINT_ATTN_BLOCK")
    options = _renamed(keys, "XCIT", known, usual, must_be={"QK_SCALE": False}, idle=idle)
    return {"trunk": "timm:xcit_small_12_p16_224", "options": {**options, "num_classes": 0}}


def _beit(keys: Keys) -> dict[str, Any]:
    known = {
        "PATCH_SIZE": "patch_size", "HIDDEN_DIM": "embed_dim", "NUM_LAYERS": "depth", "NUM_HEADS": "num_heads",
        "MLP_RATIO": "mlp_ratio", "QKV_BIAS": "qkv_bias", "INIT_VALUES": "init_values",
        "USE_ABS_POS_EMB": "use_abs_pos_emb", "USE_REL_POS_BIAS": "use_rel_pos_bias",
        "USE_SHARED_REL_POS_BIAS": "use_shared_rel_pos_bias",
    }  # fmt: skip
    usual = {
        "HIDDEN_DIM": 768, "NUM_LAYERS": 12, "NUM_HEADS": 12, "USE_ABS_POS_EMB": True, "USE_REL_POS_BIAS": False,
        "INIT_VALUES": False,
    }  # fmt: skip
    must_be = {"QK_SCALE": False, "USE_MEAN_POOLING": False}
    if keys.left.get("MODEL.TRUNK.BEIT.USE_MEAN_POOLING", True) is not False:
        keys.fault("MODEL.TRUNK.BEIT.USE_MEAN_POOLING: True, the default, is not supported, only False")
        keys.take("MODEL.TRUNK.BEIT.USE_MEAN_POOLING")
    options = _renamed(keys, "BEIT", known, usual, must_be=must_be)
    options["init_values"] = options["init_values"] or None
    pooling = {"num_classes": 0, "global_pool": "token"}
    return {"trunk": "timm:beit_base_patch16_224", "options": options | pooling}


def _renamed(
    keys: Keys,
    section: str,
    known: Mapping[str, str],
    usual: Mapping[str, Any] | None = None,
    *,
    must_be: Mapping[str, Any] | None = None,
    idle: Sequence[str] = (),
) -> dict[str, Any]:
    """Options of a trunk's constructor, by the names of its section of VISSL's configuration."""
    given = {**(usual or {}), **keys.section(f"MODEL.TRUNK.{section}")}
    _no_others(keys, section, given, (*known, *idle, "name"), must_be=must_be)
    return {known[key]: value for key, value in given.items() if key in known}


def _vision_transformer(keys: Keys, must_be: Mapping[str, Any] | None = None) -> dict[str, Any]:
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
    must_be = {"QK_SCALE": False, "HYBRID": None, **(must_be or {})}
    idle = ("MLP_DIM", "IMAGE_SIZE", "CLASSIFIER", "DROPOUT_RATE", "ATTENTION_DROPOUT_RATE", "DROP_PATH_RATE", "NAME")
    _no_others(keys, "VISION_TRANSFORMERS", given, (*known, *idle), must_be=must_be)
    return {"trunk": "vit", "options": options}


def _convit(keys: Keys) -> dict[str, Any]:
    idle = ("LOCALITY_STRENGTH", "LOCALITY_DIM", "USE_LOCAL_INIT")  # initialization, and the file's shapes
    must_be = {"CLASS_TOKEN_IN_LOCAL_LAYERS": False}  # VISSL's own code fails with True
    local = _renamed(keys, "CONVIT", {"N_GPSA_LAYERS": "local_layers"}, must_be=must_be, idle=idle)
    options = _vision_transformer(keys, must_be={"CLASSIFIER": "token"})["options"]
    options.pop("class_token", None)  # always there
    return {"trunk": "convit", "options": options | local}


def _classy_vit(keys: Keys) -> dict[str, Any]:
    """ClassyVision's vision transformer, whose attention always has biases."""
    classifier = keys.take("MODEL.TRUNK.VISION_TRANSFORMERS.CLASSIFIER", "token")
    if classifier not in ("token", "gap"):
        keys.fault(f"MODEL.TRUNK.VISION_TRANSFORMERS.CLASSIFIER: {classifier!r} is not supported, only token, gap")
    options = _vision_transformer(keys)["options"]
    has_token = {"class_token": classifier == "token"}
    return {"trunk": "vit", "options": {**options, **has_token, "qkv_bias": True, "position_resize": "corners"}}


_TRUNKS: Mapping[str, Callable[[Keys], dict[str, Any]]] = {
    "resnet": _resnet,
    "vision_transformer": _vision_transformer,
    "vision_transformer_fsdp": _vision_transformer,
    "convit": _convit,
    "classy_vit": _classy_vit,
    "regnet": _regnet,
    "regnet_v2": _regnet,
    "regnet_fsdp": _regnet,
    "resnet_sk": _resnet_sk,
    "efficientnet": _efficientnet,
    "convnext": _convnext,
    "swin_transformer": _swin,
    "xcit": _xcit,
    "xcit_fsdp": _xcit,
    "beit": _beit,
    **{
        f"alexnet_{variant}": partial(_alexnet, variant=variant)
        for variant in ("bvlc", "jigsaw", "rotnet", "deepcluster", "colorization")
    },
}
"""By VISSL's names of trunks."""

POOLED_ONLY = ("convnext", "swin_transformer", "resnet_sk", "xcit", "convit", "classy_vit")
"""Trunks of which VISSL gives the final vector, whatever the name of the one layer; of XCiT only `lastCLS` here."""


def _guess(name: str) -> str:
    return f"{text} " if (text := suggest(name, _TRUNKS)).startswith("Did you mean") else ""


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
