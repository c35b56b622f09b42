"""Tables in a terminal, in a pipe, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from featbench.evaluate.metrics import proportion
from featbench.pipelines.cli.cells import percent
from featbench.pipelines.cli.knn_tables import protocol_table
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.terminal.formats import as_csv, as_markdown
from featbench.pipelines.terminal.table import Column, Table, as_text, facts_text
from featbench.store import FeatureSet
from tests.conftest import Bench, make_features

BOX = re.compile("[\u2500-\u257f|]|\x1b")
COLUMNS = (
    Column(name="layer", is_right=False),
    Column(name="dim", drop=2),
    Column(name="top-1"),
    Column(name="top-5", drop=1),
)
LONG = "blocks.11.mlp.fc2.AdaptiveAvgPool2d_2"


def table(name: str = "res5", **settings: int) -> Table:
    rows = ((name, "2,048", "61.2 ±4.9", "84.0 ±3.1"), (name, "2,048", "60.0 ±5.0", "85.0 ±3.0"))
    return Table(columns=COLUMNS, rows=rows, **settings)


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    random = np.random.default_rng(3)
    names = ("a|b", "=1+2", "50% & _x_ $y^2$ #{~}\\")
    labels = {split: np.arange(24) % 3 for split in ("train", "val")}
    arrays = {split: {LONG: random.normal(size=(24, 8)), "res5": random.normal(size=(24, 8))} for split in labels}
    arrays = {split: {name: x.astype(np.float32) for name, x in layers.items()} for split, layers in arrays.items()}
    return make_features(
        tmp_path / "features/mine", arrays, labels, class_names=dict.fromkeys(labels, names)
    )  # fmt: skip


@pytest.mark.parametrize("width", range(20, 90))
def test_columns_are_left_out_by_importance_until_a_table_fits_and_no_cell_is_ever_cut(width: int) -> None:
    lines = as_text(table(), width=width, rule="-").plain.splitlines()
    body = lines[:4]
    left_out = {name for name in ("dim", "top-5") if name not in body[0]}
    assert max(map(cell_len, body)) <= width or left_out == {"dim", "top-5"}
    assert left_out in (set(), {"dim"}, {"dim", "top-5"})
    assert "61.2 ±4.9" in body[2]
    assert (f"Left out to fit the terminal: {', '.join(sorted(left_out))}." in " ".join(lines[4:])) == bool(left_out)


def test_a_name_longer_than_the_terminal_is_whole() -> None:
    assert "x" * 200 in as_text(table("x" * 200), width=80).plain


def test_cells_of_double_width_line_up() -> None:
    """Each Chinese character takes two cells of a terminal."""
    wide = Table(columns=(Column(name="class", is_right=False), Column(name="k")), rows=(("猫", "1"), ("dog", "20")))
    assert {cell_len(line) for line in as_text(wide).plain.splitlines()} == {9}


def test_a_terminal_shows_repeated_names_once_and_a_file_on_each_line() -> None:
    grouped = table(num_grouped=2)
    assert as_text(grouped, width=80).plain.count("res5") == 1
    assert as_text(grouped).plain.count("res5") == 2


def test_long_values_go_on_below_their_beginning() -> None:
    lines = facts_text([("name", "x" * 50), ("other", "y")], width=40).plain.splitlines()
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 7, 0]
    assert "".join(line.strip() for line in lines[:2]) == f"name   {'x' * 50}"


@pytest.mark.parametrize("correct", [0, 1, 7, 299, 300])
def test_value_and_half_width_hold_both_ends_of_the_interval(correct: int) -> None:
    estimate = proportion(np.arange(300) < correct)
    value, half = map(float, percent(estimate).split(" ±"))
    assert value == pytest.approx(100 * correct / 300, abs=0.051)
    assert value - half <= 100 * estimate.low + 1e-6
    assert value + half >= 100 * estimate.high - 1e-6
    assert half <= math.ceil(1000 * (estimate.high - estimate.low)) / 10 + 0.1


def test_all_protocols_fit_80_columns() -> None:
    from featbench.evaluate.knn.protocols import PROTOCOLS

    assert max(map(cell_len, as_text(protocol_table(PROTOCOLS), width=80, rule="-").plain.splitlines())) <= 80
    assert list(find_protocols(["vissl", "dino"])) == ["vissl", "dino"]


ASKED = ("evaluate", "--features", "mine", "--k", "1,5", "--per-class", "--retrieval", "--quiet")


COMPARED = ("compare", "mine", "mine", "--layers", f"{LONG},res5")


@pytest.mark.parametrize("command", [ASKED, COMPARED, ("ls",), ("info", "mine"), ("protocols",), ("datasets",)])
def test_a_pipe_gets_whole_lines_without_boxes_and_colours(
    bench: Bench, features: FeatureSet, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = bench(*command)
    assert result.returncode == 0, result.stderr
    assert not BOX.search(result.stdout.replace("a|b", ""))
    assert "…" not in result.stdout
    assert "Left out" not in result.stdout
    assert LONG in result.stdout or command[0] in ("protocols", "datasets")


def test_csv_is_the_records_and_guards_formulas(bench: Bench, features: FeatureSet) -> None:
    records = json.loads(bench(*ASKED, "--json").stdout)
    result = bench(*ASKED, "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert list(row) == list(record)
        for name in ("top1", "k", "num_train", "r_precision"):
            assert (float(row[name]) if row[name] else None) == record[name]
    assert "'=1+2" in {row["class"] for row in rows}
    assert as_csv([{"a": -1.5, "b": "-1.5", "c": True, "d": [1, 2]}]) == 'a,b,c,d\n-1.5,\'-1.5,True,"1, 2"\n'


def test_markdown_tables_have_as_many_cells_in_every_row(bench: Bench, features: FeatureSet) -> None:
    out = bench(*ASKED, "--markdown").stdout
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert len(rows) > 15
    blocks = [block for block in out.split("\n\n") if block.startswith("|")]
    for block in blocks:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "a\\|b" in out
    assert LONG in out


def test_markdown_escapes_what_it_would_interpret() -> None:
    shown = as_markdown(Table(columns=(Column(name="class"),), rows=(("_x_ a_b *y* `z` <b> [l](u) &amp; \\",),)))
    assert shown.splitlines()[-1] == "| \\_x\\_ a_b \\*y\\* \\`z\\` \\<b\\> \\[l\\](u) &amp;amp; \\\\ |"


def test_the_best_top1_alone_is_bold(bench: Bench, features: FeatureSet) -> None:
    command = ("evaluate", "--features", "mine", "--k", "1,3,9", "--quiet")
    best = max(record["top1"] for record in json.loads(bench(*command, "--json").stdout))
    bold = re.findall(r"\*\*(\S+) ±\S+\*\*", bench(*command, "--markdown").stdout)
    assert bold
    assert set(bold) == {f"{100 * best:.1f}"}


def test_latex_is_escaped_and_has_the_rules_of_booktabs(bench: Bench, features: FeatureSet) -> None:
    out = bench(*ASKED, "--latex").stdout
    assert out.count(r"\toprule") == out.count(r"\bottomrule") == out.count(r"\begin{table}") >= 4
    assert r"50\% \& \_x\_ \$y\textasciicircum{}2\$ \#\{\textasciitilde{}\}\textbackslash{}" in out
    assert r"$\pm$" in out
    bare = re.sub(r"\\[%&$#_{}\\]|\\text\w+\{\}|\$\\pm\$|\n%.*|^%.*", "", out)
    assert not re.search(r"[#$%^~_]", bare)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(bench: Bench, features: FeatureSet, tmp_path: Path) -> None:
    body = bench(*ASKED, "--latex").stdout
    source = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "x.tex").write_text(source)
    subprocess.run(["pdflatex", "-halt-on-error", "x.tex"], cwd=tmp_path, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("command", [ASKED, ("ls",), ("info", "mine"), ("protocols",), ("run", "digits")])
def test_only_one_format_is_printed(bench: Bench, features: FeatureSet, command: tuple[str, ...]) -> None:
    result = bench(*command, "--csv", "--latex")
    assert result.returncode == 2
    assert result.stderr == "error: give only one of --json, --csv, --markdown and --latex; got --csv and --latex\n"


def test_a_protocol_without_normalization_says_so_below_its_table(bench: Bench, features: FeatureSet) -> None:
    assert "does not normalize" in bench(*ASKED, "--protocol", "vissl").stdout
    assert "does not normalize" not in bench(*ASKED).stdout


def test_ls_and_info_tell_other_programs_the_same(bench: Bench, features: FeatureSet) -> None:
    (listed,) = json.loads(bench("ls", "--json").stdout)
    assert (listed["name"], listed["num_train"], listed["layers"]) == ("mine", 24, [LONG, "res5"])
    told = json.loads(bench("info", "mine", "--json").stdout)
    assert told["fingerprint"] == features.manifest.fingerprint
    assert [layer["layer"] for layer in told["layers"]] == [LONG, "res5"]
    assert told["fingerprint"] in bench("info", "mine").stdout
