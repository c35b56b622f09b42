"""A rich console that treats text as plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from featbench.store.names import visible


class SafeConsole(Console):
    """Spells out control characters, and interprets no markup.

    See `featbench.pipelines.terminal.output`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a renderable from a string."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything, and spell out control characters that did not pass through `render_str`."""
        for segment in super().render(renderable, options):
            safe = segment.text if segment.control else visible(segment.text)
            yield segment if safe == segment.text else Segment(safe, segment.style)
