"""What can be extracted: `bench models` and `bench layers`."""

from __future__ import annotations

from typing import Annotated

import typer

from featbench.pipelines.cli.display import show


def layers(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [KEY=VALUE]...",
            help="Name of a trunk, such as resnet50, and settings of the model, such as model.options.depth=101 or "
            "'model.heads=[[mlp, {dims: [2048, 128]}]]'.",
        ),
    ],
    image_size: Annotated[int, typer.Option("--image-size", min=1, max=65536, help="Pixels of a side.")] = 224,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Say the GB of so many images, in float32.")
    ] = None,
) -> None:
    """List the taps of a model: name, VISSL's name for it, shape, and the numbers that are stored of an image."""
    from featbench.extract.model.taps import list_taps
    from featbench.pipelines.cli.tables import tap_table
    from featbench.pipelines.config.pipeline import make_pipeline, parse_overrides

    settings = {"model.trunk": words[0], **parse_overrides(words[1:])}
    model = make_pipeline({}, settings, where="command line").model
    taps = list_taps(model.trunk, model.options, heads=model.heads, image_size=image_size)
    show(tap_table(taps, images=images))
    typer.echo("A layer stores the mean over positions; with :Identity all its numbers.", err=True)


def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PART]", help="Only names with this in them, timm's included.")
    ] = None,
) -> None:
    """List the trunks that can be asked for; besides, `file.py:function` and `package.module:function`."""
    from featbench.extract.model.trunks import timm_names, trunk_names

    names = trunk_names() if pattern is None else [n for n in [*trunk_names(), *timm_names()] if pattern in n]
    typer.echo("\n".join(names))
