"""The options of the commands, each declared once, and which setting of the pipeline it overrides.

A command names the options that it takes in its signature, `k: K = None`; `settings_of` turns what was given into
values by dotted key, which override the pipeline's.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from featbench.pipelines.config.pipeline import Pipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setting:
    """Marks an option that overrides a setting of the pipeline.

    `settings_of` gathers those that were given. The help of such an option is the text of the setting's field, with
    its choices and its default, unless the option has one of its own.
    """

    key: str
    """Dotted, such as `extract.batch_size`."""

    is_list: bool = False
    """Whether the option takes comma-separated values, each of them YAML."""

    default: str = ""
    """What the help calls the default, if it is not the field's."""


NAMED = tuple(f"evaluate.knn.{name}" for name in ("queries", "subset", "any_of", "ood"))
"""Settings that are given as NAME=VALUE, repeatedly."""

# Every option is declared here once. A command lists those it takes in its signature.

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PIPELINE] [KEY=VALUE]...",
        help="A pipeline (digits, folder, in1k, ... or a YAML file; by default bench.yaml in this folder, or digits), "
        "and settings that override it, such as model.trunk=resnet50. Or VISSL's: config=NAME config.KEY=VALUE.",
        show_default=False,
    ),
]
FeatureSetName = Annotated[str, typer.Argument(metavar="NAME", help="Name of a feature set, or its path.")]
Store = Annotated[
    Path | None, typer.Option("--store", metavar="FOLDER", help="Folder of feature sets; by default features.")
]
EvalLayers = Annotated[
    str | None, typer.Option("--layers", metavar="LAYER,...", help="Stored layers, such as res4,res5; all by default.")
]
KeptClusters = Annotated[
    str | None,
    typer.Option("--clusters", metavar="N,...", help="Kept clusterings with this many clusters; all by default."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the pipeline with all its settings, and stop.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="Run code that bench.yaml, or a feature set whose model is run, refers to unasked."
    ),
]
ShowProfile = Annotated[
    bool, typer.Option("--profile", help="Print how busy each step was, which sets the pace, and what would help.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a feature set of that name.")]

# Where the feature set is.

StoreSetting = Annotated[Path | None, typer.Option("--store", metavar="FOLDER"), Setting("store")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME"), Setting("name", default="the pipeline's")]
Features = Annotated[str | None, typer.Option("--features", metavar="NAME"), Setting("name", default="the pipeline's")]

# Stage one.

VisslConfig = Annotated[
    str | None,
    typer.Option(
        "--vissl-config",
        metavar="FILE,...",
        help="VISSL's YAML files instead of a pipeline; config.KEY=VALUE overrides them.",
    ),
    Setting("vissl_config"),
]
VisslRoot = Annotated[
    Path | None,
    typer.Option(
        "--vissl-root",
        metavar="FOLDER",
        help="A checkout of VISSL, for config=NAME of its configurations; those of kNN are built in.",
    ),
    Setting("vissl_root"),
]
Layers = Annotated[
    str | None, typer.Option("--layers", metavar="LAYER,..."), Setting("layers", default="the pipeline's")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE|NAME",
        help="Checkpoint (.pth, .pt, .ckpt, .safetensors, Hugging Face folder), or torchvision weights by name: "
        "DEFAULT.",
    ),
    Setting("weights"),
]
SeveralWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="FILE|NAME",
        help="Checkpoint (.pth, .pt, .ckpt, .safetensors, Hugging Face folder), or torchvision weights by name: "
        "DEFAULT. Several, or a pattern such as 'runs/*.pth', are a suite.",
    ),
    Setting("weights"),
]
Matrix = Annotated[
    list[str] | None,
    typer.Option(
        "--matrix",
        metavar="KEY=VALUE,...",
        help="A setting that varies: one run for each value, or combination of them.",
    ),
]
RandomWeights = Annotated[int | None, typer.Option("--random-weights", metavar="SEED"), Setting("weights.random_seed")]
TrustCheckpoint = Annotated[bool | None, typer.Option("--trust-checkpoint"), Setting("weights.trust")]
Data = Annotated[Path | None, typer.Option("--data", metavar="FOLDER"), Setting("data.root")]
TrainSplit = Annotated[str | None, typer.Option("--train-split", metavar="NAME"), Setting("data.train_split")]
ValSplit = Annotated[str | None, typer.Option("--val-split", metavar="NAME"), Setting("data.val_split")]
OnError = Annotated[str | None, typer.Option("--on-error", metavar="ACTION"), Setting("data.on_error")]
BatchSize = Annotated[str | None, typer.Option("--batch-size", metavar="N|auto"), Setting("extract.batch_size")]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N"), Setting("extract.workers")]
Precision = Annotated[str | None, typer.Option("--precision", metavar="TYPE"), Setting("extract.precision")]
Compile = Annotated[str | None, typer.Option("--compile", metavar="MODE"), Setting("extract.compile")]
Dtype = Annotated[str | None, typer.Option("--dtype", metavar="TYPE"), Setting("storage.dtype")]
Ranks = Annotated[int | None, typer.Option("--ranks", metavar="N"), Setting("extract.ranks")]
Gpus = Annotated[int | None, typer.Option("--gpus", metavar="N"), Setting("extract.gpus")]
Slurm = Annotated[str | None, typer.Option("--slurm", metavar="KEY=VALUE,..."), Setting("extract.slurm")]
Device = Annotated[str | None, typer.Option("--device", metavar="DEVICE"), Setting("extract.device")]

