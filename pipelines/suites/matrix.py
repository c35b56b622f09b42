"""The matrix of a suite: what varies between its members, one axis for each thing that does.

An axis is a setting with its values, `weights` or `data` with files or names, or any name with several settings for
each value. Each combination of values is a member.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featbench.pipelines.config.catalogue import read_catalogue
from featbench.pipelines.config.documents import parse_yaml
from featbench.pipelines.config.pipeline import PipelineError, weights_settings
from featbench.pipelines.suites.checkpoints import is_pattern, label, label_of_match, labels_of_files, matching
from featbench.store.documents import DocumentError, brief, brief_text

WEIGHTS, DATA = "weights", "data"
"""Axes whose values are files or names."""

MOST_MEMBERS = 10_000

STAGE_TWO = "evaluate."
"""Settings that begin so change no feature, so they are no part of a feature set's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One value of an axis."""

    label: str
    settings: Mapping[str, Any]
    """By dotted key."""

    @property
    def is_named(self) -> bool:
        """Whether features depend on it."""
        return not self.settings or not all(key.startswith(STAGE_TWO) for key in self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One thing that varies."""

    name: str
    values: tuple[Value, ...]


def axes_of(matrix: Mapping[str, Any]) -> list[Axis]:
    """Read the axes of a matrix.

    Parameters
    ----------
    matrix : mapping
        For each axis a list of values, or a mapping of names to values; a value may be a mapping of settings.

    Raises
    ------
    PipelineError
        If an axis is empty or not of that form, a pattern matches nothing, or there are too many members.
    """
    axes = [_axis(str(name), values) for name, values in matrix.items()]
    keys = [(axis.name, key) for axis in axes for key in dict.fromkeys(k for v in axis.values for k in v.settings)]
    for (one, key), (other, again) in itertools.combinations(keys, 2):
        if key == again and one != other:
            raise PipelineError(f"matrix: {brief_text(key)} is set by {brief_text(one)} and by {brief_text(other)}")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_MEMBERS:
        raise PipelineError(f"matrix: {count:,} combinations; expected at most {MOST_MEMBERS:,}")
    return axes


def combinations(axes: Sequence[Axis]) -> Iterator[tuple[Value, ...]]:
    """Yield a value of each axis, in every combination; the last axis varies fastest."""
    yield from itertools.product(*(axis.values for axis in axes))


def matrix_of_words(words: Sequence[str]) -> dict[str, list[Any]]:
    """Read `--matrix KEY=VALUE,...`.

    Examples
    --------
    >>> matrix_of_words(["extract.precision=float32,bfloat16", "weights=a.pth,runs/*.pth"])
    {'extract.precision': ['float32', 'bfloat16'], 'weights': ['a.pth', 'runs/*.pth']}
    """
    matrix: dict[str, list[Any]] = {}
    for word in words:
        key, separator, values = word.partition("=")
        if not separator or not key or not values:
            raise PipelineError(f"--matrix must be KEY=VALUE,VALUE,...; got {brief_text(word)}")
        if key in matrix:
            raise PipelineError(f"--matrix {brief_text(key)} is given twice; write all values in one")
        if key in (WEIGHTS, DATA):
            matrix[key] = [value for value in values.split(",") if value]
            continue
        try:
            matrix[key] = parse_yaml(f"[{values}]", where=brief_text(word))
        except DocumentError as error:
            raise PipelineError(f"--matrix {error}") from error
    return matrix


def _axis(name: str, values: Any) -> Axis:
    where = f"matrix: {brief_text(name)}"
    if name == "layers":
        raise PipelineError(
            f"{where}: one run stores all layers; list them as `layers`, or --layers, beside the matrix"
        )
    if name in ("name", "store"):
        raise PipelineError(f"{where}: can't vary; members are named by what does")
    if isinstance(values, Mapping):
        named = [(label(str(each)), value) for each, value in values.items()]
        found = [Value(label=title, settings=_settings(name, value, where=where)) for title, value in named]
    else:
        listed = list(values) if isinstance(values, list | tuple) else [values]
        if wrong := [each for each in listed if each is None or isinstance(each, Mapping)]:
            raise PipelineError(
                f"{where}: expected values, or a mapping of names to settings, such as "
                f"{{a: {{model.trunk: resnet50}}}}; got {brief(wrong[0])}"
            )
        found = _listed(name, listed)
    if not found:
        raise PipelineError(f"{where}: has no values")
    return Axis(name=name, values=tuple(found))


def _listed(name: str, values: Sequence[Any]) -> list[Value]:
    if name == WEIGHTS:
        return weights_axis(list(map(str, values)))
    if name == DATA:
        labels = labels_of_files(list(map(str, values)))
        return [
            Value(label=each, settings=_settings(name, v, where="")) for each, v in zip(labels, values, strict=True)
        ]
    last = name.rpartition(".")[2]
    return [
        Value(label=label(value if isinstance(value, str) else f"{last}{value}"), settings={name: value})
        for value in values
    ]


def weights_axis(texts: Sequence[str]) -> list[Value]:
    """Read files, patterns of files and names of weights; a file that occurs twice counts once.

    Raises
    ------
    PipelineError
        If a pattern matches nothing.
    """
    plain = list(dict.fromkeys(text for text in texts if not is_pattern(text)))
    labels = dict(zip(plain, labels_of_files(plain), strict=True))
    found: dict[str, Value] = {}
    for text in texts:
        if is_pattern(text):
            matches = {str(path): label_of_match(text, path) for path in matching(text)}
        else:
            matches = {text: labels[text]}
        for path, title in matches.items():
            found.setdefault(str(Path(path)), Value(label=title, settings=weights_settings(path)))
    return list(found.values())


def _settings(axis: str, value: Any, *, where: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(_flat(value))
    if axis == WEIGHTS:
        return weights_settings(str(value))
    if axis == DATA:
        return {"data": {"name": str(value)}} if str(value) in read_catalogue() else {"data.root": str(value)}
    if "." not in axis and value is not None and where:
        raise PipelineError(
            f"{where}: expected settings of each name, such as {{model.trunk: resnet50}}; got {brief(value)}"
        )
    return {axis: value}


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings under dotted keys; `data` with a name, and whole `weights`, replace the section."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name == WEIGHTS and isinstance(value, str):
            yield from weights_settings(value).items()
        elif isinstance(value, Mapping) and name not in (WEIGHTS, "model.options", "data.options"):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
