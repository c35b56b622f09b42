"""Cluster metrics against scikit-learn, and against slow definitions in float64 where it has none."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from sklearn import metrics as peer

from featbench.evaluate.cluster_results import ClusterMetrics, ClusterSizes
from featbench.evaluate.clustering.contingency import (
    Contingency,
    Information,
    PairCounts,
    adjusted_mutual_information,
    adjusted_rand_index,
    expected_mutual_information,
    fowlkes_mallows_index,
)
from featbench.evaluate.clustering.metrics import (
    SAMPLED_ROWS,
    cluster_metrics,
    cluster_sizes,
    is_alone,
    labelled_contingency,
    sample_of,
    silhouette,
    simplified_silhouette,
)
from featbench.evaluate.features.selection import Selection
from featbench.store.typing import Doubles, Ints
from tests.conftest import ROOT, needs_proc
from tests.evaluate.test_search import held


def measured(clusters: Ints | list[int], labels: Ints | list[int], **settings: Any) -> ClusterMetrics:
    return cluster_metrics(Contingency.of(np.asarray(clusters), np.asarray(labels)), **settings)


def random_labellings() -> Iterator[tuple[Ints, Ints]]:
    """Clusters and labels, from independent to equal, with any number of rows, clusters and classes."""
    random = np.random.default_rng(5)
    for trial in range(40):
        count = int(random.integers(1, 150))
        labels = random.integers(0, random.integers(1, count + 1), count)
        clusters = random.integers(0, random.integers(1, 2 * count), count)
        yield np.where(random.random(count) < 0.7, labels, clusters) if trial % 3 else clusters, labels


def awkward_labellings() -> Iterator[tuple[Ints, Ints]]:
    random = np.random.default_rng(6)
    one, alone, some = np.zeros(12, int), np.arange(12), random.integers(0, 4, 12)
    yield from itertools.product((one, alone, some, some[::-1] * 1000), repeat=2)
    yield np.array([7]), np.array([3])
    yield np.repeat([0, 1], [999, 1]), np.repeat([0, 1], [1, 999])
    yield np.arange(100) % 10, np.arange(100) // 10  # independent, exactly
    yield np.repeat(np.arange(20), 2), np.arange(40)
    yield random.zipf(1.3, 500) % 300, random.zipf(1.5, 500) % 50


LABELLINGS = [*random_labellings(), *awkward_labellings()]


def test_metrics_are_scikit_learns() -> None:
    for clusters, labels in LABELLINGS:
        got = measured(clusters, labels)
        homogeneity, completeness, v_measure = peer.homogeneity_completeness_v_measure(labels, clusters)
        expected = {
            "nmi": peer.normalized_mutual_info_score(labels, clusters),
            "ami": peer.adjusted_mutual_info_score(labels, clusters),
            "ari": peer.adjusted_rand_score(labels, clusters),
            "homogeneity": homogeneity,
            "completeness": completeness,
            "v_measure": v_measure,
            "fowlkes_mallows": peer.fowlkes_mallows_score(labels, clusters),
        }
        assert {name: getattr(got, name) for name in expected} == pytest.approx(expected, abs=1e-9)


def test_one_to_one_accuracy_and_purity_are_those_of_their_definitions() -> None:
    for clusters, labels in LABELLINGS:
        got = measured(clusters, labels)
        dense = peer.cluster.contingency_matrix(labels, clusters)
        hits = int(dense[linear_sum_assignment(dense, maximize=True)].sum())
        interval = binomtest(hits, len(labels)).proportion_ci(method="wilson")
        assert got.hungarian.value == hits / len(labels)
        assert (got.hungarian.low, got.hungarian.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert got.purity == dense.max(axis=0).sum() / len(labels)


@pytest.mark.parametrize("num_clusters", [2, 4, 6])
def test_the_best_match_is_that_of_all_matches(num_clusters: int) -> None:
    random = np.random.default_rng(num_clusters)
    labels = random.integers(0, 4, 200)
    clusters = np.where(random.random(200) < 0.6, labels % num_clusters, random.integers(0, num_clusters, 200))
    size = max(4, num_clusters)
    best = max(
        sum(((clusters == cluster) & (labels == match[cluster])).sum() for cluster in range(num_clusters))
        for match in itertools.permutations(range(size), num_clusters)
    )
    assert measured(clusters, labels).hungarian.value == best / 200


def many_to_one(clusters: Ints, labels: Ints, train_clusters: Ints, train_labels: Ints) -> tuple[int, int]:
    """Accuracy of clusters named by train, one row at a time; the lowest of equally frequent classes."""
    votes = {}
    for cluster, label in zip(train_clusters.tolist(), train_labels.tolist(), strict=True):
        votes.setdefault(cluster, Counter())[label] += 1
    names = {cluster: min(of, key=lambda label: (-of[label], label)) for cluster, of in votes.items()}
    hits = [names.get(cluster) == label for cluster, label in zip(clusters.tolist(), labels.tolist(), strict=True)]
    return sum(hits), len(hits)


def test_many_to_one_accuracy_names_clusters_by_the_majority_of_train() -> None:
    random = np.random.default_rng(8)
    for trial in range(60):
        num_clusters, num_classes = random.integers(1, 40, 2)
        train, val = (
            (random.integers(0, num_clusters, n), random.integers(0, num_classes, n)) for n in random.integers(1, 99, 2)
        )
        if trial % 2:  # classes that are missing in train, and a cluster that has no row of it
            train = (train[0] // 2, train[1] // 3)
        table = Contingency.of(*train)
        named = table.majority_classes(int(num_clusters))
        for clusters, labels in (train, val):
            hits, count = many_to_one(clusters, labels, *train)
            got = measured(clusters, labels, class_of_cluster_K=named).many_to_one
            interval = binomtest(hits, count).proportion_ci(method="wilson")
            assert got.value == hits / count
            assert (got.low, got.high) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_a_tie_goes_to_the_lowest_class_and_an_empty_cluster_predicts_nothing() -> None:
    table = Contingency.of(np.array([0, 0, 0, 2, 2, 2, 2]), np.array([5, 1, 3, 4, 2, 4, 2]))
    assert table.majority_classes(4).tolist() == [1, -1, 2, -1]
    assert measured([1, 3, 0], [0, 0, 1], class_of_cluster_K=table.majority_classes(4)).many_to_one.value == 1 / 3
    assert measured([0], [0]).many_to_one is None


def test_metrics_do_not_depend_on_the_numbers_of_clusters_or_on_the_order_of_rows() -> None:
    random = np.random.default_rng(0)
    labels, clusters, order = random.integers(0, 5, 100), random.integers(0, 5, 100), random.permutation(100)
    renamed = random.permutation(5)[clusters]
    assert measured(clusters, labels).record() == pytest.approx(
        measured(1000 * renamed[order], labels[order]).record(), nan_ok=False
    )


def test_counts_beyond_32_and_64_bits_are_added_up_exactly() -> None:
    """Pairs of 12 billion rows are beyond 64 bits."""
    counts = np.array([4_000_000_000, 3, 5_000_000_001, 3_000_000_000, 7])
    table = Contingency.of_pairs(counts, np.array([0, 1, 0, 1, 2]), np.array([0, 0, 1, 1, 2]))
    dense = [[4_000_000_000, 5_000_000_001, 0], [3, 3_000_000_000, 0], [0, 0, 7]]
    pairs = {"both": 0, "of_class": 0, "of_cluster": 0}
    for row in dense:
        pairs["both"] += sum(each * (each - 1) for each in row)
        pairs["of_class"] += sum(row) * (sum(row) - 1)
    for column in zip(*dense, strict=True):
        pairs["of_cluster"] += sum(column) * (sum(column) - 1)
    total = sum(map(sum, dense))
    expected = Fraction(pairs["of_class"] * pairs["of_cluster"], total * (total - 1))
    largest = Fraction(pairs["of_class"] + pairs["of_cluster"], 2)
    assert adjusted_rand_index(PairCounts.of(table)) == pytest.approx(
        float((pairs["both"] - expected) / (largest - expected)), rel=1e-12
    )
    assert fowlkes_mallows_index(PairCounts.of(table)) == pytest.approx(
        pairs["both"] / float(pairs["of_class"]) ** 0.5 / float(pairs["of_cluster"]) ** 0.5, rel=1e-12
    )
    assert cluster_metrics(table, ami=False).hungarian.value == pytest.approx((4e9 + 3e9 + 7) / total)


def test_counts_of_many_rows_have_scikit_learns_information() -> None:
    counts = np.array([[300_000_000, 5, 70], [9_000, 200_000_000, 1], [2, 30_000, 90_000_000]])
    classes, clusters = np.nonzero(counts.T)[::-1]
    table = Contingency.of_pairs(counts[classes, clusters], classes, clusters)
    mutual = peer.mutual_info_score(None, None, contingency=counts)
    assert Information.of(table).mutual == pytest.approx(mutual, abs=1e-9)
    assert adjusted_mutual_information(table) == pytest.approx(
        mutual / ((Information.of(table).of_classes + Information.of(table).of_clusters) / 2), abs=1e-6
    ), "of many rows, chance makes little"


def test_the_mutual_information_of_chance_is_the_mean_over_hypergeometric_tables() -> None:
    """With chances in exact integers: scikit-learn's, from logarithms of factorials, are less accurate than this."""
    classes, clusters = [600, 300, 90, 9, 1], [500, 490, 7, 3]
    total = 0.0
    for size, other in itertools.product(classes, clusters):
        for shared in range(max(1, size + other - 1000), min(size, other) + 1):
            ways = math.comb(size, shared) * math.comb(1000 - size, other - shared)
            total += ways / math.comb(1000, other) * shared / 1000 * math.log(1000 * shared / (size * other))
    assert expected_mutual_information(np.array(classes), np.array(clusters)) == pytest.approx(total, rel=1e-12)


