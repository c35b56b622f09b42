"""Weighted kNN classification of a feature set: neighbours (cached), votes, accuracies.

Results are flat records, one for each layer, protocol, k and temperature, all with the same keys, so
that they make a table as they are. Protocols of the same similarity share one search.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluate import metrics
from evaluate.clustering import counts_of
from evaluate.labels import EvaluationError, Labelled, matched_labels
from evaluate.neighbours.finding import DEFAULT, Resources, find_neighbours
from evaluate.per_class import class_records
from evaluate.protocols import Protocol, find_protocol, preprocessing_differs
from evaluate.retrieval import retrieval_metrics
from evaluate.views import Record, View, views_of
from evaluate.vote import Ballot, vote_weights
from store import FeatureSet

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Protocols = str | Sequence[str] | Mapping[str, Protocol]

SORTED_BY_NUMBER = 16
"""Classes up to which torch's sort, by which peers rank, leaves equal scores in order of their numbers (on a CPU)."""

FIRST = ("task", "features", "layer", "protocol", "k", "temperature", "top1", "top5", "clusters", "split")
"""Keys that every record has, in front."""


def evaluate_knn(
    features: FeatureSet,
    layers: Sequence[str | View],
    *,
    protocol: Protocols = "dino",
    k: Sequence[int] | None = None,
    temperature: Sequence[float] | None = None,
    leave_one_out: bool = False,
    retrieval: bool = False,
    duplicates: float | None = None,
    per_class: bool = False,
    index: str | None = None,
    resources: Resources = DEFAULT,
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
) -> list[Record]:
    """Classify val by the weighted votes of its neighbours in train.

    Parameters
    ----------
    features : FeatureSet
        Has the layers, complete, in both splits.
    layers : sequence of str or View
        What to evaluate.
    protocol : str, sequence of str, or mapping of str to Protocol
        Similarity and voting: keys of `PROTOCOLS`, or protocols by name.
    k : sequence of int, optional
        Neighbours that vote; each protocol's own by default. One search at the largest serves all.
    temperature : sequence of float, optional
        Each protocol's own by default.
    leave_one_out : bool
        Classify train by train instead, each row by the others.
    retrieval : bool
        Also measure how well rows of the same class come first; searches for as many neighbours as
        the largest class has rows.
    duplicates : float, optional
        Queries whose nearest neighbour has at least this cosine, but for rounding, count as near-duplicates of a
        database row; accuracies without them are added. 1 means equal rows, and multiples of them.
    per_class : bool
        Also a record of each class, for each protocol's first k and temperature.
    index : str, optional
        Search approximately, by faiss's index of this factory string; records then give its `recall`.
    resources : Resources
        Memory, device and ranks of the search; changes no number.
    on_rows : callable
        Told layer and number of database rows after each block.

    Returns
    -------
    list of dict
        `top1`, `top5` (only classes with a vote count), `top5_filled` (classes without a vote appended by
        number), `top5_protocol` (as the protocol's project counts, where that is one number: see
        docs/architecture.md) and `mean_per_class`, fractions of 1,
        each with `_low` and `_high`, the ends of its 95% interval; and what they were computed from.

    Raises
    ------
    EvaluationError
        If k is larger than the number of database rows.

    Notes
    -----
    Where a split has no label, its neighbours are found and kept, and a record says no more of each search than that.
    """
    rules = protocols_by_name(protocol)
    if duplicates is not None and any(rule.similarity != "cosine" for rule in rules.values()):
        raise EvaluationError("near-duplicates are found by the cosine: choose protocols that use it, such as dino")
    train, val, names = matched_labels(features, needed=False)
    queries = train if leave_one_out else val
    largest = len(train.rows) - leave_one_out
    ks = {name: usable_k(k, rule.k, largest) for name, rule in rules.items()}
    _warn_of_preprocessing(features, rules)
    unlabelled = list(dict.fromkeys(part.split for part in (train, queries) if not part.has_labels))
    if unlabelled:
        _warn_of_missing_labels(features, unlabelled, retrieval=retrieval, per_class=per_class)
    labels_N = train.by_row(features.split("train").num_rows)
    records = []
    for view in views_of(features, layers):
        for similarity in dict.fromkeys(rule.similarity for rule in rules.values()):
            same = {name: rule for name, rule in rules.items() if rule.similarity == similarity}
            voting = max(max(ks[name]) for name in same)
            longest = max(voting, _most_relevant(train, queries)) if retrieval and not unlabelled else voting
            found = find_neighbours(
                features, view, database=train, queries=queries, similarity=similarity, index=index,
                resources=resources, k=longest, on_rows=partial(on_rows, view.name),
            )  # fmt: skip
            origin = view.facts | counts_of(train, val) | {"similarity": similarity, "leave_one_out": leave_one_out}
            neighbours, rounding = found.neighbours, rounding_of_cosines(view.dim)
            if unlabelled:
                record = origin | {"task": "neighbours", "protocol": similarity, "k": voting} | found.facts(voting)
                if duplicates is not None:
                    are_twins = neighbours.similarities_QK[:, 0] >= duplicates - rounding
                    record["num_duplicates"] = int(are_twins.sum())
                records.append(record)
                continue
            labels_QK = labels_N[neighbours.rows_QK]
            judge = Judge.of(
                labels_QK[:, :voting], neighbours.similarities_QK, queries, len(names), duplicates, rounding
            )
            for name, rule in same.items():
                origin_of_rule = origin | {"protocol": name, "vote": rule.vote}
                for each_temperature in temperatures_of(name, rule, temperature):
                    accuracies = judge.accuracies(rule, ks[name], each_temperature)
                    for each_k, accuracy in zip(ks[name], accuracies, strict=True):
                        setting = {"task": "knn", "k": each_k, "temperature": each_temperature}
                        records.append(origin_of_rule | setting | accuracy | found.facts(each_k))
                if per_class:
                    first_k, first = ks[name][0], temperatures_of(name, rule, temperature)[0]
                    setting = {"task": "class", "k": first_k, "temperature": first}
                    classes = class_records(judge.best_classes(rule, first_k, first), queries.labels, names)
                    records += [origin_of_rule | setting | each for each in classes]
            if retrieval:
                scores = _retrieval(labels_QK, train, queries, ks[next(iter(same))])
                if not scores["num_answerable"]:
                    text = "%s: no query has a row of its own class in the database, so retrieval can't be measured"
                    logger.warning(text, view.name)
                records.append(origin | {"task": "retrieval", "protocol": similarity} | scores | found.facts())
    return records


