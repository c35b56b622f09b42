"""What is known, for people and other programs: `bench protocols`, `compare` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from featbench.pipelines.cli import set_level, show
from featbench.pipelines.cli.feature_sets import open_features
from featbench.pipelines.cli.options import EVALUATION, FeatureSetName, Json, Layers, Store, read_pipeline, with_options

STAGE_TWO = ("evaluate",)
SETTINGS = ("protocol", "k", "temperature", "memory", "search_device", "search_precision")


def protocols(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[diff A B]", help="diff and two protocols; or those to list.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what each protocol fixes, or how two differ: `bench protocols diff dino vissl`."""
    from dataclasses import asdict

    from featbench.evaluate.errors import EvaluationError
    from featbench.evaluate.knn.protocols import PROTOCOLS, difference
    from featbench.pipelines.cli.tables import difference_table, protocol_table
    from featbench.pipelines.config.protocols import find_protocols

    names = list(names or [])
    if names[:1] == ["diff"]:
        found = find_protocols(names[1:])
        if len(found) != 2:
            raise EvaluationError(f"bench protocols diff needs two protocols; got {len(found)}")
        (first, ours), (second, theirs) = found.items()
        rows = difference(ours, theirs)
        if as_json:
            typer.echo(json.dumps({name: {first: a, second: b} for name, a, b in rows}, indent=1))
        else:
            show(difference_table(first, second, rows))
        return
    found = find_protocols(names) if names else PROTOCOLS
    if as_json:
        typer.echo(json.dumps({name: asdict(rule) for name, rule in found.items()}, indent=1))
    else:
        show(protocol_table(found))


@with_options({name: EVALUATION[name] for name in SETTINGS})
def compare(
    settings: dict[str, Any],
    first: FeatureSetName,
    second: Annotated[str, typer.Argument(metavar="NAME", help="The other one; the same to compare two layers.")],
    layers: Layers = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Say whether one feature set, or layer, is better than another on the same queries."""
    set_level(True)
    from featbench.pipelines.cli.tables import comparison_table
    from featbench.pipelines.evaluation.compare import compare as compare_features
    from featbench.store.layers import split_layers

    config = read_pipeline(None, settings, needed=False, only=STAGE_TWO).evaluate
    sets = open_features(first, store), open_features(second, store)
    records = compare_features(*sets, config, layers=split_layers(layers or ""))
    if as_json:
        typer.echo(json.dumps(records, indent=1))
    else:
        show(comparison_table(records))


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
