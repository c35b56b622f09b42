"""Running the stages of a pipeline for a command: what it says of an extraction, and how it ends when it is stopped."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import show

if TYPE_CHECKING:
    from featbench.pipelines.config.pipeline import Pipeline
    from featbench.pipelines.evaluation.run import EvaluationReport


WHERE = {"ranks", "gpus", "slurm", "device", "workers"}
"""Settings of stage one that say where images are extracted, those of other queries included."""


def extract_features(
    pipeline: Pipeline, *, overwrite: bool, quiet: bool, profile: bool = False, wait: bool = False
) -> None:
    """Extract what is missing, and say what was done; a signal ends the command.

    With `wait`, other ranks of a launcher have done their work, too, when it returns.
    """
    set_level(quiet)
    from featbench.pipelines.extraction.run import extract, wait_for_others
    from featbench.pipelines.extraction.signals import Interrupted

    try:
        report = extract(pipeline, overwrite=overwrite, quiet=quiet)
        if wait:
            wait_for_others(report.features, list(report.layers))
    except Interrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(stopped.exit_code) from None
    where = report.features.path
    if not report.new:
        typer.echo(f"Nothing to do: {', '.join(report.layers)} of {where} are complete.", err=True)
        return
    typer.echo(
        f"Extracted {', '.join(report.new)}: {report.rows:,} images in {report.seconds:.0f} s, "
        f"{report.bytes / 2**20:,.1f} MiB in {where}. Weights: {report.weights}."
        + (f" {report.flatten}." if report.flatten else ""),
        err=True,
    )
    if report.unreadable:
        typer.echo(f"Images that could not be read, left out of every evaluation: {report.unreadable}", err=True)
    if profile and report.profiles:
        from featbench.pipelines.cli.profile_table import profile_table

        show(profile_table(report, pipeline))


def evaluate_features(
    pipeline: Pipeline, layers: Sequence[str], *, quiet: bool, trust_code: bool = True
) -> EvaluationReport:
    """Evaluate layers of the pipeline's feature set; a signal ends the command."""
    set_level(quiet)
    from featbench.pipelines.evaluation.query_sets import Extracting
    from featbench.pipelines.evaluation.run import evaluate
    from featbench.pipelines.extraction.signals import Interrupted
    from featbench.pipelines.terminal.progress import Progress

    path, settings = pipeline.store / pipeline.name, pipeline.extract.model_dump(include=WHERE)
    run = {key: value for key, value in settings.items() if value is not None}
    extracting = Extracting(run=run, trust_code=trust_code, quiet=quiet)
    try:
        return evaluate(path, pipeline.evaluate, layers=layers, progress=Progress(quiet=quiet), extracting=extracting)
    except Interrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        typer.echo(
            "Stopped. Searches and passes of k-means that were done are kept; the same command goes on from there.",
            err=True,
        )
        raise typer.Exit(128 + signal.SIGINT) from None
