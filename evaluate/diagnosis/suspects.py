"""Rows to look at: likely label errors, near-duplicates within and across the splits, and outliers.

All of it by the cosine distance, 1 - cosine, from lists of neighbours in train: of each row of train among the others,
and of each row of val.

Shape suffixes:  Q queries   K neighbours   N database rows   D feature dimension
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from featbench.evaluate.counting import OnRows
from featbench.evaluate.diagnosis.results import Suspect, SuspectsResult
from featbench.evaluate.features.labels import Labelled, MatchedLabels, counts_of
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import rounding_of_cosines
from featbench.evaluate.neighbours.search import Neighbours
from featbench.store.typing import Bools, Doubles, Floats, Ints

FARTHEST = 2.0
"""Largest cosine distance: that of a row without any row of its class in train, or of zeros."""

PASSES = 4
"""How often each row is counted: by its nearest of each class, its component, its duplicates, and its scores."""

Kind = Literal["leak", "label error", "duplicate", "outlier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicions:
    """Suspects of one layer, and which rows they are, by split."""

    result: SuspectsResult
    removed: dict[Kind, dict[str, Ints]]
    """By kind and split: rows to leave out. Of the duplicates in train, the first of each component stays."""


def find_suspects(
    layer: EvalLayer,
    labels: MatchedLabels,
    lists: dict[str, Neighbours],
    *,
    k: int,
    threshold: float,
    share: float,
    memory: int,
    on_rows: OnRows = lambda rows: None,
) -> Suspicions:
    """Find the rows of a layer to look at.

    Parameters
    ----------
    layer : EvalLayer
        The layer.
    labels : MatchedLabels
        Result of `matched_labels`.
    lists : dict of str to Neighbours
        By split: the neighbours in train of its rows, at least k, by the cosine; for train leave-one-out.
    k : int
        The distance to the k-th neighbour says how far out a row is.
    threshold : float
        Cosine from which two rows are near-duplicates, up to rounding; 1 means equal, or positive multiples.
    share : float
        Largest fraction of the rows, of both splits together, that are listed as label errors, and as outliers.
    memory : int
        Bytes for the rows of some classes, read together.
    on_rows : callable
        Called with numbers of rows as these are done: `PASSES` times with each row that has a list.

    Notes
    -----
    Label errors are those of SelfClean: with the distances a to the nearest row of train of the same class and b to the
    nearest of another class, the score is b^2 / (a^2 + b^2); low scores are suspicious, and only those below 1/2 are
    listed. Where the list holds no row of the same class, all rows of that class are searched, so scores are exact.

    References
    ----------
    Groeger et al., "Intrinsic Self-Supervision for Data Quality Audits", NeurIPS 2024, arXiv:2305.17048;
    Ramaswamy et al., "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000 (k-th neighbour).
    """
    num_rows = sum(len(each.rows_QK) for each in lists.values())
    sides = {split: _Side.of(layer, labels, split, found, memory, on_rows) for split, found in lists.items()}
    bound = threshold - rounding_of_cosines(layer.dim)
    components = connected(lists, labels, bound)
    on_rows(num_rows)
    most = max(1, math.ceil(share * num_rows))
    leaks, duplicates = _near(sides, components, bound)
    on_rows(num_rows)
    errors, num_closer = _label_errors(sides, most)
    outliers = _outliers(sides, k, most)
    on_rows(num_rows)
    suspects = [*_ranked(leaks), *_ranked(errors), *_ranked(duplicates), *_ranked(outliers)]
    sizes = np.bincount(np.concatenate([components[split] for split in lists]))
    result = SuspectsResult(
        layer=layer.facts, counts=counts_of(labels.train, labels.val), k=k, threshold=threshold, num_leaks=len(leaks),
        num_duplicates=int((np.bincount(components["train"])[components["train"]] > 1).sum()),
        num_components=int((sizes > 1).sum()), largest_component=int(sizes.max()), num_closer_to_others=num_closer,
        suspects=tuple(suspects),
    )  # fmt: skip
    return Suspicions(result=result, removed=_removed(suspects))


def nearest_of_class(
    layer: EvalLayer,
    database: Labelled,
    queries: Labelled,
    *,
    memory: int,
    on_rows: OnRows = lambda rows: None,
) -> tuple[Doubles, Ints]:
    """Cosine and row of each query's nearest database row of its own class; -1 and -1 if there is none.

    Rows of as many classes as fit into a quarter of the memory are read together. A query is not its own neighbour.
    `on_rows` is called with the number of queries of each class when they are done.
    """
    best_Q, rows_Q = np.full(len(queries.rows), -1.0), np.full(len(queries.rows), -1, np.int64)
    for chosen in _groups_of_classes(database, queries.labels, most=max(1, memory // 4 // (4 * layer.dim))):
        among, asking = np.isin(database.labels, chosen), np.flatnonzero(np.isin(queries.labels, chosen))
        if not among.any():
            on_rows(len(asking))
            continue
        part = replace(database, rows=database.rows[among], labels=database.labels[among])
        asked = replace(queries, rows=queries.rows[asking], labels=queries.labels[asking])
        features_ND, queries_QD = layer.select(part).read(), layer.select(asked).read()
        for ours_N, theirs_Q in zip(_by_class(part.labels, chosen), _by_class(asked.labels, chosen), strict=True):
            on_rows(len(theirs_Q))
            if not len(ours_N):
                continue
            rows_N = part.rows[ours_N]
            cosines_QN = _unit(queries_QD[theirs_Q]) @ _unit(features_ND[ours_N]).T
            if database.split == queries.split:
                cosines_QN[asked.rows[theirs_Q, None] == rows_N] = -np.inf
            nearest_Q = cosines_QN.argmax(axis=1)
            found_Q = cosines_QN[np.arange(len(theirs_Q)), nearest_Q]
            is_found_Q = np.isfinite(found_Q)
            places = asking[theirs_Q[is_found_Q]]
            best_Q[places], rows_Q[places] = np.clip(found_Q[is_found_Q], -1, 1), rows_N[nearest_Q[is_found_Q]]
    return best_Q, rows_Q


def _by_class(labels: Ints, classes: Ints) -> Iterator[Ints]:
    """Positions of each of these classes, rising."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.append(classes, classes[-1] + 1))
    return (order[start:stop] for start, stop in pairwise(bounds.tolist()))


