"""Sending the numbers of a curve to TensorBoard, Weights & Biases or MLflow, each an optional extra."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featbench.pipelines.suites.curve import NUMBERS, SCORES, Point
from featbench.store import BenchError, suggest
from featbench.store.paths import curve_file

TRACKERS = ("tensorboard", "wandb", "mlflow")


class TrackerError(BenchError):
    """A tracker that is not known, not installed, or can't be written to."""


Send = Callable[[dict[str, float], Point, int], None]
"""Sends numbers by name, of a point, at a position."""


def open_tracker(name: str, *, store: Path, curve: str, place: str = "") -> Send:
    """Open a tracker.

    Parameters
    ----------
    name : {"tensorboard", "wandb", "mlflow"}
    store : Path
        Folder of feature sets, in which TensorBoard's files are by default.
    curve : str
        Name of the curve, and of the tracker's run.
    place : str
        TensorBoard's folder, W&B's project, or MLflow's experiment.

    Raises
    ------
    TrackerError
        If it is not known, or not installed.
    """
    if name not in TRACKERS:
        raise TrackerError(f"--log-to must be tensorboard, wandb or mlflow; got {name}. {suggest(name, TRACKERS)}")
    opened = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name]
    try:
        return opened(store, curve, place)
    except ImportError as error:
        raise TrackerError(f"--log-to {name} needs it: pip install 'featbench[{name}]' ({error})") from error


def numbers_of(point: Point) -> dict[str, float]:
    """Name the numbers of a point: what was evaluated, and the metric.

    Examples
    --------
    >>> record = {"task": "knn", "layer": "res5", "protocol": "dino", "k": 20, "temperature": 0.07, "top1": 0.5}
    >>> numbers_of(Point(file="", size=0, modified_ns=0, settings="", features="", records=(record,)))
    {'knn/res5/dino_k20_T0.07/top1': 0.5}
    """
    found: dict[str, float] = {}
    for record in point.records:
        if record["task"] in SCORES:
            heat = record.get("temperature")
            setting = f"{record['protocol']}_k{record['k']}" + ("" if heat is None else f"_T{heat:g}")
            setting += "_train" if record.get("leave_one_out") else ""
        elif record["task"] == "kmeans":
            setting = f"{record['clusters']}_{record.get('split')}"
        else:
            continue
        for name in NUMBERS:
            if name in record:
                key = f"{record['task']}/{record['layer']}/{setting}/{name}"
                found[re.sub(r"[^A-Za-z0-9_.\-/ ]", "_", key)] = float(record[name])
    return found


def _tensorboard(store: Path, curve: str, place: str) -> Send:
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(place) if place else curve_file(store, curve, "tensorboard")
    writer = SummaryWriter(str(folder))

    def send(numbers: dict[str, float], point: Point, at: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, at)
        writer.flush()

    return send


def _wandb(store: Path, curve: str, place: str) -> Send:
    import wandb

    run_id = re.sub(r"[^A-Za-z0-9_-]", "_", curve)
    run: Any = wandb.init(project=place or "featbench", name=curve, id=run_id, resume="allow", dir=str(store))
    run.define_metric("position")
    run.define_metric("*", step_metric="position")

    def send(numbers: dict[str, float], point: Point, at: int) -> None:
        where = {"position": at, "epoch": point.epoch, "step": point.step, "checkpoint": point.file}
        run.log({**numbers, **{key: value for key, value in where.items() if value is not None}})

    return send


def _mlflow(store: Path, curve: str, place: str) -> Send:
    import mlflow

    experiment = mlflow.set_experiment(place or "featbench")
    client = mlflow.MlflowClient()
    same = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{curve}'", max_results=1)
    run = same[0] if same else client.create_run(experiment.experiment_id, run_name=curve)

    def send(numbers: dict[str, float], point: Point, at: int) -> None:
        for name, value in numbers.items():
            client.log_metric(run.info.run_id, name, value, step=at)

    return send
