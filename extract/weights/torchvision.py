"""Weights published by torchvision, found by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from featbench.extract.errors import WeightsError
from featbench.store import suggest


def torchvision_weights(trunk: str, name: str) -> Any:
    """Find torchvision's own weights by name, such as IMAGENET1K_V2 or DEFAULT; nothing is downloaded yet.

    Raises
    ------
    WeightsError
        If torchvision has none of that name for this trunk.
    """
    if trunk not in torchvision.models.list_models(module=torchvision.models):
        raise WeightsError(f"torchvision has no trunk {trunk}, so no weights {name!r}: give --weights FILE")
    known = torchvision.models.get_model_weights(trunk)
    short = name.split(".")[-1].removeprefix("torchvision:")
    if short not in known.__members__:
        raise WeightsError(f"torchvision has no weights {name!r} for {trunk}. {suggest(short, known.__members__)}")
    return known[short]


def download(weights: Any) -> dict[str, Tensor]:
    """Fetch torchvision's weights, or take them from torch's cache.

    Raises
    ------
    WeightsError
        If there is no network and nothing in the cache.
    """
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise WeightsError(
            f"{weights}: cannot be downloaded ({error}). Fetch {weights.url} elsewhere and put it at {cache}, "
            f"or give a file with --weights FILE."
        ) from error
