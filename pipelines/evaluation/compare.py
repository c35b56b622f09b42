"""`bench compare`: two feature sets, or two layers, on the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import matched_labels
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.knn.classification import temperatures_of, usable_k
from featbench.evaluate.knn.predictions import Predictions, predict
from featbench.evaluate.metrics import paired_difference
from featbench.evaluate.results import Record
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.resources import resources_of
from featbench.pipelines.evaluation.same_rows import refuse_other_rows
from featbench.store import FeatureSet


def compare(
    first: FeatureSet, second: FeatureSet, config: EvaluateConfig, *, layers: Sequence[str] = ()
) -> list[Record]:
    """Compare accuracies on the queries that both have.

    Parameters
    ----------
    first, second : FeatureSet
        Of the same images.
    config : EvaluateConfig
        Protocols, k and temperatures; what is not given is the protocol's own.
    layers : sequence of str
        Layers to compare with themselves; or, where both feature sets are one, two layers to compare
        with each other. By default all that both have.

    Returns
    -------
    list of dict
        One for each layer, protocol, k and temperature: accuracies, their difference (second minus first)
        with its 95% interval, and McNemar's exact p-value.

    Raises
    ------
    EvaluationError
        If the queries are not the same.
    """
    refuse_other_rows(first, second)
    pairs = _pairs(first, second, layers)
    resources = resources_of(config)
    labels = [matched_labels(first)]
    labels.append(labels[0] if first.path == second.path else matched_labels(second))
    num_rows = min(len(each.train.rows) for each in labels)
    records: list[Record] = []
    for name, protocol in find_protocols(config.knn.protocol).items():
        ks = usable_k(config.knn.k, protocol.k, num_rows)
        for ours, theirs in pairs:
            both_layers = (first, stored_layer(first, ours)), (second, stored_layer(second, theirs))
            names = {"first": f"{first.name}/{ours}", "second": f"{second.name}/{theirs}"}
            for temperature in temperatures_of(name, protocol, config.knn.temperature):
                ask = partial(predict, name=name, protocol=protocol, temperature=temperature, resources=resources)
                of_rule = []
                for k in sorted(ks, reverse=True):  # the largest first: its lists contain the others
                    both = [
                        ask(features, layer, k=k, labels=matched)
                        for (features, layer), matched in zip(both_layers, labels, strict=True)
                    ]
                    of_rule.append(names | both[0].setting | _difference(*both))
                records += reversed(of_rule)
    return records


def _difference(first: Predictions, second: Predictions) -> Record:
    """Compare on the queries that both evaluate."""
    _, ours, theirs = np.intersect1d(first.neighbours.queries, second.neighbours.queries, return_indices=True)
    if not len(ours):
        raise EvaluationError("there is no query that both evaluate")
    right = first.is_right()[ours], second.is_right()[theirs]
    difference = asdict(paired_difference(*right))
    return {
        "num_val": len(ours),
        "top1_first": float(right[0].mean()),
        "top1_second": float(right[1].mean()),
        "difference": difference.pop("value"),
    } | difference


def _pairs(first: FeatureSet, second: FeatureSet, layers: Sequence[str]) -> list[tuple[str, str]]:
    """Layers to compare with one another."""
    if first.path == second.path:
        names = first.find_layers(layers) if layers else []
        if len(names) != 2:
            raise EvaluationError("to compare layers of one feature set, give two, such as --layers res4,res5")
        return [(names[0], names[1])]
    if layers:
        return list(zip(first.find_layers(layers), second.find_layers(layers), strict=True))
    common = [(name, name) for name in first.manifest.layers if name in second.manifest.layers]
    if not common:
        raise EvaluationError(
            f"{first.name} and {second.name} have no layer of the same name: "
            f"{', '.join(first.manifest.layers)} and {', '.join(second.manifest.layers)}"
        )
    return common
