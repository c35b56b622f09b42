"""What can be run, and what it will take: `bench plan`, `bench datasets` and `bench schema`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import show, show_facts
from featbench.pipelines.cli.options import (
    EVALUATION,
    EXTRACTION,
    STORE,
    Arguments,
    TrustCode,
    read_pipeline,
    with_options,
)


@with_options(EXTRACTION, STORE, EVALUATION)
def plan(
    settings: dict[str, Any],
    words: Arguments = None,
    trust_code: TrustCode = False,
    probe: Annotated[
        float, typer.Option("--probe", metavar="SECONDS", help="How long the model is measured; 0: not at all.")
    ] = 10.0,
) -> None:
    """Check a pipeline and say what it will take of disk, memory and time; nothing is written."""
    from featbench.pipelines.plan import plan as make_plan
    from featbench.pipelines.plan import plan_lines
    from featbench.store import BenchError

    set_level(quiet=True)
    made = make_plan(read_pipeline(words, settings, may_run_code=trust_code), probe_seconds=probe)
    show_facts(list(plan_lines(made)), title=f"{made.name}: what it takes")
    if made.problems:
        raise BenchError(f"{made.name} cannot work:\n  " + "\n  ".join(made.problems))


def datasets() -> None:
    """List the data sets of the catalogue, with what is found of them on this machine."""
    from featbench.pipelines.cli.tables import dataset_table
    from featbench.pipelines.config.catalogue import catalogue_files, list_datasets

    show(dataset_table(list_datasets()))
    typer.echo(
        f"Say where one lies in {' or '.join(map(str, catalogue_files()[1:]))}: name: {{root: FOLDER}}", err=True
    )


def schema() -> None:
    """Print the JSON schema of pipeline files, by which editors complete and check them."""
    from featbench.pipelines.config.pipeline import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))
