"""A table as values: columns, rows of text and notes; how wide it is, and which columns fit a terminal.

Cells are never wrapped or cut. Where a table is wider than the terminal, whole columns are left out, the least
important first, and a note says which. `featbench.pipelines.terminal.formats` writes tables as Markdown and LaTeX.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rich.cells import cell_len
from rich.text import Text

from featbench.store.names import visible

GAP = "  "
"""Between two columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its heading, on which side its cells line up, and whether it can be left out."""

    name: str
    is_right: bool = True
    """Numbers line up on the right, names on the left."""

    drop: int = 0
    """Columns with the highest number are left out first; 0 is never left out."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under headings; each row has as many cells as there are columns."""

    title: str = ""
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the cells that stand out."""

    num_grouped: int = 0
    """Leading columns whose cells a terminal shows once for consecutive rows that have them in common."""

    @cached_property
    def widths(self) -> list[int]:
        """Width of each column, in cells of a terminal."""
        names = [column.name for column in self.columns]
        return [max(map(cell_len, map(one_line, cells))) for cells in zip(names, *self.rows, strict=True)]

    @property
    def width(self) -> int:
        """Width of a row, in cells of a terminal."""
        return sum(self.widths) + len(GAP) * (len(self.columns) - 1)

    def fitted(self, width: int) -> Table:
        """Leave columns out until the table is no wider than `width`, as far as that is possible."""
        table = self
        while table.width > width and (highest := max(column.drop for column in table.columns)):
            index = max(i for i, column in enumerate(table.columns) if column.drop == highest)
            table = table._without(index)
        names = [column.name for column in self.columns if column not in table.columns]
        note = f"Left out to fit the terminal: {', '.join(names)}."
        return replace(table, notes=(*table.notes, note)) if names else table

    def _without(self, index: int) -> Table:
        moved = {(row, column - (column > index)) for row, column in self.bold if column != index}
        return replace(
            self,
            columns=(*self.columns[:index], *self.columns[index + 1 :]),
            rows=tuple((*row[:index], *row[index + 1 :]) for row in self.rows),
            bold=frozenset(moved),
            num_grouped=self.num_grouped - (index < self.num_grouped),
        )


def one_line(text: str) -> str:
    r"""Spell out what a terminal would act upon, line ends and tabs among it.

    Examples
    --------
    >>> one_line("a\nb")
    'a\\nb'
    """
    return visible(text, keep="")


def as_text(table: Table, *, width: int | None = None, rule: str = "") -> Text:
    """Lay a table out for a terminal or a file.

    Parameters
    ----------
    table : Table
    width : int, optional
        Cells of the terminal. By default there is no limit, and no cell is shown once for several rows, so that each
        line of a file says all.
    rule : str
        Character of the line below the headings; none if empty.
    """
    shown = table if width is None else table.fitted(width)
    lines = [Text(one_line(table.title), style="italic")] if table.title else []
    if any(column.name for column in shown.columns):
        lines.append(_line(shown, [column.name for column in shown.columns]))
    if rule:
        lines.append(Text(rule * shown.width))
    before: Sequence[str] = ()
    for index, row in enumerate(shown.rows):
        cells = list(row) if width is None else _once(row, before, shown.num_grouped)
        bold = {column for at, column in shown.bold if at == index}
        lines.append(_line(shown, cells, bold=bold))
        before = row
    for note in shown.notes:
        lines += [Text(line) for line in _wrapped(one_line(note), width)]
    return Text("\n").join(lines)


def facts_text(facts: Sequence[tuple[str, str]], *, title: str = "", width: int | None = None) -> Text:
    """Lay out names and values, one fact a line; a long value goes on below its beginning."""
    indent = max((cell_len(one_line(name)) for name, _ in facts), default=0) + len(GAP)
    lines = [Text(one_line(title), style="italic")] if title else []
    for name, value in facts:
        first, *rest = _wrapped(one_line(value), None if width is None else max(20, width - indent))
        lines.append(Text(_padded(one_line(name), indent) + first))
        lines += [Text(" " * indent + each) for each in rest]
    return Text("\n").join(lines)


def _once(row: Sequence[str], before: Sequence[str], num_grouped: int) -> list[str]:
    """Blank the leading cells that a row has in common with the one above."""
    cells = list(row)
    for column in range(num_grouped if before else 0):
        if row[column] != before[column]:
            break
        cells[column] = ""
    return cells


def _line(table: Table, cells: Sequence[str], *, bold: set[int] | None = None) -> Text:
    line = Text()
    for index, (cell, column, width) in enumerate(zip(cells, table.columns, table.widths, strict=True)):
        padded = _padded(one_line(cell), width, is_right=column.is_right)
        line.append(GAP if index else "").append(padded, style="bold" if index in (bold or ()) else "")
    line.rstrip()
    return line


def _padded(text: str, width: int, *, is_right: bool = False) -> str:
    space = " " * (width - cell_len(text))
    return space + text if is_right else text + space


def _wrapped(text: str, width: int | None) -> list[str]:
    return [text] if width is None else textwrap.wrap(text, width, break_on_hyphens=False) or [""]
