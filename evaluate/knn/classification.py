"""Weighted kNN classification of a feature set: neighbours (cached), votes, accuracies.

There is one result for each layer, protocol, k and temperature. Protocols of the same similarity share one search.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from featbench.evaluate import metrics
from featbench.evaluate.clustering.evaluation import counts_of
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, matched_labels
from featbench.evaluate.features.layers import EvalLayer, views_of
from featbench.evaluate.knn.per_class import class_accuracies
from featbench.evaluate.knn.protocols import KnnProtocol, find_protocol, preprocessing_differs
from featbench.evaluate.knn.retrieval import retrieval_metrics
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.neighbours.cache import SearchResult
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.planning import DEFAULT, Resources
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.evaluate.results import (
    Accuracy,
    ClassResult,
    KnnResult,
    NeighboursResult,
    Record,
    Result,
    RetrievalResult,
    uniform,
)
from featbench.store import FeatureSet
from featbench.store.typing import Bools, Doubles, Ints

__all__ = ["KnnQuestion", "classify", "evaluate_knn", "knn_results", "uniform"]

logger = logging.getLogger(__name__)

Protocols = str | Sequence[str] | Mapping[str, KnnProtocol]

SORTED_BY_NUMBER = 16
"""Classes up to which torch's sort, by which peers rank, leaves equal scores in order of their numbers (on a CPU)."""

Find = Callable[..., SearchResult]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnQuestion:
    """What is to be said of the neighbours."""

    protocols: Mapping[str, KnnProtocol]
    """Similarity and voting, by name."""

    k: Sequence[int] | None = None
    """Neighbours that vote; each protocol's own by default. One search at the largest serves all."""

    temperature: Sequence[float] | None = None
    """Each protocol's own by default."""

    leave_one_out: bool = False
    """Classify train by train instead, each row by the others."""

    retrieval: bool = False
    """Also measure how well rows of the same class come first; searches for as many neighbours as the largest class
    has rows."""

    duplicates: float | None = None
    """Queries whose nearest neighbour has at least this cosine, but for rounding, count as near-duplicates of a
    database row; accuracies without them are added. 1 means equal rows, and multiples of them."""

    per_class: bool = False
    """Also a result for each class, for each protocol's first k and temperature."""

    predictions: bool = False
    """Whether results hold the predicted class of each query."""


def evaluate_knn(features: FeatureSet, layers: Sequence[str | EvalLayer], **settings: Any) -> list[Record]:
    """Classify val by the weighted votes of its neighbours in train, and return flat records; see `knn_results`.

    Returns
    -------
    list of dict
        `top1`, `top5` (only classes with a vote count), `top5_filled` (classes without a vote appended by
        number), `top5_protocol` (as the protocol's project counts, where that is one number: see
        docs/architecture.md) and `mean_per_class`, fractions of 1,
        each with `_low` and `_high`, the ends of its 95% interval; and what they were computed from.
    """
    return [result.record() for result in knn_results(features, layers, **settings)]


def knn_results(
    features: FeatureSet,
    layers: Sequence[str | EvalLayer],
    *,
    protocol: Protocols = "dino",
    index: str | None = None,
    resources: Resources = DEFAULT,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
    **question: Any,
) -> list[Result]:
    """Classify val by the weighted votes of its neighbours in train.

    Parameters
    ----------
    features : FeatureSet
        Has the layers, complete, in both splits; neighbours are kept there.
    layers : sequence of str or EvalLayer
        What to evaluate.
    protocol : str, sequence of str, or mapping of str to KnnProtocol
        Similarity and voting: keys of `PROTOCOLS`, or protocols by name.
    index : str, optional
        Search approximately, by faiss's index of this factory string; results then give its `recall`.
    resources : Resources
        Memory, device and ranks of the search; changes no number.
    on_rows : callable
        Told layer and number of database rows after each block.
    **question
        The other fields of `KnnQuestion`: `k`, `temperature`, `leave_one_out`, `retrieval`, `duplicates`, `per_class`,
        `predictions`.

    Raises
    ------
    EvaluationError
        If k is larger than the number of database rows.

    Notes
    -----
    Where a split has no label, its neighbours are found and kept, and a result says no more of each search than that.
    """
    asked = KnnQuestion(protocols=protocols_by_name(protocol), **question)
    _warn_of_preprocessing(features, asked.protocols)
    train, val, names = matched_labels(features, needed=False)
    find = partial(find_neighbours, features, index=index, resources=resources)
    views = views_of(features, layers)
    return classify(views, train, val, names, asked, find=find, on_rows=on_rows, name=features.name)


