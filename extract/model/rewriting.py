"""Copies of a trunk that compute the same features in fewer or cheaper operations.

`folded` folds batch norms into the convolutions before them: in eval mode both are linear, so their product is computed
once, in float64, and rounded once. `LowPrecision` converts the weights themselves to bfloat16 or float16, where
autocast would convert them, and the activations between modules, in each pass.

Whether features agree is for the caller to check, on images: hooks can't see whether a convolution's output is used
twice.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from featbench.extract.model.tap_names import INPUT
from featbench.extract.model.taps import TappedTrunk
from featbench.store.errors import first_line


class CannotRewriteError(Exception):
    """A trunk that can't be rewritten; says why in one line."""


def folded(taps: TappedTrunk, image: Tensor) -> TappedTrunk | None:
    """Return a copy whose batch norms are folded into convolutions; None if there are none to be folded.

    Layers that tap a convolution before its batch norm keep both.

    Parameters
    ----------
    taps : TappedTrunk
        Probed, in eval mode.
    image : Tensor of shape (1, 3, H, W)
        To find out which convolution comes before which batch norm.

    Raises
    ------
    CannotRewriteError
        If the trunk can't be copied, or the copy can't be run.
    """
    if not any(type(module) is nn.BatchNorm2d for module in taps.trunk.modules()):
        return None
    try:
        trunk = copy.deepcopy(taps.trunk)
        kept = {place.removesuffix(INPUT) if place.endswith(INPUT) else place for place in _before_norms(taps)}
        pairs = [pair for pair in _pairs(trunk, image) if not kept & set(pair)]
        for convolution, norm in pairs:
            _fold(trunk, convolution, norm)
        return _tapped(trunk, taps, image) if pairs else None
    except Exception as error:  # of many kinds: modules that can't be copied, or read their batch norm's attributes
        raise CannotRewriteError(f"its batch norms can't be folded: {first_line(error)}") from error


class LowPrecision:
    """A copy of a tapped trunk whose weights are in low precision.

    Parameters
    ----------
    taps : TappedTrunk
        In float32; its batch norms are better folded before.
    dtype : torch.dtype
        bfloat16 or float16.
    image : Tensor of shape (1, 3, H, W)
        An image, to probe the copy.

    Raises
    ------
    CannotRewriteError
        If the trunk can't be copied, or can't run in that precision.
    """

    def __init__(self, taps: TappedTrunk, dtype: torch.dtype, image: Tensor) -> None:
        self._dtype = dtype
        try:
            self._taps = _tapped(copy.deepcopy(taps.trunk).to(dtype), taps, image.to(dtype))
        except Exception as error:  # such as a model that makes float32 tensors in its forward pass
            raise CannotRewriteError(f"it can't have {dtype} weights: {first_line(error)}") from error
        self.trunk = self._taps.trunk

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute every layer of a batch (B, 3, H, W) of float32."""
        with torch.autocast(images.device.type, enabled=False):
            return self._taps(images.to(self._dtype))

    def compute(self, images: Tensor, *, to_the_end: bool = False) -> dict[str, Tensor]:
        """As `TappedTrunk.compute`; without autocast, which the caller turns off."""
        return self._taps.compute(images.to(self._dtype), to_the_end=to_the_end)


def _before_norms(taps: TappedTrunk) -> set[str]:
    """Modules that have to stay as they are: convolutions that are tapped, and batch norms whose input is."""
    modules = dict(taps.trunk.named_modules())
    return {place for place in taps.places if place.endswith(INPUT) or isinstance(modules.get(place), nn.Conv2d)}


def _tapped(trunk: nn.Module, like: TappedTrunk, image: Tensor) -> TappedTrunk:
    """Tap a trunk at the layers of another one."""
    taps = TappedTrunk(trunk, name=like.name, layers=like.specs)
    taps.probe(image)
    return taps


def _pairs(trunk: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Find batch norms whose input is what a convolution has just returned; each of both runs once."""
    returned: dict[int, tuple[str, Tensor]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def after(path: str, output: Any) -> None:
        runs[path] = runs.get(path, 0) + 1
        returned[id(output)] = path, output  # which keeps it, so that its id is its own

    def before(path: str, args: tuple[Any, ...]) -> None:
        runs[path] = runs.get(path, 0) + 1
        if args and id(args[0]) in returned:
            pairs.append((returned[id(args[0])][0], path))

    handles = []
    for path, module in trunk.named_modules():
        if type(module) is nn.Conv2d and not hasattr(module, "parametrizations"):
            handles.append(module.register_forward_hook(lambda _m, _i, output, path=path: after(path, output)))
        if type(module) is nn.BatchNorm2d and module.running_var is not None:
            handles.append(module.register_forward_pre_hook(lambda _, args, path=path: before(path, args)))
    try:
        with torch.no_grad():
            trunk(image)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if runs[pair[0]] == runs[pair[1]] == 1]


@torch.no_grad()
def _fold(trunk: nn.Module, convolution: str, norm: str) -> None:
    """Fold a batch norm into a convolution, and put the identity in its place."""
    into: Any = trunk.get_submodule(convolution)
    batch_norm: Any = trunk.get_submodule(norm)
    scale = torch.rsqrt(batch_norm.running_var.double() + batch_norm.eps)
    shift = -batch_norm.running_mean.double() * scale
    if into.bias is not None:
        shift += into.bias.double() * scale
    if batch_norm.affine:
        scale = scale * batch_norm.weight.double()
        shift = shift * batch_norm.weight.double() + batch_norm.bias.double()
    weight = (into.weight.double() * scale.view(-1, 1, 1, 1)).to(into.weight.dtype)
    into.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    into.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
    parent, _, name = norm.rpartition(".")
    setattr(trunk.get_submodule(parent), name, nn.Identity())
