"""`bench compare` of more than two feature sets: the best setting of each, all pairs, and which can't be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from string import ascii_lowercase
from typing import Any

import numpy as np

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels
from featbench.evaluate.knn.classification import knn_results
from featbench.evaluate.knn.selecting import select
from featbench.evaluate.metrics import Estimate, paired_difference, proportion
from featbench.evaluate.rankings import cliques, holm
from featbench.evaluate.results import KnnResult, Record
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.evaluation.same_rows import refuse_other_rows
from featbench.store import FeatureSet
from featbench.store.typing import Bools, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entrant:
    """One feature set with its best setting."""

    features: FeatureSet
    result: KnnResult
    queries: Ints
    is_right_Q: Bools

    def among(self, queries: Ints) -> _Entrant:
        """Keep some of the queries."""
        return replace(self, queries=queries, is_right_Q=self.is_right_Q[np.searchsorted(self.queries, queries)])

    @property
    def top1(self) -> Estimate:
        return proportion(self.is_right_Q)


def rank(sets: Sequence[FeatureSet], config: EvaluateConfig, *, layers: Sequence[str] = ()) -> list[Record]:
    """Rank feature sets of the same images by the top-1 of the best setting of each.

    Parameters
    ----------
    sets : sequence of FeatureSet
        At least two, each once.
    config : EvaluateConfig
        Protocols, k and temperatures to choose from: on val, or on train with `select`.
    layers : sequence of str
        Layers to choose from, of those that a feature set has; by default all.

    Returns
    -------
    list of dict
        First one of task `ranking` for each feature set, the best first, with letters of the groups that do not differ
        at 5%; then one of task `comparison` for each pair, with McNemar's exact p-value, and Holm's of all pairs.

    Raises
    ------
    EvaluationError
        If the queries are not the same, or a feature set has none of the layers.
    """
    if len({features.path.resolve() for features in sets}) < len(sets):
        raise EvaluationError("a feature set is named twice; to compare its layers, name it twice alone, with --layers")
    for other in sets[1:]:
        refuse_other_rows(sets[0], other)
    entrants = [_best(features, config, layers) for features in sets]
    common = entrants[0].queries
    for each in entrants[1:]:
        common = np.intersect1d(common, each.queries)
    if not len(common):
        raise EvaluationError("there is no query that all evaluate")
    ranked = sorted((each.among(common) for each in entrants), key=lambda each: -each.top1.value)
    pairs = list(combinations(range(len(ranked)), 2))
    differences = [paired_difference(ranked[j].is_right_Q, ranked[i].is_right_Q) for i, j in pairs]
    corrected = holm([each.p_value for each in differences])
    runs = cliques(len(ranked), dict(zip(pairs, corrected.tolist(), strict=True)))
    records: list[Record] = [_ranking(each, place, runs, config) for place, each in enumerate(ranked)]
    for (i, j), difference, p_value in zip(pairs, differences, corrected.tolist(), strict=True):
        found = asdict(difference)
        records.append(
            {
                "task": "comparison", "first": _name(ranked[i]), "second": _name(ranked[j]), "num_val": len(common),
                "difference": found.pop("value"), "only_first": found.pop("only_second"),
                "only_second": found.pop("only_first"),
            }
            | found
            | {"p_holm": p_value}
        )  # fmt: skip
    return records


def _best(features: FeatureSet, config: EvaluateConfig, layers: Sequence[str]) -> _Entrant:
    """Choose the best setting of one feature set."""
    names = [name for name in layers if name in features.manifest.layers] if layers else features.find_layers(())
    if not names:
        features.find_layers(layers)  # says which there are
    knn, labels = config.knn, matched_labels(features)
    settings: dict[str, Any] = {
        "protocol": find_protocols(knn.protocol), "k": knn.k, "temperature": knn.temperature, "labels": labels,
        "resources": resources_of(config), "compare_preprocessing": False,
    }  # fmt: skip
    on_val = knn_results(features, names, predictions=True, **settings)
    on_train = knn_results(features, names, leave_one_out=True, **settings) if knn.select else on_val
    best = select(on_train, on_val).on_val
    assert best.predictions is not None
    right = best.predictions == labels.val.labels
    return _Entrant(features=features, result=best, queries=labels.val.rows, is_right_Q=right)


def _ranking(entrant: _Entrant, place: int, runs: Sequence[range], config: EvaluateConfig) -> Record:
    result, top1 = entrant.result, entrant.top1
    return {
        "task": "ranking", "rank": place + 1, "features": entrant.features.name, "layer": result.layer.layer,
        "protocol": result.protocol, "k": result.k, "temperature": result.temperature,
        "selected_by": config.knn.select or "val", "num_val": len(entrant.queries), "top1": top1.value,
        "top1_low": top1.low, "top1_high": top1.high,
        "groups": "".join(_letter(number) for number, run in enumerate(runs) if place in run),
    }  # fmt: skip


def _letter(number: int) -> str:
    return ascii_lowercase[number] if number < 26 else f"({number + 1})"


def _name(entrant: _Entrant) -> str:
    return f"{entrant.features.name}/{entrant.result.layer.layer}"
