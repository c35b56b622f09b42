"""Charts of training runs: the curves that `bench watch` keeps of the checkpoints among which a feature set is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featbench.pipelines.report.charts import Chart, Column, Row, base, color_of, specification
from featbench.pipelines.report.evaluations import Source
from featbench.pipelines.suites.curve import Curve, CurveError, Point, Setting, curves_of, shown_setting
from featbench.store.names import visible

logger = logging.getLogger(__name__)

NMI = "NMI of k-means"


def training_charts(sources: Sequence[Source]) -> list[Chart]:
    """Draw the curves that have one of the feature sets as a point; one that can't be read costs a warning."""
    shown = {(source.features.path.parent.resolve(), source.features.name) for source in sources}
    charts: list[Chart] = []
    for store in dict.fromkeys(source.features.path.parent for source in sources):
        for curve in _curves(store):
            own = {name for folder, name in shown if folder == store.resolve()}
            if own & {point.features for point in curve.done}:
                charts += _charts(curve, own, number=len(charts))
    return charts


def _curves(store: Path) -> Iterator[Curve]:
    for found in curves_of(store):
        if isinstance(found, CurveError):
            logger.warning("%s", found)
        else:
            yield found


def _charts(curve: Curve, shown: set[str], *, number: int) -> list[Chart]:
    setting = shown_setting(curve.done)
    what = "step" if all(point.epoch is None for point in curve.done) else "epoch"
    rows = [row for point in curve.done for row in _rows(point, setting, what, shown)]
    rows = [row for row in rows if row["at"] is not None]
    scores = list(dict.fromkeys(row["score"] for row in rows))
    if len({row["at"] for row in rows}) < 2:
        return []
    name = visible(curve.name, keep="")
    return [
        _chart(
            [row for row in rows if row["score"] == score],
            key=f"training-{number + place}",
            title=f"{score} of {name}",
            what=what,
        )
        for place, score in enumerate(scores)
    ]


def _chart(rows: Sequence[Row], *, key: str, title: str, what: str) -> Chart:
    import altair as alt

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    axis = alt.Y("value:Q", title=rows[0]["score"] + " (%)", scale=alt.Scale(zero=False, nice=True))
    tips = [
        alt.Tooltip("layer:N"), alt.Tooltip("at:Q", title=what), alt.Tooltip("file:N"),
        alt.Tooltip("value:Q", title=rows[0]["score"] + " (%)", format=".2f"),
    ]  # fmt: skip
    axes = base(alt).encode(
        x=alt.X("at:Q", title=what, scale=alt.Scale(zero=False), axis=alt.Axis(grid=False, tickMinStep=1)),
        color=color_of(alt, "layer", layers),
    )
    band = axes.mark_area(opacity=0.14).encode(y=alt.Y("low:Q"), y2="high:Q")
    line = axes.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=36)).encode(y=axis, tooltip=tips)
    here = axes.transform_filter("datum.here").mark_point(size=180, strokeWidth=2).encode(y=axis, tooltip=tips)
    has_interval = rows[0]["low"] is not None
    columns = [
        Column(key="at", title=what), Column(key="file", title="checkpoint"), Column(key="layer", title="layer"),
        Column(key="value", title=f"{rows[0]['score']} (%)", digits=2),
        *([Column(key="low", title="from", digits=2), Column(key="high", title="to", digits=2)] * has_interval),
    ]  # fmt: skip
    return Chart(
        key=key, title=title,
        description="Each checkpoint, one line for each layer"
        + (", with 95% intervals" if has_interval else "")
        + "; a larger circle marks what this page shows.",
        spec=specification(alt.layer(*[band] * has_interval, line, here)), rows=rows, columns=columns,
    )  # fmt: skip


def _rows(point: Point, setting: Setting | None, what: str, shown: set[str]) -> Iterator[Row]:
    at = point.epoch if what == "epoch" else point.step
    common = {"at": at, "file": visible(point.file, keep=""), "here": point.features in shown}
    clustered: set[str] = set()
    for record in point.records:
        layer = visible(str(record["layer"]), keep="")
        if setting is not None and Setting.of(record) == setting:
            yield common | {"layer": layer, "score": _score(setting), **_percent(record, setting)}
        elif record["task"] == "kmeans" and record.get("split") == "val" and "nmi" in record and layer not in clustered:
            clustered.add(layer)
            value = round(100 * record["nmi"], 4)
            yield common | {"layer": layer, "score": NMI, "value": value, "low": None, "high": None}


def _score(setting: Setting) -> str:
    name = "mAP" if setting.task == "multi_label" else "Top-1 accuracy"
    at = "" if setting.temperature is None else f", T = {setting.temperature:g}"
    return f"{name} at k = {setting.k}{at}"


def _percent(record: Mapping[str, Any], setting: Setting) -> Row:
    key = "mean_ap" if setting.task == "multi_label" else "top1"
    found = {"value": record[key], "low": record.get(f"{key}_low"), "high": record.get(f"{key}_high")}
    return {name: None if value is None else round(100 * value, 4) for name, value in found.items()}
