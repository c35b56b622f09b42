"""The charts of the report as SVG and PNG files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featbench.evaluate.errors import EvaluationError
from featbench.pipelines.report.charts import NONE, WIDTH, Chart, Row
from featbench.pipelines.report.theme import PRINTED
from featbench.store.durable import cannot_write

_PIXELS_PER_UNIT = 3


def write_plots(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write each chart as SVG and as PNG; one that can be switched, once for each value.

    Raises
    ------
    EvaluationError
        If the folder can't be written.
    """
    import vl_convert

    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, spec in _drawings(charts):
            svg, png = folder / f"{name}.svg", folder / f"{name}.png"
            svg.write_text(vl_convert.vegalite_to_svg(spec, config=PRINTED), encoding="utf-8")
            png.write_bytes(vl_convert.vegalite_to_png(spec, config=PRINTED, scale=_PIXELS_PER_UNIT))
            written += [svg, png]
    except OSError as error:
        again = "run the same command again, or name another folder"
        raise EvaluationError(cannot_write(folder, error, again=again)) from error
    return written


def _drawings(charts: Sequence[Chart]) -> list[tuple[str, dict[str, Any]]]:
    """Name and specification of each file."""
    found: dict[str, dict[str, Any]] = {}
    for chart in charts:
        for option in chart.options or (chart.view or None,):
            rows = [row for row in chart.rows if chart.switch is None or row[chart.switch] in (option, NONE)]
            if rows:
                name = file_name(chart.key if option is None else f"{chart.key}_{option}")
                unique = name if name not in found else f"{name}-{len(found)}"
                found[unique] = _drawn(chart, rows)
    return list(found.items())


def _drawn(chart: Chart, rows: Sequence[Row]) -> dict[str, Any]:
    return chart.spec | {"width": WIDTH, "data": {"name": "table", "values": list(rows)}}


def file_name(text: str) -> str:
    """Return a name for a file of any system.

    Examples
    --------
    >>> file_name("confusion_a/b <c>")
    'confusion_a-b-c'
    """
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[:100] or "chart"
