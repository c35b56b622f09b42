"""VISSL's ConViT: timm's, with the epsilon of VISSL's layer norms."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn


def convit(
    *,
    image_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = False,
    local_layers: int = 10,
) -> nn.Module:
    """Build a ConViT without a classifier; its output is the class token after the final norm.

    Parameters
    ----------
    image_size : int or (int, int)
        Height and width in pixels, which must be equal.
    patch_size, dim, depth, num_heads : int
        ConViT-B is 16, 1024, 12, 16 in VISSL.
    mlp_ratio : float
        Width of the feed-forward layers in multiples of `dim`.
    qkv_bias : bool
        Whether queries, keys and values have biases.
    local_layers : int
        How many of the first blocks have gated positional attention; the class token comes after them.

    References
    ----------
    d'Ascoli et al., "ConViT", arXiv:2103.10697; VISSL's vissl/models/trunks/convit.py.
    """
    try:
        from timm.models.convit import ConVit
    except ImportError as error:
        raise ValueError("it needs timm, which is not installed: pip install 'featbench[timm]'") from error
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height != width:
        raise ValueError(f"it takes square images, not {height} x {width} pixels")
    if dim % num_heads:
        raise ValueError(f"dim must be a multiple of num_heads; got dim {dim}, num_heads {num_heads}")
    if not 0 <= local_layers < depth:
        raise ValueError(f"local_layers must be from 0 to {depth - 1}, one less than depth; got {local_layers}")
    constructor: Any = ConVit  # its annotations are narrower than what it takes
    trunk = constructor(
        img_size=height,
        patch_size=patch_size,
        embed_dim=dim // num_heads,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        local_up_to_layer=local_layers,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        num_classes=0,
    )
    trunk.position_resize = "corners"
    built: nn.Module = trunk
    return built
