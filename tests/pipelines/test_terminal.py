"""What data can do to a terminal: nothing. Names with control characters and markup are shown as they are spelled."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress as Bar

import featbench.pipelines
from featbench.__main__ import open_closed_streams
from featbench.pipelines.foreign.importing import Arrays, import_features
from featbench.pipelines.terminal import output, progress
from featbench.pipelines.terminal.console import SafeConsole
from featbench.store.names import visible
from tests.conftest import Bench

HOSTILE = [
    "\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "a\rb",
    "\x07bell", "\x9b31m", "a\x7f", "\x08\x08\x08over", "\u202eexe.png",
    "\u2066x\u2069", "\u200fx", "a\u2028b", "\x00nul", "[/b]x", "[bold]y[/bold]", "my[epoch3].pth",
    "[link=http://x]z[/link]",
    ":smile:", "[red", "=1+2", "%s %d {} {0}", "\\[x]",
]  # fmt: skip


def acts(character: str) -> bool:
    """By Unicode's own properties: controls, and what has a direction of its own."""
    turns = unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return (unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") or turns) and character not in "\n\t"


def harmless(text: str) -> str:
    found = sorted({character for character in text if acts(character)})
    assert not found, f"{found} in {text[:400]!r}"
    return text


@pytest.fixture(scope="module")
def hostile_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature set whose class names, image names, weights and folder are hostile."""
    random = np.random.default_rng(0)
    names = np.array(HOSTILE)
    labels = names[np.arange(4 * len(names)) % len(names)]
    paths = tuple(f"{name}/{index}.jpg" for index, name in enumerate(labels))
    splits = {
        split: Arrays(layers={"x": random.normal(size=(len(labels), 8)).astype(np.float32)}, labels=labels, paths=paths)
        for split in ("train", "val")
    }
    made = import_features(splits, store=tmp_path_factory.mktemp("features"), name="N")
    return shutil.copytree(made.path, made.path.with_name("\x1b[31mred [bold]x[nope]"))


def commands(name: Path | str) -> list[tuple[object, ...]]:
    return [
        ("ls", "--store", Path(name).parent),
        ("results", "--store", Path(name).parent),
        ("du", "--store", Path(name).parent),
        ("clean", "--store", Path(name).parent),
        ("info", name),
        ("verify", name),
        ("evaluate", "--features", "N", "--store", Path(name).parent, "--k", "3", "--per-class", "--clusters", "2"),
        ("compare", name, name, "--layers", "x,\x1b[2J"),
        ("evaluate", "--features", "N", "--store", Path(name).parent, "--layers", "[/b]\x1b[2J"),
        ("evaluate", "--features", "\x1b[2J[/b]"),
        ("extract", "\x1b[2J[/b].yaml"),
        ("extract", "digits", "\x1b[2J[/b]=1"),
        ("extract", "digits", "model.trunk=[/b]\u202e"),
        ("extract", "digits", "--weights", "./\x1b[2J[/b].pth"),
        ("extract", "digits", "data.root=/x\u202e[/b]", "--random-weights", "0", "--dry-run"),
        ("import", "--name", "\x1b[2J[/b]", "--train", "[/b]\x1b[2J.npz"),
        ("nosuch\x1b[2J",),
        ("evaluate", "--\x1b[2J"),
        ("evaluate", "--k", "\x1b[2J"),
        ("models", "\x1b[2J"),
        ("layers", "\x1b[2J[/b]"),
        ("protocols", "\x1b[2J[/b]"),
    ]


@pytest.mark.parametrize("index", range(len(commands(""))))
def test_no_command_lets_names_act_on_the_terminal_or_be_read_as_markup(
    bench: Bench, hostile_features: Path, index: int
) -> None:
    result = bench(*commands(hostile_features)[index])
    assert result.returncode in (0, 2), result.stderr
    assert "Traceback" not in result.stderr
    harmless(result.stdout)
    harmless(result.stderr)


def test_tables_show_names_as_they_are_spelled(bench: Bench, hostile_features: Path) -> None:
    shown = bench(
        "evaluate", "--features", "N", "--store", hostile_features.parent, "--k", "3", "--per-class", "-q"
    ).stdout
    for name in ("[/b]x", "[bold]y[/bold]", "my[epoch3].pth", ":smile:", "\\x1b[2J\\x1b[31mred", "\\u202eexe.png"):
        assert name in shown


def test_json_holds_the_names_themselves(bench: Bench, hostile_features: Path) -> None:
    result = bench(
        "evaluate", "--features", "N", "--store", hostile_features.parent, "--k", "3", "--per-class", "--json", "-q"
    )
    classes = {record.get("class") for record in json.loads(result.stdout)}
    assert {unicodedata.normalize("NFC", name) for name in HOSTILE if "\0" not in name} <= classes
    harmless(result.stdout)


def test_a_pipeline_printed_for_reading_again_keeps_its_text(bench: Bench, tmp_path: Path) -> None:
    root = "/photos\u202e\x1b[31m"
    printed = bench("extract", "folder", "--data", root, "--dry-run").stdout
    harmless(printed)
    (tmp_path / "again.yaml").write_text(printed)
    assert bench("extract", "again.yaml", "--dry-run").stdout == printed
    assert "/photos" in printed


def test_bars_and_log_lines_show_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(output, "console", lambda **given: None)
    console = SafeConsole(file=out, width=200, markup=False)
    console.print("[/b]x \x1b[2J", "[red]y")
    with Bar(console=console) as bar:
        bar.add_task("a\x9bb", total=1)
    harmless(out.getvalue().replace("\x1b[?25l", "").replace("\x1b[?25h", ""))
    assert "[/b]x \\x1b[2J [red]y" in out.getvalue()
    with output.guarded():
        monkeypatch.setattr(sys.stderr, "unguarded", out)
        logging.StreamHandler(sys.stderr).emit(logging.makeLogRecord({"msg": "%s", "args": ("\x1b[1mlog[/b]",)}))
    assert "\\x1b[1mlog[/b]" in out.getvalue()


def test_columns_of_bars_interpret_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with progress.Progress().task("search [/b]x", 3) as advance:
        advance(3)
    assert "search [/b]x" in out.getvalue()


@pytest.mark.parametrize(
    "code",
    [
        *range(0x20),
        *range(0x7F, 0xA0),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        0xAD,
        0x200B,
        0x2060,
        0xFEFF,
        0xD800,
    ],
)
def test_every_character_that_acts_is_spelled_out(code: int) -> None:
    character = chr(code)
    assert visible(f"a{character}b", keep="") == "a" + character.encode("unicode_escape").decode() + "b"
    assert visible("é 日本 🙂 a\u0301 👩\u200d💻") == "é 日本 🙂 a\u0301 👩\u200d💻"


def test_consoles_are_made_in_one_place() -> None:
    for path in Path(featbench.pipelines.__file__).parent.rglob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != Console.__name__, f"{path}:{node.lineno} makes a console of its own"


def test_streams_that_are_closed_are_written_to_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        assert stream.write("text") == 4
        assert not stream.isatty()
    assert sys.stdin.read() == ""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert os.path.samestat(os.fstat(stream.fileno()), Path(os.devnull).stat())
        stream.close()
