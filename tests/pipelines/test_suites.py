"""Suites: several runs of `bench run` by several weights, a matrix, or a file with one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from featbench.pipelines.config.pipeline import Pipeline, PipelineError, make_pipeline
from featbench.pipelines.suites.checkpoints import label, matching
from featbench.pipelines.suites.matrix import axes_of, matrix_of_words
from featbench.pipelines.suites.running import failed, run_all
from featbench.pipelines.suites.suite import Member, members_of
from featbench.store import BenchError, StoreError
from featbench.store.names import visible
from tests.conftest import ROOT, Bench
from tests.pipelines.small_runs import PIPELINE, make_images, make_net, save_checkpoint, write_yaml

UNEQUAL = ("seconds", "neighbours_reused", "created", "features", "path", "file")
"""What differs between two runs of the same."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints, a broken one between them, two data sets, a suite of all."""
    monkeypatch.chdir(tmp_path)
    make_net(tmp_path)
    save_checkpoint(tmp_path / "runs/epoch9.pth", 9)
    save_checkpoint(tmp_path / "runs/epoch11.pth", 11)
    (tmp_path / "runs/epoch10.pth").write_bytes(b"PK\3\4 half of a checkpoint")
    for seed, name in enumerate(("photos", "sketches")):
        make_images(tmp_path / name, seed=seed)
    write_yaml(
        tmp_path / "suite.yaml", PIPELINE | {"matrix": {"weights": ["runs/*.pth"], "data": ["photos", "sketches"]}}
    )
    return tmp_path


NAMES = [f"small-epoch{epoch}-{data}" for epoch in (9, 10, 11) for data in ("photos", "sketches")]


def load(settings: Any) -> Pipeline:
    return make_pipeline({"name": "p"}, settings, where="p.yaml")


def names(matrix: Any, **taken: Any) -> list[str]:
    return [member.title for member in members_of(matrix, load, taken=taken)]


def test_members_are_all_combinations_by_name_in_natural_order(folder: Path, bench: Bench) -> None:
    result = bench("run", "suite.yaml", "--dry-run")
    assert result.returncode == 0, result.stderr
    pipelines = list(yaml.safe_load_all(result.stdout))
    assert [each["name"] for each in pipelines] == NAMES
    assert [(each["weights"]["file"], each["data"]["root"]) for each in pipelines[:3]] == [
        ("runs/epoch9.pth", "photos"), ("runs/epoch9.pth", "sketches"), ("runs/epoch10.pth", "photos"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("--weights", "runs/*.pth"),
        ("--weights", "runs/epoch9.pth", "--weights", "runs/epoch10.pth", "--weights", "runs/epoch11.pth"),
        ("--weights", "runs/epoch9.pth", "runs/epoch10.pth", "runs/epoch11.pth"),  # as a shell expands a pattern
        ("--matrix", "weights=runs/epoch9.pth,runs/epoch10.pth,runs/epoch11.pth"),
    ],
)
def test_a_suite_on_the_command_line_is_each_run_alone(arguments: tuple[str, ...], folder: Path, bench: Bench) -> None:
    printed = bench("run", "p.yaml", *arguments, "--layers", "layer2", "--dry-run")
    assert printed.returncode == 0, printed.stderr
    pipelines = printed.stdout.split("---\n")
    for epoch, pipeline in zip((9, 10, 11), pipelines, strict=True):
        alone = bench(
            "run", "p.yaml", "--weights", f"runs/epoch{epoch}.pth", "--name", f"small-epoch{epoch}",
            "--layers", "layer2", "--dry-run",
        )  # fmt: skip
        assert alone.stdout == pipeline


