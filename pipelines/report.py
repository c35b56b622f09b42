"""Tables for people: what was extracted, how good it is, what lies in a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evaluate.views import Record
from store import Fault, FeatureSet


def accuracy_table(records: Sequence[Record]) -> RenderableType:
    """KNN accuracies of all layers, k and temperatures; the best top-1 of each layer stands out."""
    knn = [record for record in records if record["task"] == "knn"]
    first = knn[0]
    table = Table(
        title=f"{first['features']}: kNN, protocol {first['protocol']} ({first['similarity']}, {first['vote']} vote)",
        caption=f"{first['num_train']:,} train, {first['num_val']:,} val, {first['num_classes']} classes; "
        f"weights: {first['weights']}; % with 95% interval",
        title_justify="left",
        caption_justify="left",
    )
    has_temperature = any(record["temperature"] is not None for record in knn)
    table.add_column("layer")
    table.add_column("dim", justify="right")
    table.add_column("k", justify="right")
    if has_temperature:
        table.add_column("T", justify="right")
    for column in ("top-1", "top-5", "mean per class"):
        table.add_column(column, justify="right")
    best = {
        layer: max(r["top1"] for r in knn if r["layer"] == layer) for layer in dict.fromkeys(r["layer"] for r in knn)
    }
    previous = None
    for record in knn:
        if previous not in (None, record["layer"]):
            table.add_section()
        is_new, previous = previous != record["layer"], record["layer"]
        cells = [record["layer"] if is_new else "", f"{record['dim']:,}" if is_new else "", str(record["k"])]
        if has_temperature:
            cells.append(f"{record['temperature']:g}")
        style = "bold" if record["top1"] == best[record["layer"]] else ""
        values = [_percent(record, name) for name in ("top1", "top5", "mean_per_class")]
        table.add_row(*cells, Text(values[0], style=style), *values[1:])
    return table


def cluster_table(records: Sequence[Record]) -> RenderableType:
    """Cluster metrics of all layers, numbers of clusters and splits."""
    clusterings = [record for record in records if record["task"] == "kmeans"]
    table = Table(title=f"{clusterings[0]['features']}: k-means on train", title_justify="left")
    table.add_column("layer")
    for column in ("clusters", "split", "NMI", "AMI", "ARI", "Hungarian acc.", "purity"):
        table.add_column(column, justify="right" if column != "split" else "left")
    for record in clusterings:
        values = [f"{100 * record[name]:.1f}" for name in ("nmi", "ami", "ari", "hungarian", "purity")]
        table.add_row(record["layer"], str(record["clusters"]), record["split"], *values)
    return table


def evaluation_tables(records: Sequence[Record]) -> RenderableType:
    """All tables of an evaluation."""
    tables: list[RenderableType] = []
    if any(record["task"] == "knn" for record in records):
        tables.append(accuracy_table(records))
    if any(record["task"] == "kmeans" for record in records):
        tables.append(cluster_table(records))
    return Group(*tables)


def store_table(feature_sets: Iterable[FeatureSet]) -> RenderableType:
    """What lies in a store, one line each."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "model", "weights", "train", "val", "layers", "created"):
        table.add_column(column, justify="right" if column in ("train", "val") else "left")
    for features in feature_sets:
        manifest = features.manifest
        model = manifest.made_from.get("model", {}).get("trunk", "imported")
        counts = [f"{manifest.splits[split].num_rows:,}" for split in ("train", "val")]
        table.add_row(
            features.name,
            model,
            str(manifest.notes.get("weights", "")),
            *counts,
            ", ".join(manifest.layers),
            manifest.created,
        )
    return table


def info_table(features: FeatureSet) -> RenderableType:
    """One feature set: what it was made from, and how complete each layer is."""
    manifest = features.manifest
    facts = Table.grid(padding=(0, 2))
    facts.add_row("path", str(features.path))
    facts.add_row("fingerprint", manifest.fingerprint)
    facts.add_row("created", manifest.created)
    facts.add_row("weights", str(manifest.notes.get("weights", "")))
    for key, value in manifest.settings():
        text = str(value)
        facts.add_row(key, text if len(text) <= 100 else f"{text[:97]}...")
    layers = Table(title="layers", title_justify="left")
    for column in ("layer", "tap", "pooling", "shape", "train chunks", "val chunks"):
        layers.add_column(column)
    for name, info in manifest.layers.items():
        done = [
            f"{features.num_committed(split, name)}/{features.grid(split).num_chunks}" for split in ("train", "val")
        ]
        layers.add_row(name, info.tap, info.pooling or "mean", " x ".join(map(str, info.shape)), *done)
    return Group(facts, layers)


def fault_lines(faults: Sequence[Fault]) -> str:
    """Faults of a feature set, one line each."""
    return "\n".join(f"  {fault.where}: {fault.what}" for fault in faults)


def _percent(record: Record, name: str) -> str:
    return f"{100 * record[name]:.2f} [{100 * record[f'{name}_low']:.1f}, {100 * record[f'{name}_high']:.1f}]"
