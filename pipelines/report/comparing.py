"""Several feature sets on the same queries: differences of accuracies, shared neighbours, and queries that flipped.

Shape suffixes:  Q queries   K neighbours
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from featbench.evaluate.diagnosis.agreement import overlap
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.metrics import paired_difference
from featbench.pipelines.evaluation.same_rows import refuse_other_rows
from featbench.pipelines.report.evaluations import Evaluated, Source
from featbench.pipelines.report.pictures import Pictures
from featbench.store.typing import Bools, Ints

MOST_FLIPPED = 12
"""Queries that are shown of those that only one of two gets right."""


def comparisons_content(evaluated: Sequence[Evaluated], pictures: Pictures) -> list[dict[str, Any]]:
    """Compare pairs of feature sets: layers of the same name, and the best layer of each.

    Each is evaluated at its first k and temperature, on the queries that both have. Differences are second minus first,
    as those of `bench compare`.
    """
    return [
        _comparison(first, second, evaluated, pictures, is_best=is_best)
        for first, second, is_best in pairs_of(evaluated)
    ]


def pairs_of(evaluated: Sequence[Evaluated]) -> list[tuple[int, int, bool]]:
    """Numbers of the views to compare with one another, and whether they are the best of their feature sets."""
    groups: dict[int, list[int]] = {}
    for number, each in enumerate(evaluated):
        groups.setdefault(id(each.view.source), []).append(number)
    best = {key: max(numbers, key=lambda number: _top1(evaluated[number])) for key, numbers in groups.items()}
    pairs: dict[tuple[int, int], bool] = {}
    for ours, theirs in combinations(groups, 2):
        if evaluated[best[ours]].results and evaluated[best[theirs]].results:
            pairs[best[ours], best[theirs]] = True
        for first in groups[ours]:
            for second in groups[theirs]:
                if _kind(evaluated[first]) == _kind(evaluated[second]):
                    pairs.setdefault((first, second), False)
    return [(first, second, is_best) for (first, second), is_best in pairs.items()]


def common_queries(sources: Sequence[Source]) -> Ints:
    """Rows that all feature sets ask with, which must be the same images.

    Raises
    ------
    EvaluationError
        If they are not, or there is no such row.
    """
    first = sources[0]
    rows = first.queries.rows
    for other in sources[1:]:
        if other.queries.split != first.queries.split:
            raise EvaluationError(
                f"{first.features.name} is asked with {first.queries.split} and {other.features.name} with "
                f"{other.queries.split}: a page shows sets with the same queries. Use --leave-one-out for both"
            )
        refuse_other_rows(first.features, other.features, first.queries.split)
        rows = np.intersect1d(rows, other.queries.rows)
    if not len(rows):
        raise EvaluationError("there is no query that all of the feature sets evaluate")
    return rows


def _kind(evaluated: Evaluated) -> tuple[str, str]:
    return evaluated.view.layer.name, evaluated.view.protocol_name


def _top1(evaluated: Evaluated) -> float:
    return float(evaluated.is_right().mean()) if evaluated.results else -1.0


def _comparison(
    first: int, second: int, evaluated: Sequence[Evaluated], pictures: Pictures, *, is_best: bool
) -> dict[str, Any]:
    ours, theirs = evaluated[first], evaluated[second]
    rows_Q, at_first, at_second = np.intersect1d(
        ours.view.source.queries.rows, theirs.view.source.queries.rows, return_indices=True
    )
    found: dict[str, Any] = {
        "first": first, "second": second, "best": is_best, "queries": len(rows_Q),
        "overlap": _overlap(ours, theirs, at_first, at_second),
    }  # fmt: skip
    if not (ours.results and theirs.results):
        return found
    right = ours.is_right()[at_first], theirs.is_right()[at_second]
    sure_Q = ours.confidence_Q[at_first] + theirs.confidence_Q[at_second]

    def flipped(which_Q: Bools) -> list[list[int]]:
        places = np.flatnonzero(which_Q)
        surest = places[np.argsort(-sure_Q[places], kind="stable")][:MOST_FLIPPED]
        source = ours.view.source
        return [
            [
                pictures.place(source, source.queries.split, int(rows_Q[place])),
                int(ours.predicted_Q[at_first[place]]), int(theirs.predicted_Q[at_second[place]]),
            ]
            for place in surest
        ]  # fmt: skip

    return found | {
        "top1": [float(right[0].mean()), float(right[1].mean())],
        "difference": asdict(paired_difference(*right)),
        "onlyFirst": flipped(right[0] & ~right[1]),
        "onlySecond": flipped(right[1] & ~right[0]),
    }


def _overlap(first: Evaluated, second: Evaluated, at_first: Ints, at_second: Ints) -> dict[str, Any] | None:
    """Shared neighbours; None if the rows of train are not the same."""
    ours, theirs = first.view.source, second.view.source
    try:
        refuse_other_rows(ours.features, theirs.features, "train")
    except EvaluationError:
        return None
    k = min(first.k, second.k)
    shared = overlap(first.rows_QK[at_first, :k].astype(np.int64), second.rows_QK[at_second, :k].astype(np.int64))
    return {"k": k, **asdict(shared.mean), "chance": shared.chance}
