"""Which words of a command line are VISSL's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ENGINE = "engine_name"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisslWords:
    """Words of a command line: names of VISSL's configurations, overrides in its syntax, and all others."""

    names: tuple[str, ...]
    overrides: tuple[str, ...]
    others: tuple[str, ...]


def sort_words(words: Iterable[str]) -> VisslWords:
    """Tell VISSL's words from others.

    Examples
    --------
    >>> sort_words(["config=a/b", "+config/a/models=c", "config.DATA.TRAIN.DATA_LIMIT=5", "name=x"])
    VisslWords(names=('a/b', 'a/models/c'), overrides=('config.DATA.TRAIN.DATA_LIMIT=5',), others=('name=x',))
    """
    names, overrides, others = [], [], []
    for word in words:
        bare = word.lstrip("+")
        key, _, value = bare.partition("=")
        if key == "config" or key.startswith("config/"):
            group = key.removeprefix("config").strip("/")
            names.append("/".join(filter(None, (group, value.strip("'\"").removesuffix(".yaml")))))
        elif is_override(word):
            overrides.append(bare)
        else:
            others.append(word)
    return VisslWords(names=tuple(names), overrides=tuple(overrides), others=tuple(others))


def is_override(word: str) -> bool:
    """Whether a word of the command line overrides a key of VISSL's, or one of Hydra's."""
    return word.lstrip("+~").startswith(("config.", f"{ENGINE}=", "hydra.", "hydra/"))
