"""Checks of the installation: versions, optional extras, and names that clash."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from importlib.util import find_spec
from pathlib import Path

import featbench
from featbench.pipelines.doctor.finding import Finding, good, note, problem

PROVIDES = {
    "slurm": "--slurm", "timm": "model.trunk=timm:NAME", "huggingface": "data.source=huggingface",
    "simplejpeg": "data.decoder=simplejpeg", "parquet": "Parquet files", "umap": "maps by UMAP",
}  # fmt: skip
"""What some extras are for."""

EXCLUDE_EACH_OTHER = (("faiss-cpu", "faiss-gpu"), ("pillow", "pillow-simd"))
"""Distributions that overwrite each other's files."""

SHADOWED = (
    "torch",
    "torchvision",
    "numpy",
    "faiss",
    "zarr",
    "sklearn",
    "scipy",
    "PIL",
    "yaml",
    "pydantic",
    "typer",
    "rich",
)
"""Modules that a file of the same name in the working folder would replace, under `python -m featbench`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One requirement of this package."""

    name: str
    text: str
    """As in pyproject.toml, without the marker."""

    extra: str
    """Empty for what is always needed."""

    installed: str | None
    is_met: bool


def software_findings() -> Iterator[Finding]:
    """Check what is installed."""
    yield good("Python", f"{platform.python_version()}, {sys.executable}")
    yield good("featbench", f"{featbench.__version__}, {Path(featbench.__file__).parent}")
    found = requirements()
    yield _needed([each for each in found if not each.extra])
    yield from _extras(found)
    yield from _overwritten()
    yield _names()
    yield _command()


def requirements() -> list[Requirement]:
    """Return the requirements of this package that apply to this machine, without those of developers."""
    from packaging.requirements import Requirement as Parsed

    found = []
    for text in requires("featbench") or ():
        parsed = Parsed(text)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", text)
        name = extra[1] if extra else ""
        if name == "dev" or (parsed.marker is not None and not parsed.marker.evaluate({"extra": name})):
            continue
        installed = _version(parsed.name)
        if installed is None and parsed.name == "faiss-gpu":  # `make install CPU=1` takes the other one
            installed = _version("faiss-cpu")
        is_met = installed is not None and parsed.specifier.contains(installed, prereleases=True)
        found.append(
            Requirement(
                name=parsed.name,
                text=f"{parsed.name}{parsed.specifier}",
                extra=name,
                installed=installed,
                is_met=is_met,
            )
        )
    return found


def _needed(found: Sequence[Requirement]) -> Finding:
    wrong = [each for each in found if not each.is_met]
    if wrong:
        listed = ", ".join(f"{each.text} ({each.installed or 'not installed'})" for each in wrong)
        names = " ".join(f"'{each.text}'" for each in wrong)
        return problem("packages", f"needed, and not there or of another version: {listed}.", f"pip install {names}")
    shown = ("torch", "torchvision", "numpy", "zarr", "scikit-learn", "pillow")
    versions = [f"{each.name} {each.installed}" for each in found if each.name in shown]
    tested = _tested(found)
    if tested:
        return note("packages", f"{', '.join(versions)}. Not the tested version: {', '.join(tested)}.",
                    "They should do; make install takes the tested ones.")  # fmt: skip
    return good("packages", f"{', '.join(versions)}; all {len(found)} of the versions that are needed")


def _tested(found: Sequence[Requirement]) -> list[str]:
    """Name packages whose version is not the one in constraints.txt, where this is a checkout of the repository."""
    file = Path(featbench.__file__).resolve().parent.parent / "constraints.txt"
    if not file.is_file():
        return []
    pinned: dict[str, set[str]] = {}
    for name, pin in re.findall(r"^([\w.\-]+)==([^\s;]+)", file.read_text(encoding="utf-8"), re.MULTILINE):
        pinned.setdefault(name.lower(), set()).add(pin)
    return [
        f"{each.name} {each.installed} ({' or '.join(sorted(pinned[each.name.lower()]))})"
        for each in found
        if each.name.lower() in pinned
        and str(each.installed).partition("+")[0] not in pinned[each.name.lower()]
        and each.installed == _version(each.name)
    ]


def _extras(found: Sequence[Requirement]) -> Iterator[Finding]:
    for extra in dict.fromkeys(each.extra for each in found if each.extra):
        of_extra = [each for each in found if each.extra == extra]
        purpose = f", for {PROVIDES[extra]}" if extra in PROVIDES else ""
        missing = [each for each in of_extra if each.installed is None]
        wrong = [each for each in of_extra if each.installed is not None and not each.is_met]
        cure = f"pip install 'featbench[{extra}]'"
        if wrong:
            listed = ", ".join(f"{each.name} {each.installed}, needed {each.text}" for each in wrong)
            yield problem(f"extra {extra}", f"{listed}{purpose}.", cure)
        elif missing:
            yield note(f"extra {extra}", f"not installed{purpose}.", f"If you need it: {cure}")
        else:
            yield good(f"extra {extra}", ", ".join(f"{each.name} {each.installed}" for each in of_extra) + purpose)


def _overwritten() -> Iterator[Finding]:
    installed = {(each.metadata["Name"] or "").lower() for each in distributions()}
    for pair in EXCLUDE_EACH_OTHER:
        if installed.issuperset(pair):
            first, second = pair
            yield problem(f"{first} and {second}", "both are installed, and overwrite each other's files.",
                          f"pip uninstall {first} {second}; pip install one of them")  # fmt: skip


def _names() -> Finding:
    """Whether another module has the name of one that is needed, or of this project's folders."""
    here = Path.cwd()
    clashing = [name for name in SHADOWED if (here / f"{name}.py").exists() or (here / name / "__init__.py").exists()]
    if clashing:
        said = f"{here} holds a module {', '.join(clashing)}, which `python -m featbench` would load for the library."
        return problem("names", said, "Rename it, or work in another folder.")
    others = [name for name in ("evaluate", "extract", "store", "pipelines") if _is_another(name)]
    if others:
        return good("names", f"other modules are called {', '.join(others)}: no clash, all of bench is in featbench")
    return good("names", "none clash")


def _is_another(name: str) -> bool:
    """Whether there is a top-level module of a name that is not this project's own folder."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
    ours = Path(featbench.__file__).resolve().parent.parent / name
    return spec is not None and not any(place and Path(place).resolve().is_relative_to(ours) for place in places)


def _command() -> Finding:
    found, folder = shutil.which("bench"), Path(sys.executable).parent
    if found is None:
        return note("command", "`bench` is not on the PATH.", f"Add {folder} to it, or use python -m featbench.")
    if Path(found).parent.resolve() != folder.resolve():
        return note("command", f"`bench` is {found}, of another environment or program.",
                    f"Use {folder / 'bench'}, or python -m featbench.")  # fmt: skip
    return good("command", found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
