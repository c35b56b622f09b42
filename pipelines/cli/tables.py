"""Tables for people: what was extracted, how good it is, what lies in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.metrics import Estimate
from featbench.evaluate.results import (
    ClassResult,
    ClusterResult,
    FewShotResult,
    KnnResult,
    NeighboursResult,
    Record,
    Result,
    RetrievalResult,
)
from featbench.store import Fault, FeatureSet, StoreError

R = TypeVar("R")


def accuracy_table(knn: Sequence[KnnResult]) -> RenderableType:
    """KNN accuracies by one protocol of all layers, k and temperatures; the best top-1 of each layer stands out."""
    first = knn[0]
    what = "leave-one-out kNN of train" if first.leave_one_out else "kNN"
    rule = f"protocol {first.protocol} ({first.similarity}, {first.vote} vote)"
    table = Table(
        title=f"{first.layer.features}: {what}, {rule}",
        caption=f"{first.counts.num_train:,} train, {first.counts.num_val:,} val, {first.counts.num_classes} classes; "
        f"weights: {first.layer.weights}; % with 95% interval; {_exactness(knn)}",
        title_justify="left",
        caption_justify="left",
    )
    has_temperature = any(result.temperature is not None for result in knn)
    has_duplicates = first.accuracy.num_duplicates is not None
    table.add_column("layer")
    table.add_column("dim", justify="right")
    table.add_column("k", justify="right")
    if has_temperature:
        table.add_column("T", justify="right")
    columns = ["top-1", "top-5", "mean per class", *(["top-1 without duplicates"] if has_duplicates else [])]
    for column in columns:
        table.add_column(column, justify="right")
    best = {
        layer: max(each.top1 for each in knn if each.layer.layer == layer)
        for layer in dict.fromkeys(each.layer.layer for each in knn)
    }
    previous = None
    for result in knn:
        layer, accuracy = result.layer.layer, result.accuracy
        if previous not in (None, layer):
            table.add_section()
        is_new, previous = previous != layer, layer
        cells = [layer if is_new else "", f"{result.layer.dim:,}" if is_new else "", str(result.k)]
        if has_temperature:
            cells.append(_temperature(result.temperature))
        style = "bold" if result.top1 == best[layer] else ""
        others = [_percent(estimate) for estimate in (accuracy.top5, accuracy.mean_per_class)]
        if has_duplicates:
            others.append(f"{_percent(accuracy.top1_without_duplicates)} ({accuracy.num_duplicates:,} left out)")
        table.add_row(*cells, Text(_percent(accuracy.top1), style=style), *others)
    return table


def few_shot_table(results: Sequence[FewShotResult]) -> RenderableType:
    """Accuracies with few labels: mean and standard deviation of the tries."""
    first = results[0]
    title = f"{first.layer.features}: few labels, mean and standard deviation of {first.tries} tries, %"
    table = Table(title=title, title_justify="left")
    for column in ("layer", "protocol", "per class", "train", "k", "T", "top-1", "top-5", "mean per class"):
        table.add_column(column, justify="left" if column in ("layer", "protocol") else "right")
    for result in results:
        setting = [result.layer.layer, result.protocol, result.shots, f"{result.num_train:,}", str(result.k)]
        spreads = (result.top1, result.top5, result.mean_per_class)
        values = [f"{100 * spread.mean:.2f} ± {100 * spread.sd:.2f}" for spread in spreads]
        table.add_row(*setting, _temperature(result.temperature), *values)
    return table


def retrieval_table(results: Sequence[RetrievalResult]) -> RenderableType:
    """How well neighbours of the same class come first."""
    first = results[0]
    ks = [k for k, recall in first.recall_at.items() if recall is not None]
    table = Table(title=f"{first.layer.features}: retrieval, %", title_justify="left")
    for column in ("layer", "similarity", "precision@1", "R-precision", "MAP@R"):
        table.add_column(column, justify="left" if column in ("layer", "similarity") else "right")
    for k in ks:
        table.add_column(f"recall@{k}", justify="right")
    for result in results:
        shown = [result.precision_at_1, result.r_precision, result.map_at_r, *(result.recall_at[k] for k in ks)]
        values = ["none" if value is None else f"{100 * value:.2f}" for value in shown]
        table.add_row(result.layer.layer, result.similarity, *values)
    return table


def neighbours_table(results: Sequence[NeighboursResult]) -> RenderableType:
    """What was found of unlabelled images."""
    table = Table(title=f"{results[0].layer.features}: neighbours, without labels", title_justify="left")
    for column in ("layer", "similarity", "k", "train", "queries", "engine"):
        table.add_column(column, justify="left" if column in ("layer", "similarity", "engine") else "right")
    for result in results:
        queries = result.counts.num_train if result.leave_one_out else result.counts.num_val
        counts = [str(result.k), f"{result.counts.num_train:,}", f"{queries:,}"]
        table.add_row(result.layer.layer, result.similarity, *counts, result.search.engine)
    return table


def class_table(results: Sequence[ClassResult]) -> RenderableType:
    """Accuracy of each class, worst first."""
    first = results[0]
    title = f"{first.layer.features}: {first.layer.layer}, protocol {first.protocol}, k = {first.k}, by class"
    table = Table(title=title, title_justify="left")
    for column in ("class", "val", "top-1", "taken for"):
        table.add_column(column, justify="right" if column in ("val", "top-1") else "left")
    for each in sorted((result.accuracy for result in results), key=lambda each: each.top1.value):
        worst = f"{each.taken_for} ({100 * each.taken_for_rate:.0f} %)" if each.taken_for else ""
        table.add_row(each.name, f"{each.num_queries:,}", _percent(each.top1), worst)
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


def protocol_table(protocols: Mapping[str, KnnProtocol]) -> RenderableType:
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


def cluster_table(results: Sequence[ClusterResult]) -> RenderableType:
    """Cluster metrics of all layers, numbers of clusters and splits."""
    table = Table(title=f"{results[0].layer.features}: k-means on train", title_justify="left")
    table.add_column("layer")
    for column in ("clusters", "split", "NMI", "AMI", "ARI", "Hungarian acc.", "purity"):
        table.add_column(column, justify="right" if column != "split" else "left")
    for result in results:
        found = result.metrics
        shown = [] if found is None else [found.nmi, found.ami, found.ari, found.hungarian, found.purity]
        values = [f"{100 * value:.1f}" for value in shown] or [""] * 5
        table.add_row(result.layer.layer, str(result.clusters), result.split, *values)
    return table


def evaluation_tables(results: Sequence[Result]) -> RenderableType:
    """All tables of an evaluation: one for each protocol, each class table, and each other kind of result."""
    accuracies = _grouped(results, KnnResult, lambda result: result.protocol)
    classes = _grouped(results, ClassResult, lambda result: (result.layer.layer, result.protocol))
    return Group(
        *map(accuracy_table, accuracies),
        *map(neighbours_table, _grouped(results, NeighboursResult)),
        *map(few_shot_table, _grouped(results, FewShotResult)),
        *map(retrieval_table, _grouped(results, RetrievalResult)),
        *map(class_table, classes),
        *map(cluster_table, _grouped(results, ClusterResult)),
    )


def _grouped(
    results: Sequence[Result], kind: type[R], key: Callable[[R], object] = lambda result: None
) -> list[list[R]]:
    """Results of one kind, those of the same key together, in the order in which they are."""
    groups: dict[object, list[R]] = {}
    for result in results:
        if isinstance(result, kind):
            groups.setdefault(key(result), []).append(result)
    return list(groups.values())


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


def _exactness(knn: Sequence[KnnResult]) -> str:
    """Say whether neighbours are exact, and of how many queries that took a second look."""
    if not knn[0].search.certified:
        of_k: dict[int, list[float]] = {}
        for result in knn:
            of_k.setdefault(result.k, []).append(result.search.recall or 0.0)
        ranges = {k: dict.fromkeys(f"{100 * each:.1f}" for each in (min(all_), max(all_))) for k, all_ in of_k.items()}
        shown = ", ".join(f"{' to '.join(each)} %" + f" at k = {k}" * (len(of_k) > 1) for k, each in ranges.items())
        return f"approximate neighbours, recall {shown}"
    looks = {each.layer.layer: each.search.num_second_look for each in knn if each.search.num_second_look}
    looked = ", ".join(f"{layer} {count:,}" for layer, count in looks.items())
    return "neighbours certified exact" + (f", by a second look for some queries: {looked}" if looked else "")


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:  # all queries are duplicates
        return "none"
    return f"{100 * estimate.value:.2f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _temperature(temperature: float | None) -> str:
    return "" if temperature is None else f"{temperature:g}"
