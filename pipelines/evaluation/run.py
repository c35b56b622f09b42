"""Stage two of a pipeline: kNN and k-means of a feature set; results are saved in it with their provenance."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featbench.evaluate.clustering.evaluation import kmeans_results, numbers_of_clusters
from featbench.evaluate.clustering.refusal import refuse_impossible
from featbench.evaluate.config import BenchmarkRow, EvaluateConfig, KnnConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.derived import Recipe, derived_layers
from featbench.evaluate.features.labels import (
    MatchedLabels,
    matched_labels,
    refuse_if_gone,
    refuse_no_queries,
    with_unlabelled,
)
from featbench.evaluate.features.layers import layers_of
from featbench.evaluate.knn.classification import knn_results
from featbench.evaluate.knn.few_shot import few_shot_results
from featbench.evaluate.knn.multi_label import is_multi_label, multi_label_results
from featbench.evaluate.knn.multi_label_queries import refuse_other_labels
from featbench.evaluate.knn.queries import QuerySet
from featbench.evaluate.knn.selecting import select
from featbench.evaluate.notices import each_once
from featbench.evaluate.results import KnnResult, Record, Result, records_of
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.diagnosis import diagnosis
from featbench.pipelines.evaluation.other_queries import other_queries
from featbench.pipelines.evaluation.query_sets import Extracting, find_query_sets
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.evaluation.several_right import read_several
from featbench.pipelines.evaluation.subsets import subset_file, subset_of
from featbench.pipelines.ranks import alone, from_environment
from featbench.pipelines.terminal.progress import Progress
from featbench.store import BenchError, FeatureSet, StoreError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Results of one evaluation, and the file that they were saved in."""

    features: FeatureSet
    results: list[Result]
    path: Path | None
    """None if the store is read-only."""

    is_first: bool = True
    """Whether this rank prints for all."""

    @property
    def records(self) -> list[Record]:
        """The results as flat records, all with the same keys."""
        return records_of(self.results)


@each_once()
def evaluate(
    path: Path,
    config: EvaluateConfig,
    *,
    layers: Sequence[str] = (),
    progress: Progress,
    extracting: Extracting | None = None,
) -> EvaluationReport:
    """Evaluate layers of a feature set; all of them, if none is named.

    `extracting` says how images of other queries are extracted, of these layers.

    Raises
    ------
    BenchError
        If the feature set, a layer or a setting does not allow it, or the feature set is renamed, removed or replaced
        meanwhile.
    """
    features = FeatureSet.open(path)
    try:
        return _evaluate(features, config, layers=layers, progress=progress, extracting=extracting or Extracting())
    except OSError as error:
        refuse_if_gone(features)
        if isinstance(error, BenchError):  # of another feature set
            raise
        raise EvaluationError(f"{path}: can't be read ({error})") from error


def _evaluate(
    features: FeatureSet, config: EvaluateConfig, *, layers: Sequence[str], progress: Progress, extracting: Extracting
) -> EvaluationReport:
    start = time.perf_counter()
    names = features.find_layers(layers)
    for name in names:
        for split in features.manifest.splits:
            features.layer(split, name)  # refuse incomplete layers before the first search
    rank = from_environment() or alone()
    resources = resources_of(config, rank)
    knn = config.knn
    labels = matched_labels(features, needed=False)
    settings: dict[str, Any] = {
        "protocol": find_protocols(knn.protocol),
        "k": knn.k,
        "temperature": knn.temperature,
        "labels": labels,
        "resources": resources,
    }
    chosen = layers_of(features, names)
    train, val, _ = labels
    to_cluster = with_unlabelled(features, labels)
    numbers_of_clusters(config.kmeans.clusters, to_cluster.train)
    if recipe := Recipe(**config.derive.model_dump()):
        chosen = derived_layers(chosen, recipe, train, memory=resources.bytes)
    if config.kmeans.clusters:
        refuse_impossible(
            features, chosen, to_cluster.train, to_cluster.val, clusters=config.kmeans.clusters,
            settings=config.kmeans.settings(), num_seeds=config.kmeans.seeds, resources=resources,
        )  # fmt: skip
    few_shot: list[Result] = []
    if knn.shots and not (train.has_labels and val.has_labels):
        logger.warning("%s: few-shot accuracies need labels in train and val, so there are none", features.name)
    elif knn.shots:  # first, since it is fast and refuses a k that is too large
        few_shot += few_shot_results(features, chosen, shots=knn.shots, tries=knn.tries, seed=knn.seed, **settings)
    num_searches = len(chosen) * len({protocol.similarity for protocol in settings["protocol"].values()})
    if knn.select:
        refuse_no_queries(features.path, val)
    has_several = is_multi_label(features)
    if has_several:
        refuse_questions_of_one_class(features, knn)
    sets = _query_sets(features, labels, config, replace(extracting, layers=names, on_error=knn.on_error))
    asks_twice = knn.select is not None and not knn.leave_one_out
    with progress.task("search", features.split("train").num_rows * num_searches * (1 + asks_twice)) as on_rows:
        ask = partial(
            knn_results,
            features,
            chosen,
            index=config.index,
            retrieval=knn.retrieval,
            duplicates=knn.duplicates,
            per_class=knn.per_class,
            as_published=knn.as_published,
            on_rows=lambda layer, rows: on_rows(rows),
            **settings,
        )
        if has_several:
            results = multi_label_results(
                features, chosen, index=config.index, leave_one_out=knn.leave_one_out, per_class=knn.per_class,
                on_rows=lambda layer, rows: on_rows(rows), **settings,
            )  # fmt: skip
        else:
            results = ask(
                leave_one_out=knn.leave_one_out or knn.select is not None,
                compare_preprocessing="protocol" in knn.model_fields_set,  # the default is no claim to reproduce DINO
            )
        if knn.select is not None:
            results.append(select(results, ask(leave_one_out=False, compare_preprocessing=False)))
    results = [_marked(result, knn.benchmark) for result in results] + few_shot
    if knn.queries or knn.ood or knn.subset or knn.any_of:
        results += other_queries(features, chosen, labels, config, sets=sets, resources=resources, progress=progress)
    if config.diagnosis.is_asked:
        results += diagnosis(
            features, chosen, labels, config, resources=resources, progress=progress, is_first=not rank.rank
        )
    if config.kmeans.clusters:
        with progress.iterations() as watcher:
            results += kmeans_results(
                features, chosen, clusters=config.kmeans.clusters, labels=labels, settings=config.kmeans.settings(),
                num_seeds=config.kmeans.seeds, ami=config.kmeans.ami, resources=resources, watcher=watcher,
            )  # fmt: skip
    if rank.rank:
        return EvaluationReport(features=features, results=results, path=None, is_first=False)
    return save_report(features, results, config.model_dump(mode="json"), start=start)


