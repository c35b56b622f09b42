"""Tables for people: what was extracted, how good it is, what lies in a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evaluate.protocols import Protocol
from evaluate.views import Record
from store import Fault, FeatureSet, StoreError


def accuracy_table(knn: Sequence[Record]) -> RenderableType:
    """KNN accuracies by one protocol of all layers, k and temperatures; the best top-1 of each layer stands out."""
    first = knn[0]
    what = "leave-one-out kNN of train" if first["leave_one_out"] else "kNN"
    rule = f"protocol {first['protocol']} ({first['similarity']}, {first['vote']} vote)"
    table = Table(
        title=f"{first['features']}: {what}, {rule}",
        caption=f"{first['num_train']:,} train, {first['num_val']:,} val, {first['num_classes']} classes; "
        f"weights: {first['weights']}; % with 95% interval; {_exactness(knn)}",
        title_justify="left",
        caption_justify="left",
    )
    has_temperature = any(record["temperature"] is not None for record in knn)
    table.add_column("layer")
    table.add_column("dim", justify="right")
    table.add_column("k", justify="right")
    if has_temperature:
        table.add_column("T", justify="right")
    shown = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
    if first.get("num_duplicates") is not None:
        shown["top1_without_duplicates"] = "top-1 without duplicates"
    for column in shown.values():
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
        values = [_percent(record, name) for name in shown]
        table.add_row(*cells, Text(values[0], style=style), *values[1:])
    return table


def few_shot_table(records: Sequence[Record]) -> RenderableType:
    """Accuracies with few labels: mean and standard deviation of the tries."""
    first = records[0]
    title = f"{first['features']}: few labels, mean and standard deviation of {first['tries']} tries, %"
    table = Table(title=title, title_justify="left")
    for column in ("layer", "protocol", "per class", "train", "k", "T", "top-1", "top-5", "mean per class"):
        table.add_column(column, justify="left" if column in ("layer", "protocol") else "right")
    for record in records:
        temperature = "" if record["temperature"] is None else f"{record['temperature']:g}"
        setting = [record["layer"], record["protocol"], record["shots"], f"{record['num_train']:,}", str(record["k"])]
        values = [
            f"{100 * record[name]:.2f} ± {100 * record[f'{name}_sd']:.2f}"
            for name in ("top1", "top5", "mean_per_class")
        ]
        table.add_row(*setting, temperature, *values)
    return table


def retrieval_table(records: Sequence[Record]) -> RenderableType:
    """How well neighbours of the same class come first."""
    recalls = [name for name in records[0] if name.startswith("recall_at_") and records[0][name] is not None]
    table = Table(title=f"{records[0]['features']}: retrieval, %", title_justify="left")
    for column in ("layer", "similarity", "precision@1", "R-precision", "MAP@R"):
        table.add_column(column, justify="left" if column in ("layer", "similarity") else "right")
    for name in recalls:
        table.add_column(name.replace("recall_at_", "recall@"), justify="right")
    for record in records:
        shown = [record[name] for name in ("precision_at_1", "r_precision", "map_at_r", *recalls)]
        values = ["none" if value is None else f"{100 * value:.2f}" for value in shown]
        table.add_row(record["layer"], record["similarity"], *values)
    return table


def neighbours_table(records: Sequence[Record]) -> RenderableType:
    """What was found of unlabelled images."""
    table = Table(title=f"{records[0]['features']}: neighbours, without labels", title_justify="left")
    for column in ("layer", "similarity", "k", "train", "queries", "engine"):
        table.add_column(column, justify="left" if column in ("layer", "similarity", "engine") else "right")
    for record in records:
        queries = record["num_train" if record["leave_one_out"] else "num_val"]
        counts = [str(record["k"]), f"{record['num_train']:,}", f"{queries:,}"]
        table.add_row(record["layer"], record["similarity"], *counts, record["engine"])
    return table


def class_table(records: Sequence[Record]) -> RenderableType:
    """Accuracy of each class, worst first."""
    first = records[0]
    title = f"{first['features']}: {first['layer']}, protocol {first['protocol']}, k = {first['k']}, by class"
    table = Table(title=title, title_justify="left")
    for column in ("class", "val", "top-1", "taken for"):
        table.add_column(column, justify="right" if column in ("val", "top-1") else "left")
    for record in sorted(records, key=lambda record: record["top1"]):
        worst = f"{record['taken_for']} ({100 * record['taken_for_rate']:.0f} %)" if record["taken_for"] else ""
        table.add_row(record["class"], f"{record['num_val']:,}", _percent(record, "top1"), worst)
    return table


def comparison_table(records: Sequence[Record]) -> RenderableType:
    """How two differ on the same queries."""
    first = records[0]
    names = [first[side] if len(records) == 1 else first[side].split("/")[0] for side in ("first", "second")]
    title = f"{names[0]} against {names[1]}: {first['num_val']:,} queries, top-1 in %"
    table = Table(title=title, title_justify="left", caption="p: McNemar's exact test", caption_justify="left")
    for column in ("layer", "protocol", "k", "T", "first", "second", "difference, 95% interval", "p"):
        table.add_column(column, justify="left" if column in ("layer", "protocol") else "right")
    for record in records:
        temperature = "" if record["temperature"] is None else f"{record['temperature']:g}"
        difference = f"{100 * record['difference']:+.2f}"
        interval = f"[{100 * record['low']:+.2f}, {100 * record['high']:+.2f}]"
        shown = [f"{100 * record[name]:.2f}" for name in ("top1_first", "top1_second")]
        layers = dict.fromkeys(record[side].split("/")[1] for side in ("first", "second"))
        setting = [" / ".join(layers), record["protocol"], str(record["k"]), temperature]
        table.add_row(*setting, *shown, f"{difference} {interval}", f"{record['p_value']:.2g}")
    return table


def protocol_table(protocols: Mapping[str, Protocol]) -> RenderableType:
    """What each protocol fixes."""
    table = Table(box=None, pad_edge=False)
    for column in ("protocol", "similarity", "vote", "k", "T", "top-5", "resize", "source"):
        table.add_column(column)
    for name, rule in protocols.items():
        numbers = [", ".join(map(str, values)) for values in (rule.k, rule.temperature)]
        table.add_row(name, rule.similarity, rule.vote, *numbers, rule.top5, rule.interpolation or "", rule.source)
    return table


def difference_table(first: str, second: str, rows: Sequence[tuple[str, object, object]]) -> RenderableType:
    """In what two protocols differ."""
    if not rows:
        return Text(f"{first} and {second} fix the same.")
    table = Table(box=None, pad_edge=False)
    for column in ("", first, second):
        table.add_column(column)
    for name, *values in rows:
        shown = [", ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values]
        table.add_row(name, *shown)
    return table


def cluster_table(clusterings: Sequence[Record]) -> RenderableType:
    """Cluster metrics of all layers, numbers of clusters and splits."""
    table = Table(title=f"{clusterings[0]['features']}: k-means on train", title_justify="left")
    table.add_column("layer")
    for column in ("clusters", "split", "NMI", "AMI", "ARI", "Hungarian acc.", "purity"):
        table.add_column(column, justify="right" if column != "split" else "left")
    for record in clusterings:
        shown = [record[name] for name in ("nmi", "ami", "ari", "hungarian", "purity")]
        values = ["" if value is None else f"{100 * value:.1f}" for value in shown]
        table.add_row(record["layer"], str(record["clusters"]), record["split"], *values)
    return table


def evaluation_tables(records: Sequence[Record]) -> RenderableType:
    """All tables of an evaluation."""
    tables: list[RenderableType] = []
    for task, columns, table in (
        ("knn", ("protocol",), accuracy_table),
        ("neighbours", (), neighbours_table),
        ("few_shot", (), few_shot_table),
        ("retrieval", (), retrieval_table),
        ("class", ("layer", "protocol"), class_table),
        ("kmeans", (), cluster_table),
    ):
        of_task = [record for record in records if record["task"] == task]
        for group in dict.fromkeys(tuple(record[column] for column in columns) for record in of_task):
            tables.append(table([r for r in of_task if tuple(r[column] for column in columns) == group]))
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
    for split in manifest.splits:
        facts.add_row(f"{split} without a label", _num_unlabelled(features, split))
    layers = Table(title="layers", title_justify="left")
    for column in ("layer", "tap", "pooling", "shape", "train chunks", "val chunks"):
        layers.add_column(column)
    for name, info in manifest.layers.items():
        done = [
            f"{features.num_committed(split, name)}/{features.grid(split).num_chunks}" for split in ("train", "val")
        ]
        layers.add_row(name, info.tap, info.pooling or "mean", " x ".join(map(str, info.shape)), *done)
    return Group(facts, layers)


def _num_unlabelled(features: FeatureSet, split: str) -> str:
    try:
        return f"{int((features.labels(split) < 0).sum()):,} of {features.split(split).num_rows:,} rows"
    except StoreError as error:  # damaged labels do not hide the rest
        return f"unknown ({error})"


def fault_lines(faults: Sequence[Fault]) -> str:
    """Faults of a feature set, one line each."""
    return "\n".join(f"  {fault.where}: {fault.what}" for fault in faults)


def _exactness(knn: Sequence[Record]) -> str:
    """Say whether neighbours are exact, and of how many queries that took a second look."""
    if not knn[0]["certified"]:
        of_k: dict[int, list[float]] = {}
        for record in knn:
            of_k.setdefault(record["k"], []).append(record["recall"])
        ranges = {k: dict.fromkeys(f"{100 * each:.1f}" for each in (min(all_), max(all_))) for k, all_ in of_k.items()}
        shown = ", ".join(f"{' to '.join(each)} %" + f" at k = {k}" * (len(of_k) > 1) for k, each in ranges.items())
        return f"approximate neighbours, recall {shown}"
    looks = {record["layer"]: record["num_second_look"] for record in knn if record["num_second_look"]}
    looked = ", ".join(f"{layer} {count:,}" for layer, count in looks.items())
    return "neighbours certified exact" + (f", by a second look for some queries: {looked}" if looked else "")


def _percent(record: Record, name: str) -> str:
    left_out = f" ({record['num_duplicates']:,} left out)" if name == "top1_without_duplicates" else ""
    if record.get(name) is None:  # all queries are duplicates
        return f"none{left_out}"
    interval = f"[{100 * record[f'{name}_low']:.1f}, {100 * record[f'{name}_high']:.1f}]"
    return f"{100 * record[name]:.2f} {interval}{left_out}"
