"""Trunks by name: torchvision's classification models, those of the table below, timm's, and the user's functions."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode
from torchvision.models.regnet import BlockParams, RegNet

from featbench.extract.errors import ModelError
from featbench.extract.model.alexnet import VARIANTS, AlexNetStages
from featbench.extract.model.convit import convit
from featbench.extract.model.heads import TrunkWithHeads, build_heads
from featbench.extract.model.options import TIMM, without_loading
from featbench.extract.model.resnet import resnet
from featbench.extract.model.resnet_sk import ResNetSK
from featbench.extract.model.tap_names import classifier_of
from featbench.extract.model.vit import ViT
from featbench.store import abbreviate, suggest

logger = logging.getLogger(__name__)

_announced: set[tuple[Path, str]] = set()
"""Functions of the user that have been announced: once in each process, however often they run."""

NEEDS_TRANSFORM_INPUT = ("googlenet", "inception_v3")
"""Trunks whose torchvision weights expect the input to be rescaled by the model itself."""


def regnet(
    *,
    depth: int,
    w_0: int,
    w_a: float,
    w_m: float,
    group_width: int,
    bottleneck_multiplier: float = 1.0,
    se_ratio: float | None = 0.25,
    stem_width: int = 32,
) -> nn.Module:
    """Build a RegNet without a classifier from its parameters, named as in the paper (Radosavovic et al. 2020).

    With `se_ratio` None it is a RegNetX.
    """
    params = BlockParams.from_init_params(
        depth, w_0, w_a, w_m, group_width, bottleneck_multiplier=bottleneck_multiplier, se_ratio=se_ratio
    )
    trunk: nn.Module = RegNet(params, num_classes=1, stem_width=stem_width)
    trunk.fc = nn.Identity()
    return trunk


def anynet(
    *,
    depths: Sequence[int],
    widths: Sequence[int],
    group_widths: Sequence[int],
    bottleneck_multipliers: Sequence[float],
    strides: Sequence[int],
    se_ratio: float | None = 0.25,
    stem_width: int = 32,
) -> nn.Module:
    """Build an AnyNet without a classifier: a RegNet whose four stages are given one by one."""
    params = BlockParams(
        depths=list(depths),
        widths=list(widths),
        group_widths=list(group_widths),
        bottleneck_multipliers=list(bottleneck_multipliers),
        strides=list(strides),
        se_ratio=se_ratio,
    )
    if len({len(each) for each in (depths, widths, group_widths, bottleneck_multipliers, strides)}) > 1:
        raise ValueError("depths, widths, group_widths, bottleneck_multipliers and strides must have one length")
    trunk: nn.Module = RegNet(params, num_classes=1, stem_width=stem_width)
    trunk.fc = nn.Identity()
    return trunk


def efficientnet(*, version: str = "b0", bn_epsilon: float = 1e-3) -> nn.Module:
    """Build torchvision's EfficientNet `b0` to `b7` without a classifier, with another epsilon of its batch norms."""
    if f"efficientnet_{version}" not in torchvision.models.list_models(include="efficientnet_b*"):
        raise ValueError(f"version must be b0 to b7; got {version!r}")
    trunk: Any = torchvision.models.get_model(f"efficientnet_{version}", weights=None)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = bn_epsilon
    trunk.classifier = nn.Identity()
    built: nn.Module = trunk
    return built


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkSpec:
    """A trunk that torchvision lacks: its builder, with which arguments, and where it is described."""

    build: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str


def _vit(dim: int, depth: int, num_heads: int, patch_size: int, source: str, **options: Any) -> TrunkSpec:
    sizes = {"dim": dim, "depth": depth, "num_heads": num_heads, "patch_size": patch_size}
    return TrunkSpec(build=ViT, options=sizes | options, source=source)


def _wide(depth: int, width: int) -> TrunkSpec:
    options = {"depth": depth, "width_multiplier": width}
    return TrunkSpec(build=resnet, options=options, source="VISSL, SwAV, SimCLR (not torchvision's wide_resnet)")


