"""Who may import whom, and what each package must work without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("store", "extract", "evaluate", "pipelines")
MAY_IMPORT = {
    "store": set(),
    "extract": {"store"},
    "evaluate": {"store"},
    "pipelines": {"store", "extract", "evaluate"},
}
BANNED = {
    "store": {"torch", "torchvision", "faiss", "typer", "sklearn", "rich", "yaml"},
    "extract": {"faiss", "typer", "rich", "yaml", "zarr"},
    "evaluate": {"torch", "torchvision", "typer", "rich", "yaml", "zarr", "PIL"},
    "pipelines": {"zarr", "faiss"},
}


EXCEPTIONS = {"evaluate/neighbours/bfloat16.py": {"torch"}}
"""Modules that are only loaded where what they need is wanted."""


def imported(path):
    """Each top-level package that a file imports, wherever it does, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name, line in imported(path):
            foreign = name in PACKAGES and name != package and name not in MAY_IMPORT[package]
            assert not foreign, f"{path}:{line} imports {name}; {package} may import only {MAY_IMPORT[package]}"
            banned = BANNED[package] - EXCEPTIONS.get(str(path.relative_to(ROOT)), set())
            assert name not in banned, f"{path}:{line} imports {name}, which {package} must do without"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("store", {"torch", "faiss", "typer", "sklearn", "pydantic"}),
        ("evaluate.evaluation", {"torch", "torchvision", "PIL"}),
        ("pipelines.cli", {"torch", "faiss", "zarr", "pydantic", "sklearn", "numpy"}),
        ("pipelines.evaluation", {"torch", "torchvision"}),
    ],
)
def test_a_package_loads_without_what_it_does_not_need(module, absent):
    code = f"import sys, {module}; print(sorted({absent!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_the_packages_are_those_of_this_repository():
    import evaluate
    import extract
    import pipelines
    import store

    for package in (store, extract, evaluate, pipelines):
        assert Path(package.__file__).resolve().is_relative_to(ROOT)


def test_a_foreign_package_of_the_same_name_is_named_with_the_cure(tmp_path):
    """Hugging Face's `evaluate` has the same import name."""
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pipelines.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "evaluate" in result.stderr
    assert "make install" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_public_function_and_class_has_a_docstring():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), f"{path} says nothing of itself"
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"
