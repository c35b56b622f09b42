"""`bench diagnose`: what the accuracies of feature sets do not say, and how alike their layers are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels, refuse_if_gone
from featbench.evaluate.features.layers import layers_of
from featbench.evaluate.knn.classification import Find
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.notices import each_once
from featbench.evaluate.results import Result
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.agreement import Representation, agreement, depths, refuse_unlike
from featbench.pipelines.evaluation.diagnosis import diagnosis
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.evaluation.run import EvaluationReport, save_report
from featbench.pipelines.ranks import alone, from_environment
from featbench.pipelines.terminal.progress import Progress
from featbench.store import FeatureSet


@each_once()
def diagnose(
    paths: Sequence[Path], config: EvaluateConfig, *, layers: Sequence[str] = (), progress: Progress
) -> EvaluationReport:
    """Diagnose layers of feature sets, all of them if none is named, and compare them with one another.

    Parameters
    ----------
    paths : sequence of Path
        Feature sets; several must have the same rows. The report is saved in the first.
    config : EvaluateConfig
        Settings.
    layers : sequence of str
        Of each of them.
    progress : Progress
        Shows how far it is.

    Raises
    ------
    BenchError
        If a feature set, a layer, a file or a setting does not allow it.
    """
    start = time.perf_counter()
    if len(set(paths)) < len(paths):
        raise EvaluationError("a feature set is named twice; name each once: its layers are compared, too")
    if len(paths) > 1 and config.diagnosis.suspects is not None:
        raise EvaluationError("--suspects lists the rows of one feature set: name one")
    sets = [FeatureSet.open(path) for path in paths]
    rank = from_environment() or alone()
    resources = resources_of(config, rank)
    name, protocol = next(iter(find_protocols(config.knn.protocol).items()))
    asked: dict[str, Any] = {"k": config.knn.k, "leave_one_out": config.knn.leave_one_out}
    results: list[Result] = []
    try:
        matched = [matched_labels(features, needed=False) for features in sets]
        refuse_unlike(list(zip(sets, matched, strict=True)))
        known: list[Representation] = []
        for features, labels in zip(sets, matched, strict=True):
            chosen = layers_of(features, features.find_layers(layers))
            find: Find = partial(find_neighbours, features, resources=resources)
            ours = [Representation(layer=layer, labels=labels, find=find, paths=features.paths) for layer in chosen]
            results += diagnosis(
                features, chosen, labels, config, resources=resources, progress=progress, is_first=not rank.rank
            )
            results += depths(
                ours, name=name, protocol=protocol, temperature=config.knn.temperature, progress=progress, **asked
            )  # fmt: skip
            known += ours
        if len(known) > 1:
            results += agreement(known, protocol=protocol, memory=resources.bytes, progress=progress, **asked)
    except OSError as error:
        for features in sets:
            refuse_if_gone(features)
        raise EvaluationError(f"{', '.join(map(str, paths))}: can't be read ({error})") from error
    if rank.rank:
        return EvaluationReport(features=sets[0], results=results, path=None, is_first=False)
    return save_report(sets[0], results, config.model_dump(mode="json"), start=start)
