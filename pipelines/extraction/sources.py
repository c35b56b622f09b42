"""The images of a pipeline, and those that a feature set was extracted from; no torch is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featbench.extract.errors import ImageError
from featbench.pipelines.config.pipeline import Pipeline, PipelineError, make_pipeline
from featbench.pipelines.config.trust import code_settings
from featbench.store import FeatureSet
from featbench.store.paths import LISTINGS

if TYPE_CHECKING:
    from featbench.extract.data.pictures import ImageSource


def sources_of(pipeline: Pipeline) -> dict[str, ImageSource]:
    """List both splits; long listings are cached in the store."""
    from featbench.extract.data.sources import open_sources

    return open_sources(**pipeline.data.model_dump(exclude={"name"}), cache=pipeline.store / LISTINGS)


def recorded_sources(features: FeatureSet, data: Mapping[str, Any], root: Path | None = None) -> dict[str, ImageSource]:
    """Open the data set of a feature set by the settings that its manifest records.

    Parameters
    ----------
    features : FeatureSet
        It may come from someone else, so what it records must not decide which code runs.
    data : mapping
        Recorded settings of the data set.
    root : Path, optional
        Folder of the images, if it is another one now.

    Raises
    ------
    ImageError
        If the settings are not valid, or would run the data set's own script.
    DataError
        If something is missing or empty.
    """
    moved = {} if root is None else {"root": str(root)}
    try:
        pipeline = make_pipeline(
            {"data": {**data, "name": None, **moved}}, {"store": str(features.path.parent)}, where="the manifest"
        )
    except PipelineError as error:
        raise ImageError(f"the data set's settings in the manifest are not valid: {error}") from error
    if "data.options.trust_remote_code" in code_settings(pipeline):
        raise ImageError("the data set's own script would have to run")
    return sources_of(pipeline)
