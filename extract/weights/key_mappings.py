"""Renames the tensors of other projects' checkpoints to those of the trunk."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from featbench.extract.weights.layouts import LAYOUTS

HEADS = "/heads/"
"""Prefix of the names of heads, which are `0.clf.0.weight` and so on."""


def laid_out(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Rename the tensors of a state dict to torchvision's, timm's and DINO's names, if it has another layout.

    Returns
    -------
    str
        The layout's name, "" for none.
    dict of str to Tensor
        Without the tensors that the layout drops (classifiers, decoders).
    """
    layout = next((layout for layout in LAYOUTS if any(re.match(layout.mark, name) for name in state)), None)
    if layout is None:
        return "", dict(state)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        if not name.startswith(HEADS):
            for pattern, replacement in layout.renames:
                new = re.sub(pattern, replacement, new)
        if new.startswith(HEADS) or "/" not in new:
            renamed[name if new in renamed else new] = (
                tensor  # a name that would collide stays as it is, and is refused as left over
            )
    return layout.name, layout.reshape(renamed)
