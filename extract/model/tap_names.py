"""What the name of a tap means in a trunk: module paths, VISSL's names for them, and views of tokens.

A tap reads the output of one module or of several, or the input of one (`fc|input`). VISSL's names
are found by the structure of the trunk, so they also hold for timm's models and for one's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from extract.model.heads import TrunkWithHeads
from store import BenchError, nearest

INPUT = "|input"
"""After a module's path: what goes into the module, not what it returns."""


class ModelError(BenchError):
    """A model or a tap that does not exist, or can't be built."""


@dataclass(frozen=True, slots=True)
class Tap:
    """Where an activation is read: at one module, or at several whose views are joined along the last axis."""

    places: tuple[str, ...]
    """Module paths, in the order of the join; with `|input` the module's input is meant."""

    view: Callable[[Tensor], Tensor] | None = None
    """What is made of the output of each; None takes it as it is."""

    channel_axis: int | None = None
    """Where a four-dimensional view has its channels, if the view decides that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Where a vision transformer has its tokens."""

    blocks: tuple[str, ...]
    norm: nn.Module
    """The final layer norm; VISSL and DINO apply it to the tokens of every block that they take."""

    prefix: int
    """Tokens before the patches: the class token and registers."""

    class_token: bool
    grid: tuple[int, int] | None
    """Patches in height and width; None if they make a square."""


_RESNET = {
    "conv1": ("relu", "act1"),
    "res1": ("maxpool",),
    "res2": ("layer1",),
    "res3": ("layer2",),
    "res4": ("layer3",),
    "res5": ("layer4",),
    "res5avg": ("avgpool", "global_pool"),
}
_REGNET = {
    "conv1": ("stem",),
    "res2": ("trunk_output.block1", "s1"),
    "res3": ("trunk_output.block2", "s2"),
    "res4": ("trunk_output.block3", "s3"),
    "res5": ("trunk_output.block4", "s4"),
    "avgpool": ("avgpool",),
}
_ALEXNET = {
    "conv1": ("features.1",),
    "pool1": ("features.2",),
    "conv2": ("features.4",),
    "pool2": ("features.5",),
    "conv3": ("features.7",),
    "conv4": ("features.9",),
    "conv5": ("features.11",),
    "pool5": ("features.12",),
}

ALIASES: Mapping[tuple[str, ...], Mapping[str, tuple[str, ...]]] = {
    ("layer1", "layer2", "layer3", "layer4"): _RESNET,
    ("stem", "trunk_output.block4"): _REGNET,
    ("stem", "s1", "s2", "s3", "s4"): _REGNET,
}
"""VISSL's names, by the modules that a trunk must have; the first of the paths that exists counts.

VISSL's `conv1` is after batch norm and ReLU. It names convolutional stages alike in ResNets and RegNets.
"""

TOKEN_TAPS: Mapping[str, str] = {
    "blkCLS{i}": "class token after block i, counted from 0",
    "blkPOOL{i}": "mean of the patches after block i",
    "lastCLS": "class token after the last block",
    "lastPOOL": "mean of the patches after the last block",
    "lastCLSPOOL": "class token and mean of the patches",
    "lastMAP": "patches as a map (H, W, D)",
    "lastBLK": "class token and patches (T, D)",
    "concatCLS{n}": "class tokens of the last n blocks, one after the other",
    "concatPOOL{n}": "means of the patches of the last n blocks",
    "concatBLK{n}": "class token and patches of the last n blocks",
}
"""Taps of a vision transformer by VISSL's names (`blkPOOL`, `lastCLSPOOL` are ours); all after the final norm."""