def test_the_adjusted_mutual_information_can_be_left_out() -> None:
    with_it, without = (measured([0, 0, 1, 1], [0, 1, 1, 1], ami=ami).record() for ami in (True, False))
    assert without["ami"] is None
    assert with_it | {"ami": None} == without


@pytest.mark.parametrize(("num_classes", "num_clusters"), [(1200, 1500), (1500, 1100)])
def test_the_best_match_of_many_classes_is_that_of_the_whole_table(num_classes: int, num_clusters: int) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, num_classes, 6000)
    clusters = np.where(random.random(6000) < 0.4, labels % num_clusters, random.integers(0, num_clusters, 6000))
    table = peer.cluster.contingency_matrix(labels, clusters)
    expected = table[linear_sum_assignment(table, maximize=True)].sum() / 6000
    assert measured(clusters, labels, ami=False).hungarian.value == pytest.approx(expected)


@needs_proc
def test_as_many_classes_and_clusters_as_rows_need_no_table_of_all_pairs() -> None:
    """A table of 8 bytes for each pair would take 7.2 GB."""
    code = """
import numpy as np
from sklearn import metrics
from featbench.evaluate.clustering.contingency import Contingency
from featbench.evaluate.clustering.metrics import cluster_metrics
from featbench.evaluate.knn.per_class import class_accuracies
from tests.peak import peak_kb
before, labels = peak_kb(), np.arange(30_000)
clusters = np.random.default_rng(0).permutation(30_000)
assert cluster_metrics(Contingency.of(clusters, labels)).hungarian.value == 1
classes = class_accuracies(np.where(labels % 2, labels, (labels + 1) % 30_000), labels, [str(i) for i in labels])
assert [each.most_confused_with for each in classes[:4]] == ["1", None, "3", None]
print(peak_kb() - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 300 * 1024


def test_only_labelled_rows_count() -> None:
    clusters, labels = np.array([0, 1, 1, 2]), np.array([-1, 0, 1, -1])
    table = labelled_contingency(clusters, labels)
    assert (table.num_rows, table.classes_R.tolist(), table.clusters_K.tolist()) == (2, [0, 1], [1])
    assert labelled_contingency(clusters, np.full(4, -1)) is None


def test_sizes_are_counted_with_empty_clusters() -> None:
    assert cluster_sizes(np.array([4, 4, 1, 4, 1]), 5) == ClusterSizes(smallest=0, median=0, largest=3, num_empty=3)
    assert cluster_sizes(np.array([0, 0, 1]), 2) == ClusterSizes(smallest=1, median=1.5, largest=2, num_empty=0)


def to_centroids(values: Doubles, centroids: Doubles) -> tuple[Ints, Doubles, Doubles]:
    """Nearest centroid of each row, the distance to it, and to the nearest other one, by definition."""
    distances = np.sort(np.linalg.norm(values[:, None] - centroids[None], axis=2), axis=1)
    return np.linalg.norm(values[:, None] - centroids[None], axis=2).argmin(1), *distances[:, :2].T


def test_the_simplified_silhouette_is_that_of_a_loop() -> None:
    random = np.random.default_rng(2)
    values = np.concatenate([random.standard_normal((50, 3)), [[90.0, 0, 0]], np.zeros((2, 3))])
    centroids = np.concatenate([random.standard_normal((4, 3)), [[90.0, 0, 0]], np.zeros((2, 3))])
    clusters, nearest, others = to_centroids(values, centroids)
    total = 0.0
    for cluster, distance, other in zip(clusters, nearest, others, strict=True):
        is_only_one = (clusters == cluster).sum() == 1
        total += 0 if is_only_one or max(distance, other) == 0 else (other - distance) / max(distance, other)
    got = simplified_silhouette(nearest, others, is_alone_N=is_alone(clusters))
    assert got == pytest.approx(total / 53, abs=1e-12)
    assert is_alone(clusters)[50]
    assert simplified_silhouette(nearest, np.full(53, np.inf)) is None
    for extreme in (1e-300, 1e300):
        assert simplified_silhouette(np.array([extreme]), np.array([2 * extreme])) == 0.5


def silhouette_by_definition(values: Doubles, clusters: Ints) -> float:
    total = 0.0
    for index, cluster in enumerate(clusters):
        means = {
            each: np.linalg.norm(values[(clusters == each) & (np.arange(len(values)) != index)] - values[index], axis=1)
            for each in np.unique(clusters)
        }
        if len(own := means.pop(cluster)):
            nearest = min(other.mean() for other in means.values())
            total += (nearest - own.mean()) / max(nearest, own.mean())
    return total / len(values)


@pytest.mark.parametrize("offset", [0, 1e6])
def test_the_silhouette_is_that_of_its_definition(offset: float) -> None:
    random = np.random.default_rng(3)
    values, clusters = random.standard_normal((40, 3)) + offset, random.integers(0, 4, 40)
    clusters[0] = 9  # alone
    assert silhouette(values, clusters) == pytest.approx(silhouette_by_definition(values, clusters), abs=1e-9)
    assert silhouette(values, np.zeros(40, int)) is None
    assert silhouette(values, np.arange(40)) is None


@pytest.mark.parametrize("normalize", [False, True])
def test_the_sample_is_rows_at_random_in_order(normalize: bool) -> None:
    values = np.random.default_rng(4).standard_normal((3 * SAMPLED_ROWS, 2)).astype(np.float32)
    rows = np.flatnonzero(np.arange(len(values)) % 4)
    data = Selection(layer=held(values).layer, rows=rows)
    positions, features = sample_of(data, normalize=normalize, seed=1)
    assert len(positions) == SAMPLED_ROWS
    assert (np.diff(positions) > 0).all()
    chosen = values[rows[positions]]
    unit = chosen / np.linalg.norm(chosen, axis=1, keepdims=True) if normalize else chosen
    assert features == pytest.approx(unit, rel=1e-6)
    for seed, is_same in ((1, True), (2, False)):
        assert np.array_equal(sample_of(data, normalize=normalize, seed=seed)[0], positions) is is_same


def test_a_sample_of_few_rows_is_all_of_them() -> None:
    values = np.eye(5, 3, dtype=np.float32) + 1
    positions, features = sample_of(held(values), normalize=False, seed=0)
    assert positions.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(features, values)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "num_clusters"), [(1000, 16_000), (8142, 8142)])
def test_over_a_million_labels_take_seconds(num_classes: int, num_clusters: int) -> None:
    """With long-tailed sizes, of which most differ."""
    import time

    random = np.random.default_rng(0)
    labels = (num_classes * random.random(1_300_000) ** 2.5).astype(int)
    clusters = np.where(random.random(len(labels)) < 0.5, labels, random.integers(0, num_clusters, len(labels)))
    start = time.process_time()
    got = measured(clusters, labels)
    assert time.process_time() - start < 30
    assert got.nmi == pytest.approx(peer.normalized_mutual_info_score(labels, clusters), abs=1e-9)
