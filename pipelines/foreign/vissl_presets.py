"""VISSL's nearest-neighbour benchmarks and models by the names that its documentation types, in VISSL's own keys.

They hold the facts that decide a number: data, transform, trunk, head, layers and the vote. An own checkout of VISSL is
asked first, if there is one (`--vissl-root`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BENCHMARK = "benchmark/nearest_neighbor"
MODELS = f"{BENCHMARK}/models"

Keys = dict[str, Any]

_BICUBIC = 3
"""Pillow's number."""


def _split(images: str, labels: str, name: str, interpolation: int | None = None) -> Keys:
    resize: Keys = {"name": "Resize", "size": 256} | ({} if interpolation is None else {"interpolation": interpolation})
    normalize = {"name": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return {
        "DATA_SOURCES": [images],
        "LABEL_SOURCES": [labels],
        "DATASET_NAMES": [name],
        "BATCHSIZE_PER_REPLICA": 32,
        "TRANSFORMS": [resize, {"name": "CenterCrop", "size": 224}, {"name": "ToTensor"}, normalize],
    }


def _benchmark(images: str, labels: str, name: str) -> Keys:
    """The kNN benchmark of one data set: the head's output of a ResNet-50 that SimCLR trained."""
    splits = {split: _split(images, labels, name) for split in ("TRAIN", "TEST")}
    heads = [
        ["mlp", {"dims": [2048, 2048], "use_relu": True, "skip_last_layer_relu_bn": False}],
        ["mlp", {"dims": [2048, 128]}],
    ]
    return {
        "DATA": {"NUM_DATALOADER_WORKERS": 5, **splits},
        "MODEL": {
            "FEATURE_EVAL_SETTINGS": {
                "EVAL_MODE_ON": True,
                "FREEZE_TRUNK_AND_HEAD": True,
                "EVAL_TRUNK_AND_HEAD": True,
            },
            "TRUNK": {"NAME": "resnet", "RESNETS": {"DEPTH": 50}},
            "HEAD": {"PARAMS": heads},
            "WEIGHTS_INIT": {"PARAMS_FILE": "", "STATE_DICT_KEY_NAME": "classy_state_dict"},
        },
        "DISTRIBUTED": {"NUM_NODES": 1, "NUM_PROC_PER_NODE": 8},
        "MACHINE": {"DEVICE": "gpu"},
        "NEAREST_NEIGHBOR": {"SIGMA": 0.1, "TOPK": 200, "L2_NORM_FEATS": False},
    }


def _model(trunk: Keys, *, heads: Sequence[Any] = (), layers: Sequence[str] | None = None, **weights: Any) -> Keys:
    """A model: its head's output, or, without one, `layers` of the trunk, or the trunk's output."""
    model: Keys = {"TRUNK": trunk, "HEAD": {"PARAMS": list(heads)}}
    if not heads:
        model["FEATURE_EVAL_SETTINGS"] = {
            "EVAL_MODE_ON": True,
            "FREEZE_TRUNK_ONLY": True,
            "EXTRACT_TRUNK_FEATURES_ONLY": True,
            "LINEAR_EVAL_FEAT_POOL_OPS_MAP": [[layer, ["Identity", []]] for layer in layers or ()],
        }
    if weights:
        model["WEIGHTS_INIT"] = weights
    return {"MODEL": model}


def _resnet(depth: int, width: int = 1, **more: Any) -> Keys:
    section = {"DEPTH": depth} | ({"WIDTH_MULTIPLIER": width} if width > 1 else {})
    return _model({"NAME": "resnet", "RESNETS": section}, **more)


def _regnet(parameters: str | Keys, **more: Any) -> Keys:
    section = {"name": f"regnet_y_{parameters}"} if isinstance(parameters, str) else parameters
    return _model({"NAME": "regnet", "REGNET": section}, **more)


def _bicubic(model: Keys) -> Keys:
    """The same with images that are resized by bicubic interpolation."""
    steps = _split("", "", "", _BICUBIC)["TRANSFORMS"]
    return model | {"DATA": {split: {"TRANSFORMS": steps} for split in ("TRAIN", "TEST")}}


def _vit(dim: int, depth: int, num_heads: int, patch: int, *, class_token: bool = True, **more: Any) -> Keys:
    section = {
        "PATCH_SIZE": patch, "HIDDEN_DIM": dim, "NUM_LAYERS": depth, "NUM_HEADS": num_heads, "MLP_DIM": 4 * dim,
        "QKV_BIAS": True,
    } | ({} if class_token else {"USE_CLASS_TOKEN": False})  # fmt: skip
    layers = None if more.get("heads") else ["lastCLS" if class_token else "lastPOOL"]
    return _model({"NAME": "vision_transformer", "VISION_TRANSFORMERS": section}, layers=layers, **more)


def _beit(dim: int, depth: int, num_heads: int, init_values: float) -> Keys:
    section = {
        "PATCH_SIZE": 16, "HIDDEN_DIM": dim, "NUM_LAYERS": depth, "NUM_HEADS": num_heads, "MLP_RATIO": 4.0,
        "QKV_BIAS": True, "USE_ABS_POS_EMB": True, "USE_REL_POS_BIAS": True, "USE_SHARED_REL_POS_BIAS": False,
        "USE_MEAN_POOLING": False, "INIT_VALUES": init_values,
    }  # fmt: skip
    trunk = {"NAME": "beit", "BEIT": section}
    return _bicubic(_model(trunk, layers=["lastCLS"], STATE_DICT_KEY_NAME="model", APPEND_PREFIX="trunk.base_model."))


def _convnext(depth: Sequence[int], width: int) -> Keys:
    section = {"DEPTH": list(depth), "DIMS": [width * 2**stage for stage in range(4)]}
    return _model({"NAME": "convnext", "CONVNEXT": section}, layers=["lastCLS"])


def _swin(third: int) -> Keys:
    section = {"EMBED_DIM": 96, "DEPTHS": [2, 2, third, 2]}
    return _model({"NAME": "swin_transformer", "SWIN_TRANSFORMER": section}, layers=["lastCLS"])


def _mlp(*dims: int, **options: Any) -> list[Any]:
    return ["mlp", {"dims": list(dims)} | options]


def _simclr(dim: int) -> list[Any]:
    return [_mlp(dim, dim, use_relu=True, skip_last_layer_relu_bn=False), _mlp(dim, 128)]


def _swav(*dims: int, use_bn: bool) -> list[Any]:
    return [["swav_head", {"dims": list(dims), "use_bn": use_bn, "num_clusters": []}]]


def _msn(dim: int) -> list[Any]:
    return [["msn_head", {"in_dim": dim, "num_prototypes": 1024, "return_query": True, "use_bn": True}]]


_64GF: Keys = {"depth": 20, "w_0": 352, "w_a": 147.48, "w_m": 2.4, "group_width": 328}
_256GF: Keys = {"depth": 27, "w_0": 640, "w_a": 230.83, "w_m": 2.53, "group_width": 373}
_TEACHER: Keys = {"STATE_DICT_KEY_NAME": "loss", "REMOVE_PREFIX": "momentum_teacher.module."}
_IBOT: Keys = {"STATE_DICT_KEY_NAME": ["loss", "teacher"], "REMOVE_PREFIX": "module."}
_SMALL, _BASE, _LARGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16)