def connected(lists: dict[str, Neighbours], labels: MatchedLabels, bound: float) -> dict[str, Ints]:
    """Number the connected components of near-duplicates, for each row that is used, by split."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = labels.train.rows
    starts = {"train": 0, "val": len(rows)}
    edges = []
    for split, found in lists.items():
        at, place = np.nonzero(found.similarities_QK >= bound)
        edges.append(np.stack([starts[split] + at, np.searchsorted(rows, found.rows_QK[at, place])]))
    first, second = np.concatenate(edges, axis=1)
    size = len(rows) + len(labels.val.rows)
    graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(size, size))
    _, numbers = connected_components(graph, directed=False)
    return {"train": numbers[: len(rows)].astype(np.int64), "val": numbers[len(rows) :].astype(np.int64)}


@dataclass(frozen=True, slots=True)
class _Side:
    """Rows of one split with their lists, and the nearest row of train of their own and of another class."""

    split: str
    rows: Ints
    found: Neighbours
    same_Q: Doubles
    other_Q: Doubles
    other_row_Q: Ints

    @classmethod
    def of(
        cls,
        layer: EvalLayer,
        labels: MatchedLabels,
        split: str,
        found: Neighbours,
        memory: int,
        on_rows: OnRows,
    ) -> _Side:
        """Find the nearest of each kind; 1 - FARTHEST where there is none, or there are no labels."""
        train = labels.train
        queries = train if split == "train" else labels.val
        none_Q = np.full(len(queries.rows), 1 - FARTHEST)
        if not (train.has_labels and queries.has_labels):
            on_rows(len(queries.rows))
            return cls(split, queries.rows, found, none_Q, none_Q, none_Q.astype(np.int64))
        labels_QK = train.by_row(layer.layers["train"].num_rows)[found.rows_QK]
        is_same_QK = labels_QK == queries.labels[:, None]
        same_Q = _first(found.similarities_QK, is_same_QK)
        other_Q = _first(found.similarities_QK, ~is_same_QK)
        other_row_Q = found.rows_QK[np.arange(len(queries.rows)), (~is_same_QK).argmax(axis=1)]
        open_Q = np.flatnonzero(~is_same_QK.any(axis=1))
        on_rows(len(queries.rows) - len(open_Q))
        if len(open_Q):
            asked = replace(queries, rows=queries.rows[open_Q], labels=queries.labels[open_Q])
            same_Q[open_Q], _ = nearest_of_class(layer, train, asked, memory=memory, on_rows=on_rows)
        return cls(split, queries.rows, found, same_Q, other_Q, other_row_Q)

    def scores(self) -> Doubles:
        """SelfClean's score; 1 where all listed neighbours are of the same class, so that it is at least 1/2."""
        same_Q, other_Q = (np.clip(1 - each, 0, FARTHEST) ** 2 for each in (self.same_Q, self.other_Q))
        total_Q = same_Q + other_Q
        scores_Q = np.divide(other_Q, total_Q, out=np.full(len(total_Q), 0.5), where=total_Q > 0)
        return np.where(self.other_Q <= 1 - FARTHEST, 1.0, scores_Q)


