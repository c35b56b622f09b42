"""What can be run, and what it will take: `bench plan`, `bench datasets` and `bench schema`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import show, show_facts
from featbench.pipelines.cli.options import (
    Ami,
    Arguments,
    BatchSize,
    Center,
    Clusters,
    Compile,
    Concat,
    Data,
    Device,
    Dtype,
    Duplicates,
    Gpus,
    Index,
    Init,
    K,
    Layers,
    LeaveOneOut,
    Memory,
    MiniBatch,
    Name,
    OnError,
    Pca,
    PerClass,
    Precision,
    Protocol,
    RandomWeights,
    Ranks,
    Retrieval,
    SearchDevice,
    SearchPrecision,
    Seeds,
    Shots,
    Slurm,
    Spherical,
    StoreSetting,
    Temperature,
    TrainSplit,
    Tries,
    TrustCheckpoint,
    TrustCode,
    ValSplit,
    VisslConfig,
    Weights,
    Whiten,
    Workers,
    read_pipeline,
    settings_of,
)


def plan(
    words: Arguments = None,
    vissl_config: VisslConfig = None,
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
    leave_one_out: LeaveOneOut = None,
    retrieval: Retrieval = None,
    per_class: PerClass = None,
    duplicates: Duplicates = None,
    shots: Shots = None,
    tries: Tries = None,
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
    probe: Annotated[
        float, typer.Option("--probe", metavar="SECONDS", help="How long to measure the model; 0 is not at all.")
    ] = 10.0,
) -> None:
    """Say what a pipeline takes of disk, memory and time.

    Checks data, model and weights, and runs the model for some seconds. Nothing is written.
    """
    settings = settings_of(plan, locals())
    from featbench.pipelines.plan import plan as make_plan
    from featbench.pipelines.plan import plan_lines
    from featbench.store import BenchError

    set_level(quiet=True)
    made = make_plan(read_pipeline(words, settings, may_run_code=trust_code), probe_seconds=probe)
    show_facts(list(plan_lines(made)), title=f"{made.name}: what it takes")
    if made.problems:
        raise BenchError(f"{made.name} cannot work:\n  " + "\n  ".join(made.problems))


def datasets() -> None:
    """List the known data sets, and which are on this machine."""
    from featbench.pipelines.cli.store_tables import dataset_table
    from featbench.pipelines.config.catalogue import catalogue_files, list_datasets

    show(dataset_table(list_datasets()))
    typer.echo(
        f"To give the root of one, add `NAME: {{root: FOLDER}}` to {' or '.join(map(str, catalogue_files()[1:]))}.",
        err=True,
    )


def schema() -> None:
    """Print the JSON schema of pipeline files.

    Editors use it to complete and check them.
    """
    from featbench.pipelines.config.pipeline import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))
