"""What lies in a store: `bench import`, `verify`, `ls` and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands import show
from pipelines.options import FeatureSetName, Overwrite, Store

if TYPE_CHECKING:
    from store import FeatureSet


def import_(
    name: Annotated[str, typer.Option("--name", help="Name of the feature set.")],
    train: Annotated[Path | None, typer.Option("--train", help=".npz with features and labels, or .npy.")] = None,
    val: Annotated[Path | None, typer.Option("--val", help="The same of the queries.")] = None,
    train_labels: Annotated[Path | None, typer.Option("--train-labels", help="Labels that belong to a .npy.")] = None,
    val_labels: Annotated[Path | None, typer.Option("--val-labels", help="The same of the queries.")] = None,
    vissl: Annotated[Path | None, typer.Option("--vissl", help="Folder of VISSL's rank*_chunk*_*.npy.")] = None,
    dino: Annotated[
        Path | None, typer.Option("--dino", help="Folder of DINO's trainfeat.pth, testfeat.pth, ...")
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", help="What to call the layer; for VISSL, those to take.")
    ] = None,
    features_key: Annotated[
        str, typer.Option("--features-key", help="Array of the .npz with the features.")
    ] = "features",
    labels_key: Annotated[str, typer.Option("--labels-key", help="Array of the .npz with the labels.")] = "labels",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the stored features: float32 or float16.")] = "float32",
    store: Store = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a feature set of features that were computed elsewhere."""
    from pipelines import importing
    from store.layers import layers_of, split_layers

    layer_names = [spec.name for spec in layers_of(split_layers(layer or ""))]
    usual = layer_names[0] if layer_names else "features"
    if vissl is not None:
        splits = importing.read_vissl(vissl, layer_names)
    elif dino is not None:
        splits = importing.read_dino(dino, layer=usual)
    elif train is not None and val is not None and train_labels is not None and val_labels is not None:
        splits = {
            "train": importing.read_npy(train, train_labels, layer=usual),
            "val": importing.read_npy(val, val_labels, layer=usual),
        }
    elif train is not None and val is not None:
        splits = {
            split: importing.read_npz(path, layer=usual, features_key=features_key, labels_key=labels_key)
            for split, path in (("train", train), ("val", val))
        }
    else:
        raise importing.ImportingError(
            "say what to import: --train and --val (with --train-labels and --val-labels for .npy), --vissl or --dino"
        )
    if dtype not in ("float32", "float16"):
        raise importing.ImportingError(f"--dtype must be float32 or float16; got {dtype}")
    made = importing.import_features(
        splits, store=store or Path("features"), name=name, dtype=dtype, overwrite=overwrite
    )
    counts = " and ".join(f"{info.num_rows:,} {split}" for split, info in made.manifest.splits.items())
    typer.echo(f"Imported {', '.join(splits['train'].layers)}: {counts} rows, in {made.path}")
    typer.echo(f"Next: bench evaluate --features {name}" + (f" --store {store}" if store else ""))


def verify(
    name: FeatureSetName,
    store: Store = None,
    repair: Annotated[bool, typer.Option("--repair", help="Set damaged chunks back, to be extracted again.")] = False,
) -> None:
    """Check every chunk of a feature set against the journals."""
    from pipelines.report import fault_lines
    from store import FeatureSet, StoreError
    from store import verify as find_faults
    from store.verify import repair as put_back

    path = path_of(name, store)
    faults = list(find_faults(path))
    if not faults:
        typer.echo(f"{path}: no faults in {len(FeatureSet.open(path).records):,} chunks")
        return
    listed = f"{path}: faults found: {len(faults)}\n{fault_lines(faults)}"
    if not repair:
        raise StoreError(f"{listed}\nSet damaged chunks back with --repair, then extract again: it mends just those.")
    typer.echo(listed, err=True)
    done = put_back(path)
    left = [fault for fault in find_faults(path) if "pending" not in fault.what]
    typer.echo(f"Mended or set back: {len(done)}. Run the same `bench extract` again to write what is pending.")
    if left:
        raise StoreError(f"{path}: beyond repair, extract again with --overwrite:\n{fault_lines(left)}")


def ls(store: Store = None) -> None:
    """List the feature sets of a store."""
    from pipelines.report import store_table
    from store import StoreError
    from store.feature_set import feature_sets

    folder = store or Path("features")
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder. Say where the feature sets are with --store")
    show(store_table(feature_sets(folder)))


def info(name: FeatureSetName, store: Store = None) -> None:
    """Show what a feature set was made from, and how complete it is."""
    from pipelines.report import info_table

    show(info_table(open_features(name, store)))


def open_features(name: str, store: Path | None) -> FeatureSet:
    """Open the feature set that a name, or a path, means."""
    from store import FeatureSet

    return FeatureSet.open(path_of(name, store))


def path_of(name: str, store: Path | None) -> Path:
    """Return the folder of the feature set that a name, or a path, means."""
    path = (store or Path("features")) / name
    return Path(name) if not path.exists() and Path(name).exists() else path