def _first(similarities_QK: Doubles, which_QK: Bools) -> Doubles:
    """Similarity of the first of some neighbours; 1 - FARTHEST if there is none."""
    first_Q = similarities_QK[np.arange(len(which_QK)), which_QK.argmax(axis=1)]
    return np.where(which_QK.any(axis=1), np.maximum(first_Q, 1 - FARTHEST), 1 - FARTHEST)


def _near(sides: dict[str, _Side], components: dict[str, Ints], bound: float) -> tuple[list[Suspect], list[Suspect]]:
    """Rows of val with a near-duplicate in train, and rows of train in the component of an earlier row."""
    suspects: dict[str, list[Suspect]] = {"train": [], "val": []}
    _, firsts = np.unique(components["train"], return_index=True)
    for split, side in sides.items():
        nearest_Q = side.found.similarities_QK[:, 0]
        listed_Q = nearest_Q >= bound
        if split == "train":
            listed_Q = np.ones(len(side.rows), np.bool_)
            listed_Q[firsts] = False
        places = np.flatnonzero(listed_Q)
        for place in places[np.argsort(-nearest_Q[places], kind="stable")]:
            suspects[split].append(
                Suspect(
                    kind="duplicate" if split == "train" else "leak",
                    rank=0,
                    score=float(nearest_Q[place]),
                    split=split,
                    row=int(side.rows[place]),
                    group=int(components[split][place]),
                    other_split="train",
                    other_row=int(side.found.rows_QK[place, 0]),
                )
            )
    return suspects["val"], suspects["train"]


def _label_errors(sides: dict[str, _Side], most: int) -> tuple[list[Suspect], int]:
    """Rows that are nearer to another class than to their own, the most suspicious first; and how many there are."""
    found = [
        Suspect(
            kind="label error", rank=0, score=float(score), split=split, row=int(side.rows[place]), group=None,
            other_split="train", other_row=int(side.other_row_Q[place]),
        )
        for split, side in sides.items()
        for place, score in _lowest(side.scores(), most)
        if score < 0.5
    ]  # fmt: skip
    num_closer = sum(int((side.scores() < 0.5).sum()) for side in sides.values())
    return sorted(found, key=lambda each: each.score)[:most], num_closer


def _outliers(sides: dict[str, _Side], k: int, most: int) -> list[Suspect]:
    """Rows that are farthest from their k-th neighbour."""
    found = []
    for split, side in sides.items():
        distances_Q = np.clip(1 - side.found.similarities_QK[:, k - 1], 0, FARTHEST)
        found += [
            Suspect(
                kind="outlier", rank=0, score=float(-score), split=split, row=int(side.rows[place]), group=None,
                other_split="train", other_row=int(side.found.rows_QK[place, k - 1]),
            )
            for place, score in _lowest(-distances_Q, most)
        ]  # fmt: skip
    return sorted(found, key=lambda each: -each.score)[:most]


def _lowest(scores_Q: Doubles, most: int) -> Iterator[tuple[int, float]]:
    """Places with the lowest scores, in order."""
    for place in np.argsort(scores_Q, kind="stable")[:most]:
        yield int(place), float(scores_Q[place])


def _ranked(suspects: Sequence[Suspect]) -> list[Suspect]:
    return [replace(each, rank=rank) for rank, each in enumerate(suspects, start=1)]


def _removed(suspects: Sequence[Suspect]) -> dict[Kind, dict[str, Ints]]:
    kinds: tuple[Kind, ...] = ("leak", "label error", "duplicate", "outlier")
    return {
        kind: {
            split: np.array(sorted(e.row for e in suspects if (e.kind, e.split) == (kind, split)), np.int64)
            for split in ("train", "val")
        }
        for kind in kinds
    }


def _groups_of_classes(database: Labelled, labels_Q: Ints, *, most: int) -> Iterator[Ints]:
    """Yield the classes of queries in groups: one class, or several with at most `most` rows in the database."""
    classes = np.unique(labels_Q)
    counts = np.bincount(database.labels, minlength=int(classes[-1]) + 1)[classes]
    start, total = 0, 0
    for place, count in enumerate(counts):
        if total and total + count > most:
            yield classes[start:place]
            start, total = place, 0
        total += int(count)
    yield classes[start:]


def _unit(features_ND: Floats) -> Doubles:
    """Scale rows to length 1 in float64; rows of zeros stay."""
    rows_ND = features_ND.astype(np.float64)
    lengths_N = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return np.asarray(rows_ND / np.where(lengths_N > 0, lengths_N, 1))
