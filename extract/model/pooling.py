"""Pooling of one activation, as VISSL's five operations or, by default, the mean.

Shape suffixes:  B batch   C channels   H, W height and width   T tokens   D dimension
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from featbench.store import Pooling


def pool(activation: Tensor, pooling: Pooling | None, *, channel_axis: int | None = 1) -> Tensor:
    """Pool the activation of a batch; the result shares no memory with it.

    Parameters
    ----------
    activation : Tensor of shape (B, C, H, W), (B, T, D) or (B, D)
        Output of the tap.
    pooling : Pooling, optional
        None is the mean over H and W, or over T; a (B, D) activation stays as it is.
    channel_axis : {1, 3}, optional
        Axis of a map's channels; None if it is not known, so that only Identity is possible.

    Returns
    -------
    Tensor of shape (B, C), (B, D) or (B, C, H', W')

    Raises
    ------
    ValueError
        If the operation does not fit the activation's shape.
    """
    if pooling is not None and pooling.op == "Identity":
        return activation.clone()
    if activation.ndim == 4 and channel_axis is None:
        raise ValueError("which of its axes are height and width is not known; store it unpooled with Identity")
    if activation.ndim == 4 and channel_axis == 3:
        activation = activation.permute(0, 3, 1, 2)
    if pooling is None:
        if activation.ndim == 4:
            return activation.mean(dim=(2, 3))
        if activation.ndim == 3:
            return activation.mean(dim=1)
        if activation.ndim == 2:
            return activation.clone()
        raise ValueError(f"it has shape {tuple(activation.shape[1:])}; pool a map, tokens or a vector")
    if activation.ndim != 4:
        raise ValueError(f"{pooling} needs a map of shape (C, H, W); got {tuple(activation.shape[1:])}")
    height, width = activation.shape[2:]
    if pooling.op.startswith("Adaptive"):
        (output,) = pooling.args
        adaptive = F.adaptive_avg_pool2d if pooling.op == "AdaptiveAvgPool2d" else F.adaptive_max_pool2d
        return adaptive(activation, output)
    kernel, stride, padding = pooling.args
    if kernel[0] > height + 2 * padding[0] or kernel[1] > width + 2 * padding[1]:
        raise ValueError(f"{pooling} needs a map of at least {kernel[0]} x {kernel[1]}; it is {height} x {width}")
    operation = F.avg_pool2d if pooling.op == "AvgPool2d" else F.max_pool2d
    return operation(activation, kernel, stride, padding)
