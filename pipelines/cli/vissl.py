"""VISSL's YAML as it is: `bench import-vissl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_vissl(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... [config.KEY=VALUE]...",
            help="YAML files of VISSL's, each on top of the ones before, and overrides as VISSL takes them.",
        ),
    ],
) -> None:
    """Print the pipeline that a configuration of VISSL's nearest-neighbour benchmark means."""
    from featbench.pipelines.config.pipeline import make_pipeline
    from featbench.pipelines.foreign.vissl import is_override, read_vissl

    files = [Path(word) for word in words if not is_override(word)]
    where = " + ".join(map(str, files))
    translation = read_vissl(files, [word for word in words if is_override(word)])
    make_pipeline(dict(translation.settings), where=where)
    typer.echo(translation.to_yaml(where), nl=False)
