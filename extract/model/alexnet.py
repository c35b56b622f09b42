"""The AlexNets of early self-supervised methods, with VISSL's parameter names: a number for each of eight stages.

They differ in stride, groups and normalization: Caffe's (BVLC), Jigsaw's, RotNet's, Colorization's, which sees
lightness alone, and DeepCluster's, which begins with a Sobel filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from featbench.extract.model.resnet import FirstChannelConv2d

STAGES = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
"""VISSL's names of the stages, whose modules are numbered from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What distinguishes an AlexNet from the others."""

    widths: tuple[int, int, int, int, int]
    stride: int = 4
    padding: int = 2
    groups: int = 1
    """Of the second, fourth and fifth convolution."""

    batch_norm: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Convolutions, counted from 1, that batch norm follows."""

    local_norm: Literal["", "before", "after"] = ""
    """Whether local response norm is before or after the first two poolings."""

    sobel: bool = False
    lightness: bool = False
    """Whether it takes only the first channel, L* of L*a*b*."""


VARIANTS: Mapping[str, Variant] = {
    "bvlc": Variant(widths=(96, 256, 384, 384, 256), padding=0, groups=2, batch_norm=(), local_norm="before"),
    "jigsaw": Variant(
        widths=(96, 256, 384, 384, 256), stride=2, padding=0, groups=2, batch_norm=(3, 4, 5), local_norm="after"
    ),
    "rotnet": Variant(widths=(64, 192, 384, 256, 256)),
    "deepcluster": Variant(widths=(96, 256, 384, 384, 256), sobel=True),
    "colorization": Variant(widths=(96, 256, 384, 384, 256), padding=0, groups=2, lightness=True),
}


class AlexNetStages(nn.Module):
    """An AlexNet without its classifier; its output is the flattened last stage.

    Parameters
    ----------
    variant : {"bvlc", "jigsaw", "rotnet", "deepcluster", "colorization"}
        See `VARIANTS`.

    References
    ----------
    Krizhevsky et al. 2012; Noroozi and Favaro (Jigsaw), arXiv:1603.09246; Gidaris et al. (RotNet), arXiv:1803.07728;
    Caron et al. (DeepCluster), arXiv:1807.05520; Zhang et al. (Colorization), arXiv:1603.08511.
    """

    def __init__(self, *, variant: str) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        of = VARIANTS[variant]
        # A gray image, then its horizontal and vertical derivative; the filters are in the file.
        self.sobel = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1)) if of.sobel else None
        if of.lightness:
            first: nn.Conv2d = FirstChannelConv2d(of.widths[0], 11, stride=of.stride, padding=of.padding)
        else:
            first = nn.Conv2d(2 if of.sobel else 3, of.widths[0], 11, stride=of.stride, padding=of.padding)
        second = nn.Conv2d(of.widths[0], of.widths[1], 5, padding=2, groups=of.groups)
        third = nn.Conv2d(of.widths[1], of.widths[2], 3, padding=1)
        last = [
            nn.Conv2d(before, after, 3, padding=1, groups=of.groups)
            for before, after in zip(of.widths[2:4], of.widths[3:], strict=True)
        ]
        convolutions = [first, second, third, *last]
        stages = [_stage(conv, batch_norm=place in of.batch_norm) for place, conv in enumerate(convolutions, start=1)]
        stages[1:1] = [_pooling(of)]
        stages[3:3] = [_pooling(of)]
        stages.append(nn.MaxPool2d(3, stride=2))
        for number, stage in enumerate(stages):
            self.add_module(str(number), stage)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, D)."""
        maps = images if self.sobel is None else self.sobel(images)
        for number in range(len(STAGES)):
            maps = self.get_submodule(str(number))(maps)
        return maps.flatten(1)


def _stage(convolution: nn.Conv2d, *, batch_norm: bool) -> nn.Module:
    norm = [nn.BatchNorm2d(convolution.out_channels)] if batch_norm else []
    return nn.Sequential(convolution, *norm, nn.ReLU())


def _pooling(of: Variant) -> nn.Module:
    pooling, norm = nn.MaxPool2d(3, stride=2), nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
    if not of.local_norm:
        return pooling
    return nn.Sequential(norm, pooling) if of.local_norm == "before" else nn.Sequential(pooling, norm)
