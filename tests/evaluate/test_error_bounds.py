"""Bounds on the error of scores are those of their definitions, by hand and in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from featbench.evaluate.neighbours.error_bounds import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    ErrorBound,
    added,
    float16_error,
    float32_error,
    highest,
    is_finite_in_float32,
    relative_error,
    rounded_error,
    score_of,
    similarity_of,
)

ROUNDED_SUM = 1 + Fraction(1, 2**10)
"""What bounds that are sums are enlarged by."""


def gamma(count: int, rounding: float) -> Fraction:
    """Higham's bound of `count` rounding errors, n u / (1 - n u), exactly."""
    lost = count * Fraction(rounding)
    return lost / (1 - lost)


def errors_of(dim: int) -> int:
    """Two for each product and sum, of which one is for scaling both rows, and 32 to spare."""
    return 2 * dim + 32


def flushed(dim: int, *lengths: float) -> Fraction:
    """Three inner products of numbers that are lost below float32's smallest normal number."""
    return 3 * dim * Fraction(2) ** -126 * (1 + sum(map(Fraction, lengths)))


@pytest.mark.parametrize("rounding", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("dim", [1, 2, 7, 512, 4096])
def test_a_relative_error_is_highams_gamma(dim: int, rounding: float) -> None:
    error = relative_error(dim, rounding)
    assert error == pytest.approx(float(gamma(errors_of(dim), rounding)), rel=1e-12)
    assert error >= gamma(2 * dim, rounding), "less than the errors of a product of scaled rows"


def test_a_relative_error_of_one_is_no_bound() -> None:
    dim = (2**23 - 32) // 2  # half of 2^24 roundings, each of 2^-24
    assert relative_error(dim, FLOAT32) == math.inf
    assert 0.999 < relative_error(dim - 1, FLOAT32) < 1
    assert relative_error(10**8, FLOAT32) == math.inf


def test_an_error_in_float32_is_relative_to_the_lengths() -> None:
    lengths = np.array([2.0, 0.5])
    relative = gamma(errors_of(100), FLOAT32)
    for kind, sizes in (("cosine", (6, 1.5)), ("inner_product", (6, 1.5)), ("euclidean", (25, 12.25))):
        error = float32_error(lengths, 3.0, 100, kind)
        assert error.relative == 0
        assert error.absolute_Q == pytest.approx([float(relative * Fraction(size)) for size in sizes], rel=1e-12)


@pytest.mark.parametrize(("length", "longest"), [(0.0, 0.0), (0.0, 2.0), (4.0, 0.0)])
def test_numbers_too_small_for_float32_have_an_error_too(length: float, longest: float) -> None:
    """A product of lengths of which one is 0 has no other."""
    error = float32_error(np.array([length]), longest, 8, "inner_product")
    assert error.absolute_Q[0] == float(flushed(8, length, longest))
    rounded = rounded_error(np.array([length]), 0.0, longest, 0.0, 8)
    assert rounded.absolute_Q[0] == pytest.approx(float(ROUNDED_SUM * flushed(8, length, longest)), rel=1e-12, abs=0)


def test_lengths_of_moved_queries_count_where_numbers_are_too_small() -> None:
    error = rounded_error(np.array([4.0]), np.array([2.0]), 0.0, 0.0, 8)
    assert error.absolute_Q[0] == pytest.approx(float(ROUNDED_SUM * flushed(8, 4, 2, 0)), rel=1e-12, abs=0)


def test_rows_that_rounding_moves_apart_are_within_the_bound() -> None:
    """3 becomes 3.25 and 5 becomes 5.5, in the same direction: the product is off by 3.25 * 5.5 - 15."""
    moved = Fraction("3.25") * Fraction("5.5") - 15
    summed = gamma(errors_of(100), FLOAT32) * Fraction("3.25") * Fraction("5.5")
    error = rounded_error(np.array([3.0, 0.0]), np.array([0.25, 0.0]), 5.0, 0.5, 100)
    assert error.absolute_Q[0] == pytest.approx(float(ROUNDED_SUM * (moved + summed)), rel=1e-12)
    assert error.absolute_Q[0] > moved
    assert error.relative == 0


def test_rounding_a_product_counts_relative_to_what_it_became() -> None:
    """At worst p becomes p (1 - u), so p u is u / (1 - u) of what it became."""
    error = rounded_error(np.array([1.0]), 0.0, 1.0, 0.0, 100, result=BFLOAT16)
    assert error.relative == pytest.approx(float(ROUNDED_SUM * Fraction(1, 255)), rel=1e-12)


def test_an_error_in_float16_is_that_of_rounding_both_rows() -> None:
    """Each number moves by 2^-11 of itself, or by half of 2^-24 if it is small."""
    off = Fraction(2) ** -11 + 10 * Fraction(2) ** -25  # sqrt(100) = 10
    relative = gamma(errors_of(100), FLOAT32)
    moved, summed = off * (1 + off) + off, relative * (1 + off) ** 2
    error = float16_error(3, 100)
    assert error.absolute_Q == pytest.approx([float(relative + ROUNDED_SUM * (moved + summed))] * 3, rel=1e-12)


def test_rows_of_length_1_are_nowhere_further_from_float16_than_the_bound_says() -> None:
    random = np.random.default_rng(0)
    for dim in (4, 100, 5000):
        rows = random.standard_normal((200, dim)) * 10.0 ** random.uniform(-5, 0, (200, dim))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        moved = np.linalg.norm(rows.astype(np.float16) - rows, axis=1).max()
        assert 2 * moved < float16_error(1, dim).absolute_Q[0] < 10 * moved + 1e-3


def test_errors_of_a_sum_add_up() -> None:
    first = ErrorBound(absolute_Q=np.array([1.0, 2.0]), relative=0.5)
    second = ErrorBound(absolute_Q=np.array([0.25, 8.0]), relative=0.125)
    assert added(first, second, 2.0).absolute_Q.tolist() == [1.5, 18.0]
    assert added(first, second).absolute_Q.tolist() == [1.25, 10.0]
    assert added(first, second).relative == 0.625


def test_an_error_grows_with_the_size_of_the_score() -> None:
    error = ErrorBound(absolute_Q=np.array([1.0, 2.0]), relative=0.5)
    assert error.of(np.array([4, -4], np.float32)).tolist() == [3.0, 4.0]
    assert error.of(np.array([[4, 0, -6], [0, 1, 2]], np.float32)).tolist() == [[3.0, 1.0, 4.0], [2.0, 2.5, 3.0]]
    assert error[1:].of(np.array([8.0])).tolist() == [6.0]


def test_infinite_scores_have_the_same_error_where_none_is_relative() -> None:
    error = ErrorBound(absolute_Q=np.array([1.0]))
    assert error.of(np.array([[np.inf, -np.inf]])).tolist() == [[1.0]]


def test_scores_and_similarities_follow_from_each_other() -> None:
    """The query (3, 4) and the row (3, 0): 2 * 9 - 9 = 9 is the score, 4 is the distance."""
    lengths = np.array([5.0])
    assert similarity_of(np.array([9.0]), lengths, "euclidean").tolist() == [-4]
    assert score_of(np.array([[-4.0, -3.0]]), lengths, "euclidean").tolist() == [[9, 16]]
    assert similarity_of(np.array([25.1]), lengths, "euclidean").tolist() == [0], "rounding can make it exceed 25"
    for kind in ("cosine", "inner_product"):
        assert similarity_of(np.array([9.0]), lengths, kind).tolist() == [9]
        assert score_of(np.array([[-4.0, -3.0]]), lengths, kind).tolist() == [[-4, -3]]


def test_scores_are_finite_where_the_product_of_lengths_is_below_2_to_the_126() -> None:
    lengths = np.array([2.0**62, 2.0**63, 2.0**64])
    assert is_finite_in_float32(lengths, 2.0**63, "inner_product").tolist() == [True, False, False]
    assert is_finite_in_float32(lengths, 2.0**62, "euclidean").tolist() == [False, False, False]
    assert is_finite_in_float32(lengths / 2, 2.0**61, "euclidean").tolist() == [True, True, False]
    assert is_finite_in_float32(lengths, 2.0**63, "cosine").all()


@pytest.mark.parametrize("kind", ["cosine", "inner_product", "euclidean"])
def test_the_highest_similarity_of_a_pair_is_its_own_and_the_error_of_its_product(kind: str) -> None:
    """With a million dimensions, whose error in float64 is large enough to be seen."""
    dim, products = 10**6, np.array([[10.0, -3.0, 1.0], [2.0, 0.5, 0.0]])
    lengths_Q, lengths_R = np.array([5.0, 0.5]), np.array([3.0, 4.0, 7.0])
    error = float(gamma(errors_of(dim), FLOAT64))
    expected = np.empty(products.shape)
    for (query, row), product in np.ndenumerate(products):
        size = lengths_Q[query] * lengths_R[row]
        squares = lengths_Q[query] ** 2 + lengths_R[row] ** 2 - 2 * product
        expected[query, row] = {
            "inner_product": product + error * size,
            "cosine": (product + error * size) / size,
            "euclidean": -math.sqrt(max(0, squares - error * (lengths_Q[query] + lengths_R[row]) ** 2)),
        }[kind]
    found = highest(products.copy(), lengths_Q, lengths_R, dim, kind)
    assert found == pytest.approx(expected, rel=1e-14)
    without = highest(products.copy(), lengths_Q, lengths_R, 1, kind)
    assert (found - without > 1e-11).all()


def test_equal_rows_have_a_distance_of_0_at_least() -> None:
    assert highest(np.array([[25.0]]), np.array([5.0]), np.array([5.0]), 8, "euclidean").tolist() == [[0]]
