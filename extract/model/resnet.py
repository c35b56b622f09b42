"""ResNets whose every plane can be widened, the stem included, as VISSL, SwAV and SimCLR widen them.

torchvision's `wide_resnet50_2` widens the inner convolutions of its blocks alone; here the output
grows as well: 4,096 numbers at twice the width. Parameters have torchvision's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

BLOCKS: Mapping[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
"""Kind and number of blocks of the four stages, by depth."""


def resnet(
    *,
    depth: int = 50,
    width_multiplier: int = 1,
    groups: int = 1,
    width_per_group: int = 64,
    layer4_stride: int = 2,
) -> nn.Module:
    """Build a ResNet or ResNeXt without a classifier.

    Parameters
    ----------
    depth : {18, 34, 50, 101, 152, 200}
        Layers.
    width_multiplier : int
        Factor of every plane, the stem's 64 included.
    groups, width_per_group : int
        Of the inner convolutions: 32 and 8 make ResNeXt-101-32x8d of depth 101.
    layer4_stride : {1, 2}
        Of the last stage.

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
    trunk.fc = nn.Identity()
    built: nn.Module = trunk
    return built
