"""The colours of images as lightness and two opponent channels, CIE L*a*b*, which models of colorization take.

They are OpenCV's for bytes, whose L* such models were trained with: a table of 8 steps a level for sRGB's gamma, one
for the cube root, and integers in between. In 2 million random colours L* was always OpenCV's own; a* and b* differed
by 1 in 6 of 100,000.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.950456, 1, 1.088754])
_STEPS, _UNIT, _ONE = 8, 4096, 1 << 15
"""Steps in a level after the gamma, and what stands for 1 in the matrix and after the cube root."""


@cache
def _tables() -> tuple[Tensor, Tensor, list[list[int]]]:
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    ratios = np.arange(384 * _STEPS) / (255 * _STEPS)
    roots = np.where(ratios < 0.008856, ratios * 7.787 + 16 / 116, np.cbrt(ratios))
    matrix = np.rint(_UNIT * _XYZ / _WHITE[:, None]).astype(int)
    gamma = torch.from_numpy(np.rint(255 * _STEPS * linear).astype(np.int32))
    return gamma, torch.from_numpy(np.rint(_ONE * roots).astype(np.int32)), matrix.tolist()


def lab_of(pixels: Tensor) -> Tensor:
    """Convert bytes of red, green and blue (B, 3, H, W) to float32 L* - 50, a* and b*.

    Examples
    --------
    >>> lab_of(torch.tensor([[0, 255], [0, 255], [0, 255]], dtype=torch.uint8).view(1, 3, 1, 2)).tolist()
    [[[[-50.0, 50.0]], [[0.0, 0.0]], [[0.0, 0.0]]]]
    """
    gamma, roots, matrix = _tables()
    gamma, roots = gamma.to(pixels.device), roots.to(pixels.device)
    colours = [gamma[pixels[:, channel].int()] for channel in range(3)]
    x, y, z = (
        roots[_halved(sum((share * each for share, each in zip(row, colours, strict=True)), colours[0] * 0), 12)]
        for row in matrix
    )
    lightness = _halved(296 * y - (16 * 255 * _ONE + 50) // 100, 15)
    middle = 128 * _ONE
    opponents = [_halved(500 * (x - y) + middle, 15), _halved(200 * (y - z) + middle, 15)]
    channels = [each.clamp(0, 255).float() for each in (lightness, *opponents)]
    return torch.stack([channels[0] * (100 / 255) - 50, channels[1] - 128, channels[2] - 128], dim=1)


def _halved(value: Tensor, times: int) -> Tensor:
    """Divide by a power of two, rounded."""
    return (value + (1 << (times - 1))) >> times
