"""Other questions of an evaluation: other queries, fixed subsets of train, labels of which any is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.features.labels import MatchedLabels
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import Find, KnnQuestion, classify
from featbench.evaluate.knn.multi_label import is_multi_label
from featbench.evaluate.knn.multi_label_queries import multi_label_query_results, multi_label_subset_results
from featbench.evaluate.knn.queries import QuerySet, ood_results, query_results
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.planning import Resources
from featbench.evaluate.other_results import QueriesResult
from featbench.evaluate.results import KnnResult, Result
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.several_right import any_of, read_several
from featbench.pipelines.evaluation.subsets import subset_file, subset_of
from featbench.pipelines.terminal.progress import Progress
from featbench.store import FeatureSet


def other_queries(
    features: FeatureSet,
    layers: Sequence[EvalLayer],
    labels: MatchedLabels,
    config: EvaluateConfig,
    *,
    sets: Mapping[str, QuerySet],
    resources: Resources,
    progress: Progress,
) -> list[Result]:
    """Answer for the other queries of a configuration; `sets` are those that it names."""
    knn = config.knn
    asked = KnnQuestion(protocols=find_protocols(knn.protocol), k=knn.k, temperature=knn.temperature)
    find: Find = partial(find_neighbours, features, index=config.index, resources=resources)
    num_searches = len(layers) * len({each.similarity for each in asked.protocols.values()})
    num_rows = features.split("train").num_rows * num_searches
    results: list[Result] = []
    has_several = is_multi_label(features)
    ask = partial(multi_label_query_results, features) if has_several else query_results
    for each in (sets[name] for name in knn.queries or {}):
        with progress.task(f"{each.name}: search", num_rows) as on_rows:
            results += ask(layers, labels, each, asked, find=find, bank=knn.bank, on_rows=on_rows)
    for name, file in (knn.subset or {}).items():
        train = subset_of(labels.train, subset_file(features, name, file), features.paths("train"))
        with progress.task(f"{name}: search", num_rows) as on_rows:
            if has_several:
                results += multi_label_subset_results(
                    features, layers, train, labels.val, asked, find=find, name=name, on_rows=on_rows
                )  # fmt: skip
                continue
            found = classify(
                layers, train, labels.val, labels.class_names, asked, find=find,
                on_rows=lambda layer, rows: on_rows(rows), name=name,
            )  # fmt: skip
        results += [QueriesResult(result=e, queries="val", bank=name) if isinstance(e, KnnResult) else e for e in found]
    several = {
        name: read_several(Path(file), features.paths("val"), labels) for name, file in (knn.any_of or {}).items()
    }
    if several:
        judged = classify(layers, *labels, replace(asked, predictions=True), find=find, name=features.name)
        results += [
            any_of(result, name, lists, labels)
            for name, lists in several.items()
            for result in judged
            if isinstance(result, KnnResult)
        ]
    for each in (sets[name] for name in knn.ood or {}):
        with progress.task(f"{each.name}: search", 2 * num_rows) as on_rows:
            results += ood_results(layers, labels, each, asked, find=find, on_rows=on_rows)
    return results