_DINOV2: Mapping[str, Any] = {"layer_scale": True, "position_resize": "offset"}
_REGISTERS: Mapping[str, Any] = {"layer_scale": True, "register_tokens": 4, "position_resize": "antialias"}

TRUNKS: Mapping[str, TrunkSpec] = {
    "resnet": TrunkSpec(build=resnet, source="any, by depth, width_multiplier, groups, width_per_group"),
    "resnet200": TrunkSpec(build=resnet, options={"depth": 200}, source="He et al. 2016, arXiv:1603.05027"),
    "resnet50w2": _wide(50, 2),
    "resnet50w4": _wide(50, 4),
    "resnet50w5": _wide(50, 5),
    "resnet101w2": _wide(101, 2),
    "resnet152w2": _wide(152, 2),
    "resnet200w2": _wide(200, 2),
    "regnet": TrunkSpec(build=regnet, source="any, by depth, w_0, w_a, w_m, group_width"),
    "regnet_y_64gf": TrunkSpec(
        build=regnet,
        options={"depth": 20, "w_0": 368, "w_a": 102.79, "w_m": 2.05, "group_width": 496},
        source="ClassyVision, VISSL",
    ),
    "regnet_y_256gf": TrunkSpec(
        build=regnet,
        options={"depth": 27, "w_0": 640, "w_a": 230.83, "w_m": 2.53, "group_width": 373},
        source="SEER, arXiv:2103.01988, and VISSL's documentation; ClassyVision has another of that name",
    ),
    "anynet": TrunkSpec(build=anynet, source="any RegNet, stage by stage: depths, widths, group_widths, ..."),
    "efficientnet": TrunkSpec(build=efficientnet, source="torchvision's by version, with VISSL's epsilon"),
    "resnet_sk": TrunkSpec(build=ResNetSK, source="SimCLR v2, arXiv:2006.10029: depth, width_multiplier, sk_ratio"),
    **{
        f"alexnet_{variant}": TrunkSpec(build=AlexNetStages, options={"variant": variant}, source="VISSL")
        for variant in VARIANTS
    },
    "convit": TrunkSpec(build=convit, source="VISSL: dim, depth, num_heads, local_layers, ..."),
    "vit": TrunkSpec(build=ViT, source="any, by dim, depth, num_heads, patch_size, ..."),
    "vit_tiny_16": _vit(192, 12, 3, 16, "DeiT, arXiv:2012.12877"),
    "vit_small_16": _vit(384, 12, 6, 16, "DeiT; DINO, arXiv:2104.14294; iBOT, arXiv:2111.07832"),
    "vit_small_8": _vit(384, 12, 6, 8, "DINO"),
    "vit_base_16": _vit(768, 12, 12, 16, "DeiT, DINO, iBOT, MAE, MoCo v3"),
    "vit_base_8": _vit(768, 12, 12, 8, "DINO"),
    "vit_large_16": _vit(1024, 24, 16, 16, "iBOT; MAE, arXiv:2111.06377"),
    "vit_huge_14": _vit(1280, 32, 16, 14, "MAE"),
    "mocov3_vit_small_16": _vit(384, 12, 12, 16, "MoCo v3, arXiv:2104.02057: twelve heads, the same shapes as six"),
    "dinov2_vits14": _vit(384, 12, 6, 14, "DINOv2, arXiv:2304.07193", **_DINOV2),
    "dinov2_vitb14": _vit(768, 12, 12, 14, "DINOv2", **_DINOV2),
    "dinov2_vitl14": _vit(1024, 24, 16, 14, "DINOv2", **_DINOV2),
    "dinov2_vitg14": _vit(1536, 40, 24, 14, "DINOv2", feed_forward="swiglu", **_DINOV2),
    "dinov2_vits14_reg": _vit(384, 12, 6, 14, "DINOv2 with registers", **_REGISTERS),
    "dinov2_vitb14_reg": _vit(768, 12, 12, 14, "DINOv2 with registers", **_REGISTERS),
    "dinov2_vitl14_reg": _vit(1024, 24, 16, 14, "DINOv2 with registers", **_REGISTERS),
    "dinov2_vitg14_reg": _vit(1536, 40, 24, 14, "DINOv2 with registers", feed_forward="swiglu", **_REGISTERS),
}
"""Trunks that torchvision lacks; `model.options` are added to these arguments."""


