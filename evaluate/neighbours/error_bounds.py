"""Rigorous bounds on the error of a score, from the lengths of the rows and the number format alone.

An engine proposes rows by scores of low precision. A list is right if no row outside the candidates can belong in it
by its similarity in float64: the largest such similarity follows from the list's floor and the largest error of a
score. Pure arithmetic: no files, no faiss.

The score of a row is its inner product with the query, of rows of length 1 under the cosine. For the
Euclidean similarity it is twice the product less the square of the row's length: the square of
the query's length less the squared distance.

An inner product of D numbers, summed in any order, is off by at most D rounding errors of the product
of the two lengths (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., sec. 3.1, with
Cauchy-Schwarz). A length computed so is off by half as much, relatively; so scaling a row to length 1
adds up to D / 2 errors, and rounding to the format one more for each operation. A squared distance is
three such products. The similarity in float64 has errors of its own, 2^29 times smaller.
`_count` is larger than each of these sums, so that one number serves them all.

Shape suffixes:  Q queries   R rows of the database   D dimension
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store.typing import Array, Bools, Doubles, Ints

FLOAT32 = 2.0**-24
"""Largest relative error of one operation in float32, rounded to nearest."""

FLOAT64 = 2.0**-53
"""The same in float64."""

BFLOAT16 = 2.0**-8
"""The same of rounding to bfloat16."""

_SMALLEST = 2.0**-126
"""Smallest normal float32: processors may flush smaller numbers to 0."""

_LARGEST = 2.0**126
"""Products of lengths below this, and a few times them, are finite in float32."""

_SPARE = 1 + 2.0**-10
"""Factor on sums of bounds, since these are rounded too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBound:
    """The largest error of a score s of each query: `absolute_Q + relative * |s|`."""

    absolute_Q: Doubles
    relative: float = 0.0

    def __getitem__(self, queries: slice | Ints) -> ErrorBound:
        """Select some queries."""
        return ErrorBound(absolute_Q=self.absolute_Q[queries], relative=self.relative)

    def of(self, scores: Array) -> Doubles:
        """Largest errors of scores of shape (Q,) or (Q, C)."""
        absolute = self.absolute_Q if scores.ndim == 1 else self.absolute_Q[:, None]
        if not self.relative:
            return absolute
        return absolute + self.relative * np.abs(scores.astype(np.float64))


def relative_error(dim: int, rounding: float) -> float:
    """Bound on the error of an inner product of D numbers, relative to the product of the two lengths.

    Infinite where D is so large that no digit is certain.

    Examples
    --------
    >>> relative_error(512, FLOAT32) < 2**-13
    True
    """
    lost = _count(dim) * rounding
    return lost / (1 - lost) if lost < 0.5 else np.inf


def float32_error(lengths_Q: Doubles, longest: float, dim: int, kind: Similarity) -> ErrorBound:
    """Error of scores computed in float32 throughout.

    Parameters
    ----------
    lengths_Q : ndarray of shape (Q,)
        Euclidean length of each query; 1 under the cosine.
    longest : float
        Largest length of a database row; 1 under the cosine.
    dim : int
        D.
    kind : {"cosine", "inner_product", "euclidean"}
        Similarity that the scores stand for.
    """
    sizes = np.square(lengths_Q + longest) if kind == "euclidean" else lengths_Q * longest
    return ErrorBound(absolute_Q=relative_error(dim, FLOAT32) * sizes + _underflow(lengths_Q, longest, dim))


def rounded_error(
    lengths_Q: Doubles, off_Q: Doubles | float, longest: float, off: float, dim: int, *, result: float = 0.0
) -> ErrorBound:
    """Error of inner products of rows that were rounded to fewer bits, with sums in float32.

    Parameters
    ----------
    lengths_Q, longest
        Lengths of the queries, and of the longest row, before rounding.
    off_Q, off
        Euclidean distance by which rounding moved each query, and the row that it moved the most.
    dim : int
        D.
    result : float
        Relative error of rounding the product itself.
    """
    row = longest + off
    moved = off_Q * row + lengths_Q * off
    summed = relative_error(dim, FLOAT32) * (lengths_Q + off_Q) * row + _underflow(lengths_Q + off_Q, row, dim)
    return ErrorBound(absolute_Q=_SPARE * (moved + summed), relative=_SPARE * result / (1 - result))


