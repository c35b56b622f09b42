"""All tables of an evaluation.

Each function here and in `knn_tables`, `cluster_tables` and `store_tables` makes a `Table`;
`featbench.pipelines.terminal` lays it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from featbench.evaluate.cluster_results import ClusterResult
from featbench.evaluate.diagnosis.results import (
    AgreementResult,
    CalibrationResult,
    DepthResult,
    GeometryResult,
    GroupResult,
    HubnessResult,
    SuspectsResult,
    WithoutResult,
)
from featbench.evaluate.other_results import (
    AnyOfResult,
    LabelResult,
    MultiLabelQueriesResult,
    MultiLabelResult,
    OodResult,
    QueriesResult,
)
from featbench.evaluate.results import (
    ClassResult,
    FewShotResult,
    KnnResult,
    NeighboursResult,
    Result,
    RetrievalResult,
    SelectionResult,
)
from featbench.pipelines.cli.cluster_tables import cluster_table
from featbench.pipelines.cli.diagnosis_tables import (
    agreement_tables,
    calibration_table,
    depth_table,
    geometry_table,
    group_table,
    hubness_table,
    selection_table,
    suspects_table,
    without_table,
)
from featbench.pipelines.cli.knn_tables import (
    accuracy_table,
    any_of_table,
    class_table,
    few_shot_table,
    label_table,
    multi_label_queries_table,
    multi_label_table,
    neighbours_table,
    ood_table,
    queries_table,
    retrieval_table,
)
from featbench.pipelines.terminal.table import Table

R = TypeVar("R")


def evaluation_tables(results: Sequence[Result]) -> list[Table]:
    """Make all tables of an evaluation: one for each protocol, and one for each other kind of result."""
    accuracies = _grouped(results, KnnResult, lambda result: result.protocol)
    classes = _grouped(results, ClassResult, lambda result: (result.layer.layer, result.protocol))
    groups = _grouped(results, GroupResult, lambda result: (result.layer.layer, result.protocol, result.grouping))
    return [
        *map(accuracy_table, accuracies),
        *map(queries_table, _grouped(results, QueriesResult, lambda result: result.result.protocol)),
        *map(any_of_table, _grouped(results, AnyOfResult, lambda result: result.result.protocol)),
        *map(ood_table, _grouped(results, OodResult)),
        *map(selection_table, _grouped(results, SelectionResult)),
        *map(multi_label_table, _grouped(results, MultiLabelResult, lambda result: result.protocol)),
        *map(
            multi_label_queries_table,
            _grouped(results, MultiLabelQueriesResult, lambda result: result.result.protocol),
        ),
        *map(label_table, _grouped(results, LabelResult, lambda result: (result.layer.layer, result.protocol))),
        *map(neighbours_table, _grouped(results, NeighboursResult)),
        *map(few_shot_table, _grouped(results, FewShotResult)),
        *map(retrieval_table, _grouped(results, RetrievalResult)),
        *map(class_table, classes),
        *map(calibration_table, _grouped(results, CalibrationResult, _features_of)),
        *map(hubness_table, _grouped(results, HubnessResult, _features_of)),
        *map(geometry_table, _grouped(results, GeometryResult, _features_of)),
        *map(depth_table, _grouped(results, DepthResult)),
        *agreement_tables([each for each in results if isinstance(each, AgreementResult)]),
        *map(group_table, groups),
        *map(suspects_table, _grouped(results, SuspectsResult)),
        *map(without_table, _grouped(results, WithoutResult)),
        *map(cluster_table, _grouped(results, ClusterResult)),
    ]


def _features_of(result: CalibrationResult | HubnessResult | GeometryResult) -> str:
    return result.layer.features


def _grouped(
    results: Sequence[Result], kind: type[R], key: Callable[[R], object] = lambda result: None
) -> list[list[R]]:
    """Results of one kind, those of the same key together, in their order."""
    groups: dict[object, list[R]] = {}
    for result in results:
        if isinstance(result, kind):
            groups.setdefault(key(result), []).append(result)
    return list(groups.values())