def test_several_settings_of_one_name_and_settings_of_stage_two() -> None:
    matrix = {
        "model": {
            "small": {"model.trunk": "resnet18", "weights": "a.pth"},
            "large": {"model": {"trunk": "resnet50"}, "weights.random_seed": 0},
        },
        "evaluate.knn.k": [[5], [10]],
    }
    members = members_of(matrix, load, taken={})
    assert [member.title for member in members] == [
        f"p-{name} (evaluate.knn.k=[{k}])" for name in ("small", "large") for k in (5, 10)
    ]
    assert [member.pipeline.name for member in members] == ["p-small", "p-small", "p-large", "p-large"]
    assert [member.pipeline.model.trunk for member in members[::2]] == ["resnet18", "resnet50"]
    assert str(members[0].pipeline.weights.file) == "a.pth"


def test_a_data_set_of_the_catalogue_replaces_the_pipeline_s() -> None:
    (first, second) = members_of(
        {"data": ["cifar10", "x/photos"]}, lambda s: make_pipeline({"data": {"root": "old"}}, s, where="p"), taken={}
    )
    assert (first.pipeline.data.dataset, first.pipeline.name) == ("CIFAR10", "features-cifar10")
    assert (str(second.pipeline.data.root), second.pipeline.name) == ("x/photos", "features-photos")


def test_a_name_does_not_depend_on_what_else_is_in_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "last.pth").touch()
        assert f"p-{run}-last" in names({"weights": ["*/last.pth"]})
    assert names({"weights": ["a/last.pth"]}) == ["p-last"]
    assert names({"weights": ["a/last.pth", "b/last.pth"]}) == ["p-a-last", "p-b-last"]
    assert names({"weights": {"one": "a/last.pth", "two": "b/last.pth"}}) == ["p-one", "p-two"]
    assert names({"weights": ["a/last.pth", "./a/last.pth", "a/*.pth"]}) == ["p-last"], "the same file"


