"""Progress of work whose length is known before it is known what has to be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

OnRows = Callable[[int], None]
"""Called with numbers of rows as they are done."""


@contextmanager
def counted(on_rows: OnRows, total: int) -> Iterator[OnRows]:
    """Report `total` rows in all, whatever the block reports: no more than that, and the rest when it has ended."""
    left = total

    def count(rows: int) -> None:
        nonlocal left
        reported = min(rows, left)
        left -= reported
        on_rows(reported)

    yield count
    on_rows(left)


def counting(find: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that finds neighbours report each row of train once, also where it returns kept lists."""

    def ask(layer: Any, *, on_rows: OnRows = lambda rows: None, **asked: Any) -> Any:
        with counted(on_rows, layer.layers["train"].num_rows) as count:
            return find(layer, on_rows=count, **asked)

    return ask
