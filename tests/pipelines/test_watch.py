"""`bench watch`: the checkpoints of a training run, as they appear."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featbench.pipelines.cli.curve_table import curve_table
from featbench.pipelines.config.pipeline import Pipeline, make_pipeline
from featbench.pipelines.suites.curve import Curve, CurveError, Point, load_curve, only_watch, save_curve
from featbench.pipelines.suites.positions import Position, position_of
from featbench.pipelines.suites.trackers import open_tracker
from featbench.pipelines.suites.watching import Watch, digest_of_settings
from featbench.pipelines.terminal.table import as_text
from featbench.store import FeatureSet, StoreError, claimed
from featbench.store.paths import CLUSTERS
from tests.conftest import Bench, make_features
from tests.pipelines.small_runs import make_images, make_net, save_checkpoint
from tests.pipelines.test_suites import UNEQUAL

OLD = time.time() - 3600


def checkpoint(path: Path, *, at: float = OLD, **content: Any) -> Path:
    """Save a checkpoint that is an hour old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.zeros(1), **content}, path)
    os.utime(path, (at, at))
    return path


def result(layer: str, top1: float, k: int = 20) -> dict[str, Any]:
    return {"task": "knn", "layer": layer, "protocol": "dino", "k": k, "temperature": 0.07, "top1": top1, "split": None}


@dataclass
class Run:
    """A watch of `runs`, whose pipelines only write down their names, and make small feature sets."""

    folder: Path
    names: list[str] = field(default_factory=list)
    top1: dict[str, float] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    during_sleep: Callable[[], None] = lambda: None

    def run(self, pipeline: Pipeline) -> list[dict[str, Any]]:
        self.names.append(pipeline.name)
        if pipeline.name in self.fails:
            raise self.fails[pipeline.name]
        path = pipeline.store / pipeline.name
        if not path.exists():
            rows = {split: np.zeros((2, 1), np.float32) for split in ("train", "val")}
            labels = {split: np.zeros(2, np.int64) for split in rows}
            make_features(path, {split: {"res5": each} for split, each in rows.items()}, labels)
        return [result("res5", self.top1.get(pipeline.name, 0.5))]

    def watch(self, *, k: int = 20, **options: Any) -> Watch:
        store = self.folder / "features"
        base = make_pipeline({"name": "p", "store": str(store)}, {"evaluate.knn.k": [k]}, where="p.yaml")
        return Watch(
            **{
                "folder": self.folder / "runs", "pattern": "", "store": store, "run": self.run,
                "load": lambda path, name: base.model_copy(update={"name": name}),
                "curve": load_curve(store, "p", self.folder / "runs"), "settings": digest_of_settings(base),
                "sleep": lambda seconds: self.during_sleep(), **options,
            }
        )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "runs").mkdir()
    return Run(tmp_path)


def test_each_checkpoint_is_evaluated_once_also_after_a_restart(run: Run) -> None:
    for epoch in (9, 10):
        checkpoint(run.folder / f"runs/epoch{epoch}.pth", at=OLD + epoch)
    (run.folder / "runs/log.txt").touch()
    checkpoint(run.folder / "runs/.epoch11.pth")
    first = run.watch()
    assert [(point.epoch, point.state) for point in first.look()] == [(9, "done"), (10, "done")]
    assert list(first.look()) == []
    checkpoint(run.folder / "runs/epoch11.pth")
    again = run.watch()
    assert [point.file for point in again.look()] == ["epoch11.pth"]
    assert [point.epoch for point in again.curve.points] == [9, 10, 11]
    assert run.names == ["p-epoch9", "p-epoch10", "p-epoch11"]


def test_files_that_are_being_written_are_waited_for(run: Run) -> None:
    growing, whole = run.folder / "runs/epoch1.pth", checkpoint(run.folder / "runs/epoch2.pth")
    content = checkpoint(run.folder / "other/epoch1.pth").read_bytes()
    growing.write_bytes(content[:50])

    def grow() -> None:
        growing.write_bytes(content[:100])

    run.during_sleep = grow
    watch = run.watch()
    assert [point.file for point in watch.look()] == [whole.name]
    run.during_sleep = lambda: None
    assert list(watch.look()) == [], "half a file, written to just now: not broken yet"
    growing.write_bytes(content)
    assert [(point.file, point.state) for point in watch.look()] == [("epoch1.pth", "done")]