CHANNEL_AXES: Mapping[str, tuple[tuple[str, int | None], ...]] = {
    "swin": ((r"features\.0\.0|permute|avgpool", 1), (r".*\.(attn|mlp)\..*", None), (r".*", 3)),
    "convnext": ((r".*\.block\.[1-5]", 3), (r".*", 1)),
    "maxvit": ((r".*_attention\..*", None), (r".*", 1)),
}
"""Where the channels of a four-dimensional activation are in torchvision's trunks, by the beginning of the name: the
first pattern that matches the tap's path counts. None is not known: windows of positions, say. The others of
torchvision have them in axis 1."""


def body_of(trunk: nn.Module) -> tuple[nn.Module, str]:
    """Return the trunk without its heads, and what its modules' paths begin with."""
    return (trunk.trunk, "trunk.") if isinstance(trunk, TrunkWithHeads) else (trunk, "")


def resolve_tap(trunk: nn.Module, name: str, tap: str) -> Tap:
    """Return where a tap is read in the trunk called `name`.

    Raises
    ------
    ModelError
        If there is no such tap; the message has the nearest ones.
    """
    body, prefix = body_of(trunk)
    aliases = aliases_of(trunk)
    if tap in aliases:
        return Tap((aliases[tap],))
    modules = {module for module, _ in trunk.named_modules() if module}
    for path in (prefix + tap, tap):
        if path in modules:
            return Tap((path,))
    tokens = tokens_of(body)
    of_tokens = _token_tap(tap, tokens, prefix) if tokens else None
    if of_tokens is not None:
        return of_tokens
    known = [*aliases, *(token_names(tokens) if tokens else ()), *(path.removeprefix(prefix) for path in modules)]
    raise ModelError(f"{name} has no tap {tap!r}. {nearest(tap, sorted(known))} `bench layers {name}` lists them all.")


def aliases_of(trunk: nn.Module) -> dict[str, str]:
    """Names besides the module paths, each with its place: VISSL's, and `flatten` for the trunk's output."""
    body, prefix = body_of(trunk)
    modules = {path for path, _ in body.named_modules()}
    table = next((table for needed, table in ALIASES.items() if modules.issuperset(needed)), {})
    if type(body).__name__ == "AlexNet":
        table = _ALEXNET
    places = {alias: next((path for path in paths if path in modules), None) for alias, paths in table.items()}
    aliases = {alias: path for alias, path in places.items() if path is not None}
    if type(body).__name__ == "EfficientNet" and "features" in modules:
        aliases |= _efficientnet(modules)
    classifier = classifier_of(body)
    aliases["flatten"] = classifier + INPUT if classifier else ""
    return {alias: prefix + path if path else prefix.rstrip(".") for alias, path in aliases.items()}


def classifier_of(trunk: nn.Module) -> str:
    """Path of the module that turns the trunk's output into class scores; "" if there is none.

    It is what timm's models say, or else the last linear layer, convolution or identity of what is called `fc`,
    `classifier`, `heads` or `head`.
    """
    says = getattr(trunk, "get_classifier", None)
    said = says() if callable(says) else None
    if isinstance(said, nn.Module):
        return next((path for path, module in trunk.named_modules() if module is said), "")
    for path in ("fc", "classifier", "heads", "head"):
        outer = getattr(trunk, path, None)
        if isinstance(outer, nn.Module):
            inner = [
                f"{path}.{name}".rstrip(".")
                for name, module in outer.named_modules()
                if isinstance(module, nn.Linear | nn.Conv2d) or (isinstance(module, nn.Identity) and not name)
            ]
            if inner:
                return inner[-1]
    return ""


def tokens_of(trunk: Any) -> Tokens | None:
    """Where a trunk has tokens, if it is a vision transformer of torchvision's or of timm's and DINO's form."""
    if isinstance(trunk, torchvision.models.VisionTransformer):
        names = [name for name, _ in trunk.encoder.layers.named_children()]
        blocks = tuple(f"encoder.layers.{name}" for name in names)
        return Tokens(blocks=blocks, norm=trunk.encoder.ln, prefix=1, class_token=True, grid=None)
    if all(hasattr(trunk, attribute) for attribute in ("num_prefix_tokens", "blocks", "norm", "patch_embed")):
        return Tokens(
            blocks=tuple(f"blocks.{name}" for name, _ in trunk.blocks.named_children()),
            norm=trunk.norm,
            prefix=int(trunk.num_prefix_tokens),
            class_token=getattr(trunk, "cls_token", None) is not None,
            grid=getattr(trunk.patch_embed, "grid_size", None),
        )
    return None


