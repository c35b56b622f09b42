"""The table of clusters: what fits a terminal, and what a file holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.cluster_results import ClusterResult, KmeansRun, Silhouettes
from featbench.evaluate.clustering.contingency import Contingency
from featbench.evaluate.clustering.metrics import cluster_metrics, cluster_sizes
from featbench.evaluate.results import Counts, LayerFacts
from featbench.pipelines.cli.cluster_tables import cluster_table
from featbench.pipelines.terminal.table import as_text


def result_of(split: str = "train", *, seeds: int = 1, ami: bool = True, **changes: Any) -> ClusterResult:
    clusters, labels = np.array([0, 0, 0, 1, 1, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 1, 2, 2])
    table = Contingency.of(clusters, labels)
    result = ClusterResult(
        layer=LayerFacts(
            features="mine", layer="layer4", tap=None, pooling=None, dim=512, weights="w", fingerprint=None
        ),
        counts=Counts(num_train=8, num_val=8, num_left_out=0, num_classes=3),
        split=split,
        clusters=10_000,
        seed=0,
        num_labelled=8,
        metrics=cluster_metrics(table, class_of_cluster_K=table.majority_classes(3), ami=ami),
        sizes=cluster_sizes(clusters, 4),
        silhouettes=Silhouettes(simplified=0.25, sampled=0.125, num_sampled=8),
        objective=1234.5,
        mean_squared_distance=None,
        iterations=7,
        runs=tuple(KmeansRun(seed=seed, objective=1234.5 + seed, iterations=7) for seed in range(seeds)),
        num_reseeded=0,
        certified=True,
        engine="CPU",
        seconds=1.0,
        assignments=clusters,
    )
    return dataclasses.replace(result, **changes)


def test_a_terminal_of_80_columns_shows_the_metrics_that_matter() -> None:
    table = cluster_table([result_of("train"), result_of("val")])
    lines = as_text(table, width=80).plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == [
        "layer",
        "clusters",
        "split",
        "NMI",
        "AMI",
        "ARI",
        "one-to-one",
        "many-to-one",
        "purity",
    ]
    assert lines[2].split()[-5:] == ["75.0", "±34.1", "75.0", "±34.1", "75.0"]
    assert "Left out to fit the terminal: homogeneity, completeness, Fowlkes-Mallows, silhouette" in " ".join(lines)


def test_a_file_holds_every_column() -> None:
    lines = as_text(cluster_table([result_of("train"), result_of("val")])).plain.splitlines()
    assert "0/2/4" in lines[2]
    for text in ("0.125", "0.250", "1234.5"):
        assert text in lines[2]
    assert "1234.5" not in lines[3], "the objective is that of train"


def test_a_column_without_values_is_not_shown() -> None:
    names = [column.name for column in cluster_table([result_of(ami=False)]).columns]
    assert "AMI" not in names
    assert "NMI" in names
    table = cluster_table([result_of(metrics=None)])
    assert [column.name for column in table.columns][:3] == ["layer", "clusters", "split"]
    assert not {"NMI", "one-to-one", "many-to-one", "purity"} & {column.name for column in table.columns}
    assert table.notes == ("Clusters without a train image: layer4 1 of 10,000.", "Nearest centroids certified exact.")
    assert "silhouette" in as_text(table, width=80).plain


def test_several_runs_are_shown_with_their_spread() -> None:
    text = as_text(cluster_table([result_of(seeds=3)])).plain
    assert "1234.5 (1235.5 ±1)" in text
    assert "Best of 3 runs" in text


def test_notes_say_what_limits_the_numbers() -> None:
    partly = [result_of("train", num_labelled=5), result_of("val", num_labelled=0, metrics=None)]
    assert "Images with a label, which these metrics count: 5 of 8 train, 0 of 8 val." in cluster_table(partly).notes
    assert "Clusters without a train image: layer4 1 of 10,000." in cluster_table(partly).notes
    older = cluster_table([result_of("train", certified=False, sizes=cluster_sizes(np.arange(8), 8)), result_of("val")])
    assert len(older.notes) == 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_records_say_how_many_runs_there_were(seeds: int) -> None:
    record = result_of(seeds=seeds).record()
    assert (record["runs"], record["objective_sd"]) == (seeds, 0 if seeds == 1 else 1)
