"""Every command on README and the pages of `docs/` works as it is written, and every link leads somewhere."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from typer.main import get_command

from tests.conftest import ROOT, Bench, make_features, save_image

PAGES = sorted([ROOT / "README.md", ROOT / "store/FORMAT.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])

NEEDS_MORE = {
    "in1k": "ImageNet",
    "--slurm": "SLURM",
    "--gpus": "GPUs",
    "--vissl-config": "VISSL's configuration",
    "import-vissl": "VISSL's configuration",
    "config=benchmark": "ImageNet or Places205",
    "cifar10": "CIFAR-10",
    "from_vissl": "VISSL's features",
    "from_dino": "DINO's features",
    "my.yaml": "a pipeline",
    "mine.yaml": "a protocol",
    "swin": "timm",
    "...": "arguments of the reader's own",
    "photos": "minutes",
    "doctor": "a machine without problems",
    "clothing": "photographs",
    "holiday": "an image of the reader's own",
    "vit_small_16": "minutes",
    "dinov2_vits14": "DINOv2's weights",
    "r50": "features of a ResNet-50",
    "ours": "a third feature set",
    "voc": "features with several labels",
    "digits": "minutes",
    "bench watch": "a training run",
}
"""Words of commands that are only parsed here, and what else they would need."""


def commands(page: Path) -> list[str]:
    """Lines of the page's code blocks that begin with a command, without comments; continued lines are joined."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if language in ("", "bash", "sh", "console")]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"(bench|make|torchrun|srun) ", line)]


WRITTEN = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


def words_of(line: str) -> list[str]:
    """The words of a line for `bench`, whatever starts it."""
    words = shlex.split(line, comments=True)
    if words[0] == "bench":
        return words[1:]
    start = next(i for i, word in enumerate(words) if word in ("bench", "featbench"))
    return words[start + 1 :]


def is_run(line: str) -> bool:
    return line.startswith("bench ") and not any(word in line for word in NEEDS_MORE)


@pytest.mark.parametrize(("page", "line"), [each for each in WRITTEN if "make " not in each[1].split("bench")[0]])
def test_each_command_is_understood(page: str, line: str) -> None:
    """Its command and options exist, with as many arguments as are given: click parses it all but runs nothing."""
    from featbench.pipelines.cli.app import app

    words = [word for word in words_of(line) if word not in ("...",)]
    group: Any = get_command(app)
    for_subcommand = group.commands.get(words[0])
    assert for_subcommand is not None, f"{page}: there is no `bench {words[0]}`"
    known = {option for parameter in for_subcommand.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.split("=")[0] for word in words[1:] if word.startswith("-")]
    assert set(options) <= known | {"--help", "-h"}, f"{page}: {line}"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages assume: two feature sets, arrays."""
    folder = tmp_path_factory.mktemp("desk")
    random = np.random.default_rng(0)
    labels = {"train": random.permutation(np.arange(2600) % 4), "val": np.arange(40) % 4}
    centres = random.normal(size=(4, 272))
    for name in ("mine", "theirs", "ours"):
        features = {
            split: {"res4": rows[:, :16], "res5": rows[:, 16:]}
            for split, each in labels.items()
            for rows in [(centres[each] + random.normal(size=(len(each), 272))).astype(np.float32)]
        }
        make_features(folder / "features" / name, features, labels, rows_per_chunk=512)
    x, y = random.normal(size=(60, 8)).astype(np.float32), np.arange(60) % 3
    np.savez(folder / "train.npz", features=x, labels=y)
    np.savez(folder / "val.npz", features=x[:30], labels=y[:30])
    several = np.random.default_rng(1).integers(0, 2, size=(60, 5))
    np.savez(folder / "voc_train.npz", features=x, labels=several)
    np.savez(folder / "voc_val.npz", features=x[:30], labels=several[:30])
    np.savez(folder / "both.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    for split, rows in (("train", 60), ("val", 30)):
        np.save(folder / f"{split}.npy", x[:rows])
        np.save(folder / f"{split}_labels.npy", y[:rows])
    return folder


@pytest.mark.parametrize("page", [each.relative_to(ROOT).as_posix() for each in PAGES])
def test_the_commands_of_a_page_work_one_after_the_other(page: str, desk: Path, tmp_path: Path, bench: Bench) -> None:
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    run = [line for where, line in WRITTEN if where == page and is_run(line)]
    for line in run:
        redirected = line.split(" > ")[0]
        result = bench(*words_of(redirected))
        assert result.returncode == 0, f"{page}: {line}\n{result.stderr}"


@pytest.mark.slow
def test_photographs_are_extracted_as_the_pages_say(tmp_path: Path, bench: Bench) -> None:
    """Commands about the reader's own photographs and weights, with 12 images and a ResNet-50 of random weights."""
    for number in range(12):
        save_image(tmp_path / f"photos/{'train' if number < 8 else 'val'}/{'ab'[number % 2]}/{number}.jpg", seed=number)
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "my_resnet50.pth")
    (tmp_path / "runs").mkdir()
    for copy in ("epoch100.pth", "runs/epoch1.pth"):
        shutil.copy(tmp_path / "my_resnet50.pth", tmp_path / copy)
    lines = [line for _, line in WRITTEN if "photos" in line and line.startswith("bench ") and "..." not in line]
    assert len(lines) >= 4
    for line in dict.fromkeys(lines):
        result = bench(*words_of(line), "--overwrite")
        assert result.returncode == 0, f"{line}\n{result.stderr}"


def _of_other_projects() -> list[str]:
    lines = [line for page, line in WRITTEN if page in ("docs/from-vissl.md", "docs/from-dino.md")]
    return [line for line in lines if line.startswith("bench run") and "knn.yaml" not in line]


def test_the_commands_of_those_who_come_from_vissl_and_dino_are_pipelines(tmp_path: Path, bench: Bench) -> None:
    for line in _of_other_projects():
        result = bench(*words_of(line), "--dry-run", "--quiet")
        assert result.returncode == 0, f"{line}\n{result.stderr}"
        assert "layers:" in result.stdout


@pytest.mark.parametrize(("page", "line"), [each for each in WRITTEN if each[1].startswith("make ")])
def test_the_targets_of_make_exist(page: str, line: str, tmp_path: Path) -> None:
    words = [word for word in shlex.split(line, comments=True) if word not in ("...",)]
    result = subprocess.run(
        ["make", "-n", f"VENV={tmp_path / 'venv'}", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, f"{page}: {line}\n{result.stderr}"


@pytest.mark.parametrize("page", [each.relative_to(ROOT).as_posix() for each in PAGES])
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_the_demo_is_what_the_sample_in_the_readme_shows() -> None:
    (recipe,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    typed = [tuple(line.split()) for line in re.findall(r"\$\(BIN\)/bench (.*)", recipe)]
    assert typed[:2] == list(runpy.run_path(str(ROOT / "docs/samples.py"))["DEMO"])


@pytest.mark.slow
def test_the_sample_in_the_readme_is_what_the_demo_prints() -> None:
    """Numbers may differ a little between processors."""
    printed = runpy.run_path(str(ROOT / "docs/samples.py"))["demo"]()
    (sample,) = re.findall(r"<!-- sample: demo -->\n(.*?)\n<!-- end -->", (ROOT / "README.md").read_text(), re.DOTALL)
    number = r"\d+\.\d+"
    assert re.sub(number, "", printed).split() == re.sub(number, "", sample).split()
    pairs = zip(re.findall(number, printed), re.findall(number, sample), strict=True)
    assert all(abs(float(a) - float(b)) <= 1 for a, b in pairs)
