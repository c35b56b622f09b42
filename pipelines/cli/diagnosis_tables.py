"""Tables of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featbench.evaluate.diagnosis.results import (
    AgreementResult,
    CalibrationResult,
    DepthResult,
    GeometryResult,
    GroupResult,
    HubnessResult,
    SuspectsResult,
    WithoutResult,
)
from featbench.evaluate.metrics import Estimate
from featbench.evaluate.results import SelectionResult
from featbench.pipelines.cli.cells import LAYER, percent, shortened, temperature_of, with_spaces
from featbench.pipelines.terminal.table import Column, Table

MOST_GROUPS = 30
"""Groups of one grouping that a table shows; records have all."""


def selection_table(results: Sequence[SelectionResult]) -> Table:
    """Make the table of the setting chosen on train, and of what choosing on val would have claimed."""
    rows = []
    for each in results:
        for what, result in (("leave-one-out", each.on_val), ("val itself", each.best_on_val)):
            trial = percent(each.chosen.accuracy.top1) if result is each.on_val else ""
            temperature = temperature_of(result.temperature)
            setting = (what, result.layer.layer, result.protocol, str(result.k), temperature, trial)
            rows.append((*setting, percent(result.accuracy.top1)))
    first = results[0]
    columns = (
        Column(name="chosen by", is_right=False),
        LAYER,
        Column(name="protocol", is_right=False, drop=1),
        *(Column(name=name) for name in ("k", "T")),
        Column(name="on train", drop=2),
        Column(name="top-1 on val"),
    )
    notes = (
        f"% with 95% interval. The best of {first.num_settings:,} settings on train, each row classified by the "
        f"others; choosing on val would have claimed {100 * first.optimism:.1f} points more.",
    )
    title = f"{first.on_val.layer.features}: setting chosen without val"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=notes)


def calibration_table(results: Sequence[CalibrationResult]) -> Table:
    """Make the table of calibration."""
    first = results[0]
    rows = [
        (
            each.layer.layer, each.protocol, str(each.k), temperature_of(each.temperature), percent(each.top1),
            f"{100 * each.calibration.mean_confidence:.1f}", percent(each.calibration.ece),
            f"{100 * each.calibration.ece_by_chance:.1f}",
            f"{100 * each.calibration.rms_ce:.1f}", f"{100 * each.calibration.max_ce:.1f}",
            with_interval(each.calibration.nll), with_interval(each.calibration.brier),
            with_interval(each.calibration.auroc),
        )
        for each in results
    ]  # fmt: skip
    columns = (
        LAYER,
        Column(name="protocol", is_right=False, drop=3 if len({each.protocol for each in results}) == 1 else 0),
        Column(name="k"),
        Column(name="T", drop=4),
        Column(name="top-1"),
        Column(name="confidence", drop=2),
        Column(name="ECE"),
        Column(name="by chance", drop=3),
        *(Column(name=name, drop=drop) for name, drop in (("RMS", 6), ("max", 7), ("NLL", 5), ("Brier", 8))),
        Column(name="AUROC", drop=1),
    )
    notes = (
        "Top-1, mean confidence and calibration errors (expected, the same for a calibrated vote, root mean square, "
        "largest; 15 bins) in %. NLL: minus the log likelihood of the true class. AUROC: how often a right prediction "
        "is more confident than a wrong one.",
    )
    title = f"{first.layer.features}: calibration of the vote"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=notes, num_grouped=2)


def hubness_table(results: Sequence[HubnessResult]) -> Table:
    """Make the table of hubness, with the largest hub of each list."""
    first = results[0]
    rows = []
    for each in results:
        found, largest = each.hubness, each.hubs[0]
        rows.append(
            (
                each.layer.layer,
                with_spaces(each.similarity),
                str(each.k),
                f"{found.skewness:.2f}",
                f"{100 * found.robin_hood:.1f}",
                f"{100 * found.antihub_rate:.1f}",
                f"{100 * found.hub_occurrence:.1f}",
                f"{shortened(largest.path, most=40)} ({largest.num_lists:,})",
            )
        )
    columns = (
        LAYER,
        Column(name="similarity", is_right=False, drop=3 if len({each.similarity for each in results}) == 1 else 0),
        Column(name="k"),
        Column(name="skewness"),
        Column(name="Robin Hood", drop=2),
        Column(name="antihubs"),
        Column(name="hubs", drop=4),
        Column(name="largest hub (lists)", is_right=False, drop=1),
    )
    notes = (
        "Of how many lists each train row is in. Robin Hood: % of places that would have to change hands; antihubs: % "
        "of rows in no list; hubs: % of places held by rows in at least 2 k lists.",
    )
    title = f"{first.layer.features}: hubs"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=notes, num_grouped=2)


def geometry_table(results: Sequence[GeometryResult]) -> Table:
    """Make the table of intrinsic dimension and spectrum."""
    first = results[0]
    rows = []
    for each in results:
        dimension, spectrum = each.dimension, each.spectrum
        rows.append(
            (
                each.layer.layer,
                with_spaces(each.similarity),
                f"{each.layer.dim:,}",
                with_interval(None if dimension is None else dimension.mle, digits=1),
                "" if dimension is None else f"{dimension.num_duplicates:,}",
                *("" if value is None else f"{value:,.1f}" for value in _ranks(each)),
                "" if spectrum is None or spectrum.alpha is None else f"{spectrum.alpha:.2f}",
                with_interval(None if spectrum is None else spectrum.uniformity),
            )
        )
    columns = (
        LAYER,
        Column(name="similarity", is_right=False, drop=2 if len({each.similarity for each in results}) == 1 else 0),
        Column(name="dim", drop=3),
        Column(name="intrinsic"),
        Column(name="at distance 0", drop=4),
        Column(name="RankMe"),
        Column(name="of covariance", drop=5),
        Column(name="alpha", drop=1),
        Column(name="uniformity", drop=1),
    )
    notes = (
        "Intrinsic dimension by TwoNN. RankMe: effective rank by the singular values of the features, and by the "
        "eigenvalues of their covariance; alpha: decay of these. Intervals: 95%.",
    )
    return Table(title=f"{first.layer.features}: geometry", columns=columns, rows=tuple(rows), notes=notes)


def group_table(results: Sequence[GroupResult]) -> Table:
    """Make the table of accuracies by group, worst first."""
    first = results[0]
    ordered = sorted(results, key=lambda each: each.top1.value)
    rows = [(each.group, f"{each.num_queries:,}", percent(each.top1)) for each in ordered[:MOST_GROUPS]]
    columns = (Column(name=first.grouping, is_right=False), Column(name="queries"), Column(name="top-1"))
    more = len(ordered) - len(rows)
    notes = ["% with 95% interval, the worst group first."] + [f"{more:,} more groups are in the records."] * bool(more)
    setting = f"{first.layer.layer}, protocol {first.protocol}, k = {first.k}, by {first.grouping}"
    return Table(title=f"{first.layer.features}: {setting}", columns=columns, rows=tuple(rows), notes=tuple(notes))


def suspects_table(results: Sequence[SuspectsResult]) -> Table:
    """Make the table of how many suspects there are."""
    first = results[0]
    rows = []
    for each in results:
        kinds = [suspect.kind for suspect in each.suspects]
        counts = (each.num_leaks, each.num_duplicates, each.num_components, each.largest_component)
        others = (each.num_closer_to_others, kinds.count("label error"), kinds.count("outlier"))
        rows.append((each.layer.layer, *(f"{count:,}" for count in (*counts, *others))))
    names = ("val in train", "in train", "components", "largest", "nearer to others", "label errors", "outliers")
    drops = (0, 0, 3, 2, 1, 0, 0)
    columns = (LAYER, *(Column(name=name, drop=drop) for name, drop in zip(names, drops, strict=True)))
    notes = (
        f"Near-duplicates: rows of val with one in train, rows of train with one in train, and their connected "
        f"components, by a cosine of at least {first.threshold:g}. Nearer to others: rows whose nearest train row is "
        f"of another class; of these, and of the rows farthest from neighbour {first.k}, the first are listed.",
    )
    return Table(title=f"{first.layer.features}: suspects", columns=columns, rows=tuple(rows), notes=notes)


def without_table(results: Sequence[WithoutResult]) -> Table:
    """Make the table of accuracies without suspects."""
    first = results[0]
    rows = [
        (
            each.layer.layer, each.protocol, str(each.k), each.without, f"{each.num_train:,}", f"{each.num_val:,}",
            percent(each.top1),
        )
        for each in results
    ]  # fmt: skip
    columns = (
        LAYER,
        Column(name="protocol", is_right=False, drop=1 if len({each.protocol for each in results}) == 1 else 0),
        Column(name="k", drop=2),
        Column(name="without", is_right=False),
        *(Column(name=name) for name in ("train", "val", "top-1")),
    )
    title = f"{first.layer.features}: accuracy without suspects"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=("% with 95% interval.",), num_grouped=3)


def depth_table(results: Sequence[DepthResult]) -> Table:
    """Make the table of prediction depths."""
    rows = []
    for each in results:
        for layer, count, top1 in zip(each.layers, each.num_queries, each.top1, strict=True):
            share = f"{100 * count / sum(each.num_queries):.1f}"
            rows.append((each.features, layer, f"{count:,}", share, percent(top1)))
    columns = (
        Column(name="features", is_right=False, drop=1 if len(results) == 1 else 0),
        Column(name="decided at", is_right=False),
        *(Column(name=name) for name in ("queries", "%", "top-1")),
    )
    notes = (
        "First layer from which on all layers predict what the last one does, and the accuracy of these queries. "
        f"Deepest: {', '.join(shortened(row.path, most=60) for row in results[0].deepest[:3]) or 'none'}.",
    )
    title = f"{results[0].features}: prediction depth, protocol {results[0].protocol}, k = {results[0].k}"
    return Table(title=title, columns=columns, rows=tuple(rows), notes=notes, num_grouped=1)


def agreement_tables(results: Sequence[AgreementResult]) -> list[Table]:
    """Make two matrices of layers by layers: shared neighbours beyond chance, and CKA."""
    if not results:
        return []
    first = results[0]
    sides = [side for each in results for side in (each.first, each.second)]
    names = list(dict.fromkeys((side.features, side.layer) for side in sides))
    is_one = len({features for features, _ in names}) == 1
    shown = [layer if is_one else f"{features}/{layer}" for features, layer in names]
    shared = {_ends(each): f"{100 * each.overlap.corrected:.1f}" for each in results}
    aligned = {_ends(each): _cka_cell(each) for each in results}
    notes = (
        f"% of the {first.k} nearest neighbours that two layers share, beyond chance; {first.num_queries:,} queries.",
        "Linear CKA, debiased: 1 if alike up to rotation and scale, 0 if independent.",
    )
    title = f"{names[0][0]}: " if is_one else ""
    return [
        _matrix(f"{title}shared neighbours", shown, names, shared, "100.0", notes[0]),
        _matrix(f"{title}CKA", shown, names, aligned, "1.00", notes[1]),
    ]


def _cka_cell(result: AgreementResult) -> str:
    value = None if result.cka is None else result.cka.debiased
    return "-" if value is None else f"{value:.2f}"


Side = tuple[str, str]


def _ends(result: AgreementResult) -> tuple[Side, Side]:
    first, second = result.first, result.second
    return (first.features, first.layer), (second.features, second.layer)


def _matrix(
    title: str,
    shown: Sequence[str],
    names: Sequence[Side],
    cells: Mapping[tuple[Side, Side], str],
    same: str,
    note: str,
) -> Table:
    """Lay out a symmetric matrix; the columns are numbered as the rows."""
    rows = tuple(
        (str(i + 1), shown[i], *(same if a == b else cells.get((a, b)) or cells[b, a] for b in names))
        for i, a in enumerate(names)
    )
    columns = (Column(name=""), LAYER, *(Column(name=str(i + 1), drop=i) for i in range(len(names))))
    return Table(title=title, columns=columns, rows=rows, notes=(note,))


def with_interval(estimate: Estimate | None, *, digits: int = 2) -> str:
    """Write a number with the half width of its interval; nothing if it is not known.

    Examples
    --------
    >>> with_interval(Estimate(1.5, 1.25, 1.75))
    '1.50 ±0.25'
    """
    if estimate is None:
        return ""
    half = max(estimate.high - estimate.value, estimate.value - estimate.low)
    return f"{estimate.value:.{digits}f} ±{half:.{digits}f}"


def _ranks(result: GeometryResult) -> tuple[float | None, float | None]:
    measured = result.spectrum
    return (None, None) if measured is None else (measured.rankme, measured.rankme_covariance)
