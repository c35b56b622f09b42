"""The benchmarks of VISSL's documentation, whole, on data sets that are laid out as theirs; and a million files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.synthetic import make_in1k, make_places205
from featbench.extract.data.sources import open_sources
from featbench.store import FeatureSet
from tests.conftest import ROOT, needs_proc

MEASURED = """
import atexit, runpy
from tests.peak import peak_kb
atexit.register(lambda: print(peak_kb()))
runpy.run_module("featbench", run_name="__main__", alter_sys=True)
"""
"""Runs a command, and prints the peak of its memory in kB: what `wait4` says counts that of the tests, too."""


def test_both_layouts_of_val_are_listed_with_their_labels(tmp_path: Path) -> None:
    for flat in (False, True):
        root = tmp_path / f"flat {flat}"
        make_in1k(root, num_classes=7, train=2, val=3, flat=flat)
        sources = open_sources(source="folder", root=root)
        assert np.bincount(sources["train"].rows.labels).tolist() == [2] * 7
        assert np.bincount(sources["val"].rows.labels).tolist() == [3] * 7
        for row, label in enumerate(sources["val"].rows.labels.tolist()):
            original = sources["train"].rows.labels.tolist().index(label)
            ours, theirs = (
                np.asarray(sources[split].open(at).resize((3, 3)), int)
                for split, at in (("val", row), ("train", original))
            )
            assert np.abs(ours - theirs).mean() < 40, "the label is that of the colours"


def make(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, in the environment of these tests."""
    result = subprocess.run(
        ["make", "-s", "-o", "install", target, f"BIN={Path(sys.executable).parent}", *arguments],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["in1k", "in1k flat", "places205"])
def test_make_runs_the_benchmark_whole_and_then_only_prints_it(tmp_path: Path, layout: str) -> None:
    """A thousand classes of one image each, ResNet-50, both layers with VISSL's poolings."""
    if layout == "places205":
        make_places205(tmp_path / "data", train=4, val=1)
    else:
        make_in1k(tmp_path / "data", train=1, val=1, flat=layout.endswith("flat"))
    target = layout.split()[0]
    arguments = [f"DATA={tmp_path / 'data'}", f"ARGS=--random-weights 0 --store {tmp_path / 'features'} --device cpu"]
    first = make(target, *arguments)
    features = FeatureSet.open(tmp_path / "features" / target)
    shapes = {name: info.shape for name, info in features.manifest.layers.items()}
    assert shapes == {"res4.AvgPool2d_8_3_0": (1024, 3, 3), "res5.AvgPool2d_6_1_0": (2048, 2, 2)}
    for name in shapes:
        assert name in first.stdout
        assert np.isfinite(features.layer("train", name).read()).all()
    start = time.perf_counter()
    again = make(target, *arguments)
    assert time.perf_counter() - start < 10
    assert "Nothing to do" in again.stderr
    assert again.stdout == first.stdout


@needs_proc
@pytest.mark.slow
def test_a_million_files_are_planned_within_a_minute_and_a_bounded_memory(tmp_path: Path) -> None:
    """1.3 million names (links to a file for each class), listed once, then taken from the kept listing."""
    for number in range(1000):
        content = io.BytesIO()
        Image.new("RGB", (8, 8), (number % 256, number // 4 % 256, 0)).save(content, "JPEG")
        for split, count in (("train", 1300), ("val", 50)):
            folder = tmp_path / "data" / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            first = folder / "00000.JPEG"
            first.write_bytes(content.getvalue())
            for index in range(1, count):
                os.link(first, folder / f"{index:05d}.JPEG")
    time.sleep(3)  # a listing of folders that were changed a moment ago is not kept
    command = [sys.executable, "-c", MEASURED, "plan", "in1k", "--data", tmp_path / "data", "--random-weights", "0"]
    command += ["--probe", "1", "--layers", "res5", "--batch-size", "16", "--store", tmp_path / "features"]
    command += ["model.trunk=resnet18", "transform.resize=64", "transform.crop=64"]  # the listing is measured, not it
    for _ in range(2):
        start = time.perf_counter()
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        assert result.returncode == 0, result.stderr
    assert "1,300,000 train, 50,000 val" in result.stdout
    assert any((tmp_path / "features" / ".listings").iterdir())
    assert seconds < 60
    assert int(result.stdout.split()[-1]) * 1024 < 1.5e9
