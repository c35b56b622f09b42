"""Tables of kNN results and protocols.

Accuracies are in percent with one digit, as value and half width of the 95% interval; records (`--json`, `--csv`) have
all digits and both ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.metrics import Estimate
from featbench.evaluate.other_results import (
    AnyOfResult,
    LabelResult,
    MultiLabelQueriesResult,
    MultiLabelResult,
    OodResult,
    QueriesResult,
)
from featbench.evaluate.results import ClassResult, FewShotResult, KnnResult, NeighboursResult, Record, RetrievalResult
from featbench.pipelines.cli.cells import LAYER, mean_and_sd, percent, temperature_of, with_spaces
from featbench.pipelines.terminal.table import Column, Table

QUERIES_NOTE = (
    "% with 95% interval. Bank: all rows of train vote, those of the queries' classes (subset), or of a list."
)

OF_QUERIES = (
    Column(name="queries", is_right=False),
    Column(name="rows", drop=3),
    Column(name="bank", is_right=False),
    Column(name="its rows", drop=4),
    LAYER,
    Column(name="k"),
    Column(name="T", drop=2),
)
"""Columns of any table of other queries."""


def accuracy_table(knn: Sequence[KnnResult]) -> Table:
    """Make the table of kNN accuracies by one protocol; the best top-1 is bold."""
    first = knn[0]
    has_temperature = any(result.temperature is not None for result in knn)
    has_duplicates = first.accuracy.num_duplicates is not None
    best = max(result.top1 for result in knn)
    rows = []
    for result in knn:
        mark = "* " if result.benchmark else ""
        accuracy, row = result.accuracy, [result.layer.layer, f"{result.layer.dim:,}", f"{mark}{result.k}"]
        row += [temperature_of(result.temperature)] if has_temperature else []
        row += map(percent, (accuracy.top1, accuracy.top5, accuracy.mean_per_class))
        if has_duplicates:
            row.append(f"{percent(accuracy.top1_without_duplicates)} ({accuracy.num_duplicates:,})")
        rows.append(tuple(row))
    top1 = 3 + has_temperature
    what = "leave-one-out kNN of train" if first.leave_one_out else "kNN"
    return Table(
        title=f"{first.layer.features}: {what}, protocol {first.protocol} "
        f"({with_spaces(first.similarity)}, {with_spaces(first.vote)} vote)"
        + (", in VISSL's own float32 arithmetic" if first.as_published else ""),
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


def _of_queries(each: QueriesResult | MultiLabelQueriesResult) -> tuple[str, ...]:
    """Cells of `OF_QUERIES`."""
    result = each.result
    return (
        each.queries, f"{result.counts.num_val:,}", each.bank, f"{result.counts.num_train:,}", result.layer.layer,
        str(result.k), temperature_of(result.temperature),
    )  # fmt: skip


def queries_table(results: Sequence[QueriesResult]) -> Table:
    """Make the table of accuracies of other queries."""
    first = results[0].result
    rows = [
        (*_of_queries(each), *map(percent, (each.result.accuracy.top1, each.result.accuracy.top5))) for each in results
    ]
    columns = (*OF_QUERIES, Column(name="top-1"), Column(name="top-5", drop=1))
    notes = (QUERIES_NOTE,)
    title = f"{first.layer.features}: kNN of other queries, protocol {first.protocol}"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=notes, num_grouped=4)


def any_of_table(results: Sequence[AnyOfResult]) -> Table:
    """Make the table of accuracies by labels of which any is right."""
    first = results[0].result
    rows = [
        (
            each.labels, f"{each.num_rows:,}", each.result.layer.layer, str(each.result.k),
            temperature_of(each.result.temperature), percent(each.top1), percent(each.result.accuracy.top1),
        )
        for each in results
    ]  # fmt: skip
    columns = (
        Column(name="labels", is_right=False),
        Column(name="rows", drop=2),
        LAYER,
        Column(name="k"),
        Column(name="T", drop=1),
        Column(name="top-1"),
        Column(name="by val's own"),
    )
    title = f"{first.layer.features}: kNN by labels of which any is right, protocol {first.protocol}"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=("% with 95% interval.",), num_grouped=3)


def ood_table(results: Sequence[OodResult]) -> Table:
    """Make the table of how well val is told from queries from elsewhere."""
    first = results[0]
    rows = [
        (
            each.ood, f"{each.num_outside:,}", each.layer.layer, with_spaces(each.similarity), str(each.k),
            percent(each.metrics.auroc), f"{100 * each.metrics.aupr_in:.1f}", f"{100 * each.metrics.aupr_out:.1f}",
            percent(each.metrics.fpr_at_95),
        )
        for each in results
    ]  # fmt: skip
    columns = (
        Column(name="from elsewhere", is_right=False),
        Column(name="rows", drop=2),
        LAYER,
        Column(name="similarity", is_right=False, drop=3),
        Column(name="k"),
        Column(name="AUROC"),
        *(Column(name=name, drop=1) for name in ("AUPR in", "AUPR out")),
        Column(name="FPR at 95%"),
    )
    notes = (
        f"{first.num_inside:,} rows of val against rows from elsewhere, by the distance to neighbour k in train; in %, "
        "AUROC and FPR with 95% interval. FPR: of the others, accepted where 95% of val are.",
    )
    return Table(title=f"{first.layer.features}: out of distribution", columns=columns, rows=tuple(rows), notes=notes)


def multi_label_table(results: Sequence[MultiLabelResult]) -> Table:
    """Make the table of scores of rows with any number of classes, and name the classes with the lowest."""
    first = results[0]
    rows = [
        (
            each.layer.layer, f"{each.layer.dim:,}", str(each.k), temperature_of(each.temperature),
            *map(percent, (each.mean_ap, each.micro_f1, each.macro_f1)),
        )
        for each in results
    ]  # fmt: skip
    columns = (
        LAYER,
        Column(name="dim", drop=2),
        Column(name="k"),
        Column(name="T", drop=1),
        *(Column(name=name) for name in ("mAP", "micro F1", "macro F1")),
    )
    best = max(results, key=lambda each: each.mean_ap.value)
    worst = sorted(best.labels, key=lambda each: each.ap.value)[:3]
    named = ", ".join(f"{each.name} ({100 * each.ap.value:.1f})" for each in worst)
    queries = first.counts.num_train if first.leave_one_out else first.counts.num_val
    notes = (
        f"{first.counts.num_train:,} train, {queries:,} queries, {len(first.labels):,} classes; % with 95% interval. "
        f"F1: classes with at least half of the votes. Lowest average precision, of layer {best.layer.layer} at "
        f"k = {best.k}: {named}.",
    )
    return Table(
        title=f"{first.layer.features}: kNN of several labels a row, protocol {first.protocol}",
        columns=columns,
        rows=tuple(rows),
        notes=notes,
        num_grouped=2,
    )


def multi_label_queries_table(results: Sequence[MultiLabelQueriesResult]) -> Table:
    """Make the table of scores of other queries with any number of classes."""
    first = results[0].result
    rows = [
        (
            *_of_queries(each),
            f"{len(each.result.labels):,}",
            *map(percent, (each.result.mean_ap, each.result.micro_f1, each.result.macro_f1)),
        )
        for each in results
    ]
    columns = (
        *OF_QUERIES,
        Column(name="classes", drop=5),
        Column(name="mAP"),
        *(Column(name=name, drop=1) for name in ("micro F1", "macro F1")),
    )
    title = f"{first.layer.features}: kNN of other queries with several labels a row, protocol {first.protocol}"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=(QUERIES_NOTE,), num_grouped=4)


def label_table(results: Sequence[LabelResult]) -> Table:
    """Make the table of the classes of rows with any number of them, worst first."""
    first = results[0]
    ordered = sorted((result.label for result in results), key=lambda each: each.ap.value)
    rows = [(each.name, f"{each.num_positive:,}", percent(each.ap), f"{100 * each.f1:.1f}") for each in ordered]
    columns = (Column(name="class", is_right=False), *(Column(name=name) for name in ("queries", "AP", "F1")))
    title = f"{first.layer.features}: {first.layer.layer}, protocol {first.protocol}, k = {first.k}, by class"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=("In %.",))


def few_shot_table(results: Sequence[FewShotResult]) -> Table:
    """Make the table of accuracies with few labels: mean and standard deviation of the tries."""
    first = results[0]
    rows = [
        (
            result.layer.layer, result.protocol, result.shots, f"{result.num_train:,}", str(result.k),
            temperature_of(result.temperature),
            *map(mean_and_sd, (result.top1, result.top5, result.mean_per_class)),
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
        rows.append((result.layer.layer, with_spaces(result.similarity), *values))
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
        rows.append((result.layer.layer, with_spaces(result.similarity), *counts, result.search.engine))
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
        rows.append((each.name, f"{each.num_queries:,}", percent(each.top1), worst))
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
        setting = (" / ".join(layers), record["protocol"], str(record["k"]), temperature_of(record["temperature"]))
        shown = (f"{100 * record[name]:.1f}" for name in ("top1_first", "top1_second"))
        rows.append((*setting, *shown, percent(difference, sign="+"), f"{record['p_value']:.2g}"))
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


def ranking_tables(records: Sequence[Record]) -> list[Table]:
    """Make the table of feature sets by rank, and that of all pairs."""
    ranked = [record for record in records if record["task"] == "ranking"]
    pairs = [record for record in records if record["task"] == "comparison"]
    first = ranked[0]
    rows = [
        (
            str(each["rank"]), each["features"], each["layer"], each["protocol"], str(each["k"]),
            temperature_of(each["temperature"]), percent(Estimate(each["top1"], each["top1_low"], each["top1_high"])),
            each["groups"],
        )
        for each in ranked
    ]  # fmt: skip
    columns = (
        Column(name=""),
        Column(name="features", is_right=False),
        LAYER,
        Column(name="protocol", is_right=False, drop=2),
        Column(name="k", drop=1),
        Column(name="T", drop=3),
        Column(name="top-1"),
        Column(name="groups", is_right=False),
    )
    chosen = "leave-one-out on train" if first["selected_by"] != "val" else "val itself, which favours all of them"
    notes = (
        f"% with 95% interval, of {first['num_val']:,} queries; layer, k and T chosen by {chosen}. Sets with a letter "
        "in common do not differ at 5%.",
    )
    compared = [
        (
            each["first"], each["second"],
            percent(Estimate(each["difference"], each["low"], each["high"]), sign="+"),
            f"{each['p_value']:.2g}", f"{each['p_holm']:.2g}",
        )
        for each in pairs
    ]  # fmt: skip
    names = (Column(name="first", is_right=False), Column(name="second", is_right=False))
    numbers = (Column(name="difference"), Column(name="p", drop=1), Column(name="p (Holm)"))
    note = "First minus second, % with 95% interval; p: McNemar's exact test, then corrected for the number of pairs."
    return [
        Table(title="Feature sets by top-1", columns=columns, rows=tuple(rows), notes=notes),
        Table(title="All pairs", columns=(*names, *numbers), rows=tuple(compared), notes=(note,), num_grouped=1),
    ]


def protocol_table(protocols: Mapping[str, KnnProtocol], *, with_sources: bool = False) -> Table:
    """Make the table of protocols."""
    rows = [
        (
            name, with_spaces(rule.similarity), with_spaces(rule.vote), ",".join(map(str, rule.k)),
            ",".join(map(temperature_of, rule.temperature)), rule.top5, rule.interpolation or "", rule.source,
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


def _accuracy_notes(knn: Sequence[KnnResult], *, has_duplicates: bool) -> Iterable[str]:
    """Notes below a table of accuracies."""
    first = knn[0]
    counts = f"{first.counts.num_train:,} train, {first.counts.num_val:,} val, "
    counts += "1 class" if first.counts.num_classes == 1 else f"{first.counts.num_classes:,} classes"
    yield f"{counts}; weights: {first.layer.weights}; % with 95% interval; {_exactness(knn)}."
    if has_duplicates:
        yield "No duplicates: top-1 without the queries (their number) that have a near-duplicate in train."
    for name in dict.fromkeys(result.benchmark for result in knn if result.benchmark):
        yield f"* The number of the benchmark: {name}."
    if first.as_published:
        yield "As published: exp(s / T) overflows where s / T > 88.7, and classes are then ranked by number."
        return
    if published := [result for result in knn if result.accuracy.published]:
        yield _published_note(published)
    if first.similarity == "inner_product":
        yield (
            f"Protocol {first.protocol} does not normalize features: rows of large norm win every vote, so accuracies "
            "can be near chance where a protocol of cosine similarity, such as dino, is far above it."
        )


def _published_note(knn: Sequence[KnnResult]) -> str:
    """Say what VISSL itself prints, where its vote overflows."""
    first = knn[0]
    own = [(each, each.accuracy.published) for each in knn if each.accuracy.published is not None]
    several = len({each.layer.layer for each in knn}) > 1
    shown = dict.fromkeys(
        (f"{each.layer.layer} " if several else "") + f"{100 * published.top1:.2f}" for each, published in own
    )
    rows = max(published.overflowing for _, published in own)
    return (
        f"VISSL itself prints top-1 {', '.join(shown)} here: its exp(s / {temperature_of(first.temperature)}) "
        f"overflows float32 for up to {100 * rows:.0f} % of the queries, and the class is then chosen by its number. "
        f"--as-published reproduces that."
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
