"""The options that stand for settings of the pipeline: each is said once, and shared by the commands that take it.

A command decorated with `with_options(table, ...)` gets those options on its command line, and what was
given of them as one argument, `settings`: values by dotted key, which override the pipeline's.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from featbench.pipelines.config.pipeline import Pipeline

logger = logging.getLogger(__name__)

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PIPELINE] [KEY=VALUE]...",
        help="A pipeline (digits, folder, in1k, ... or a YAML file; by default bench.yaml here, or else digits), "
        "and settings that override it, such as model.trunk=resnet50.",
    ),
]
Store = Annotated[Path | None, typer.Option("--store", help="Folder of feature sets.", show_default="features")]
FeatureSetName = Annotated[str, typer.Argument(metavar="NAME", help="Name of a feature set, or its path.")]
Layers = Annotated[
    str | None,
    typer.Option("--layers", help="Comma-separated, such as res4,res5 or 'res4:AvgPool2d(8,3,0),features.12'."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the pipeline with all its settings, and stop.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run code that a bench.yaml which was not named refers to.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a feature set of that name.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of the command line, and the setting that it overrides."""

    setting: str
    help: str
    type: type = str
    listed: bool = False
    """Comma-separated values, read one by one."""

    metavar: str | None = None
    show_default: str | bool = False

    def annotation(self, name: str) -> Any:
        """What typer reads."""
        flag = "--" + name.replace("_", "-")
        option = typer.Option(flag, help=self.help, metavar=self.metavar, show_default=self.show_default)
        return Annotated[self.type | None, option]


STORE: Mapping[str, Option] = {
    "store": Option(setting="store", type=Path, help="Folder of feature sets.", show_default="features"),
    "name": Option(setting="name", help="Name of the feature set; by default the pipeline's."),
}

EXTRACTION: Mapping[str, Option] = {
    "vissl_config": Option(
        setting="vissl_config",
        listed=True,
        metavar="FILE",
        help="VISSL's YAML as it is, comma-separated if several, instead of a pipeline; config.KEY=VALUE overrides it.",
    ),
    "layers": Option(
        setting="layers", help="Comma-separated, such as res4,res5 or 'res4:AvgPool2d(8,3,0),features.12'."
    ),
    "weights": Option(
        setting="weights",
        help="Checkpoint (.pth, .pt, .ckpt, .safetensors, hub folder), or torchvision's by name: DEFAULT.",
    ),
    "random_weights": Option(
        setting="weights.random_seed", type=int, metavar="SEED", help="Untrained weights; every result says so."
    ),
    "trust_checkpoint": Option(
        setting="weights.trust", type=bool, help="Load a file that needs more than tensors: executes code in it."
    ),
    "data": Option(
        setting="data.root",
        type=Path,
        help="Folder with one folder of class folders for each split, or a .tar or .zip of it.",
    ),
    "train_split": Option(setting="data.train_split", help="Name of the database's split."),
    "val_split": Option(setting="data.val_split", help="Name of the queries' split."),
    "on_error": Option(setting="data.on_error", help="What an unreadable image does: stop or skip."),
    "batch_size": Option(setting="extract.batch_size", type=int, help="Images in a forward pass."),
    "workers": Option(setting="extract.workers", type=int, help="Processes that decode images, of each rank."),
    "precision": Option(setting="extract.precision", help="Of the forward pass: float32, bfloat16, float16."),
    "dtype": Option(setting="storage.dtype", help="Of the stored features: float32 or float16."),
    "ranks": Option(setting="extract.ranks", type=int, help="Processes on this host that share the work."),
    "gpus": Option(setting="extract.gpus", type=int, help="GPUs of this host that share the work, one rank each."),
    "slurm": Option(
        setting="extract.slurm",
        metavar="KEY=VALUE,...",
        help="Submit a SLURM job: partition=gpu,nodes=2,gpus_per_node=8,time=24:00:00.",
    ),
    "device": Option(setting="extract.device", help="Where the model runs: auto, cpu, cuda, cuda:1."),
}

EVALUATION: Mapping[str, Option] = {
    "protocol": Option(setting="evaluate.knn.protocol", help="Comma-separated: dino,vissl,wu2018; or a YAML file."),
    "k": Option(setting="evaluate.knn.k", listed=True, help="Neighbours that vote, comma-separated: 10,20,100,200."),
    "temperature": Option(setting="evaluate.knn.temperature", listed=True, help="Comma-separated: 0.07,0.1."),
    "clusters": Option(
        setting="evaluate.kmeans.clusters",
        listed=True,
        help="k-means with so many clusters: 100, or classes, or both.",
    ),
    "leave_one_out": Option(setting="evaluate.knn.leave_one_out", type=bool, help="Classify train by train itself."),
    "retrieval": Option(setting="evaluate.knn.retrieval", type=bool, help="Also R-precision, MAP@R and recall@k."),
    "per_class": Option(setting="evaluate.knn.per_class", type=bool, help="Also the accuracy of each class."),
    "duplicates": Option(
        setting="evaluate.knn.duplicates",
        type=float,
        help="Also accuracy without val images so near to train: 0.99.",
    ),
    "shots": Option(setting="evaluate.knn.shots", listed=True, help="Also with few labels: 1,5,10% of each class."),
    "tries": Option(setting="evaluate.knn.tries", type=int, help="Draws of the few labels."),
    "concat": Option(setting="evaluate.derive.concatenate", type=bool, help="All layers side by side, as one."),
    "center": Option(setting="evaluate.derive.center", type=bool, help="Subtract the mean of train first."),
    "pca": Option(setting="evaluate.derive.pca", type=int, help="Keep so many principal components of train."),
    "whiten": Option(setting="evaluate.derive.whiten", type=bool, help="Scale principal components to variance 1."),
    "index": Option(setting="evaluate.index", help="Search approximately: IVF4096,Flat:nprobe=16. Exact by default."),
    "memory": Option(setting="evaluate.memory", help="What stage two may take: 8GiB; by default half of what is free."),
    "search_device": Option(setting="evaluate.device", help="What searches: auto, cpu, gpu (faiss), faiss-cpu."),
    "search_precision": Option(
        setting="evaluate.precision",
        help="What it searches with: auto, float32 or low (bfloat16, on a GPU float16); results are the same.",
    ),
}


