"""The examples in docstrings print what they say.

They run from the installed modules, not by file: a file of `store/` that pytest collects by its path would be imported
again, as `store.*` beside `featbench.store.*`.
"""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path

import pytest

from tests.test_architecture import PACKAGES, ROOT, module_of, python_files

WITH_EXAMPLES = [module_of(path) for path in python_files() if ">>> " in path.read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_say(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted
    assert not results.failed


def test_no_module_is_loaded_under_two_names() -> None:
    importlib.import_module("featbench.store")
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name.split(".")[0] in PACKAGES:
            assert not Path(file).resolve().is_relative_to(ROOT), f"{name} is also featbench.{name}"
