"""Pipelines from VISSL's YAML: `bench import-vissl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_vissl(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... [config.KEY=VALUE]...",
            help="VISSL's YAML files, each overriding those before it, and overrides in VISSL's syntax.",
        ),
    ],
) -> None:
    """Translate VISSL's YAML into a pipeline, and print it.

    For configurations of VISSL's nearest-neighbour benchmark.
    """
    from featbench.pipelines.config.pipeline import make_pipeline
    from featbench.pipelines.foreign.vissl import is_override, read_vissl

    files = [Path(word) for word in words if not is_override(word)]
    where = " + ".join(map(str, files))
    translation = read_vissl(files, [word for word in words if is_override(word)])
    make_pipeline(dict(translation.settings), where=where)
    typer.echo(translation.to_yaml(where), nl=False)
