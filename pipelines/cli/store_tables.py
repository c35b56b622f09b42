"""Tables of stores, feature sets, models and data sets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featbench.evaluate.results import Record
from featbench.pipelines.cli.cells import LAYER, named, shortened, size_in_words, with_spaces
from featbench.pipelines.terminal.table import Column, Table
from featbench.store import Fault, FeatureSet, StoreError
from featbench.store.feature_set import feature_sets
from featbench.store.names import visible
from featbench.store.paths import QUERIES
from featbench.store.usage import PARTS

if TYPE_CHECKING:
    from featbench.evaluate.neighbours.kept import KeptNeighbours
    from featbench.extract.model.taps import TapInfo
    from featbench.pipelines.config.catalogue import Listed
    from featbench.pipelines.housekeeping.unused import Unused


def store_table(records: Sequence[Record]) -> Table:
    """What lies in a store, one line for each feature set."""
    rows = [
        (
            named(record["name"]), named(record["model"]), named(record["weights"]), named(record["data"]),
            f"{record['num_train']:,}", f"{record['num_val']:,}", str(len(record["layers"])),
            shortened(visible(", ".join(record["layers"]), keep="")), size_in_words(record["bytes"]),
            _completeness(record), _best(record), record["created"][:16].replace("T", " "),
        )
        for record in records
    ]  # fmt: skip
    columns = (
        Column(name="name", is_right=False),
        Column(name="model", is_right=False, drop=6),
        Column(name="weights", is_right=False, drop=8),
        Column(name="data", is_right=False, drop=3),
        Column(name="train", drop=4),
        Column(name="val", drop=5),
        Column(name="layers", drop=7),
        Column(name="names of layers", is_right=False, drop=10),
        Column(name="size"),
        Column(name="complete", drop=1),
        Column(name="best", is_right=False, drop=2),
        Column(name="created (UTC)", is_right=False, drop=9),
    )
    notes = []
    if any(record["best"] is not None for record in records):
        notes.append("Best: the highest top-1 recorded on val, in %, and its layer; without kNN mAP or NMI.")
    total = sum(record["bytes"] or 0 for record in records)
    return Table(columns=columns, rows=tuple(rows), notes=(*notes, f"{size_in_words(total)} in all."))


def _completeness(record: Record) -> str:
    if record["chunks_total"] is None:
        return "damaged"
    written, total = record["chunks_written"], record["chunks_total"]
    return "yes" if written == total else f"{100 * written // max(1, total)}%"


def _best(record: Record) -> str:
    if record["best"] is None:
        return ""
    name = {"top1": "", "mean_ap": "mAP ", "nmi": "NMI "}[record["best_by"]]
    return f"{name}{100 * record['best']:.1f} {named(record['best_layer'])}"


def usage_table(records: Sequence[Record]) -> Table:
    """How much disk feature sets take, one line each, and in all."""
    shown = [*records, {"name": "in all", **{key: _total(records, key) for key in ("total", *PARTS)}}]
    rows = [
        (named(each["name"]), size_in_words(each["total"]), *(size_in_words(each[part]) for part in PARTS))
        for each in shown
    ]
    drops = {"layers": 0, "neighbours": 1, "clusters": 2}
    columns = (
        Column(name="name", is_right=False),
        Column(name="size"),
        *(Column(name=part, drop=drops.get(part, 3 + at)) for at, part in enumerate(PARTS)),
    )
    return Table(columns=columns, rows=tuple(rows))


def _total(records: Sequence[Record], key: str) -> int:
    return sum(record[key] or 0 for record in records)


def part_table(records: Sequence[Record]) -> Table:
    """How much disk the parts of feature sets take, one line each."""
    shown = [each for each in records if each["bytes"]]
    rows = [(named(each["name"]), named(each["part"]), size_in_words(each["bytes"])) for each in shown]
    rows.append(("in all", "", size_in_words(_total(records, "bytes"))))
    columns = (Column(name="name", is_right=False), Column(name="part", is_right=False), Column(name="size"))
    return Table(columns=columns, rows=tuple(rows), num_grouped=1)


def unused_table(found: Sequence[Unused]) -> Table:
    """What is of no use, one line each."""
    rows = [
        (
            named(each.features or "(store)"),
            each.kind,
            named(each.what),
            size_in_words(each.bytes),
            named(each.why),
        )
        for each in found
    ]
    columns = (
        Column(name="features", is_right=False),
        Column(name="kind", is_right=False, drop=2),
        Column(name="what", is_right=False, drop=1),
        Column(name="size"),
        Column(name="why", is_right=False),
    )
    note = f"{size_in_words(sum(each.bytes for each in found))} in all; features, labels and results stay."
    return Table(columns=columns, rows=tuple(rows), notes=(note,), num_grouped=2)


def neighbours_table(kept: Sequence[KeptNeighbours], sizes: Sequence[int]) -> Table:
    """Make the table of the kept neighbours of a feature set."""
    has_index = any(each.index for each in kept)
    rows = [
        (
            named(each.layer), with_spaces(each.similarity), "" if each.k is None else f"{each.k:,}", each.queries,
            "" if each.num_queries is None else f"{each.num_queries:,}",
            *([named(each.index or "")] if has_index else []), str(each.state), size_in_words(size), named(each.key),
        )
        for each, size in zip(kept, sizes, strict=True)
    ]  # fmt: skip
    columns = (
        LAYER,
        Column(name="similarity", is_right=False),
        Column(name="k"),
        Column(name="queries", is_right=False),
        Column(name="rows", drop=3),
        *([Column(name="index", is_right=False, drop=2)] if has_index else []),
        Column(name="state", is_right=False),
        Column(name="size", drop=1),
        Column(name="key", is_right=False, drop=4),
    )
    useless = [each for each in kept if not each.is_of_use]
    notes = (f"Of no use: {len(useless)}. To remove them: bench clean.",) if useless else ()
    return Table(title="kept neighbours", columns=columns, rows=tuple(rows), notes=notes, num_grouped=1)


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
