"""The two stages: `bench extract`, `bench evaluate`, and `bench run` for both."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import Csv, Format, Json, Latex, Markdown, chosen_format, print_results, show
from featbench.pipelines.cli.options import (
    Ami,
    AnyOf,
    Arguments,
    AsPublished,
    Bank,
    BatchSize,
    Center,
    Clusters,
    Compile,
    Concat,
    Data,
    Device,
    Diagnose,
    DryRun,
    Dtype,
    Duplicates,
    EvalLayers,
    Features,
    Gpus,
    GroupBy,
    Index,
    Init,
    K,
    Layers,
    LeaveOneOut,
    Memory,
    MiniBatch,
    Name,
    OnError,
    Ood,
    Overwrite,
    Pca,
    PerClass,
    Precision,
    Protocol,
    Queries,
    Quiet,
    RandomWeights,
    Ranks,
    Retrieval,
    SearchDevice,
    SearchPrecision,
    Seeds,
    Select,
    Shots,
    ShowProfile,
    Slurm,
    Spherical,
    StoreSetting,
    Subset,
    Suspects,
    Temperature,
    TrainSplit,
    Tries,
    TrustCheckpoint,
    TrustCode,
    ValSplit,
    VisslConfig,
    VisslRoot,
    Weights,
    Whiten,
    Workers,
    read_pipeline,
    settings_of,
)

if TYPE_CHECKING:
    from featbench.pipelines.config.pipeline import Pipeline

STAGE_TWO = ("evaluate", "store", "name")
"""Settings that `bench evaluate` heeds."""


def extract(
    words: Arguments = None,
    vissl_config: VisslConfig = None,
    vissl_root: VisslRoot = None,
    layers: Layers = None,
    weights: Weights = None,
    random_weights: RandomWeights = None,
    trust_checkpoint: TrustCheckpoint = None,
    data: Data = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    on_error: OnError = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    precision: Precision = None,
    compile_: Compile = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    gpus: Gpus = None,
    slurm: Slurm = None,
    device: Device = None,
    store: StoreSetting = None,
    name: Name = None,
    overwrite: Overwrite = False,
    trust_code: TrustCode = False,
    dry_run: DryRun = False,
    profile: ShowProfile = False,
    quiet: Quiet = False,
) -> None:
    """Store a model's features, layer by layer (stage one).

    Runs the model over both splits. What is stored already is not computed again.
    """
    settings = settings_of(extract, locals())
    pipeline = read_pipeline(words, settings, quiet=quiet, may_run_code=trust_code or dry_run)
    if dry_run:
        _print_settings(pipeline)
    else:
        _extract(pipeline, overwrite=overwrite, quiet=quiet, profile=profile)


def evaluate(
    words: Arguments = None,
    features: Features = None,
    store: StoreSetting = None,
    layers: EvalLayers = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    as_published: AsPublished = None,
    leave_one_out: LeaveOneOut = None,
    select: Select = None,
    queries: Queries = None,
    bank: Bank = None,
    ood: Ood = None,
    subset: Subset = None,
    any_of: AnyOf = None,
    retrieval: Retrieval = None,
    per_class: PerClass = None,
    duplicates: Duplicates = None,
    shots: Shots = None,
    tries: Tries = None,
    diagnose: Diagnose = None,
    group_by: GroupBy = None,
    suspects: Suspects = None,
    clusters: Clusters = None,
    init: Init = None,
    seeds: Seeds = None,
    mini_batch: MiniBatch = None,
    spherical: Spherical = None,
    ami: Ami = None,
    concat: Concat = None,
    center: Center = None,
    pca: Pca = None,
    whiten: Whiten = None,
    index: Index = None,
    memory: Memory = None,
    search_device: SearchDevice = None,
    search_precision: SearchPrecision = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate stored features by kNN and k-means (stage two).

    Needs neither the model nor the images.
    """
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    settings = settings_of(evaluate, locals())
    pipeline = read_pipeline(words, settings, needed=features is None, only=STAGE_TWO, quiet=quiet)
    from featbench.store.layers import split_layers

    _evaluate(pipeline, split_layers(layers or ""), form=form, quiet=quiet, trust_code=trust_code)


def run(
    words: Arguments = None,
    vissl_config: VisslConfig = None,
    vissl_root: VisslRoot = None,
    layers: Layers = None,
    weights: Weights = None,
    random_weights: RandomWeights = None,
    trust_checkpoint: TrustCheckpoint = None,
    data: Data = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    on_error: OnError = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    precision: Precision = None,
    compile_: Compile = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    gpus: Gpus = None,
    slurm: Slurm = None,
    device: Device = None,
    store: StoreSetting = None,
    name: Name = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    as_published: AsPublished = None,
    leave_one_out: LeaveOneOut = None,
    select: Select = None,
    queries: Queries = None,
    bank: Bank = None,
    ood: Ood = None,
    subset: Subset = None,
    any_of: AnyOf = None,
    retrieval: Retrieval = None,
    per_class: PerClass = None,
    duplicates: Duplicates = None,
    shots: Shots = None,
    tries: Tries = None,
    diagnose: Diagnose = None,
    group_by: GroupBy = None,
    suspects: Suspects = None,
    clusters: Clusters = None,
    init: Init = None,
    seeds: Seeds = None,
    mini_batch: MiniBatch = None,
    spherical: Spherical = None,
    ami: Ami = None,
    concat: Concat = None,
    center: Center = None,
    pca: Pca = None,
    whiten: Whiten = None,
    index: Index = None,
    memory: Memory = None,
    search_device: SearchDevice = None,
    search_precision: SearchPrecision = None,
    overwrite: Overwrite = False,
    trust_code: TrustCode = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
    quiet: Quiet = False,
) -> None:
    """Do both stages, computing only what is missing."""
    settings = settings_of(run, locals())
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    pipeline = read_pipeline(words, settings, quiet=quiet, may_run_code=trust_code or dry_run)
    if dry_run:
        return _print_settings(pipeline)
    _extract(pipeline, overwrite=overwrite, quiet=quiet)
    _evaluate(pipeline, [spec.name for spec in pipeline.layers], form=form, quiet=quiet, trust_code=True)


def _print_settings(pipeline: Pipeline) -> None:
    from featbench.pipelines.config.pipeline import as_yaml

    typer.echo(as_yaml(pipeline), nl=False)


def _extract(pipeline: Pipeline, *, overwrite: bool, quiet: bool, profile: bool = False) -> None:
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
    if profile and report.profiles:
        from featbench.pipelines.cli.profile_table import profile_table

        show(profile_table(report, pipeline))


def _evaluate(pipeline: Pipeline, layers: Sequence[str], *, form: Format, quiet: bool, trust_code: bool) -> None:
    set_level(quiet)
    from featbench.pipelines.cli.tables import evaluation_tables
    from featbench.pipelines.evaluation.run import evaluate as evaluate_features
    from featbench.pipelines.extraction.signals import Interrupted
    from featbench.pipelines.terminal.progress import Progress

    path = pipeline.store / pipeline.name
    try:
        report = evaluate_features(
            path, pipeline.evaluate, layers=layers, progress=Progress(quiet=quiet), trust_code=trust_code
        )
    except Interrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        typer.echo(
            "Stopped. Searches and passes of k-means that were done are kept; the same command goes on from there.",
            err=True,
        )
        raise typer.Exit(128 + signal.SIGINT) from None
    if not report.is_first:
        return
    print_results(evaluation_tables(report.results), report.records, form)
    if report.path and form == "text":
        typer.echo(f"Results and what made them are in {report.path}", err=True)
