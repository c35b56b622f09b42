"""Models and their layers: `bench models` and `bench layers`."""

from __future__ import annotations

from typing import Annotated

import typer

from featbench.pipelines.cli.display import show


def layers(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [KEY=VALUE]...",
            help="Name of a model, such as resnet50, and its settings, such as model.options.depth=101 or "
            "'model.heads=[[mlp, {dims: [2048, 128]}]]'.",
        ),
    ],
    image_size: Annotated[
        int, typer.Option("--image-size", metavar="N", min=1, max=65536, help="Height and width of an image.")
    ] = 224,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", min=1, help="Also the GB that this many images take, in float32."),
    ] = None,
) -> None:
    """List the layers of a model that can be stored.

    For each: its name, VISSL's name for it, its shape, and how many numbers are stored of one image.
    """
    from featbench.extract.model.taps import list_taps
    from featbench.pipelines.cli.store_tables import tap_table
    from featbench.pipelines.config.pipeline import make_pipeline, parse_overrides

    settings = {"model.trunk": words[0], **parse_overrides(words[1:])}
    model = make_pipeline({}, settings, where="command line").model
    taps = list_taps(model.trunk, model.options, heads=model.heads, image_size=image_size)
    show(tap_table(taps, images=images))
    typer.echo("A layer is stored as its mean over positions, or with :Identity in full.", err=True)


def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PART]", help="Only names that contain this, including timm's.")
    ] = None,
) -> None:
    """List the models that are known by name.

    Your own models are given as `file.py:function` or `package.module:function`.
    """
    from featbench.extract.model.trunks import timm_names, trunk_names

    names = trunk_names() if pattern is None else [n for n in [*trunk_names(), *timm_names()] if pattern in n]
    typer.echo("\n".join(names))
