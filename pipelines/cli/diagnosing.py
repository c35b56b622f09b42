"""`bench diagnose`."""

from __future__ import annotations

from typing import Annotated

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import Csv, Json, Latex, Markdown, chosen_format, print_results
from featbench.pipelines.cli.feature_sets import path_of
from featbench.pipelines.cli.options import (
    EvalLayers,
    GroupBy,
    K,
    LeaveOneOut,
    Memory,
    NearDuplicates,
    Protocol,
    Quiet,
    SearchDevice,
    SearchPrecision,
    Share,
    Store,
    Suspects,
    Temperature,
    read_pipeline,
    settings_of,
)

STAGE_TWO = ("evaluate",)


def diagnose(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of feature sets, or their paths.")],
    layers: EvalLayers = None,
    store: Store = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    leave_one_out: LeaveOneOut = None,
    group_by: GroupBy = None,
    suspects: Suspects = None,
    share: Share = None,
    duplicates: NearDuplicates = None,
    memory: Memory = None,
    search_device: SearchDevice = None,
    search_precision: SearchPrecision = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
    quiet: Quiet = False,
) -> None:
    """Say what the accuracies of stored features hide.

    Calibration of the vote, hubs, intrinsic dimension, spectrum; likely label errors, duplicates and outliers; how
    alike layers and models are.
    """
    settings = settings_of(diagnose, locals()) | {"evaluate.diagnosis.diagnose": True}
    set_level(quiet)
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    from featbench.pipelines.cli.tables import evaluation_tables
    from featbench.pipelines.evaluation.diagnosing import diagnose as diagnose_features
    from featbench.pipelines.terminal.progress import Progress
    from featbench.store.layers import split_layers

    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    report = diagnose_features(
        [path_of(name, store) for name in names],
        config,
        layers=split_layers(layers or ""),
        progress=Progress(quiet=quiet),
    )
    if not report.is_first:
        return
    print_results(evaluation_tables(report.results), report.records, form)
    if config.diagnosis.suspects and form == "text":
        typer.echo(f"The rows to look at are in {config.diagnosis.suspects}", err=True)
    if report.path and form == "text":
        typer.echo(f"Results and what made them are in {report.path}", err=True)
