"""Diagnosis of layers, from the lists of neighbours that are kept and one pass over the features."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featbench.evaluate.counting import OnRows
from featbench.evaluate.diagnosis.calibration import calibration
from featbench.evaluate.diagnosis.dimension import IntrinsicDimension, twonn
from featbench.evaluate.diagnosis.hubness import hubness, largest_hubs, occurrences
from featbench.evaluate.diagnosis.results import CalibrationResult, GeometryResult, GroupResult, Hub, HubnessResult
from featbench.evaluate.diagnosis.spectrum import Spectrum, bytes_needed, spectrum
from featbench.evaluate.features.labels import Labelled, MatchedLabels, counts_of, refuse_no_queries
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import Find, rounding_of_cosines, temperatures_of, usable_k
from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.memory import in_words
from featbench.evaluate.metrics import proportion
from featbench.evaluate.neighbours.search import Neighbours
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.evaluate.notices import warn
from featbench.evaluate.results import Result
from featbench.store.typing import Bools, Ints

logger = logging.getLogger(__name__)

NUM_HUBS = 10
"""Hubs that a result lists."""

Groups = Mapping[str, tuple[Sequence[str], Ints]]
"""By grouping: names of the groups, and the group of each row of the queries' split, -1 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisQuestion:
    """What to diagnose."""

    protocols: Mapping[str, KnnProtocol]
    k: Sequence[int] | None = None
    temperature: Sequence[float] | None = None
    leave_one_out: bool = False
    """Ask with the rows of train, each among the others, instead of those of val."""

    groups: Groups | None = None
    """Also accuracies of these groups of queries, at each protocol's first k and temperature."""

    only_groups: bool = False
    """Nothing but those."""


def diagnose(
    layers: Sequence[EvalLayer],
    labels: MatchedLabels,
    asked: DiagnosisQuestion,
    *,
    find: Find,
    memory: int,
    paths: Sequence[str] | None = None,
    on_rows: OnRows = lambda rows: None,
) -> list[Result]:
    """Diagnose layers.

    Parameters
    ----------
    layers : sequence of EvalLayer
        The layers.
    labels : MatchedLabels
        Result of `matched_labels`.
    asked : DiagnosisQuestion
        Protocols, k and temperatures.
    find : callable
        Finds the neighbours of a layer, as for `featbench.evaluate.knn.classification.classify`.
    memory : int
        Bytes that the pass over the features may use; without a spectrum if its products need more.
    paths : sequence of str, optional
        What each row of train is called, for the hubs; by default its number.
    on_rows : callable
        Called with the number of rows of each block, of a search or of the pass over the features, and with that of the
        queries after each setting of the vote; `rows_to_do` says how many rows that makes.

    Returns
    -------
    list of CalibrationResult, HubnessResult, GeometryResult and GroupResult
        In the order of the layers.
    """
    refuse_no_queries(layers[0].facts.features, labels.train if asked.leave_one_out else labels.val)
    results: list[Result] = []
    for layer in layers:
        measured = None if asked.only_groups else _spectrum(layer, labels.train, memory, on_rows)
        for similarity in dict.fromkeys(protocol.similarity for protocol in asked.protocols.values()):
            results += _Diagnosis(layer, labels, asked, similarity, measured, paths).results(find, on_rows)
    return results


def rows_to_do(layers: Sequence[EvalLayer], labels: MatchedLabels, asked: DiagnosisQuestion) -> int:
    """Rows that `diagnose` reports to `on_rows` in all, if `find` reports each row of train once."""
    train, queries = labels.train, labels.train if asked.leave_one_out else labels.val
    num_votes = 0
    if train.has_labels and queries.has_labels:
        for name, protocol in asked.protocols.items():
            ks = usable_k(asked.k, protocol.k, len(train.rows) - asked.leave_one_out)
            num_votes += len(ks) * len(temperatures_of(name, protocol, asked.temperature))
    num_passes = len({each.similarity for each in asked.protocols.values()}) + (not asked.only_groups)
    return sum(each.layers["train"].num_rows * num_passes + len(queries.rows) * num_votes for each in layers)


def _spectrum(layer: EvalLayer, train: Labelled, memory: int, on_rows: OnRows) -> Spectrum | None:
    needed = bytes_needed(layer.dim)
    if needed > memory:
        text = "%s: the products of its %d features take %s, more than the memory of %s, so there is no spectrum"
        warn(logger, text, layer.name, layer.dim, in_words(needed), in_words(memory))
        return None
    return spectrum(layer.select(train), memory=memory - needed, on_rows=on_rows)