def with_options(*tables: Mapping[str, Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some tables; what was given of them reaches it as `settings`."""
    options = {name: option for table in tables for name, option in table.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        added = [
            inspect.Parameter(
                name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=option.annotation(name)
            )
            for name, option in options.items()
        ]
        shown = [parameter for parameter in own if parameter.name != "settings"]
        first = max(1, sum(parameter.default is parameter.empty for parameter in shown))
        parameters = [*shown[:first], *added, *shown[first:]]

        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            settings = settings_of({name: given.pop(name) for name in options}, options)
            command(settings=settings, **given)

        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def settings_of(given: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """Values by dotted key, of those options that were given."""
    from featbench.store.layers import split_layers

    settings: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name == "layers":
            value = split_layers(value)
        elif name == "slurm":
            value = dict(word.partition("=")[::2] for word in value.split(","))
        elif name == "vissl_config":
            value = value.split(",")  # names of files, whatever YAML would make of them
        elif options[name].listed:
            value = listed(value)
        settings[options[name].setting] = value
    weights = settings.pop("weights", None)
    if weights is not None or "weights.random_seed" in settings:
        # Given here, they replace whichever source the pipeline names.
        is_file = weights is not None and (Path(weights).exists() or "/" in weights or Path(weights).suffix != "")
        settings["weights.file"] = weights if is_file else None
        settings["weights.torchvision"] = weights if not is_file else None
        settings.setdefault("weights.random_seed", None)
    return settings


def listed(text: str) -> list[Any]:
    """Read a comma-separated list of numbers or words."""
    from featbench.pipelines.config.pipeline import parse_overrides

    return [parse_overrides([f"value={part}"])["value"] for part in text.split(",") if part]


def read_pipeline(
    words: list[str] | None,
    settings: Mapping[str, Any],
    *,
    needed: bool = True,
    only: tuple[str, ...] = (),
    quiet: bool = False,
    may_run_code: bool = True,
) -> Pipeline:
    """Load the pipeline that the words name, with their overrides and the options on top.

    Parameters
    ----------
    words : list of str, optional
        Of the command line.
    settings : mapping
        What the options say, by dotted key.
    needed : bool
        Whether there must be a pipeline; if not, it is `bench.yaml` of the working folder, or all defaults.
    only : tuple of str
        Sections that may be overridden; empty for all.
    quiet : bool
        Not to say which file of the working folder was taken.
    may_run_code : bool
        Whether a file of the working folder that was not named may refer to code that the command would run.
    """
    words = list(words or [])
    settings = dict(settings)
    files = settings.pop("vissl_config", None)
    if files:
        return _from_vissl(files, words, settings)
    from featbench.pipelines.config.pipeline import LOCAL, PipelineError, load_pipeline, make_pipeline, parse_overrides

    is_named = bool(words) and ("=" not in words[0] or words[0].endswith((".yaml", ".yml")))
    name = words.pop(0) if is_named else None
    overrides = {**parse_overrides(words), **settings}
    stage_one = [key for key in overrides if key.partition(".")[0] not in only] if only else []
    if stage_one:
        raise PipelineError(
            f"{', '.join(stage_one)}: not a setting of stage two, which takes the features as they are. "
            f"Extract with it, under another --name, and evaluate that; or choose layers with --layers."
        )
    if not (needed or name or LOCAL.is_file()):
        return make_pipeline({}, overrides, where="command line")
    pipeline = load_pipeline(name, overrides)
    unnamed = _unnamed_files(name, pipeline)
    if unnamed and not quiet:
        typer.echo(f"Settings from {' and '.join(unnamed)} of this folder.", err=True)
    if unnamed and not may_run_code:
        from featbench.pipelines.config.trust import refuse_unnamed_code

        refuse_unnamed_code(pipeline, files=unnamed, named=overrides)
    return pipeline


def _from_vissl(files: list[str], words: list[str], settings: Mapping[str, Any]) -> Pipeline:
    from featbench.pipelines.config.pipeline import make_pipeline, parse_overrides
    from featbench.pipelines.foreign.vissl import is_override, read_vissl

    translation = read_vissl([Path(file) for file in files], [word for word in words if is_override(word)])
    if translation.ignored:
        logger.info("keys of VISSL's without a meaning here: %s", ", ".join(translation.ignored))
    overrides = {**parse_overrides([word for word in words if not is_override(word)]), **settings}
    return make_pipeline(translation.settings, overrides, where=" + ".join(files))


def _unnamed_files(name: str | None, pipeline: Pipeline) -> list[str]:
    """Files of the working folder that a pipeline was taken from though nobody named them."""
    from featbench.pipelines.config.catalogue import is_local
    from featbench.pipelines.config.pipeline import LOCAL

    found = [str(LOCAL)] if name is None and LOCAL.is_file() else []
    return found + (["datasets.yaml"] if pipeline.data.name and is_local(pipeline.data.name) else [])