@dataclass(frozen=True, slots=True)
class Judge:
    """Neighbours' classes and similarities, ready to be voted on by many rules, and what is right."""

    ballot: Ballot
    similarities_QK: npt.NDArray[np.float64]
    labels_Q: Ints
    is_duplicate_Q: npt.NDArray[np.bool_] | None

    @classmethod
    def of(
        cls,
        labels_QK: Ints,
        similarities_QK: Any,
        queries: Labelled,
        num_classes: int,
        duplicates: float | None = None,
        rounding: float = 0.0,
    ) -> Judge:
        """Prepare lists of K neighbours; `similarities_QK` may be longer, and off by `rounding`."""
        twins = None if duplicates is None else similarities_QK[:, 0] >= duplicates - rounding
        ballot = Ballot.of(labels_QK, num_classes=num_classes)
        return cls(ballot, similarities_QK[:, : labels_QK.shape[1]], queries.labels, twins)

    def best_classes(self, rule: Protocol, k: int, temperature: float | None) -> Ints:
        """What each query is taken for."""
        weights_QK = vote_weights(self.similarities_QK, vote=rule.vote, temperature=temperature)
        return self.ballot.ranking(weights_QK, k=k, top=1)[:, 0]

    def accuracies(self, rule: Protocol, ks: Sequence[int], temperature: float | None) -> list[Record]:
        """Accuracies of one rule, for each k."""
        weights_QK = vote_weights(self.similarities_QK, vote=rule.vote, temperature=temperature)
        return [self._accuracy(rule, weights_QK, k) for k in ks]

    def _order_is_known(self, rule: Protocol) -> bool:
        """Whether it is known in which order the protocol's project lists classes without a vote."""
        num_classes = self.ballot.num_classes
        return num_classes <= 5 or (num_classes <= SORTED_BY_NUMBER and rule.top5 != "unordered")

    def _accuracy(self, rule: Protocol, weights_QK: Any, k: int) -> Record:
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
        estimates = {
            "top1": metrics.proportion(top1),
            "top5": metrics.proportion(top5),
            "top5_filled": metrics.proportion(filled),
            "mean_per_class": metrics.mean_per_class(top1, self.labels_Q),
        }
        own = {"voted": top5, "filled": filled, "capped": capped, "unordered": filled}.get(rule.top5)
        if own is not None and (is_settled or rule.top5 == "voted"):
            estimates["top5_protocol"] = metrics.proportion(own)
        record: Record = {}
        if self.is_duplicate_Q is not None:
            others = ~self.is_duplicate_Q
            record["num_duplicates"] = int(self.is_duplicate_Q.sum())
            if others.any():
                estimates["top1_without_duplicates"] = metrics.proportion(top1[others])
        for name, estimate in estimates.items():
            values = asdict(estimate)
            record |= {name: values["value"], f"{name}_low": values["low"], f"{name}_high": values["high"]}
        return record


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


