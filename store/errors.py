"""The errors that a user can fix.

Every package raises a `BenchError` for what is not a bug (a damaged file, an unknown name, a full
disk); its text says what, where, expected and got, and what to do. The command line prints that text
and exits with 2. Any other error is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from featbench.store.names import visible


class BenchError(Exception):
    """An error that the user can fix; its text is the whole message."""


class StoreError(BenchError):
    """The store, or data to be written to it, is not valid."""


class NotFoundError(StoreError, FileNotFoundError):
    """There is no feature set of this name."""


class UnknownNameError(StoreError, KeyError, ValueError):
    """A split or a layer that a feature set does not have."""

    __str__ = Exception.__str__  # a KeyError would show its text in quotes


class IncompleteError(StoreError):
    """Requested rows have not been written yet."""


class DamagedError(StoreError):
    """Data on disk are not what was written."""


class MismatchError(StoreError, ValueError):
    """The feature set was made with other settings than those requested."""


def suggest(name: str, known: Iterable[str], *, show: int = 12) -> str:
    """Suggest the known names closest to `name`, or list the known ones.

    Examples
    --------
    >>> suggest("resnet5", ["resnet50", "vgg16"])
    'Did you mean resnet50?'
    >>> suggest("xyz", ["a", "b"])
    'Known: a, b.'
    """
    known = list(dict.fromkeys(known))
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(visible(lowered[candidate], keep='') for candidate in close)}?"
    more = f", ... ({len(known)} in all)" if len(known) > show else ""
    return f"Known: {', '.join(visible(each, keep='') for each in known[:show])}{more}."


def abbreviate(names: Sequence[str], *, show: int = 3) -> str:
    """List the first few names, and how many there are if there are more.

    Examples
    --------
    >>> abbreviate(["a", "b", "c", "d"])
    'a, b, c, ... (4 in all)'
    """
    return ", ".join(names[:show]) + (f", ... ({len(names)} in all)" if len(names) > show else "")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has none.

    Examples
    --------
    >>> first_line(ValueError("too small\\nby 2")), first_line(MemoryError())
    ('too small', 'MemoryError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
