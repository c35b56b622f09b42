"""YAML and JSON that users hand over, read within bounds.

A few hundred bytes of YAML can mean gigabytes (aliases of aliases), or nest deeper than Python's stack. Size, depth and
the number of values, aliases written out, are counted before anything is built. Every fault is a `DocumentError` whose
text is short, whatever the file holds.
"""

from __future__ import annotations

import json
import reprlib
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from store.errors import BenchError
from store.names import visible

MOST_BYTES = 2**18
"""Of a YAML file; the largest of VISSL's have 30 kB."""

MOST_VALUES = 50_000
"""Keys and values, each alias counted as what it stands for."""

MOST_LEVELS = 64
"""Lists and mappings within each other; VISSL's have 8."""


class DocumentError(BenchError):
    """YAML or JSON that can't be read, or is beyond the bounds."""


def read_yaml(path: Path) -> Any:
    """Read a YAML file in UTF-8.

    Raises
    ------
    DocumentError
        If it is no regular file, can't be read, is not YAML, has a key twice, or is beyond the bounds.
    """
    return parse_yaml(read_document(path).decode("utf-8-sig", "surrogateescape"), where=str(path))


def read_document(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file that a user names, if it is a regular one and not larger than it may be."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise DocumentError(f"{brief_text(path)}: {'a folder' if path.is_dir() else 'not a regular file'}")
        if info.st_size > most_bytes:
            raise DocumentError(f"{path}: {info.st_size:,} bytes; expected at most {most_bytes:,}")
        return path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{brief_text(path)}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL within the path
        raise DocumentError(f"{brief_text(path)}: cannot be the path of a file: {error}") from error


def parse_yaml(text: str, *, where: str) -> Any:
    """Read YAML from text; see `read_yaml`.

    Examples
    --------
    >>> parse_yaml("a: [1, 2]", where="example")
    {'a': [1, 2]}
    """
    try:
        _count(text)
        return yaml.load(text, Loader=_Loader)
    except DocumentError as error:
        raise DocumentError(f"{where}: {error}") from error
    except Exception as error:  # besides its own, PyYAML lets the builtin errors of dates, numbers and truth values out
        raise DocumentError(f"{where}: not YAML: {brief_text(error, most=400)}") from error


def parse_json(text: str | bytes, *, where: str) -> Any:
    """Read JSON; a key that an object has twice is refused.

    Examples
    --------
    >>> parse_json('{"a": [1, 2]}', where="example")
    {'a': [1, 2]}
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError as error:
        raise DocumentError(f"{where}: not JSON: nested too deeply") from error
    except ValueError as error:
        raise DocumentError(f"{where}: not JSON: {brief_text(error, most=400)}") from error
    return content


def brief(value: object, *, most: int = 80) -> str:
    """Show a value in a message, however long or deep it is."""
    try:
        text = _REPR.repr(value)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def brief_text(value: object, *, most: int = 200) -> str:
    """Show a text in a message: without control characters, and not longer than this."""
    text = visible(str(value))
    return text if len(text) <= most else text[: most - 3] + "..."


class _Loader(yaml.SafeLoader):
    """Refuses keys that occur twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise DocumentError(f"line {key.start_mark.line + 1}: {brief(key.value)} occurs twice")
                    seen.add(key.value)
        return super().construct_mapping(node, deep)


def _count(text: str) -> None:
    """Refuse what is too large, from the parser's events alone."""
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


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{brief(next(name for name in names if names.count(name) > 1))} occurs twice")
    return found


_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 120
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 12