def uniform(records: Sequence[Record]) -> list[Record]:
    """Give all records the same keys, None where one does not apply."""
    keys = dict.fromkeys([*FIRST, *(key for record in records for key in record)])
    return [{key: record.get(key) for key in keys} for record in records]


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
        text = "%s has %d labelled rows, so k is %s instead of the usual %s"
        logger.warning(text, what, num_rows, fitting, list(usual))
    return fitting


def temperatures_of(name: str, rule: Protocol, asked: Sequence[float] | None) -> Sequence[float | None]:
    """The asked-for temperatures, or the protocol's own; None where it votes without one."""
    if rule.vote == "exponential":
        return asked or rule.temperature
    if asked:
        logger.warning("protocol %s votes without a temperature; %s has no effect", name, list(asked))
    return (None,)


def protocols_by_name(protocol: Protocols) -> Mapping[str, Protocol]:
    """Look protocols up, where they are named."""
    if isinstance(protocol, Mapping):
        return protocol
    names = (protocol,) if isinstance(protocol, str) else protocol
    return {name: find_protocol(name) for name in names}


def _warn_of_preprocessing(features: FeatureSet, rules: Mapping[str, Protocol]) -> None:
    transform = features.manifest.made_from.get("transform")
    for name, rule in rules.items():
        differs = preprocessing_differs(rule, transform)
        if differs:
            logger.warning("%s: preprocessed otherwise than protocol %s does: %s", features.name, name, differs)


def _warn_of_missing_labels(features: FeatureSet, splits: Sequence[str], *, retrieval: bool, per_class: bool) -> None:
    asked = [name for name, wanted in (("--retrieval", retrieval), ("--per-class", per_class)) if wanted]
    also = f", nor what {' and '.join(asked)} would say" if asked else ""
    text = "%s: no row of %s has a label: neighbours are found and kept, but no accuracy can be given%s"
    logger.warning(text, features.name, " and ".join(splits), also)


def _most_relevant(train: Labelled, queries: Labelled) -> int:
    """Rows of the largest class, without the query itself."""
    return int(np.bincount(train.labels).max()) - (train.split == queries.split) or 1


def _retrieval(labels_QK: Ints, train: Labelled, queries: Labelled, ks: Sequence[int]) -> Record:
    counts = np.bincount(train.labels, minlength=int(max(train.labels.max(), queries.labels.max())) + 1)
    relevant = counts[queries.labels] - (train.split == queries.split)
    return retrieval_metrics(labels_QK, queries.labels, relevant, k=ks) | {"k": None}
