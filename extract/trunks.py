"""Trunks: torchvision's classification models by name, and what VISSL calls their taps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import nn

from store import BenchError, nearest


class ModelError(BenchError):
    """A model or a tap that does not exist, or can't be built."""


FLATTEN = "|flatten"
"""After a module's name: its output is flattened to one vector."""

_RESNET = {
    "conv1": "relu",
    "res1": "maxpool",
    "res2": "layer1",
    "res3": "layer2",
    "res4": "layer3",
    "res5": "layer4",
    "res5avg": "avgpool",
    "flatten": f"avgpool{FLATTEN}",
}
_REGNET = {
    "conv1": "stem",
    "res2": "trunk_output.block1",
    "res3": "trunk_output.block2",
    "res4": "trunk_output.block3",
    "res5": "trunk_output.block4",
    "avgpool": "avgpool",
    "flatten": f"avgpool{FLATTEN}",
}

ALIASES: Mapping[str, Mapping[str, str]] = {
    "resnet": _RESNET,
    "resnext": _RESNET,
    "wide_resnet": _RESNET,
    "regnet": _REGNET,
}
"""VISSL's names of taps, by the beginning of the trunk's name. VISSL's `conv1` is after batch norm and ReLU."""

CHANNEL_AXES: Mapping[str, tuple[tuple[str, int | None], ...]] = {
    "swin": ((r"features\.0\.0|permute|avgpool", 1), (r".*\.(attn|mlp)\..*", None), (r".*", 3)),
    "convnext": ((r".*\.block\.[1-5]", 3), (r".*", 1)),
    "maxvit": ((r".*_attention\..*", None), (r".*", 1)),
}
"""Where the channels of a four-dimensional activation are, by the beginning of the trunk's name: the first pattern that
matches the tap's path counts. None is not known: windows of positions, say. Other trunks have them in axis 1."""

NEEDS_TRANSFORM_INPUT = ("googlenet", "inception_v3")
"""Trunks whose torchvision weights expect the input to be rescaled by the model itself."""


def trunk_names() -> list[str]:
    """Every trunk that can be asked for."""
    return list(torchvision.models.list_models(module=torchvision.models))


def build_trunk(name: str, options: Mapping[str, Any] | None = None, *, seed: int = 0) -> nn.Module:
    """Build a torchvision model with random parameters from `seed`, in eval mode.

    Raises
    ------
    ModelError
        If the name is unknown, or the constructor refuses the options.
    """
    if name not in trunk_names():
        raise ModelError(f"unknown trunk {name!r}. {nearest(name, trunk_names())}")
    builder = torchvision.models.get_model_builder(name)
    options = dict(options or {})
    if name in NEEDS_TRANSFORM_INPUT:
        options.setdefault("init_weights", True)  # torchvision warns where it is not said
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            trunk: nn.Module = builder(weights=None, **options)
        except Exception as error:  # constructors raise builtin errors of many kinds
            raise ModelError(f"{name} cannot be built with model.options={options}: {error}") from error
    return trunk.eval().requires_grad_(False)


def resolve_tap(trunk: nn.Module, name: str, tap: str) -> tuple[str, bool]:
    """Return the module path that a tap means in the trunk called `name`, and whether it is flattened.

    Raises
    ------
    ModelError
        If there is no such tap; the message has the nearest ones.
    """
    aliases = aliases_of(name)
    path = aliases.get(tap, tap)
    path, _, flatten = path.partition("|")
    modules = [module for module, _ in trunk.named_modules() if module]
    if path not in modules:
        known = [*aliases, *modules]
        raise ModelError(f"{name} has no tap {tap!r}. {nearest(tap, known)} `bench layers {name}` lists them all.")
    return path, bool(flatten)


def aliases_of(name: str) -> Mapping[str, str]:
    """VISSL's names for the taps of a trunk."""
    return next((aliases for start, aliases in ALIASES.items() if name.startswith(start)), {})


def channel_axis(name: str, path: str) -> int | None:
    """Axis of the channels in a four-dimensional activation of a tap, counting the batch; None if it is not known."""
    patterns = next((axes for start, axes in CHANNEL_AXES.items() if name.startswith(start)), ((r".*", 1),))
    return next(axis for pattern, axis in patterns if re.fullmatch(pattern, path))
