"""YAML files from users, read within bounds.

A few hundred bytes of YAML can mean gigabytes (aliases of aliases), or nest deeper than Python's stack. Size, depth and
the number of values, aliases written out, are counted before anything is built. Every fault is a `DocumentError` whose
text is short, whatever is in the file.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from featbench.store.documents import MOST_BYTES, DocumentError, brief, brief_text, read_document

MOST_VALUES = 50_000
"""Keys and values, each alias counted as the values that it stands for."""

MOST_LEVELS = 64
"""Nested lists and mappings; VISSL's files have 8 levels."""


def read_yaml(path: Path) -> Any:
    """Read a YAML file in UTF-8.

    Raises
    ------
    DocumentError
        If it is not a regular file, can't be read, is not YAML, has a key twice, or exceeds the bounds.
    """
    return parse_yaml(read_document(path).decode("utf-8-sig", "surrogateescape"), where=str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """Read YAML from text; see `read_yaml`.

    Examples
    --------
    >>> parse_yaml("a: [1, 2]", where="example")
    {'a': [1, 2]}
    >>> parse_yaml("[1e-5, .5E3, 1e, 12e5f, '1e5']", where="example")
    [1e-05, 500.0, '1e', '12e5f', '1e5']
    """
    try:
        _count(text)
        return yaml.load(text, Loader=_Loader)
    except DocumentError as error:
        raise DocumentError(f"{where}: {error}") from error
    except Exception as error:  # besides its own, PyYAML lets the builtin errors of dates, numbers and truth values out
        raise DocumentError(f"{where}: not YAML: {brief_text(error, most=400)}") from error


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML would take the last, and reads 1e-5 as a number as Hydra does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise DocumentError(f"line {key.start_mark.line + 1}: {brief(key.value)} occurs twice")
                    seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _count(text: str) -> None:
    """Refuse documents that are too large, by the parser's events alone."""
    if len(text) > MOST_BYTES:
        raise DocumentError(f"{len(text):,} characters of YAML; expected at most {MOST_BYTES:,}")
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values counted before it
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise DocumentError(f"line {_line(event)}: alias {brief(event.anchor)} holds itself")
            total += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
        if len(open_nodes) > MOST_LEVELS:
            raise DocumentError(f"line {_line(event)}: nested deeper than {MOST_LEVELS} levels")
        if total > MOST_VALUES:
            raise DocumentError(f"more than {MOST_VALUES:,} values, aliases written out")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0
