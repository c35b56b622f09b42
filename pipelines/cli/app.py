"""The `bench` command: which commands there are. What each does is in `featbench.pipelines.cli`."""

from __future__ import annotations

from typing import Annotated

import typer

from featbench import __version__
from featbench.pipelines.cli import (
    diagnosing,
    doctor,
    feature_sets,
    housekeeping,
    models,
    neighbours,
    planning,
    recorded,
    reporting,
    results,
    stages,
    vissl,
    watching,
)
from featbench.pipelines.cli.command import PlainCommand

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "color": True,
    },  # else echo drops what is to be spelled out
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"bench {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Say how good the frozen features of a vision model are, layer by layer.

    Stage one, extract, stores them; stage two, evaluate, reports weighted kNN and k-means.
    """


for command, name in (
    (stages.extract, None),
    (stages.evaluate, None),
    (stages.run, None),
    (watching.watch, None),
    (planning.plan, None),
    (reporting.report, None),
    (diagnosing.diagnose, None),
    (recorded.results, None),
    (neighbours.neighbours, None),
    (results.compare, None),
    (results.assign, None),
    (results.export, None),
    (feature_sets.ls, None),
    (feature_sets.info, None),
    (housekeeping.du, None),
    (housekeeping.rm, None),
    (housekeeping.clean, None),
    (feature_sets.verify, None),
    (feature_sets.import_, "import"),
    (vissl.import_vissl, None),
    (models.layers, None),
    (models.models, None),
    (planning.datasets, None),
    (results.protocols, None),
    (planning.schema, None),
    (doctor.doctor, None),
):
    app.command(name, cls=PlainCommand)(command)
