"""Weighted kNN classification of a feature set: neighbours (cached), votes, accuracies.

There is one result for each layer, protocol, k and temperature. Protocols with the same similarity share one search.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from featbench.evaluate import metrics
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled, MatchedLabels, counts_of, matched_labels, refuse_no_queries
from featbench.evaluate.features.layers import EvalLayer, layers_of
from featbench.evaluate.knn.per_class import class_accuracies
from featbench.evaluate.knn.protocols import KnnProtocol, find_protocol, preprocessing_differs
from featbench.evaluate.knn.published import overflows, published_ranking
from featbench.evaluate.knn.retrieval import retrieval_metrics
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.neighbours.cache import SearchResult
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.planning import DEFAULT, Resources
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.evaluate.notices import warn
from featbench.evaluate.results import (
    Accuracy,
    ClassResult,
    Counts,
    KnnResult,
    NeighboursResult,
    Published,
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
"""Most classes for which torch's sort on a CPU, which other projects rank by, keeps equal scores in class order."""

Find = Callable[..., SearchResult]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnQuestion:
    """What to compute from the neighbours."""

    protocols: Mapping[str, KnnProtocol]
    """Protocols by name."""

    k: Sequence[int] | None = None
    """Neighbours that vote; each protocol's by default. One search at the largest k serves all of them."""

    temperature: Sequence[float] | None = None
    """Each protocol's by default."""

    leave_one_out: bool = False
    """Classify each row of train by the other rows of train, instead of val by train."""

    retrieval: bool = False
    """Also compute retrieval metrics; searches for as many neighbours as the largest class has rows."""

    duplicates: float | None = None
    """Cosine with its nearest neighbour from which a query counts as a near-duplicate, up to rounding; accuracy without
    near-duplicates is added. 1 means equal rows, and positive multiples of them."""

    per_class: bool = False
    """Also return a result for each class, at each protocol's first k and temperature."""

    as_published: bool = False
    """Count votes in the protocol's own arithmetic, where that overflows: VISSL's."""

    predictions: bool = False
    """Whether results include the predicted class of each query."""


def evaluate_knn(features: FeatureSet, layers: Sequence[str | EvalLayer], **settings: Any) -> list[Record]:
    """Classify val by the weighted votes of its neighbours in train, and return flat records; see `knn_results`.

    Returns
    -------
    list of dict
        `top1`, `top5` (only classes with a vote count), `top5_filled` (classes without a vote appended by
        number), `top5_protocol` (as the protocol's project computes it, if that is well defined: see
        docs/architecture.md) and `mean_per_class`, fractions of 1,
        each with `_low` and `_high`, the ends of its 95% interval; and the settings they were computed with.
    """
    return [result.record() for result in knn_results(features, layers, **settings)]


def knn_results(
    features: FeatureSet,
    layers: Sequence[str | EvalLayer],
    *,
    protocol: Protocols = "dino",
    index: str | None = None,
    labels: MatchedLabels | None = None,
    resources: Resources = DEFAULT,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
    compare_preprocessing: bool = True,
    **question: Any,
) -> list[Result]:
    """Classify val by the weighted votes of its neighbours in train.

    Parameters
    ----------
    features : FeatureSet
        Has the layers, complete, in both splits; neighbours are cached there.
    layers : sequence of str or EvalLayer
        Layers to evaluate.
    protocol : str, sequence of str, or mapping of str to KnnProtocol
        Similarity and voting: keys of `PROTOCOLS`, or protocols by name.
    index : str, optional
        Factory string of a faiss index, for an approximate search; results then have its `recall`.
    labels : MatchedLabels, optional
        Result of `matched_labels`, to match, and to warn of rows that are left out, only once.
    resources : Resources
        Memory, device and ranks of the search; changes no result.
    on_rows : callable
        Called after each block with the layer and its number of rows.
    compare_preprocessing : bool
        Whether to warn if images were preprocessed differently than by a protocol's project.
    **question
        The other fields of `KnnQuestion`: `k`, `temperature`, `leave_one_out`, `retrieval`, `duplicates`, `per_class`,
        `as_published`, `predictions`.

    Raises
    ------
    EvaluationError
        If k is larger than the number of database rows.

    Notes
    -----
    If a split has no labels, neighbours are found and cached, and there is one `NeighboursResult` for each search.
    """
    asked = KnnQuestion(protocols=protocols_by_name(protocol), **question)
    if compare_preprocessing:
        _warn_of_preprocessing(features, asked.protocols)
    find = partial(find_neighbours, features, index=index, resources=resources)
    return classify(
        layers_of(features, layers), *(labels or matched_labels(features, needed=False)), asked, find=find,
        on_rows=on_rows, name=features.name,
    )  # fmt: skip