# Stage two.

Protocol = Annotated[str | None, typer.Option("--protocol", metavar="NAME,..."), Setting("evaluate.knn.protocol")]
K = Annotated[str | None, typer.Option("--k", metavar="K,..."), Setting("evaluate.knn.k", is_list=True)]
Temperature = Annotated[
    str | None, typer.Option("--temperature", metavar="T,..."), Setting("evaluate.knn.temperature", is_list=True)
]
LeaveOneOut = Annotated[bool | None, typer.Option("--leave-one-out"), Setting("evaluate.knn.leave_one_out")]
Queries = Annotated[
    list[str] | None, typer.Option("--queries", metavar="NAME=SET|IMAGES"), Setting("evaluate.knn.queries")
]
OnQueryError = Annotated[
    str | None, typer.Option("--on-error", metavar="ACTION"), Setting("evaluate.knn.on_error", default="the bank's")
]
QueryRanks = Annotated[
    int | None,
    typer.Option("--ranks", metavar="N", help="Processes on this host that extract --queries and --ood together."),
    Setting("extract.ranks"),
]
QueryGpus = Annotated[
    int | None,
    typer.Option("--gpus", metavar="N", help="GPUs of this host that extract --queries and --ood together."),
    Setting("extract.gpus"),
]
Bank = Annotated[str | None, typer.Option("--bank", metavar="ROWS"), Setting("evaluate.knn.bank")]
Subset = Annotated[list[str] | None, typer.Option("--subset", metavar="NAME=FILE"), Setting("evaluate.knn.subset")]
AnyOf = Annotated[list[str] | None, typer.Option("--any-of", metavar="NAME=FILE"), Setting("evaluate.knn.any_of")]
Ood = Annotated[list[str] | None, typer.Option("--ood", metavar="NAME=SET|IMAGES"), Setting("evaluate.knn.ood")]
Select = Annotated[str | None, typer.Option("--select", metavar="HOW"), Setting("evaluate.knn.select")]
Diagnose = Annotated[bool | None, typer.Option("--diagnose"), Setting("evaluate.diagnosis.diagnose")]
GroupBy = Annotated[Path | None, typer.Option("--group-by", metavar="FILE"), Setting("evaluate.diagnosis.group_by")]
Suspects = Annotated[Path | None, typer.Option("--suspects", metavar="FILE"), Setting("evaluate.diagnosis.suspects")]
Share = Annotated[float | None, typer.Option("--share", metavar="FRACTION"), Setting("evaluate.diagnosis.share")]
Retrieval = Annotated[bool | None, typer.Option("--retrieval"), Setting("evaluate.knn.retrieval")]
AsPublished = Annotated[bool | None, typer.Option("--as-published"), Setting("evaluate.knn.as_published")]
PerClass = Annotated[bool | None, typer.Option("--per-class"), Setting("evaluate.knn.per_class")]
Duplicates = Annotated[float | None, typer.Option("--duplicates", metavar="COSINE"), Setting("evaluate.knn.duplicates")]
NearDuplicates = Annotated[
    float | None,
    typer.Option(
        "--duplicates",
        metavar="COSINE",
        help="Least cosine of two rows that --suspects lists as near-duplicates.  [default: 0.99]",
    ),
    Setting("evaluate.knn.duplicates"),
]
Shots = Annotated[str | None, typer.Option("--shots", metavar="N,..."), Setting("evaluate.knn.shots", is_list=True)]
Tries = Annotated[int | None, typer.Option("--tries", metavar="N"), Setting("evaluate.knn.tries")]
Clusters = Annotated[
    str | None, typer.Option("--clusters", metavar="N,..."), Setting("evaluate.kmeans.clusters", is_list=True)
]
Init = Annotated[str | None, typer.Option("--init", metavar="NAME|FILE"), Setting("evaluate.kmeans.init")]
Seeds = Annotated[int | None, typer.Option("--seeds", metavar="N"), Setting("evaluate.kmeans.seeds")]
MiniBatch = Annotated[int | None, typer.Option("--mini-batch", metavar="ROWS"), Setting("evaluate.kmeans.mini_batch")]
Spherical = Annotated[bool | None, typer.Option("--spherical"), Setting("evaluate.kmeans.spherical")]
Ami = Annotated[bool | None, typer.Option("--ami/--no-ami"), Setting("evaluate.kmeans.ami")]
Concat = Annotated[bool | None, typer.Option("--concat"), Setting("evaluate.derive.concatenate")]
Center = Annotated[bool | None, typer.Option("--center"), Setting("evaluate.derive.center")]
Pca = Annotated[int | None, typer.Option("--pca", metavar="N"), Setting("evaluate.derive.pca")]
Whiten = Annotated[bool | None, typer.Option("--whiten"), Setting("evaluate.derive.whiten")]
Index = Annotated[str | None, typer.Option("--index", metavar="FACTORY"), Setting("evaluate.index")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE"), Setting("evaluate.memory")]
SearchDevice = Annotated[str | None, typer.Option("--search-device", metavar="DEVICE"), Setting("evaluate.device")]
SearchPrecision = Annotated[
    str | None, typer.Option("--search-precision", metavar="TYPE"), Setting("evaluate.precision")
]


def settings_of(command: Callable[..., None], given: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what the options of a command say of the pipeline's settings, by dotted key.

    Parameters
    ----------
    command : function
        Whose parameters are annotated with the options above.
    given : mapping
        Its arguments by name; None for options that were not given.
    """
    from featbench.store.layers import split_layers

    settings: dict[str, Any] = {}
    for name, setting in settings_by_name(command).items():
        value = given[name]
        if value is None or value == []:
            continue
        if setting.key == "layers":
            value = split_layers(value)
        elif setting.key == "extract.slurm":
            value = dict(word.partition("=")[::2] for word in value.split(","))
        elif setting.key == "vissl_config":
            value = value.split(",")  # names of files, whatever YAML would make of them
        elif setting.key in NAMED:
            value = {name: place or name for name, _, place in (word.partition("=") for word in value)}
        elif setting.is_list:
            value = listed(value)
        settings[setting.key] = value
    weights = settings.pop("weights", None)
    if weights is not None:
        from featbench.pipelines.config.pipeline import weights_settings

        settings = weights_settings(weights) | settings
    elif "weights.random_seed" in settings:
        settings |= {"weights.file": None, "weights.torchvision": None}
    return settings


def settings_by_name(command: Callable[..., None]) -> dict[str, Setting]:
    """Settings that a command's options override, by parameter."""
    annotations = inspect.get_annotations(command, eval_str=True)
    return {
        name: mark
        for name, annotation in annotations.items()
        for mark in getattr(annotation, "__metadata__", ())
        if isinstance(mark, Setting)
    }


def listed(text: str) -> list[Any]:
    """Parse a comma-separated list of numbers or words."""
    from featbench.pipelines.config.pipeline import parse_overrides

    return [parse_overrides([f"value={part}"])["value"] for part in text.split(",") if part]


def counts_of(clusters: str | None) -> list[int]:
    """Parse the numbers of clusters of kept clusterings."""
    from featbench.store import BenchError

    words = [word.strip() for word in (clusters or "").split(",") if word.strip()]
    if wrong := [word for word in words if not word.isdecimal()]:
        raise BenchError(f"--clusters must be numbers of clusters, such as 100,1000; got {', '.join(wrong)}")
    return [int(word) for word in words]


def read_pipeline(
    words: list[str] | None,
    settings: Mapping[str, Any],
    *,
    needed: bool = True,
    only: tuple[str, ...] = (),
    quiet: bool = False,
    may_run_code: bool = True,
    is_member: bool = False,
) -> Pipeline:
    """Load the pipeline that the arguments name, and apply overrides and options.

    Parameters
    ----------
    words : list of str, optional
        Arguments of the command line: a pipeline and KEY=VALUE.
    settings : mapping
        From the options, by dotted key.
    needed : bool
        Whether there must be a pipeline; if not, it is `bench.yaml` of the working folder, or all defaults.
    only : tuple of str
        Sections, or settings by dotted key, that may be overridden; empty for all.
    quiet : bool
        Do not say which file was used.
    may_run_code : bool
        Whether a file of the working folder that was not named may make the command run code.
    is_member : bool
        Whether this is one run of a suite, whose file has a matrix.
    """
    words = list(words or [])
    settings = dict(settings)
    files, root = settings.pop("vissl_config", None) or [], settings.pop("vissl_root", None)
    from featbench.pipelines.foreign.words import sort_words

    given = sort_words(words)
    if files or given.names:
        from featbench.pipelines.cli.vissl import pipeline_from_vissl

        return pipeline_from_vissl(files, given, settings, root=root, quiet=quiet)
    from featbench.pipelines.config.pipeline import (
        DEFAULT,
        LOCAL,
        PipelineError,
        load_pipeline,
        make_pipeline,
        parse_overrides,
    )

    name = words.pop(0) if is_named(words) else None
    overrides = {**parse_overrides(words), **settings}
    stage_one = [key for key in overrides if not {key, key.partition(".")[0]} & set(only)] if only else []
    if stage_one:
        raise PipelineError(
            f"{', '.join(stage_one)}: not a setting of stage two, which uses stored features. "
            f"Extract again with it, under another --name; or choose stored layers with --layers."
        )
    if not (needed or name or LOCAL.is_file()):
        return make_pipeline({}, overrides, where="command line")
    if name is None and not LOCAL.is_file() and not quiet:
        typer.echo(f"No pipeline was named, so this is {DEFAULT}: scikit-learn's handwritten digits.", err=True)
    pipeline = load_pipeline(name, overrides, is_member=is_member)
    unnamed = _unnamed_files(name, pipeline)
    if unnamed and not quiet:
        typer.echo(f"Settings from {' and '.join(unnamed)} of this folder.", err=True)
    if unnamed and not may_run_code:
        from featbench.pipelines.config.trust import refuse_unnamed_code

        refuse_unnamed_code(pipeline, files=unnamed, named=overrides)
    return pipeline


def is_named(words: Sequence[str]) -> bool:
    """Whether the first of the arguments names a pipeline."""
    return bool(words) and ("=" not in words[0] or words[0].endswith((".yaml", ".yml")))


def _unnamed_files(name: str | None, pipeline: Pipeline) -> list[str]:
    """Files of the working folder that a pipeline was read from without being named."""
    from featbench.pipelines.config.catalogue import is_local
    from featbench.pipelines.config.pipeline import LOCAL

    found = [str(LOCAL)] if name is None and LOCAL.is_file() else []
    return found + (["datasets.yaml"] if pipeline.data.name and is_local(pipeline.data.name) else [])
