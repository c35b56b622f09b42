"""Position embeddings of a vision transformer, interpolated for images of another size.

Shape suffixes:  T tokens, the prefix first   D dimension   H, W patches in height and width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.model.tap_names import body_of, tokens_of


def is_position(name: str) -> bool:
    """Whether a parameter holds absolute position embeddings, by its name."""
    return name.endswith(("pos_embed", "pos_embedding"))


def interpolated(trunk: nn.Module, positions_1TD: Tensor, shape: torch.Size) -> tuple[Tensor, str] | None:
    """Interpolate position embeddings to the shape that the trunk has; None if they differ in more than the grid.

    The positions of the class token stay; the file's grid must be a square. It is bicubic, and the trunk's
    `position_resize` says which: `offset` adds a tenth of a patch to the sides when it computes the scale, as DINOv2
    does, `antialias` smooths before it shrinks, as DINOv2 does with registers.

    Parameters
    ----------
    trunk : nn.Module
        A vision transformer, for its grid.
    positions_1TD : Tensor of shape (1, T, D)
        The file's.
    shape : (1, T', D)
        The trunk's.

    Returns
    -------
    Tensor of shape (1, T', D), and a text for the record
    """
    tokens = tokens_of(body_of(trunk)[0])
    if tokens is None or positions_1TD.ndim != 3 or positions_1TD.shape[2] != shape[2]:
        return None
    side = int(positions_1TD.shape[1] ** 0.5)
    prefix = positions_1TD.shape[1] - side**2
    height, width = tokens.grid or (int((shape[1] - prefix) ** 0.5),) * 2
    if prefix not in (0, 1, tokens.prefix) or prefix + height * width != shape[1]:
        return None
    grid = positions_1TD[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    how = getattr(body_of(trunk)[0], "position_resize", "bicubic")
    if how == "offset":
        scale = ((height + 0.1) / side, (width + 0.1) / side)
        resized = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    else:
        resized = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=how == "antialias")
    patches = resized.permute(0, 2, 3, 1).flatten(1, 2)
    text = f"{side} x {side} -> {height} x {width}, {how}"
    return torch.cat((positions_1TD[:, :prefix].float(), patches), dim=1), text
