"""Names beyond ASCII are stored as UTF-8 and printed without a traceback, whatever the locale is."""

from __future__ import annotations

import io
import locale
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from featbench import __main__
from featbench.store import FeatureSet
from tests.conftest import ROOT, Bench, save_image

NOT_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "données"
    for split in ("train", "val"):
        for seed, name in enumerate(("émeu", "日本 ☃")):
            for index in range(2):
                save_image(root / split / name / f"ñ😀{index}.png", seed=seed)
    return root


def test_names_beyond_ascii_are_stored_as_utf8_under_a_locale_of_another_encoding(
    bench_process: Bench, images: Path, tmp_path: Path
) -> None:
    made = bench_process(
        "extract", "folder", "--data", images, "--store", "données/störe", "--name", "made", "--random-weights", "0",
        "model.trunk=squeezenet1_1", "--layers", "features.3", "transform.resize=32", "transform.crop=32",
        "extract.batch_size=2", "--workers", "1", env=NOT_UTF8,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    features = FeatureSet.open(images / "störe/made")
    assert features.manifest.splits["train"].class_names == ("émeu", "日本 ☃")
    assert features.paths("train")[0].endswith("émeu/ñ😀0.png")
    assert "données/störe/made" in made.stderr


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "encoding", "expected"),
    [
        (Terminal, "ISO-8859-1", "é\\u2603\\udce9".encode("latin-1")),
        (Terminal, "ANSI_X3.4-1968", "é☃\\udce9".encode()),
        (io.TextIOWrapper, "ISO-8859-1", "é☃\\udce9".encode()),
    ],
)
def test_what_a_terminal_cannot_show_is_escaped_and_files_are_utf8(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.TextIOWrapper], encoding: str, expected: bytes
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", stream(written, encoding="utf-8"))
    monkeypatch.setattr(locale, "getencoding", lambda: encoding)
    __main__.speak_utf8()
    sys.stdout.write("é☃\udce9")
    sys.stdout.flush()
    assert written.getvalue() == expected


def test_tables_reach_a_terminal_without_an_encoding(images: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "featbench", "protocols"]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **NOT_UTF8}, stdout=theirs, timeout=120, check=False)
    os.close(theirs)
    assert ended.returncode == 0
    assert "─".encode() in os.read(ours, 100_000)
    os.close(ours)