def classify(
    layers: Sequence[EvalLayer],
    train: Labelled,
    val: Labelled,
    class_names: Sequence[str],
    asked: KnnQuestion,
    *,
    find: Find,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
    name: str,
) -> list[Result]:
    """Classify by layers of a feature set, or in memory.

    Parameters
    ----------
    layers : sequence of EvalLayer
        The layers.
    train, val, class_names
        The result of `matched_labels`.
    asked : KnnQuestion
        What to compute from the neighbours.
    find : callable
        Finds the neighbours of a layer: `find_neighbours`, or `search_neighbours`, which has no cache.
    on_rows : callable
        Called after each block with the layer and its number of rows.
    name : str
        Name of the features in messages.
    """
    protocols = asked.protocols
    stable = [each for each, protocol in protocols.items() if not protocol.overflows]
    if asked.as_published and stable:
        raise EvaluationError(
            "--as-published is for protocols whose own arithmetic overflows, which is vissl alone; got "
            + ", ".join(stable)
        )
    if asked.as_published and (asked.per_class or asked.duplicates is not None):
        raise EvaluationError("--as-published gives top-1 and top-5 alone: leave out --per-class and --duplicates")
    if asked.duplicates is not None and any(protocol.similarity != "cosine" for protocol in protocols.values()):
        raise EvaluationError("near-duplicates are found by the cosine: choose protocols that use it, such as dino")
    queries = train if asked.leave_one_out else val
    refuse_no_queries(name, queries)
    ks = {
        each: usable_k(asked.k, protocol.k, len(train.rows) - asked.leave_one_out)
        for each, protocol in protocols.items()
    }
    unlabelled = list(dict.fromkeys(labelled.split for labelled in (train, queries) if not labelled.has_labels))
    if unlabelled:
        _warn_of_missing_labels(name, unlabelled, retrieval=asked.retrieval, per_class=asked.per_class)
    counts = counts_of(train, val)
    results: list[Result] = []
    for layer in layers:
        of_layer: list[Result] = []
        for similarity in dict.fromkeys(protocol.similarity for protocol in protocols.values()):
            ks_of = {each: ks[each] for each, protocol in protocols.items() if protocol.similarity == similarity}
            k = max(map(max, ks_of.values()))
            longest = max(k, _most_relevant(train, queries)) if asked.retrieval and not unlabelled else k
            found = find(
                layer, database=train, queries=queries, similarity=similarity, k=longest,
                on_rows=partial(on_rows, layer.name),
            )  # fmt: skip
            searched = _Searched(layer, counts, train, queries, class_names, similarity, found, asked)
            of_layer += searched.unlabelled(k) if unlabelled else searched.results(ks_of)
        # In the order of the protocols, although those of one similarity share a search; other results come last.
        places = {each: place for place, each in enumerate(protocols)}
        results += sorted(of_layer, key=lambda result: places.get(getattr(result, "protocol", ""), len(places)))
    return results


