"""How alike the layers of one or several feature sets are, row by row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, combinations_with_replacement

import numpy as np

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.diagnosis.agreement import Cka, Hsic, bytes_needed, cka, hsic, overlap, prediction_depths
from featbench.evaluate.diagnosis.results import AgreementResult, DeepRow, DepthResult
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, MatchedLabels
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import temperatures_of, usable_k
from featbench.evaluate.knn.predictions import predict
from featbench.evaluate.memory import in_words
from featbench.evaluate.metrics import proportion
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.planning import Resources
from featbench.evaluate.results import Result
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.same_rows import refuse_other_rows
from featbench.pipelines.terminal.progress import Progress
from featbench.store import FeatureSet
from featbench.store.typing import Ints

logger = logging.getLogger(__name__)

MOST_DEEP_ROWS = 20
"""Queries of the greatest depth that a result lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Representation:
    """One layer of one feature set, with the rows that are used."""

    features: FeatureSet
    layer: EvalLayer
    labels: MatchedLabels

    def rows(self, *, leave_one_out: bool) -> Labelled:
        """Rows that are compared."""
        return self.labels.train if leave_one_out else self.labels.val


def refuse_unlike(sets: Sequence[tuple[FeatureSet, MatchedLabels]]) -> None:
    """Refuse feature sets that differ in the rows of a split, or in which of them are used.

    Raises
    ------
    EvaluationError
        If they do.
    """
    (first, labels), *others = sets
    for second, other_labels in others:
        for split, ours, theirs in zip(("train", "val"), labels[:2], other_labels[:2], strict=True):
            refuse_other_rows(first, second, split)
            if not np.array_equal(ours.rows, theirs.rows):
                raise EvaluationError(
                    f"{first.name} uses {len(ours.rows):,} rows of {split} and {second.name} {len(theirs.rows):,}, not "
                    f"the same ones: images that could not be read in one of them. Extract both again from the same "
                    f"images."
                )


def agreement(
    representations: Sequence[Representation], config: EvaluateConfig, *, resources: Resources, progress: Progress
) -> list[Result]:
    """Compare all pairs of layers: shared neighbours and linear CKA.

    Parameters
    ----------
    representations : sequence of Representation
        Of the same rows; see `refuse_unlike`.
    config : EvaluateConfig
        The similarity is that of the first protocol, k its first.
    resources : Resources
        Memory and device.
    progress : Progress
        Shows how far it is.
    """
    protocol = next(iter(find_protocols(config.knn.protocol).values()))
    alone = config.knn.leave_one_out
    train = representations[0].labels.train
    k = usable_k(config.knn.k, protocol.k, len(train.rows) - alone)[0]
    num_queries = len(representations[0].rows(leave_one_out=alone).rows)
    lists = []
    with progress.task("neighbours", representations[0].features.split("train").num_rows * len(representations)) as do:
        for each in representations:
            found = find_neighbours(
                each.features, each.layer, database=each.labels.train, queries=each.rows(leave_one_out=alone), k=k,
                similarity=protocol.similarity, resources=resources, on_rows=do,
            )  # fmt: skip
            lists.append(found.neighbours.rows_QK[:, :k])
    pairs = list(combinations_with_replacement(range(len(representations)), 2))
    dependence: dict[tuple[int, int], Hsic | None] = {}
    with progress.task("CKA", num_queries * len(pairs)) as do:
        for i, j in pairs:
            dependence[i, j] = _hsic(representations[i], representations[j], resources.bytes, leave_one_out=alone)
            do(num_queries)
    return [
        AgreementResult(
            first=representations[i].layer.facts, second=representations[j].layer.facts,
            similarity=protocol.similarity, leave_one_out=alone, k=k, num_queries=num_queries,
            overlap=overlap(lists[i], lists[j]), cka=_cka(dependence[i, j], dependence[i, i], dependence[j, j]),
        )
        for i, j in combinations(range(len(representations)), 2)
    ]  # fmt: skip


def depths(representations: Sequence[Representation], config: EvaluateConfig, *, resources: Resources) -> list[Result]:
    """Depth of predictions in the layers of one feature set, by the first protocol, k and temperature."""
    first = representations[0]
    name, protocol = next(iter(find_protocols(config.knn.protocol).items()))
    alone = config.knn.leave_one_out
    queries = first.rows(leave_one_out=alone)
    if len(representations) < 2 or not (first.labels.train.has_labels and queries.has_labels):
        return []
    k = usable_k(config.knn.k, protocol.k, len(first.labels.train.rows) - alone)[0]
    temperature = temperatures_of(name, protocol, config.knn.temperature)[0]
    ask = partial(
        predict, name=name, protocol=protocol, k=k, temperature=temperature, leave_one_out=alone, labels=first.labels,
        resources=resources,
    )  # fmt: skip
    predicted_LQ = np.stack([ask(each.features, each.layer).ranked_QT[:, 0] for each in representations])
    depth_Q = prediction_depths(predicted_LQ)
    is_right_Q = predicted_LQ[-1] == queries.labels
    levels = range(len(representations))
    masks = [depth_Q == depth for depth in levels]
    return [
        DepthResult(
            features=first.features.name, layers=tuple(each.layer.name for each in representations), protocol=name, k=k,
            temperature=temperature, leave_one_out=alone, num_queries=tuple(int(mask.sum()) for mask in masks),
            top1=tuple(proportion(is_right_Q[mask]) if mask.any() else None for mask in masks),
            deepest=_deepest(first.features.paths(queries.split), queries, depth_Q, predicted_LQ),
        )
    ]  # fmt: skip


def _deepest(paths: Sequence[str], queries: Labelled, depth_Q: Ints, predicted_LQ: Ints) -> tuple[DeepRow, ...]:
    """Queries of the greatest depth; of equals first those on which most layers differ from the last."""
    num_differing_Q = (predicted_LQ != predicted_LQ[-1]).sum(axis=0)
    order = np.lexsort((-num_differing_Q, -depth_Q))[:MOST_DEEP_ROWS]
    return tuple(
        DeepRow(row=int(queries.rows[at]), path=paths[queries.rows[at]], depth=int(depth_Q[at]))
        for at in order
        if depth_Q[at]
    )


def _hsic(first: Representation, second: Representation, memory: int, *, leave_one_out: bool) -> Hsic | None:
    needed = bytes_needed(first.layer.dim, second.layer.dim)
    if needed > memory:
        text = "%s and %s: their products take %s, more than the memory of %s, so there is no CKA"
        logger.warning(text, first.layer.name, second.layer.name, in_words(needed), in_words(memory))
        return None
    selections = (each.layer.select(each.rows(leave_one_out=leave_one_out)) for each in (first, second))
    return hsic(*selections, memory=memory - needed)


def _cka(across: Hsic | None, first: Hsic | None, second: Hsic | None) -> Cka | None:
    return None if across is None or first is None or second is None else cka(across, first, second)