_XCIT: Keys = {
    "NAME": "xcit",
    "XCIT": {
        "PATCH_SIZE": 16, "HIDDEN_DIM": 384, "NUM_LAYERS": 12, "NUM_HEADS": 8, "ETA": 1, "TOKENS_NORM": True,
        "QKV_BIAS": True,
    },
}  # fmt: skip
_10B: Keys = {
    "MODEL": {
        "TRUNK": {
            "NAME": "regnet_fsdp",
            "REGNET": {"depth": 27, "w_0": 1744, "w_a": 620.83, "w_m": 2.52, "group_width": 1010},
        },
        "HEAD": {"PARAMS": []},
        "FEATURE_EVAL_SETTINGS": {
            "EVAL_MODE_ON": True,
            "FREEZE_TRUNK_ONLY": True,
            "EXTRACT_TRUNK_FEATURES_ONLY": True,
            "LINEAR_EVAL_FEAT_POOL_OPS_MAP": [
                ["res3", ["AdaptiveAvgPool2d", [[2, 2]]]],
                ["res4", ["AdaptiveAvgPool2d", [[2, 1]]]],
                ["avgpool", ["Identity", []]],
            ],
        },
    },
    "NEAREST_NEIGHBOR": {"SIGMA": 0.07, "TOPK": 20, "L2_NORM_FEATS": True, "USE_CUDA": False, "OPTIMIZE_MEMORY": True},
}
_3B: Keys = {
    "name": "anynet",
    "depths": [1, 4, 4, 1],
    "widths": [1840, 3680, 10120, 25760],
    "group_widths": [920] * 4,
    "bottleneck_multipliers": [1.0] * 4,
    "strides": [2] * 4,
}


