"""What can be extracted: `bench models` and `bench layers`."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from pipelines.commands import show


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
    show(table)


def models() -> None:
    """List the trunks that can be asked for."""
    from extract.trunks import trunk_names

    typer.echo("\n".join(trunk_names()))
