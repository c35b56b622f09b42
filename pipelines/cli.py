"""The `bench` command: each command parses, calls one function, prints.

Heavy imports live in the commands, so that `bench --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

app = typer.Typer(
    name="bench",
    help="How good are the frozen features of a vision model, layer by layer? Weighted kNN and k-means in two stages.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

STAGE_TWO = ("evaluate", "store", "name")
"""Settings that `bench evaluate` heeds."""

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PIPELINE] [KEY=VALUE]...",
        help="A pipeline (digits, folder, in1k, ... or a YAML file; by default bench.yaml here, or else digits), "
        "and settings that override it, such as model.trunk=resnet50.",
    ),
]
Store = Annotated[Path | None, typer.Option("--store", help="Folder of feature sets.", show_default="features")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the feature set; by default the pipeline's.")]
Layers = Annotated[
    str | None,
    typer.Option("--layers", help="Comma-separated, such as res4,res5 or 'res4:AvgPool2d(8,3,0),features.12'."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder with one folder of class folders for each split.")]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="State dict (.pth, .pt, .safetensors), or torchvision's by name: DEFAULT."),
]
RandomWeights = Annotated[
    int | None, typer.Option("--random-weights", metavar="SEED", help="Untrained weights; every result says so.")
]
TrainSplit = Annotated[str | None, typer.Option("--train-split", help="Name of the database's split.")]
ValSplit = Annotated[str | None, typer.Option("--val-split", help="Name of the queries' split.")]
OnError = Annotated[str | None, typer.Option("--on-error", help="What an unreadable image does: stop or skip.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images in a forward pass.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes that decode images.")]
Precision = Annotated[str | None, typer.Option("--precision", help="Of the forward pass: float32, bfloat16, float16.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Of the stored features: float32 or float16.")]
Device = Annotated[str | None, typer.Option("--device", help="Where the model runs: auto, cpu, cuda, cuda:1.")]
SearchDevice = Annotated[str | None, typer.Option("--search-device", help="Where faiss searches: auto, cpu or gpu.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a feature set of that name.")]
Protocol = Annotated[
    str | None, typer.Option("--protocol", help="Similarity and voting: dino, vissl, wu2018, solo, ...")
]
K = Annotated[str | None, typer.Option("--k", help="Neighbours that vote, comma-separated: 10,20,100,200.")]
Temperature = Annotated[str | None, typer.Option("--temperature", help="Comma-separated: 0.07,0.1.")]
Clusters = Annotated[
    str | None, typer.Option("--clusters", help="k-means with so many clusters: 100, or classes, or both.")
]


@app.command()
def extract(
    words: Words = None,
    layers: Layers = None,
    weights: Weights = None,
    random_weights: RandomWeights = None,
    data: Data = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    store: Store = None,
    name: Name = None,
    on_error: OnError = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    precision: Precision = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Stage one: run the model over both splits and store the layers' features."""
    pipeline = _pipeline(
        words,
        _extract_options(
            layers, weights, random_weights, data, train_split, val_split, store, name, on_error, batch_size, workers,
            precision, dtype, device,
        ),
    )  # fmt: skip
    _run_extraction(pipeline, overwrite=overwrite, quiet=quiet)


