"""Output of the commands: tables for people, or JSON, CSV, Markdown or LaTeX for other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from featbench.pipelines.terminal.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV: the records of --json, one a line.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the tables in Markdown.")]
Latex = Annotated[bool, typer.Option("--latex", help="Print the tables in LaTeX, for the package booktabs.")]
Format = Literal["text", "json", "csv", "markdown", "latex"]


def chosen_format(*, json: bool, csv: bool, markdown: bool, latex: bool) -> Format:
    """Return the one format that was asked for.

    Raises
    ------
    BenchError
        If there are several.
    """
    flags: Mapping[Format, bool] = {"json": json, "csv": csv, "markdown": markdown, "latex": latex}
    given = [name for name, is_given in flags.items() if is_given]
    if len(given) > 1:
        from featbench.store.errors import BenchError

        raise BenchError(f"give only one of --json, --csv, --markdown and --latex; got --{' and --'.join(given)}")
    return given[0] if given else "text"


def print_results(
    tables: Sequence[Table], records: Sequence[Mapping[str, Any]], form: Format, *, content: Any = None
) -> None:
    """Print results in one format; JSON holds `content`, by default the records."""
    from featbench.pipelines.terminal.formats import as_csv, as_latex, as_markdown

    if form == "text":
        show(*tables)
    elif form == "json":
        typer.echo(json.dumps(records if content is None else content, indent=1))
    elif form == "csv":
        typer.echo(as_csv(records), nl=False)
    else:
        written = map(as_markdown if form == "markdown" else as_latex, tables)
        typer.echo("\n\n".join(written))


def show(*tables: Table) -> None:
    """Print tables: fitted to a terminal, or in full width, without colours and lines, to a file."""
    from featbench.pipelines.terminal.table import as_text

    _print(*(as_text(table, width=_width(), rule=_rule()) for table in tables))


def show_facts(facts: Sequence[tuple[str, str]], *, title: str = "") -> None:
    """Print names and values."""
    from featbench.pipelines.terminal.table import facts_text

    _print(facts_text(facts, title=title, width=_width()))


def _print(*texts: Text) -> None:
    from featbench.pipelines.terminal.output import console

    drawn_on = console()
    for index, text in enumerate(texts):
        if index:
            drawn_on.print()
        drawn_on.print(text, soft_wrap=True, highlight=False)


def _width() -> int | None:
    """Columns of the terminal; None if stdout is none."""
    from featbench.pipelines.terminal.output import console

    return console().width if sys.stdout.isatty() else None


def _rule() -> str:
    """What underlines headings: nothing in a file."""
    if not sys.stdout.isatty():
        return ""
    return "\u2500" if "utf" in (sys.stdout.encoding or "").lower() else "-"
