"""Accuracies and intervals against independent definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from featbench.evaluate.metrics import mean_per_class, paired_difference, proportion
from featbench.store.typing import Bools


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 3), (400, 597)])
def test_wilsons_interval_holds_the_rates_that_a_score_test_accepts(hits: int, count: int) -> None:
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
def test_wilsons_interval_is_scipys(hits: int, count: int) -> None:
    estimate, peers = proportion(np.arange(count) < hits), binomtest(hits, count).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((peers.low, peers.high), rel=1e-12, abs=1e-15)


def paired(*, neither: int = 0, only_first: int, only_second: int, both: int = 0) -> tuple[Bools, Bools]:
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
def test_mcnemars_p_value_is_the_binomial_sum(only_first: int, only_second: int) -> None:
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