def test_a_broken_file_is_named_once_and_skipped_until_it_changes(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    path = run.folder / "runs/epoch1.pth"
    path.write_bytes(b"no checkpoint")
    os.utime(path, (OLD, OLD))
    watch = run.watch()
    assert [(point.state, point.epoch) for point in watch.look()] == [("failed", 1)]
    assert list(watch.look()) == []
    assert list(run.watch().look()) == [], "nor after a restart"
    assert caplog.text.count("skipped until it changes") == 1
    checkpoint(path, at=OLD + 1)
    again = run.watch()
    assert [point.state for point in again.look()] == ["done"]


def test_what_failed_for_another_reason_is_tried_again_after_a_restart(run: Run) -> None:
    checkpoint(run.folder / "runs/epoch1.pth")
    run.fails = {"p-epoch1": StoreError("no space left")}
    watch = run.watch()
    assert [(point.state, point.error) for point in watch.look()] == [("failed", "no space left")]
    assert list(watch.look()) == []
    run.fails = {}
    assert [point.state for point in run.watch().look()] == ["done"]


def test_a_checkpoint_that_is_overwritten_gives_a_point_each_time(run: Run) -> None:
    path = run.folder / "runs/checkpoint.pth"
    for epoch in (1, 2, 2):
        checkpoint(path, epoch=epoch, at=OLD + len(run.names))
        assert len(list(run.watch().look())) == 1
    points = run.watch().curve.points
    assert [point.epoch for point in points] == [1, 2, 2]
    assert run.names[:2] == ["p-checkpoint", "p-checkpoint-epoch2"]
    assert len(set(run.names)) == 3


def test_links_to_a_checkpoint_are_not_evaluated_again(run: Run) -> None:
    checkpoint(run.folder / "runs/epoch=1-step=7.ckpt")
    (run.folder / "runs/last.ckpt").symlink_to("epoch=1-step=7.ckpt")
    (run.folder / "runs/gone.ckpt").symlink_to("nowhere.ckpt")
    (point,) = run.watch().look()
    assert (point.epoch, point.step, point.features) == (1, 7, "p-epoch1-step7")


def test_a_pattern_finds_folders_and_files_below(run: Run) -> None:
    for step in (999, 1999):
        checkpoint(run.folder / f"runs/training_{step}/teacher.pth")
    points = list(run.watch(pattern="training_*/teacher.pth").look())
    assert sorted((point.step, point.features) for point in points) == [
        (999, "p-training_999-teacher"), (1999, "p-training_1999-teacher"),
    ]  # fmt: skip


def test_other_settings_evaluate_all_again(run: Run) -> None:
    checkpoint(run.folder / "runs/epoch1.pth")
    list(run.watch().look())
    assert list(run.watch().look()) == []
    assert len(list(run.watch(k=5).look())) == 1


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ((), {"p-epoch1", "p-epoch2", "p-epoch3", "p-epoch4"}),
        (("best",), {"p-epoch1", "p-epoch2"}),
        (("last",), {"p-epoch1", "p-epoch4"}),
        (("best", "last"), {"p-epoch1", "p-epoch2", "p-epoch4"}),
    ],
)
def test_only_feature_sets_that_the_watch_made_are_removed(keep: tuple[str, ...], left: set[str], run: Run) -> None:
    """`p-epoch1` was there before."""
    run.top1 = {"p-epoch1": 0.1, "p-epoch2": 0.9, "p-epoch3": 0.2, "p-epoch4": 0.3}
    run.run(make_pipeline({"name": "p-epoch1", "store": str(run.folder / "features")}, where=""))
    for epoch in range(1, 5):
        checkpoint(run.folder / f"runs/epoch{epoch}.pth", at=OLD + epoch)
    watch = run.watch(keep=keep)
    assert len(list(watch.look())) == 4
    assert {path.name for path in (run.folder / "features").iterdir() if path.name != ".curves"} == left
    assert len(run.watch(keep=keep).curve.done) == 4, "the numbers stay"
    assert list(run.watch(keep=keep).look()) == [], "and are not computed again"


def test_a_feature_set_that_was_replaced_is_not_removed(run: Run) -> None:
    for epoch in (1, 2):
        checkpoint(run.folder / f"runs/epoch{epoch}.pth", at=OLD + epoch)
    list(run.watch().look())
    path = run.folder / "features/p-epoch1"
    make_features(
        path.with_name("other"), {s: {"x": np.ones((1, 1), np.float32)} for s in ("train", "val")},
        {s: np.zeros(1, np.int64) for s in ("train", "val")},
    )  # fmt: skip
    path.rename(path.with_name("moved"))
    path.with_name("other").rename(path)
    run.watch(keep=("last",)).clean_up()
    assert path.is_dir()


