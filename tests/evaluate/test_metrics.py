"""Accuracies, intervals and cluster metrics against independent definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn import metrics as peer

from evaluate.metrics import cluster_metrics, mean_per_class, proportion


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 3), (400, 597)])
def test_wilsons_interval_holds_the_rates_that_a_score_test_accepts(hits, count):
    """Its ends solve |p - hits/count| = z sqrt(p (1 - p) / count)."""
    estimate = proportion(np.arange(count) < hits)
    assert estimate.value == hits / count
    for end in (estimate.low, estimate.high):
        if 0 < end < 1:
            assert abs(end - hits / count) == pytest.approx(
                1.959964 * np.sqrt(end * (1 - end) / count), rel=1e-5, abs=1e-7
            )
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_mean_per_class_weighs_classes_alike():
    labels = np.array([0] * 90 + [1] * 10)
    correct = np.array([True] * 90 + [False] * 10)
    estimate = mean_per_class(correct, labels)
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == (0.5, 0.5), "nothing varies within a class"


def test_the_bootstrap_interval_is_that_of_resampling_each_class():
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
def test_cluster_metrics_are_those_of_their_definitions(num_clusters):
    random = np.random.default_rng(num_clusters)
    labels = random.integers(0, 4, 200)
    clusters = np.where(random.random(200) < 0.6, labels % num_clusters, random.integers(0, num_clusters, 200))
    got = cluster_metrics(clusters, labels)
    assert got["nmi"] == peer.normalized_mutual_info_score(labels, clusters)
    assert got["ami"] == peer.adjusted_mutual_info_score(labels, clusters)
    assert got["ari"] == peer.adjusted_rand_score(labels, clusters)
    size = max(4, num_clusters)
    best = max(
        sum(((clusters == cluster) & (labels == match[cluster])).sum() for cluster in range(num_clusters))
        for match in itertools.permutations(range(size), num_clusters)
    )
    assert got["hungarian"] == best / 200
    largest = [np.bincount(labels[clusters == cluster]).max() for cluster in np.unique(clusters)]
    assert got["purity"] == sum(largest) / 200


def test_cluster_metrics_do_not_depend_on_the_names_of_clusters():
    random = np.random.default_rng(0)
    labels, clusters = random.integers(0, 5, 100), random.integers(0, 5, 100)
    renamed = random.permutation(5)[clusters]
    assert cluster_metrics(clusters, labels) == pytest.approx(cluster_metrics(renamed, labels))