@app.command()
def evaluate(
    words: Words = None,
    features: Annotated[
        str | None, typer.Option("--features", help="Name of the feature set; by default the pipeline's.")
    ] = None,
    layers: Layers = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    clusters: Clusters = None,
    store: Store = None,
    search_device: SearchDevice = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Stage two: weighted kNN and k-means on the stored features; needs neither model nor images."""
    options = _evaluate_options(protocol, k, temperature, clusters, search_device)
    pipeline = _pipeline(
        words, options | _given({"store": store, "name": features}), needed=features is None, only=STAGE_TWO
    )
    _run_evaluation(pipeline, layers, as_json=as_json, quiet=quiet)


@app.command()
def run(
    words: Words = None,
    layers: Layers = None,
    weights: Weights = None,
    random_weights: RandomWeights = None,
    data: Data = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    store: Store = None,
    name: Name = None,
    on_error: OnError = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    precision: Precision = None,
    dtype: Dtype = None,
    device: Device = None,
    protocol: Protocol = None,
    k: K = None,
    temperature: Temperature = None,
    clusters: Clusters = None,
    search_device: SearchDevice = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Both stages, doing only what is missing."""
    pipeline = _pipeline(
        words,
        _extract_options(
            layers, weights, random_weights, data, train_split, val_split, store, name, on_error, batch_size, workers,
            precision, dtype, device,
        )
        | _evaluate_options(protocol, k, temperature, clusters, search_device),
    )  # fmt: skip
    _run_extraction(pipeline, overwrite=overwrite, quiet=quiet)
    _run_evaluation(pipeline, ",".join(spec.name for spec in pipeline.layer_specs), as_json=as_json, quiet=quiet)


@app.command("import")
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


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="Name of a feature set, or its path.")],
    store: Store = None,
    repair: Annotated[bool, typer.Option("--repair", help="Set damaged chunks back, to be extracted again.")] = False,
) -> None:
    """Check every chunk of a feature set against the journals."""
    from pipelines.report import fault_lines
    from store import StoreError
    from store import verify as find_faults
    from store.verify import repair as set_back

    features = _open(name, store)
    faults = list(find_faults(features))
    if not faults:
        typer.echo(f"{features.path}: no faults in {len(features.records):,} chunks")
        return
    listed = f"{features.path}: faults found: {len(faults)}\n{fault_lines(faults)}"
    if not repair:
        raise StoreError(f"{listed}\nSet damaged chunks back with --repair, then extract again: it mends just those.")
    typer.echo(listed, err=True)
    dropped = set_back(features, faults)
    features = _open(name, store)
    left = [fault for fault in find_faults(features) if "pending" not in fault.what]
    typer.echo(f"Records set back: {len(dropped)}. Run the same `bench extract` again to write their chunks.")
    if left:
        raise StoreError(f"{features.path}: beyond repair, extract again with --overwrite:\n{fault_lines(left)}")


@app.command()
def ls(store: Store = None) -> None:
    """List the feature sets of a store."""
    from pipelines.report import store_table
    from store import StoreError
    from store.feature_set import feature_sets

    folder = store or Path("features")
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder. Say where the feature sets are with --store")
    _print(store_table(feature_sets(folder)))


@app.command()
def info(name: Annotated[str, typer.Argument(help="Name of a feature set, or its path.")], store: Store = None) -> None:
    """Show what a feature set was made from, and how complete it is."""
    from pipelines.report import info_table

    _print(info_table(_open(name, store)))


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="Name of a trunk, such as resnet50.")],
    image_size: Annotated[int, typer.Option("--image-size", help="Pixels of a side.")] = 224,
) -> None:
    """List the taps of a model: name, VISSL's name for it, shape, numbers."""
    from rich.table import Table

    from extract.taps import list_taps

    table = Table(box=None, pad_edge=False)
    for column in ("tap", "also called", "shape", "numbers"):
        table.add_column(column, justify="right" if column == "numbers" else "left")
    for tap in list_taps(model, image_size=image_size):
        shape = " x ".join(map(str, tap.shape))
        table.add_row(tap.name, ", ".join(tap.aliases), shape, f"{math.prod(tap.shape):,}")
    _print(table)


@app.command()
def models() -> None:
    """List the trunks that can be asked for."""
    from extract.trunks import trunk_names

    typer.echo("\n".join(trunk_names()))


def _pipeline(
    words: list[str] | None, options: dict[str, Any], *, needed: bool = True, only: tuple[str, ...] = ()
) -> Pipeline:
    """Load the pipeline that the words name, with their overrides and the options on top.

    One that is not needed is looked for in `bench.yaml` alone, and is all defaults without it. `only`
    names the sections that may be overridden.
    """
    from pipelines.pipeline import LOCAL, PipelineError, load_pipeline, make_pipeline, parse_overrides

    words = list(words or [])
    is_named = bool(words) and ("=" not in words[0] or words[0].endswith((".yaml", ".yml")))
    name = words.pop(0) if is_named else None
    overrides = parse_overrides(words) | options
    stage_one = [key for key in overrides if key.partition(".")[0] not in only] if only else []
    if stage_one:
        raise PipelineError(
            f"{', '.join(stage_one)}: not a setting of stage two, which takes the features as they are. "
            f"Extract with it, under another --name, and evaluate that; or choose layers with --layers."
        )
    if needed or name or LOCAL.is_file():
        return load_pipeline(name, overrides)
    return make_pipeline({}, overrides, where="command line")


