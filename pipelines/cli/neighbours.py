"""`bench neighbours`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import Csv, Json, Latex, Markdown, chosen_format, print_results
from featbench.pipelines.cli.feature_sets import open_features
from featbench.pipelines.cli.options import (
    FeatureSetName,
    LeaveOneOut,
    Memory,
    Protocol,
    SearchDevice,
    SearchPrecision,
    Store,
    Temperature,
    read_pipeline,
    settings_of,
)

if TYPE_CHECKING:
    from featbench.pipelines.neighbours.finding import Answer
    from featbench.pipelines.terminal.table import Table

STAGE_TWO = ("evaluate",)


def neighbours(
    name: FeatureSetName,
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE", help="A val image, by path, end of its path or row; or any image file."),
    ],
    k: Annotated[
        int | None, typer.Option("-k", "--k", metavar="K", help="Neighbours that are listed and vote; by default 10.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", "--layers", metavar="LAYER", help="A stored layer; by default the last.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Also draw them: a .png, .jpg or .webp file.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FOLDER", help="For --out: where the images are now.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="For an image file: where the weights are now.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="For an image file: where the model runs.")
    ] = "auto",
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="For an image file: run the code that the feature set refers to.")
    ] = False,
    store: Store = None,
    leave_one_out: LeaveOneOut = None,
    protocol: Protocol = None,
    temperature: Temperature = None,
    memory: Memory = None,
    search_device: SearchDevice = None,
    search_precision: SearchPrecision = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """Show the nearest train images of one image.

    With how they vote. For an image file that is not of val, the model is built again as the feature set says, and
    run on it.
    """
    settings = settings_of(neighbours, locals()) | ({} if k is None else {"evaluate.knn.k": [k]})
    set_level(True)
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    from featbench.evaluate.errors import EvaluationError
    from featbench.pipelines.neighbours.finding import neighbours_of

    if layer is not None and "," in layer:
        raise EvaluationError(f"--layer: the neighbours are those of one layer; got {layer}")
    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    features = open_features(name, store)
    answer = neighbours_of(features, image, config, layer=layer, weights=weights, device=device, trust_code=trust_code)
    if out is not None:
        from featbench.pipelines.extraction.pictures import Pictures
        from featbench.pipelines.neighbours.contact_sheet import save_picture

        split = "train" if config.knn.leave_one_out else "val"
        save_picture(answer, Pictures.of(features, images), out, split=split)
    print_results([neighbours_table(answer)], answer.rows(), form, content=answer.record())
    if out is not None and form == "text":
        typer.echo(f"The picture is {out}", err=True)


def neighbours_table(answer: Answer) -> Table:
    """Make the table of an answer."""
    from featbench.pipelines.cli.cells import yes_or_no
    from featbench.pipelines.terminal.table import Column, Table

    columns = (
        Column(name="rank"),
        Column(name="similarity"),
        Column(name="class", is_right=False),
        Column(name="same class", is_right=False, drop=2),
        Column(name="row", drop=3),
        Column(name="path", is_right=False),
    )
    rows = tuple(
        (
            str(each.rank),
            f"{each.similarity:.4f}",
            each.label or "-",
            yes_or_no(each.is_right),
            str(each.row),
            each.path,
        )
        for each in answer.neighbours
    )
    bold = frozenset((index, 2) for index, each in enumerate(answer.neighbours) if each.is_right)
    temperature = "" if answer.temperature is None else f", T = {answer.temperature:g}"
    setting = f"{answer.similarity}, protocol {answer.protocol}, k = {answer.k}{temperature}"
    return Table(
        title=f"{answer.features}: neighbours by layer {answer.layer}",
        columns=columns,
        rows=rows,
        notes=(_query_in_words(answer), *_vote_in_words(answer), f"{setting}; {answer.how}."),
        bold=bold,
    )


def _query_in_words(answer: Answer) -> str:
    row = "" if answer.query.row is None else f", row {answer.query.row}"
    label = "" if answer.label is None else f", class {answer.label}"
    return f"Query: {answer.query.path}{row}{label}."


def _vote_in_words(answer: Answer) -> list[str]:
    """Say how the neighbours vote, and whether that is right."""
    if not answer.votes:
        return []
    shares = ", ".join(f"{name} {100 * share:.1f}%" for name, share in answer.votes)
    if answer.label is None:
        return [f"Vote: {shares}."]
    verdict = "right" if answer.predicted == answer.label else f"wrong: it is {answer.label}"
    return [f"Vote: {shares} ({verdict})."]
