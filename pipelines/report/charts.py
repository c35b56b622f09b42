"""Charts of the report, as Vega-Lite specifications without their data, each with the rows that are its data.

The rows are also the table behind the chart. A chart that would be too full at once shows the rows that have one value
of a field, which the reader chooses (`switch`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featbench.pipelines.report.evaluations import Evaluated

Row = dict[str, Any]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c8c00")
"""Okabe and Ito's colours, which people with any colour vision can tell apart, and two more; yellow is left out."""

ON_DARK = ("#4ba3e0", "#ff8f50", "#2ec48f", "#e6a1c8", "#f2b632", "#93d1f7", "#b48fd6", "#c6c650")
"""The same, brighter, for dark ground."""

NONE = "none"
"""Temperature of a vote that has none."""

WIDTH, HEIGHT = 640, 320
"""Pixels of an exported chart; in the page, charts are as wide as the text."""

MOST_TEMPERATURES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table behind a chart."""

    key: str
    title: str
    digits: int | None = None
    """Decimal places of numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart."""

    key: str
    title: str
    description: str
    """What can be seen, for those who can't see it, and for its caption."""

    spec: dict[str, Any]
    """Vega-Lite, with an empty data set of the name `table`."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    switch: str | None = None
    """Field of which the reader chooses one value; rows in which it is `NONE` are shown with every value."""

    switch_title: str = ""
    options: Sequence[str] = field(default_factory=tuple)
    colours: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Encodings of the colour of which the reader chooses one, by name; none if there is only one."""

    view: str = ""
    """The view that it shows, if there is one such chart for each view."""


def accuracy_by_k(evaluated: Sequence[Evaluated]) -> Chart:
    """Accuracy against k, a line for each view; the reader chooses the temperature."""
    import altair as alt

    rows = [row for each in evaluated for row in _grid_rows(each)]
    names = [each.view.name for each in evaluated]
    axes = base(alt).encode(
        x=alt.X("k:Q", scale=alt.Scale(type="log", nice=False), title="k (neighbours that vote)",
                axis=alt.Axis(values=sorted({row["k"] for row in rows}), labelOverlap=True, grid=False)),
        color=color_of(alt, "view", names),
    )  # fmt: skip
    band = axes.mark_area(opacity=0.14).encode(y=_accuracy_axis(alt, "low"), y2="high:Q")
    line = axes.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=36)).encode(
        y=_accuracy_axis(alt, "top1"), tooltip=_tips(alt, ("view", "k", "temperature", "top1", "low", "high"))
    )
    options = list(dict.fromkeys(row["temperature"] for row in rows if row["temperature"] != NONE))
    first = next((_temperature(each.temperature) for each in evaluated if each.temperature is not None), NONE)
    has_switch = len(options) > 1
    return Chart(
        key="accuracy-by-k", title="Accuracy against k",
        description="Top-1 accuracy on a logarithmic axis of k, one line for each layer, with 95% intervals.",
        spec=specification(alt.layer(band, line)), rows=rows, columns=_ACCURACY_COLUMNS,
        switch="temperature" if has_switch else None, switch_title="Temperature T",
        options=sorted(options, key=lambda each: (each != first, float(each))) if has_switch else (),
    )  # fmt: skip