def _extract_options(
    layers: str | None,
    weights: str | None,
    random_weights: int | None,
    data: Path | None,
    train_split: str | None,
    val_split: str | None,
    store: Path | None,
    name: str | None,
    on_error: str | None,
    batch_size: int | None,
    workers: int | None,
    precision: str | None,
    dtype: str | None,
    device: str | None,
) -> dict[str, Any]:
    from store.layers import split_layers

    options = _given(
        {
            "layers": split_layers(layers) if layers else None,
            "data.root": data,
            "data.train_split": train_split,
            "data.val_split": val_split,
            "data.on_error": on_error,
            "store": store,
            "name": name,
            "extract.batch_size": batch_size,
            "extract.workers": workers,
            "extract.precision": precision,
            "extract.device": device,
            "storage.dtype": dtype,
        }
    )
    if weights is not None or random_weights is not None:
        # Given here, they replace whichever source the pipeline names.
        is_file = weights is not None and (Path(weights).exists() or "/" in weights or Path(weights).suffix != "")
        options["weights.file"] = weights if is_file else None
        options["weights.torchvision"] = weights if not is_file else None
        options["weights.random_seed"] = random_weights
    return options


def _evaluate_options(
    protocol: str | None, k: str | None, temperature: str | None, clusters: str | None, device: str | None
) -> dict[str, Any]:
    return _given(
        {
            "evaluate.knn.protocol": protocol,
            "evaluate.knn.k": _listed(k),
            "evaluate.knn.temperature": _listed(temperature),
            "evaluate.kmeans.clusters": _listed(clusters),
            "evaluate.device": device,
        }
    )


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def _listed(text: str | None) -> list[Any] | None:
    """Read a comma-separated list of numbers or words."""
    from pipelines.pipeline import parse_overrides

    return None if text is None else [parse_overrides([f"value={part}"])["value"] for part in text.split(",") if part]


def _run_extraction(pipeline: Pipeline, *, overwrite: bool, quiet: bool) -> None:
    _set_level(quiet)
    from pipelines.extraction import extract as extract_features
    from pipelines.progress import Progress

    try:
        report = extract_features(pipeline, overwrite=overwrite, progress=Progress(quiet=quiet))
    except KeyboardInterrupt:
        typer.echo("\nStopped. What was committed is safe; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    where = report.features.path
    if not report.new:
        typer.echo(f"Nothing to do: {', '.join(report.layers)} of {where} are complete.", err=True)
        return
    done = report.extracted
    typer.echo(
        f"Extracted {', '.join(report.new)}: {done.rows:,} images in {report.seconds:.0f} s, "
        f"{done.bytes / 2**20:,.1f} MiB in {where}. Weights: {report.weights}.",
        err=True,
    )
    if done.unreadable:
        typer.echo(f"Images that could not be read, left out of every evaluation: {len(done.unreadable)}", err=True)


def _run_evaluation(pipeline: Pipeline, layers: str | None, *, as_json: bool, quiet: bool) -> None:
    _set_level(quiet)
    from pipelines.evaluation import evaluate as evaluate_features
    from pipelines.progress import Progress
    from pipelines.report import evaluation_tables
    from store.layers import split_layers

    path = pipeline.store / pipeline.name
    chosen = split_layers(layers or "")
    report = evaluate_features(path, pipeline.evaluate, layers=chosen, progress=Progress(quiet=quiet))
    if as_json:
        typer.echo(json.dumps(report.records, indent=1))
    else:
        _print(evaluation_tables(report.records))
        if report.path:
            typer.echo(f"Kept with its provenance in {report.path}", err=True)


def _open(name: str, store: Path | None) -> Any:
    from store import FeatureSet

    path = (store or Path("features")) / name
    return FeatureSet.open(Path(name) if not path.exists() and Path(name).exists() else path)


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(renderable)


def _set_level(quiet: bool) -> None:
    logging.getLogger().setLevel(logging.WARNING if quiet else logging.INFO)
