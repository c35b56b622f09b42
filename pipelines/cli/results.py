"""What is known, for people and other programs: `bench protocols`, `compare` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import Csv, Json, Latex, Markdown, chosen_format, print_results
from featbench.pipelines.cli.feature_sets import open_features
from featbench.pipelines.cli.options import EVALUATION, FeatureSetName, Layers, Store, read_pipeline, with_options

STAGE_TWO = ("evaluate",)
SETTINGS = ("protocol", "k", "temperature", "memory", "search_device", "search_precision")


def protocols(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[diff A B]", help="diff and two protocols; or those to list.")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """List what each protocol fixes, or how two differ: `bench protocols diff dino vissl`."""
    from dataclasses import asdict

    from featbench.evaluate.errors import EvaluationError
    from featbench.evaluate.knn.protocols import PROTOCOLS, difference
    from featbench.pipelines.cli.tables import difference_table, protocol_table
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


@with_options({name: EVALUATION[name] for name in SETTINGS})
def compare(
    settings: dict[str, Any],
    first: FeatureSetName,
    second: Annotated[str, typer.Argument(metavar="NAME", help="The other one; the same to compare two layers.")],
    layers: Layers = None,
    store: Store = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """Say whether one feature set, or layer, is better than another on the same queries."""
    set_level(True)
    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    from featbench.pipelines.cli.tables import comparison_table
    from featbench.pipelines.evaluation.compare import compare as compare_features
    from featbench.store.layers import split_layers

    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    sets = open_features(first, store), open_features(second, store)
    records = compare_features(*sets, config, layers=split_layers(layers or ""))
    print_results([comparison_table(records)], records, form)


@with_options({name: EVALUATION[name] for name in (*SETTINGS, "leave_one_out")})
def export(
    settings: dict[str, Any],
    name: FeatureSetName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")] = Path("export"),
    what: Annotated[
        str, typer.Option("--what", help="Comma-separated: features, neighbours, predictions.")
    ] = "neighbours,predictions",
    file_format: Annotated[str, typer.Option("--format", help="npy, npz, parquet, vissl, or zarr (in place).")] = "npy",
    layers: Layers = None,
    store: Store = None,
) -> None:
    """Write features, neighbours or predictions as files of another format."""
    set_level(True)
    from featbench.pipelines.evaluation.export import export as export_features
    from featbench.store.layers import split_layers

    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    written = export_features(
        open_features(name, store), config, out=out, what=what.split(","), file_format=file_format,
        layers=split_layers(layers or ""),
    )  # fmt: skip
    typer.echo("\n".join(map(str, written)))
