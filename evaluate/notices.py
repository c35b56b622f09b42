"""Warnings that a run gives once, however many layers, searches or settings they are about."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_given: ContextVar[set[str] | None] = ContextVar("given", default=None)


@contextmanager
def each_once() -> Iterator[None]:
    """Give no warning twice while the block runs; blocks may be nested."""
    if _given.get() is not None:
        yield
        return
    token = _given.set(set())
    try:
        yield
    finally:
        _given.reset(token)


def warn(logger: logging.Logger, text: str, *values: object) -> None:
    """Log a warning, unless the same one was given in this run."""
    given, message = _given.get(), text % values
    if given is None:
        logger.warning("%s", message)
    elif message not in given:
        given.add(message)
        logger.warning("%s", message)
