"""Results for people and other programs: `bench protocols`, `compare`, `assign` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import Csv, Json, Latex, Markdown, chosen_format, print_results
from featbench.pipelines.cli.feature_sets import open_features, path_of
from featbench.pipelines.cli.options import (
    Ami,
    EvalLayers,
    FeatureSetName,
    K,
    KeptClusters,
    LeaveOneOut,
    Memory,
    Protocol,
    Quiet,
    SearchDevice,
    SearchPrecision,
    Select,
    Store,
    Temperature,
    counts_of,
    read_pipeline,
    settings_of,
)

STAGE_TWO = ("evaluate",)


def protocols(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]... | diff A B", help="Protocols to list, all by default; or two to compare."),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """List the kNN protocols, or how two of them differ.

    `bench protocols diff dino vissl` lists the differences.
    """
    from dataclasses import asdict

    from featbench.evaluate.errors import EvaluationError
    from featbench.evaluate.knn.protocols import PROTOCOLS, difference
    from featbench.pipelines.cli.knn_tables import difference_table, protocol_table
    from featbench.pipelines.config.protocols import find_protocols

    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    names = list(names or [])
    if names[:1] == ["diff"]:
        found = find_protocols(names[1:])
        if len(found) != 2:
            raise EvaluationError(f"bench protocols diff needs two protocols; got {len(found)}")
        (first, ours), (second, theirs) = found.items()
        rows = difference(ours, theirs)
        content: dict[str, Any] = {name: {first: a, second: b} for name, a, b in rows}
        records = [{"setting": name, first: a, second: b} for name, a, b in rows]
        return print_results([difference_table(first, second, rows)], records, form, content=content)
    found = find_protocols(names) if names else PROTOCOLS
    content = {name: asdict(rule) for name, rule in found.items()}
    records = [{"protocol": name} | fixed for name, fixed in content.items()]
    print_results([protocol_table(found, with_sources=bool(names))], records, form, content=content)


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME NAME...", help="Feature sets, or their paths; one of them twice to compare two of its layers."
        ),
    ],
    layers: EvalLayers = None,
    store: Store = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    select: Select = None,
    memory: Memory = None,
    search_device: SearchDevice = None,
    search_precision: SearchPrecision = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """Compare feature sets, or layers, on the same queries.

    Of two, every layer and k: the difference of top-1 with its 95% interval, and McNemar's test. Of more, or with
    --select, the best of each, all pairs with p-values corrected by Holm's method, and groups that do not differ.
    """
    settings = settings_of(compare, locals())
    set_level(True)
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    from featbench.evaluate.errors import EvaluationError
    from featbench.evaluate.results import uniform
    from featbench.pipelines.cli.knn_tables import comparison_table, ranking_tables
    from featbench.pipelines.evaluation.compare import compare as compare_features
    from featbench.pipelines.evaluation.ranking import rank
    from featbench.store.layers import split_layers

    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    if len(names) < 2:
        raise EvaluationError(
            f"a comparison needs two feature sets; got {names[0]}. Name it twice to compare its layers"
        )
    sets = [open_features(name, store) for name in names]
    if len(sets) > 2 or config.knn.select:
        records = rank(sets, config, layers=split_layers(layers or ""))
        return print_results(ranking_tables(records), uniform(records), form, content=records)
    first, second = sets
    records = compare_features(first, second, config, layers=split_layers(layers or ""))
    print_results([comparison_table(records)], records, form)


def assign(
    name: FeatureSetName,
    clusters_of: Annotated[
        str, typer.Option("--clusters-of", metavar="NAME", help="Feature set with kept clusterings, or its path.")
    ],
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="LAYER,...",
            help="Layers, such as res5, or res5=THEIRS if the clustered one has another name; all by default.",
        ),
    ] = None,
    clusters: KeptClusters = None,
    ami: Ami = None,
    store: Store = None,
    memory: Memory = None,
    search_device: SearchDevice = None,
    search_precision: SearchPrecision = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
    quiet: Quiet = False,
) -> None:
    """Assign features to the clusters of another feature set.

    Reports how well they match the classes, as `bench evaluate --clusters` does, and keeps them for `bench export`.
    """
    settings = settings_of(assign, locals())
    set_level(quiet)
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    from featbench.pipelines.cli.tables import evaluation_tables
    from featbench.pipelines.evaluation.assigning import assign as assign_features
    from featbench.pipelines.terminal.progress import Progress

    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    report = assign_features(
        path_of(name, store), path_of(clusters_of, store), config, clusters=counts_of(clusters),
        layers=[each for each in (layers or "").split(",") if each], progress=Progress(quiet=quiet),
    )  # fmt: skip
    if not report.is_first:
        return
    print_results(evaluation_tables(report.results), report.records, form)
    if report.path and form == "text":
        typer.echo(f"Results and what made them are in {report.path}", err=True)


def export(
    name: FeatureSetName,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for the files.")] = Path("export"),
    what: Annotated[
        str | None,
        typer.Option(
            "--what",
            metavar="NAME,...",
            help="features, neighbours, predictions, clusters; by default neighbours,predictions, or all that the "
            "program of the format takes.",
        ),
    ] = None,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="npy, npz, parquet, vissl, or zarr (in place); csv of clusters; faiss of features or clusters; dino, "
            "embedding-atlas, fiftyone, tensorboard-projector for these.",
        ),
    ] = "npy",
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="FOLDER", help="For formats that show images: where they are now."),
    ] = None,
    projection: Annotated[
        str, typer.Option("--projection", metavar="NAME", help="For embedding-atlas: pca, or umap if it is installed.")
    ] = "pca",
    layers: EvalLayers = None,
    clusters: KeptClusters = None,
    store: Store = None,
    leave_one_out: LeaveOneOut = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    memory: Memory = None,
    search_device: SearchDevice = None,
    search_precision: SearchPrecision = None,
) -> None:
    """Write features, neighbours, predictions or clusters."""
    settings = settings_of(export, locals())
    set_level(True)
    from featbench.pipelines.evaluation.export import export as export_features
    from featbench.store.layers import split_layers

    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    written = export_features(
        open_features(name, store), config, out=out, what=contents_of(what, file_format), file_format=file_format,
        layers=split_layers(layers or ""), clusters=counts_of(clusters), images=images, projection=projection,
    )  # fmt: skip
    typer.echo("\n".join(map(str, written)))


def contents_of(what: str | None, file_format: str) -> list[str] | None:
    """Parse what to export; of arrays, neighbours and predictions by default, and None for the format's own."""
    if what is not None:
        return [each.strip() for each in what.split(",") if each.strip()]
    return ["neighbours", "predictions"] if file_format in ("npy", "npz", "parquet", "vissl", "zarr") else None
