"""How alike the layers of one or several feature sets are, row by row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np

from featbench.evaluate.counting import OnRows, counting
from featbench.evaluate.diagnosis.agreement import (
    Cka,
    Hsic,
    Overlap,
    bytes_needed,
    cka,
    hsic,
    overlap,
    prediction_depths,
)
from featbench.evaluate.diagnosis.results import AgreementResult, DeepRow, DepthResult
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, MatchedLabels
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import Find, temperatures_of, usable_k
from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.memory import in_words
from featbench.evaluate.metrics import proportion
from featbench.evaluate.results import Result
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

    layer: EvalLayer
    labels: MatchedLabels
    find: Find
    """Finds neighbours, as for `featbench.evaluate.knn.classification.classify`."""

    paths: Callable[[str], Sequence[str]]
    """What the rows of a split are called."""

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
    representations: Sequence[Representation],
    *,
    protocol: KnnProtocol,
    k: Sequence[int] | None,
    leave_one_out: bool,
    memory: int,
    progress: Progress,
) -> list[Result]:
    """Compare all pairs of layers: shared neighbours and linear CKA.

    Parameters
    ----------
    representations : sequence of Representation
        Of the same rows; see `refuse_unlike`.
    protocol : KnnProtocol
        Whose similarity neighbours are found by.
    k : sequence of int, optional
        The first of them counts; the protocol's by default.
    leave_one_out : bool
        Compare the rows of train instead of those of val.
    memory : int
        Bytes.
    progress : Progress
        Shows how far it is.
    """
    alone = leave_one_out
    num_neighbours = usable_k(k, protocol.k, len(representations[0].labels.train.rows) - alone)[0]
    num_queries = len(representations[0].rows(leave_one_out=alone).rows)
    lists = []
    num_rows = representations[0].layer.layers["train"].num_rows
    with progress.task("neighbours", num_rows * len(representations)) as do:
        for each in representations:
            found = counting(each.find)(
                each.layer, database=each.labels.train, queries=each.rows(leave_one_out=alone), k=num_neighbours,
                similarity=protocol.similarity, on_rows=do,
            )  # fmt: skip
            lists.append(found.neighbours.rows_QK[:, :num_neighbours])
    pairs = list(combinations_with_replacement(range(len(representations)), 2))
    shared: dict[tuple[int, int], Overlap] = {}
    with progress.task("shared neighbours", num_queries * (len(pairs) - len(lists))) as do:
        for i, j in combinations(range(len(lists)), 2):
            shared[i, j] = overlap(lists[i], lists[j])
            do(num_queries)
    dependence: dict[tuple[int, int], Hsic | None] = {}
    with progress.task("CKA", num_queries * len(pairs)) as do:
        for i, j in pairs:
            dependence[i, j] = _hsic(representations[i], representations[j], memory, leave_one_out=alone, on_rows=do)
    _warn_of_missing(dependence, representations, memory)
    return [
        AgreementResult(
            first=representations[i].layer.facts, second=representations[j].layer.facts,
            similarity=protocol.similarity, leave_one_out=alone, k=num_neighbours, num_queries=num_queries,
            overlap=both, cka=_cka(dependence[i, j], dependence[i, i], dependence[j, j]),
        )
        for (i, j), both in shared.items()
    ]  # fmt: skip


def depths(
    representations: Sequence[Representation],
    *,
    name: str,
    protocol: KnnProtocol,
    k: Sequence[int] | None,
    temperature: Sequence[float] | None,
    leave_one_out: bool,
    progress: Progress,
) -> list[Result]:
    """Depth of predictions in the layers of one feature set, by one protocol and the first k and temperature."""
    first = representations[0]
    queries = first.rows(leave_one_out=leave_one_out)
    if len(representations) < 2 or not (first.labels.train.has_labels and queries.has_labels):
        return []
    number = usable_k(k, protocol.k, len(first.labels.train.rows) - leave_one_out)[0]
    at = temperatures_of(name, protocol, temperature)[0]
    predicted: list[Ints] = []
    num_rows = first.layer.layers["train"].num_rows
    with progress.task("prediction depth", num_rows * len(representations)) as do:
        for each in representations:
            predicted.append(_predicted(each, queries, protocol, k=number, temperature=at, on_rows=do))
    predicted_LQ = np.stack(predicted)
    depth_Q = prediction_depths(predicted_LQ)
    is_right_Q = predicted_LQ[-1] == queries.labels
    levels = range(len(representations))
    masks = [depth_Q == depth for depth in levels]
    return [
        DepthResult(
            features=first.layer.facts.features, layers=tuple(each.layer.name for each in representations),
            protocol=name, k=number, temperature=at, leave_one_out=leave_one_out,
            num_queries=tuple(int(mask.sum()) for mask in masks),
            top1=tuple(proportion(is_right_Q[mask]) if mask.any() else None for mask in masks),
            deepest=_deepest(first.paths(queries.split), queries, depth_Q, predicted_LQ),
        )
    ]  # fmt: skip


def _predicted(
    each: Representation,
    queries: Labelled,
    protocol: KnnProtocol,
    *,
    k: int,
    temperature: float | None,
    on_rows: OnRows,
) -> Ints:
    """Class of each query with most votes."""
    train = each.labels.train
    found = counting(each.find)(
        each.layer, database=train, queries=queries, k=k, similarity=protocol.similarity, on_rows=on_rows
    ).neighbours  # fmt: skip
    labels_QK = train.by_row(each.layer.layers["train"].num_rows)[found.rows_QK[:, :k]]
    weights_QK = vote_weights(found.similarities_QK[:, :k], vote=protocol.vote, temperature=temperature)
    votes = ClassVotes.of(labels_QK, num_classes=len(each.labels.class_names))
    return votes.ranking(weights_QK, k=k, top=1)[:, 0]


def _deepest(paths: Sequence[str], queries: Labelled, depth_Q: Ints, predicted_LQ: Ints) -> tuple[DeepRow, ...]:
    """Queries of the greatest depth; of equals first those on which most layers differ from the last."""
    num_differing_Q = (predicted_LQ != predicted_LQ[-1]).sum(axis=0)
    order = np.lexsort((-num_differing_Q, -depth_Q))[:MOST_DEEP_ROWS]
    return tuple(
        DeepRow(row=int(queries.rows[at]), path=paths[queries.rows[at]], depth=int(depth_Q[at]))
        for at in order
        if depth_Q[at]
    )


def _hsic(
    first: Representation, second: Representation, memory: int, *, leave_one_out: bool, on_rows: OnRows
) -> Hsic | None:
    needed = bytes_needed(first.layer.dim, second.layer.dim)
    if needed > memory:
        on_rows(len(first.rows(leave_one_out=leave_one_out).rows))
        return None
    selections = (each.layer.select(each.rows(leave_one_out=leave_one_out)) for each in (first, second))
    return hsic(*selections, memory=memory - needed, on_rows=on_rows)


def _warn_of_missing(
    dependence: Mapping[tuple[int, int], Hsic | None], representations: Sequence[Representation], memory: int
) -> None:
    """Say once which pairs do not fit into the memory."""
    missing = [[representations[place].layer for place in pair] for pair, found in dependence.items() if found is None]
    if missing:
        first, second = missing[0]
        text = "no CKA of %d of %d pairs of layers, such as %s and %s: its products take %s, more than the memory of %s"
        needed = in_words(bytes_needed(first.dim, second.dim))
        logger.warning(text, len(missing), len(dependence), first.name, second.name, needed, in_words(memory))


def _cka(across: Hsic | None, first: Hsic | None, second: Hsic | None) -> Cka | None:
    return None if across is None or first is None or second is None else cka(across, first, second)
