"""What a feature set was made from, and how two of them differ.

The manifest is in the attributes of the feature set's root group, with a digest of itself, so that
damage is noticed. The fingerprint is the digest of all settings that could change a feature.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from featbench.store.errors import DamagedError, StoreError
from featbench.store.layers import RESERVED, checked_name
from featbench.store.paths import DIGESTS, METADATA, array_key
from featbench.store.typing import Json

FORMAT = 1
"""Version of the format; a reader refuses a higher one."""

ATTRIBUTE = "featbench"
DIGEST = "featbench_sha256"

MAX_CHUNK_BYTES = 2**30
"""Largest chunk; whole chunks are held in memory, more than once."""

MAX_CHUNKS = 2**24
"""Most chunks of a layer in a split; their keys are held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInfo:
    """One split: number of rows, class names, and the digest of its listing."""

    num_rows: int
    class_names: tuple[str, ...]
    """Label `i` is the class `class_names[i]` of this split."""

    listing: str
    """sha256 of paths, sizes and labels in order, which identifies the dataset."""

    is_multi_label: bool = False
    """Whether a row can have any number of classes: labels are then 1, 0 or -1 for each row and class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """One layer: where it was tapped, how it was pooled, and the shape of one row."""

    tap: str
    pooling: str | None
    """As `featbench.store.layers.Pooling` writes it; None is the mean over height and width."""

    shape: tuple[int, ...]
    """Shape of one row, without the row axis."""

    @property
    def dim(self) -> int:
        """Values in one row."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a feature set except the features."""

    made_from: Mapping[str, Json]
    """Nested settings that could change a feature: model, weights, transform, precision, batch size."""

    dtype: str
    """`float32` or `float16`, of every layer."""

    compression: str
    """`none`, `zstd` or `lz4`, of every layer."""

    rows_per_chunk: int
    """Rows in a chunk, the same for every layer, including those added later."""

    splits: Mapping[str, SplitInfo]
    layers: Mapping[str, LayerInfo] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the `zarr.json` of each group and array below the root."""

    software: Mapping[str, str] = field(default_factory=dict)
    """Versions of the software that wrote it, for the record; not in the fingerprint."""

    notes: Mapping[str, Json] = field(default_factory=dict)
    """Further facts for the record, such as how many keys of the weights were matched."""

    created: str = ""
    """UTC, ISO 8601."""

    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """Digest of all settings that could change a feature, without the layers."""
        return digest_of(dict(self.settings()))

    def has_digests(self, split: str) -> bool:
        """Whether digests of a split's images are stored; in earlier versions a layer could have that name."""
        return array_key(split, DIGESTS) in self.metadata and DIGESTS not in self.layers

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
            if info.is_multi_label:
                yield f"data.{split}.is_multi_label", True

    def to_attributes(self) -> dict[str, Json]:
        """Return the attributes of the root group."""
        content = json.loads(json.dumps(asdict(self)))
        for info in content["splits"].values():
            if not info["is_multi_label"]:
                del info["is_multi_label"]  # as earlier versions write it
        return {ATTRIBUTE: content, DIGEST: digest_of(content)}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Json], *, where: str) -> Manifest:
        """Read the attributes of the root group; refuses a newer format and damage.

        Raises
        ------
        StoreError
            If there is no manifest, or its format is newer.
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
        try:
            return parsed(content)
        except (ValueError, KeyError, TypeError, AttributeError, DamagedError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DamagedError(f"{where}: the manifest has invalid contents ({reason}). {REWRITE}") from error

    @classmethod
    def read(cls, content: bytes, *, where: str) -> Manifest:
        """Read the root's `zarr.json`; errors are those of `from_attributes`."""
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{where}/{METADATA}: cannot be read (it is not JSON). {REWRITE}") from error
        try:
            attributes = document.get("attributes", {})
            if document["zarr_format"] != 3 or document["node_type"] not in ("group", "array"):
                raise ValueError("not metadata of Zarr v3")
            if not isinstance(attributes, dict):
                raise TypeError("its attributes are no object")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{where}/{METADATA}: cannot be read ({error}). {REWRITE}") from error
        return cls.from_attributes(attributes, where=where)


