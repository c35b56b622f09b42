"""Tables as Markdown and LaTeX, and flat records as CSV: what other programs read, with every character escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from featbench.pipelines.terminal.table import Table, one_line

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$",
}  # fmt: skip

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet runs text that begins so."""


def as_markdown(table: Table) -> str:
    """Write a table in GitHub's Markdown.

    Examples
    --------
    >>> from featbench.pipelines.terminal.table import Column
    >>> table = Table(columns=(Column(name="layer", is_right=False), Column(name="k")), rows=(("a|b", "5"),))
    >>> print(as_markdown(table))
    | layer | k |
    | :--- | ---: |
    | a\\|b | 5 |
    """
    lines = [_markdown_row([column.name for column in table.columns])]
    lines.append(_row(["---:" if column.is_right else ":---" for column in table.columns]))
    lines += [
        _row([f"**{markdown(cell)}**" if (i, j) in table.bold else markdown(cell) for j, cell in enumerate(row)])
        for i, row in enumerate(table.rows)
    ]
    title = [f"**{markdown(table.title)}**", ""] if table.title else []
    notes = ["", " ".join(map(markdown, table.notes))] if table.notes else []
    return "\n".join([*title, *lines, *notes])


def as_latex(table: Table) -> str:
    """Write a table in LaTeX, with the rules of the package booktabs; title and notes are its caption."""
    caption = ". ".join(part for part in (latex(table.title), " ".join(map(latex, table.notes))) if part)
    rows: list[str] = []
    for i, row in enumerate(table.rows):
        starts = i and table.num_grouped and row[0] != table.rows[i - 1][0]
        cells = [rf"\textbf{{{latex(cell)}}}" if (i, j) in table.bold else latex(cell) for j, cell in enumerate(row)]
        rows += [r"\midrule"] * bool(starts) + [_latex_row(cells)]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{caption}}}"] if caption else []),
            rf"\begin{{tabular}}{{{''.join('r' if column.is_right else 'l' for column in table.columns)}}}",
            r"\toprule",
            _latex_row([latex(column.name) for column in table.columns]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Write flat records as CSV with a header; text that a spreadsheet would run gets an apostrophe in front.

    Examples
    --------
    >>> print(as_csv([{"class": "=1+2", "top1": 0.5, "k": None}]), end="")
    class,top1,k
    '=1+2,0.5,
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_csv_cell, names))
    writer.writerows([_csv_cell(record.get(name)) for name in names] for record in records)
    return text.getvalue()


def markdown(text: str) -> str:
    """Escape what Markdown or HTML would interpret."""
    escaped = re.sub(r"([\\`*\[\]|<>]|(?<!\w)_|_(?!\w))", r"\\\1", one_line(text))
    return re.sub(r"&(?=#|\w)", "&amp;", escaped)


def latex(text: str) -> str:
    """Escape what LaTeX would interpret."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def _markdown_row(cells: Sequence[str]) -> str:
    return _row([markdown(cell) for cell in cells])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex_row(cells: Sequence[str]) -> str:
    first, *rest = cells
    # A row that begins with a bracket would be read as an argument of the \\ or \midrule before it.
    return " & ".join(["{}" + first if first.startswith(("[", "*")) else first, *rest]) + r" \\"


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return _csv_cell(", ".join(map(str, value)))
    if not isinstance(value, str):
        return repr(value)
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
