"""Constructor options that load weights are refused, so that no weights bypass the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featbench.extract.errors import ModelError

TIMM = "timm:"
"""Prefix of the names of timm's models."""

LOADS_WEIGHTS = (
    "weights", "weights_backbone", "pretrained", "pretrained_backbone",
    "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay",
)  # fmt: skip
"""Options of torchvision's constructors, then of timm's, that load weights or say which."""


def is_own(name: str) -> bool:
    """Whether a trunk is a function of the user: `file.py:function` or `package.module:function`."""
    return ":" in name and not name.startswith(TIMM)


def without_loading(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a library's constructor without those that would load weights, which must be null or false.

    A function of the user may have any options; see `featbench.extract.model.seeding`.

    Raises
    ------
    ModelError
        If one of them would load something.
    """
    if is_own(name):
        return dict(options)
    loading = [option for option in LOADS_WEIGHTS if options.get(option)]
    if loading:
        timm = name.startswith(TIMM)
        by_name = (
            "timm's preprocessing by model.trunk=timm:NAME.TAG" if timm else "torchvision's own by --weights DEFAULT"
        )
        raise ModelError(
            f"{name}: model.options.{loading[0]}={options[loading[0]]!r} would load weights without any checks. "
            f"Remove it; give a checkpoint by --weights FILE, {by_name}"
        )
    return {option: value for option, value in options.items() if option not in LOADS_WEIGHTS}
