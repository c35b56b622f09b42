"""The `bench` command: which commands there are. What each does is in `featbench.pipelines.cli`."""

from __future__ import annotations

import typer

from featbench.pipelines.cli import feature_sets, models, planning, results, stages, vissl

app = typer.Typer(
    name="bench",
    help="How good are the frozen features of a vision model, layer by layer? Weighted kNN and k-means in two stages.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for command in (
    stages.extract,
    stages.evaluate,
    stages.run,
    planning.plan,
    results.compare,
    results.export,
    results.protocols,
    feature_sets.verify,
    feature_sets.ls,
    feature_sets.info,
    models.layers,
    models.models,
    vissl.import_vissl,
    planning.datasets,
    planning.schema,
):
    app.command()(command)
app.command("import")(feature_sets.import_)
