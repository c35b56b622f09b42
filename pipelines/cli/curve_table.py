"""The table of a curve: accuracies and NMI of each layer over the checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Sequence

from featbench.pipelines.cli.cells import named, temperature_of
from featbench.pipelines.suites.curve import Curve, Point, best_point, nmi_by_layer, score_by_layer, shown_setting
from featbench.pipelines.terminal.table import Column, Table

LONGEST_NAME = 40


def curve_table(curve: Curve) -> Table:
    """Make the table of a curve; the best checkpoint's highest accuracy is bold."""
    points = curve.done
    setting = shown_setting(points)
    accuracies = [score_by_layer(point, setting) for point in points]
    clusters = [nmi_by_layer(point) for point in points]
    layers, clustered = (_keys(each) for each in (accuracies, clusters))
    first = [
        *([Column(name="epoch")] if any(point.epoch is not None for point in points) else []),
        *([Column(name="step")] if any(point.step is not None for point in points) else []),
        Column(name="checkpoint" if points else "", is_right=False, drop=1),
    ]
    names = [column.name for column in first]
    rows = []
    for point, top1, nmi in zip(points, accuracies, clusters, strict=True):
        cells = [each for name, each in _position(point) if name in names]
        name = named(point.file, most=LONGEST_NAME)
        numbers = [_percent(top1.get(layer)) for layer in layers] + [_percent(nmi.get(layer)) for layer in clustered]
        rows.append((*cells, name, *numbers))
    short = [named(layer, most=LONGEST_NAME) for layer in layers]
    short_nmi = [f"{named(layer, most=LONGEST_NAME)} NMI" for layer in clustered]
    return Table(
        title=f"{curve.name}: {_what(curve)}",
        columns=(
            *first,
            *(Column(name=name, drop=2 * (at < len(short))) for at, name in enumerate(short, 1)),
            *(Column(name=name, drop=3) for name in short_nmi),
        ),
        rows=tuple(rows),
        notes=tuple(_notes(curve)),
        bold=_bold(points, layers, accuracies, num_before=len(first)),
    )


def _what(curve: Curve) -> str:
    setting = shown_setting(curve.done)
    if not curve.done:
        return "no checkpoint has been evaluated"
    if setting is None:
        return "NMI of clusters and classes"
    heat = f", T = {temperature_of(setting.temperature)}" if setting.temperature is not None else ""
    name = "mAP" if setting.task == "multi_label" else "top-1"
    return f"{name} by {setting.protocol}, k = {setting.k}{heat}"


def _keys(found: Sequence[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for each in found for key in each))


def _position(point: Point) -> list[tuple[str, str]]:
    numbers = (("epoch", point.epoch), ("step", point.step))
    return [(name, "" if number is None else f"{number:,}") for name, number in numbers]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _bold(
    points: Sequence[Point], layers: Sequence[str], found: Sequence[dict[str, float]], *, num_before: int
) -> frozenset[tuple[int, int]]:
    best = best_point(points)
    if best is None or not layers:
        return frozenset()
    row = list(points).index(best)
    top = max(found[row].values())
    return frozenset((row, num_before + at) for at, layer in enumerate(layers) if found[row].get(layer) == top)


def _notes(curve: Curve) -> list[str]:
    notes = ["In %."] if curve.done else []
    failed = [point for point in curve.points if point.state == "failed"]
    if failed:
        names = ", ".join(named(point.file, most=LONGEST_NAME) for point in failed[:5])
        notes.append(f"Not evaluated: {names}{', ...' if len(failed) > 5 else ''}.")
    return notes