def sets_in(store: Path) -> set[str]:
    return {path.name for path in store.iterdir() if not path.name.startswith(".")}


def test_sets_of_others_and_of_other_folders_are_never_removed(run: Run) -> None:
    """Those of another training run's watch, those that `bench run` made, and what is no feature set."""
    store = run.folder / "features"
    other = run.watch(folder=run.folder / "others", curve=load_curve(store, "q", run.folder / "others"), keep=("last",))
    for epoch in (1, 2):
        checkpoint(run.folder / f"others/epoch{epoch}.pth", at=OLD + epoch)
        list(other.look())
    for name in ("p-epoch2", "p-epoch99"):
        run.run(make_pipeline({"name": name, "store": str(store)}, where=""))
    (store / "p-notes").mkdir()
    there = sets_in(store)
    assert there == {"q-epoch2", "p-epoch2", "p-epoch99", "p-notes"}
    for epoch in (2, 3, 4):
        checkpoint(run.folder / f"runs/epoch{epoch}.pth", at=OLD + epoch)
    assert len(list(run.watch(keep=("last",)).look())) == 3
    (run.folder / "runs/epoch4.pth").unlink()  # the training run removes its own checkpoints
    list(run.watch(keep=("last",)).look())
    assert sets_in(store) == there | {"p-epoch4"}


def test_a_set_that_somebody_evaluates_or_extracts_stays_until_they_are_done(run: Run) -> None:
    for epoch in (1, 2, 3):
        checkpoint(run.folder / f"runs/epoch{epoch}.pth", at=OLD + epoch)
    list(run.watch().look())
    store = run.folder / "features"
    first, second = (FeatureSet.open(store / f"p-epoch{epoch}") for epoch in (1, 2))
    watch = run.watch(keep=("last",))
    with claimed(first, CLUSTERS, "res5-4-0123456789abcdef"), second.lock():
        watch.clean_up()
        assert sets_in(store) == {"p-epoch1", "p-epoch2", "p-epoch3"}
        assert first.labels("train").size == 2
    assert not any(point.removed for point in run.watch().curve.points)
    watch.clean_up()
    assert sets_in(store) == {"p-epoch3"}


