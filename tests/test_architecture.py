"""Who may import whom, and what each package must work without."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

import featbench

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


EXCEPTIONS = {f"evaluate/{room}/bfloat16.py": {"torch"} for room in ("clustering", "neighbours")}
"""Modules that are loaded only where they are used."""


def python_files(*folders: str) -> list[Path]:
    """Every Python file of the packages, or of these folders."""
    return sorted(chain.from_iterable((ROOT / each).rglob("*.py") for each in folders or ("featbench", *PACKAGES)))


def module_of(path: Path) -> str:
    """Dotted name under which a file of the packages is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "featbench" else ("featbench", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in python_files()}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Each module that a file imports, with the line; also within functions and under TYPE_CHECKING."""
    stack = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively; say where from"
            assert node.module
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if name in MODULES else node.module), node.lineno
        stack += ast.iter_child_nodes(node)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    files = python_files(package)
    assert files
    for path in files:
        for name, line in imported(path):
            top, _, below = name.partition(".")
            ours = below.split(".")[0] if top == "featbench" else ""
            foreign = ours and ours != package and ours not in MAY_IMPORT[package]
            assert not foreign, f"{path}:{line} imports {name}; {package} may import only {MAY_IMPORT[package]}"
            banned = BANNED[package] - EXCEPTIONS.get(str(path.relative_to(ROOT)), set())
            assert top not in banned, f"{path}:{line} imports {name}, which {package} must do without"


def test_nothing_is_imported_by_the_bare_name_of_a_folder() -> None:
    """From the repository's root, `import store` would work, and load a second copy of every class."""
    for path in python_files("featbench", *PACKAGES, "tests", "benchmarks"):
        for name, line in imported(path):
            assert name.split(".")[0] not in PACKAGES, f"{path}:{line} imports {name}, not featbench.{name}"


def acyclic(arrows: dict[str, set[str]]) -> None:
    """Raise `graphlib.CycleError`, which names the modules, if imports go round in a circle."""
    TopologicalSorter(arrows).prepare()


def test_no_modules_import_each_other() -> None:
    """Nor within functions, nor for types alone."""
    arrows = {}
    for path in python_files():
        name = module_of(path)
        arrows[name] = {other for other, _ in imported(path) if other in MODULES and other != name}
    acyclic(arrows)


def room_of(name: str) -> str:
    """Folder of a module, by its path; a module that lies directly in one of the four is a room by itself."""
    return ".".join(name.split(".")[:3])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_rooms_import_each_other(package: str) -> None:
    arrows = {}
    for path in python_files(package):
        room = room_of(module_of(path))
        ours = {room_of(name) for name, _ in imported(path) if name.startswith(f"featbench.{package}.")}
        arrows.setdefault(room, set()).update(ours - {room})
    acyclic(arrows)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("featbench", {"numpy", "torch", "faiss", "zarr", "featbench.store"}),
        ("featbench.store", {"torch", "faiss", "typer", "sklearn", "pydantic"}),
        ("featbench.evaluate.knn.classification", {"torch", "torchvision", "PIL"}),
        ("featbench.pipelines.cli.app", {"torch", "faiss", "zarr", "pydantic", "sklearn", "numpy"}),
        ("featbench.pipelines.config.pipeline, featbench.pipelines.evaluation.run", {"torch", "torchvision"}),
    ],
)
def test_a_package_loads_without_what_it_does_not_need(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({absent!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_what_is_tested_is_this_repository() -> None:
    import featbench.evaluate
    import featbench.extract
    import featbench.pipelines
    import featbench.store

    for package in (featbench, featbench.store, featbench.extract, featbench.evaluate, featbench.pipelines):
        assert Path(package.__file__).resolve().is_relative_to(ROOT)


def test_every_package_is_listed_for_installation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(module_of(path) for path in python_files() if path.name == "__init__.py")
    assert project["tool"]["setuptools"]["package-dir"] == {
        "featbench": "featbench",
        **{f"featbench.{name}": name for name in PACKAGES},
    }
    assert project["project"]["version"] == featbench.__version__


def test_every_public_function_and_class_has_a_docstring() -> None:
    for path in python_files():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path} says nothing of itself"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"
