"""Extract other images by the model of a feature set, as it records it, into a feature set that is kept inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featbench.extract.data.sources import NO_SPLIT
from featbench.extract.errors import ModelError, WeightsError
from featbench.pipelines.config.pipeline import Pipeline, make_pipeline
from featbench.pipelines.config.trust import code_settings, refuse_code
from featbench.pipelines.extraction.checking import check
from featbench.pipelines.extraction.computing import COMPUTED, form_of, graph_of
from featbench.pipelines.extraction.job import open_job
from featbench.pipelines.extraction.run import run_job, wait_for_others
from featbench.pipelines.extraction.same_model import NOT_THE_SAME, changed_layers, spec_of
from featbench.pipelines.extraction.sources import sources_of
from featbench.store import BenchError, FeatureSet, Manifest, MismatchError
from featbench.store.manifest import differing_models
from featbench.store.typing import Json


def extract_queries(
    bank: FeatureSet,
    layers: Sequence[str],
    path: Path,
    data: Mapping[str, Any],
    *,
    run: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    quiet: bool = False,
) -> FeatureSet:
    """Extract layers of images by the model, the weights and the transform of a feature set, unless they are kept.

    Ranks that torchrun or srun have started share the work, and each returns when all of it is done.

    Parameters
    ----------
    bank : FeatureSet
        Made by `bench extract`.
    layers : sequence of str
        Of the bank.
    path : Path
        Where the features are kept; what is missing of them is added.
    data : mapping
        Settings of the images, as in a pipeline's `data`.
    run : mapping, optional
        Settings of a pipeline's `extract` that say where it runs, such as `ranks`; by default in this process.
    trust_code : bool
        Whether code that the feature set names may be run.
    quiet : bool
        Show no progress.

    Raises
    ------
    BenchError
        If the model can't be built again, gives other features now, or other images are kept at `path`.
    Interrupted
        If a signal ended it before everything was done; what was committed is safe.
    """
    layers = with_graphs(bank.manifest, layers)
    pipeline = pipeline_of(bank, layers, path, data, run or {})
    if path.exists() and (kept := _complete(pipeline, bank, path)) is not None:
        return kept
    _refuse_code(bank, pipeline, trust_code=trust_code)
    try:
        checked = check(pipeline)
    except (ModelError, WeightsError) as error:
        raise type(error)(f"{bank.path}: its model can't be built again. {error}") from error
    if changes := differing_models(bank.manifest, checked.manifest):
        raise MismatchError(
            f"{bank.path}: the model or the transform is not what it was made with:\n  "
            + "\n  ".join(changes)
            + "\nGo back to those, or extract the bank again with --overwrite."
        )
    if changes := changed_layers(checked, bank.manifest):
        raise MismatchError(
            f"{bank.path}: {NOT_THE_SAME}:\n  " + "\n  ".join(changes) + "\nThe settings are the same, so the model's "
            "code or the version of a library must have changed: `bench info` shows the versions."
        )
    job = open_job(checked, computed=_computed(bank.manifest, layers))
    run_job(job, quiet=quiet)
    wait_for_others(job.features, list(job.layers))
    return FeatureSet.open(path)


def pipeline_of(
    bank: FeatureSet, layers: Sequence[str], path: Path, data: Mapping[str, Any], run: Mapping[str, Any]
) -> Pipeline:
    """Make the pipeline that extracts other images as a feature set was extracted; `run` says where.

    Raises
    ------
    BenchError
        If the feature set does not say how it was extracted, or its weights are gone.
    """
    recorded = bank.manifest.notes.get("pipeline")
    if not isinstance(recorded, dict):
        raise BenchError(
            f"{bank.path}: it was not made by `bench extract`, so its model can't be built again. Compute the queries' "
            f"features as these were, bring them in with `bench import --val`, and name that feature set"
        )
    settings = {key: value for key, value in recorded.items() if key not in ("evaluate", "data")}
    kept = {key: recorded["data"][key] for key in ("decoder", "on_error") if key in recorded.get("data", {})}
    settings |= {
        "name": path.name,
        "store": str(path.parent),
        "data": {**kept, **data, "train_split": NO_SPLIT},
        "extract": {**recorded.get("extract", {}), "ranks": None, "gpus": None, "slurm": None, "device": "auto", **run},
    }
    pipeline = make_pipeline(settings, where=f"the pipeline that {bank.path} records")
    file = pipeline.weights.file
    if file is not None and not file.exists():
        raise WeightsError(
            f"{file}: no such file, from which {bank.path} was extracted. Put it back"
            + ("" if file.is_absolute() else ", or run the command in the folder where that was done")
        )
    specs = tuple(spec_of(name, bank.layer_info(name)) for name in layers)
    return pipeline.model_copy(update={"layers": specs})


def with_graphs(manifest: Manifest, layers: Sequence[str]) -> list[str]:
    """Add the layers that the same compiled graphs compute: only the whole graph gives the same bits."""
    return list(dict.fromkeys(each for layer in layers for each in (layer, *(graph_of(manifest, layer) or ()))))


def _complete(pipeline: Pipeline, bank: FeatureSet, path: Path) -> FeatureSet | None:
    """Return what is kept, if nothing is missing, without building the model.

    Raises
    ------
    MismatchError
        If other images are kept there, or features of another model.
    """
    kept = FeatureSet.open(path)
    ways = f"Give these queries another name, or remove {path}"
    if differing_models(bank.manifest, kept.manifest):
        raise MismatchError(f"{path}: its features are of another model than {bank.path} has. {ways}")
    (source,) = sources_of(pipeline).values()
    found, was = source.rows.info(), kept.split("val")
    if (found.listing, found.class_names) != (was.listing, was.class_names):
        raise MismatchError(
            f"{path}: it has other images or labels, {was.num_rows:,} rows; {found.num_rows:,} are listed now. {ways}"
        )
    names = [spec.name for spec in pipeline.layers]
    is_whole = all(name in kept.manifest.layers for name in names) and not kept.pending(names)
    return kept if is_whole else None


def _refuse_code(bank: FeatureSet, pipeline: Pipeline, *, trust_code: bool) -> None:
    if not trust_code:
        refuse_code(
            code_settings(pipeline), why=f"extracting queries as {bank.path} was extracted would run code",
            cure="If you know where it comes from, add --trust-code.",
        )  # fmt: skip


def _computed(manifest: Manifest, layers: Sequence[str]) -> dict[str, Json]:
    """How the bank's layers were computed, eagerly or compiled and in which form, so that the queries' are likewise."""
    records = manifest.notes.get(COMPUTED, {})
    return {
        name: {
            **records.get(name, {}),
            "graph": list(graph_of(manifest, name) or ()),
            "form": form_of(manifest, name),
            "reason": "as the bank",
        }
        for name in layers
    }
