"""The page: one HTML file that needs no network, and in which names from data are text, never markup or code."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from featbench.pipelines.report.charts import Chart, Row
from featbench.store.names import visible

SCRIPTS = (
    "vote.js",
    "page.js",
    "charts.js",
    "tables.js",
    "pictures.js",
    "neighbours.js",
    "sections.js",
    "looking.js",
    "comparing.js",
    "main.js",
)
"""Files of the template whose texts, in this order, are the page's program."""


def render(content: Mapping[str, Any], data: Mapping[str, Any], charts: Sequence[Chart]) -> str:
    """Write the page.

    Parameters
    ----------
    content : mapping
        What the template shows itself.
    data : mapping
        What the page's program shows: anything that can be written as JSON.
    charts : sequence of Chart
        Drawn by the page's program.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    scripts = [_harmless(_drawing_program()), "\n".join(map(template, SCRIPTS))]
    policy = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return environment.get_template("page.html.jinja").render(
        **content,
        charts=charts,
        style=Markup(template("style.css")),
        drawing_program=Markup(scripts[0]),
        program=Markup(scripts[1]),
        policy=Markup(policy),
        data=Markup(script_json({**data, "charts": [_chart(chart) for chart in charts]})),
    )


def template(name: str) -> str:
    """Return the text of a file of the template."""
    return (files(__package__) / "template" / name).read_text(encoding="utf-8")


def script_json(value: object) -> str:
    """Write JSON that can stand in a script element: it can't end the element, or begin a comment in it.

    Examples
    --------
    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    """Escape control characters of text from data; text that is markup is the template's own."""
    return visible(value) if type(value) is str else value


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "key": chart.key, "title": chart.title, "spec": chart.spec, "table": columns_of(chart.rows),
        "columns": [{"key": each.key, "title": each.title, "digits": each.digits} for each in chart.columns],
        "switch": chart.switch, "switchTitle": chart.switch_title, "options": list(chart.options),
        "colours": dict(chart.colours),
    }  # fmt: skip


def columns_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Write rows by column; a text that many rows have is written once.

    Examples
    --------
    >>> columns_of([{"layer": "a", "k": 1}, {"layer": "a", "k": 2}])
    {'layer': {'values': ['a'], 'codes': [0, 0]}, 'k': [1, 2]}
    """
    columns: dict[str, Any] = {}
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows]
        if isinstance(values[0], str):
            places = {value: place for place, value in enumerate(dict.fromkeys(values))}
            columns[key] = {"values": list(places), "codes": [places[value] for value in values]}
        else:
            columns[key] = values
    return columns


@functools.cache
def _drawing_program() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, as vl-convert has them."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _harmless(script: str) -> str:
    """Keep texts within a script from ending its element."""
    return re.sub(r"<(?=/script|script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
