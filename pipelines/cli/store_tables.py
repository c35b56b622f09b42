"""Tables of stores, feature sets, models and data sets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from featbench.evaluate.results import Record
from featbench.pipelines.cli.cells import LAYER, shortened
from featbench.pipelines.terminal.table import Column, Table
from featbench.store import Fault, FeatureSet, StoreError
from featbench.store.feature_set import feature_sets
from featbench.store.paths import QUERIES

if TYPE_CHECKING:
    from featbench.extract.model.taps import TapInfo
    from featbench.pipelines.config.catalogue import Listed


def store_records(feature_sets: Iterable[FeatureSet]) -> list[Record]:
    """What lies in a store: one record for each feature set."""
    return [
        {
            "name": features.name,
            "model": features.manifest.made_from.get("model", {}).get("trunk", "imported"),
            "weights": str(features.manifest.notes.get("weights", "")),
            "num_train": _num_rows(features, "train"),
            "num_val": _num_rows(features, "val"),
            "layers": list(features.manifest.layers),
            "created": features.manifest.created,
            "path": str(features.path),
        }
        for features in feature_sets
    ]


def store_table(records: Sequence[Record]) -> Table:
    """What lies in a store, one line for each feature set."""
    rows = [
        (
            record["name"], record["model"], record["weights"], f"{record['num_train']:,}", f"{record['num_val']:,}",
            str(len(record["layers"])), ", ".join(record["layers"]), record["created"][:16].replace("T", " "),
        )
        for record in records
    ]  # fmt: skip
    columns = (
        Column(name="name", is_right=False),
        Column(name="model", is_right=False, drop=2),
        Column(name="weights", is_right=False, drop=3),
        Column(name="train"),
        Column(name="val"),
        Column(name="layers", drop=1),
        Column(name="names of layers", is_right=False, drop=5),
        Column(name="created (UTC)", is_right=False, drop=4),
    )
    return Table(columns=columns, rows=tuple(rows))


def info_facts(features: FeatureSet) -> list[tuple[str, str]]:
    """What a feature set was made from: names and values."""
    manifest = features.manifest
    return [
        ("path", str(features.path)),
        ("fingerprint", manifest.fingerprint),
        ("created", manifest.created),
        ("weights", str(manifest.notes.get("weights", ""))),
        *((key, shortened(str(value))) for key, value in manifest.settings()),
        *((f"{split} without a label", _num_unlabelled(features, split)) for split in manifest.splits),
        *((f"queries {each.name}", _of_queries(each)) for each in feature_sets(features.path / QUERIES)),
    ]


def _of_queries(kept: FeatureSet) -> str:
    (rows,) = (info.num_rows for info in kept.manifest.splits.values())
    return f"{rows:,} rows, kept for `bench evaluate --queries {kept.name}`"


def without_long_hashes(facts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Shorten each SHA-256 to its first 12 digits."""
    return [(name, re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", value)) for name, value in facts]


def facts_table(facts: Sequence[tuple[str, str]]) -> Table:
    """Names and values as a table of two columns."""
    columns = tuple(Column(name=name, is_right=False) for name in ("what", "value"))
    return Table(columns=columns, rows=tuple(facts))


def layer_records(features: FeatureSet) -> list[Record]:
    """How complete each layer of a feature set is."""
    return [
        {
            "layer": name,
            "tap": info.tap,
            "pooling": info.pooling or "mean",
            "shape": list(info.shape),
            **{
                f"{split}_chunks_{what}": count
                for split in features.manifest.splits
                for what, count in (
                    ("written", features.num_committed(split, name)),
                    ("total", features.grid(split).num_chunks),
                )
            },
        }
        for name, info in features.manifest.layers.items()
    ]


def _num_rows(features: FeatureSet, split: str) -> int:
    return features.manifest.splits[split].num_rows if split in features.manifest.splits else 0


def _written(record: Record, split: str) -> str:
    if f"{split}_chunks_total" not in record:
        return "-"  # it has only the other split
    return f"{record[f'{split}_chunks_written']:,}/{record[f'{split}_chunks_total']:,}"


def layer_table(records: Sequence[Record]) -> Table:
    """How complete each layer of a feature set is, one line each."""
    rows = [
        (
            record["layer"], record["tap"], record["pooling"], " x ".join(map(str, record["shape"])),
            *(_written(record, split) for split in ("train", "val")),
        )
        for record in records
    ]  # fmt: skip
    columns = (
        LAYER,
        Column(name="tap", is_right=False, drop=2),
        Column(name="pooling", is_right=False, drop=1),
        Column(name="shape", is_right=False),
        Column(name="train chunks"),
        Column(name="val chunks"),
    )
    return Table(title="layers", columns=columns, rows=tuple(rows))


def tap_table(taps: Sequence[TapInfo], *, images: int | None = None) -> Table:
    """Taps of a model, one line each; with a number of images also the GB that a layer would take."""
    rows = []
    for tap in taps:
        sizes = (math.prod(tap.shape), tap.pooled)
        gigabytes = [f"{4e-9 * size * images:,.2f}" if size else "-" for size in sizes] if images else []
        names = (tap.name, ", ".join(tap.aliases), " x ".join(map(str, tap.shape)))
        rows.append((*names, *(f"{size:,}" if size else "-" for size in sizes), *gigabytes))
    columns = (
        Column(name="tap", is_right=False),
        Column(name="also called", is_right=False, drop=2),
        Column(name="shape", is_right=False, drop=1),
        Column(name="numbers", drop=3),
        Column(name="of its mean", drop=3),
        *((Column(name="GB"), Column(name="GB of its mean")) if images else ()),
    )
    return Table(columns=columns, rows=tuple(rows))


def dataset_table(datasets: Sequence[Listed]) -> Table:
    """Data sets of the catalogue, one line each; what is missing of them is said below."""
    rows, notes = [], []
    for listed in datasets:
        root = listed.entry.root
        found = "yes" if listed.found else "missing" if listed.missing else "no root"
        rows.append((listed.name, found, str(root) if root else "-", listed.entry.about))
        if listed.missing:
            notes.append(f"{listed.name}: missing: {', '.join(listed.missing)}, in {root}.")
    columns = (
        Column(name="data set", is_right=False),
        Column(name="found", is_right=False),
        Column(name="where", is_right=False, drop=2),
        Column(name="what it is", is_right=False, drop=1),
    )
    return Table(columns=columns, rows=tuple(rows), notes=tuple(notes))


def fault_lines(faults: Sequence[Fault]) -> str:
    """Faults of a feature set, one line each."""
    return "\n".join(f"  {fault.where}: {fault.what}" for fault in faults)


def _num_unlabelled(features: FeatureSet, split: str) -> str:
    try:
        return f"{features.num_unlabelled(split):,} of {features.split(split).num_rows:,} rows"
    except StoreError as error:  # damaged labels do not hide the rest
        return f"unknown ({error})"