def _in_bgr(model: Keys) -> Keys:
    return {"MODEL": model["MODEL"] | {"INPUT_TYPE": "bgr"}}


_SWAV_REGNETS: Mapping[str, tuple[str | Keys, int]] = {
    "8Gf": ("8gf", 2016), "16Gf": ("16gf", 3024), "32Gf": ("32gf", 3712), "64Gf_3": (_64GF, 4920),
    "128Gf": ("128gf", 7392),
}  # fmt: skip

MODEL_FILES: Mapping[str, Keys] = {
    "beit/vit_b16": _beit(768, 12, 12, 0.1),
    "beit/vit_l16": _beit(1024, 24, 16, 1e-5),
    "byol/byol_rn200_trunk": _resnet(200, 2, STATE_DICT_KEY_NAME=""),
    "dino/convnext_tiny": _convnext((3, 3, 9, 3), 96),
    "dino/convnext_small": _convnext((3, 3, 27, 3), 96),
    "dino/convnext_base": _convnext((3, 3, 27, 3), 128),
    "dino/convnext_large": _convnext((3, 3, 27, 3), 192),
    "dino/deit_tiny": _bicubic(_vit(192, 12, 3, 16)),
    "dino/deit_s16": _bicubic(_vit(*_SMALL, 16, **_TEACHER)),
    "dino/deit_s8": _bicubic(_vit(*_SMALL, 8)),
    "dino/vit_b16": _bicubic(_vit(*_BASE, 16, **_TEACHER)),
    "dino/vit_b8": _bicubic(_vit(*_BASE, 8)),
    "dino/vit_l16": _bicubic(_vit(*_LARGE, 16, **_TEACHER)),
    "dino/swint_tiny": _swin(6),
    "dino/swint_small": _swin(18),
    "dino/xcit_s12_p16": _bicubic(_model(_XCIT, layers=["lastCLS"], **_TEACHER)),
    "ibot/deit_s16": _bicubic(_vit(*_SMALL, 16, **_IBOT)),
    "jepa/vit_h16_no_cls": _bicubic(_vit(1280, 32, 16, 16, class_token=False)),
    "mae/vit_h14_mae": _bicubic(_vit(1280, 32, 16, 14)),
    "msn/vit_s16": _bicubic(_vit(*_SMALL, 16, heads=_msn(384))),
    "msn/vit_b16": _bicubic(_vit(*_BASE, 16, heads=_msn(768))),
    "msn/vit_l16": _bicubic(_vit(*_LARGE, 16, heads=_msn(1024))),
    "seer/regnet8gf": _regnet("8gf", heads=_swav(2016, 4096, 4096, 256, use_bn=True)),
    "seer/regnet16gf": _regnet(
        "16gf", heads=_swav(3024, 4096, 4096, 256, use_bn=True), STATE_DICT_KEY_NAME="classy_state_dict"
    ),
    "seer/regnet32gf": _regnet("32gf", heads=_swav(3712, 4096, 4096, 256, use_bn=True)),
    "seer/regnet64gf_3": _regnet(_64GF, heads=_swav(4920, 8192, 8192, 256, use_bn=False)),
    "seer/regnet128gf": _regnet("128gf", heads=_swav(7392, 8192, 8192, 256, use_bn=False)),
    "seer/regnet256gf_1": _regnet(_256GF, heads=_swav(10444, 8192, 8192, 256, use_bn=False)),
    "seer/regnet8gf_trunk": _regnet("8gf"),
    "seer/regnet16gf_trunk": _regnet("16gf", STATE_DICT_KEY_NAME="classy_state_dict"),
    "seer/regnet32gf_trunk": _regnet("32gf"),
    "seer/regnet64gf_3_trunk": _regnet(_64GF),
    "seer/regnet128gf_trunk": _regnet("128gf"),
    "seer/regnet256gf_1_trunk": _regnet(_256GF),
    "seer/regnet3B_trunk": _model({"NAME": "regnet_fsdp", "REGNET": _3B}),
    "seer/regnet10B": _10B,
    "seer/regnet64gf_3_sup_in1k": _in_bgr(_regnet(_64GF)),
    "seer/regnet128gf_sup_in1k": _in_bgr(_regnet("128gf")),
    "seer/regnet128gf_swav_in1k": _regnet("128gf", heads=_swav(7392, 7392, 128, use_bn=False)),
    "seer/resnext_sup_in1k": _resnet(50),
    "seer/resnext_swav_in1k": _resnet(50, heads=_swav(2048, 2048, 128, use_bn=True)),
    "simclr/resnext50": _resnet(50, heads=_simclr(2048)),
    "simclr/resnext101": _resnet(101, heads=_simclr(2048)),
    "simclr/resnet50_w2": _resnet(50, 2, heads=_simclr(4096)),
    "simclr/resnet50_w3": _resnet(50, 3, heads=_simclr(6144)),
    "simclr/resnet50_w4": _resnet(50, 4, heads=_simclr(8192)),
    "simclr/simclrv2_rn152_3x_sk1": _model(
        {"NAME": "resnet_sk", "RESNETS_SK": {"DEPTH": 152, "WIDTH_MULTIPLIER": 3, "SK_RATIO": 0.0625}}
    ),
    "supervised/deit_tiny": _vit(192, 12, 3, 16, heads=[_mlp(192, 1000)]),
    "supervised/deit_s16": _vit(*_SMALL, 16, heads=[_mlp(384, 1000)]),
    "supervised/resnext50": _resnet(50, heads=[_mlp(2048, 1000)]),
    **{
        f"swav/regnet{name}{end}": _regnet(parameters, heads=_swav(dim, dim, out, use_bn=False))
        for name, (parameters, dim) in _SWAV_REGNETS.items()
        for end, out in (("", 128), ("_d256", 256))
    },
    "swav/resnext50": _resnet(50, heads=_swav(2048, 2048, 128, use_bn=True)),
    "swav/resnext101": _resnet(101, heads=_swav(2048, 2048, 128, use_bn=True)),
    "swav/resnext_d256": _resnet(50, heads=_swav(2048, 2048, 256, use_bn=True)),
    "swav/resnet50_w2": _resnet(50, 2, heads=_swav(4096, 4096, 128, use_bn=True)),
    "swav/resnet50_w3": _resnet(50, 3, heads=_swav(6144, 6144, 128, use_bn=True)),
    "swav/resnet50_w4": _resnet(50, 4, heads=_swav(8192, 8192, 128, use_bn=True)),
    "swav/resnet50_w5_trunk": _resnet(50, 5),
    "trunk/resnet18": _resnet(18, layers=["res5avg"]),
    "trunk/resnet34": _resnet(34, layers=["res5avg"]),
}
"""By the names that follow `+config/benchmark/nearest_neighbor/models=`; VISSL's "resnext50" is a plain ResNet-50."""

CONFIGS: Mapping[str, Keys] = {
    f"{BENCHMARK}/eval_resnet_8gpu_in1k_kNN": _benchmark("disk_folder", "disk_folder", "imagenet1k_folder"),
    f"{BENCHMARK}/eval_resnet_8gpu_places205_kNN": _benchmark("everstore", "disk_filelist", "places205_everstore"),
    f"{BENCHMARK}/eval_resnet_8gpu_co3d_kNN": _benchmark("disk_filelist", "disk_filelist", "co3d_filelist"),
    **{f"{MODELS}/{name}": keys for name, keys in MODEL_FILES.items()},
}
"""By the paths of VISSL's files below its folder configs/config, without `.yaml`."""
