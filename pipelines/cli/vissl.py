"""Pipelines from VISSL's YAML and commands: `bench import-vissl`, and `config=NAME` of the other commands."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featbench.pipelines.foreign.words import VisslWords, sort_words
from featbench.store import BenchError

if TYPE_CHECKING:
    from featbench.pipelines.config.pipeline import Pipeline
    from featbench.pipelines.foreign.vissl_launch import Launch

logger = logging.getLogger(__name__)


def import_vissl(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|config=NAME... [config.KEY=VALUE]...",
            help="VISSL's YAML files or names, each overriding those before it, and overrides in VISSL's syntax.",
        ),
    ],
    vissl_root: Annotated[
        Path | None, typer.Option("--vissl-root", metavar="FOLDER", help="A checkout of VISSL, for config=NAME.")
    ] = None,
) -> None:
    """Translate VISSL's YAML into a pipeline, and print it.

    For configurations of VISSL's nearest-neighbour benchmark.
    """
    from featbench.pipelines.config.pipeline import make_pipeline
    from featbench.pipelines.foreign.vissl_reading import read_vissl

    given = sort_words(words)
    files = [Path(word) for word in given.others]
    where = " + ".join([*map(str, files), *(f"config={name}" for name in given.names)])
    translation = read_vissl(files, given.overrides, names=given.names, root=vissl_root)
    make_pipeline(dict(translation.settings), where=where)
    typer.echo(translation.to_yaml(where), nl=False)


def pipeline_from_vissl(
    files: Sequence[str], given: VisslWords, settings: Mapping[str, Any], *, root: Path | None, quiet: bool
) -> Pipeline:
    """Make the pipeline that a command of VISSL's means, for the GPUs of this machine.

    Parameters
    ----------
    files : sequence of str
        VISSL's YAML files.
    given : VisslWords
        The words of the command line.
    settings : mapping
        From the options, by dotted key; they override everything else.
    root : Path, optional
        A checkout of VISSL.
    quiet : bool
        Do not list keys that have no effect.

    Raises
    ------
    BenchError
        If it can't be translated, or is for several machines and was not started by torchrun.
    """
    from featbench.pipelines.config.pipeline import make_pipeline, parse_overrides
    from featbench.pipelines.foreign.vissl_reading import read_vissl

    translation = read_vissl([Path(file) for file in files], given.overrides, names=given.names, root=root)
    if translation.ignored and not quiet:
        typer.echo(f"Keys of VISSL's without effect here: {', '.join(translation.ignored)}", err=True)
    where = " + ".join([*files, *(f"config={name}" for name in given.names)])
    overrides = {**parse_overrides(given.others), **settings}
    chosen = {"extract.ranks", "extract.gpus", "extract.slurm"} & set(overrides)
    launched = {} if chosen else _processes(translation.launch)
    return make_pipeline(translation.settings, {**launched, **overrides}, where=where)


def _processes(launch: Launch) -> dict[str, int]:
    """Settings of `extract` for as many processes as VISSL would start, as far as this machine has GPUs."""
    from featbench.pipelines.ranks import from_environment

    if from_environment() is not None or launch.slurm is not None:
        return {}
    if launch.nodes > 1:
        line = shlex.join(["extract", *sys.argv[2:]])
        raise BenchError(
            f"config.DISTRIBUTED.NUM_NODES={launch.nodes}: type this on each of the {launch.nodes} machines, which "
            f"share the folder of features:\n  "
            f"{launch.torchrun} -m featbench {line}\nThen, for the results, type "
            f"this command with config.DISTRIBUTED.NUM_NODES=1"
        )
    if (launch.ranks or 1) > 1:
        return {"extract.ranks": int(launch.ranks or 1)}
    wanted = launch.gpus or 1
    if wanted == 1:
        return {}
    import torch

    there = torch.cuda.device_count()
    if there < wanted and launch.is_typed:
        logger.warning("config.DISTRIBUTED.NUM_PROC_PER_NODE=%d: this machine has %d GPUs", wanted, there)
    return {"extract.gpus": min(wanted, there)} if there > 1 else {}
