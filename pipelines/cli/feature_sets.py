"""The feature sets of a store: `bench import`, `verify`, `ls` and `info`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featbench.pipelines.cli.display import Csv, Json, Latex, Markdown, chosen_format, print_results, show, show_facts
from featbench.pipelines.cli.options import FeatureSetName, Overwrite, Store

if TYPE_CHECKING:
    from featbench.store import FeatureSet

UNFINISHED = 3
"""Exit code of `bench verify` if chunks are still to be written and none is damaged."""


def import_(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the feature set.")],
    train: Annotated[
        Path | None,
        typer.Option("--train", metavar="FILE", help="Features and labels: .npz, .npy, .pt, .csv or .parquet."),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(
            "--val",
            metavar="FILE",
            help="The same for val, unless --train holds x_train and x_test; one split alone will do.",
        ),
    ] = None,
    train_labels: Annotated[
        Path | None,
        typer.Option("--train-labels", metavar="FILE", help="Labels in a separate file: one array, or a text file."),
    ] = None,
    val_labels: Annotated[Path | None, typer.Option("--val-labels", metavar="FILE", help="The same for val.")] = None,
    vissl: Annotated[Path | None, typer.Option("--vissl", metavar="FOLDER", help="VISSL's rank*_chunk*_*.npy.")] = None,
    dino: Annotated[
        Path | None, typer.Option("--dino", metavar="FOLDER", help="DINO's trainfeat.pth, testfeat.pth, ...")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", metavar="NAME", help="Name for the layer; with --vissl the layers to import, NAME=LAYER."
        ),
    ] = None,
    features_key: Annotated[
        str | None,
        typer.Option(
            "--features-key", metavar="NAME", help="Array with the features, or TRAIN,VAL; usual names by default."
        ),
    ] = None,
    labels_key: Annotated[
        str | None, typer.Option("--labels-key", metavar="NAME", help="Array with the labels, likewise.")
    ] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Import features without labels.")] = False,
    multi_label: Annotated[
        bool,
        typer.Option(
            "--multi-label",
            help="Rows have any number of classes: columns of 1, 0 and -1 (not known), or names such as cat;dog.",
        ),
    ] = False,
    copy_tolerance: Annotated[
        float,
        typer.Option(
            "--copy-tolerance",
            min=0,
            max=0.1,
            metavar="FRACTION",
            help="How far two copies of a row in VISSL's shards may differ, relative to the row's norm.",
        ),
    ] = 0.0,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="Store features as float32 or float16.")
    ] = "float32",
    store: Store = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a feature set of features computed elsewhere."""
    from featbench.pipelines.foreign.import_files import read_dino, read_files, read_labels
    from featbench.pipelines.foreign.importing import ImportingError, import_features
    from featbench.pipelines.foreign.vissl_shards import read_vissl
    from featbench.store.layers import layers_of, split_layers

    if dtype not in ("float32", "float16"):
        raise ImportingError(f"--dtype must be float32 or float16; got {dtype}")
    sources = {"--train": train or val, "--vissl": vissl, "--dino": dino}
    if sum(path is not None for path in sources.values()) != 1:
        raise ImportingError(
            "say what to import: --train and --val (with --train-labels and --val-labels if labels are in separate "
            "files), --vissl or --dino"
        )
    specs = layers_of(split_layers(layer or ""))
    if len(specs) > 1 and vissl is None:
        raise ImportingError(f"--layer: only --vissl can import several layers; got {layer}")
    usual = specs[0].name if specs else "features"
    label_files = {s: path for s, path in (("train", train_labels), ("val", val_labels)) if path is not None}
    if vissl is not None:
        labels = {split: read_labels(path, multi_label=multi_label) for split, path in label_files.items()}
        wanted = {spec.name: spec.tap if spec.pooling is None else spec.name for spec in specs}
        splits = read_vissl(vissl, wanted, label_files=labels, unlabelled=unlabelled, copy_tolerance=copy_tolerance)
    elif dino is not None:
        splits = read_dino(dino, layer=usual)
    else:
        files = {split: path for split, path in (("train", train), ("val", val)) if path is not None}
        keys = {"features_key": features_key, "labels_key": labels_key}
        splits = read_files(files, label_files, layer=usual, unlabelled=unlabelled, multi_label=multi_label, **keys)
    made = import_features(splits, store=store or Path("features"), name=name, dtype=dtype, overwrite=overwrite)
    counts = " and ".join(f"{info.num_rows:,} {split}" for split, info in made.manifest.splits.items())
    typer.echo(f"Imported {', '.join(made.manifest.layers)}: {counts} rows, in {made.path}")
    ways = {"train": f"--features {name} --leave-one-out", "val": f"--features OTHER --queries NAME={name}"}
    way = f"--features {name}" if len(made.manifest.splits) > 1 else ways[next(iter(made.manifest.splits))]
    typer.echo(f"Next: bench evaluate {way}" + (f" --store {store}" if store else ""))