def token_names(tokens: Tokens) -> Iterator[str]:
    """Names of all token taps of a trunk; of those of the last n blocks, n = 4 or all stands for the others."""
    for pattern in TOKEN_TAPS:
        if "CLS" in pattern and not tokens.class_token:
            continue
        if "{i}" in pattern:
            yield from (pattern.format(i=index) for index in range(len(tokens.blocks)))
        else:
            yield pattern.format(n=min(4, len(tokens.blocks)))


def channel_axis(name: str, path: str, shape: tuple[int, ...], *, square: bool) -> int | None:
    """Axis of the channels in a four-dimensional activation, counting the batch; None if it is not known.

    Of models that are not torchvision's it is told by the two sides that are equal, if the images are square.
    """
    if ":" in name:
        first, second, third = shape[1:]
        if not square or first == second == third:
            return None
        return 1 if second == third else 3 if first == second else None
    patterns = next((axes for start, axes in CHANNEL_AXES.items() if name.startswith(start)), ((r".*", 1),))
    return next(axis for pattern, axis in patterns if re.fullmatch(pattern, path))


def _efficientnet(modules: set[str]) -> dict[str, str]:
    stages = sorted({int(path.split(".")[1]) for path in modules if re.fullmatch(r"features\.\d+", path)})
    blocks = [
        f"features.{stage}.{index}"
        for stage in stages[1:-1]
        for index in range(len([path for path in modules if re.fullmatch(rf"features\.{stage}\.\d+", path)]))
    ]
    named = {f"block{index}": path for index, path in enumerate(blocks)}
    return {"conv1": "features.0", **named, "conv_final": f"features.{stages[-1]}"}


def _token_tap(tap: str, tokens: Tokens, prefix: str) -> Tap | None:
    """A tap of `TOKEN_TAPS`; None if it is not one, or of a block or a token that the trunk has not."""
    match = re.fullmatch(r"(blk)(CLS|POOL)(\d+)|(last)(CLSPOOL|CLS|POOL|MAP|BLK)|(concat)(CLS|POOL|BLK)(\d+)", tap)
    if match is None:
        return None
    which, kind, *number = (group for group in match.groups() if group)
    depth = len(tokens.blocks)
    if which == "blk":
        chosen = tokens.blocks[int(number[0]) :][:1]
    else:
        count = int(number[0]) if number else 1
        chosen = tokens.blocks[depth - count :] if 1 <= count <= depth else ()
    if not chosen or ("CLS" in kind and not tokens.class_token):
        return None

    def view(output: Tensor) -> Tensor:
        tokens_BTD: Tensor = tokens.norm(output)
        return _of_tokens(tokens_BTD, kind, tokens)

    return Tap(tuple(prefix + block for block in chosen), view, 3 if kind == "MAP" else None)


def _of_tokens(tokens_BTD: Tensor, kind: str, tokens: Tokens) -> Tensor:
    cls, patches = tokens_BTD[:, 0], tokens_BTD[:, tokens.prefix :]
    if kind == "CLS":
        return cls
    if kind == "POOL":
        return patches.mean(1)
    if kind == "CLSPOOL":
        return torch.cat((cls, patches.mean(1)), dim=1)
    if kind == "BLK":
        return torch.cat((cls[:, None], patches), dim=1) if tokens.class_token else patches
    height, width = tokens.grid or (round(patches.shape[1] ** 0.5),) * 2
    return patches.reshape(len(patches), height, width, -1)
