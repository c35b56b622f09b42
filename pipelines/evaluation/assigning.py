"""`bench assign`: the rows of one feature set in the clusters of another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from featbench.evaluate.clustering.reuse import assign_results, tasks_of
from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels, refuse_if_gone
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.evaluation.run import EvaluationReport, save_report
from featbench.pipelines.ranks import alone, from_environment
from featbench.pipelines.terminal.progress import Progress
from featbench.store import FeatureSet


def assign(
    path: Path,
    origin: Path,
    config: EvaluateConfig,
    *,
    layers: Sequence[str] = (),
    clusters: Sequence[int] = (),
    progress: Progress,
) -> EvaluationReport:
    """Assign the rows of a feature set to the kept centroids of another, and keep and report the clusters.

    Parameters
    ----------
    path, origin : Path
        The feature set to assign, and the one with the kept clusterings.
    config : EvaluateConfig
        Memory, device and precision, and whether to compute the adjusted mutual information.
    layers : sequence of str
        Layers to assign, or `LAYER=THEIRS` where the clustered one has another name; by default all clustered layers
        that both have.
    clusters : sequence of int
        Numbers of clusters; all by default.

    Raises
    ------
    BenchError
        If there is no such feature set, layer or clustering, or it does not fit.
    """
    start, rank = time.perf_counter(), from_environment() or alone()
    features, theirs = FeatureSet.open(path), FeatureSet.open(origin)
    pairs = [((words := each.partition("="))[0], words[2] or words[0]) for each in layers]
    if rank.rank:  # the first rank does it alone
        return EvaluationReport(features=features, results=[], path=None, is_first=False)
    try:
        tasks = tasks_of(features, theirs, layers=pairs, clusters=clusters)
        labels = matched_labels(features, needed=False)
        num_rows = sum(features.split(split).num_rows for split in features.manifest.splits)
        with progress.task("assign", num_rows * len(tasks)) as on_rows:
            results = assign_results(
                features, theirs, tasks, labels=labels, resources=resources_of(config), ami=config.kmeans.ami,
                on_rows=on_rows,
            )  # fmt: skip
    except OSError as error:
        refuse_if_gone(features)
        raise EvaluationError(f"{path}: can't be read ({error})") from error
    settings = config.model_dump(mode="json") | {
        "assign": {"clusters_of": str(origin), "fingerprint": theirs.manifest.fingerprint, "layers": pairs,
                   "clusters": list(clusters)},
    }  # fmt: skip
    return save_report(features, list(results), settings, start=start)
