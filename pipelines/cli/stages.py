"""The two stages: `bench extract`, `bench evaluate`, and `bench run` for both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from featbench.pipelines.cli.display import Csv, Format, Json, Latex, Markdown, chosen_format, print_results
from featbench.pipelines.cli.feature_sets import path_of
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
    Matrix,
    Memory,
    MiniBatch,
    Name,
    OnError,
    OnQueryError,
    Ood,
    Overwrite,
    Pca,
    PerClass,
    Precision,
    Protocol,
    Queries,
    QueryGpus,
    QueryRanks,
    Quiet,
    RandomWeights,
    Ranks,
    Retrieval,
    SearchDevice,
    SearchPrecision,
    Seeds,
    Select,
    SeveralWeights,
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
from featbench.pipelines.cli.running import evaluate_features, extract_features
from featbench.pipelines.cli.suites import matrix_of, read_members, run_suite, weights_among
from featbench.store.errors import BenchError

if TYPE_CHECKING:
    from featbench.pipelines.config.pipeline import Pipeline

STAGE_TWO = ("evaluate", "store", "name", "extract.ranks", "extract.gpus")
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
        extract_features(pipeline, overwrite=overwrite, quiet=quiet, profile=profile)


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
    on_error: OnQueryError = None,
    ranks: QueryRanks = None,
    gpus: QueryGpus = None,
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
    if features is not None and features != Path(features).name:
        path = path_of(features, store)
        settings |= {"name": path.name, "store": path.parent}
    pipeline = read_pipeline(words, settings, needed=features is None, only=STAGE_TWO, quiet=quiet)
    if (ranks or gpus) and not (pipeline.evaluate.knn.queries or pipeline.evaluate.knn.ood):
        raise BenchError(
            "--ranks and --gpus extract the images of --queries and --ood, and none are named. To divide the search "
            "and k-means, start the command by torchrun or srun"
        )
    from featbench.store.layers import split_layers

    _evaluate(pipeline, split_layers(layers or ""), form=form, quiet=quiet, trust_code=trust_code)


def run(
    words: Arguments = None,
    vissl_config: VisslConfig = None,
    vissl_root: VisslRoot = None,
    layers: Layers = None,
    weights: SeveralWeights = None,
    matrix: Matrix = None,
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
    profile: ShowProfile = False,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
    quiet: Quiet = False,
) -> None:
    """Do both stages, computing only what is missing.

    Several --weights, a --matrix, or a YAML file that has a matrix, are a suite: one run for each combination.
    """
    given = dict(locals())
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    if profile and form != "text":
        raise BenchError(f"--profile prints a table for people: leave out --{form}, or profile `bench extract`")
    words, files = weights_among(words, weights)
    varied = matrix_of(words, files, matrix)
    settings = settings_of(run, given | {"weights": None if varied or not files else files[0]})
    may_run_code = trust_code or dry_run
    if varied and profile:
        raise BenchError("--profile is of one extraction, not of a suite: leave it out, or run one of its members")
    if varied:
        members = read_members(words, settings, varied, quiet=quiet, may_run_code=may_run_code)
        if dry_run:
            return typer.echo("---\n".join(_settings_text(member.pipeline) for member in members), nl=False)
        return run_suite(members, overwrite=overwrite, form=form, quiet=quiet)
    pipeline = read_pipeline(words, settings, quiet=quiet, may_run_code=may_run_code)
    if dry_run:
        return _print_settings(pipeline)
    extract_features(pipeline, overwrite=overwrite, quiet=quiet, profile=profile, wait=True)
    _evaluate(pipeline, [spec.name for spec in pipeline.layers], form=form, quiet=quiet, trust_code=True)


def _print_settings(pipeline: Pipeline) -> None:
    typer.echo(_settings_text(pipeline), nl=False)


def _settings_text(pipeline: Pipeline) -> str:
    from featbench.pipelines.config.pipeline import as_yaml

    return as_yaml(pipeline)


def _evaluate(pipeline: Pipeline, layers: Sequence[str], *, form: Format, quiet: bool, trust_code: bool) -> None:
    report = evaluate_features(pipeline, layers, quiet=quiet, trust_code=trust_code)
    if not report.is_first:
        return
    from featbench.pipelines.cli.tables import evaluation_tables

    print_results(evaluation_tables(report.results), report.records, form)
    if report.path and form == "text":
        typer.echo(f"Results and what made them are in {report.path}", err=True)