def verify(
    name: FeatureSetName,
    store: Store = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mark damaged chunks as pending, to be extracted again.")
    ] = False,
) -> None:
    """Check every chunk of a feature set for damage.

    Exit code 0: complete and undamaged; 2: damaged; 3: undamaged, but chunks are still to be written.
    """
    from featbench.pipelines.cli.store_tables import fault_lines
    from featbench.store import FeatureSet, StoreError
    from featbench.store import verify as find_faults
    from featbench.store.verification import repair as put_back

    path = path_of(name, store)
    faults = list(find_faults(path))
    damage = [fault for fault in faults if not fault.is_pending]
    if not faults:
        typer.echo(f"{path}: no faults in {len(FeatureSet.open(path).records):,} chunks")
        return
    if not damage:
        features = FeatureSet.open(path)
        written, total = features.progress()
        typer.echo(
            f"{path}: unfinished, not damaged: {written:,} of {total:,} chunks are written, without faults.\n"
            f"{fault_lines(faults)}\n{features.how_to_finish}",
            err=True,
        )
        raise typer.Exit(UNFINISHED)
    listed = f"{path}: faults found: {len(damage)}\n{fault_lines(faults)}"
    if not repair:
        raise StoreError(f"{listed}\nMark them as pending with --repair; the next `bench extract` rewrites only those.")
    typer.echo(listed, err=True)
    done = put_back(path)
    left = [fault for fault in find_faults(path) if not fault.is_pending]
    typer.echo(
        f"Repaired, or marked as pending: {len(done)}. Run the same `bench extract` again to write what is pending."
    )
    if left:
        raise StoreError(f"{path}: cannot be repaired; extract again with --overwrite:\n{fault_lines(left)}")


def ls(
    store: Store = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """List the feature sets of a store, and how complete they are.

    With their sizes, and the best result that is recorded of each.
    """
    from featbench.pipelines.cli.store_tables import store_table
    from featbench.pipelines.housekeeping.listing import store_records
    from featbench.store.feature_set import feature_sets

    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    records = store_records(feature_sets(store_folder(store)))
    print_results([store_table(records)], records, form)


def info(
    name: FeatureSetName,
    store: Store = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """Show how a feature set was made, and what it holds."""
    from featbench.evaluate.clustering.kept import kept_clusterings
    from featbench.evaluate.neighbours.kept import kept_neighbours
    from featbench.pipelines.cli.cluster_tables import clustering_table
    from featbench.pipelines.cli.store_tables import (
        facts_table,
        info_facts,
        layer_records,
        layer_table,
        neighbours_table,
        without_long_hashes,
    )
    from featbench.store.paths import NEIGHBOURS, cached_folder
    from featbench.store.usage import size_on_disk

    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    features = open_features(name, store)
    facts, layers = info_facts(features), layer_records(features)
    kept, faults = kept_clusterings(features)
    lists = kept_neighbours(features)
    sizes = [size_on_disk(cached_folder(features.path, NEIGHBOURS, each.key)) for each in lists]
    tables = [layer_table(layers)]
    if lists:
        tables.append(neighbours_table(lists, sizes))
    if kept or faults:
        tables.append(clustering_table(kept, faults, path=features.path))
    if form == "text":
        show_facts(without_long_hashes(facts) if sys.stdout.isatty() else facts)
        return show(*tables)
    manifest = features.manifest
    content = {
        "path": str(features.path),
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
        "notes": dict(manifest.notes),
        "settings": dict(manifest.settings()),
        "layers": layers,
        "neighbours": [each.record() | {"bytes": size} for each, size in zip(lists, sizes, strict=True)],
        "clusterings": [each.record() for each in kept],
    }
    print_results([facts_table(facts), *tables], layers, form, content=content)


def store_folder(store: Path | None) -> Path:
    """Return the folder of feature sets, if it exists."""
    from featbench.store import StoreError

    folder = store or Path("features")
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder. Say where the feature sets are with --store")
    return folder


def open_features(name: str, store: Path | None) -> FeatureSet:
    """Open a feature set by its name, or its path."""
    from featbench.store import FeatureSet

    return FeatureSet.open(path_of(name, store))


def path_of(name: str, store: Path | None) -> Path:
    """Return the folder of a feature set by its name, or its path."""
    path = (store or Path("features")) / name
    return Path(name) if not path.exists() and Path(name).exists() else path