def classify(
    views: Sequence[EvalLayer],
    train: Labelled,
    val: Labelled,
    class_names: Sequence[str],
    asked: KnnQuestion,
    *,
    find: Find,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
    name: str,
) -> list[Result]:
    """Answer a question about layers, wherever they are.

    Parameters
    ----------
    views : sequence of EvalLayer
        The layers.
    train, val, class_names
        As `matched_labels` returns them.
    asked : KnnQuestion
        What to say of the neighbours.
    find : callable
        Finds the neighbours of a view: `find_neighbours`, or `search_neighbours`, which keeps nothing.
    on_rows : callable
        Told layer and number of database rows after each block.
    name : str
        What messages call the features.
    """
    rules = asked.protocols
    if asked.duplicates is not None and any(rule.similarity != "cosine" for rule in rules.values()):
        raise EvaluationError("near-duplicates are found by the cosine: choose protocols that use it, such as dino")
    queries = train if asked.leave_one_out else val
    ks = {each: usable_k(asked.k, rule.k, len(train.rows) - asked.leave_one_out) for each, rule in rules.items()}
    unlabelled = list(dict.fromkeys(part.split for part in (train, queries) if not part.has_labels))
    if unlabelled:
        _warn_of_missing_labels(name, unlabelled, retrieval=asked.retrieval, per_class=asked.per_class)
    results: list[Result] = []
    for view in views:
        of_view: list[Result] = []
        for similarity in dict.fromkeys(rule.similarity for rule in rules.values()):
            ks_of = {each: ks[each] for each, rule in rules.items() if rule.similarity == similarity}
            k = max(map(max, ks_of.values()))
            longest = max(k, _most_relevant(train, queries)) if asked.retrieval and not unlabelled else k
            found = find(
                view, database=train, queries=queries, similarity=similarity, k=longest,
                on_rows=partial(on_rows, view.name),
            )  # fmt: skip
            searched = _Searched(view, train, val, queries, class_names, similarity, found, asked)
            of_view += searched.unlabelled(k) if unlabelled else searched.results(ks_of)
        # As asked for, although those of one similarity are answered together; what is no protocol's comes last.
        places = {each: place for place, each in enumerate(rules)}
        results += sorted(of_view, key=lambda result: places.get(getattr(result, "protocol", ""), len(places)))
    return results


@dataclass(frozen=True, slots=True)
class _Searched:
    """Neighbours by one similarity, and all that is to be said of them."""

    view: EvalLayer
    train: Labelled
    val: Labelled
    queries: Labelled
    class_names: Sequence[str]
    similarity: Similarity
    found: SearchResult
    asked: KnnQuestion

    def results(self, ks_of: Mapping[str, Sequence[int]]) -> list[Result]:
        """Say how well each protocol classifies, with its k."""
        asked, k = self.asked, max(map(max, ks_of.values()))
        labels_QK = self.train.by_row(self.view.layers["train"].num_rows)[self.found.neighbours.rows_QK]
        judge = KnnScorer.of(
            labels_QK[:, :k], self.found.neighbours.similarities_QK, self.queries, len(self.class_names),
            asked.duplicates, rounding_of_cosines(self.view.dim),
        )  # fmt: skip
        results: list[Result] = []
        for name, ks in ks_of.items():
            results += self._accuracies(judge, name, ks)
            if asked.per_class:
                results += self._classes(judge, name, ks[0])
        if asked.retrieval:
            results.append(self._retrieval(labels_QK, next(iter(ks_of.values()))))
        return results

    def unlabelled(self, k: int) -> list[Result]:
        """Say that neighbours were found."""
        duplicates = self.asked.duplicates
        if duplicates is not None:
            nearest_Q = self.found.neighbours.similarities_QK[:, 0]
            duplicates = int((nearest_Q >= duplicates - rounding_of_cosines(self.view.dim)).sum())
        return [self._make(NeighboursResult, k=k, search=self.found.facts(k), num_duplicates=duplicates)]

    def _accuracies(self, judge: KnnScorer, name: str, ks: Sequence[int]) -> list[Result]:
        rule = self.asked.protocols[name]
        return [
            self._make(
                KnnResult, protocol=name, vote=rule.vote, k=k, temperature=temperature, accuracy=accuracy,
                search=self.found.facts(k), predictions=best_Q if self.asked.predictions else None,
            )
            for temperature in temperatures_of(name, rule, self.asked.temperature)
            for k, (accuracy, best_Q) in zip(ks, judge.accuracies(rule, ks, temperature), strict=True)
        ]  # fmt: skip

    def _classes(self, judge: KnnScorer, name: str, k: int) -> list[Result]:
        rule = self.asked.protocols[name]
        temperature = temperatures_of(name, rule, self.asked.temperature)[0]
        best_Q = judge.best_classes(rule, k, temperature)
        return [
            self._make(ClassResult, protocol=name, vote=rule.vote, k=k, temperature=temperature, accuracy=accuracy)
            for accuracy in class_accuracies(best_Q, self.queries.labels, self.class_names)
        ]

    def _retrieval(self, labels_QK: Ints, ks: Sequence[int]) -> Result:
        scores = _retrieval(labels_QK, self.train, self.queries, ks)
        if not scores["num_answerable"]:
            text = "%s: no query has a row of its own class in the database, so retrieval can't be measured"
            logger.warning(text, self.view.name)
        recalls = {k: scores.pop(f"recall_at_{k}") for k in ks}
        return self._make(RetrievalResult, **scores, recall_at=recalls, search=self.found.facts())

    def _make(self, kind: Callable[..., T], **more: Any) -> T:
        """Make a result with what all of them say."""
        counts, is_loo = counts_of(self.train, self.val), self.asked.leave_one_out
        return kind(layer=self.view.facts, counts=counts, similarity=self.similarity, leave_one_out=is_loo, **more)