def trunk_names() -> list[str]:
    """Every trunk of torchvision and of the table, without timm's and the user's own functions."""
    return sorted([*torchvision.models.list_models(module=torchvision.models), *TRUNKS])


def timm_names() -> list[str]:
    """Every model of timm; none if timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return [TIMM + name for name in timm.list_models()]


def build_trunk(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    heads: Sequence[tuple[str, Mapping[str, Any]]] = (),
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a model with random parameters from `seed`, in eval mode.

    Parameters
    ----------
    name : str
        One of `trunk_names()`, `timm:NAME`, or a function that returns a module: `file.py:function`
        or `package.module:function`, whose code is run.
    options : mapping, optional
        Keyword arguments of the model's constructor.
    heads : sequence of (str, mapping)
        Names and parameters of heads on the trunk's output; see `featbench.extract.model.heads`.
    seed : int
        Seed of the parameters.
    image_size : (int, int), optional
        Height and width for which a model with position embeddings is built.

    Raises
    ------
    ModelError
        If the name is unknown, or the constructor refuses the options.
    """
    builder, usual = _builder(name)
    options = without_loading(name, options or {})
    with _seeded(seed):
        try:
            trunk: nn.Module = builder(**{**usual, **_sized(builder, options, image_size)})
            if name.startswith(TIMM):
                _set_size(trunk, image_size)
        except Exception as error:  # constructors raise builtin errors of many kinds
            text = str(error) or type(error).__name__
            size = f" for images of {image_size[0]} x {image_size[1]} pixels" if image_size else ""
            raise ModelError(f"{name} cannot be built with model.options={options}{size}: {text}") from error
        if not isinstance(trunk, nn.Module):
            raise ModelError(f"{name} returned a {type(trunk).__name__}, not a torch.nn.Module")
        _refuse_lazy(trunk, name)
        if heads:
            trunk = TrunkWithHeads(_without_classifier(trunk), build_heads(heads))
    return trunk.eval().requires_grad_(False)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every generator that a constructor may use, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class WithoutMemory(TorchFunctionMode):
    """Build models whose parameters have shapes but no memory; move such a model to `meta` afterwards."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Create empty tensors, as which parameters begin, on torch's device `meta`."""
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def _refuse_lazy(trunk: nn.Module, name: str) -> None:
    tensors = [*trunk.named_parameters(), *trunk.named_buffers()]
    lazy = [path for path, tensor in tensors if isinstance(tensor, UninitializedParameter | UninitializedBuffer)]
    if lazy:
        raise ModelError(
            f"{name}: {len(lazy)} of its parameters have no shape yet: {abbreviate(lazy)}. They are in lazy modules: "
            f"let its function run the model once, on an image of the intended size, before it returns it"
        )


