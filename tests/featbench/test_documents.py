"""The code in `docs/python.md` and the examples run."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import featbench
from tests.conftest import Bench

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_code_on_the_page_about_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), namespace)
    assert namespace["result"].top1 > 0.6
    assert (tmp_path / "features/mine/zarr.json").exists()


def test_the_code_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = torch.Generator().manual_seed(0)
    images, labels = torch.rand(120, 1, 8, 8, generator=random), torch.arange(120) % 4
    train, val = TensorDataset(images[:110], labels[:110]), TensorDataset(images[110:], labels[110:])
    layers = [("layer3", nn.Conv2d(1, 4, 3)), ("layer4", nn.Conv2d(4, 5, 3))]
    model = nn.Sequential(OrderedDict(layers))
    featbench.extract(model, {"train": train, "val": val}, layers="layer4", store="features", name="mine")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    arrays = dict(zip(("train_x", "train_y", "val_x", "val_y"), (*train.tensors, *val.tensors), strict=True))
    exec(compile(block, "README.md", "exec"), {"model": model, "train": train, "val": val, **arrays})


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    result = runpy.run_path(str(ROOT / "examples/notebook.py"))["result"]
    assert result.top1 > 0.9
    assert "NMI" in capsys.readouterr().out


def trained(tmp_path: Path, *options: str) -> str:
    """Run the example, and return what it prints."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; sys.argv[0] = 'example'; "
    code += f"runpy.run_path({str(ROOT / 'examples/simsiam_digits.py')!r}, run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_two_epochs_of_the_training_loop_run(tmp_path: Path) -> None:
    printed = trained(tmp_path, "--epochs", "2")
    assert re.search(r"epoch   2: loss -?\d\.\d+, kNN top-1 \d\d\.\d %", printed)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["epoch_001.pt", "epoch_002.pt"]
    assert [path.name for path in sorted((tmp_path / "features").iterdir())] == ["simsiam", "untrained"]


@pytest.mark.slow
def test_training_makes_layers_better_than_those_of_the_untrained_network(tmp_path: Path, bench: Bench) -> None:
    rows = re.findall(r"^(untrained|simsiam) +(.*)$", trained(tmp_path), re.MULTILINE)
    before, after = ([float(value) for value in values.split()] for _, values in rows)
    assert after[-1] > before[-1] + 2
    assert after[-2] > before[-2] + 2
    compared = bench("compare", "untrained", "simsiam", "--layers", "block3", "--k", "20")
    assert compared.returncode == 0, compared.stderr
