"""What an installation puts where, beside which it works, and what a user's own files can't change."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT, Arrays, make_features
from tests.test_architecture import PACKAGES

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "featbench", *PACKAGES)


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without the repository in sight; returns what it did."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment | (env or {}), capture_output=True, text=True, timeout=900
    )


def must_run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("as_folders", [True, False], ids=["folders", "modules"])
def test_modules_of_the_users_own_change_nothing(tmp_path: Path, arrays: Arrays, as_folders: bool) -> None:
    """In the working folder, which `python -m` puts first on Python's path, and on PYTHONPATH."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
        for name in PACKAGES:
            if as_folders:
                (folder / name).mkdir()
            for file in (f"{name}/__init__.py", f"{name}/__main__.py") if as_folders else (f"{name}.py",):
                (folder / file).write_text("raise SystemExit('the wrong module')")
    make_features(here / "features/f", *arrays)
    command = ("-m", "featbench", "evaluate", "--features", "f", "--layers", "res5", "--k", "3")
    result = run(sys.executable, *command, cwd=here, env={"PYTHONPATH": str(elsewhere)})
    assert result.returncode == 0, result.stderr
    assert "res5" in result.stdout


def made(*words: str) -> subprocess.CompletedProcess[str]:
    """What `make` would run, or how it refuses."""
    return run("make", "--dry-run", *words, cwd=ROOT)


def test_users_are_spared_the_tools_of_developers(tmp_path: Path) -> None:
    venv = f"VENV={tmp_path}"
    assert all("[dev]" not in made(target, venv).stdout for target in ("install", "demo", "in1k"))
    assert all("[dev]" in made(target, venv).stdout for target in ("lint", "test", "benchmark"))


def test_an_environment_without_cuda_needs_the_same_packages_but_faiss(tmp_path: Path) -> None:
    (rules,) = re.findall(r"^define CPU_REQUIREMENTS\n(.*?)^endef", (ROOT / "Makefile").read_text(), re.M | re.S)
    lines = must_run(sys.executable, "-c", rules, "dev", cwd=ROOT).splitlines()
    named = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    needed = [Requirement(each) for each in requires("featbench")]
    assert named == {each.name.lower() for each in needed} - {"faiss-gpu", "featbench"}
    assert "faiss-cpu" in named


def test_an_environment_with_cuda_is_not_mixed_with_one_without(tmp_path: Path) -> None:
    (tmp_path / ".installed").touch()
    refused = made("install", "CPU=1", f"VENV={tmp_path}")
    assert refused.returncode == 2
    assert f"{tmp_path} was installed without CPU=1. Remove it first" in refused.stderr
    (tmp_path / ".cpu").touch()
    assert "faiss-gpu" not in made("test", f"VENV={tmp_path}", "-W", "pyproject.toml").stdout
    assert "requirements.txt" in made("test", f"VENV={tmp_path}", "-W", "pyproject.toml").stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that nothing is left behind in the repository."""
    copy = tmp_path_factory.mktemp("copy") / "bench"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    built = copy.parent / "built"
    has_setuptools = importlib.util.find_spec("setuptools") and int(version("setuptools").split(".")[0]) >= 77
    isolation = ["--no-build-isolation"] if has_setuptools else []  # else pip fetches it
    must_run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation, "-w", built, copy, cwd=copy.parent)
    (path,) = built.glob("featbench-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_owns_one_name_and_holds_all_files(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"featbench"}
    files = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*") if path.is_file()]
    shipped = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    ours = {f"featbench/{path.name}" for path in (ROOT / "featbench").glob("*.*")}
    assert names == ours | {f"featbench/{name}" for name in shipped}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment of its own, which finds the packages of this one, but neither bench nor an `evaluate`."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    behind = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    (site / "zz_behind.pth").write_text("\n".join(behind))  # lines of .pth files there are not read again
    return folder / "bin"


BENCH_WORKS = """
import pathlib, featbench.store, featbench.extract, featbench.evaluate, featbench.pipelines
from featbench.pipelines.cli.app import app
for package in (featbench, featbench.store, featbench.extract, featbench.evaluate, featbench.pipelines):
    assert pathlib.Path(package.__file__).is_relative_to({venv!r}), package.__file__
"""

EVALUATE_WORKS = """
import evaluate, datasets, pathlib
assert pathlib.Path(evaluate.__file__).is_relative_to({venv!r}), evaluate.__file__
assert callable(evaluate.load) and evaluate.EvaluationModule and datasets.Dataset.from_dict({{"x": [1]}})["x"][0] == 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [True, False], ids=["bench first", "evaluate first"])
def test_bench_and_the_evaluate_of_hugging_face_live_side_by_side(
    tmp_path: Path, environment: Path, wheel: Path, arrays: Arrays, ours_first: bool
) -> None:
    pytest.importorskip("datasets", reason="the extra `huggingface` is not installed")
    python, folder = environment / "python", str(environment.parent)
    theirs = "evaluate>=0.4"
    download = run(python, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path / "theirs", theirs, cwd=tmp_path)
    if download.returncode:
        pytest.skip("Hugging Face's `evaluate` can't be fetched here")
    (fetched,) = (tmp_path / "theirs").iterdir()
    make_features(tmp_path / "features/f", *arrays)

    def pip(*words: str | Path) -> None:
        must_run(python, "-m", "pip", *words, cwd=tmp_path)

    def bench_works() -> None:
        must_run(python, "-c", BENCH_WORKS.format(venv=folder), cwd=tmp_path)
        assert "res5" in must_run(environment / "bench", "evaluate", "--features", "f", "--k", "3", cwd=tmp_path)

    def evaluate_works() -> None:
        must_run(python, "-c", EVALUATE_WORKS.format(venv=folder), cwd=tmp_path)

    ours: list[str | Path] = [
        "--no-deps",
        "--ignore-installed",
        wheel,
    ]
    both: list[list[str | Path]] = [ours, [fetched]]
    for words in both if ours_first else reversed(both):
        pip("install", "-q", *words)
    bench_works()
    evaluate_works()
    if ours_first:
        pip("uninstall", "-q", "-y", "evaluate")
        bench_works()
    else:
        pip("uninstall", "-q", "-y", "featbench")
        evaluate_works()
        assert not list(Path(folder).glob("lib/python3*/site-packages/featbench*"))
