"""Few labels: the same classification with a few images of each class in the database, several times over.

Every try draws its images anew, and searches among them alone. Reported are the mean and the standard
deviation over the tries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from evaluate.evaluation import Judge, Protocols, protocols_by_name, temperatures_of, usable_k
from evaluate.labels import matched_labels
from evaluate.neighbours.finding import DEFAULT, Resources, find_neighbours
from evaluate.shots import draw
from evaluate.views import Record, View, views_of
from store import FeatureSet


def evaluate_few_shot(
    features: FeatureSet,
    layers: Sequence[str | View],
    *,
    shots: Sequence[int | str],
    tries: int = 5,
    seed: int = 0,
    protocol: Protocols = "dino",
    k: Sequence[int] | None = None,
    temperature: Sequence[float] | None = None,
    resources: Resources = DEFAULT,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
) -> list[Record]:
    """Classify val by few images of train.

    Parameters
    ----------
    features, layers, protocol, k, temperature, resources, on_rows
        As for `evaluate.evaluation.evaluate_knn`.
    shots : sequence of int or str
        Images of each class, or parts of them such as "10%".
    tries : int
        Draws for each of these.
    seed : int
        Of the first draw; the next ones follow.

    Returns
    -------
    list of dict
        One for each layer, protocol, number of images, k and temperature: `top1`, `top5` and
        `mean_per_class` as means over the tries, each with `_sd`, the standard deviation of the tries.

    Raises
    ------
    EvaluationError
        If a k is larger than the images that were drawn.
    """
    rules = protocols_by_name(protocol)
    train, val, names = matched_labels(features)
    labels_N = train.by_row(features.split("train").num_rows)
    draws = {wanted: [draw(train, wanted, seed=seed + index) for index in range(tries)] for wanted in shots}
    ks_of = {
        wanted: {
            name: usable_k(k, rule.k, len(drawn[0].rows), what=f"a try with {wanted} per class")
            for name, rule in rules.items()
        }
        for wanted, drawn in draws.items()
    }
    records = []
    for wanted, drawn in draws.items():
        size, ks = len(drawn[0].rows), ks_of[wanted]
        for view in views_of(features, layers):
            for name, rule in rules.items():
                accuracies: dict[tuple[int, float | None], list[Record]] = {}
                longest = max(max(ks[other]) for other in rules if rules[other].similarity == rule.similarity)
                for database in drawn:
                    found = find_neighbours(
                        features, view, database=database, queries=val, k=longest, similarity=rule.similarity,
                        resources=resources, on_rows=partial(on_rows, view.name),
                    ).neighbours  # fmt: skip
                    lists_QK = labels_N[found.rows_QK[:, : max(ks[name])]]
                    judge = Judge.of(lists_QK, found.similarities_QK, val, len(names), None)
                    for each_t in temperatures_of(name, rule, temperature):
                        for each_k, record in zip(ks[name], judge.accuracies(rule, ks[name], each_t), strict=True):
                            accuracies.setdefault((each_k, each_t), []).append(record)
                facts = {"task": "few_shot", "protocol": name, "shots": str(wanted), "tries": tries}
                counts = {"num_train": size, "num_val": len(val.rows), "num_classes": len(np.unique(train.labels))}
                for (each_k, each_t), several in accuracies.items():
                    setting = {"k": each_k, "temperature": each_t}
                    records.append(view.facts | facts | counts | setting | _spread(several))
    return records


def _spread(several: Sequence[Record]) -> Record:
    """Mean and standard deviation of accuracies over tries."""
    spread: Record = {}
    for name in ("top1", "top5", "mean_per_class"):
        values = [record[name] for record in several]
        spread |= {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=len(values) > 1))}
    return spread