def accuracy_by_setting(evaluated: Sequence[Evaluated]) -> Chart | None:
    """Accuracy of each k and temperature as colours; the reader chooses the view. None if no vote has a temperature."""
    import altair as alt

    rows = [row for each in evaluated if each.temperature is not None for row in _grid_rows(each)]
    if not rows:
        return None
    axes = base(alt).encode(
        x=alt.X("k:O", title="k (neighbours that vote)", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("temperature:O", title="temperature T", sort=alt.EncodingSortField("temperature_value", "min")),
    )
    cells = axes.mark_rect().encode(
        color=alt.Color("top1:Q", title="top-1 (%)", scale=alt.Scale(scheme="viridis", zero=False)),
        tooltip=_tips(alt, ("view", "k", "temperature", "top1", "low", "high")),
    )
    numbers = axes.mark_text(fontSize=10).encode(
        text=alt.Text("top1:Q", format=".1f"),
        color=alt.condition("datum.rank > 0.6", alt.value("#111"), alt.value("#fff")),
    )
    return Chart(
        key="accuracy-by-setting", title="Accuracy by k and temperature",
        description="Top-1 accuracy in % of every k and temperature, as numbers on colours from low (dark) to high.",
        spec=specification(alt.layer(cells, numbers)), rows=_ranked(rows), columns=_ACCURACY_COLUMNS,
        switch="view", switch_title="Layer", options=[each.view.name for each in evaluated if each.temperature],
    )  # fmt: skip


def layer_curve(evaluated: Sequence[Evaluated]) -> Chart | None:
    """Accuracy against the layer in the network's order, at the k that are reported; None if there is one layer."""
    import altair as alt

    layers = list(dict.fromkeys(each.view.layer.name for each in evaluated))
    sets = list(dict.fromkeys(each.view.source.features.name for each in evaluated))
    if len(layers) < 2:
        return None
    rows = [
        {
            "set": each.view.source.features.name, "protocol": each.view.protocol_name, "layer": each.view.layer.name,
            "k": str(result.k), "temperature": _temperature(result.temperature), **_percent(result.accuracy.top1),
        }
        for each in evaluated
        for result in each.results
        if result.temperature == each.temperature and (len(sets) == 1 or result.k == each.k)
    ]  # fmt: skip
    ks = sorted({row["k"] for row in rows}, key=int)
    several = len(sets) > 1
    axes = base(alt).encode(
        x=alt.X("layer:N", sort=layers, title="layer, from input to output", axis=_names(alt, labelAngle=-30)),
        color=color_of(alt, "set" if several else "k", sets if several else ks, None if several else "k"),
    )
    if several or len({row["protocol"] for row in rows}) > 1:
        axes = axes.encode(detail=["k:N", "protocol:N", "set:N"])
    rule = axes.mark_rule(opacity=0.45).encode(y=_accuracy_axis(alt, "low"), y2="high:Q")
    line = axes.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=44)).encode(
        y=_accuracy_axis(alt, "top1"), tooltip=_tips(alt, ("layer", "k", "temperature", "top1", "low", "high"))
    )
    columns = [
        Column(key="set", title="features"), Column(key="layer", title="layer"),
        Column(key="protocol", title="protocol"), Column(key="k", title="k"), *_ACCURACY_COLUMNS[2:],
    ]  # fmt: skip
    return Chart(
        key="layer-curve", title="Accuracy of each layer",
        description="Top-1 accuracy of the layers in the order of the network, with 95% intervals.",
        spec=specification(alt.layer(rule, line)), rows=rows, columns=columns,
    )  # fmt: skip


def confusion_matrix(name: str, classes: Sequence[str], cells: Sequence[Sequence[int]], names: Sequence[str]) -> Chart:
    """Queries of each true class by predicted class: share of the true class as colour."""
    import altair as alt

    totals: dict[int, int] = {}
    for true, _, count in cells:
        totals[true] = totals.get(true, 0) + count
    rows = [
        {
            "true": names[true], "predicted": names[predicted], "count": count,
            "share": round(100 * count / totals[true], 2),
        }
        for true, predicted, count in cells
    ]  # fmt: skip
    with_names = len(classes) <= 40
    labels: dict[str, Any] = {} if with_names else {"labels": False}
    spec = base(alt).mark_rect().encode(
        x=alt.X("predicted:N", sort=list(classes), scale=alt.Scale(domain=list(classes)), title="predicted class",
                axis=_names(alt, labelAngle=-45, **labels)),
        y=alt.Y("true:N", sort=list(classes), scale=alt.Scale(domain=list(classes)), title="true class",
                axis=_names(alt, **labels)),
        color=alt.Color("share:Q", title="% of true class", scale=alt.Scale(scheme="viridis", domain=[0, 100])),
        tooltip=_tips(alt, ("true", "predicted", "count", "share")),
    )  # fmt: skip
    columns = [
        Column(key="true", title="true class"), Column(key="predicted", title="predicted class"),
        Column(key="count", title="queries"), Column(key="share", title="% of true class", digits=1),
    ]  # fmt: skip
    side = max(280, min(520, 44 * len(classes)), 20 * len(classes)) if with_names else 560
    return Chart(
        key="confusion", view=name, title=f"Confusion matrix of {name}",
        description="Share of the queries of each true class (rows) that were predicted as each class (columns).",
        spec=specification(spec, height=side), rows=rows, columns=columns,
    )  # fmt: skip