def build_without_memory(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    heads: Sequence[tuple[str, Mapping[str, Any]]] = (),
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a model on torch's device `meta`; on the CPU if its constructor computes with its parameters.

    Takes the arguments of `build_trunk`, and raises what it raises.
    """
    try:
        with WithoutMemory():
            trunk = build_trunk(name, options, heads=heads, image_size=image_size)
        return trunk.to("meta")
    except ModelError:
        return build_trunk(name, options, heads=heads, image_size=image_size)


def check_name(name: str) -> None:
    """Refuse a name that is not a trunk's, without running anything.

    Raises
    ------
    ModelError
        If the trunk is unknown, or the file of its function does not exist.
    """
    if not is_own(name):
        _builder(name)
    elif (place := name.rpartition(":")[0]).endswith(".py") and not Path(place).is_file():
        raise ModelError(f"{name}: no file {place}")


def is_own(name: str) -> bool:
    """Whether a trunk is a function of the user's code."""
    return ":" in name and not name.startswith(TIMM)


def code_of(name: str) -> Path | None:
    """Return the file with the code of the user's own model, whose digest enters the fingerprint; None for others."""
    if not is_own(name):
        return None
    file, _, _ = name.rpartition(":")
    if file.endswith(".py"):
        return Path(file)
    spec = importlib.util.find_spec(file)
    return Path(spec.origin) if spec and spec.origin else None


def _builder(name: str) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    if name.startswith(TIMM):
        return _timm_builder(name.removeprefix(TIMM)), {}
    if ":" in name:
        return _own_builder(name), {}
    if name in TRUNKS:
        return TRUNKS[name].build, TRUNKS[name].options
    if name not in trunk_names():
        raise ModelError(
            f"unknown trunk {name!r}. {suggest(name, trunk_names())} "
            f"timm's models are named timm:NAME, functions of your own file.py:function or package.module:function."
        )
    builder = torchvision.models.get_model_builder(name)
    usual = {"init_weights": True} if name in NEEDS_TRANSFORM_INPUT else {}  # torchvision warns unless it is given
    return builder, {"weights": None, **usual}


def _timm_builder(name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"timm:{name} needs timm, which is not installed: pip install 'featbench[timm]'") from error
    base, _, tag = name.partition(".")
    if base not in timm.list_models():
        raise ModelError(f"timm has no model {name!r}. {suggest(name, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ModelError(f"timm has no weights {tag!r} for {base}. {suggest(tag, tags)}")
    return lambda **options: timm.create_model(name, pretrained=False, **options)


def timm_preprocessing(name: str) -> Mapping[str, Any] | None:
    """Return timm's `pretrained_cfg` of `timm:NAME` or `timm:NAME.TAG`; None if there is none."""
    try:
        import timm
    except ImportError:
        return None
    try:
        config = timm.models.get_pretrained_cfg(name.removeprefix(TIMM))
    except RuntimeError:  # an unknown tag
        return None
    return asdict(config) if config is not None else None


def _own_builder(name: str) -> Callable[..., Any]:
    place, _, function = name.rpartition(":")
    code = (Path(place).resolve(), name)
    if code not in _announced:
        logger.warning("%s: running the code of %s", name, place)
        _announced.add(code)
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise ModelError(f"{name}: no file {place}")
            spec = importlib.util.spec_from_file_location(f"bench_model_{Path(place).stem}", place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except ModelError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ModelError(
            f"{name}: {place} cannot be imported: {type(error).__name__}: {error}{_beside(place, error)}"
        ) from error
    if not callable(getattr(module, function, None)):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ModelError(f"{name}: {place} has no function {function!r}. {suggest(function, known)}")
    builder: Callable[..., Any] = getattr(module, function)
    return builder


def _beside(place: str, error: Exception) -> str:
    """Advice if the missing module is beside the model's file, whose folder is not on Python's path."""
    folder = Path(place).resolve().parent
    missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if (
        not place.endswith(".py")
        or not missing
        or not {f"{missing}.py", missing} & {each.name for each in folder.iterdir()}
    ):
        return ""
    return f". It is beside {Path(place).name}, where Python does not look: set PYTHONPATH={folder}"


def _sized(builder: Callable[..., Any], options: dict[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Add the image size to the options of a model with position embeddings, unless they have one."""
    if image_size is None or "image_size" in options:
        return options
    if builder in (ViT, convit):
        return {**options, "image_size": image_size}
    if getattr(builder, "__name__", "").startswith("vit_") and builder.__module__.startswith("torchvision."):
        if image_size[0] != image_size[1]:
            raise ValueError(f"it takes square images, not {image_size[0]} x {image_size[1]} pixels")
        return {**options, "image_size": image_size[0]}
    return options


def _set_size(trunk: Any, image_size: tuple[int, int] | None) -> None:
    """Pass the image size to a model of timm that has position embeddings."""
    built_for = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if image_size is not None and built_for not in (None, image_size) and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=image_size)


def _without_classifier(trunk: nn.Module) -> nn.Module:
    path = classifier_of(trunk)
    if path:
        trunk.set_submodule(path, nn.Identity())
    return trunk