@dataclass(frozen=True, slots=True)
class _Diagnosis:
    """Diagnosis of one layer by one similarity."""

    layer: EvalLayer
    labels: MatchedLabels
    asked: DiagnosisQuestion
    similarity: Similarity
    measured: Spectrum | None
    paths: Sequence[str] | None

    @property
    def queries(self) -> Labelled:
        return self.labels.train if self.asked.leave_one_out else self.labels.val

    def results(self, find: Find, on_rows: OnRows) -> list[Result]:
        """Search, unless lists are kept, and compute all results."""
        train, asked = self.labels.train, self.asked
        num_others = len(train.rows) - asked.leave_one_out
        protocols = {name: each for name, each in asked.protocols.items() if each.similarity == self.similarity}
        ks_of = {name: usable_k(asked.k, each.k, num_others) for name, each in protocols.items()}
        longest = max(map(max, ks_of.values()))
        found = find(
            self.layer, database=train, queries=self.queries, similarity=self.similarity,
            k=max(longest, min(2, num_others)), on_rows=on_rows,
        ).neighbours  # fmt: skip
        results: list[Result] = []
        if train.has_labels and self.queries.has_labels:
            for name, protocol in protocols.items():
                results += self._votes(name, protocol, found, ks_of[name], on_rows)
        if asked.only_groups:
            return [each for each in results if isinstance(each, GroupResult)]
        results += [self._hubness(found, k) for k in dict.fromkeys(k for ks in ks_of.values() for k in ks)]
        return [*results, self._geometry(found)]

    def _votes(
        self, name: str, protocol: KnnProtocol, found: Neighbours, ks: Sequence[int], on_rows: OnRows
    ) -> list[Result]:
        labels_QK = self.labels.train.by_row(self.layer.layers["train"].num_rows)[found.rows_QK[:, : max(ks)]]
        votes = ClassVotes.of(labels_QK, num_classes=len(self.labels.class_names))
        results: list[Result] = []
        for number, temperature in enumerate(temperatures_of(name, protocol, self.asked.temperature)):
            similarities_QK = found.similarities_QK[:, : max(ks)]
            weights_QK = vote_weights(similarities_QK, vote=protocol.vote, temperature=temperature)
            for k in ks:
                is_right_Q = votes.ranking(weights_QK, k=k, top=1)[:, 0] == self.queries.labels
                setting: dict[str, Any] = {"protocol": name, "k": k, "temperature": temperature}
                results.append(
                    CalibrationResult(
                        **self._origin(),
                        **setting,
                        vote=protocol.vote,
                        top1=proportion(is_right_Q),
                        calibration=calibration(votes, weights_QK, self.queries.labels, k=k),
                    )
                )
                if not number and k == ks[0] and self.asked.groups:
                    results += self._groups(is_right_Q, setting, self.asked.groups)
                on_rows(len(self.queries.rows))
        return results

    def _groups(self, is_right_Q: Bools, setting: dict[str, Any], groups: Groups) -> list[Result]:
        results: list[Result] = []
        for grouping, (names, group_of_row) in groups.items():
            group_Q = group_of_row[self.queries.rows]
            present = [group for group in range(len(names)) if (group_Q == group).any()]
            estimates = [proportion(is_right_Q[group_Q == group]) for group in present]
            worst = int(np.argmin([each.value for each in estimates])) if estimates else -1
            results += [
                GroupResult(
                    **self._origin(), **setting, grouping=grouping, group=names[group],
                    num_queries=int((group_Q == group).sum()), top1=top1, is_worst=place == worst,
                )
                for place, (group, top1) in enumerate(zip(present, estimates, strict=True))
            ]  # fmt: skip
        return results

    def _hubness(self, found: Neighbours, k: int) -> Result:
        rows = self.labels.train.rows
        counts = occurrences(found.rows_QK, rows, k=k)
        hubs = tuple(
            Hub(row=int(rows[place]), path=self._path(int(rows[place])), num_lists=int(counts[place]))
            for place in largest_hubs(counts, most=NUM_HUBS)
        )
        return HubnessResult(**self._origin(), k=k, hubness=hubness(counts, k=k), hubs=hubs)

    def _geometry(self, found: Neighbours) -> Result:
        return GeometryResult(**self._origin(), dimension=self._dimension(found), spectrum=self.measured)

    def _dimension(self, found: Neighbours) -> IntrinsicDimension | None:
        if self.similarity == "inner_product" or found.rows_QK.shape[1] < 2:
            return None
        first_Q, second_Q = found.similarities_QK[:, 0], found.similarities_QK[:, 1]
        if self.similarity == "euclidean":
            return twonn(-first_Q, -second_Q)
        # Rows of zeros, whose cosine is not defined, come last, as -2.
        defined_Q = second_Q >= -1
        first_Q, second_Q = first_Q[defined_Q], second_Q[defined_Q]
        distances = [np.sqrt(np.maximum(0, 2 - 2 * each)) for each in (first_Q, second_Q)]
        return twonn(*distances, is_duplicate_Q=first_Q >= 1 - rounding_of_cosines(self.layer.dim))

    def _path(self, row: int) -> str:
        return str(row) if self.paths is None else self.paths[row]

    def _origin(self) -> dict[str, Any]:
        return {
            "layer": self.layer.facts, "counts": counts_of(self.labels.train, self.labels.val),
            "similarity": self.similarity, "leave_one_out": self.asked.leave_one_out,
        }  # fmt: skip