@dataclass(frozen=True, slots=True)
class KnnScorer:
    """Neighbours' classes and similarities, ready to be voted on by many rules, and what is right."""

    ballot: ClassVotes
    similarities_QK: Doubles
    labels_Q: Ints
    is_duplicate_Q: Bools | None

    @classmethod
    def of(
        cls,
        labels_QK: Ints,
        similarities_QK: Any,
        queries: Labelled,
        num_classes: int,
        duplicates: float | None = None,
        rounding: float = 0.0,
    ) -> KnnScorer:
        """Prepare lists of K neighbours; `similarities_QK` may be longer, and off by `rounding`."""
        twins = None if duplicates is None else similarities_QK[:, 0] >= duplicates - rounding
        ballot = ClassVotes.of(labels_QK, num_classes=num_classes)
        return cls(ballot, similarities_QK[:, : labels_QK.shape[1]], queries.labels, twins)

    def best_classes(self, rule: KnnProtocol, k: int, temperature: float | None) -> Ints:
        """What each query is taken for."""
        weights_QK = vote_weights(self.similarities_QK, vote=rule.vote, temperature=temperature)
        return self.ballot.ranking(weights_QK, k=k, top=1)[:, 0]

    def accuracies(
        self, rule: KnnProtocol, ks: Sequence[int], temperature: float | None
    ) -> list[tuple[Accuracy, Ints]]:
        """Accuracies of one rule, for each k, with the predicted class of each query."""
        weights_QK = vote_weights(self.similarities_QK, vote=rule.vote, temperature=temperature)
        return [self._accuracy(rule, weights_QK, k) for k in ks]

    def _order_is_known(self, rule: KnnProtocol) -> bool:
        """Whether it is known in which order the protocol's project lists classes without a vote."""
        num_classes = self.ballot.num_classes
        return num_classes <= 5 or (num_classes <= SORTED_BY_NUMBER and rule.top5 != "unordered")

    def _accuracy(self, rule: KnnProtocol, weights_QK: Any, k: int) -> tuple[Accuracy, Ints]:
        ballot = self.ballot
        ranked = ballot.ranking(weights_QK, k=k)
        hits = ranked == self.labels_Q[:, None]
        top1, top5 = hits[:, 0], hits.any(axis=1)
        behind = ballot.places_among_unvoted(self.labels_Q, k=k)
        voted = ballot.num_voted(k=k)
        filled = top5 | ((behind >= 0) & (behind + voted < 5))
        capped = hits[:, :k].any(axis=1) | ((behind >= 0) & (behind + voted < min(5, k)))
        places = min(5, k) if rule.top5 == "capped" else 5
        is_settled = not ((behind >= 0) & (voted < places)).any() or self._order_is_known(rule)
        own = {"voted": top5, "filled": filled, "capped": capped, "unordered": filled}.get(rule.top5)
        is_known = own is not None and (is_settled or rule.top5 == "voted")
        num_duplicates, without = None, None
        if self.is_duplicate_Q is not None:
            others = ~self.is_duplicate_Q
            num_duplicates = int(self.is_duplicate_Q.sum())
            without = metrics.proportion(top1[others]) if others.any() else None
        accuracy = Accuracy(
            top1=metrics.proportion(top1),
            top5=metrics.proportion(top5),
            top5_filled=metrics.proportion(filled),
            mean_per_class=metrics.mean_per_class(top1, self.labels_Q),
            top5_protocol=metrics.proportion(own) if own is not None and is_known else None,
            num_duplicates=num_duplicates,
            top1_without_duplicates=without,
        )
        return accuracy, ranked[:, 0]


