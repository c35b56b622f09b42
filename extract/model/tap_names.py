"""What the name of a tap means in a trunk: module paths, VISSL's names for them, and views of tokens.

A tap reads the output of one or several modules, or the input of one (`fc|input`). VISSL's names are
resolved by the structure of the trunk, so they also work for timm's models and the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torchvision
from torch import Tensor, nn

from featbench.extract.errors import ModelError
from featbench.extract.model.alexnet import STAGES, AlexNetStages
from featbench.extract.model.dataflow import CLASS_TOKENS
from featbench.extract.model.heads import TrunkWithHeads
from featbench.store import suggest

INPUT = "|input"
"""Suffix of a module's path: its input, not its output."""

OUTPUT = "output"
"""The tap of what the trunk returns, class scores or not; a module of that name takes precedence."""


@dataclass(frozen=True, slots=True)
class Tap:
    """Where an activation is read: at one module, or at several whose views are joined along the last axis."""

    places: tuple[str, ...]
    """Module paths, in the order of the join; with `|input` the module's input is meant."""

    view: Callable[[Tensor], Tensor] | None = None
    """Applied to the output of each; None leaves it as it is."""

    channel_axis: int | None = None
    """Channel axis of a four-dimensional view, if the view decides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Where a vision transformer has its tokens."""

    blocks: tuple[str, ...]
    norm: nn.Module
    """The final layer norm; VISSL and DINO apply it to the tokens of every block that they tap."""

    prefix: int
    """Tokens before the patches: the class token and registers."""

    class_token: bool
    grid: tuple[int, int] | None
    """Patches in height and width; None if they make a square."""

    patches_at: frozenset[str] | None = None
    """Blocks that give the grid's patches, with or without a prefix; None before a forward pass was traced."""

    class_at: frozenset[str] | None = None
    """Blocks that give the class token, too."""

    last: str | None = None
    """Path of the module whose output is the final tokens: the last block before the norm, or the norm itself where
    something runs in between; "" if there are no final tokens."""

    last_class: bool = True
    """Whether the class token is among the final tokens."""

    def has_patches(self, block: str) -> bool:
        """Whether a block gives patches."""
        return self.patches_at is None or block in self.patches_at

    def has_class(self, block: str) -> bool:
        """Whether a block gives the class token."""
        return self.class_token and (self.class_at is None or block in self.class_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What tracing a forward pass has shown about a trunk."""

    classifier: str
    """Path of the module that computes the class scores, with `|input`, or of the one whose output they are computed
    from; "" if the trunk has no classifier."""

    unclear: str
    """Why `flatten` can't be determined; "" if it can."""

    tokens: Tokens | None
    random: tuple[str, ...] = ()
    """Modules that drew random numbers."""


_LEARNED: WeakKeyDictionary[nn.Module, Structure] = WeakKeyDictionary()


def remember(trunk: nn.Module, structure: Structure) -> None:
    """Store what a traced forward pass has shown about a trunk without its heads."""
    _LEARNED[trunk] = structure


def structure_of(trunk: nn.Module) -> Structure | None:
    """Return what a traced forward pass has shown about a trunk without its heads; None before it was traced."""
    return _LEARNED.get(trunk)


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
"""VISSL's names, by the modules that a trunk must have. Each has one or more paths, of which the first that exists
is used.

VISSL's `conv1` is after batch norm and ReLU. Stages of ResNets and RegNets have the same names.
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
"""Taps of a vision transformer by VISSL's names (`blkPOOL`, `lastCLSPOOL` are additions); all after the final norm."""

CHANNEL_AXES: Mapping[str, tuple[tuple[str, int | None], ...]] = {
    "swin": ((r"features\.0\.0|permute|avgpool", 1), (r".*\.(attn|mlp)\..*", None), (r".*", 3)),
    "convnext": ((r".*\.block\.[1-5]", 3), (r".*", 1)),
    "maxvit": ((r".*_attention\..*", None), (r".*", 1)),
}
"""Channel axis of four-dimensional activations in torchvision's trunks, by prefix of the trunk's name: the first
pattern that matches the tap's path counts. None is unknown, such as for windows of positions. It is axis 1 in
torchvision's other trunks."""


def body_of(trunk: nn.Module) -> tuple[nn.Module, str]:
    """Return the trunk without its heads, and the prefix of its modules' paths."""
    return (trunk.trunk, "trunk.") if isinstance(trunk, TrunkWithHeads) else (trunk, "")


def resolve_tap(trunk: nn.Module, name: str, tap: str) -> Tap:
    """Return where a tap is read in the trunk called `name`.

    Raises
    ------
    ModelError
        If there is no such tap (similar ones are suggested), or `flatten` can't be determined.
    """
    body, prefix = body_of(trunk)
    aliases = aliases_of(trunk)
    modules = {module for module, _ in trunk.named_modules() if module}
    outer, of_input = tap.removesuffix(INPUT), tap.endswith(INPUT)
    place = aliases.get(outer, next((path for path in (prefix + outer, outer) if path in modules), None))
    if of_input and place and not place.endswith(INPUT):
        return Tap((place + INPUT,))
    if not of_input and place is not None:
        return Tap((place,))
    learned = structure_of(body)
    if tap == "flatten" and learned is not None:
        raise ModelError(f"{name}: flatten can't be determined: {learned.unclear}")
    if tap == OUTPUT:
        return Tap((prefix.rstrip("."),))
    tokens = tokens_of(body)
    of_tokens = _token_tap(tap, tokens, prefix) if tokens else None
    if of_tokens is not None:
        return of_tokens
    known = [*aliases, *(token_names(tokens) if tokens else ()), *(path.removeprefix(prefix) for path in modules)]
    raise ModelError(f"{name} has no tap {tap!r}. {suggest(tap, sorted(known))} `bench layers {name}` lists them all.")


def aliases_of(trunk: nn.Module) -> dict[str, str]:
    """Names other than module paths, each with its location: VISSL's, and `flatten` for the classifier's input."""
    body, prefix = body_of(trunk)
    modules = {path for path, _ in body.named_modules()}
    table = next((table for needed, table in ALIASES.items() if modules.issuperset(needed)), {})
    if type(body).__name__ == "AlexNet":
        table = _ALEXNET
    if isinstance(body, AlexNetStages):
        table = {name: (str(number),) for number, name in enumerate(STAGES)}
    places = {alias: next((path for path in paths if path in modules), None) for alias, paths in table.items()}
    aliases = {alias: path for alias, path in places.items() if path is not None}
    if type(body).__name__ == "EfficientNet" and "features" in modules:
        aliases |= _efficientnet(modules)
    learned = structure_of(body)
    if learned is None:
        classifier = classifier_of(body)
        aliases["flatten"] = classifier + INPUT if classifier else ""
    elif not learned.unclear:
        aliases["flatten"] = learned.classifier
    return {alias: prefix + path if path else prefix.rstrip(".") for alias, path in aliases.items()}


def classifier_of(trunk: nn.Module) -> str:
    """Path of the module that turns the trunk's output into class scores; "" if there is none.

    It is what a traced forward pass has shown; before that, what the names say.
    """
    learned = structure_of(trunk)
    if learned is None:
        return named_classifier(trunk)
    return learned.classifier.removesuffix(INPUT) if learned.classifier.endswith(INPUT) else ""


def named_classifier(trunk: nn.Module) -> str:
    """Path of the classifier by its name; "" if there is none.

    It is what `get_classifier` of timm's models returns, or else the last linear layer, convolution or identity of a
    module called `fc`, `classifier`, `heads` or `head`.
    """
    said = said_classifier(trunk)
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


def said_classifier(trunk: nn.Module) -> Any:
    """Return what `get_classifier` of timm's models returns: a module, or several; None if there is no such method."""
    says: Any = getattr(trunk, "get_classifier", None)
    try:
        said = says() if callable(says) else None
        return list(said) if isinstance(said, nn.ModuleList) else said
    except Exception:  # the model does not support it
        return None


def tokens_of(trunk: Any) -> Tokens | None:
    """Where a trunk has tokens, if it is a vision transformer of torchvision or built like timm's and DINO's.

    After a forward pass was traced, only what it has confirmed.
    """
    learned = structure_of(trunk) if isinstance(trunk, nn.Module) else None
    return tokens_by_names(trunk) if learned is None else learned.tokens


def tokens_by_names(trunk: Any) -> Tokens | None:
    """Where a trunk has tokens, according to its attributes."""
    if isinstance(trunk, torchvision.models.VisionTransformer):
        names = [name for name, _ in trunk.encoder.layers.named_children()]
        blocks = tuple(f"encoder.layers.{name}" for name in names)
        side = trunk.image_size // trunk.patch_size
        return Tokens(blocks=blocks, norm=trunk.encoder.ln, prefix=1, class_token=True, grid=(side, side))
    attributes = ("num_prefix_tokens", "blocks", "norm", "patch_embed")
    if not all(hasattr(trunk, attribute) for attribute in attributes):
        return None
    blocks, norm, prefix = trunk.blocks, trunk.norm, trunk.num_prefix_tokens
    if not isinstance(blocks, nn.Module) or not isinstance(norm, nn.Module) or not isinstance(prefix, int):
        return None
    grid: Any = getattr(trunk.patch_embed, "grid_size", None)
    is_pair = isinstance(grid, tuple | list) and len(grid) == 2 and all(isinstance(side, int) for side in grid)
    return Tokens(
        blocks=tuple(f"blocks.{name}" for name, _ in blocks.named_children()),
        norm=norm,
        prefix=prefix,
        class_token=any(getattr(trunk, token, None) is not None for token in CLASS_TOKENS),
        grid=(grid[0], grid[1]) if is_pair else None,
    )


def token_names(tokens: Tokens) -> Iterator[str]:
    """Names of all token taps of a trunk; for those of the last n blocks only the one of n = 4, or of all blocks."""
    depth = len(tokens.blocks)
    for pattern in TOKEN_TAPS:
        if "{i}" in pattern:
            names = [pattern.format(i=index) for index in range(depth)]
        elif "{n}" in pattern:
            names = [pattern.format(n=count) for count in range(min(4, depth), 0, -1)]
        else:
            names = [pattern]
        there = [name for name in names if _token_tap(name, tokens, "") is not None]
        yield from there[:1] if "{n}" in pattern else there


def channel_axis(name: str, path: str, shape: tuple[int, ...], *, square: bool) -> int | None:
    """Channel axis of a four-dimensional activation, batch included; None if it is not known.

    For models that are not torchvision's, height and width are the two equal axes, if the images are square.
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
    """A tap of `TOKEN_TAPS`; None if it is not one, or its block or token does not exist in the trunk."""
    match = re.fullmatch(r"(blk)(CLS|POOL)(\d+)|(last)(CLSPOOL|CLS|POOL|MAP|BLK)|(concat)(CLS|POOL|BLK)(\d+)", tap)
    if match is None:
        return None
    which, kind, *number = (group for group in match.groups() if group)
    if which == "last" and tokens.last is not None:
        if not tokens.last or ("CLS" in kind and not (tokens.class_token and tokens.last_class)):
            return None
        is_normed = tokens.last not in tokens.blocks
        return Tap((prefix + tokens.last,), _token_view(kind, tokens, norm=not is_normed), 3 if kind == "MAP" else None)
    depth = len(tokens.blocks)
    if which == "blk":
        chosen = tokens.blocks[int(number[0]) :][:1]
    else:
        count = int(number[0]) if number else 1
        chosen = tokens.blocks[depth - count :] if 1 <= count <= depth else ()
    if not chosen or not all(map(tokens.has_patches, chosen)):
        return None
    has_class = {tokens.has_class(block) for block in chosen}
    if ("CLS" in kind and has_class != {True}) or (kind == "BLK" and len(has_class) > 1):
        return None
    return Tap(
        tuple(prefix + block for block in chosen), _token_view(kind, tokens, norm=True), 3 if kind == "MAP" else None
    )


def _token_view(kind: str, tokens: Tokens, *, norm: bool) -> Callable[[Tensor], Tensor]:
    """Return a function that extracts tokens from the output of a block, or of the final norm (`norm` is False)."""

    def view(output: Tensor) -> Tensor:
        tokens_BTD: Tensor = tokens.norm(output) if norm else output
        return _of_tokens(tokens_BTD, kind, tokens)

    return view


def _of_tokens(tokens_BTD: Tensor, kind: str, tokens: Tokens) -> Tensor:
    prefix = tokens_BTD.shape[1] - tokens.grid[0] * tokens.grid[1] if tokens.grid else tokens.prefix
    cls, patches = tokens_BTD[:, 0], tokens_BTD[:, prefix:]
    if kind == "CLS":
        return cls
    if kind == "POOL":
        return patches.mean(1)
    if kind == "CLSPOOL":
        return torch.cat((cls, patches.mean(1)), dim=1)
    if kind == "BLK":
        return torch.cat((cls[:, None], patches), dim=1) if tokens.class_token and prefix else patches
    height, width = tokens.grid or (round(patches.shape[1] ** 0.5),) * 2
    return patches.reshape(len(patches), height, width, -1)