def float16_error(num_queries: int, dim: int) -> ErrorBound:
    """Error of cosines of rows of length 1 that were rounded to float16, with sums in float32."""
    ones = np.ones(num_queries)
    off = 2.0**-11 + np.sqrt(dim) * 2.0**-25  # relative, of numbers below 2^-14 absolute
    return added(float32_error(ones, 1.0, dim, "cosine"), rounded_error(ones, off, 1.0, off, dim))


def added(first: ErrorBound, second: ErrorBound, times: float = 1.0) -> ErrorBound:
    """Error of a sum: of one score, and of another `times` over."""
    return ErrorBound(
        absolute_Q=first.absolute_Q + times * second.absolute_Q, relative=first.relative + second.relative
    )


def similarity_of(scores_Q: Doubles, lengths_Q: Doubles, kind: Similarity) -> Doubles:
    """Similarity that corresponds to a true score; minus the distance if Euclidean.

    Parameters
    ----------
    scores_Q : ndarray of shape (Q,)
    lengths_Q : ndarray of shape (Q,)
        Euclidean length of each query.
    kind : {"cosine", "inner_product", "euclidean"}
    """
    if kind == "euclidean":
        distances: Doubles = np.sqrt(np.maximum(np.square(lengths_Q) - scores_Q, 0))
        return -distances
    return scores_Q


def score_of(similarities_QC: Doubles, lengths_Q: Doubles, kind: Similarity) -> Doubles:
    """True score that corresponds to a similarity: the inverse of `similarity_of`."""
    if kind == "euclidean":
        scores_QC: Doubles = np.square(lengths_Q)[:, None] - np.square(similarities_QC)
        return scores_QC
    return similarities_QC


def is_finite_in_float32(lengths_Q: Doubles, longest: float, kind: Similarity) -> Bools:
    """Whether no score of a query can overflow float32."""
    if kind == "cosine":
        return np.ones(len(lengths_Q), np.bool_)
    sizes = lengths_Q * longest if kind == "inner_product" else np.square(lengths_Q + longest)
    return np.asarray(sizes < _LARGEST)


def highest(products_QR: Doubles, lengths_Q: Doubles, lengths_R: Doubles, dim: int, kind: Similarity) -> Doubles:
    """Upper bound on the similarity of each pair, from inner products in float64 summed in any order.

    Parameters
    ----------
    products_QR : ndarray of shape (Q, R), dtype=float64
        Inner products of unscaled rows; overwritten.
    lengths_Q, lengths_R : ndarray
        Euclidean lengths, for the cosine not 0.
    dim : int
        D.
    kind : {"cosine", "inner_product", "euclidean"}

    Returns
    -------
    ndarray of shape (Q, R), dtype=float64
    """
    error = relative_error(dim, FLOAT64)
    if kind == "euclidean":
        products_QR *= -2
        products_QR += np.square(lengths_Q)[:, None] + np.square(lengths_R)
        products_QR -= error * np.square(lengths_Q[:, None] + lengths_R)
        np.sqrt(np.maximum(products_QR, 0, out=products_QR), out=products_QR)
        return np.negative(products_QR, out=products_QR)
    products_QR += error * lengths_Q[:, None] * lengths_R
    if kind == "cosine":
        products_QR /= lengths_Q[:, None] * lengths_R
    return products_QR


def _count(dim: int) -> int:
    """Upper bound on the number of rounding errors between the true similarity and a computed one."""
    return 2 * dim + 32


def _underflow(lengths_Q: Doubles, longest: float, dim: int) -> Doubles:
    """Error added by numbers that underflow."""
    return 3 * dim * _SMALLEST * (1 + lengths_Q + longest)
