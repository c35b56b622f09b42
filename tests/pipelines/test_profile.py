"""`bench extract --profile` says which step sets the pace, and what would help."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from featbench.extract.profile import Profile
from featbench.pipelines.cli import profile_table
from featbench.pipelines.cli.profile_table import verdict
from featbench.pipelines.config.pipeline import load_pipeline
from tests.conftest import Bench

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, 2)

    def forward(self, images):
        return self.conv(images)

def make():
    return Net()
"""


def profiled(bench: Bench, photographs: Path, tmp_path: Path, *more: str, command: Sequence[str] = ("extract",)) -> str:
    (tmp_path / "own.py").write_text(NET)
    result = bench(
        *command, "folder", "--data", photographs, "model.trunk=own.py:make", "--random-weights", "1", "--layers",
        "conv", "transform.resize=32", "transform.crop=32", "--batch-size", "2", "storage.rows_per_chunk=4",
        "--profile", *more,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


def test_every_step_is_shown(bench: Bench, photographs: Path, tmp_path: Path) -> None:
    shown = profiled(bench, photographs, tmp_path, "--workers", "0")
    rows = re.findall(r"^(\w.*?) {2,}([\d.]+) +(\d+)%", shown, re.M)
    assert [what for what, _, _ in rows] == [
        "read, decode and transform (no process)", "scale to floats", "forward pass and pooling", "convert to float32",
        "check and write",
    ]  # fmt: skip
    assert "the pace. What would help: " in shown.replace("\n", " ")
    assert profiled(bench, photographs, tmp_path) == "", "there was nothing to do"


def test_both_stages_show_it_before_their_results(bench: Bench, photographs: Path, tmp_path: Path) -> None:
    shown = profiled(bench, photographs, tmp_path, "--workers", "0", "--k", "1", command=("run",))
    assert shown.index("check and write") < shown.index("kNN, protocol dino")
    for clash in (("--json",), ("--matrix", "weights.random_seed=1,2")):
        refused = bench("run", "folder", "--data", photographs, "--random-weights", "1", "--profile", *clash)
        assert refused.returncode == 2
        assert "--profile" in refused.stderr


@pytest.mark.slow
def test_ranks_are_shown_together(bench_process: Bench, photographs: Path, tmp_path: Path) -> None:
    shown = profiled(bench_process, photographs, tmp_path, "--ranks", "2", "--workers", "1")
    assert re.search(r"images in [\d.]+ s in each of \d ranks|images in [\d.]+ s, ", shown)
    assert "(1 process)" in shown


@pytest.mark.parametrize(
    ("profile", "settings", "helps", "does_not"),
    [
        ({"waited_for_images": 9.0}, {}, ["Decoding", "--workers 8", "data.decoder=torchvision"], ["--compile"]),
        (
            {"waited_for_images": 9.0, "decoders": 8}, {"data.decoder": "torchvision"},
            ["smaller"], ["--workers", "name"],
        ),
        ({"waited_for_device": 9.0, "forward": 9.0}, {}, ["forward pass", "--compile on"], ["bfloat16", "another"]),
        (
            {"waited_for_device": 9.0, "forward": 9.0, "device": "cuda"}, {"extract.compile": "auto"},
            ["a model that can be compiled", "tf32", "batch-size (64 now)", "another --name"], ["--compile on"],
        ),
        ({"waited_for_writing": 9.0}, {}, ["Writing", "--dtype float16"], ["another --name"]),
    ],
)  # fmt: skip
def test_the_advice_is_for_the_slowest_step(
    monkeypatch: pytest.MonkeyPatch, profile: dict[str, float], settings: dict[str, str], helps: list[str],
    does_not: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(profile_table, "graph_of", lambda *_: ())
    monkeypatch.setattr(profile_table, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(profile_table, "usable_cores", lambda: 8)
    report = SimpleNamespace(features=SimpleNamespace(manifest=None), new=("conv",))
    said = verdict(Profile(**{"decoders": 2, **profile}), load_pipeline("folder", settings), report)
    assert all(text in said for text in helps), said
    assert not any(text in said for text in does_not), said