def rounding_of_cosines(dim: int) -> float:
    """How far a cosine of float64 can be off, for rows of `dim` numbers.

    Of a sum of D products, and of the two lengths: (D + 4) * 2**-52 in all (Higham, "Accuracy and Stability of
    Numerical Algorithms", 2002, sec. 3.1). Without it equal rows, whose cosine is 1, would not all reach 1.

    Examples
    --------
    >>> rounding_of_cosines(2044) == 2**-41
    True
    """
    return float((dim + 4) * 2.0**-52)


def usable_k(asked: Sequence[int] | None, usual: Sequence[int], num_rows: int, *, what: str = "train") -> list[int]:
    """The asked-for k, all of which must fit; or those of the protocol's that do."""
    if asked:
        too_large = [k for k in asked if not 1 <= k <= num_rows]
        if too_large:
            raise EvaluationError(
                f"k must be in [1, {num_rows}], the labelled rows of {what}; got {', '.join(map(str, too_large))}"
            )
        return list(asked)
    fitting = [k for k in usual if k <= num_rows] or [num_rows]
    if len(fitting) < len(usual):
        text = "%s has %d labelled rows, so k is %s instead of %s"
        logger.warning(text, what, num_rows, fitting, list(usual))
    return fitting


def temperatures_of(name: str, rule: KnnProtocol, asked: Sequence[float] | None) -> Sequence[float | None]:
    """The asked-for temperatures, or the protocol's own; None where it votes without one."""
    if rule.vote == "exponential":
        return asked or rule.temperature
    if asked:
        logger.warning("protocol %s votes without a temperature; %s has no effect", name, list(asked))
    return (None,)


def protocols_by_name(protocol: Protocols) -> Mapping[str, KnnProtocol]:
    """Look protocols up, where they are named."""
    if isinstance(protocol, Mapping):
        return protocol
    names = (protocol,) if isinstance(protocol, str) else protocol
    return {name: find_protocol(name) for name in names}


def _warn_of_preprocessing(features: FeatureSet, rules: Mapping[str, KnnProtocol]) -> None:
    transform = features.manifest.made_from.get("transform")
    for name, rule in rules.items():
        differs = preprocessing_differs(rule, transform)
        if differs:
            logger.warning("%s: preprocessed otherwise than protocol %s does: %s", features.name, name, differs)


def _warn_of_missing_labels(name: str, splits: Sequence[str], *, retrieval: bool, per_class: bool) -> None:
    asked = [option for option, wanted in (("--retrieval", retrieval), ("--per-class", per_class)) if wanted]
    also = f", nor what {' and '.join(asked)} would say" if asked else ""
    text = "%s: no row of %s has a label: neighbours are found and kept, but no accuracy can be given%s"
    logger.warning(text, name, " and ".join(splits), also)


def _most_relevant(train: Labelled, queries: Labelled) -> int:
    """Rows of the largest class, without the query itself."""
    return int(np.bincount(train.labels).max()) - (train.split == queries.split) or 1


def _retrieval(labels_QK: Ints, train: Labelled, queries: Labelled, ks: Sequence[int]) -> dict[str, Any]:
    counts = np.bincount(train.labels, minlength=int(max(train.labels.max(), queries.labels.max())) + 1)
    relevant = counts[queries.labels] - (train.split == queries.split)
    return retrieval_metrics(labels_QK, queries.labels, relevant, k=ks)
