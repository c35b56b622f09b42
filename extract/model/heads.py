"""The heads that self-supervised methods put on a trunk, with VISSL's names, parameters and state dict.

They are specified as in VISSL, `["mlp", {"dims": [2048, 128]}]`, and run in sequence on the trunk's
output. The tap `heads` is the output of the last head, `heads.0` that of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featbench.extract.errors import HeadError
from featbench.store import suggest


class Mlp(nn.Module):
    """Linear layers, each but the last followed by batch norm, ReLU and dropout if they are enabled.

    Parameters
    ----------
    dims : sequence of int
        Dimensions of the input, of each hidden layer, and of the output.
    use_bn, use_relu, use_dropout, use_bias : bool
        What to enable.
    skip_last_layer_relu_bn : bool
        If False, they follow the last layer too. A head of one layer consists of its last layer, so VISSL's
        `["mlp", {"dims": [2048, 2048], "use_relu": True}]` has no ReLU, unless this is False.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        use_bn: bool = False,
        use_relu: bool = False,
        use_dropout: bool = False,
        use_bias: bool = True,
        skip_last_layer_relu_bn: bool = True,
    ) -> None:
        super().__init__()
        follow = [
            kind
            for kind, wanted in ((nn.BatchNorm1d, use_bn), (nn.ReLU, use_relu), (nn.Dropout, use_dropout))
            if wanted
        ]
        self.clf = nn.Sequential(*_layers(dims, follow, bias=use_bias, bare_last=skip_last_layer_relu_bn))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D), or (B, D, 1, 1), to (B, D')."""
        output: Tensor = self.clf(_as_vectors(features))
        return output


class ResidualMlp(nn.Module):
    """Linear layers as in `Mlp`, each with a residual connection if its dimensions allow it.

    As in VISSL, the input of such a layer is added twice: within its block, and again around it.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        use_bn: bool = False,
        use_relu: bool = False,
        use_dropout: bool = False,
        use_bias: bool = True,
        skip_last_layer_relu_bn: bool = True,
    ) -> None:
        super().__init__()
        _check_dims(dims)
        last = len(dims) - 2
        self.clf = nn.Sequential()
        for index, (before, after) in enumerate(pairwise(dims)):
            follows = index < last or not skip_last_layer_relu_bn
            block = nn.Module()
            block.mlp_res_block = Mlp(
                dims=(before, after), use_bn=use_bn and follows, use_relu=use_relu and follows,
                use_dropout=use_dropout and follows, use_bias=use_bias, skip_last_layer_relu_bn=False,
            ).clf  # fmt: skip
            self.clf.append(block)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D), or (B, D, 1, 1), to (B, D')."""
        output = _as_vectors(features)
        for block in self.clf:
            mapped = block.get_submodule("mlp_res_block")(output)
            output = mapped + 2 * output if mapped.shape == output.shape else mapped
        return output


class EvalMlp(nn.Module):
    """Batch norm over the channels of a map, then linear layers on the flattened map."""

    def __init__(
        self,
        *,
        in_channels: int,
        dims: Sequence[int],
        use_bn: bool = False,
        use_relu: bool = False,
        use_residual: bool = False,
    ) -> None:
        super().__init__()
        self.channel_bn = nn.BatchNorm2d(in_channels)
        self.clf = (ResidualMlp if use_residual else Mlp)(dims=dims, use_bn=use_bn, use_relu=use_relu)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C) or (B, C, H, W) to (B, D')."""
        maps = features[:, :, None, None] if features.ndim == 2 else features
        output: Tensor = self.clf(self.channel_bn(maps).flatten(1))
        return output


class SwavHead(nn.Module):
    """SwAV's projection to an embedding of unit length, and its prototypes.

    The output is the embedding, as in VISSL's evaluation; if `return_embeddings` is False, the scores
    of the first set of prototypes. With `num_clusters` [] there are no prototypes.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        use_bn: bool,
        num_clusters: Sequence[int],
        use_bias: bool = True,
        return_embeddings: bool = True,
        skip_last_bn: bool = True,
        normalize_feats: bool = True,
        activation_name: str = "ReLU",
        use_weight_norm_prototypes: bool = False,
        normalize_last_layer: bool = False,
    ) -> None:
        super().__init__()
        if not return_embeddings and not num_clusters:
            raise ValueError("return_embeddings is False and num_clusters is empty: nothing is left to return")
        if activation_name not in ("ReLU", "GELU"):
            raise ValueError(f"activation_name must be ReLU or GELU; got {activation_name}")
        activation = nn.ReLU if activation_name == "ReLU" else nn.GELU
        follow = [nn.BatchNorm1d, activation] if use_bn else [activation]
        self.projection_head = nn.Sequential(*_layers(dims, follow, bias=use_bias, bare_last=skip_last_bn))
        for index, count in enumerate(num_clusters):
            prototypes = (
                UnitLinear(dims[-1], count) if use_weight_norm_prototypes else nn.Linear(dims[-1], count, bias=False)
            )
            self.add_module(f"prototypes{index}", prototypes)
        self.return_embeddings = return_embeddings
        self.normalize_feats = normalize_feats

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to (B, D'), or to scores (B, prototypes)."""
        embedding: Tensor = self.projection_head(_as_vectors(features))
        if self.normalize_feats:
            embedding = F.normalize(embedding, dim=1)
        return embedding if self.return_embeddings else self.get_submodule("prototypes0")(embedding)


class DinoHead(nn.Module):
    """DINO's projection to a bottleneck, normalized, and its prototypes, whose logits are the output."""

    def __init__(
        self,
        *,
        in_dim: int,
        num_clusters: Sequence[int],
        use_bn: bool = False,
        normalize_last_layer: bool = True,
        num_layers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
    ) -> None:
        super().__init__()
        if len(num_clusters) != 1 or num_layers < 1:
            raise ValueError("num_clusters must contain one number, and num_layers must be at least 1")
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        follow = [nn.BatchNorm1d, nn.GELU] if use_bn else [nn.GELU]
        layers = _layers(dims, follow, bias=True, bare_last=True)
        self.mlp = nn.Sequential(*layers) if num_layers > 1 else layers[0]
        self.prototypes0 = UnitLinear(bottleneck_dim, num_clusters[0])

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, prototypes)."""
        output: Tensor = self.prototypes0(F.normalize(self.mlp(_as_vectors(features)), dim=-1))
        return output


class MsnHead(nn.Module):
    """MSN's projection to a query of unit length, the output, as in VISSL's evaluation; prototypes are not used."""

    def __init__(
        self,
        *,
        in_dim: int,
        num_prototypes: int,
        use_bn: bool = False,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        return_query: bool = False,
        freeze_prototypes: bool = False,
        label_smoothing: float = 0.0,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if not return_query:
            raise ValueError("return_query must be True: without it the output is the assignment to prototypes")
        self.fc = nn.Sequential()
        for index, (before, after) in enumerate(pairwise((in_dim, hidden_dim, hidden_dim, output_dim)), start=1):
            self.fc.add_module(f"fc{index}", nn.Linear(before, after))
            if index < 3:
                if use_bn:
                    self.fc.add_module(f"bn{index}", nn.BatchNorm1d(after))
                self.fc.add_module(f"gelu{index}", nn.GELU())
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, output_dim) / output_dim**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to queries (B, D')."""
        return F.normalize(self.fc(_as_vectors(features)), dim=-1)