def _query_sets(
    features: FeatureSet, labels: MatchedLabels, config: EvaluateConfig, extracting: Extracting
) -> dict[str, QuerySet]:
    """Find other queries, extracting those that are images; refuse before that what can't be answered.

    Raises
    ------
    BenchError
        If a file can't be used, or queries don't fit the bank.
    """
    knn = config.knn
    for file in (knn.any_of or {}).values():
        refuse_no_queries(features.path, labels.val)
        read_several(Path(file), features.paths("val"), labels)
    for name, place in (knn.subset or {}).items():
        subset_of(labels.train, subset_file(features, name, place), features.paths("train"))
    named = _named(knn)
    if named and Recipe(**config.derive.model_dump()):
        raise EvaluationError("--queries and --ood ask stored layers: leave out --concat, --center, --pca and --whiten")
    if knn.ood:
        refuse_no_queries(features.path, labels.val)
    sets = find_query_sets(features, named, extracting)
    for each in sets.values():
        for layer in layers_of(features, extracting.layers):
            each.layer(layer)
    for name in knn.queries or {}:
        refuse_other_labels(features, sets[name])
        if not is_multi_label(features) and labels.train.has_labels:
            sets[name].labelled(labels)  # refuses before the search
    return sets


def _named(knn: KnnConfig) -> dict[str, str]:
    """What is named as queries, and as images from elsewhere.

    Raises
    ------
    EvaluationError
        If one name is given to different places.
    """
    queries, others = knn.queries or {}, knn.ood or {}
    if twice := [name for name in queries.keys() & others.keys() if queries[name] != others[name]]:
        raise EvaluationError(f"--queries and --ood call different things {twice[0]!r}. Give one another name")
    return queries | others


def _marked(result: Result, benchmark: BenchmarkRow | None) -> Result:
    """Mark the result of a benchmark's own protocol, k and temperature."""
    if benchmark is None or not isinstance(result, KnnResult) or result.leave_one_out:
        return result
    own = (benchmark.protocol, benchmark.k, benchmark.temperature)
    is_own = (result.protocol, result.k, result.temperature) == own
    return replace(result, benchmark=benchmark.name) if is_own else result


def refuse_questions_of_one_class(features: FeatureSet, knn: KnnConfig) -> None:
    """Refuse what needs one class for each row, where rows have any number.

    Raises
    ------
    EvaluationError
        If such a thing is asked for.
    """
    asked = {
        "--select": knn.select,
        "--retrieval": knn.retrieval,
        "--shots": knn.shots,
        "--duplicates": knn.duplicates,
    }
    if wrong := [option for option, value in asked.items() if value]:
        raise EvaluationError(
            f"{features.path}: rows have any number of classes, and {', '.join(wrong)} needs one class for each. Leave "
            f"that out; --per-class lists the average precision of each class"
        )
    if knn.any_of:
        raise EvaluationError(
            f"{features.path}: rows have any number of classes, all of which count in mAP and F1, so --any-of has "
            f"nothing to add. Leave it out"
        )


def save_report(
    features: FeatureSet, results: list[Result], settings: Mapping[str, Any], *, start: float
) -> EvaluationReport:
    """Save results in the feature set, with what they were made from; if it is read-only, only warn.

    Parameters
    ----------
    features : FeatureSet
        What was evaluated.
    results : list of Result
        The results.
    settings : mapping
        Of the evaluation; anything that can be written as JSON.
    start : float
        `time.perf_counter()` at the beginning.

    Raises
    ------
    EvaluationError
        If the feature set was renamed, removed or replaced meanwhile.
    """
    now = datetime.now(UTC)
    content = {
        "records": records_of(results),
        "settings": settings,
        "made_from": dict(features.manifest.made_from),
        "fingerprint": features.manifest.fingerprint,
        "software": {"python": platform.python_version(), **_versions()},
        "host": platform.node(),
        "created": now.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 3),
    }
    refuse_if_gone(features)
    try:
        saved = features.save_result(now.strftime("%Y%m%dT%H%M%S.%fZ"), content)
    except StoreError as error:  # results are also printed from a read-only store
        logger.warning("the results are not kept: %s", error)
        saved = None
    return EvaluationReport(features=features, results=results, path=saved)


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("featbench", "faiss-gpu", "faiss-cpu", "numpy", "scikit-learn", "zarr"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
