"""Random weights that depend on nothing but the seed; a model that loads others is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featbench.extract.errors import ModelError
from featbench.extract.model.options import is_own
from featbench.extract.model.trunks import build_trunk
from featbench.store import abbreviate

_NUM_SAMPLES = 4096
"""Values of each parameter that are compared."""


def build_random(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    heads: Sequence[tuple[str, Mapping[str, Any]]] = (),
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a model with random parameters, and make sure that they come from the seed.

    If code or options could load weights, the model is first built with another seed: a parameter that
    is the same both times does not come from the seed. Takes the arguments of `build_trunk`.

    Raises
    ------
    ModelError
        If some parameters don't depend on the seed, or `build_trunk` raises it.
    """
    could_load = is_own(name) or bool(options)
    build = partial(build_trunk, name, options, heads=heads, image_size=image_size)
    others = samples(build(seed=seed + 1)) if could_load else {}
    trunk = build(seed=seed)
    if could_load:
        mine = samples(trunk)
        fixed = [path for path, sample in mine.items() if path in others and torch.equal(sample, others[path])]
        if fixed:
            way_on = (
                "If its function loads them, or sets a seed of its own, say weights.as_built=true instead of a seed."
                if is_own(name)
                else "Give them with --weights FILE."
            )
            raise ModelError(
                f"{name}: {len(fixed)} of its {len(mine)} weight matrices are the same for every seed, "
                f"so they are not random: {abbreviate(fixed)}. {way_on}"
            )
    return trunk


def samples(trunk: nn.Module) -> dict[str, Tensor]:
    """Some values of each parameter that a constructor would initialize at random: those with two axes or more.

    Left out are position embeddings, which may be computed (sines and cosines), and parameters that are constant,
    the same in each row, or the identity.
    """
    return {
        path: parameter.detach().flatten()[:: max(1, parameter.numel() // _NUM_SAMPLES)].clone()
        for path, parameter in trunk.named_parameters()
        if parameter.ndim > 1
        and parameter.numel()
        and not re.search(r"(^|[._])pos", path)
        and not _made_without_chance(parameter.detach())
    }


def _made_without_chance(parameter: Tensor) -> bool:
    rows = parameter.flatten(1)
    first = rows[:1] if len(rows) > 1 else rows[:1, :1]
    if bool((rows[:2] == first).all()) and bool((rows == first).all()):
        return True
    return rows.shape[0] == rows.shape[1] and torch.equal(rows, torch.eye(len(rows), dtype=rows.dtype))