def test_a_folder_with_brackets_in_its_name_is_meant_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for epoch in (1, 2):
        (tmp_path / "lr[0.1]/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"lr[0.1]/a/epoch{epoch}.pth").touch()
    assert names({"weights": ["lr[0.1]/a/*.pth"]}) == ["p-epoch1", "p-epoch2"]
    assert names({"weights": ["lr[0.1]/*/*.pth"]}) == ["p-a-epoch1", "p-a-epoch2"]
    assert names({"weights": [f"{tmp_path}/lr[0.1]/**/epoch1.pth"]}) == ["p-a-epoch1"]


@pytest.mark.parametrize("text", ["\x1b[2J", "[red]", "😀", "x" * 300, "a/b c", "ä", "..", "-", "a\nb", "\udcff"])
def test_any_file_name_gives_a_name_of_its_own_for_a_feature_set(text: str) -> None:
    names = {label(text), label(f"{text}x"), label(text.replace("x", "y", 1))}
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]{1,100}", f"p-{name}") for name in names)
    assert len(names) >= 2
    make_pipeline({"name": f"p-{label(text)}"}, where="p.yaml")


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ({"weights": []}, "matrix: weights: has no values"),
        ({"weights": ["nowhere/*.pth"]}, "weights nowhere/*.pth: the pattern matches no file"),
        ({"layers": ["res4"]}, "one run stores all layers"),
        ({"name": ["a"]}, "matrix: name: can't vary"),
        ({"model": ["resnet50"]}, "model: "),
        ({"model": [{"trunk": "x"}]}, "mapping of names to settings"),
        ({"model": {"a": "resnet50"}}, "expected settings of each name"),
        ({"model.trnk": ["a"]}, "Did you mean model.trunk"),
        ({"extract.batch_size": [0, -1]}, "extract.batch_size"),
        ({"weights": {"a b": "x", "a_b": "y", "a?b": "x"}, "model": {"a b": {}, "a_b": {}, "a?b": {}}}, ""),
        ({"model.trunk": ["a", "a"]}, "two members of the suite would be called p-a"),
        ({"m": {"a": {"model.trunk": "x"}}, "model.trunk": ["y"]}, "model.trunk is set by m and by model.trunk"),
        ({"extract.batch_size": list(range(1, 102)), "data.seed": list(range(100))}, "10,100 combinations"),
    ],
)
def test_faults_of_a_matrix_are_said_before_anything_runs(matrix: Any, said: str) -> None:
    if not said:
        assert len(set(names(matrix))) == 9
        return
    with pytest.raises(PipelineError, match=re.escape(said)):
        names(matrix)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("p.yaml", "--weights", "none*.pth"), "the pattern matches no file"),
        (("p.yaml", "--matrix", "weights"), "--matrix must be KEY=VALUE,VALUE,...; got weights"),
        (("p.yaml", "--matrix", "data=photos", "--data", "sketches"), "data.root is set by the matrix (data)"),
        (("p.yaml", "--matrix", "a=1", "--matrix", "a=2"), "--matrix a is given twice"),
        (("suite.yaml", "--data", "photos"), "or replace the axis: --matrix data=..."),
        (("suite.yaml", "data.root=photos"), "or replace the axis: --matrix data=..."),
        (("suite.yaml", "extract.batch_size=0"), "extract.batch_size"),
        (("p.yaml", "--matrix", "model.trunk=[a"), "--matrix model.trunk=[a: not YAML"),
        (("empty.yaml",), "empty.yaml: matrix: expected settings and their values"),
    ],
)
def test_a_suite_that_can_not_start_exits_with_2(
    arguments: tuple[str, ...], said: str, folder: Path, bench: Bench
) -> None:
    write_yaml(folder / "empty.yaml", PIPELINE | {"matrix": []})
    result = bench("run", *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert not (folder / "features").exists()


def test_other_commands_name_the_one_for_suites(folder: Path, bench: Bench) -> None:
    for command in ("extract", "plan", "evaluate"):
        result = bench(command, "suite.yaml")
        assert result.returncode == 2
        assert "suite.yaml: a suite, since it has a matrix; run it: bench run suite.yaml" in result.stderr


def test_a_failing_member_does_not_keep_the_others_from_running() -> None:
    """Whether the user or a bug is to blame."""
    members = [Member(title=title, pipeline=make_pipeline({"name": title}, where="")) for title in "abcd"]

    def run(pipeline: Pipeline) -> list[dict[str, Any]]:
        if pipeline.name == "b":
            raise StoreError("no space\nleft")
        if pipeline.name == "c":
            raise ZeroDivisionError("in the model")
        return [{"name": pipeline.name}]

    outcomes = run_all(members, run)
    assert [each.records for each in outcomes] == [[{"name": "a"}], [], [], [{"name": "d"}]]
    assert failed(outcomes) == ["2 of 4 failed:", "  b: no space", "  c: ZeroDivisionError: in the model"]
    assert failed(outcomes[:1]) == []


def test_a_signal_stops_the_whole_suite() -> None:
    members = [Member(title=title, pipeline=make_pipeline({"name": title}, where="")) for title in "ab"]
    started = []

    def run(pipeline: Pipeline) -> list[dict[str, Any]]:
        started.append(pipeline.name)
        raise typer.Exit(130)

    with pytest.raises(typer.Exit):
        run_all(members, run)
    assert started == ["a"]


@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)])
def test_one_table_at_the_end_and_exit_code_1_if_some_failed(
    form: tuple[str, ...], folder: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(pipeline: Pipeline, **options: Any) -> list[dict[str, Any]]:
        if "epoch10" in pipeline.name:
            raise BenchError("\x1b[2J broken")
        return [{
            "features": pipeline.name, "path": pipeline.name, "data": str(pipeline.data.root), "task": "knn",
            "layer": "[red]x", "protocol": "dino", "k": 1, "temperature": None, "split": None, "clusters": None,
            "top1": 0.5, "created": "2026-11-01", "model": "net", "weights": "w",
        }]  # fmt: skip

    monkeypatch.setattr("featbench.pipelines.cli.suites.run_member", run)
    result = bench("run", "suite.yaml", *form)
    assert result.returncode == 1
    shown = json.loads(result.stdout) if form == ("--json",) else result.stdout.splitlines()
    assert [name for name in NAMES if name in str(shown)] == [name for name in NAMES if "epoch10" not in name]
    assert "2 of 6 failed:\n  small-epoch10-photos: \\x1b[2J broken\n" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


def test_of_several_ranks_the_first_reports(folder: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher would end the first one, before its table, if another exited with 1."""

    def run(pipeline: Pipeline, **options: Any) -> list[dict[str, Any]]:
        raise BenchError("broken")

    monkeypatch.setattr("featbench.pipelines.cli.suites.run_member", run)
    ended = []
    for rank in ("0", "1"):
        names = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        result = bench("run", "suite.yaml")
        ended.append((result.returncode, "6 of 6 failed" in result.stderr, bool(result.stdout)))
    assert ended == [(1, True, True), (0, False, False)]


def run_alone(arguments: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "featbench", "run", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def chunks(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("c/*/*") if each.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [r"\[3/6\]", r"\[6/6\]", r"Extracted.*epoch11-photos"])
def test_a_suite_that_was_killed_does_what_is_missing(stop_at: str, folder: Path) -> None:
    """Three checkpoints, one of them broken, and two data sets; all as if each had run alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "featbench", "run", "suite.yaml"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr or ():
        if re.search(stop_at, line):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = run_alone(("suite.yaml", "--json"), folder)
    assert again.returncode == 1, again.stderr
    assert again.stderr.splitlines()[-3] == "2 of 6 failed:"
    assert "Nothing to do: layer1, layer2 of features/small-epoch9-photos are complete." in again.stderr
    records = json.loads(again.stdout)
    assert {record["features"] for record in records} == {name for name in NAMES if "epoch10" not in name}
    for name in ("small-epoch9-sketches", "small-epoch11-photos"):
        _, epoch, data = name.split("-")
        arguments = ("--weights", f"runs/{epoch}.pth", "--data", data, "--name", name, "--store", "alone", "--json")
        alone = run_alone(("p.yaml", *arguments), folder)
        assert alone.returncode == 0, alone.stderr
        assert chunks(folder / "features" / name) == chunks(folder / "alone" / name)
        ours = [record for record in records if record["features"] == name]
        for record, other in zip(ours, json.loads(alone.stdout), strict=True):
            assert {k: v for k, v in other.items() if k not in UNEQUAL} == {
                k: record[k] for k in other if k not in UNEQUAL
            }


def test_the_suite_in_the_documentation_is_one(folder: Path, bench: Bench) -> None:
    (block,) = re.findall(r"```yaml\n(# suite.yaml.*?)```", (ROOT / "docs/many-models.md").read_text(), re.DOTALL)
    (folder / "suite.yaml").write_text(block)
    result = bench("run", "suite.yaml", "--dry-run")
    assert result.returncode == 0, result.stderr
    found = [(each["name"], each["model"]["trunk"], each["extract"]["precision"]) for each in
             yaml.safe_load_all(result.stdout)]  # fmt: skip
    assert len(found) == 8
    assert found[-1] == ("suite-vit-sketches-bfloat16", "vit_b_16", "bfloat16")


def test_words_of_a_matrix() -> None:
    assert matrix_of_words(["a.b=1,x,[2,3]", "data=p,q"]) == {"a.b": [1, "x", [2, 3]], "data": ["p", "q"]}
    (axis,) = axes_of({"a.b": [1, "x", True]})
    assert [value.label for value in axis.values] == ["b1", "x", "bTrue"]
    assert visible(label("\x1b")) == label("\x1b")


def test_a_pattern_leaves_out_shards_that_another_file_lists(tmp_path: Path) -> None:
    for name in ("model_phase2.torch", "model_phase2_shard0.torch", "model_phase2_shard1.torch", "odd_shard0.torch"):
        (tmp_path / name).touch()
    assert [path.name for path in matching(str(tmp_path / "*.torch"))] == ["model_phase2.torch", "odd_shard0.torch"]
