"""How charts look, on light and on dark ground: Vega-Lite's configuration."""

from __future__ import annotations

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def theme(*, ink: str, muted: str, line: str, ground: str, font: str = FONT) -> dict[str, Any]:
    """Return a configuration from four colours."""
    return {
        "background": ground,
        "font": font,
        "axis": {
            "domainColor": line, "gridColor": line, "tickColor": line, "labelColor": muted, "titleColor": ink,
            "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500, "titlePadding": 10, "labelPadding": 6,
            "domain": False, "ticks": False, "gridWidth": 1,
        },
        "legend": {
            "labelColor": muted, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": 500,
            "symbolStrokeWidth": 2,
        },
        "title": {"color": ink, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "view": {"stroke": "transparent"},
        "text": {"color": ink},
        "line": {"strokeCap": "round"},
    }  # fmt: skip


LIGHT = theme(ink="#1b1f24", muted="#57606a", line="#e6e8eb", ground="transparent")
DARK = theme(ink="#e6e9ed", muted="#a2abb6", line="#2d333b", ground="transparent")
PRINTED = theme(ink="#1b1f24", muted="#57606a", line="#e6e8eb", ground="white", font="Helvetica, Arial, sans-serif")
"""For files: white, and with a font that papers have."""