@dataclass(frozen=True, slots=True)
class _Searched:
    """Neighbours of one layer by one similarity, and the results computed from them."""

    layer: EvalLayer
    counts: Counts
    train: Labelled
    queries: Labelled
    class_names: Sequence[str]
    similarity: Similarity
    found: SearchResult
    asked: KnnQuestion

    def results(self, ks_of: Mapping[str, Sequence[int]]) -> list[Result]:
        """Compute the results of each protocol, with its k."""
        asked, k = self.asked, max(map(max, ks_of.values()))
        labels_QK = self.train.by_row(self.layer.layers["train"].num_rows)[self.found.neighbours.rows_QK]
        scorer = KnnScorer.of(
            labels_QK[:, :k], self.found.neighbours.similarities_QK, self.queries, len(self.class_names),
            asked.duplicates, rounding_of_cosines(self.layer.dim),
        )  # fmt: skip
        results: list[Result] = []
        for name, ks in ks_of.items():
            results += self._accuracies(scorer, name, ks)
            if asked.per_class:
                results += self._classes(scorer, name, ks[0])
        if asked.retrieval:
            results.append(self._retrieval(labels_QK, next(iter(ks_of.values()))))
        return results

    def unlabelled(self, k: int) -> list[Result]:
        """Report the search alone, where there are no labels."""
        duplicates = self.asked.duplicates
        if duplicates is not None:
            nearest_Q = self.found.neighbours.similarities_QK[:, 0]
            duplicates = int((nearest_Q >= duplicates - rounding_of_cosines(self.layer.dim)).sum())
        return [self._make(NeighboursResult, k=k, search=self.found.facts(k), num_duplicates=duplicates)]

    def _accuracies(self, scorer: KnnScorer, name: str, ks: Sequence[int]) -> list[Result]:
        protocol = self.asked.protocols[name]
        return [
            self._make(
                KnnResult, protocol=name, vote=protocol.vote, k=k, temperature=temperature, accuracy=accuracy,
                search=self.found.facts(k), as_published=self.asked.as_published,
                predictions=best_Q if self.asked.predictions else None,
            )
            for temperature in temperatures_of(name, protocol, self.asked.temperature)
            for k, (accuracy, best_Q) in zip(
                ks, scorer.accuracies(protocol, ks, temperature, as_published=self.asked.as_published), strict=True
            )
        ]  # fmt: skip

    def _classes(self, scorer: KnnScorer, name: str, k: int) -> list[Result]:
        protocol = self.asked.protocols[name]
        temperature = temperatures_of(name, protocol, self.asked.temperature)[0]
        best_Q = scorer.best_classes(protocol, k, temperature)
        return [
            self._make(ClassResult, protocol=name, vote=protocol.vote, k=k, temperature=temperature, accuracy=accuracy)
            for accuracy in class_accuracies(best_Q, self.queries.labels, self.class_names)
        ]

    def _retrieval(self, labels_QK: Ints, ks: Sequence[int]) -> Result:
        scores = _retrieval(labels_QK, self.train, self.queries, ks)
        if not scores["num_answerable"]:
            text = "%s: no query has a row of its own class in the database, so retrieval can't be measured"
            warn(logger, text, self.layer.facts.features)
        recalls = {k: scores.pop(f"recall_at_{k}") for k in ks}
        return self._make(RetrievalResult, **scores, recall_at=recalls, search=self.found.facts())

    def _make(self, kind: Callable[..., T], **more: Any) -> T:
        """Make a result with the fields that all results have."""
        return kind(
            layer=self.layer.facts, counts=self.counts, similarity=self.similarity,
            leave_one_out=self.asked.leave_one_out, **more,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class KnnScorer:
    """Neighbours' classes and similarities, ready to be scored by several protocols, with the true classes."""

    votes: ClassVotes
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
        votes = ClassVotes.of(labels_QK, num_classes=num_classes)
        return cls(votes, similarities_QK[:, : labels_QK.shape[1]], queries.labels, twins)

    def best_classes(self, protocol: KnnProtocol, k: int, temperature: float | None) -> Ints:
        """Predicted class of each query."""
        weights_QK = vote_weights(self.similarities_QK, vote=protocol.vote, temperature=temperature)
        return self.votes.ranking(weights_QK, k=k, top=1)[:, 0]

    def accuracies(
        self, protocol: KnnProtocol, ks: Sequence[int], temperature: float | None, *, as_published: bool = False
    ) -> list[tuple[Accuracy, Ints]]:
        """Accuracies of one protocol, for each k, with the predicted class of each query."""
        if as_published and temperature is not None:
            return [self._as_published(k, temperature) for k in ks]
        weights_QK = vote_weights(self.similarities_QK, vote=protocol.vote, temperature=temperature)
        found = [self._accuracy(protocol, weights_QK, k) for k in ks]
        if not protocol.overflows or temperature is None:
            return found
        return [
            (replace(accuracy, published=self._published(k, temperature)), best_Q)
            for k, (accuracy, best_Q) in zip(ks, found, strict=True)
        ]

    def _published(self, k: int, temperature: float) -> Published | None:
        """Accuracies in VISSL's arithmetic; None if nothing overflows."""
        overflowing = float(overflows(self.similarities_QK, temperature=temperature).mean())
        if not overflowing:
            return None
        accuracy, _ = self._as_published(k, temperature)
        return Published(top1=accuracy.top1.value, top5=accuracy.top5.value, overflowing=overflowing)

    def _as_published(self, k: int, temperature: float) -> tuple[Accuracy, Ints]:
        num_classes = self.votes.num_classes
        ranked = published_ranking(
            self.votes.labels_QK, self.similarities_QK, k=k, temperature=temperature, num_classes=num_classes
        )
        hits = ranked == self.labels_Q[:, None]
        # VISSL reports a top-5 of 0 for fewer than five classes.
        top5 = metrics.proportion(hits.any(axis=1) & (num_classes >= 5))
        accuracy = Accuracy(
            top1=metrics.proportion(hits[:, 0]),
            top5=top5,
            top5_filled=top5,
            mean_per_class=metrics.mean_per_class(hits[:, 0], self.labels_Q),
        )
        return accuracy, ranked[:, 0]

    def _order_is_known(self, protocol: KnnProtocol) -> bool:
        """Whether the order in which the protocol's project ranks classes without a vote is known."""
        num_classes = self.votes.num_classes
        return num_classes <= 5 or (num_classes <= SORTED_BY_NUMBER and protocol.top5 != "unordered")

    def _accuracy(self, protocol: KnnProtocol, weights_QK: Any, k: int) -> tuple[Accuracy, Ints]:
        votes = self.votes
        ranked = votes.ranking(weights_QK, k=k)
        hits = ranked == self.labels_Q[:, None]
        top1, top5 = hits[:, 0], hits.any(axis=1)
        behind = votes.places_among_unvoted(self.labels_Q, k=k)
        voted = votes.num_voted(k=k)
        filled = top5 | ((behind >= 0) & (behind + voted < 5))
        capped = hits[:, :k].any(axis=1) | ((behind >= 0) & (behind + voted < min(5, k)))
        places = min(5, k) if protocol.top5 == "capped" else 5
        is_settled = not ((behind >= 0) & (voted < places)).any() or self._order_is_known(protocol)
        own = {"voted": top5, "filled": filled, "capped": capped, "unordered": filled}.get(protocol.top5)
        is_known = own is not None and (is_settled or protocol.top5 == "voted")
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
    """Largest error of a cosine computed in float64, for rows of `dim` numbers.

    A sum of D products and two lengths: (D + 4) * 2**-52 together (Higham, "Accuracy and Stability of
    Numerical Algorithms", 2002, sec. 3.1). Without it, the computed cosine of equal rows can be below 1.

    Examples
    --------
    >>> rounding_of_cosines(2044) == 2**-41
    True
    """
    return float((dim + 4) * 2.0**-52)


def usable_k(asked: Sequence[int] | None, usual: Sequence[int], num_rows: int, *, what: str = "train") -> list[int]:
    """Return the requested k, all of which must fit; or those of the protocol's that fit."""
    if asked:
        too_large = [k for k in asked if not 1 <= k <= num_rows]
        if too_large:
            raise EvaluationError(
                f"k must be in [1, {num_rows}], the rows of {what} that can vote; got {', '.join(map(str, too_large))}"
            )
        return list(asked)
    fitting = [k for k in usual if k <= num_rows] or [num_rows]
    if fitting != list(usual):
        text = "at most %d rows of %s can vote, so k is %s instead of %s"
        warn(logger, text, num_rows, what, fitting, list(usual))
    return fitting


def temperatures_of(name: str, protocol: KnnProtocol, asked: Sequence[float] | None) -> Sequence[float | None]:
    """Return the requested temperatures, or the protocol's; None if it votes without one."""
    if protocol.vote == "exponential":
        return asked or protocol.temperature
    if asked:
        warn(logger, "protocol %s votes without a temperature; %s has no effect", name, list(asked))
    return (None,)


def protocols_by_name(protocol: Protocols) -> Mapping[str, KnnProtocol]:
    """Look up protocols that are given by name."""
    if isinstance(protocol, Mapping):
        return protocol
    names = (protocol,) if isinstance(protocol, str) else protocol
    return {name: find_protocol(name) for name in names}


def _warn_of_preprocessing(features: FeatureSet, protocols: Mapping[str, KnnProtocol]) -> None:
    transform = features.manifest.made_from.get("transform")
    for name, protocol in protocols.items():
        differs = preprocessing_differs(protocol, transform)
        if differs:
            warn(logger, "%s: preprocessed otherwise than protocol %s does: %s", features.name, name, differs)


def _warn_of_missing_labels(name: str, splits: Sequence[str], *, retrieval: bool, per_class: bool) -> None:
    asked = [option for option, wanted in (("--retrieval", retrieval), ("--per-class", per_class)) if wanted]
    also = f" ({' and '.join(asked)} {'need' if len(asked) > 1 else 'needs'} labels too)" if asked else ""
    text = "%s: no row of %s has a label: neighbours are found and cached, but there are no accuracies%s"
    warn(logger, text, name, " and ".join(splits), also)


def _most_relevant(train: Labelled, queries: Labelled) -> int:
    """Rows of the largest class, without the query."""
    return int(np.bincount(train.labels).max()) - (train.split == queries.split) or 1


def _retrieval(labels_QK: Ints, train: Labelled, queries: Labelled, ks: Sequence[int]) -> dict[str, Any]:
    counts = np.bincount(train.labels, minlength=int(max(train.labels.max(), queries.labels.max())) + 1)
    relevant = counts[queries.labels] - (train.split == queries.split)
    return retrieval_metrics(labels_QK, queries.labels, relevant, k=ks)
