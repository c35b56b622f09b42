"""Sums of rows do not depend on their order, and are those of exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from featbench.evaluate.clustering.rows import Frame
from featbench.evaluate.clustering.sums import ROWS_AT_ONCE, ClusterSums, FixedPoint, NumberSum
from featbench.store.typing import Doubles, Ints

NONE = -1
RESOLUTION = 2.0**-34
"""Documented: bits that are kept of an ordinary number."""


def frame_of(rows_ND: Doubles) -> Frame:
    return Frame.around(rows_ND, rows_ND.min(axis=0), rows_ND.max(axis=0))


def sums_of(rows_ND: Doubles, clusters_N: Ints, frame: Frame, *, order: Ints, at_once: int) -> ClusterSums:
    """Add rows in some order, some at a time; first to a wrong cluster, from which they are moved."""
    sums = ClusterSums(frame, num_clusters=4, num_rows=len(rows_ND), dim=rows_ND.shape[1])
    for at in range(0, len(order), at_once):
        some = order[at : at + at_once]
        nowhere, elsewhere_N = np.full(len(some), NONE), (clusters_N[some] + at) % 4
        sums.move(rows_ND[some], nowhere, elsewhere_N)
        sums.move(rows_ND[some], elsewhere_N, clusters_N[some])
    return sums


def some_rows(scale: str) -> Doubles:
    random = np.random.default_rng(0)
    rows_ND = random.standard_normal((200, 3)).astype(np.float32).astype(np.float64)
    if scale == "offset":
        rows_ND += 1e6
    elif scale == "huge":
        rows_ND *= 1e37
    elif scale == "subnormal":
        rows_ND *= 2.0**-145
    elif scale == "mixed":
        rows_ND *= 10.0 ** random.integers(-40, 37, (200, 1))
    elif scale == "mostly zeros and one far away":
        rows_ND[:150], rows_ND[7] = 0, 1e15
    return rows_ND.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("scale", ["ordinary", "offset", "huge", "subnormal", "mixed", "mostly zeros and one far away"])
def test_means_are_the_same_bits_in_any_order_and_those_of_exact_arithmetic(scale: str) -> None:
    random = np.random.default_rng(1)
    rows_ND, clusters_N = some_rows(scale), random.integers(0, 4, 200)
    frame = frame_of(rows_ND)
    first = sums_of(rows_ND, clusters_N, frame, order=np.arange(200), at_once=200)
    for at_once in (1, 7, 64):
        other = sums_of(rows_ND, clusters_N, frame, order=random.permutation(200), at_once=at_once)
        assert np.array_equal(first.sums_LKD, other.sums_LKD)
        assert np.array_equal(first.counts_K, np.bincount(clusters_N))
    for cluster, mean_D in enumerate(first.means(np.arange(4))):
        members_ND = rows_ND[clusters_N == cluster]
        exact = [sum(map(Fraction, column.tolist())) / len(members_ND) for column in members_ND.T]
        allowed = RESOLUTION * frame.typical + 4 * np.finfo(float).eps * np.abs(mean_D)
        assert (
            np.abs([float(Fraction(each) - true) for each, true in zip(mean_D, exact, strict=True)]) <= allowed
        ).all()


def test_sums_of_shards_are_the_sums_of_all() -> None:
    random = np.random.default_rng(1)
    rows_ND, clusters_N = some_rows("mixed"), random.integers(0, 4, 200)
    frame = frame_of(rows_ND)
    whole = sums_of(rows_ND, clusters_N, frame, order=np.arange(200), at_once=200)
    total = ClusterSums(frame, num_clusters=4, num_rows=200, dim=3)
    for shard in np.split(np.arange(200), [30, 31, 150]):
        of_shard = ClusterSums(frame, num_clusters=4, num_rows=200, dim=3)
        of_shard.move(rows_ND[shard], np.full(len(shard), NONE), clusters_N[shard])
        total.add(of_shard.sums_LKD, of_shard.counts_K)
    assert np.array_equal(whole.sums_LKD, total.sums_LKD)
    assert np.array_equal(whole.counts_K, total.counts_K)


def test_rows_that_leave_a_cluster_leave_no_trace() -> None:
    rows_ND = some_rows("mixed")
    sums = ClusterSums(frame_of(rows_ND), num_clusters=2, num_rows=200, dim=3)
    ones = np.ones(200, np.int64)
    sums.move(rows_ND.copy(), NONE * ones, 0 * ones)
    sums.move(rows_ND.copy(), 0 * ones, ones)
    assert not sums.sums_LKD[:, 0].any()
    assert sums.counts_K.tolist() == [0, 200]


@pytest.mark.parametrize("num_rows", [ROWS_AT_ONCE, 5 * ROWS_AT_ONCE])
def test_the_largest_numbers_of_many_rows_add_up_exactly(num_rows: int) -> None:
    """Integers of 40 bits of more than 2^13 rows do not add up exactly in float64."""
    rows_ND = np.full((num_rows, 1), 1 - 2.0**-40)
    rows_ND[::2] = 1 - 3 * 2.0**-40
    frame = Frame(center_D=np.zeros(1), factor=1.0, limit=1.0, typical=1.0)
    sums = ClusterSums(frame, num_clusters=1, num_rows=num_rows, dim=1)
    digits = FixedPoint.of(limit=1.0, typical=1.0, count=num_rows)
    sums.move(rows_ND.copy(), np.full(num_rows, NONE), np.zeros(num_rows, np.int64))
    expected = sum(round(Fraction(number) * 2 ** digits.exponents[0]) for number in rows_ND[:, 0].tolist())
    assert int(sums.sums_LKD[0, 0, 0]) == expected


@pytest.mark.parametrize("limit", [1.0, 3e38, 1.4e-45, 0.0])
@pytest.mark.parametrize("count", [1, 1000, 2**22, 2**31, 2**40])
def test_no_sum_overflows_int64_or_is_rounded_in_float64(count: int, limit: float) -> None:
    digits = FixedPoint.of(limit=limit, typical=limit / 8, count=count)
    for level in digits.cut(np.array([limit, -limit, limit / 3])):
        largest = int(np.abs(level).max())
        assert largest * count < 2**63
        assert largest * ROWS_AT_ONCE <= 2**53


def test_all_digits_of_float32_are_kept_beside_a_number_of_any_size() -> None:
    digits = FixedPoint.of(limit=3e38, typical=1e-38, count=1000)
    numbers = np.array([3e38, 1.5, 1e-38], np.float32).astype(np.float64)
    joined = digits.join(np.array(digits.cut(numbers.copy()), dtype=np.int64))
    assert np.array_equal(joined, numbers)


@pytest.mark.parametrize("scale", [1.0, 1e76, 1e-90])
def test_numbers_add_up_as_by_fsum_in_any_order(scale: float) -> None:
    random = np.random.default_rng(0)
    numbers = random.exponential(size=10_000) * scale * 10.0 ** random.integers(-6, 1, 10_000)
    totals = []
    for order in (np.arange(10_000), random.permutation(10_000)):
        total = NumberSum(limit=float(numbers.max()), typical=scale, count=10_000)
        for some in np.array_split(order, 7):
            total.add(numbers[some])
        totals.append(total.total())
    assert totals[0] == totals[1] == pytest.approx(math.fsum(numbers), rel=1e-15)


@pytest.mark.parametrize("offset", [0, 1e6])
def test_the_objective_is_that_of_all_distances(offset: float) -> None:
    random = np.random.default_rng(0)
    rows_ND, clusters_N = random.standard_normal((300, 5)) + offset, random.integers(0, 4, 300)
    frame = frame_of(rows_ND)
    sums = ClusterSums(frame, num_clusters=4, num_rows=300, dim=5)
    sums.move(rows_ND.copy(), np.full(300, NONE), clusters_N)
    squares = float(np.square(rows_ND - frame.center_D).sum())
    for centroids_KD in (sums.means(np.arange(4)), rows_ND[:4]):
        expected = np.square(rows_ND - centroids_KD[clusters_N]).sum()
        assert sums.objective(centroids_KD, squares) == pytest.approx(expected, rel=1e-8)


def test_an_objective_that_rounding_errors_would_change_is_not_told() -> None:
    rows_ND = np.repeat(np.array([[0.0], [1.0], [2.0]]), 10, axis=0)
    rows_ND[::2] += 1e-6
    sums = ClusterSums(frame_of(rows_ND), num_clusters=3, num_rows=30, dim=1)
    sums.move(rows_ND.copy(), np.full(30, NONE), np.arange(3).repeat(10))
    assert sums.objective(sums.means(np.arange(3)), float(np.square(rows_ND - 1).sum())) is None
