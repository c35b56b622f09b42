"""Which files of the user's own code a model came from, and their digests.

These are the Python files and compiled modules that ran while the model was built or during a forward
pass, except installed ones (the standard library, `site-packages`). An audit hook sees files as Python
runs them, however they are loaded. Files that ran earlier in this process are found by following the
imports of the model's modules; their digests are those from when they ran.
"""

from __future__ import annotations

import ast
import hashlib
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from featbench.extract.errors import ModelError

_ran: dict[Path, str] = {}
"""sha256 of each of the user's files as it last ran, in the order in which they ran."""

_watchers: list[dict[Path, None]] = []
_state = {"hooked": False}

_OURS = tuple(
    Path(__file__).resolve().parents[2] / name for name in ("featbench", "extract", "store", "evaluate", "pipelines")
)


@contextmanager
def watching_code() -> Iterator[dict[Path, None]]:
    """Collect the user's files that run in this context, in order."""
    if not _state["hooked"]:
        sys.addaudithook(_on_event)  # an audit hook can't be removed, and costs almost nothing
        _state["hooked"] = True
    files: dict[Path, None] = {}
    _watchers.append(files)
    try:
        yield files
    finally:
        _watchers.remove(files)


def digests(named: Path, trunk: nn.Module, ran: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of the user's files that a model came from, except the named one, by relative name.

    Parameters
    ----------
    named : Path
        The file with the function that built the model.
    trunk : nn.Module
        The model; the modules of its classes count, and all that they import.
    ran : iterable of Path
        As `watching_code` collected them.

    Raises
    ------
    ModelError
        If a file has changed since this process ran it.
    """
    named = named.resolve()
    files = dict.fromkeys(ran) | dict.fromkeys(_imported(named, trunk))
    found: dict[str, str] = {}
    for path in sorted(files):
        if path != named:
            digest = _sha256(path)
            if _ran.get(path, digest) != digest:
                raise ModelError(
                    f"{path} has changed since it was loaded; run the same command again, so that the new code runs"
                )
            name = _relative(path, named.parent)
            found[name if found.get(name, digest) == digest else f"{name}#{digest[:8]}"] = digest
    return found


def _on_event(event: str, args: tuple[Any, ...]) -> None:
    """Record the file of a module's code, or of code that `exec` runs."""
    if event != "exec" or not _watchers or not isinstance(args[0], CodeType):
        return
    try:
        path = Path(args[0].co_filename).resolve()
        if args[0].co_name == "<module>" and _is_users(path):
            _ran[path] = _sha256(path)
            for files in _watchers:
                files[path] = None
    except (OSError, ValueError):  # not the name of a file
        return


def _is_users(path: Path) -> bool:
    """Whether a file is the user's: not installed, and not part of the standard library or of featbench."""
    installed: list[str] = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [str(site.getusersitepackages())]
    if {"site-packages", "dist-packages"} & set(path.parts) or not path.is_file():
        return False
    return not any(path.is_relative_to(folder) for folder in (*(Path(each).resolve() for each in installed), *_OURS))


def _imported(named: Path, trunk: nn.Module) -> Iterator[Path]:
    """Files of the modules that the named file, and the classes of the model, import in turn."""
    names = {kind.__module__ for module in trunk.modules() for kind in type(module).__mro__}
    left = [sys.modules[name] for name in names if name in sys.modules]
    left += [module for module in list(sys.modules.values()) if _file_of(module) == named]
    seen: set[int] = set()
    while left:
        module = left.pop()
        path = _file_of(module)
        if id(module) in seen or path is None or not _is_users(path):
            continue
        seen.add(id(module))
        yield path
        left += [sys.modules[name] for name in _names(module, path) if name in sys.modules]


def _names(module: ModuleType, path: Path) -> set[str]:
    """Names of the modules that a module imports anywhere in its source, or whose objects it holds."""
    names = {value.__name__ for value in vars(module).values() if isinstance(value, ModuleType)}
    names |= {str(getattr(value, "__module__", "")) for value in vars(module).values()}
    if path.suffix == ".py":
        package = getattr(module, "__package__", None) or ""
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*filter(None, above), *filter(None, [node.module])])
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    names |= {module.__name__}
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}


def _file_of(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    try:
        return Path(file).resolve() if isinstance(file, str) else None
    except (OSError, ValueError):
        return None


def _relative(path: Path, folder: Path) -> str:
    """Name of a file relative to the model's folder or an import path, so that it is the same wherever the code is."""
    roots = [folder, *(Path(entry or ".").resolve() for entry in sys.path)]
    below = [path.relative_to(root).as_posix() for root in roots if path.is_relative_to(root)]
    if path.is_relative_to(folder):
        return below[0]
    return min(below, key=len, default=path.name)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