class IbotHead(nn.Module):
    """iBOT's projection to a bottleneck, normalized, and the class token's prototypes, whose logits are the output."""

    def __init__(
        self,
        *,
        in_dim: int,
        out_dim: int,
        patch_out_dim: int = 0,
        norm: str | None = None,
        act: str = "gelu",
        last_norm: str | None = None,
        normalize_last_layer: bool = True,
        num_layers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        shared_head: bool = False,
    ) -> None:
        super().__init__()
        if last_norm is not None or act not in ("gelu", "relu") or norm not in (None, "bn", "ln", "syncbn"):
            raise ValueError("last_norm must be None, act gelu or relu, and norm None, bn, syncbn or ln")
        between = _norm_and_activation(norm, act, hidden_dim)
        layers: list[nn.Module] = []
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        for before, after in pairwise(dims):
            layers += [*(between if layers else ()), nn.Linear(before, after)]
        self.mlp = nn.Sequential(*layers) if num_layers > 1 else layers[0]
        self.prototypes0 = UnitLinear(bottleneck_dim, out_dim)
        self.prototypes1 = self.prototypes0 if shared_head else UnitLinear(bottleneck_dim, patch_out_dim or out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map the class token (B, D) to logits (B, prototypes)."""
        output: Tensor = self.prototypes0(F.normalize(self.mlp(_as_vectors(features)), dim=-1))
        return output


class IbotDistillationHead(nn.Module):
    """Linear layers, then one for the class token, whose output it is, and one for the patches."""

    def __init__(
        self,
        *,
        in_dim: int,
        out_dim: int,
        patch_out_dim: int = 0,
        norm: str | None = None,
        act: str = "gelu",
        last_norm: str | None = None,
        num_layers: int = 3,
        hidden_dim: int = 2048,
        shared_head: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 2 or act not in ("gelu", "relu") or last_norm == "ln":
            raise ValueError("num_layers must be at least 2, act gelu or relu, and last_norm None, bn or syncbn")
        follow = _norm_and_activation(norm, act, hidden_dim)
        dims = [in_dim, *[hidden_dim] * (num_layers - 1)]
        layers = [part for before, after in pairwise(dims) for part in (nn.Linear(before, after), *follow)]
        self.mlp = nn.Sequential(*layers)
        self.to_class_out = nn.Linear(hidden_dim, out_dim)
        self.to_patch_out = self.to_class_out if shared_head else nn.Linear(hidden_dim, patch_out_dim or out_dim)
        if last_norm:
            self.last_norm = _norm(last_norm, out_dim, affine=False)
            other = out_dim if shared_head else patch_out_dim or out_dim
            self.last_norm2 = self.last_norm if shared_head else _norm(last_norm, other, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map the class token (B, D) to (B, D')."""
        output: Tensor = self.to_class_out(self.mlp(_as_vectors(features)))
        return self.last_norm(output) if hasattr(self, "last_norm") else output


def _norm_and_activation(norm: str | None, act: str, dim: int) -> list[nn.Module]:
    """Modules between the linear layers of iBOT's heads: the same ones, with one norm, between all of them."""
    return [*([_norm(norm, dim)] if norm else []), nn.GELU() if act == "gelu" else nn.ReLU()]


def _norm(name: str, dim: int, *, affine: bool = True) -> nn.Module:
    if name == "ln":
        return nn.LayerNorm(dim)
    if name not in ("bn", "syncbn"):
        raise ValueError(f"expected bn, syncbn or ln; got {name!r}")
    return nn.BatchNorm1d(dim, affine=affine)


class ViTHead(nn.Module):
    """A linear classifier, or one with a hidden layer and tanh before it."""

    def __init__(self, *, in_plane: int, num_classes: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        if hidden_dim is not None:
            self.layers.add_module("pre_logits", nn.Linear(in_plane, hidden_dim))
            self.layers.add_module("act", nn.Tanh())
        self.layers.add_module("head", nn.Linear(hidden_dim or in_plane, num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to scores (B, classes)."""
        output: Tensor = self.layers(_as_vectors(features))
        return output


class UnitLinear(nn.Module):
    """A linear layer whose rows are `weight_v` scaled to the lengths `weight_g`, the names of torch's weight norm."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1))
        self.weight_v = nn.Parameter(torch.randn(out_features, in_features) * 0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D) to (B, D')."""
        lengths = self.weight_v.norm(dim=1, keepdim=True)
        return F.linear(features, self.weight_v * (self.weight_g / lengths))


HEADS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "mlp_fsdp": Mlp,
    "mlp_res": ResidualMlp,
    "eval_mlp": EvalMlp,
    "eval_mlp_fsdp": EvalMlp,
    "swav_head": SwavHead,
    "swav_head_fsdp": SwavHead,
    "dino_head": DinoHead,
    "dino_head_fsdp": DinoHead,
    "msn_head": MsnHead,
    "ibot_head": IbotHead,
    "ibot_distillation_head": IbotDistillationHead,
    "vision_transformer_head": ViTHead,
    "identity": nn.Identity,
    "sequence": lambda *, heads: build_heads(heads),
}
"""By VISSL's names; in VISSL, those that end in `_fsdp` differ only in how they are trained. `sequence` is a head of
several modules, which VISSL writes as a list of them."""


class TrunkWithHeads(nn.Module):
    """A trunk without its classifier, and heads that run in sequence on its output."""

    def __init__(self, trunk: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = heads

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the last head's output."""
        output: Tensor = self.heads(self.trunk(images))
        return output


def build_heads(specs: Sequence[tuple[str, Mapping[str, Any]]]) -> nn.Sequential:
    """Build heads in sequence, with random parameters.

    Raises
    ------
    HeadError
        If a name is unknown, or a head refuses its parameters.
    """
    heads = []
    for name, parameters in specs:
        if name not in HEADS:
            raise HeadError(f"unknown head {name!r}. {suggest(name, HEADS)}")
        try:
            heads.append(HEADS[name](**parameters))
        except (TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
            raise HeadError(f"head {name} cannot be built with {dict(parameters)}: {error}") from error
    return nn.Sequential(*heads)


def _layers(dims: Sequence[int], follow: Sequence[type[nn.Module]], *, bias: bool, bare_last: bool) -> list[nn.Module]:
    """Linear layers, each followed by the given modules; the last one unless `bare_last`."""
    _check_dims(dims)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(dims)):
        layers.append(nn.Linear(before, after, bias=bias))
        if index < len(dims) - 2 or not bare_last:
            layers.extend(nn.BatchNorm1d(after) if kind is nn.BatchNorm1d else kind() for kind in follow)
    return layers


def _check_dims(dims: Sequence[int]) -> None:
    if len(dims) < 2:
        raise ValueError(f"dims must contain at least the dimensions of input and output; got {list(dims)}")


def _as_vectors(features: Tensor) -> Tensor:
    if features.ndim > 2 and any(side != 1 for side in features.shape[2:]):
        raise ValueError(f"a head needs vectors; the trunk gives {tuple(features.shape[1:])}")
    return features.flatten(1)
