"""The digests of a model's code cover every file of the user's that it came from, and no other."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from featbench.extract.errors import ModelError
from featbench.extract.model.code import digests, watching_code
from featbench.extract.model.trunks import build_trunk, code_of

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, images):
        return self.fc(images.mean((2, 3)))
"""

FILES = {
    "net.py": NET,
    "by_import.py": "import net\ndef make():\n    return net.Net()\n",
    "by_from.py": "from net import Net as make\n",
    "by_function.py": "def make():\n    from net import Net\n    return Net()\n",
    "in_forward.py": NET.replace("        return", "        import helper\n        return helper.ONE *").replace(
        "class Net", "make = lambda: Net()\nclass Net"
    ),
    "helper.py": "ONE = 1\n",
    "by_path.py": (
        "import importlib.util, pathlib\n"
        "spec = importlib.util.spec_from_file_location('hidden', pathlib.Path(__file__).parent / 'net.py')\n"
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\nmake = module.Net\n"
    ),
    "by_exec.py": (
        "import pathlib\npath = pathlib.Path(__file__).parent / 'net.py'\n"
        "exec(compile(path.read_text(), str(path), 'exec'))\nmake = Net\n"
    ),
    "pack/__init__.py": "",
    "pack/models.py": "from .parts import net\nmake = net.Net\n",
    "pack/parts/__init__.py": "SIZE = 3\n",
    "pack/parts/net.py": NET + "from .. import blocks\n",
    "pack/blocks.py": "",
    "pack/unused.py": "",
    "unused.py": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = dict(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def found(name: str) -> dict[str, str]:
    with watching_code() as ran:
        trunk = build_trunk(name)
        trunk(torch.zeros(1, 3, 4, 4))
    return digests(code_of(name), trunk, ran)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("by_import.py:make", {"net.py"}),
        ("by_from.py:make", {"net.py"}),
        ("by_function.py:make", {"net.py"}),
        ("in_forward.py:make", {"helper.py"}),
        ("by_path.py:make", {"net.py"}),
        ("by_exec.py:make", {"net.py"}),
        ("by_import:make", {"net.py"}),
        ("pack.models:make", {"__init__.py", "parts/__init__.py", "parts/net.py", "blocks.py"}),
        ("net.py:Net", set()),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_every_file_that_the_model_came_from_is_covered_however_it_is_loaded(
    folder: Path, name: str, files: set[str], times: int
) -> None:
    """Also the second time in a process, when Python imports nothing again."""
    for _ in range(times):
        made = found(name)
    assert made.keys() == files
    root = folder / "pack" if name.startswith("pack") else folder
    assert all(made[file] == hashlib.sha256((root / file).read_bytes()).hexdigest() for file in files)


def test_a_module_of_the_users_named_like_an_installed_one_counts(folder: Path) -> None:
    (folder / "colorsys.py").write_text("ONE = 1\n")
    (folder / "own.py").write_text("import colorsys, net, json, torchvision\nassert colorsys.ONE\nmake = net.Net\n")
    known = sys.modules.pop("colorsys", None)
    try:
        assert found("own.py:make").keys() == {"net.py", "colorsys.py"}
    finally:
        sys.modules.pop("colorsys", None)
        if known:
            sys.modules["colorsys"] = known


def test_names_do_not_depend_on_where_the_code_is(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path_factory.mktemp("library")
    (library / "layers").mkdir()
    (library / "layers" / "deep.py").write_text(NET)
    (folder / "own.py").write_text("from layers.deep import Net as make\n")
    monkeypatch.syspath_prepend(library)
    assert found("own.py:make").keys() == {"layers/deep.py"}
    for name in ("layers", "layers.deep"):
        sys.modules.pop(name, None)


def test_code_that_has_changed_since_it_was_loaded_is_refused(folder: Path) -> None:
    found("by_import.py:make")
    (folder / "net.py").write_text(NET + "# changed\n")
    with pytest.raises(ModelError, match=r"net.py has changed since it was loaded"):
        found("by_import.py:make")
