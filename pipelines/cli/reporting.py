"""`bench report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.feature_sets import path_of
from featbench.pipelines.cli.options import (
    EvalLayers,
    K,
    LeaveOneOut,
    Protocol,
    Quiet,
    Store,
    Temperature,
    read_pipeline,
    settings_of,
)

STAGE_TWO = ("evaluate",)


def report(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of feature sets, or their paths.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page, replaced if it exists.")] = Path(
        "report.html"
    ),
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    queries: Annotated[
        int | None,
        typer.Option("--queries", min=0, metavar="N", help="Queries shown with their neighbours; by default up to 48."),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option("--query", metavar="PATH", help="Also show this one, or those of a pattern; may be repeated."),
    ] = None,
    thumbnail: Annotated[
        int | None,
        typer.Option(
            "--thumbnail", min=0, max=1024, metavar="PIXELS", help="Side of pictures, 0 for none.  [default: 96]"
        ),
    ] = None,
    maps: Annotated[
        str, typer.Option("--map", metavar="NAME,...", help="Maps in two dimensions: pca, tsne, umap.")
    ] = "pca",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="Where the images are now, if they have moved.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="FOLDER", help="Also write the charts as SVG and PNG files.")
    ] = None,
    layers: EvalLayers = None,
    store: Store = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    leave_one_out: LeaveOneOut = None,
    quiet: Quiet = False,
) -> None:
    """Write an HTML page about feature sets, to look at.

    Accuracies, confusions, neighbours, clusters, and where they come from: one HTML file that needs no network, made
    from the neighbours, clusters and results that feature sets keep; nothing is searched again. Several feature sets of
    the same images are shown side by side.
    """
    settings = settings_of(report, locals())
    set_level(quiet)
    from featbench.evaluate.errors import EvaluationError
    from featbench.pipelines.report.report import Look, write_report
    from featbench.store.layers import split_layers

    if plots is not None and plots.exists() and not plots.is_dir():
        raise EvaluationError(f"{plots}: can't be written (it is a file); name a folder for the charts")
    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    written = write_report(
        [path_of(name, store) for name in names], config, out=out, layers=split_layers(layers or ""),
        look=Look(queries=queries, named=query or (), thumbnail=thumbnail, folder=data, maps=maps.split(",")),
        command=shlex.join(["bench", *sys.argv[1:]]),
    )  # fmt: skip
    typer.echo(f"{written.path}: {written.size / 1e6:.1f} MB")
    if plots is not None:
        from featbench.pipelines.report.plots import write_plots

        typer.echo(f"{plots}: {len(write_plots(written.charts, plots))} files")
    if open_:
        typer.launch(str(written.path.resolve()))
