"""What a feature set was made from, and how two of them differ.

The manifest lies in the attributes of the feature set's root group, with a digest of itself, so
that a flipped bit is noticed. `made_from` holds everything that could change a feature; its digest
is the fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from store.errors import DamagedError, StoreError

FORMAT = 1
"""Version of the format; a reader refuses a higher one."""

ATTRIBUTE = "featbench"
DIGEST = "featbench_sha256"

Json = Any
"""What JSON can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInfo:
    """One split: how many rows, what its classes are called, and the digest of its listing."""

    num_rows: int
    class_names: tuple[str, ...]
    """Label `i` is the class `class_names[i]` of this split."""

    listing: str
    """sha256 over paths and labels in order: another dataset has another listing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """One layer: where it was tapped, how it was pooled, and the shape of one row."""

    tap: str
    pooling: str | None
    """As `store.layers.Pooling` writes it; None is the mean over height and width."""

    shape: tuple[int, ...]
    """Shape of one row, without the row axis."""

    @property
    def dim(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a feature set but the features."""

    made_from: Mapping[str, Json]
    """Nested settings that could change a feature: model, weights, transform, precision, batch size."""

    dtype: str
    """`float32` or `float16`, of every layer."""

    compression: str
    """`none`, `zstd` or `lz4`, of every layer."""

    rows_per_chunk: int
    """Of every layer, also of one added later."""

    splits: Mapping[str, SplitInfo]
    layers: Mapping[str, LayerInfo] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the `zarr.json` of each group and array below the root."""

    software: Mapping[str, str] = field(default_factory=dict)
    """Versions that wrote it, for the record; not part of the fingerprint."""

    notes: Mapping[str, Json] = field(default_factory=dict)
    """Further facts for the record, such as how many keys of the weights were matched."""

    created: str = ""
    """UTC, ISO 8601."""

    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """Digest of all that could change a feature, without the layers."""
        return digest_of(dict(self.settings()))

    def settings(self) -> Iterator[tuple[str, Json]]:
        """Each setting that could change a feature, under its dotted name."""
        yield from flattened(self.made_from)
        yield "store.dtype", self.dtype
        yield "store.compression", self.compression
        yield "store.rows_per_chunk", self.rows_per_chunk
        for split, info in self.splits.items():
            yield f"data.{split}.num_rows", info.num_rows
            yield f"data.{split}.class_names", list(info.class_names)
            yield f"data.{split}.listing", info.listing

    def to_attributes(self) -> dict[str, Json]:
        """Return the attributes of the root group."""
        content = json.loads(json.dumps(asdict(self)))
        return {ATTRIBUTE: content, DIGEST: digest_of(content)}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Json], *, where: str) -> Manifest:
        """Read the attributes of the root group back, refusing a newer format and a changed text.

        Raises
        ------
        StoreError
            If there is no manifest, or one of a newer format.
        DamagedError
            If the manifest is not what was written.
        """
        content = attributes.get(ATTRIBUTE)
        if not isinstance(content, dict):
            raise StoreError(f"{where}: not a feature set: the Zarr group carries no {ATTRIBUTE!r} attribute")
        if isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise StoreError(
                f"{where}: written in format {content['format']}; this version reads up to {FORMAT}. Update featbench."
            )
        if digest_of(content) != attributes.get(DIGEST):
            raise DamagedError(f"{where}: the manifest is not what was written (its sha256 differs). {REWRITE}")
        return cls(
            **{
                **content,
                "splits": {
                    name: SplitInfo(**{**info, "class_names": tuple(info["class_names"])})
                    for name, info in content["splits"].items()
                },
                "layers": {
                    name: LayerInfo(**{**info, "shape": tuple(info["shape"])})
                    for name, info in content["layers"].items()
                },
            }
        )


REWRITE = "Put it back with `bench verify ... --repair`, or extract again with --overwrite."
"""The cure for damaged metadata."""


def digest_of(value: Json) -> str:
    """Return the sha256 of a JSON value, the same for any order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def flattened(settings: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Walk nested settings as dotted names.

    Examples
    --------
    >>> list(flattened({"model": {"trunk": "resnet18"}, "precision": "float32"}))
    [('model.trunk', 'resnet18'), ('precision', 'float32')]
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(old: Manifest, new: Manifest) -> list[str]:
    """Say, one line each, which settings differ between what exists and what is asked for."""
    before, after = dict(old.settings()), dict(new.settings())
    return [
        f"{key}: it has {_brief(before.get(key))}, you ask for {_brief(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if digest_of(before.get(key)) != digest_of(after.get(key))  # to JSON, a tuple is a list
    ]


def _brief(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "nothing"
    return text if len(text) <= 70 else f"{text[:50]}... ({len(text)} characters)"
