"""Names from data: when two of them mean the same class, and how to print them safely.

Unicode can represent a text in several ways: an accented letter is one code point, or a letter and a combining
accent. Two classes are the same if their names are equal in normal form NFC.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_MARKS = frozenset("\xad\u034f\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u2060\ufeff") | {
    chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Characters that change the direction of text, end a line, or are invisible; not those that join letters or emoji."""


def normal_name(name: str) -> str:
    """Return a class name in Unicode's normal form NFC.

    Examples
    --------
    >>> normal_name("cafe\\u0301") == "caf\\xe9"
    True
    """
    return unicodedata.normalize("NFC", name)


def clashing_names(names: Iterable[str]) -> tuple[str, str] | None:
    """Find two different names that are equal in normal form."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normal_name(name), name)
        if other != name:
            return other, name
    return None


def likeness(name: str) -> str:
    """Reduce a name for fuzzy comparison: without case, spacing and compatibility variants.

    Examples
    --------
    >>> likeness("Tabby  Cat ") == likeness("tabby_cat")
    True
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    visible_part = "".join(" " if c in "_-" else c for c in folded if unicodedata.category(c) != "Cf")
    return " ".join(visible_part.split())


def natural(name: str) -> list[tuple[int, int, str]]:
    """Key to sort names by, with the numbers in them by value.

    Examples
    --------
    >>> sorted(["epoch10", "epoch9"], key=natural)
    ['epoch9', 'epoch10']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), len(part), "") if at % 2 else (0, 0, part) for at, part in enumerate(parts)]


def visible(text: str, *, keep: str = "\n\t") -> str:
    r"""Escape characters that control a terminal, are invisible, or reorder text.

    Control characters (C0, C1, DEL), direction marks, line and paragraph separators, and surrogates are
    escaped as in Python; those in `keep` stay.

    Examples
    --------
    >>> visible("a\x1b[2Jb\rc\x9b")
    'a\\x1b[2Jb\\rc\\x9b'
    """
    plain = text
    for character in keep:
        plain = plain.replace(character, "")
    if plain.isascii() and plain.isprintable():
        return text
    return "".join(_shown(character) if _acts(character) and character not in keep else character for character in text)


def _acts(character: str) -> bool:
    return character in _MARKS or unicodedata.category(character) in ("Cc", "Cs")


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
