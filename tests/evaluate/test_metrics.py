"""Accuracies, intervals and cluster metrics against independent definitions."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as peer

from featbench.evaluate.contingency import expected_mutual_information
from featbench.evaluate.metrics import cluster_metrics, mean_per_class, paired_difference, proportion
from tests.conftest import ROOT, needs_proc


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 3), (400, 597)])
def test_wilsons_interval_holds_the_rates_that_a_score_test_accepts(hits, count) -> None:
    """Its ends solve |p - hits/count| = z sqrt(p (1 - p) / count)."""
    estimate = proportion(np.arange(count) < hits)
    assert estimate.value == hits / count
    for end in (estimate.low, estimate.high):
        if 0 < end < 1:
            assert abs(end - hits / count) == pytest.approx(
                1.959964 * np.sqrt(end * (1 - end) / count), rel=1e-5, abs=1e-7
            )
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (0, 1), (1, 3), (7, 8), (400, 597), (49_999, 50_000)])
def test_wilsons_interval_is_scipys(hits, count) -> None:
    estimate, peers = proportion(np.arange(count) < hits), binomtest(hits, count).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((peers.low, peers.high), rel=1e-12, abs=1e-15)


def paired(*, neither=0, only_first, only_second, both=0):
    """Whether each of two classifiers is right, of queries in the cells of a 2 x 2 table."""
    cells = [(False, False)] * neither + [(True, False)] * only_first + [(False, True)] * only_second
    first, second = zip(*cells, *[(True, True)] * both, strict=True)
    return np.array(first), np.array(second)


def test_the_paired_interval_is_bonett_and_prices() -> None:
    """The example of `ci.prop.ps(.05, 12, 4, 26, 6)` in the manual of statpsych, R code by Bonett himself."""
    difference = paired_difference(*paired(neither=12, only_first=4, only_second=26, both=6))
    assert (difference.low, difference.high) == pytest.approx((0.2548067, 0.6251933), abs=5e-8)
    assert difference.value == 22 / 48
    assert (difference.only_first, difference.only_second) == (4, 26)
    reverse = paired_difference(*paired(neither=12, only_first=26, only_second=4, both=6))
    assert (reverse.low, reverse.high) == (-difference.high, -difference.low)
    assert reverse.value == -difference.value


def test_the_paired_interval_stays_within_what_a_difference_can_be() -> None:
    """For 2 queries that only the second gets right: 3/4 - 1/4 + 1.96 sqrt((1 - 1/4) / 4) is 1.35."""
    difference = paired_difference(*paired(only_first=0, only_second=2))
    assert (difference.value, difference.high) == (1, 1)
    assert difference.low == pytest.approx(0.5 - 1.959963984540054 * math.sqrt(0.75 / 4), rel=1e-12)
    assert paired_difference(*paired(only_first=2, only_second=0)).low == -1


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (1, 7), (7, 1), (4, 26), (5, 5)])
def test_mcnemars_p_value_is_the_binomial_sum(only_first, only_second) -> None:
    """Twice the chance of a split at least so uneven, by tosses of a fair coin."""
    differing, fewer = only_first + only_second, min(only_first, only_second)
    expected = min(1, 2 * sum(math.comb(differing, each) for each in range(fewer + 1)) / 2**differing)
    for others in (0, 90):
        columns = paired(neither=others, only_first=only_first, only_second=only_second, both=others)
        assert paired_difference(*columns).p_value == pytest.approx(expected, rel=1e-9)


def test_equal_classifiers_do_not_differ() -> None:
    difference = paired_difference(*paired(neither=1, only_first=0, only_second=0, both=2))
    assert (difference.value, difference.p_value) == (0, 1)
    assert difference.low == -difference.high


def test_mean_per_class_weighs_classes_alike() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    correct = np.array([True] * 90 + [False] * 10)
    estimate = mean_per_class(correct, labels)
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == (0.5, 0.5), "nothing varies within a class"


def test_the_bootstrap_interval_is_that_of_resampling_each_class() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, 300)
    correct = random.random(300) < 0.2 + 0.2 * labels
    means = []
    for _ in range(4000):
        rates = []
        for label in range(4):
            members = correct[labels == label]
            rates.append(random.choice(members, len(members)).mean())
        means.append(np.mean(rates))
    estimate = mean_per_class(correct, labels)
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.005)


@pytest.mark.parametrize("num_clusters", [2, 4, 6])
def test_cluster_metrics_are_those_of_their_definitions(num_clusters) -> None:
    random = np.random.default_rng(num_clusters)
    labels = random.integers(0, 4, 200)
    clusters = np.where(random.random(200) < 0.6, labels % num_clusters, random.integers(0, num_clusters, 200))
    got = cluster_metrics(clusters, labels)
    assert got["nmi"] == peer.normalized_mutual_info_score(labels, clusters)
    assert got["ami"] == pytest.approx(peer.adjusted_mutual_info_score(labels, clusters), abs=1e-12)
    assert got["ari"] == peer.adjusted_rand_score(labels, clusters)
    size = max(4, num_clusters)
    best = max(
        sum(((clusters == cluster) & (labels == match[cluster])).sum() for cluster in range(num_clusters))
        for match in itertools.permutations(range(size), num_clusters)
    )
    assert got["hungarian"] == best / 200
    largest = [np.bincount(labels[clusters == cluster]).max() for cluster in np.unique(clusters)]
    assert got["purity"] == sum(largest) / 200


def test_cluster_metrics_do_not_depend_on_the_names_of_clusters() -> None:
    random = np.random.default_rng(0)
    labels, clusters = random.integers(0, 5, 100), random.integers(0, 5, 100)
    renamed = random.permutation(5)[clusters]
    assert cluster_metrics(clusters, labels) == pytest.approx(cluster_metrics(renamed, labels))


def test_the_adjusted_mutual_information_is_scikit_learns() -> None:
    random = np.random.default_rng(5)
    for trial in range(60):
        count = int(random.integers(1, 150))
        labels = random.integers(0, random.integers(1, count + 1), count)
        clusters = random.integers(0, random.integers(1, count + 1), count)
        clusters = np.where(random.random(count) < 0.7, labels, clusters) if trial % 3 else clusters
        expected = peer.adjusted_mutual_info_score(labels, clusters)
        assert cluster_metrics(clusters, labels)["ami"] == pytest.approx(expected, abs=1e-9)
    alone = np.arange(7)
    assert cluster_metrics(alone, alone)["ami"] == peer.adjusted_mutual_info_score(alone, alone) == 1


def test_the_mutual_information_of_chance_is_the_mean_over_hypergeometric_tables() -> None:
    from scipy.stats import hypergeom

    classes, clusters = np.array([6_000, 3_000, 900, 90, 9, 1]), np.array([5_000, 4_900, 70, 30])
    total = 0.0
    for size in classes:
        for other in clusters:
            shared = np.arange(1, min(size, other) + 1)
            chances = hypergeom.pmf(shared, 10_000, size, other)
            total += (chances * shared / 1e4 * np.log(1e4 * shared / (float(size) * other))).sum()
    assert expected_mutual_information(classes, clusters) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("num_classes", "num_clusters"), [(1200, 1500), (1500, 1100)])
def test_the_best_match_of_many_classes_is_that_of_the_whole_table(num_classes, num_clusters) -> None:
    from scipy.optimize import linear_sum_assignment

    random = np.random.default_rng(1)
    labels = random.integers(0, num_classes, 6000)
    clusters = np.where(random.random(6000) < 0.4, labels % num_clusters, random.integers(0, num_clusters, 6000))
    table = peer.cluster.contingency_matrix(labels, clusters)
    expected = table[linear_sum_assignment(table, maximize=True)].sum() / 6000
    assert cluster_metrics(clusters, labels)["hungarian"] == pytest.approx(expected)


@needs_proc
def test_as_many_classes_and_clusters_as_rows_need_no_table_of_all_pairs() -> None:
    """A table of 8 bytes for each pair would take 7.2 GB."""
    code = """
import numpy as np
from sklearn import metrics
from featbench.evaluate.metrics import cluster_metrics
from featbench.evaluate.knn.per_class import class_accuracies
from tests.peak import peak_kb
before, labels = peak_kb(), np.arange(30_000)
clusters = np.random.default_rng(0).permutation(30_000)
assert cluster_metrics(clusters, labels)["hungarian"] == 1
classes = class_accuracies(np.where(labels % 2, labels, (labels + 1) % 30_000), labels, [str(i) for i in labels])
assert [each.most_confused_with for each in classes[:4]] == ["1", None, "3", None]
print(peak_kb() - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 300 * 1024
