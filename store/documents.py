"""Reading JSON and users' files with limits, and shortening values and texts for messages.

`featbench.pipelines.config.documents` reads YAML in the same way.
"""

from __future__ import annotations

import json
import reprlib
import stat
from pathlib import Path
from typing import Any

from featbench.store.errors import BenchError
from featbench.store.names import visible

MOST_BYTES = 2**18
"""Largest file of settings; VISSL's largest has 30 kB."""


class DocumentError(BenchError):
    """YAML or JSON that can't be read, or exceeds the limits."""


def read_document(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a user's file, if it is a regular file and not too large."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise DocumentError(f"{brief_text(path)}: {'a folder' if path.is_dir() else 'not a regular file'}")
        if info.st_size > most_bytes:
            raise DocumentError(f"{path}: {info.st_size:,} bytes; expected at most {most_bytes:,}")
        return path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{brief_text(path)}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL character in the path
        raise DocumentError(f"{brief_text(path)}: cannot be the path of a file: {error}") from error


def parse_json(text: str | bytes, *, where: str) -> Any:
    """Parse JSON; duplicate keys are refused.

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
    """Shorten a value for a message, however long or deeply nested it is."""
    try:
        text = _REPR.repr(value)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def brief_text(value: object, *, most: int = 200) -> str:
    """Shorten a text for a message, and escape control characters."""
    text = visible(str(value))
    return text if len(text) <= most else text[: most - 3] + "..."


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
