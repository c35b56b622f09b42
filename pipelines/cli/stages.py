"""The two stages: `bench extract`, `bench evaluate`, and `bench run` for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import Csv, Format, Json, Latex, Markdown, chosen_format, print_results
from featbench.pipelines.cli.options import (
    EVALUATION,
    EXTRACTION,
    STORE,
    Arguments,
    DryRun,
    Layers,
    Overwrite,
    Quiet,
    Store,
    TrustCode,
    read_pipeline,
    with_options,
)

if TYPE_CHECKING:
    from featbench.pipelines.config.pipeline import Pipeline

STAGE_TWO = ("evaluate", "store", "name")
"""Settings that `bench evaluate` heeds."""


@with_options(EXTRACTION, STORE)
def extract(
    settings: dict[str, Any],
    words: Arguments = None,
    overwrite: Overwrite = False,
    trust_code: TrustCode = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Stage one: run the model over both splits and store the layers' features."""
    pipeline = read_pipeline(words, settings, quiet=quiet, may_run_code=trust_code or dry_run)
    if dry_run:
        _print_settings(pipeline)
    else:
        _extract(pipeline, overwrite=overwrite, quiet=quiet)


@with_options(EVALUATION)
def evaluate(
    settings: dict[str, Any],
    words: Arguments = None,
    features: Annotated[
        str | None, typer.Option("--features", help="Name of the feature set; by default the pipeline's.")
    ] = None,
    layers: Layers = None,
    store: Store = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
    quiet: Quiet = False,
) -> None:
    """Stage two: weighted kNN and k-means on the stored features; needs neither model nor images."""
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    where = {key: value for key, value in (("store", store), ("name", features)) if value is not None}
    pipeline = read_pipeline(words, settings | where, needed=features is None, only=STAGE_TWO, quiet=quiet)
    from featbench.store.layers import split_layers

    _evaluate(pipeline, split_layers(layers or ""), form=form, quiet=quiet)


@with_options(EXTRACTION, STORE, EVALUATION)
def run(
    settings: dict[str, Any],
    words: Arguments = None,
    overwrite: Overwrite = False,
    trust_code: TrustCode = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
    quiet: Quiet = False,
) -> None:
    """Both stages, doing only what is missing."""
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    pipeline = read_pipeline(words, settings, quiet=quiet, may_run_code=trust_code or dry_run)
    if dry_run:
        return _print_settings(pipeline)
    _extract(pipeline, overwrite=overwrite, quiet=quiet)
    _evaluate(pipeline, [spec.name for spec in pipeline.layers], form=form, quiet=quiet)


def _print_settings(pipeline: Pipeline) -> None:
    from featbench.pipelines.config.pipeline import as_yaml

    typer.echo(as_yaml(pipeline), nl=False)


def _extract(pipeline: Pipeline, *, overwrite: bool, quiet: bool) -> None:
    set_level(quiet)
    from featbench.pipelines.extraction.run import extract as extract_features
    from featbench.pipelines.extraction.signals import Interrupted

    try:
        report = extract_features(pipeline, overwrite=overwrite, quiet=quiet)
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


def _evaluate(pipeline: Pipeline, layers: Sequence[str], *, form: Format, quiet: bool) -> None:
    set_level(quiet)
    from featbench.pipelines.cli.tables import evaluation_tables
    from featbench.pipelines.evaluation.run import evaluate as evaluate_features
    from featbench.pipelines.terminal.progress import Progress

    path = pipeline.store / pipeline.name
    report = evaluate_features(path, pipeline.evaluate, layers=layers, progress=Progress(quiet=quiet))
    if not report.is_first:
        return
    print_results(evaluation_tables(report.results), report.records, form)
    if report.path and form == "text":
        typer.echo(f"Kept with its provenance in {report.path}", err=True)
