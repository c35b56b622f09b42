"""How wrong a computed similarity can be: rigorous bounds, from the lengths of the rows and the number format alone.

A search proposes rows by scores in float32. What it returns is right if no row outside the proposed
list could, by its similarity in float64, belong among the first k: the largest such similarity is the
list's worst score plus the largest error of any score. Pure arithmetic: no files, no faiss.

An inner product of D numbers, summed in any order, is off by at most D rounding errors of the product
of the two lengths (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., sec. 3.1, with
Cauchy-Schwarz). A length computed so is off by half as much, relatively; so scaling a row to length 1
adds up to D / 2 errors, and rounding to the format one more for each operation. A squared distance is
three such products. The similarity in float64 has errors of its own, 2^29 times smaller.
`_count` is larger than each of these sums, so that one number serves them all.

Shape suffixes:  Q queries   R rows of the database   D dimension
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evaluate.protocols import Similarity

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FLOAT32 = 2.0**-24
"""Largest relative error of one operation in float32, rounded to nearest."""

FLOAT64 = 2.0**-53
"""The same in float64."""

_SMALLEST = 2.0**-126
"""Numbers below it may be taken as 0 by processors that skip the slow arithmetic on them."""

_LARGEST = 2.0**126
"""A product of lengths below it, and a few times that, are finite in float32."""


def relative_error(dim: int, rounding: float) -> float:
    """Bound on the error of an inner product of D numbers, relative to the product of the two lengths.

    Infinite where D is so large that rounding could have eaten everything.

    Examples
    --------
    >>> relative_error(512, FLOAT32) < 2**-13
    True
    """
    lost = _count(dim) * rounding
    return lost / (1 - lost) if lost < 0.5 else np.inf


def ceiling(
    worst_Q: npt.NDArray[np.float32], lengths_Q: Doubles, longest: float, dim: int, kind: Similarity
) -> Doubles:
    """Similarity in float64 that no row outside a list can exceed, from the worst float32 score in the list.

    Parameters
    ----------
    worst_Q : ndarray of shape (Q,), dtype=float32
        Of the cosine or the inner product the smallest, of squared distances the largest.
    lengths_Q : ndarray of shape (Q,)
        Euclidean length of each query.
    longest : float
        Of all rows of the database.
    dim : int
        D.
    kind : {"cosine", "inner_product", "euclidean"}
        What the scores are of; a Euclidean similarity is minus the distance.

    Returns
    -------
    ndarray of shape (Q,), dtype=float64
        NaN or infinite where float32 can't tell, which no similarity exceeds.
    """
    error = relative_error(dim, FLOAT32)
    worst = worst_Q.astype(np.float64)
    if kind == "cosine":
        return worst + (error + dim * _SMALLEST)
    underflow = dim * _SMALLEST * (1 + lengths_Q + longest)
    if kind == "inner_product":
        return worst + (error * lengths_Q * longest + underflow)
    return -np.sqrt(np.maximum(worst - (error * np.square(lengths_Q + longest) + 3 * underflow), 0))


def is_finite_in_float32(lengths_Q: Doubles, longest: float, kind: Similarity) -> Bools:
    """Whether no score of a query can overflow float32."""
    if kind == "cosine":
        return np.ones(len(lengths_Q), np.bool_)
    sizes = lengths_Q * longest if kind == "inner_product" else np.square(lengths_Q + longest)
    return np.asarray(sizes < _LARGEST)


def highest(products_QR: Doubles, lengths_Q: Doubles, lengths_R: Doubles, dim: int, kind: Similarity) -> Doubles:
    """Similarity that a pair can have at most, from its inner product in float64 summed in any order.

    Parameters
    ----------
    products_QR : ndarray of shape (Q, R), dtype=float64
        Inner products of unscaled rows; overwritten.
    lengths_Q, lengths_R : ndarray
        Euclidean lengths, for the cosine at least `EPSILON`.
    dim, kind
        As for `ceiling`.

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
    """Rounding errors between the true similarity and a computed one, at most, with a few to spare."""
    return 2 * dim + 32
