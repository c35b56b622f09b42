"""Vision transformers with the parameter names of timm, DeiT, DINO, iBOT, MAE, MoCo v3 and DINOv2.

Shape suffixes:  B batch   T tokens, the prefix first   D dimension   H heads
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ViT(nn.Module):
    """A pre-norm vision transformer; its output is the class token after the final norm.

    Parameters
    ----------
    image_size : int or (int, int)
        Height and width in pixels; multiples of `patch_size`.
    patch_size, dim, depth, num_heads : int
        As in the papers; ViT-S/16 is 16, 384, 12, 6.
    mlp_ratio : float
        Width of the feed-forward layers in multiples of `dim`.
    feed_forward : {"mlp", "swiglu"}
        `swiglu` is DINOv2's giant.
    activation : {"gelu", "gelu_tanh", "quick_gelu", "relu", "silu"}
        Between the two layers of `mlp`; `quick_gelu` is CLIP's.
    qkv_bias : bool
        Whether queries, keys and values have biases.
    class_token : bool
        Without one, the output is the mean of the patches.
    layer_scale : bool
        Whether each residual is scaled by a vector, as in DINOv2.
    register_tokens : int
        Number of tokens without a position, as in DINOv2 "with registers".
    class_position : bool
        Whether the class token has a position embedding.
    eps : float
        Epsilon of the layer norms.
    num_classes : int
        Outputs of a linear classifier `head`; 0 for no classifier.
    position_resize : {"bicubic", "offset", "antialias", "corners"}
        How position embeddings of a file are interpolated to another grid; see `featbench.extract.model.positions`.

    References
    ----------
    Dosovitskiy et al., arXiv:2010.11929; Touvron et al., arXiv:2012.12877; Oquab et al., arXiv:2304.07193;
    Darcet et al. (registers), arXiv:2309.16588.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        feed_forward: Literal["mlp", "swiglu"] = "mlp",
        activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu",
        qkv_bias: bool = True,
        class_token: bool = True,
        layer_scale: bool = False,
        register_tokens: int = 0,
        class_position: bool = True,
        eps: float = 1e-6,
        num_classes: int = 0,
        position_resize: Literal["bicubic", "offset", "antialias", "corners"] = "bicubic",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.position_resize = position_resize
        self.num_prefix_tokens = int(class_token) + register_tokens
        self.patch_embed = PatchEmbedding(image_size, patch_size, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.register_tokens = nn.Parameter(torch.empty(1, register_tokens, dim)) if register_tokens else None
        rows, columns = self.patch_embed.grid_size
        positions = rows * columns + int(class_token and class_position)
        self.pos_embed = nn.Parameter(torch.empty(1, positions, dim))
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    num_heads,
                    mlp_ratio,
                    feed_forward,
                    activation=activation,
                    qkv_bias=qkv_bias,
                    layer_scale=layer_scale,
                    eps=eps,
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        for tensor in (self.cls_token, self.register_tokens, self.pos_embed):
            if tensor is not None:
                nn.init.trunc_normal_(tensor, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class token of images (B, 3, H, W), or the mean of their patches; then the classifier, if any."""
        tokens_BTD = self.norm(self.blocks(self.embed(images)))
        pooled = tokens_BTD.mean(1) if self.cls_token is None else tokens_BTD[:, 0]
        output: Tensor = self.head(pooled)
        return output

    def embed(self, images: Tensor) -> Tensor:
        """Patches with their positions, after the class token and the registers."""
        tokens_BTD: Tensor = self.patch_embed(images)
        positions = self.pos_embed
        if self.cls_token is not None:
            with_position = positions.shape[1] > tokens_BTD.shape[1]
            cls = self.cls_token.expand(len(images), -1, -1)
            if with_position:
                tokens_BTD = torch.cat((cls, tokens_BTD), dim=1) + positions
            else:
                tokens_BTD = torch.cat((cls, tokens_BTD + positions), dim=1)
        else:
            tokens_BTD = tokens_BTD + positions
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(len(images), -1, -1)
            tokens_BTD = torch.cat((tokens_BTD[:, :1], registers, tokens_BTD[:, 1:]), dim=1)
        return tokens_BTD


class PatchEmbedding(nn.Module):
    """Cut images into patches and map each to a token; `grid_size` is their number in height and width."""

    def __init__(self, image_size: int | tuple[int, int], patch_size: int, dim: int) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height % patch_size or width % patch_size:
            raise ValueError(f"images of {height} x {width} pixels can't be cut into patches of {patch_size}")
        self.image_size = (height, width)
        self.grid_size = (height // patch_size, width // patch_size)
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens (B, T, D)."""
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(f"built for images of {self.image_size}, got {tuple(images.shape[2:])}")
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class Block(nn.Module):
    """Attention and a feed-forward layer, each with a norm before it and a residual connection."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        feed_forward: str,
        *,
        activation: str,
        qkv_bias: bool,
        layer_scale: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        hidden = int(dim * mlp_ratio)
        self.mlp = FeedForward(dim, hidden, activation) if feed_forward == "mlp" else SwiGLU(dim, hidden)
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        tokens_BTD = tokens_BTD + self.ls1(self.attn(self.norm1(tokens_BTD)))
        output: Tensor = tokens_BTD + self.ls2(self.mlp(self.norm2(tokens_BTD)))
        return output


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim {dim}, num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        qkv = self.qkv(tokens_BTD).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        output: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        output: Tensor = self.fc2(self.act(self.fc1(tokens_BTD)))
        return output


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that CLIP was trained with."""

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return tokens_BTD * torch.sigmoid(1.702 * tokens_BTD)


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
"""By the values of `activation`."""


class SwiGLU(nn.Module):
    """DINOv2's gated feed-forward layer: two thirds of the hidden width, rounded up to a multiple of 8."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        gate, value = self.w12(tokens_BTD).chunk(2, dim=-1)
        output: Tensor = self.w3(F.silu(gate) * value)
        return output


class LayerScale(nn.Module):
    """Multiply each channel by a learned number."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        return tokens_BTD * self.gamma
