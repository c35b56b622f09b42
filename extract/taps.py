"""A trunk with taps: one forward pass gives all layers, and stops after the last of them.

Each layer is pooled the moment its module returns, which keeps memory small and is safe from
in-place operations further on: a reference to the activation would be overwritten by the next ReLU.
A module that runs several times (the one ReLU of a torchvision bottleneck) is tapped at its last run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from extract.pooling import pool
from extract.trunks import ModelError, aliases_of, build_trunk, channel_axis, resolve_tap
from store import LayerInfo, LayerSpec


@dataclass(frozen=True, slots=True)
class _Tap:
    spec: LayerSpec
    module: str
    flatten: bool


class _LastTapReached(Exception):  # noqa: N818 (not an error)
    """Ends the forward pass."""


class TappedTrunk:
    """A frozen trunk that returns its tapped and pooled layers.

    Parameters
    ----------
    trunk : nn.Module
        In eval mode, on the device where it is to run.
    name : str
        What the trunk is called; decides what VISSL's tap names mean.
    layers : sequence of LayerSpec
        The layers to compute, in any order.

    Raises
    ------
    ModelError
        If a tap does not exist.
    """

    def __init__(self, trunk: nn.Module, *, name: str, layers: Sequence[LayerSpec]) -> None:
        self.trunk = trunk
        self.name = name
        self._taps = [_Tap(spec, *resolve_tap(trunk, name, spec.tap)) for spec in layers]
        self._runs: Counter[str] = Counter()
        self._last = ""

    def probe(self, image: Tensor) -> dict[str, LayerInfo]:
        """Run one image of shape (1, 3, H, W) to learn which modules run how often, and the layers' shapes.

        Raises
        ------
        ModelError
            If a tap never runs, or a pooling does not fit.
        """
        order: list[str] = []
        with _hooks(self.trunk, {tap.module for tap in self._taps}, lambda path, _: order.append(path)):
            try:
                with torch.inference_mode():
                    self.trunk(image)
            except Exception as error:
                shape = tuple(image.shape[2:])
                raise ModelError(
                    f"{self.name} cannot run on images of {shape[0]} x {shape[1]} pixels: {error}"
                ) from error
        self._runs = Counter(order)
        idle = [tap.spec.tap for tap in self._taps if tap.module not in self._runs]
        if idle:
            raise ModelError(
                f"{self.name}: {', '.join(idle)} never runs in a forward pass by itself, so it gives no activation. "
                f"Tap a module around it; `bench layers {self.name}` lists them."
            )
        self._last = order[-1]
        shapes = {name: tuple(values.shape[1:]) for name, values in self(image).items()}
        return {
            tap.spec.name: LayerInfo(
                tap=tap.spec.tap,
                pooling=None if tap.spec.pooling is None else str(tap.spec.pooling),
                shape=shapes[tap.spec.name],
            )
            for tap in self._taps
        }

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute every layer of a batch (B, 3, H, W); `probe` must have run once."""
        left = self._runs.copy()
        layers: dict[str, Tensor] = {}

        def collect(path: str, output: Any) -> None:
            left[path] -= 1
            if left[path] == 0:
                for tap in self._taps:
                    if tap.module == path:
                        layers[tap.spec.name] = self._pooled(tap, output)
                if path == self._last:
                    raise _LastTapReached

        with _hooks(self.trunk, self._runs, collect), suppress(_LastTapReached):
            self.trunk(images)
        return layers

    def modules_used(self, image: Tensor) -> set[str]:
        """Names of the modules whose parameters can matter to the layers.

        Those that run, and everything inside a module that ran to its end (attention uses the
        weights of a child without calling it). What lies behind the last tap is not among them.
        """
        finished: set[str] = set()
        started: set[str] = {""}
        handles = []
        for path, module in self.trunk.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: started.add(path)))
            handles.append(module.register_forward_hook(lambda *_, path=path: finished.add(path)))
        try:
            self(image)
        finally:
            for handle in handles:
                handle.remove()
        # The tapped module itself may be cut off by its hook before it counts as finished.
        whole = finished | {tap.module for tap in self._taps}
        return {
            path
            for path, _ in self.trunk.named_modules()
            if path in started or any(path.startswith(f"{parent}.") for parent in whole if parent)
        }

    def _pooled(self, tap: _Tap, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"{self.name}: {tap.spec.tap} gives a {type(output).__name__}, not one activation. "
                f"Tap a module inside or after it; `bench layers {self.name}` lists them."
            )
        if tap.flatten:
            output = output.flatten(1)
        try:
            return pool(output, tap.spec.pooling, channel_axis=channel_axis(self.name, tap.module))
        except ValueError as error:
            raise ModelError(f"{self.name}: layer {tap.spec.name} cannot be pooled: {error}") from error


@contextmanager
def _hooks(trunk: nn.Module, paths: set[str] | Mapping[str, int], on_output: Any) -> Iterator[None]:
    """Call `on_output(path, output)` whenever one of the modules returns."""
    handles = [
        trunk.get_submodule(path).register_forward_hook(lambda _m, _i, output, path=path: on_output(path, output))
        for path in paths
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class TapInfo:
    """A module that can be tapped: its path, VISSL's names for it, and the shape of one image's activation."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]


def list_taps(name: str, options: Mapping[str, Any] | None = None, *, image_size: int = 224) -> list[TapInfo]:
    """List the modules of a trunk that give one activation, in the order in which they return.

    Raises
    ------
    ModelError
        If the trunk is unknown, or can't run on images of that size.
    """
    trunk = build_trunk(name, options)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[path] = tuple(output.shape[1:])

    paths = {path for path, _ in trunk.named_modules() if path}
    with _hooks(trunk, paths, note), torch.inference_mode():
        try:
            trunk(torch.zeros(1, 3, image_size, image_size))
        except Exception as error:  # models raise builtin errors of many kinds
            raise ModelError(f"{name} cannot run on images of {image_size} x {image_size} pixels: {error}") from error
    aliases: dict[str, list[str]] = {}
    for alias, path in aliases_of(name).items():
        aliases.setdefault(path.partition("|")[0], []).append(alias)
    return [TapInfo(path, tuple(aliases.get(path, ())), shape) for path, shape in shapes.items()]
