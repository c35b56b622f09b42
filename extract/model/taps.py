"""A trunk with taps: one forward pass gives all layers, and stops after the last of them.

Each layer is pooled as soon as its module returns. That saves memory, and later in-place operations
(such as the next ReLU) can't overwrite the activation. A module that runs several times (the one ReLU
of a torchvision bottleneck) is tapped at its last run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featbench.extract.errors import ModelError
from featbench.extract.model.dataflow import first_tensor
from featbench.extract.model.pooling import pool
from featbench.extract.model.structure import learn
from featbench.extract.model.tap_names import (
    INPUT,
    Tap,
    aliases_of,
    body_of,
    channel_axis,
    resolve_tap,
    token_names,
    tokens_of,
)
from featbench.extract.model.trunks import build_trunk, build_without_memory, is_own
from featbench.store import LayerInfo, LayerSpec, Pooling

CHANNELS_FIRST = (
    nn.Conv1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm, nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d, nn.Unfold,
)  # fmt: skip
"""Modules whose activations of three axes are (B, C, positions); those of others are (B, positions, C)."""


Forward = Callable[[Tensor], dict[str, Tensor]]
"""Computes the layers of a batch (B, 3, H, W)."""


@dataclass(frozen=True, slots=True)
class _Layer:
    spec: LayerSpec
    tap: Tap


class _LastTapReached(Exception):  # noqa: N818 (not an error)
    """Ends the forward pass."""


class TappedTrunk:
    """A frozen trunk that returns its tapped and pooled layers.

    Parameters
    ----------
    trunk : nn.Module
        In eval mode, on the device where it is to run.
    name : str
        Name of the trunk, which decides the channel axis of its maps.
    layers : sequence of LayerSpec
        The layers to compute, in any order.

    Raises
    ------
    ModelError
        If taps do not exist; all of them are reported.
    """

    def __init__(self, trunk: nn.Module, *, name: str, layers: Sequence[LayerSpec]) -> None:
        self.trunk = trunk
        self.name = name
        self._layers = _resolved(trunk, name, layers)
        self._places = {place for layer in self._layers for place in layer.tap.places}
        self._runs: Counter[str] = Counter()
        self._last = ""
        self.image_size = (0, 0)
        """Height and width of the images, as probed."""

    @property
    def specs(self) -> list[LayerSpec]:
        """The layers, in the order in which they were given."""
        return [layer.spec for layer in self._layers]

    @property
    def places(self) -> frozenset[str]:
        """Modules that are tapped, and those whose input is, with the suffix of that."""
        return frozenset(self._places)

    def probe(self, image: Tensor) -> dict[str, LayerInfo]:
        """Run one image of shape (1, 3, H, W) to find out how often each module runs, and the layers' shapes.

        Raises
        ------
        ModelError
            If taps never run or are not what their names say, or poolings do not fit; all are reported.
        """
        with torch.inference_mode():
            run(self.trunk, image, name=self.name)
        self.image_size = (image.shape[2], image.shape[3])
        learn(self.trunk, image, own=is_own(self.name))
        self._layers = _resolved(self.trunk, self.name, [layer.spec for layer in self._layers])
        self._places = {place for layer in self._layers for place in layer.tap.places}
        order: list[str] = []
        with _hooks(self.trunk, self._places, lambda place, _: order.append(place)), torch.inference_mode():
            run(self.trunk, image, name=self.name)
        self._runs = Counter(order)
        idle = [layer.spec.tap for layer in self._layers if not self._runs.keys() >= set(layer.tap.places)]
        if idle:
            raise ModelError(
                f"{self.name}: {', '.join(idle)} never runs by itself in a forward pass, so it has no activation. "
                f"Tap a module around it; `bench layers {self.name}` lists them."
            )
        self._last = order[-1] if order else ""
        try:
            shapes = {name: tuple(values.shape[1:]) for name, values in self(image).items()}
        except ModelError as error:
            raise ModelError("\n".join(self._faults(image)) or str(error)) from error
        return {
            spec.name: LayerInfo(
                tap=spec.tap, pooling=None if spec.pooling is None else str(spec.pooling), shape=shapes[spec.name]
            )
            for spec in (layer.spec for layer in self._layers)
        }

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute every layer of a batch (B, 3, H, W); `probe` must have run once."""
        return self.compute(images)

    def compute(self, images: Tensor, *, to_the_end: bool = False) -> dict[str, Tensor]:
        """Compute every layer as `__call__` does, in the grad mode of the caller.

        With `to_the_end`, the pass does not stop after the last tap: `torch.export` can't trace that.
        """
        left = self._runs.copy()
        parts: dict[str, dict[str, Tensor]] = {layer.spec.name: {} for layer in self._layers}
        in_view = False  # views of tokens run the final norm, which may be tapped itself

        def collect(place: str, output: Any) -> None:
            nonlocal in_view
            if in_view:
                return
            left[place] -= 1
            if left[place] == 0:
                in_view = True
                for layer in self._layers:
                    if place in layer.tap.places:
                        parts[layer.spec.name][place] = self._pooled(layer, place, output, images)
                in_view = False
                if place == self._last and not to_the_end:
                    raise _LastTapReached

        with _hooks(self.trunk, self._places, collect), suppress(_LastTapReached):
            self.trunk(images)
        return {
            layer.spec.name: torch.cat([parts[layer.spec.name][place] for place in layer.tap.places], dim=-1)
            if len(layer.tap.places) > 1
            else parts[layer.spec.name][layer.tap.places[0]]
            for layer in self._layers
        }

    def modules_used(self, image: Tensor) -> set[str]:
        """Names of the modules whose parameters can matter to the layers.

        These are the modules that run, and everything inside a module that ran to its end (attention uses
        the weights of a child without calling it); not those after the last tap.
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
        # The hook of a tapped module may end the pass before the module counts as finished; where its input is
        # tapped, before it has started.
        whole = finished | {place for place in self._places if not place.endswith(INPUT)}
        started -= {place.removesuffix(INPUT) for place in self._places if place.endswith(INPUT)} - finished
        return {
            path
            for path, _ in self.trunk.named_modules()
            if path in started or any(path.startswith(f"{parent}.") for parent in whole if parent)
        }

    def _has_channels_first(self, place: str) -> bool:
        return isinstance(self.trunk.get_submodule(place.removesuffix(INPUT)), CHANNELS_FIRST)

    def _faults(self, image: Tensor) -> list[str]:
        """The error of each layer by itself, if there are several layers."""
        faults = []
        for layer in self._layers if len(self._layers) > 1 else ():
            try:
                TappedTrunk(self.trunk, name=self.name, layers=[layer.spec]).probe(image)
            except ModelError as error:
                faults.append(str(error))
        return list(dict.fromkeys(faults))

    def _pooled(self, layer: _Layer, place: str, output: Any, images: Tensor) -> Tensor:
        tap, spec = layer.tap, layer.spec
        if not isinstance(output, Tensor):
            raise ModelError(
                f"{self.name}: {spec.tap} gives a {type(output).__name__}, not one activation. "
                f"Tap a module inside or after it; `bench layers {self.name}` lists them."
            )
        if output.ndim == 0 or len(output) != len(images):
            raise ModelError(
                f"{self.name}: {spec.tap} gives an activation of shape {tuple(output.shape)} for {len(images)} images: "
                f"its first axis is not the batch. Tap a module around it; `bench layers {self.name}` lists them."
            )
        if output.is_complex():
            raise ModelError(
                f"{self.name}: {spec.tap} gives complex numbers, which no layer can hold. Tap another module"
            )
        view = output if tap.view is None else tap.view(output)
        axis = tap.channel_axis
        if view.ndim == 4 and axis is None:
            path = place.removeprefix(body_of(self.trunk)[1])
            axis = channel_axis(self.name, path, tuple(view.shape), square=images.shape[2] == images.shape[3])
        if spec.pooling is None and tap.view is None and view.ndim == 3 and self._has_channels_first(place):
            view = view.transpose(1, 2)
        try:
            return pool(view, spec.pooling, channel_axis=axis)
        except (ValueError, RuntimeError, MemoryError, OverflowError) as error:  # also for sizes that are too large
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{self.name}: layer {spec.name} cannot be pooled: {text}") from error


def _resolved(trunk: nn.Module, name: str, specs: Iterable[LayerSpec]) -> list[_Layer]:
    """Resolve the taps of layers; all that do not exist are reported together."""
    layers, faults = [], []
    for spec in specs:
        try:
            layers.append(_Layer(spec, resolve_tap(trunk, name, spec.tap)))
        except ModelError as error:
            faults.append(str(error))
    if faults:
        raise ModelError("\n".join(dict.fromkeys(faults)))
    return layers


def run(trunk: nn.Module, images: Tensor, *, name: str) -> None:
    """Run a trunk; what it returns is ignored.

    Raises
    ------
    ModelError
        If it can't run on such images.
    """
    try:
        trunk(images)
    except ModelError:
        raise
    except Exception as error:  # models raise builtin errors of many kinds
        height, width = images.shape[2:]
        raise ModelError(f"{name} cannot run on images of {height} x {width} pixels: {error}") from error


@contextmanager
def _hooks(trunk: nn.Module, places: Iterable[str], on_output: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `on_output(place, activation)` when one of the modules returns, or starts if its input is tapped."""
    handles = []
    for place in places:
        module = trunk.get_submodule(place.removesuffix(INPUT))
        if place.endswith(INPUT):
            before = lambda _, args, kwargs, place=place: on_output(place, first_tensor(args, kwargs))  # noqa: E731
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(lambda _m, _i, output, place=place: on_output(place, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class TapInfo:
    """One tap: its name, its other names, and the shapes of one image's activation."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    """Without pooling, as `:Identity` stores it."""

    pooled: int | None
    """Size with the default pooling, the mean over positions; None if only Identity is possible."""


def list_taps(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    heads: Sequence[tuple[str, Mapping[str, Any]]] = (),
    image_size: int = 224,
) -> list[TapInfo]:
    """List the taps of a model in the order in which they are computed, almost without using memory.

    Raises
    ------
    ModelError
        If the trunk is unknown, or can't run on images of that size.
    """
    side = (image_size, image_size)
    trunk = build_without_memory(name, options, heads=heads, image_size=side)
    device = next((parameter.device for parameter in trunk.parameters()), torch.device("cpu"))
    try:
        return _taps_of(trunk, name, torch.zeros(1, 3, *side, device=device))
    except ModelError:
        if device.type == "cpu":
            raise
        # A forward pass may need values, which tensors on `meta` do not have.
        return _taps_of(build_trunk(name, options, heads=heads, image_size=side), name, torch.zeros(1, 3, *side))


def _taps_of(trunk: nn.Module, name: str, image: Tensor) -> list[TapInfo]:
    body, prefix = body_of(trunk)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim > 1 and len(output) == 1:
            shapes[path.removeprefix(prefix)] = tuple(output.shape[1:])

    with _hooks(trunk, {path for path, _ in trunk.named_modules() if path}, note), torch.inference_mode():
        run(trunk, image, name=name)
    learn(trunk, image, own=is_own(name))
    aliases: dict[str, list[str]] = {}
    for alias, place in aliases_of(trunk).items():
        aliases.setdefault(place.removeprefix(prefix), []).append(alias)
    modules = dict(trunk.named_modules())
    taps = []
    for tap, shape in shapes.items():
        is_turned = len(shape) == 2 and isinstance(modules.get(prefix + tap, modules.get(tap)), CHANNELS_FIRST)
        mean_size = _mean_size(name, tap, shape[::-1] if is_turned else shape)
        taps.append(TapInfo(tap, tuple(aliases.get(tap, ())), shape, mean_size))
    tokens = tokens_of(body)
    views = [*(token_names(tokens) if tokens else ()), *(["flatten"] if "flatten" in aliases_of(trunk) else [])]
    whole = [LayerSpec(view, view, Pooling.of("Identity")) for view in views]
    for view, info in TappedTrunk(trunk, name=name, layers=whole).probe(image).items():
        axis = resolve_tap(trunk, name, view).channel_axis
        places = resolve_tap(trunk, name, view).places if view == "flatten" else ()
        called = tuple(place.removeprefix(prefix) for place in places if place not in ("", prefix.rstrip(".")))
        taps.append(TapInfo(view, called, info.shape, _mean_size(name, view, info.shape, axis)))
    return taps


def _mean_size(name: str, path: str, shape: tuple[int, ...], axis: int | None = None) -> int | None:
    """Size after the default pooling; None if that is not possible."""
    activation = torch.empty(1, *shape, device="meta")
    if activation.ndim == 4 and axis is None:
        axis = channel_axis(name, path, tuple(activation.shape), square=True)
    try:
        return pool(activation, None, channel_axis=axis).shape[1]
    except ValueError:
        return None
