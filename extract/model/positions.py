"""Position embeddings of a vision transformer, interpolated from one grid of patches to another.

Grids matter, not counts: 12 x 12 and 9 x 16 patches are equally many, but at other positions.

Shape suffixes:  T tokens, the prefix first   D dimension   H, W patches in height and width
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from featbench.extract.model.tap_names import body_of

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpolated:
    """Position embeddings interpolated from the grid of the file to that of the trunk."""

    positions_1TD: Tensor
    text: str
    """Both grids and the method, for the record."""

    assumed: bool
    """Whether the file's grid was assumed to be square although the trunk's has the same number of patches."""


def is_position(name: str) -> bool:
    """Whether a parameter is an absolute position embedding, by its name."""
    return name.endswith(("pos_embed", "pos_embedding"))


def grid_of(trunk: nn.Module) -> Grid | None:
    """Grid of patches for which a trunk was built; None if it is not known."""
    body = body_of(trunk)[0]
    if isinstance(body, torchvision.models.VisionTransformer):
        side = int(body.image_size) // int(body.patch_size)
        return side, side
    size = getattr(getattr(body, "patch_embed", None), "grid_size", None)
    return (int(size[0]), int(size[1])) if isinstance(size, tuple | list) and len(size) == 2 else None


def interpolated(
    trunk: nn.Module, positions_1TD: Tensor, shape: torch.Size, *, grid: Grid | None = None
) -> Interpolated | None:
    """Interpolate position embeddings to the trunk's grid; None if there is nothing to do, or it is impossible.

    Positions of prefix tokens stay as they are. Interpolation is bicubic. The trunk's `position_resize` may be
    `offset`, which adds a tenth of a patch to the sides when the scale is computed, as in DINO and DINOv2,
    `antialias`, as in DINOv2 with registers and timm, or `corners`, which keeps the corners where they are, as in
    ClassyVision.

    Parameters
    ----------
    trunk : nn.Module
        A vision transformer, for its grid.
    positions_1TD : Tensor of shape (1, T, D)
        The file's.
    shape : (1, T', D)
        The trunk's.
    grid : (int, int), optional
        The file's grid, if it is known. Otherwise it is a square, or, if the count is not a square, the trunk's grid
        if that has as many patches.
    """
    ours = grid_of(trunk)
    if (
        ours is None
        or not positions_1TD.is_floating_point()
        or positions_1TD.ndim != 3
        or len(shape) != 3
        or positions_1TD.shape[2] != shape[2]
    ):
        return None
    height, width = ours
    prefix = shape[1] - height * width
    count = positions_1TD.shape[1] - prefix
    side = isqrt(max(count, 0))
    assumed = grid is None or grid[0] * grid[1] != count
    theirs = (side, side) if grid is None or assumed else grid
    if prefix < 0 or count < 1 or theirs[0] * theirs[1] != count or theirs == ours:
        return None
    patches = positions_1TD[:, prefix:].float().reshape(1, *theirs, -1).permute(0, 3, 1, 2)
    how = getattr(body_of(trunk)[0], "position_resize", "bicubic")
    if how == "offset":
        scale = ((height + 0.1) / theirs[0], (width + 0.1) / theirs[1])
        resized = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    else:
        aligned = how == "corners"
        resized = F.interpolate(
            patches, size=ours, mode="bicubic", antialias=how == "antialias", align_corners=aligned or None
        )
    positions = torch.cat((positions_1TD[:, :prefix].float(), resized.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
    return Interpolated(
        positions_1TD=positions,
        text=f"{theirs[0]} x {theirs[1]} -> {height} x {width}, {how}",
        assumed=assumed and count == height * width,
    )


def of_another_window(trunk: nn.Module, name: str, table: Tensor, *, grid: Grid | None = None) -> bool:
    """Whether a table of relative positions may be a square window's, though the trunk's window is not square.

    Windows of (8, 8) and of (5, 13) both have 225 relative positions.
    """
    path, _, last = name.rpartition(".")
    window = getattr(trunk.get_submodule(path), "window_size", None) if last == "relative_position_bias_table" else None
    if not isinstance(window, tuple | list) or len(window) != 2 or window[0] == window[1] or tuple(window) == grid:
        return False
    count = (2 * int(window[0]) - 1) * (2 * int(window[1]) - 1)
    return len(table) >= count and isqrt(int(count)) ** 2 == count
