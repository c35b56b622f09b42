"""The benchmark's page names the hardware, the kernels and every missed target, and its plots are SVG."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import page
from benchmarks.page import Curve, Row, hardware, write


def row(ratio: str, target: str, what: str = "x") -> Row:
    return Row(group="g", what=what, ours="1 s", yardstick="2 s", ratio=ratio, target=target)


@pytest.mark.parametrize(
    ("ratio", "target", "is_missed", "score"),
    [
        ("1.09x", "<= 1.1x", False, 1.1 / 1.09),
        ("1.11x", "<= 1.1x", True, 1.1 / 1.11),
        ("0.81x", ">= 0.8x", False, 0.81 / 0.8),
        ("0.79x", ">= 0.8x", True, 0.79 / 0.8),
        ("0.2% of extraction's 19.0 s", "<= 5%", False, 25),
        ("6.1% of extraction's 19.0 s", "<= 5%", True, 5 / 6.1),
        ("-0.2% of extraction's 19.0 s", "<= 5%", False, None),
        ("3.00x", "", False, None),
    ],
)
def test_a_target_is_met_or_missed(ratio: str, target: str, is_missed: bool, score: float | None) -> None:
    assert row(ratio, target).is_missed == is_missed
    assert row(ratio, target).score == (None if score is None else pytest.approx(score))


def test_the_page_says_what_was_missed_and_its_plots_can_be_parsed(tmp_path: Path) -> None:
    rows = [row("0.50x", ">= 0.8x", "read <fast> & well"), row("0.9x", "<= 1.1x", "k-means"), row("2x", "", "peer")]
    curves = [
        Curve(name="rows", title="by rows", x_label="rows", y_label="s", points=((1e4, 0.5), (1e5, 5.0))),
        Curve(name="flat", title="memory", x_label="rows", y_label="MiB", points=((1e4, 500.0), (1e5, 500.0))),
    ]
    written = write(tmp_path, "short", rows, curves, {"processor": "P"}, command="make benchmark SHORT=1")
    text = written.read_text()
    assert "- **Missed**: read <fast> & well: 0.50x, target >= 0.8x." in text
    assert text.count("**Missed**") == 1
    assert "1 of 2 targets are met" in text
    assert "- processor: P" in text
    plots = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert plots == ["short_flat.svg", "short_rows.svg", "short_targets.svg"]
    for name in plots:
        assert f"]({name})" in text
        root = ElementTree.fromstring((tmp_path / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    marks = ElementTree.fromstring((tmp_path / "short_rows.svg").read_text()).findall("{*}circle")
    assert [float(mark.attrib["cx"]) for mark in marks] == sorted(float(mark.attrib["cx"]) for mark in marks)
    assert float(marks[0].attrib["cy"]) > float(marks[1].attrib["cy"]), "more seconds are higher up"
    content = json.loads((tmp_path / "short.json").read_text())
    assert [each["is_missed"] for each in content["rows"]] == [True, False, False]
    assert content["curves"][0]["points"] == [[1e4, 0.5], [1e5, 5.0]]


def test_bars_are_as_long_as_the_targets_are_met(tmp_path: Path) -> None:
    drawn = ElementTree.fromstring(page.bars([row("0.8x", ">= 0.8x"), row("0.4x", ">= 0.8x"), row("0.55x", "<= 1.1x")]))
    bars = [each for each in drawn.findall("{*}rect") if "x" in each.attrib]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths == pytest.approx([widths[0], widths[0] / 2, widths[0] * 2], rel=0.01)
    (target,) = drawn.findall("{*}line")
    assert float(target.attrib["x1"]) == pytest.approx(float(bars[0].attrib["x"]) + widths[0], abs=0.2)
    assert len({bar.attrib["fill"] for bar in bars}) == 2


def test_kernels_are_named() -> None:
    facts = hardware()
    assert any("kernels for" in value for name, value in facts.items() if name.startswith("BLAS of numpy"))
    assert {"processor", "cores", "memory", "torch", "faiss", "kernels of torch"} <= facts.keys()
