"""Options of the commands against the settings that they override, and what `--help` says."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from featbench import __version__
from featbench.pipelines.cli import planning, results, stages
from featbench.pipelines.cli.command import field_of
from featbench.pipelines.cli.options import settings_by_name
from tests.conftest import ROOT, Bench

COMMANDS = [stages.extract, stages.evaluate, stages.run, planning.plan, results.compare, results.assign, results.export]
NAMES = (
    "extract evaluate run watch plan results compare assign export ls info du rm clean verify import import-vissl "
    "layers models datasets protocols"
)


def leaves(annotation: Any) -> set[type]:
    """The classes within a type."""
    arguments = [each for each in get_args(annotation) if get_origin(annotation) is not Literal]
    if not arguments:
        return {annotation} if isinstance(annotation, type) else set()
    return set().union(*map(leaves, arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_of_the_type_of_the_setting(command: Callable[..., None]) -> None:
    settings = settings_by_name(command)
    assert len(settings) >= 4
    annotations = inspect.get_annotations(command, eval_str=True)
    for name, setting in settings.items():
        if setting.key in ("vissl_config", "vissl_root", "weights"):  # a translation, and one of two settings
            continue
        kind, *_ = get_args(annotations[name])
        (type_,) = {each for each in get_args(kind) if each is not type(None)}
        if type_ == list[str]:  # repeated NAME=VALUE
            assert dict in {get_origin(each) for each in get_args(field_of(setting.key).annotation)}, setting
            continue
        assert type_ is str or type_ in leaves(field_of(setting.key).annotation), setting


def test_help_says_what_the_settings_are_with_their_choices_and_their_defaults(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = " ".join(bench("run", "--help").stdout.split())
    assert "--batch-size N|auto Images in a forward pass; `auto` measures which" in shown
    assert re.search(r"--search-device DEVICE [^\[]+ \[auto, cpu, gpu, faiss-cpu; default: auto\]", shown)
    assert re.search(r"--ami / --no-ami [^\[]+ \[default: ami\]", shown)
    assert not re.search(r"--[a-z-]+( [A-Z=|,.]+)? --", shown)  # an option without a text


def test_options_of_k_means_override_the_settings(bench: Bench) -> None:
    given = "--clusters classes,1000,4096 --seeds 5 --mini-batch 10000 --init random --spherical --no-ami"
    kmeans = yaml.safe_load(bench("run", "digits", "--dry-run", *given.split()).stdout)["evaluate"]["kmeans"]
    expected = {"clusters": ["classes", 1000, 4096], "seeds": 5, "init": "random", "spherical": True, "ami": False}
    expected |= {"mini_batch": 10_000}
    assert {key: kmeans[key] for key in expected} == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_has_the_name_of_its_parameter(command: Callable[..., Any]) -> None:
    for name, annotation in inspect.get_annotations(command, eval_str=True).items():
        for mark in getattr(annotation, "__metadata__", ()):
            flags = [flag for flag in getattr(mark, "param_decls", None) or () if flag.startswith("--")]
            spelled = name.replace("_", "-")
            assert flags in ([], [f"--{spelled}"], [f"--{spelled}/--no-{spelled}"], ["--" + name.removeprefix("as_")])


def test_summaries_fit_80_columns_and_no_type_of_python_is_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = bench("-h").stdout
    assert "..." not in shown.partition("Commands:")[2]
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in NAMES.split())
    assert max(map(len, shown.splitlines())) <= 80
    for name in NAMES.split():
        helped = bench(name, "-h")
        assert helped.returncode == 0
        assert not re.search(r"<[\w\[\] ]+>", helped.stdout.replace("<class>", "")), helped.stdout
        assert max(map(len, helped.stdout.splitlines())) <= 80, name
        assert bench(name, "--help").stdout == helped.stdout


def test_the_version_is_said(bench: Bench) -> None:
    assert bench("--version").stdout == f"bench {__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bench eval", {"evaluate"}),
        ("bench evaluate --retr", {"--retrieval"}),
        ("bench im", {"import", "import-vissl"}),
    ],
)
def test_the_shell_completes_commands_and_options(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, words: str, expected: set[str]
) -> None:
    assert "complete " in _completing(bench, monkeypatch, "source_bash", "").stdout
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert set(_completing(bench, monkeypatch, "complete_bash", words).stdout.split()) == expected


def _completing(bench: Bench, monkeypatch: Any, what: str, words: str) -> subprocess.CompletedProcess[str]:
    monkeypatch.setenv("_BENCH_COMPLETE", what)
    monkeypatch.setenv("COMP_WORDS", words)
    return bench()


def test_mistyped_commands_and_options_are_met_with_the_right_ones(bench: Bench) -> None:
    for words, hint in ((("evalute",), "'evaluate'"), (("evaluate", "--protocl", "dino"), "--protocol")):
        result = bench(*words)
        assert result.returncode == 2
        assert hint in result.stderr


HEAVY = ("numpy", "zarr", "torch", "faiss", "rich", "sklearn", "PIL", "asyncio")


@pytest.mark.parametrize(("words", "heavy"), [("", (*HEAVY, "pydantic", "yaml")), ("evaluate", HEAVY)])
def test_help_imports_nothing_heavy(words: str, heavy: tuple[str, ...]) -> None:
    code = (
        f"import sys; sys.argv = ['bench', *{words.split()}, '--help']; import featbench.__main__ as m, atexit; "
        f"atexit.register(lambda: print([x for x in {heavy} if x in sys.modules])); m.main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_an_option_that_is_given_again_in_vain_is_said(bench: Bench) -> None:
    twice = bench(
        "evaluate", "--features", "none", "--layers", "a", "--layers", "b", "--queries", "x=1", "--queries", "y=2"
    )
    assert "--layers is given more than once, and only the last counts: b; separate several by commas\n" in twice.stderr
    assert "--queries" not in twice.stderr, "of which all count"
    assert "more than once" not in bench("evaluate", "--features", "none", "--layers", "a,b").stderr