@pytest.mark.slow
def test_a_watch_that_was_killed_at_any_save_goes_on_and_keeps_the_same_sets(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each time that the curve is written, so also between removing a set and noting it."""
    store, saves = run.folder / "features", 0
    run.top1 = {"p-epoch2": 0.9}
    run.run(make_pipeline({"name": "p-epoch1", "store": str(store)}, where=""))
    for epoch in (1, 2, 3, 4):
        checkpoint(run.folder / f"runs/epoch{epoch}.pth", at=OLD + epoch)
    for at in range(40):
        saves = 0

        def save(folder: Path, saved: Curve, at: int = at) -> None:
            nonlocal saves
            saves += 1
            if saves > at % 2:
                if at % 4 > 1:
                    save_curve(folder, saved)
                raise KeyboardInterrupt
            save_curve(folder, saved)

        monkeypatch.setattr("featbench.pipelines.suites.watching.save_curve", save)
        try:
            list(run.watch(keep=("best", "last")).look())
            run.watch(keep=("best", "last")).clean_up()
        except KeyboardInterrupt:
            continue
        break
    else:
        pytest.fail("it never ends")
    assert sets_in(store) == {"p-epoch1", "p-epoch2", "p-epoch4"}
    assert [point.state for point in run.watch().curve.points] == ["done"] * 4
    assert [point.removed for point in run.watch().curve.points] == [False, False, True, False]


def test_one_watch_at_a_time(run: Run) -> None:
    with (
        only_watch(run.folder, "p"),
        pytest.raises(CurveError, match="another bench watch"),
        only_watch(run.folder, "p"),
    ):
        pass


def test_a_curve_is_that_of_one_folder_and_damage_is_said(run: Run) -> None:
    checkpoint(run.folder / "runs/epoch1.pth")
    list(run.watch().look())
    store = run.folder / "features"
    with pytest.raises(CurveError, match="is that of .*runs. Choose another --name"):
        load_curve(store, "p", run.folder)
    whole = json.loads((store / ".curves/p.json").read_text())
    for content in (b"{", b"[]", b'{"version": 1}', bytes(range(256)), b"[" * 100_000):
        (store / ".curves/p.json").write_bytes(content)
        with pytest.raises(CurveError, match="Move it away"):
            load_curve(store, "p", run.folder / "runs")
    odd = ({"epoch": "x"}, {"features": "../outside"}, {"state": "lost"}, {"records": [1]}, {"records": [{"task": 1}]})
    for change in (*odd, {"records": [{"task": "knn", "layer": "a", "top1": "high"}]}, {"size": None}):
        damaged = {**whole, "points": [{**whole["points"][0], **change}]}
        (store / ".curves/p.json").write_text(json.dumps(damaged))
        with pytest.raises(CurveError, match="Move it away"):
            load_curve(store, "p", run.folder / "runs")
    (store / ".curves/p.json").write_text('{"version": 99}')
    with pytest.raises(CurveError, match="newer version"):
        load_curve(store, "p", run.folder / "runs")


def test_the_csv_has_a_line_for_each_point_layer_and_setting(run: Run) -> None:
    checkpoint(run.folder / "runs/=epoch1.pth")
    list(run.watch().look())
    (row,) = csv.DictReader(io.StringIO((run.folder / "features/.curves/p.csv").read_text()))
    assert (row["epoch"], row["file"], row["layer"], row["k"], row["top1"]) == (
        "1",
        "'=epoch1.pth",
        "res5",
        "20",
        "0.5",
    )


@pytest.mark.parametrize(
    ("name", "saved", "expected"),
    [
        ("epoch=12-step=3400.ckpt", {}, (12, 3400)),  # Lightning
        ("name-1a2b-ep=99.ckpt", {}, (99, None)),  # solo-learn
        ("checkpoint_0199.pth.tar", {"epoch": 200}, (200, None)),  # MoCo
        ("checkpoint0080.pth", {"epoch": torch.tensor(81)}, (81, None)),  # DINO
        ("checkpoint0080.pth", {}, (80, None)),
        ("training_12499/teacher_checkpoint.pth", {}, (None, 12499)),  # DINOv2
        ("model_phase7.torch", {"phase_idx": 7, "iteration": 350}, (7, 350)),  # VISSL
        ("model_iteration1000.torch", {}, (None, 1000)),
        ("last.ckpt", {"epoch": 3, "global_step": 120}, (3, 120)),
        ("last.ckpt", {"epoch": 3.0, "global_step": "x", "step": True}, (3, None)),
        ("resnet50.pth", {"epoch": -1}, (None, None)),
        ("vit_small_16.pth", {}, (None, None)),
        ("steps_from_epoch99999999999999999.pth", {}, (None, None)),
    ],
)
def test_epoch_and_step_are_read_from_names_and_files(
    name: str, saved: dict[str, Any], expected: tuple[int | None, int | None]
) -> None:
    assert position_of(Path("run") / name, saved) == Position(*expected)


def curve(**scores: float) -> Curve:
    points = [
        Point(
            file=f"{name}.pth", size=1, modified_ns=at, settings="", features=name, epoch=at, state="done",
            records=(result("res4", score / 2), result("res5", score), result("res5", 0.99, k=1)),
        )
        for at, (name, score) in enumerate(scores.items())
    ]  # fmt: skip
    return Curve(name="p", folder="runs", points=points)


def test_the_table_has_a_row_for_each_checkpoint_and_marks_the_best() -> None:
    table = curve_table(curve(a=0.5, b=0.75, c=0.25))
    assert [column.name for column in table.columns] == ["epoch", "checkpoint", "res4", "res5"]
    assert table.rows[1] == ("1", "b.pth", "37.5", "75.0")
    assert table.bold == {(1, 3)}
    assert "k = 20" in table.title


def test_of_images_with_several_labels_the_curve_is_mean_average_precision() -> None:
    record = {"task": "multi_label", "layer": "res5", "protocol": "dino", "k": 10, "mean_ap": 0.25}
    point = Point(file="a.pth", size=1, modified_ns=1, settings="", features="a", state="done", records=(record,))
    table = curve_table(Curve(name="p", folder="runs", points=[point]))
    assert table.title == "p: mAP by dino, k = 10"
    assert table.rows == (("a.pth", "25.0"),)
    assert table.bold == {(0, 1)}


def test_hostile_names_are_escaped_in_the_table_and_survive_in_the_files(tmp_path: Path) -> None:
    hostile = "\x1b[2J[red]\u202e😀\udcff" + "x" * 300
    made = curve(**{hostile: 0.5})
    shown = as_text(curve_table(made), width=80).plain
    assert "\x1b" not in shown
    assert "\\x1b[2J[red]" in shown
    assert max(map(len, shown.splitlines())) <= 80
    save_curve(tmp_path, made)
    assert json.loads((tmp_path / ".curves/p.json").read_text())["points"][0]["file"] == f"{hostile}.pth"
    assert "\x1b" not in (tmp_path / ".curves/p.csv").read_text()


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("featbench.pipelines.suites.watching.SETTLE_S", 0.01)
    make_net(tmp_path)
    make_images(tmp_path / "photos", seed=0)
    for epoch in (9, 10):
        os.utime(save_checkpoint(tmp_path / f"runs/checkpoint{epoch}.pth", epoch, epoch=epoch), (OLD, OLD + epoch))
    return tmp_path


@pytest.mark.slow
def test_a_curve_equals_bench_run_on_each_checkpoint(training: Path, bench: Bench) -> None:
    watched = bench("watch", "runs", "--pipeline", "p.yaml", "--once", "--quiet", "--store", "w")
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.count("checkpoint9.pth") == 2, "the table is printed after each"
    points = json.loads((training / "w/.curves/small.json").read_text())["points"]
    assert [point["epoch"] for point in points] == [9, 10]
    for point in points:
        alone = bench(
            "run", "p.yaml", "--weights", f"runs/{point['file']}", "--name", point["features"], "--json", "--quiet",
        )  # fmt: skip
        records = json.loads(alone.stdout)
        assert len(records) == len(point["records"]) == 8
        for one, other in zip(point["records"], records, strict=True):
            assert {k: v for k, v in other.items() if k not in UNEQUAL} == {
                k: one.get(k) for k in other if k not in UNEQUAL
            }
    again = bench("watch", "runs", "--pipeline", "p.yaml", "--once", "--quiet", "--store", "w")
    assert again.returncode == 0
    assert again.stdout.count("checkpoint9.pth") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere: no such folder"),
        (("runs", "--keep", "worst"), "--keep must be all, best, last, or best,last"),
        (("runs", "--log-to", "tensorbord"), "Did you mean tensorboard?"),
        (("runs", "--pipeline", "none.yaml"), "no pipeline 'none.yaml'"),
        (("runs", "--pipeline", "p.yaml", "--k", "0"), "evaluate.knn.k"),
    ],
)
def test_what_can_not_be_watched_is_one_message(
    arguments: tuple[str, ...], said: str, training: Path, bench: Bench
) -> None:
    refused = bench("watch", *arguments, "--once", "--quiet")
    assert refused.returncode == 2
    assert said in refused.stderr


def test_ranks_of_a_launcher_are_refused(training: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_STEP_ID", "0"), ("SLURM_NTASKS", "2"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")):
        monkeypatch.setenv(name, value)
    refused = bench("watch", "runs", "--once")
    assert refused.returncode == 2
    assert "use --ranks or --gpus" in refused.stderr


def points_for_trackers() -> list[Point]:
    return curve(a=0.5, b=0.75).points


def test_numbers_reach_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from featbench.pipelines.suites.trackers import numbers_of

    send = open_tracker("tensorboard", store=tmp_path, curve="p", place=str(tmp_path / "tb"))
    for point in points_for_trackers():
        send(numbers_of(point), point, point.epoch)
    read = events.EventAccumulator(str(tmp_path / "tb"))
    read.Reload()
    found = [(each.step, round(each.value, 6)) for each in read.Scalars("knn/res5/dino_k20_T0.07/top1")]
    assert found == [(0, 0.5), (1, 0.75)]


def test_numbers_reach_mlflow_in_one_run_also_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    from featbench.pipelines.suites.trackers import numbers_of

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    for point in points_for_trackers():
        open_tracker("mlflow", store=tmp_path, curve="p", place="e")(numbers_of(point), point, point.epoch)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    history = client.get_metric_history(run.info.run_id, "knn/res5/dino_k20_T0.07/top1")
    assert sorted((each.step, each.value) for each in history) == [(0, 0.5), (1, 0.75)]
