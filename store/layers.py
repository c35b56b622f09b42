"""What a layer is: a tap of the model with its pooling, under a name.

Only text and numbers, without torch: `extract` computes what these describe, `evaluate` finds layers
by them. Both accept the same notation on the command line (`res4:AvgPool2d(8,3,0)`) and in YAML, where
VISSL's is accepted too (`["res4", ["AvgPool2d", [[8, 8], 3, 0]]]`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from featbench.store.errors import DamagedError, StoreError, suggest
from featbench.store.paths import METADATA, ROW_ARRAYS

RESERVED = (*ROW_ARRAYS, METADATA)
"""Other names in the group of a split."""

LONGEST_NAME = 200
"""Characters of a layer's name; file systems allow 255, and names in stage two are longer."""

Pair = tuple[int, int]

_ARGUMENTS = {
    "AvgPool2d": ("kernel", "stride", "padding"),
    "MaxPool2d": ("kernel", "stride", "padding"),
    "AdaptiveAvgPool2d": ("output",),
    "AdaptiveMaxPool2d": ("output",),
    "Identity": (),
}
"""VISSL's five pooling operations and the arguments of each, in order."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_LAYER = re.compile(r"(?:(?P<name>[^=:()]+)=)?(?P<tap>[^=:()]+)(?::(?P<op>\w+)(?:\((?P<args>.*)\))?)?")


@dataclass(frozen=True, slots=True)
class Pooling:
    """One of VISSL's pooling operations with its arguments, each a (height, width) pair."""

    op: str
    args: tuple[Pair, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}({','.join(_short(pair) for pair in self.args)})"

    @classmethod
    def of(cls, op: object, args: Sequence[object] = ()) -> Pooling:
        """Check an operation in VISSL's notation, and normalize its arguments.

        Examples
        --------
        >>> Pooling.of("AvgPool2d", [[8, 8], 3, 0])
        Pooling(op='AvgPool2d', args=((8, 8), (3, 3), (0, 0)))
        >>> str(Pooling.of("AvgPool2d", [8]))
        'AvgPool2d(8,8,0)'
        """
        if not isinstance(op, str) or op not in _ARGUMENTS:
            raise StoreError(f"unknown pooling {op!r}. {suggest(str(op), _ARGUMENTS)}")
        names = _ARGUMENTS[op]
        least = min(1, len(names))
        if not least <= len(args) <= len(names):
            usage = f"{op}({','.join(names)})"
            raise StoreError(
                f"pooling {op} takes {least} to {len(names)} arguments, {usage}; got {len(args)}: {list(args)}"
            )
        pairs = [_pair(arg, of=f"{op}'s {name}") for name, arg in zip(names, args, strict=False)]
        if "stride" in names:
            if len(pairs) < 2:
                pairs.append(pairs[0])  # torch's default: adjacent windows
            if len(pairs) < 3:
                pairs.append((0, 0))
            kernel, _, padding = pairs
            if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
                raise StoreError(f"pooling {op}: padding may be at most half the kernel; got {padding} for {kernel}")
        if any(side < 1 for pair in pairs[:2] for side in pair):
            raise StoreError(f"pooling {op}: sizes and strides must be positive; got {list(args)}")
        return cls(op, tuple(pairs))


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A tap with its pooling, and the name of the layer that they make.

    `pooling` None is the default: the mean over height and width (over tokens, for a model
    that has tokens), and vectors as they are.
    """

    name: str
    tap: str
    pooling: Pooling | None = None

    def __str__(self) -> str:
        text = self.tap if self.pooling is None else f"{self.tap}:{self.pooling}"
        return text if self.name == _usual_name(self.tap, self.pooling) else f"{self.name}={text}"

    @classmethod
    def of(cls, spec: object) -> LayerSpec:
        """Parse a layer from text, or from VISSL's pair of a tap and its pooling.

        The name follows from tap and pooling, so that the same notation always means the same array;
        the prefix `name=` sets another one.

        Raises
        ------
        StoreError
            If the text is not a layer, the pooling is unknown, or the name is not valid.

        Examples
        --------
        >>> LayerSpec.of("res4")
        LayerSpec(name='res4', tap='res4', pooling=None)
        >>> LayerSpec.of(["res4", ["AvgPool2d", [[8, 8], 3, 0]]]).name
        'res4.AvgPool2d_8_3_0'
        >>> LayerSpec.of("fc|input").name
        'fc.input'
        >>> LayerSpec.of("vissl_res4=res4:AvgPool2d(8,3,0)").name
        'vissl_res4'
        """
        if isinstance(spec, LayerSpec):
            return spec
        if isinstance(spec, str):
            return _parse(spec)
        if isinstance(spec, Sequence) and len(spec) == 2 and isinstance(spec[0], str):
            tap, pooling = spec
            if isinstance(pooling, str):
                return _named(tap, Pooling.of(pooling))
            if isinstance(pooling, Sequence) and 1 <= len(pooling) <= 2:
                arguments = pooling[1] if len(pooling) == 2 else []
                return _named(
                    tap, Pooling.of(pooling[0], arguments if isinstance(arguments, Sequence) else [arguments])
                )
        raise StoreError(
            f"a layer is written as 'res4', 'res4:AvgPool2d(8,3,0)' or [res4, [AvgPool2d, [[8, 8], 3, 0]]]; "
            f"got {spec!r}"
        )


def split_layers(text: str) -> list[str]:
    """Split a comma-separated list of layers, except at commas within parentheses.

    Examples
    --------
    >>> split_layers("res4:AvgPool2d(8,3,0),res5")
    ['res4:AvgPool2d(8,3,0)', 'res5']
    """
    parts = re.split(r",(?![^()]*\))", text)
    return [part.strip() for part in parts if part.strip()]


def layers_of(specs: Sequence[object]) -> tuple[LayerSpec, ...]:
    """Parse several layers; duplicates count once, and two layers with one name are an error."""
    layers: dict[str, LayerSpec] = {}
    for layer in map(LayerSpec.of, specs):
        if layers.setdefault(layer.name, layer) != layer:
            raise StoreError(
                f"two layers are called {layer.name!r}: {layers[layer.name]} and {layer}. "
                f"Rename one of them, as in '{layer.name}_b={layer}'."
            )
    return tuple(layers.values())


def checked_name(name: object) -> str:
    """Return the name of an array or a split, unless it could lead out of its group.

    Raises
    ------
    DamagedError
        If it is not a valid name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == METADATA:
        raise DamagedError(f"{name!r} is not a name that this program writes")
    return name


