"""The neighbours viewer: which queries it shows, and their lists of neighbours, with all that a vote needs.

Shape suffixes:  Q queries   K neighbours
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.pipelines.report.evaluations import Evaluated
from featbench.pipelines.report.pictures import Pictures
from featbench.store.typing import Array, Ints

MOST_QUERIES = 48
MOST_PICTURES = 1500
"""Neighbours shown with a picture, of all queries and views together, by default."""

FEWEST_SHOWN, MOST_SHOWN = 6, 12
"""Neighbours of a query that are shown."""

MOST_VOTING = 1000
"""Neighbours whose votes can be counted in the page."""

GROUPS = {"wrong": "confident and wrong", "random": "at random", "class": "of each class", "named": "asked for"}


def num_shown(num_views: int) -> int:
    """Neighbours that are shown of each query, so that many views don't make a page large."""
    return max(FEWEST_SHOWN, min(MOST_SHOWN, 36 // num_views))


def usual_number(num_views: int) -> int:
    """Queries that are shown if no number was chosen."""
    return max(6, min(MOST_QUERIES, MOST_PICTURES // (1 + num_views * num_shown(num_views))))


def choose_queries(
    evaluated: Evaluated, rows: Ints, *, number: int, named: Sequence[str] = (), seed: int = 0
) -> list[tuple[int, str]]:
    """Choose queries: row, and why.

    Parameters
    ----------
    evaluated : Evaluated
        The view whose predictions count.
    rows : ndarray of int64
        Rows to choose from, those that all feature sets ask with.
    number : int
        Queries besides those that are named.
    named : sequence of str
        Paths, or patterns such as `*/cat/*`.

    Raises
    ------
    EvaluationError
        If nothing has such a path.
    """
    source = evaluated.view.source
    labels_Q = source.queries.labels
    chosen: dict[int, str] = {}
    for position in _named(evaluated, rows, named):
        chosen.setdefault(position, "named")
    random = np.random.default_rng(seed)
    is_common_Q = np.isin(source.queries.rows, rows)
    order = random.permutation(np.flatnonzero(is_common_Q))
    wanted = {"random": [int(each) for each in order]}
    if evaluated.results:
        wrong = np.flatnonzero(~evaluated.is_right() & is_common_Q)
        ranked = wrong[np.argsort(-evaluated.confidence_Q[wrong], kind="stable")]
        wanted = {"wrong": [int(each) for each in ranked], "class": _one_of_each_class(labels_Q, order)} | wanted
    largest = min(number + len(chosen), len(order))
    shares = dict(zip(wanted, _shares(number, len(wanted)), strict=True))
    for group, positions in wanted.items():
        left = shares[group]
        for position in positions:
            if left and position not in chosen and len(chosen) < largest:
                chosen[position] = group
                left -= 1
    for position in wanted["random"]:  # what other groups did not need
        if len(chosen) < largest:
            chosen.setdefault(position, "random")
    return [(int(source.queries.rows[position]), group) for position, group in chosen.items()]


def _shares(number: int, groups: int) -> list[int]:
    """Divide a number as evenly as it goes, the first getting more."""
    return [number // groups + (place < number % groups) for place in range(groups)]


def _one_of_each_class(labels_Q: Ints, order: Ints) -> list[int]:
    """Queries in an order in which all classes come once before one comes again."""
    seen: dict[int, int] = {}
    rounds = []
    for position in order:
        label = int(labels_Q[position])
        seen[label] = seen.get(label, 0) + 1
        rounds.append(seen[label])
    return [int(order[place]) for place in np.argsort(np.array(rounds), kind="stable")]


def _named(evaluated: Evaluated, rows: Ints, named: Sequence[str]) -> list[int]:
    """Positions of the queries with some paths."""
    if not named:
        return []
    source = evaluated.view.source
    paths = source.features.paths(source.queries.split)
    common = set(rows.tolist())
    used = {position: paths[row] for position, row in enumerate(source.queries.rows.tolist()) if row in common}
    found: list[int] = []
    for wanted in named:
        exact = [position for position, path in used.items() if path == wanted]
        matching = exact or [position for position, path in used.items() if _matches(path, wanted)]
        if not matching:
            raise EvaluationError(
                f"--query {wanted}: no image of {source.queries.split} in {source.features.path} has such a path; they "
                f"are such as {next(iter(used.values()))}"
            )
        found += matching
    return found


def _matches(path: str, wanted: str) -> bool:
    return fnmatchcase(path, wanted) or path.endswith(f"/{wanted}")


def neighbours_content(
    evaluated: Sequence[Evaluated], chosen: Sequence[tuple[int, str]], pictures: Pictures, *, total: int
) -> dict[str, Any]:
    """Lists of the chosen queries in each view: shown rows as places of pictures, labels and similarities of all.

    Similarities are the bits of float64, so that the page counts the votes that Python counts.
    """
    shown = num_shown(len(evaluated))
    first = evaluated[0].view.source
    split = first.queries.split
    rows = np.array([row for row, _ in chosen], np.int64)
    places = [pictures.place(first, split, row) for row in rows.tolist()]
    labels = first.queries.by_row(first.features.split(split).num_rows)[rows]
    return {
        "queries": [
            {"place": place, "group": group, "label": int(label)}
            for place, label, (_, group) in zip(places, labels, chosen, strict=True)
        ],
        "groups": {group: GROUPS[group] for group in dict.fromkeys(group for _, group in chosen)},
        "shown": shown,
        "views": [_lists(each, rows, shown, pictures) for each in evaluated],
        "total": total,
        "split": split,
    }


def _lists(evaluated: Evaluated, query_rows: Ints, shown: int, pictures: Pictures) -> dict[str, Any]:
    """Lists of one view, which has all of these queries."""
    source = evaluated.view.source
    lists = evaluated.view.kept().neighbours
    at = np.searchsorted(source.queries.rows, query_rows)
    length = min(evaluated.num_kept, MOST_VOTING)
    rows_QK, similarities_QK = lists.rows_QK[at, :length], lists.similarities_QK[at, :length]
    labels_QK = source.labels.train.by_row(source.features.split("train").num_rows)[rows_QK]
    return {
        "length": length,
        "labels": packed(labels_QK.astype(np.int32)),
        "similarities": packed(similarities_QK),
        "places": [[pictures.place(source, "train", row) for row in rows] for rows in rows_QK[:, :shown].tolist()],
    }


def packed(array: Array) -> str:
    """Write an array's bytes, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()).decode()
