"""`bench watch`: a curve over the checkpoints of a training run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import show
from featbench.pipelines.cli.options import (
    Clusters,
    Device,
    Gpus,
    K,
    Layers,
    Name,
    Protocol,
    Quiet,
    Ranks,
    Slurm,
    StoreSetting,
    Temperature,
    TrustCheckpoint,
    TrustCode,
    Workers,
    read_pipeline,
    settings_of,
)

if TYPE_CHECKING:
    from featbench.pipelines.config.pipeline import Pipeline
    from featbench.pipelines.suites.curve import Point
    from featbench.pipelines.suites.watching import Watch

SOME_FAILED = 1
"""Exit code of --once if a checkpoint could not be evaluated."""


def watch(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder in which a training run saves checkpoints.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that override the pipeline's.")
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            metavar="NAME|FILE",
            help="How each is evaluated; by default bench.yaml in this folder, or digits.",
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            metavar="PATTERN",
            help="Which files, below the folder, such as '*/teacher.pth'; by default all checkpoints directly in it.",
        ),
    ] = "",
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", min=1, help="Between two looks.")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, for cron; exit code 1 if some failed.")] = False,
    keep: Annotated[
        str, typer.Option("--keep", metavar="all|best,last", help="Remove the other feature sets that the watch made.")
    ] = "all",
    log_to: Annotated[
        list[str] | None,
        typer.Option(
            "--log-to",
            metavar="NAME[=WHERE]",
            help="tensorboard, wandb or mlflow; with TensorBoard's folder, W&B's project or MLflow's experiment.",
        ),
    ] = None,
    layers: Layers = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    clusters: Clusters = None,
    workers: Workers = None,
    ranks: Ranks = None,
    gpus: Gpus = None,
    slurm: Slurm = None,
    device: Device = None,
    store: StoreSetting = None,
    name: Name = None,
    trust_checkpoint: TrustCheckpoint = None,
    trust_code: TrustCode = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate each checkpoint that a training run saves.

    Prints kNN and k-means over epochs or steps after each, and keeps them in the store. Files that are still being
    written are waited for; what was done is skipped after a restart.
    """
    settings = settings_of(watch, locals())
    set_level(quiet)
    from featbench.pipelines.cli.suites import run_member
    from featbench.pipelines.config.pipeline import weights_settings
    from featbench.pipelines.ranks import from_environment
    from featbench.pipelines.suites.curve import load_curve, only_watch
    from featbench.pipelines.suites.watching import KEEP, Watch, WatchError, digest_of_settings

    kept = [word for word in keep.split(",") if word]
    if not kept or (kept != ["all"] and set(kept) - set(KEEP)):
        raise WatchError(f"--keep must be all, best, last, or best,last; got {keep}")
    if not folder.is_dir():
        raise WatchError(f"{folder}: no such folder. Give the one in which the training run saves its checkpoints")
    if from_environment() is not None:
        raise WatchError("bench watch starts its ranks itself: leave torchrun or srun out, and use --ranks or --gpus")

    arguments = [*([pipeline] if pipeline else []), *(words or [])]
    may_run_code = trust_code or pipeline is not None
    base = read_pipeline(arguments, settings, quiet=quiet, may_run_code=may_run_code)

    def load(file: Path, title: str) -> Pipeline:
        given = {**settings, **weights_settings(str(file)), "name": title}
        return read_pipeline(arguments, given, quiet=True, may_run_code=may_run_code)

    with only_watch(base.store, base.name):
        watched = Watch(
            folder=folder, pattern=pattern, load=load, store=base.store,
            run=lambda each: run_member(each, overwrite=False, quiet=quiet),
            curve=load_curve(base.store, base.name, folder), settings=digest_of_settings(base),
            trust=base.weights.trust, keep=[] if kept == ["all"] else kept,
            on_point=_logging(log_to or [], base.store, base.name),
        )  # fmt: skip
        watched.log_earlier()
        watched.clean_up()
        try:
            failed = follow(watched, every=every, once=once)
        except KeyboardInterrupt:
            typer.echo("Stopped. The same command goes on from there.", err=True)
            raise typer.Exit(128 + signal.SIGINT) from None
    if once and failed:
        raise typer.Exit(SOME_FAILED)


def follow(watched: Watch, *, every: float, once: bool) -> bool:
    """Look at the folder, once or again and again, and print the curve when it has changed; whether any failed."""
    from featbench.pipelines.cli.curve_table import curve_table

    has_failed, is_shown = False, False
    while True:
        for point in watched.look():
            has_failed |= point.state == "failed"
            show(curve_table(watched.curve))
            is_shown = True
        if not is_shown:
            show(curve_table(watched.curve))
            is_shown = True
        if once:
            return has_failed
        watched.sleep(every)


def _logging(places: Sequence[str], store: Path, curve: str) -> Callable[[Point], Point]:
    """What sends a point to trackers, and notes to which."""
    from dataclasses import replace

    from featbench.pipelines.suites.trackers import numbers_of, open_tracker

    named = {word.partition("=")[0]: word.partition("=")[2] for word in places}
    trackers = {name: open_tracker(name, store=store, curve=curve, place=place) for name, place in named.items()}
    count = 0

    def send(point: Point) -> Point:
        nonlocal count
        count += 1
        new = [name for name in trackers if name not in point.logged]
        value = point.position.value
        for name in new:
            trackers[name](numbers_of(point), point, count if value is None else value)
        return replace(point, logged=(*point.logged, *new)) if new else point

    return send
