"""Few-shot classification: kNN with a few images of each class in the database, over several random draws.

Every try draws its own images and searches among them alone. The mean and the standard deviation over the tries are
reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, MatchedLabels, matched_labels, refuse_no_queries
from featbench.evaluate.features.layers import EvalLayer, layers_of
from featbench.evaluate.knn.classification import KnnScorer, Protocols, protocols_by_name, temperatures_of, usable_k
from featbench.evaluate.knn.shots import parse_shots
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.planning import DEFAULT, Resources
from featbench.evaluate.results import Accuracy, FewShotResult, Record, spread
from featbench.store import FeatureSet


def evaluate_few_shot(features: FeatureSet, layers: Sequence[str | EvalLayer], **settings: Any) -> list[Record]:
    """Classify val by a few images of train and return flat records; see `few_shot_results`."""
    return [result.record() for result in few_shot_results(features, layers, **settings)]


def few_shot_results(
    features: FeatureSet,
    layers: Sequence[str | EvalLayer],
    *,
    shots: Sequence[int | str],
    tries: int = 5,
    seed: int = 0,
    protocol: Protocols = "dino",
    k: Sequence[int] | None = None,
    temperature: Sequence[float] | None = None,
    labels: MatchedLabels | None = None,
    resources: Resources = DEFAULT,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
) -> list[FewShotResult]:
    """Classify val by a few images of train.

    Parameters
    ----------
    features, layers, protocol, k, temperature, labels, resources, on_rows
        As for `featbench.evaluate.knn.classification.evaluate_knn`.
    shots : sequence of int or str
        Images of each class, or fractions of them such as "10%".
    tries : int
        Random draws for each of these.
    seed : int
        Seed of the first draw; the next draws use the following integers.

    Returns
    -------
    list of FewShotResult
        One for each layer, protocol, number of images, k and temperature: `top1`, `top5` and
        `mean_per_class` as means over the tries, each with the standard deviation of the tries.

    Raises
    ------
    EvaluationError
        If a k is not positive. Those larger than the number of images that were drawn are left out, with a warning.
    """
    if k and min(k) < 1:
        raise EvaluationError(f"k must be at least 1; got {min(k)}")
    protocols = protocols_by_name(protocol)
    train, val, names = labels or matched_labels(features)
    refuse_no_queries(features.path, val)
    labels_N = train.by_row(features.split("train").num_rows)
    draws = {wanted: [draw(train, wanted, seed=seed + index) for index in range(tries)] for wanted in shots}
    ks_of = {
        wanted: {
            name: usable_k(None, k or knn_protocol.k, len(drawn[0].rows), what=f"a try with {wanted} per class")
            for name, knn_protocol in protocols.items()
        }
        for wanted, drawn in draws.items()
    }
    results = []
    for wanted, drawn in draws.items():
        size, ks = len(drawn[0].rows), ks_of[wanted]
        for layer in layers_of(features, layers):
            for name, knn_protocol in protocols.items():
                accuracies: dict[tuple[int, float | None], list[Accuracy]] = {}
                longest = max(
                    max(ks[other]) for other in protocols if protocols[other].similarity == knn_protocol.similarity
                )
                for database in drawn:
                    found = find_neighbours(
                        features, layer, database=database, queries=val, k=longest, similarity=knn_protocol.similarity,
                        resources=resources, on_rows=partial(on_rows, layer.name),
                    ).neighbours  # fmt: skip
                    lists_QK = labels_N[found.rows_QK[:, : max(ks[name])]]
                    scorer = KnnScorer.of(lists_QK, found.similarities_QK, val, len(names), None)
                    for each_t in temperatures_of(name, knn_protocol, temperature):
                        judged = scorer.accuracies(knn_protocol, ks[name], each_t)
                        for each_k, (accuracy, _) in zip(ks[name], judged, strict=True):
                            accuracies.setdefault((each_k, each_t), []).append(accuracy)
                for (each_k, each_t), several in accuracies.items():
                    results.append(
                        FewShotResult(
                            layer=layer.facts,
                            protocol=name,
                            shots=str(wanted),
                            tries=tries,
                            num_train=size,
                            num_val=len(val.rows),
                            num_classes=len(np.unique(train.labels)),
                            k=each_k,
                            temperature=each_t,
                            top1=spread([each.top1.value for each in several]),
                            top5=spread([each.top5.value for each in several]),
                            mean_per_class=spread([each.mean_per_class.value for each in several]),
                        )
                    )
    return results


def draw(train: Labelled, shots: int | str, *, seed: int) -> Labelled:
    """Draw a number of rows of each class, or a fraction of them, at least one; all rows of smaller classes.

    Examples
    --------
    >>> train = Labelled(split="train", rows=np.arange(6), labels=np.array([0, 0, 0, 0, 1, 1]))
    >>> draw(train, "50%", seed=0).labels.tolist(), draw(train, 3, seed=0).labels.tolist()
    ([0, 0, 1], [0, 0, 0, 1, 1])
    """
    number, fraction = parse_shots(shots)
    if seed < 0:
        raise EvaluationError(f"seed must not be negative; got {seed}")
    random = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(train.labels):
        places = np.flatnonzero(train.labels == label)
        count = number or max(1, round(fraction * len(places)))
        chosen.append(random.permutation(places)[:count])
    places = np.sort(np.concatenate(chosen))
    return replace(train, rows=train.rows[places], labels=train.labels[places])
