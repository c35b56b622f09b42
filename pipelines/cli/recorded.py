"""`bench results`: what all evaluations of a store have recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from featbench.pipelines.cli.display import Csv, Json, Latex, Markdown, chosen_format, print_results
from featbench.pipelines.cli.feature_sets import store_folder
from featbench.pipelines.cli.options import EvalLayers, Store

Names = str | None


def results(
    store: Store = None,
    features: Annotated[
        Names, typer.Option("--features", metavar="NAME,...", help="Of these feature sets; patterns such as epoch*.")
    ] = None,
    model: Annotated[Names, typer.Option("--model", metavar="NAME,...", help="Of these models; patterns, too.")] = None,
    data: Annotated[
        Names, typer.Option("--data", metavar="NAME,...", help="On these data sets; patterns, too.")
    ] = None,
    layers: EvalLayers = None,
    protocol: Annotated[Names, typer.Option("--protocol", metavar="NAME,...", help="By these protocols.")] = None,
    k: Annotated[Names, typer.Option("--k", metavar="K,...", help="With these numbers of neighbours.")] = None,
    task: Annotated[
        Names,
        typer.Option(
            "--task", metavar="NAME,...", help="knn, kmeans, multi_label (these by default), few_shot, ...; all."
        ),
    ] = None,
    since: Annotated[
        Names, typer.Option("--since", metavar="DATE|AGE", help="Recorded since 2026-11-01, or within 12h, 7d or 2w.")
    ] = None,
    best: Annotated[
        Names,
        typer.Option(
            "--best",
            metavar="WHAT",
            help="One row each: the best setting of each layer, the best layer of each feature set, or the best model "
            "on each data set.  [setting, layer, model]",
        ),
    ] = None,
    by: Annotated[str, typer.Option("--by", metavar="SCORE", help="What --best goes by, such as nmi.")] = "top1",
    every: Annotated[bool, typer.Option("--all", help="Also results that were recorded again later.")] = False,
    file_format: Annotated[
        Names,
        typer.Option("--format", metavar="NAME", help="CSV with timm's columns, or MTEB's JSON.  [timm, mteb]"),
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", metavar="FILE", help="Write the records of --json as a Parquet file.")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """List all results that are recorded in a store.

    Of all feature sets; each result once, as it was recorded last.
    """
    from featbench.pipelines.cli.recorded_table import recorded_table
    from featbench.pipelines.recorded.choosing import Choice, ChoiceError, latest, ordered, since_of
    from featbench.pipelines.recorded.choosing import best as best_of
    from featbench.pipelines.recorded.other_formats import FORMATS
    from featbench.pipelines.recorded.reading import recorded_results
    from featbench.store import suggest
    from featbench.store.feature_set import feature_sets

    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    if file_format is not None and file_format not in FORMATS:
        raise ChoiceError(f"--format must be timm or mteb; got {file_format}. {suggest(file_format, FORMATS)}")
    if (form != "text") + (file_format is not None) + (parquet is not None) > 1:
        raise ChoiceError("give only one of --format, --parquet, --json, --csv, --markdown and --latex")
    choice = Choice(
        features=_words(features), model=_words(model), data=_words(data), layers=_words(layers),
        protocol=_words(protocol), k=_counts(k), since=None if since is None else since_of(since),
        **({} if task is None else {"task": _words(task)}),
    )  # fmt: skip
    records = choice.of(recorded_results(feature_sets(store_folder(store))))
    records = ordered(records if every else latest(records))
    if best is not None or file_format is not None:
        records = best_of(records, best or "layer", by=by)
    if file_format is not None:
        return _print_as(file_format, records)
    if parquet is not None:
        from featbench.pipelines.evaluation.files import write_records

        return typer.echo(str(write_records(parquet, records)))
    print_results([recorded_table(records, is_best=best is not None, by=by)], records, form)


def _print_as(name: str, records: Sequence[dict[str, object]]) -> None:
    import json

    from featbench.pipelines.recorded.other_formats import mteb_results, timm_rows

    if name == "timm":
        return print_results([], timm_rows(records), "csv")
    typer.echo(json.dumps(mteb_results(records), indent=1))


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _counts(text: str | None) -> list[int]:
    from featbench.pipelines.recorded.choosing import ChoiceError

    words = _words(text)
    if wrong := [word for word in words if not word.isdecimal()]:
        raise ChoiceError(f"--k must be numbers of neighbours, such as 10,20; got {', '.join(wrong)}")
    return [int(word) for word in words]
