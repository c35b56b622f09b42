"""Diagnosis of the layers of a feature set, accuracies by group, and the file of suspects."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.counting import counting
from featbench.evaluate.diagnosis.diagnosis import DiagnosisQuestion, diagnose, rows_to_do
from featbench.evaluate.diagnosis.results import LeftOutResult, SuspectsResult
from featbench.evaluate.diagnosis.suspects import PASSES, find_suspects
from featbench.evaluate.diagnosis.without import KINDS, accuracies_without
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import MatchedLabels, class_names_of
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import Find, usable_k
from featbench.evaluate.knn.multi_label import is_multi_label
from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.evaluate.neighbours.planning import Resources
from featbench.evaluate.notices import warn
from featbench.evaluate.results import Result
from featbench.pipelines.config.protocols import find_protocols
from featbench.pipelines.evaluation.files import ExportError, save_alone
from featbench.pipelines.evaluation.groups import read_groups
from featbench.pipelines.terminal.formats import as_csv
from featbench.pipelines.terminal.progress import Progress
from featbench.store import FeatureSet

logger = logging.getLogger(__name__)

OUTLIER_K = 10
"""Neighbour whose distance says how far out a row is, where no k is given."""

NEAR_DUPLICATE = 0.99
"""Cosine from which rows are near-duplicates, where none is given."""


def diagnosis(
    features: FeatureSet,
    layers: Sequence[EvalLayer],
    labels: MatchedLabels,
    config: EvaluateConfig,
    *,
    resources: Resources,
    progress: Progress,
    is_first: bool = True,
) -> list[Result]:
    """Diagnose layers of a feature set; the first of several ranks writes the suspects, if a file is named.

    Raises
    ------
    BenchError
        If a file of groups does not fit, the file of suspects exists, or a search is not possible.
    """
    settings, knn = config.diagnosis, config.knn
    protocols = find_protocols(knn.protocol)
    queries = "train" if knn.leave_one_out else "val"
    groups = None
    if settings.group_by is not None:
        groups = read_groups(settings.group_by, features.paths(queries), what=f"{features.name}'s {queries}")
    if settings.suspects is not None and is_first:
        refuse_existing(settings.suspects)
    find: Find = partial(find_neighbours, features, index=config.index, resources=resources)
    question = DiagnosisQuestion(
        protocols=protocols, k=knn.k, temperature=knn.temperature, leave_one_out=knn.leave_one_out, groups=groups,
        only_groups=not settings.diagnose,
    )  # fmt: skip
    results: list[Result] = []
    if settings.diagnose or groups:
        with progress.task("diagnosis", rows_to_do(layers, labels, question)) as on_rows:
            results += diagnose(
                layers, labels, question, find=counting(find), memory=resources.bytes, paths=features.paths("train"),
                on_rows=on_rows,
            )  # fmt: skip
    if settings.suspects is not None:
        look = partial(
            suspects_of, labels=labels, protocols=protocols, find=find, memory=resources.bytes, progress=progress,
            k=knn.k, temperature=knn.temperature, share=settings.share,
            duplicates=NEAR_DUPLICATE if knn.duplicates is None else knn.duplicates,
        )  # fmt: skip
        found = [look(layer) for layer in layers]
        if is_first:
            write_suspects(features, [result for result, _ in found], labels, settings.suspects)
        results += [each for result, others in found for each in (result, *others)]
    if missing := left_out(features, labels, config, num_layers=len(layers)):
        warn(logger, "%s", missing)
        results.append(missing)
    return results


def left_out(
    features: FeatureSet, labels: MatchedLabels, config: EvaluateConfig, *, num_layers: int
) -> LeftOutResult | None:
    """Say what needs one class for each row, and is left out since rows have none, or several."""
    settings, queries = config.diagnosis, labels.train if config.knn.leave_one_out else labels.val
    unlabelled = [each.split for each in (labels.train, queries) if not each.has_labels]
    if not unlabelled:
        return None
    reason = f"no row of {' and '.join(dict.fromkeys(unlabelled))} has a label"
    if is_multi_label(features):
        reason = "rows have any number of classes"
    asked = {
        "calibration": settings.diagnose,
        "prediction depth": settings.diagnose and num_layers > 1,
        "accuracy by group": settings.group_by is not None,
        "label error": settings.suspects is not None,
        "accuracy without suspects": settings.suspects is not None,
    }
    what = tuple(name for name, is_asked in asked.items() if is_asked)
    return LeftOutResult(features=features.name, left_out=what, reason=reason) if what else None


def suspects_of(
    layer: EvalLayer,
    *,
    labels: MatchedLabels,
    protocols: Mapping[str, KnnProtocol],
    find: Find,
    memory: int,
    progress: Progress,
    k: Sequence[int] | None = None,
    temperature: Sequence[float] | None = None,
    duplicates: float = NEAR_DUPLICATE,
    share: float = 0.01,
) -> tuple[SuspectsResult, Sequence[Result]]:
    """Find the suspects of one layer, and what accuracies are without them.

    Parameters
    ----------
    layer, labels, protocols, find, memory
        As for `featbench.evaluate.diagnosis.diagnosis.diagnose`.
    progress : Progress
        Shows how far it is.
    k, temperature : optional
        The first k is the neighbour whose distance says how far out a row is, 10 by default, and votes.
    duplicates : float
        Cosine from which two rows count as near-duplicates.
    share : float
        Most rows that are label errors, and outliers, as a fraction of all rows.

    Raises
    ------
    EvaluationError
        If train has a single row.
    """
    num_rows = len(labels.train.rows)
    if num_rows < 2:
        raise EvaluationError(f"suspects need at least two rows in train; got {num_rows}")
    place = min(k[0] if k else OUTLIER_K, num_rows - 1)
    lists = {}
    with progress.task(f"{layer.name}: neighbours", 2 * layer.layers["train"].num_rows) as on_rows:
        for split, queries in (("train", labels.train), ("val", labels.val)):
            if not len(queries.rows):
                continue
            found = counting(find)(
                layer, database=labels.train, queries=queries, k=place, similarity="cosine", on_rows=on_rows
            )  # fmt: skip
            lists[split] = found.neighbours.first(place)
    total = PASSES * sum(len(each.rows_QK) for each in lists.values())
    with progress.task(f"{layer.name}: suspects", total) as on_rows:
        suspicions = find_suspects(
            layer, labels, lists, k=place, threshold=duplicates, share=share, memory=memory, on_rows=on_rows,
        )  # fmt: skip
    others: list[Result] = []
    if labels.train.has_labels and labels.val.has_labels and len(labels.val.rows):
        total = 2 * layer.layers["train"].num_rows * len(KINDS) * len(protocols)
        with progress.task(f"{layer.name}: without them", total) as on_rows:
            for name, protocol in protocols.items():
                others += accuracies_without(
                    layer, labels, suspicions, find=find, name=name, protocol=protocol,
                    k=usable_k(k, protocol.k, num_rows)[0], temperature=temperature, on_rows=on_rows,
                )  # fmt: skip
    return suspicions.result, others


def refuse_existing(path: Path) -> None:
    """Refuse to replace a file, before anything is computed."""
    if path.exists():
        raise ExportError(f"{path} exists; name another file, or remove it")


def write_suspects(features: FeatureSet, found: Sequence[SuspectsResult], labels: MatchedLabels, path: Path) -> Path:
    """Write the suspects of layers to a CSV file, in the order to look at."""
    splits = tuple(features.manifest.splits)
    paths = {split: features.paths(split) for split in splits}
    numbers = {split: features.labels(split) for split in splits}
    names = {split: class_names_of(features, split) for split in splits}

    def described(prefix: str, split: str | None, row: int | None) -> dict[str, Any]:
        if split is None or row is None:
            return dict.fromkeys(f"{prefix}{name}" for name in ("split", "row", "path", "class"))
        label = numbers[split][row]
        name = names[split][label] if label >= 0 else None
        return {
            f"{prefix}split": split,
            f"{prefix}row": row,
            f"{prefix}path": paths[split][row],
            f"{prefix}class": name,
        }

    records = [
        {"layer": result.layer.layer, "kind": each.kind, "rank": each.rank, "score": each.score}
        | described("", each.split, each.row)
        | {"group": each.group}
        | described("other_", each.other_split, each.other_row)
        for result in found
        for each in result.suspects
    ]
    empty = {"layer": "", "kind": "", "rank": 0, "score": 0.0} | described("", None, None) | {"group": None}
    header = ",".join(empty | described("other_", None, None)) + "\n"
    text = as_csv(records) if records else header
    return save_alone(path, lambda file: file.write(text.encode()))
