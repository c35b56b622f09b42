"""Errors as a caller of the Python interface should read them: arguments, where the command line has options."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from featbench.evaluate.notices import each_once
from featbench.store.errors import BenchError

P = ParamSpec("P")
R = TypeVar("R")


def naming_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Have the errors of a function name its arguments, and no warning be given twice."""

    @wraps(function)
    def called(*args: P.args, **settings: P.kwargs) -> R:
        try:
            with each_once():
                return function(*args, **settings)
        except BenchError as error:
            error.args = (in_python(str(error)),)
            raise

    return called


def in_python(text: str) -> str:
    """Replace options by arguments, except in commands between backticks.

    Examples
    --------
    >>> in_python("Allow --memory 50MiB, or another --name, or run `bench verify a --repair`.")
    'Allow memory="50MiB", or another name, or run `bench verify a --repair`.'
    """
    texts = text.split("`")
    texts[::2] = [_reworded(each) for each in texts[::2]]
    return "`".join(texts)


def _reworded(text: str) -> str:
    text = re.sub(r"--memory (\d\w*)", r'memory="\1"', text).replace("--overwrite", "overwrite=True")
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda option: option[1].replace("-", "_"), text)