def _parse(text: str) -> LayerSpec:
    match = _LAYER.fullmatch(text.strip())
    if match is None:
        raise StoreError(f"cannot read the layer {text!r}: write TAP, TAP:POOLING(ARGS) or NAME=TAP:POOLING(ARGS)")
    pooling = Pooling.of(match["op"], _arguments(match["args"] or "", text)) if match["op"] else None
    return _named(match["tap"].strip(), pooling, name=match["name"])


def _arguments(text: str, layer: str) -> list[object]:
    arguments: list[object] = []
    for part in re.findall(r"[\[(][^\])]*[\])]|[^,\s]+", text):
        numbers = re.findall(r"[^\s,\[\]()x]+", part)
        if not numbers or not all(re.fullmatch(r"-?[0-9]+", number) for number in numbers):
            raise StoreError(f"layer {layer!r}: {part!r} is not a number or a pair of numbers")
        arguments.append([int(number) for number in numbers] if len(numbers) > 1 else int(numbers[0]))
    return arguments


def _named(tap: str, pooling: Pooling | None, *, name: str | None = None) -> LayerSpec:
    name = (name or _usual_name(tap, pooling)).strip()
    check_name(name, tap)
    return LayerSpec(name, tap, pooling)


def check_name(name: str, tap: str | None = None) -> None:
    """Refuse names that a layer can't have, since a folder of each split has that name.

    Raises
    ------
    StoreError
        If it has invalid characters, is reserved, or is too long.
    """
    if not _NAME.fullmatch(name) or name in RESERVED or len(name) > LONGEST_NAME:
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        raise StoreError(
            f"{shown!r} cannot be the name of a layer: use letters, digits, '_', '.' and '-', at most {LONGEST_NAME}, "
            f"but not {', '.join(RESERVED)}. Set another one with NAME={shown if tap is None else tap[:80]}"
        )


def _usual_name(tap: str, pooling: Pooling | None) -> str:
    tap = tap.replace("|", ".")  # `fc|input` is the input of fc
    return tap if pooling is None else "_".join((f"{tap}.{pooling.op}", *map(_short, pooling.args)))


def _pair(value: object, *, of: str) -> Pair:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(side, int) for side in value):
        if len(value) == 1:
            return value[0], value[0]
        if len(value) == 2:
            return value[0], value[1]
    raise StoreError(f"{of} must be a number or a pair of numbers; got {value!r}")


def _short(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"
