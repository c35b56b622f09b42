"""Options of the commands against the settings that they override, and what `--help` says."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types
from typing import Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from featbench import __version__
from featbench.pipelines.cli import planning, results, stages
from featbench.pipelines.cli.options import settings_by_name
from featbench.pipelines.config.pipeline import Pipeline
from tests.conftest import ROOT

COMMANDS = [stages.extract, stages.evaluate, stages.run, planning.plan, results.compare, results.export]
NAMES = "extract evaluate run plan compare export ls info verify import import-vissl layers models datasets protocols"


def field(key):
    """The field of `Pipeline` with a dotted key."""
    section, found = Pipeline, None
    for part in key.split("."):
        found = section.model_fields[part]
        section = next((each for each in leaves(found.annotation) if issubclass(each, BaseModel)), None)
    return found


def leaves(annotation):
    """The classes within a type."""
    arguments = [each for each in get_args(annotation) if get_origin(annotation) is not Literal]
    if not arguments:
        return {annotation} if isinstance(annotation, type) else set()
    return set().union(*map(leaves, arguments))


def choices(annotation):
    if get_origin(annotation) is Literal:
        return set(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*map(choices, get_args(annotation)))
    return set()


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_of_the_type_of_the_setting_and_say_its_choices_and_its_default(command):
    settings = settings_by_name(command)
    assert len(settings) >= 6
    annotations = inspect.get_annotations(command, eval_str=True)
    for name, setting in settings.items():
        if setting.key in ("vissl_config", "weights"):  # a translation, and one of two settings
            continue
        kind, option, _ = get_args(annotations[name])
        known = field(setting.key)
        (type_,) = {each for each in get_args(kind) if each is not type(None)}
        if type_ is not str:
            assert type_ in leaves(known.annotation), setting
        said = f"{option.metavar} {option.help}"
        assert all(re.search(rf"\b{choice}\b", said) for choice in choices(known.annotation)), (said, known)
        default = re.search(r"by default (\w+)[.]", option.help)
        if default:
            expected = known.default[0] if isinstance(known.default, tuple) else known.default
            assert str(expected) == default[1], setting


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_has_the_name_of_its_parameter(command):
    for name, annotation in inspect.get_annotations(command, eval_str=True).items():
        for mark in getattr(annotation, "__metadata__", ()):
            flags = [flag for flag in getattr(mark, "param_decls", None) or () if flag.startswith("--")]
            assert flags in ([], ["--" + name.replace("_", "-")], ["--" + name.removeprefix("as_")])


def test_summaries_fit_80_columns_and_no_type_of_python_is_shown(bench, monkeypatch):
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


def test_the_version_is_said(bench):
    assert bench("--version").stdout == f"bench {__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bench eval", {"evaluate"}),
        ("bench evaluate --retr", {"--retrieval"}),
        ("bench im", {"import", "import-vissl"}),
    ],
)
def test_the_shell_completes_commands_and_options(bench, monkeypatch, words, expected):
    assert "complete " in _completing(bench, monkeypatch, "source_bash", "").stdout
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert set(_completing(bench, monkeypatch, "complete_bash", words).stdout.split()) == expected


def _completing(bench, monkeypatch, what, words):
    monkeypatch.setenv("_BENCH_COMPLETE", what)
    monkeypatch.setenv("COMP_WORDS", words)
    return bench()


def test_mistyped_commands_and_options_are_met_with_the_right_ones(bench):
    for words, hint in ((("evalute",), "'evaluate'"), (("evaluate", "--protocl", "dino"), "--protocol")):
        result = bench(*words)
        assert result.returncode == 2
        assert hint in result.stderr


HEAVY = ("numpy", "zarr", "torch", "faiss", "pydantic", "yaml", "rich", "sklearn", "PIL", "asyncio")


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; sys.argv = ['bench', '--help']; import featbench.__main__ as m, atexit; "
        f"atexit.register(lambda: print([x for x in {HEAVY} if x in sys.modules])); m.main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
