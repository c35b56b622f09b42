"""ResNets in which all planes can be widened, including the stem, as in VISSL, SwAV and SimCLR.

torchvision's `wide_resnet50_2` widens only the inner convolutions of its blocks; here the output
grows as well, to 4,096 at twice the width. Parameters have torchvision's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

BLOCKS: Mapping[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
"""Block type and number of blocks in the four stages, by depth."""


class FirstChannelConv2d(nn.Conv2d):
    """A convolution of the first channel alone, without the others."""

    def __init__(self, out_channels: int, kernel_size: int, **options: Any) -> None:
        super().__init__(1, out_channels, kernel_size, **options)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        return super().forward(images[:, :1])


def resnet(
    *,
    depth: int = 50,
    width_multiplier: int = 1,
    groups: int = 1,
    width_per_group: int = 64,
    layer4_stride: int = 2,
    lightness: bool = False,
) -> nn.Module:
    """Build a ResNet or ResNeXt without a classifier.

    Parameters
    ----------
    depth : {18, 34, 50, 101, 152, 200}
        Number of layers.
    width_multiplier : int
        Factor of all planes, including the stem's 64.
    groups, width_per_group : int
        Groups of the inner convolutions; 32 and 8 with depth 101 give ResNeXt-101-32x8d.
    layer4_stride : {1, 2}
        Stride of the last stage.
    lightness : bool
        Whether it takes only the first channel, L* of L*a*b*, as a model of colorization.

    Raises
    ------
    ValueError
        If the depth is not in the table, or the blocks can't be grouped.

    References
    ----------
    He et al., arXiv:1512.03385; Xie et al., arXiv:1611.05431; Chen et al. (width), arXiv:2002.05709.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}; got {depth}")
    if width_multiplier < 1 or layer4_stride not in (1, 2):
        raise ValueError("width_multiplier must be at least 1, and layer4_stride 1 or 2")
    block, counts = BLOCKS[depth]
    trunk: Any = ResNet(block, list(counts), groups=groups, width_per_group=width_per_group)
    stem = 64 * width_multiplier
    if width_multiplier > 1 or layer4_stride == 1:
        trunk.inplanes = stem
        trunk.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
        trunk.bn1 = nn.BatchNorm2d(stem)
        for index, (count, stride) in enumerate(zip(counts, (1, 2, 2, layer4_stride), strict=True)):
            setattr(trunk, f"layer{index + 1}", trunk._make_layer(block, stem * 2**index, count, stride=stride))
    if lightness:
        trunk.conv1 = FirstChannelConv2d(stem, 7, stride=2, padding=3, bias=False)
    trunk.fc = nn.Identity()
    built: nn.Module = trunk
    return built
