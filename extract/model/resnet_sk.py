"""SimCLR v2's ResNets with selective kernels, with VISSL's parameter names."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from featbench.extract.model.resnet import BLOCKS

SMALLEST_MIXER = 32
"""Fewest channels of the layer that weighs the two kernels."""


class ResNetSK(nn.Module):
    """A ResNet of bottlenecks whose 3 x 3 convolutions come in pairs, mixed by a softmax; the output is the mean.

    Parameters
    ----------
    depth : {50, 101, 152, 200}
        Number of layers.
    width_multiplier : int
        Factor of all planes.
    sk_ratio : float
        Channels of the mixing layer in multiples of the convolution's; 0 for plain bottlenecks.

    References
    ----------
    Chen et al., arXiv:2006.10029; Li et al. (selective kernels), arXiv:1903.06586.
    """

    def __init__(self, *, depth: int = 152, width_multiplier: int = 3, sk_ratio: float = 0.0625) -> None:
        super().__init__()
        known = [each for each in BLOCKS if each >= 50]
        if depth not in known or width_multiplier < 1 or sk_ratio < 0:
            raise ValueError(
                f"depth must be one of {', '.join(map(str, known))}, width_multiplier at least 1 and sk_ratio at least "
                f"0; got {depth}, {width_multiplier}, {sk_ratio}"
            )
        planes = 64 * width_multiplier
        stages: list[nn.Module] = [_stem(planes, deep=sk_ratio > 0)]
        width = planes
        for index, count in enumerate(BLOCKS[depth][1]):
            inner = planes * 2**index
            stages.append(Stage(count, width, inner, 1 if index == 0 else 2, sk_ratio))
            width = 4 * inner
        self.net = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, D)."""
        output: Tensor = self.net(images).mean(dim=(2, 3))
        return output


class Stage(nn.Module):
    """Bottlenecks, of which the first changes width and resolution."""

    def __init__(self, count: int, width: int, inner: int, stride: int, sk_ratio: float) -> None:
        super().__init__()
        first = SkBottleneck(width, inner, stride, sk_ratio, changes=True)
        others = (SkBottleneck(4 * inner, inner, 1, sk_ratio, changes=False) for _ in range(count - 1))
        self.blocks = nn.ModuleList(chain((first,), others))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        for block in self.blocks:
            maps = block(maps)
        return maps


class SkBottleneck(nn.Module):
    """Three convolutions with a residual connection."""

    def __init__(self, width: int, inner: int, stride: int, sk_ratio: float, *, changes: bool) -> None:
        super().__init__()
        self.projection = Projection(width, 4 * inner, stride, padded=sk_ratio > 0) if changes else nn.Identity()
        middle = (
            [SelectiveKernel(inner, stride, sk_ratio)]
            if sk_ratio > 0
            else [_convolution(inner, inner, 3, stride), _normed(inner)]
        )
        self.net = nn.Sequential(
            _convolution(width, inner, 1),
            _normed(inner),
            *middle,
            _convolution(inner, 4 * inner, 1),
            _normed(4 * inner, relu=False),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        return torch.relu(self.projection(maps) + self.net(maps))


class Projection(nn.Module):
    """The shortcut where width or resolution change; with selective kernels it averages 2 x 2 before it projects."""

    def __init__(self, width: int, outer: int, stride: int, *, padded: bool) -> None:
        super().__init__()
        self.shortcut: nn.Module = _convolution(width, outer, 1, stride)
        if padded:
            # One more row and column below and to the right, so that stride 1 keeps the size.
            averaged = (nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, stride=stride))
            self.shortcut = nn.Sequential(*averaged, _convolution(width, outer, 1))
        self.bn = _normed(outer, relu=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        output: Tensor = self.bn(self.shortcut(maps))
        return output


class SelectiveKernel(nn.Module):
    """Two convolutions, and weights that mix them, for each image and channel."""

    def __init__(self, width: int, stride: int, sk_ratio: float) -> None:
        super().__init__()
        mixer = max(int(width * sk_ratio), SMALLEST_MIXER)
        self.main_conv = nn.Sequential(_convolution(width, 2 * width, 3, stride), _normed(2 * width))
        self.mixing_conv = nn.Sequential(
            _convolution(width, mixer, 1), _normed(mixer), _convolution(mixer, 2 * width, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H', W')."""
        both = self.main_conv(maps).unflatten(1, (2, -1))
        pooled = both.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        weights = self.mixing_conv(pooled).unflatten(1, (2, -1)).softmax(dim=1)
        mixed: Tensor = (both * weights).sum(dim=1)
        return mixed


def _stem(planes: int, *, deep: bool) -> nn.Module:
    pooling = nn.MaxPool2d(3, stride=2, padding=1)
    if not deep:
        return nn.Sequential(_convolution(3, planes, 7, 2), _normed(planes), pooling)
    half = planes // 2
    return nn.Sequential(
        _convolution(3, half, 3, 2), _normed(half), _convolution(half, half, 3), _normed(half),
        _convolution(half, planes, 3), _normed(planes), pooling,
    )  # fmt: skip


def _convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride=stride, padding=(size - 1) // 2, bias=False)


def _normed(width: int, *, relu: bool = True) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU() if relu else nn.Identity())