def parsed(content: Mapping[str, Json]) -> Manifest:
    """Make a manifest from its JSON, whose digest is right; unknown keys are ignored.

    A feature set may come from anyone, so numbers and names, which become paths, are checked.

    Raises
    ------
    DamagedError, ValueError, KeyError, TypeError, AttributeError
        If a value is not of its kind.
    """
    known = {each.name: content[each.name] for each in fields(Manifest) if each.name in content}
    splits = {checked_name(name): _split(info) for name, info in content["splits"].items()}
    layers = {checked_name(name): _layer(info) for name, info in content["layers"].items()}
    for key in content["metadata"]:
        for part in key.split("/"):
            checked_name(part)
    if not splits or layers.keys() & (set(RESERVED) - {DIGESTS}) or content["dtype"] not in ("float32", "float16"):
        raise ValueError("splits, names of layers or dtype")
    if content["compression"] not in ("none", "zstd", "lz4"):
        raise ValueError("compression")
    rows = _whole(content["rows_per_chunk"], least=1)
    if any(info.num_rows > rows * MAX_CHUNKS for info in splits.values()):
        raise ValueError(f"more than {MAX_CHUNKS:,} chunks of a layer")
    size = np.dtype(content["dtype"]).itemsize
    if rows * size > MAX_CHUNK_BYTES or any(rows * info.dim * size > MAX_CHUNK_BYTES for info in layers.values()):
        raise ValueError(f"a chunk of more than {MAX_CHUNK_BYTES:,} bytes")
    if not all(isinstance(known.get(name, {}), dict) for name in ("made_from", "metadata", "software", "notes")):
        raise TypeError("made_from, metadata, software or notes")
    return Manifest(**{**known, "splits": splits, "layers": layers})


def _split(info: Mapping[str, Json]) -> SplitInfo:
    names = tuple(info["class_names"])
    if not all(isinstance(name, str) for name in (*names, info["listing"])):
        raise TypeError("a name of a class or a listing")
    is_multi_label = info.get("is_multi_label", False)
    if not isinstance(is_multi_label, bool):
        raise TypeError("is_multi_label")
    return SplitInfo(
        num_rows=_whole(info["num_rows"], least=1), class_names=names, listing=info["listing"],
        is_multi_label=is_multi_label,
    )  # fmt: skip


def _layer(info: Mapping[str, Json]) -> LayerInfo:
    if not isinstance(info["tap"], str) or not isinstance(info["pooling"], str | None):
        raise TypeError("tap or pooling of a layer")
    shape = tuple(_whole(side, least=0) for side in info["shape"])
    return LayerInfo(tap=info["tap"], pooling=info["pooling"], shape=shape)


def _whole(value: Json, *, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} where a whole number from {least} on must be")
    return value


REWRITE = "Restore it with `bench verify ... --repair`, or extract again with --overwrite."
"""Advice for damaged metadata."""


def digest_of(value: Json) -> str:
    """Return the sha256 of a JSON value, the same for any order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def flattened(settings: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield nested settings under dotted names.

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
    """Describe each setting that differs between the existing and the requested manifest, one a line."""
    found = changed(dict(old.settings()), dict(new.settings()))
    return [f"{key}: it has {was}, you ask for {now}" for key, was, now in found]


def changed(before: Mapping[str, Json], after: Mapping[str, Json]) -> list[tuple[str, str, str]]:
    """Return the name of each setting that differs, and its values before and after in a few words.

    Examples
    --------
    >>> changed({"trunk": "a", "sizes": (1, 2)}, {"sizes": [1, 2]})
    [('trunk', '"a"', 'nothing')]
    """
    return [
        (key, _brief(before.get(key)), _brief(after.get(key)))
        for key in dict.fromkeys([*before, *after])
        if digest_of(before.get(key)) != digest_of(after.get(key))  # to JSON, a tuple is a list
    ]


MADE_BY = ("model", "weights", "transform", "precision")
"""Settings that make features those of one model, by which queries and a bank can be compared."""


def differing_models(bank: Manifest, queries: Manifest) -> list[str]:
    """Describe each setting of model, weights, transform and precision that differs, one a line, where both say them.

    Examples
    --------
    >>> from dataclasses import replace
    >>> one = Manifest(made_from={"weights": "a"}, dtype="float32", compression="none", rows_per_chunk=1, splits={})
    >>> differing_models(one, replace(one, made_from={"weights": "b"}))
    ['weights: it has "a", the queries "b"']
    """
    ours, theirs = dict(_of_model(bank)), dict(_of_model(queries))
    if not ours or not theirs:
        return []
    return [f"{key}: it has {was}, the queries {now}" for key, was, now in changed(ours, theirs)]


def _of_model(manifest: Manifest) -> Iterator[tuple[str, Json]]:
    made_from = manifest.made_from
    extract = made_from.get("extract", {})
    if "precision" in extract:
        made_from = {"precision": extract["precision"], **made_from}
    return flattened({key: made_from[key] for key in MADE_BY if key in made_from})


def _brief(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "nothing"
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", text)  # of a SHA-256 the first 12 digits tell enough
    return text if len(text) <= 70 else f"{text[:50]}... ({len(text)} characters)"
