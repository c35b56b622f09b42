"""Files of the working folder that nobody named are said, and run no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from featbench.extract.errors import ImageError
from featbench.pipelines.cli.options import read_pipeline
from featbench.pipelines.config.pipeline import PipelineError, make_pipeline
from featbench.pipelines.config.trust import code_settings
from featbench.pipelines.extraction.pictures import Pictures, images_of
from featbench.store import LayerSpec
from tests.conftest import Bench, make_features

EVIL = "from pathlib import Path\nPath('ran').touch()\ndef net(): raise SystemExit\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL, encoding="utf-8")
    return tmp_path


def write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")


CODE = [
    ("model.trunk", {"model": {"trunk": "evil.py:net"}, "weights": {"as_built": True}}),
    ("model.trunk", {"model": {"trunk": "evil:net"}, "weights": {"as_built": True}}),
    ("weights.trust", {"weights": {"file": "evil.pth", "trust": True}}),
    ("extract.slurm", {"extract": {"slurm": {"setup": "touch ran"}}}),
    ("data.options.trust_remote_code", {"data": {"source": "huggingface", "options": {"trust_remote_code": True}}}),
]


@pytest.mark.parametrize("command", ["extract", "run", "plan"])
@pytest.mark.parametrize(("key", "settings"), CODE)
def test_code_of_a_bench_yaml_that_was_not_named_is_not_run(
    bench: Bench,
    folder: Path,
    command: str,
    key: str,
    settings: dict[str, dict[str, bool | dict[str, bool | str] | str]],
) -> None:
    write(folder / "bench.yaml", {"base": "digits", **settings})
    refused = bench(command)
    assert refused.returncode == 2
    assert "Settings from bench.yaml of this folder." in refused.stderr
    assert f"nobody named it:\n  {key}: " in refused.stderr
    assert "--trust-code" in refused.stderr
    assert not (folder / "ran").exists()
    assert not (folder / "features").exists()


def test_a_base_is_as_unnamed_as_the_file_that_extends_it(bench: Bench, folder: Path) -> None:
    write(folder / "more.yaml", {"base": "digits", "model": {"trunk": "evil.py:net"}, "weights": {"as_built": True}})
    write(folder / "bench.yaml", {"base": "more.yaml"})
    assert "model.trunk: evil.py:net" in bench("extract").stderr
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "words", [["bench.yaml"], ["./bench.yaml"], ["--trust-code"], ["model.trunk=evil.py:net"]], ids=" ".join
)
def test_code_that_is_named_is_run(bench: Bench, folder: Path, words: list[str]) -> None:
    write(folder / "bench.yaml", {"base": "digits", "model": {"trunk": "evil.py:net"}, "weights": {"as_built": True}})
    bench("extract", *words)
    assert (folder / "ran").exists()


def test_a_dry_run_shows_what_an_unnamed_file_says_and_runs_nothing(bench: Bench, folder: Path) -> None:
    write(folder / "bench.yaml", {"base": "digits", "model": {"trunk": "evil.py:net"}, "weights": {"as_built": True}})
    shown = bench("extract", "--dry-run")
    assert shown.returncode == 0
    assert yaml.safe_load(shown.stdout)["model"]["trunk"] == "evil.py:net"
    assert not (folder / "ran").exists()


def test_a_catalogue_in_the_working_folder_is_said_and_runs_no_code(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"source": "huggingface", "dataset": "x", "options": {"trust_remote_code": True}}
    write(folder / "datasets.yaml", {"mine": entry})
    own = {"data": {"name": "mine"}, "model": {"trunk": "evil.py:net"}, "weights": {"as_built": True}}
    write(folder / "own.yaml", own)
    with pytest.raises(PipelineError, match="trust_remote_code") as refused:
        read_pipeline(["own.yaml"], {}, may_run_code=False)
    assert "model.trunk" not in str(refused.value), "the file that says so was named"
    assert "Settings from datasets.yaml of this folder." in capsys.readouterr().err
    assert read_pipeline(["own.yaml"], {}, may_run_code=True).data.dataset == "x"


def test_plain_settings_of_an_unnamed_file_are_taken_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        folder / "bench.yaml", {"base": "digits", "model": {"trunk": "timm:vit_tiny_patch16_224"}, "layers": ["res4"]}
    )
    pipeline = read_pipeline([], {}, may_run_code=False)
    assert pipeline.layers == (LayerSpec.of("res4"),)
    assert capsys.readouterr().err == "Settings from bench.yaml of this folder.\n"
    read_pipeline([], {}, may_run_code=False, quiet=True)
    assert read_pipeline(["digits"], {}, may_run_code=False).name == "digits"
    assert capsys.readouterr().err == ""


def test_a_base_is_a_shipped_pipeline_or_lies_beside_the_file(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    write(folder / "common.yaml", {"layers": ["res4"]})
    write(folder / "elsewhere/mine.yaml", {"base": "common.yaml"})
    with pytest.raises(PipelineError, match="path relative to this file"):
        read_pipeline(["elsewhere/mine.yaml"], {})


def test_ordinary_pipelines_run_no_code() -> None:
    assert code_settings(make_pipeline({"weights": {"random_seed": 0}}, where="test")) == {}


def test_the_script_of_a_recorded_data_set_is_not_run_to_show_its_images(tmp_path: Path) -> None:
    """The feature set may come from someone else."""
    rows = {split: {"x": np.eye(2, dtype=np.float32)} for split in ("train", "val")}
    features = make_features(tmp_path / "theirs", rows, {split: np.arange(2) for split in rows})
    features.manifest.notes["pipeline"] = {
        "data": {"source": "huggingface", "dataset": "x", "options": {"trust_remote_code": True}}
    }
    with pytest.raises(ImageError, match="the data set's own script would have to run"):
        images_of(features, None)
    assert "the data set's own script would have to run" in Pictures.of(features).reason
