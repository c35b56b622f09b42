"""`bench diagnose`: what the accuracies of a feature set do not say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels, refuse_if_gone
from featbench.evaluate.features.layers import layers_of
from featbench.pipelines.evaluation.diagnosis import diagnosis
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.evaluation.run import EvaluationReport, save_report
from featbench.pipelines.ranks import alone, from_environment
from featbench.pipelines.terminal.progress import Progress
from featbench.store import FeatureSet


def diagnose(path: Path, config: EvaluateConfig, *, layers: Sequence[str] = (), progress: Progress) -> EvaluationReport:
    """Diagnose layers of a feature set; all of them, if none is named.

    Raises
    ------
    BenchError
        If the feature set, a layer, a file or a setting does not allow it.
    """
    start = time.perf_counter()
    features, rank = FeatureSet.open(path), from_environment() or alone()
    try:
        chosen = layers_of(features, features.find_layers(layers))
        labels = matched_labels(features, needed=False)
        resources = resources_of(config, rank)
        results = diagnosis(features, chosen, labels, config, resources=resources, progress=progress)
    except OSError as error:
        refuse_if_gone(features)
        raise EvaluationError(f"{path}: can't be read ({error})") from error
    if rank.rank:
        return EvaluationReport(features=features, results=results, path=None, is_first=False)
    return save_report(features, results, config.model_dump(mode="json"), start=start)
