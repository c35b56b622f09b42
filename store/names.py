"""Names that come from data: when two of them name the same class, and how any of them is shown.

Unicode has several spellings of one text: an accented letter is one code point (macOS shows both alike), or a
letter and a combining accent. Classes are the same if their names are, in normal form NFC.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_MARKS = frozenset("\xad\u034f\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u2060\ufeff") | {
    chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Marks that turn the direction of text, end a line, or show nothing; not those that join letters or emoji."""


def normal_name(name: str) -> str:
    """Bring a class name to Unicode's normal form NFC.

    Examples
    --------
    >>> normal_name("cafe\\u0301") == "caf\\xe9"
    True
    """
    return unicodedata.normalize("NFC", name)


def clashing_names(names: Iterable[str]) -> tuple[str, str] | None:
    """Find two different names that are the same in normal form."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normal_name(name), name)
        if other != name:
            return other, name
    return None


def likeness(name: str) -> str:
    """Reduce a name to what is left without case, spaces, and characters that merely look different.

    Examples
    --------
    >>> likeness("Tabby  Cat ") == likeness("tabby_cat")
    True
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    kept = "".join(" " if c in "_-" else c for c in folded if unicodedata.category(c) != "Cf")
    return " ".join(kept.split())


def visible(text: str, *, keep: str = "\n\t") -> str:
    r"""Spell out the characters that a terminal would act upon, or that would hide or reorder others.

    Control characters (C0, C1, DEL), marks of direction, line and paragraph separators, and surrogates are
    written as Python writes them; those in `keep` stay.

    Examples
    --------
    >>> visible("a\x1b[2Jb\rc\x9b")
    'a\\x1b[2Jb\\rc\\x9b'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) if _acts(character) and character not in keep else character for character in text)


def _acts(character: str) -> bool:
    return character in _MARKS or unicodedata.category(character) in ("Cc", "Cs")


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
