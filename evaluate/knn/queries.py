"""Other queries for the same bank: a split of another feature set of the same model, labelled or from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import (
    Labelled,
    MatchedLabels,
    class_names_of,
    has_labels,
    readable_rows,
    refuse_no_queries,
)
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import Find, KnnQuestion, classify, usable_k
from featbench.evaluate.knn.ood import ood_metrics
from featbench.evaluate.notices import warn
from featbench.evaluate.other_results import OodResult, QueriesResult
from featbench.evaluate.results import KnnResult, Result
from featbench.store import FeatureSet
from featbench.store.manifest import differing_models

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySet:
    """Queries that another feature set has, with a name."""

    name: str
    features: FeatureSet
    split: str

    def layer(self, bank: EvalLayer) -> EvalLayer:
        """Layer whose train is the bank's and whose val are these queries.

        Raises
        ------
        EvaluationError
            If the layer has another shape there, or was taken or computed in another way.
        """
        info = self.features.layer_info(bank.name)
        ours = (bank.facts.dim, bank.facts.tap, bank.facts.pooling)
        theirs = (info.dim, info.tap, info.pooling or "mean")
        is_imported = str(info.tap).startswith("imported:") or str(bank.facts.tap).startswith("imported:")
        if ours[0] != theirs[0] or (ours[1:] != theirs[1:] and not is_imported):
            raise EvaluationError(
                f"{self.features.path}: layer {bank.name} has {theirs[0]:,} features from {theirs[1]} ({theirs[2]}), "
                f"that of {bank.facts.features} {ours[0]:,} from {ours[1]} ({ours[2]}). Queries need the same layer of "
                f"the same model"
            )
        return replace(
            bank,
            layers={"train": bank.layers["train"], "val": self.features.layer(self.split, bank.name)},
            made_from={"train": bank.made_from["train"], "val": self.features.digest(self.split, bank.name)},
        )

    def labelled(self, labels: MatchedLabels) -> tuple[Labelled, tuple[str, ...]]:
        """The queries with their classes, numbered as those of the bank, by name; and all names.

        If no name is known, and all are whole numbers below the number of the bank's classes, they number these.

        Raises
        ------
        EvaluationError
            If no class is one of the bank's.
        """
        names, rows = labels.class_names, readable_rows(self.features, self.split)
        if not has_labels(self.features, self.split):
            return replace(rows, split="val"), names
        theirs = class_names_of(self.features, self.split)
        known = {name: index for index, name in enumerate(names)}
        bank = np.unique(labels.train.labels)
        if not any(name in known for name in theirs) and all(n.isdecimal() and int(n) < len(bank) for n in theirs):
            text = (
                "%s: the classes are numbers, taken as positions among the %d classes of train in order of their names"
            )
            warn(logger, text, self.name, len(bank))
            in_order = sorted(names[label] for label in bank)
            theirs = tuple(in_order[int(name)] for name in theirs)
        every = tuple(dict.fromkeys([*names, *theirs]))
        place = {name: index for index, name in enumerate(every)}
        numbers = self.features.labels(self.split)[rows.rows]
        chosen = numbers >= 0
        positions = np.array([place[name] for name in theirs], np.int64)
        unknown = sorted(set(theirs) - set(names))
        if len(unknown) == len(set(theirs)):
            raise EvaluationError(
                f"{self.name}: train has none of its classes, such as {unknown[0]!r}; one of train is {names[0]!r}. "
                f"Give them the same names, or ask by --ood. `bench extract folder data.name=objectnet` "
                f"matches ObjectNet's with ImageNet's"
            )
        if unknown:
            shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            warn(logger, "%s: classes that train does not have, whose queries count as wrong: %s", self.name, shown)
        found = Labelled(
            split="val", rows=rows.rows[chosen], labels=positions[numbers[chosen]],
            left_out=rows.left_out + int((~chosen).sum()),
        )  # fmt: skip
        return found, every


def refuse_other_model(bank: FeatureSet, queries: FeatureSet) -> None:
    """Refuse queries of another model, or of images that were prepared in another way, as far as that is known.

    Raises
    ------
    EvaluationError
        If a setting differs.
    """
    if differing := differing_models(bank.manifest, queries.manifest):
        raise EvaluationError(
            f"{queries.path} was not made as {bank.path}: {len(differing)} settings differ, first {differing[0]}. "
            f"Extract the queries by the same model and transform"
        )


def query_results(
    layers: Sequence[EvalLayer],
    labels: MatchedLabels,
    queries: QuerySet,
    asked: KnnQuestion,
    *,
    find: Find,
    bank: str = "all",
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[Result]:
    """Classify other queries by the rows of train.

    Parameters
    ----------
    layers : sequence of EvalLayer
        Of the bank.
    labels : MatchedLabels
        Of the bank.
    queries : QuerySet
        The queries.
    asked : KnnQuestion
        Protocols, k and temperatures.
    find : callable
        Finds neighbours.
    bank : {"all", "subset"}
        Whether all rows of train vote, or only those of the queries' classes.
    on_rows : callable
        Called after each block with its number of rows.
    """
    val, names = queries.labelled(labels)
    train = labels.train
    if bank == "subset":
        stays = np.isin(train.labels, val.labels)
        if not stays.any():
            raise EvaluationError(f"{queries.name}: train has no row of the queries' classes, so the bank is empty")
        train = replace(train, rows=train.rows[stays], labels=train.labels[stays])
    results = classify(
        [queries.layer(layer) for layer in layers], train, val, names, asked, find=find,
        on_rows=lambda layer, rows: on_rows(rows), name=queries.name,
    )  # fmt: skip
    return [
        QueriesResult(result=e, queries=queries.name, bank=bank) if isinstance(e, KnnResult) else e for e in results
    ]


def ood_results(
    layers: Sequence[EvalLayer],
    labels: MatchedLabels,
    others: QuerySet,
    asked: KnnQuestion,
    *,
    find: Find,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[Result]:
    """Tell val from queries from elsewhere, by the distance to the k-th neighbour in train.

    Parameters
    ----------
    others : QuerySet
        Queries from elsewhere; their labels do not matter.
    layers, labels, asked, find, on_rows
        As for `query_results`; each similarity of the protocols is one score, for each k.
    """
    train, val = labels.train, labels.val
    refuse_no_queries(layers[0].facts.features, val)
    outside = replace(readable_rows(others.features, others.split), split="val")
    results: list[Result] = []
    for layer in layers:
        for name, protocol in asked.protocols.items():
            ks = usable_k(asked.k, protocol.k, len(train.rows))
            search = partial(find, database=train, similarity=protocol.similarity, k=max(ks), on_rows=on_rows)
            inside_QK = search(layer, queries=val).neighbours.similarities_QK
            outside_QK = search(others.layer(layer), queries=outside).neighbours.similarities_QK
            results += [
                OodResult(
                    layer=layer.facts, protocol=name, similarity=protocol.similarity, k=k, ood=others.name,
                    num_inside=len(inside_QK), num_outside=len(outside_QK),
                    metrics=ood_metrics(inside_QK[:, k - 1], outside_QK[:, k - 1]),
                )
                for k in ks
            ]  # fmt: skip
    return results
