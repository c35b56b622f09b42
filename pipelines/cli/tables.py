"""Tables of results, stores, feature sets, protocols, models and data sets.

Each function makes a `Table`; `featbench.pipelines.terminal` lays it out. Accuracies are in percent with one
digit, as value and half width of the 95% interval; records (`--json`, `--csv`) have all digits and both ends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

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
    Spread,
)
from featbench.pipelines.evaluation.kept_names import settings_in_words
from featbench.pipelines.terminal.table import Column, Table
from featbench.store import Fault, FeatureSet, StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from featbench.evaluate.clustering.kept import KeptClustering
    from featbench.extract.model.taps import TapInfo
    from featbench.pipelines.config.catalogue import Listed

R = TypeVar("R")

LAYER = Column(name="layer", is_right=False)


def accuracy_table(knn: Sequence[KnnResult]) -> Table:
    """Make the table of kNN accuracies by one protocol; the best top-1 is bold."""
    first = knn[0]
    has_temperature = any(result.temperature is not None for result in knn)
    has_duplicates = first.accuracy.num_duplicates is not None
    best = max(result.top1 for result in knn)
    rows = []
    for result in knn:
        accuracy, row = result.accuracy, [result.layer.layer, f"{result.layer.dim:,}", str(result.k)]
        row += [_temperature(result.temperature)] if has_temperature else []
        row += map(_percent, (accuracy.top1, accuracy.top5, accuracy.mean_per_class))
        if has_duplicates:
            row.append(f"{_percent(accuracy.top1_without_duplicates)} ({accuracy.num_duplicates:,})")
        rows.append(tuple(row))
    top1 = 3 + has_temperature
    what = "leave-one-out kNN of train" if first.leave_one_out else "kNN"
    return Table(
        title=f"{first.layer.features}: {what}, protocol {first.protocol} "
        f"({_words(first.similarity)}, {_words(first.vote)} vote)",
        columns=(
            LAYER,
            Column(name="dim", drop=3),
            Column(name="k"),
            *([Column(name="T", drop=4)] if has_temperature else []),
            Column(name="top-1"),
            Column(name="top-5", drop=2),
            Column(name="mean/class", drop=5),
            *([Column(name="no duplicates", drop=1)] if has_duplicates else []),
        ),
        rows=tuple(rows),
        notes=tuple(_accuracy_notes(knn, has_duplicates=has_duplicates)),
        bold=frozenset((i, top1) for i, result in enumerate(knn) if result.top1 == best),
        num_grouped=2,
    )


def few_shot_table(results: Sequence[FewShotResult]) -> Table:
    """Make the table of accuracies with few labels: mean and standard deviation of the tries."""
    first = results[0]
    rows = [
        (
            result.layer.layer, result.protocol, result.shots, f"{result.num_train:,}", str(result.k),
            _temperature(result.temperature),
            *map(_spread, (result.top1, result.top5, result.mean_per_class)),
        )
        for result in results
    ]  # fmt: skip
    columns = (
        LAYER,
        Column(name="protocol", is_right=False, drop=2 if len({result.protocol for result in results}) == 1 else 0),
        Column(name="shots"),
        Column(name="train", drop=6),
        Column(name="k"),
        Column(name="T", drop=4),
        Column(name="top-1"),
        Column(name="top-5", drop=3),
        Column(name="mean/class", drop=5),
    )
    title = f"{first.layer.features}: kNN with few labels"
    note = f"% and standard deviation of {first.tries} tries; shots: labelled images of each class."
    return Table(title=title, columns=columns, rows=tuple(rows), notes=(note,), num_grouped=1)


def retrieval_table(results: Sequence[RetrievalResult]) -> Table:
    """Make the table of retrieval metrics."""
    first = results[0]
    ks = [k for k, recall in first.recall_at.items() if recall is not None]
    rows = []
    for result in results:
        shown = [result.precision_at_1, result.r_precision, result.map_at_r, *(result.recall_at[k] for k in ks)]
        values = ["none" if value is None else f"{100 * value:.1f}" for value in shown]
        rows.append((result.layer.layer, _words(result.similarity), *values))
    columns = (
        LAYER,
        Column(name="similarity", is_right=False, drop=1 if len({each.similarity for each in results}) > 1 else 3),
        *(Column(name=name) for name in ("P@1", "R-prec.", "MAP@R")),
        *(Column(name=f"R@{k}", drop=2) for k in ks),
    )
    notes = ("In %. P@1: precision at 1; R-prec.: R-precision; R@k: recall at k.",)
    return Table(title=f"{first.layer.features}: retrieval", columns=columns, rows=tuple(rows), notes=notes)


def neighbours_table(results: Sequence[NeighboursResult]) -> Table:
    """Make the table of searches among unlabelled images."""
    rows = []
    for result in results:
        queries = result.counts.num_train if result.leave_one_out else result.counts.num_val
        counts = [str(result.k), f"{result.counts.num_train:,}", f"{queries:,}"]
        rows.append((result.layer.layer, _words(result.similarity), *counts, result.search.engine))
    columns = (
        LAYER,
        Column(name="similarity", is_right=False, drop=1),
        *(Column(name=name) for name in ("k", "train", "queries")),
        Column(name="engine", is_right=False, drop=2),
    )
    return Table(title=f"{results[0].layer.features}: neighbours, without labels", columns=columns, rows=tuple(rows))


def class_table(results: Sequence[ClassResult]) -> Table:
    """Make the table of accuracies by class, worst first."""
    first = results[0]
    rows = []
    for each in sorted((result.accuracy for result in results), key=lambda each: each.top1.value):
        worst = f"{each.most_confused_with} ({100 * each.confusion_rate:.0f}%)" if each.most_confused_with else ""
        rows.append((each.name, f"{each.num_queries:,}", _percent(each.top1), worst))
    columns = (
        Column(name="class", is_right=False),
        Column(name="val"),
        Column(name="top-1"),
        Column(name="most often confused with", is_right=False, drop=1),
    )
    title = f"{first.layer.features}: {first.layer.layer}, protocol {first.protocol}, k = {first.k}, by class"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=("% with 95% interval.",))


def comparison_table(records: Sequence[Record]) -> Table:
    """Make the table of paired differences."""
    first = records[0]
    sides = [{record[side] for record in records} for side in ("first", "second")]
    names = [
        first[side] if len(each) == 1 else first[side].split("/")[0]
        for side, each in zip(("first", "second"), sides, strict=True)
    ]
    rows = []
    for record in records:
        difference = Estimate(record["difference"], record["low"], record["high"])
        layers = dict.fromkeys(record[side].split("/")[1] for side in ("first", "second"))
        setting = (" / ".join(layers), record["protocol"], str(record["k"]), _temperature(record["temperature"]))
        shown = (f"{100 * record[name]:.1f}" for name in ("top1_first", "top1_second"))
        rows.append((*setting, *shown, _percent(difference, sign="+"), f"{record['p_value']:.2g}"))
    columns = (
        LAYER,
        Column(name="protocol", is_right=False, drop=2 if len({record["protocol"] for record in records}) == 1 else 0),
        Column(name="k"),
        Column(name="T", drop=1),
        *(Column(name=name) for name in ("first", "second", "difference", "p")),
    )
    return Table(
        title=f"{names[0]} against {names[1]}: top-1 of {first['num_val']:,} queries",
        columns=columns,
        rows=tuple(rows),
        notes=("% with 95% interval; difference: second minus first; p: McNemar's exact test.",),
        num_grouped=2,
    )


def protocol_table(protocols: Mapping[str, KnnProtocol], *, with_sources: bool = False) -> Table:
    """Make the table of protocols."""
    rows = [
        (
            name, _words(rule.similarity), _words(rule.vote), ",".join(map(str, rule.k)),
            ",".join(map(_temperature, rule.temperature)), rule.top5, rule.interpolation or "", rule.source,
        )
        for name, rule in protocols.items()
    ]  # fmt: skip
    columns = (
        *(Column(name=name, is_right=False) for name in ("protocol", "similarity", "vote", "k", "T")),
        Column(name="top-5", is_right=False, drop=1),
        Column(name="resize", is_right=False, drop=2),
        Column(name="source", is_right=False, drop=3),
    )
    notes = [f"{name}: {rule.source}." for name, rule in protocols.items() if rule.source] if with_sources else []
    return Table(columns=columns, rows=tuple(rows), notes=tuple(notes))


def difference_table(first: str, second: str, rows: Sequence[tuple[str, object, object]]) -> Table:
    """Make the table of differences between two protocols."""
    shown = tuple(
        (name, *(", ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values))
        for name, *values in rows
    )
    names = ("setting", first, second)
    notes = () if rows else (f"{first} and {second} fix the same.",)
    return Table(columns=tuple(Column(name=name, is_right=False) for name in names), rows=shown, notes=notes)


def cluster_table(results: Sequence[ClusterResult]) -> Table:
    """Make the table of cluster metrics; columns in which no result has a value are left out."""
    columns = list(_CLUSTER_COLUMNS)
    if len({(result.layer, result.clusters, result.split) for result in results}) < len(results):
        columns.insert(1, (Column(name="clustering", is_right=False), lambda result: result.clustering or ""))
    shown = [column for column in columns if any(column[1](result) for result in results)]
    return Table(
        title=f"{results[0].layer.features}: {_whose_clusters(results[0])}",
        columns=tuple(column for column, _ in shown),
        rows=tuple(tuple(cell(result) for _, cell in shown) for result in results),
        notes=tuple(_cluster_notes(results)),
        num_grouped=2,
    )


def _whose_clusters(result: ClusterResult) -> str:
    return "k-means on train" if result.clusters_of is None else f"clusters of {result.clusters_of}"


def _cluster_notes(results: Sequence[ClusterResult]) -> Iterator[str]:
    first = results[0]
    if any(result.metrics for result in results):
        yield (
            "% with 95% interval; one-to-one: accuracy of the best match of clusters and classes; many-to-one: each "
            "cluster predicts the majority class of its train images."
        )
    labelled = {result.split: (result.num_labelled, len(result.assignments)) for result in results}
    if any(0 < some < every for some, every in labelled.values()):
        counts = ", ".join(f"{some:,} of {every:,} {split}" for split, (some, every) in labelled.items())
        yield f"Images with a label, which these metrics count: {counts}."
    empty = [result for result in results if result.split == "train" and result.sizes.num_empty]
    if empty:
        counts = ", ".join(f"{each.layer.layer} {each.sizes.num_empty:,} of {each.clusters:,}" for each in empty)
        yield f"Clusters without a train image: {counts}."
    if len(first.runs) > 1:
        yield f"Best of {len(first.runs)} runs; objective: with mean and standard deviation of the runs."
    if all(result.certified for result in results):
        yield "Nearest centroids certified exact."


def _metric(name: str) -> Callable[[ClusterResult], str]:
    """Cell of a label metric, in percent."""

    def cell(result: ClusterResult) -> str:
        value: Estimate | float | None = getattr(result.metrics, name, None)
        if isinstance(value, Estimate):
            return _percent(value)
        return "" if value is None else f"{100 * value:.1f}"

    return cell


def _objective(result: ClusterResult) -> str:
    if result.split != "train":  # which alone is optimized
        return ""
    spread = f" ({result.objectives.mean:.6g} ±{result.objectives.sd:.2g})" if len(result.runs) > 1 else ""
    return f"{result.objective:.6g}{spread}"


def _silhouette(result: ClusterResult) -> str:
    value = result.silhouettes.sampled
    return "" if value is None else f"{value:.3f}"


def _simplified_silhouette(result: ClusterResult) -> str:
    value = result.silhouettes.simplified
    return "" if value is None else f"{value:.3f}"


def _sizes(result: ClusterResult) -> str:
    sizes = result.sizes
    return f"{sizes.smallest:,}/{sizes.median:,.0f}/{sizes.largest:,}"


_CLUSTER_COLUMNS: tuple[tuple[Column, Callable[[ClusterResult], str]], ...] = (
    (LAYER, lambda result: result.layer.layer),
    (Column(name="clusters"), lambda result: f"{result.clusters:,}"),
    (Column(name="split", is_right=False), lambda result: result.split),
    (Column(name="NMI"), _metric("nmi")),
    (Column(name="AMI"), _metric("ami")),
    (Column(name="ARI"), _metric("ari")),
    (Column(name="one-to-one", drop=1), _metric("hungarian")),
    (Column(name="many-to-one", drop=2), _metric("many_to_one")),
    (Column(name="purity", drop=3), _metric("purity")),
    (Column(name="homogeneity", drop=10), _metric("homogeneity")),
    (Column(name="completeness", drop=9), _metric("completeness")),
    (Column(name="Fowlkes-Mallows", drop=8), _metric("fowlkes_mallows")),
    (Column(name="silhouette", drop=5), _silhouette),
    (Column(name="simplified silhouette", drop=7), _simplified_silhouette),
    (Column(name="objective", drop=4), _objective),
    (Column(name="size (min/median/max)", drop=6), _sizes),
)


def evaluation_tables(results: Sequence[Result]) -> list[Table]:
    """Make all tables of an evaluation: one for each protocol, and one for each other kind of result."""
    accuracies = _grouped(results, KnnResult, lambda result: result.protocol)
    classes = _grouped(results, ClassResult, lambda result: (result.layer.layer, result.protocol))
    return [
        *map(accuracy_table, accuracies),
        *map(neighbours_table, _grouped(results, NeighboursResult)),
        *map(few_shot_table, _grouped(results, FewShotResult)),
        *map(retrieval_table, _grouped(results, RetrievalResult)),
        *map(class_table, classes),
        *map(cluster_table, _grouped(results, ClusterResult)),
    ]


def _grouped(
    results: Sequence[Result], kind: type[R], key: Callable[[R], object] = lambda result: None
) -> list[list[R]]:
    """Results of one kind, those of the same key together, in their order."""
    groups: dict[object, list[R]] = {}
    for result in results:
        if isinstance(result, kind):
            groups.setdefault(key(result), []).append(result)
    return list(groups.values())


def store_records(feature_sets: Iterable[FeatureSet]) -> list[Record]:
    """What lies in a store: one record for each feature set."""
    return [
        {
            "name": features.name,
            "model": features.manifest.made_from.get("model", {}).get("trunk", "imported"),
            "weights": str(features.manifest.notes.get("weights", "")),
            "num_train": features.manifest.splits["train"].num_rows,
            "num_val": features.manifest.splits["val"].num_rows,
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
        *((key, _shortened(str(value))) for key, value in manifest.settings()),
        *((f"{split} without a label", _num_unlabelled(features, split)) for split in manifest.splits),
    ]


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
                for split in ("train", "val")
                for what, count in (
                    ("written", features.num_committed(split, name)),
                    ("total", features.grid(split).num_chunks),
                )
            },
        }
        for name, info in features.manifest.layers.items()
    ]


def layer_table(records: Sequence[Record]) -> Table:
    """How complete each layer of a feature set is, one line each."""
    rows = [
        (
            record["layer"], record["tap"], record["pooling"], " x ".join(map(str, record["shape"])),
            *(f"{record[f'{s}_chunks_written']:,}/{record[f'{s}_chunks_total']:,}" for s in ("train", "val")),
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


def clustering_table(kept: Sequence[KeptClustering], faults: Mapping[str, str], *, path: Path) -> Table:
    """Make the table of the kept clusterings of a feature set at `path`, and say how to use them."""
    rows = [
        (
            each.layer, f"{each.num_clusters:,}", settings_in_words(each), f"{each.objective:.6g}",
            f"{each.iterations:,}", _yes(each.certified), _yes(each.is_current),
            "" if each.seconds is None else f"{each.seconds:,.1f}",
            each.key,
        )
        for each in kept
    ]  # fmt: skip
    columns = (
        LAYER,
        Column(name="clusters"),
        Column(name="settings", is_right=False),
        Column(name="objective"),
        Column(name="iterations", drop=3),
        Column(name="exact", is_right=False, drop=1),
        Column(name="current", is_right=False),
        Column(name="seconds", drop=4),
        Column(name="key", is_right=False, drop=5),
    )
    notes = [f"{key} cannot be used: {fault}." for key, fault in faults.items()]
    if kept:
        notes.insert(0, "Rows are scaled to length 1, and k-means++ starts, unless said otherwise.")
    if any(each.is_current is False for each in kept):
        notes.append("Not current: the layer or its labels have changed since. Cluster them again: bench evaluate.")
    if any(each.is_current is not False for each in kept):
        notes.append(f"To export them: bench export {path} --what clusters")
    if any(each.is_current is not False and not each.clusters_of for each in kept):
        notes.append(f"To assign other features: bench assign NAME --clusters-of {path}")
    return Table(title="kept clusterings", columns=columns, rows=tuple(rows), notes=tuple(notes), num_grouped=1)


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


def _num_unlabelled(features: FeatureSet, split: str) -> str:
    try:
        return f"{int((features.labels(split) < 0).sum()):,} of {features.split(split).num_rows:,} rows"
    except StoreError as error:  # damaged labels do not hide the rest
        return f"unknown ({error})"


def fault_lines(faults: Sequence[Fault]) -> str:
    """Faults of a feature set, one line each."""
    return "\n".join(f"  {fault.where}: {fault.what}" for fault in faults)


def _accuracy_notes(knn: Sequence[KnnResult], *, has_duplicates: bool) -> Iterable[str]:
    """Notes below a table of accuracies."""
    first = knn[0]
    counts = f"{first.counts.num_train:,} train, {first.counts.num_val:,} val, {first.counts.num_classes:,} classes"
    yield f"{counts}; weights: {first.layer.weights}; % with 95% interval; {_exactness(knn)}."
    if has_duplicates:
        yield "No duplicates: top-1 without the queries (their number) that have a near-duplicate in train."
    if first.similarity == "inner_product":
        yield (
            f"Protocol {first.protocol} does not normalize features: rows of large norm win every vote, so accuracies "
            "can be near chance where a protocol of cosine similarity, such as dino, is far above it."
        )


def _exactness(knn: Sequence[KnnResult]) -> str:
    """Say whether neighbours are exact, and how many queries needed an exact re-check."""
    if not knn[0].search.certified:
        of_k: dict[int, list[float]] = {}
        for result in knn:
            of_k.setdefault(result.k, []).append(result.search.recall or 0.0)
        ranges = {k: dict.fromkeys(f"{100 * each:.1f}" for each in (min(all_), max(all_))) for k, all_ in of_k.items()}
        shown = ", ".join(f"{' to '.join(each)} %" + f" at k = {k}" * (len(of_k) > 1) for k, each in ranges.items())
        return f"approximate neighbours, recall {shown}"
    rechecks = {each.layer.layer: each.search.num_rechecked for each in knn if each.search.num_rechecked}
    shown = ", ".join(f"{layer} {count:,}" for layer, count in rechecks.items())
    return "neighbours certified exact" + (f", after an exact re-check of some queries: {shown}" if shown else "")


def _percent(estimate: Estimate | None, *, sign: str = "") -> str:
    """Write a fraction in percent with the half width of an interval that holds both ends.

    Examples
    --------
    >>> _percent(Estimate(0.5, 0.403, 0.596))
    '50.0 ±9.7'
    """
    if estimate is None:  # all queries are duplicates
        return "none"
    value, low, high = (100 * each for each in (estimate.value, estimate.low, estimate.high))
    shown = f"{value:{sign}.1f}"
    half = max(high - float(shown), float(shown) - low)
    return f"{shown} ±{math.ceil(round(10 * half, 6)) / 10:.1f}"


def _spread(spread: Spread) -> str:
    return f"{100 * spread.mean:.1f} ±{100 * spread.sd:.1f}"


def _yes(known: bool | None) -> str:
    return "-" if known is None else "yes" if known else "no"


def _shortened(text: str, *, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _words(name: str) -> str:
    return name.replace("_", " ")


def _temperature(temperature: float | None) -> str:
    return "" if temperature is None else f"{temperature:g}"