_ACCURACY_COLUMNS = (
    Column(key="view", title="layer"), Column(key="k", title="k"), Column(key="temperature", title="T"),
    Column(key="top1", title="top-1 (%)", digits=2), Column(key="low", title="from", digits=2),
    Column(key="high", title="to", digits=2),
)  # fmt: skip
_TITLES = {
    "view": "layer", "temperature": "T", "top1": "top-1 (%)", "low": "from (%)", "high": "to (%)", "count": "queries",
    "share": "% of true class", "true": "true class", "predicted": "predicted class",
}  # fmt: skip
_NUMBERS = {"top1", "low", "high", "share"}


def _grid_rows(evaluated: Evaluated) -> list[Row]:
    return [
        {
            "view": evaluated.view.name, "k": cell.k, "temperature": _temperature(cell.temperature),
            "temperature_value": cell.temperature, **_percent(cell.top1),
        }
        for cell in evaluated.grid
    ]  # fmt: skip


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Add where each accuracy is between the lowest and the highest of its view, so that a number can be read on it."""
    ends: dict[str, tuple[float, float]] = {}
    for row in rows:
        low, high = ends.get(row["view"], (row["top1"], row["top1"]))
        ends[row["view"]] = min(low, row["top1"]), max(high, row["top1"])
    return [
        row | {"rank": (row["top1"] - ends[row["view"]][0]) / ((ends[row["view"]][1] - ends[row["view"]][0]) or 1)}
        for row in rows
    ]


def _percent(estimate: Any) -> Row:
    values = {"top1": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: round(100 * value, 4) for name, value in values.items()}


def _temperature(value: float | None) -> str:
    return NONE if value is None else f"{value:g}"


def base(alt: Any) -> Any:
    """Make a chart of the data set `table`."""
    return alt.Chart(alt.Data(name="table"))


def _accuracy_axis(alt: Any, name: str) -> Any:
    return alt.Y(f"{name}:Q", title="top-1 accuracy (%)", scale=alt.Scale(zero=False, nice=True))


def _names(alt: Any, **settings: Any) -> Any:
    """Make an axis of names, which may be long."""
    return alt.Axis(labelLimit=140, **settings)


def color_of(alt: Any, name: str, domain: Sequence[str], title: str | None = None) -> Any:
    """Encode names as colours that can be told apart, and that dark ground has its own of."""
    scale = {"range": list(PALETTE)} if len(domain) <= len(PALETTE) else {"scheme": "viridis"}
    legend = alt.Legend(title=title, orient="top", columns=0, labelLimit=260, symbolType="circle", symbolOpacity=1)
    return alt.Color(f"{name}:N", scale=alt.Scale(domain=list(domain), **scale), legend=legend)


def _tips(alt: Any, names: Sequence[str]) -> list[Any]:
    return [
        alt.Tooltip(f"{name}:{'Q' if name in _NUMBERS else 'N'}", title=_TITLES.get(name, name),
                    **({"format": ".2f"} if name in _NUMBERS else {}))
        for name in names
    ]  # fmt: skip


def specification(chart: Any, *, height: int = HEIGHT) -> dict[str, Any]:
    """Specification of a chart that fills its container, without data and theme."""
    spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict(validate=False)
    for name in ("config", "$schema", "datasets"):
        spec.pop(name, None)
    return spec | {"$schema": "https://vega.github.io/schema/vega-lite/v6.json"}
