"""Quality of features without labels: effective rank, decay of the spectrum, uniformity on the sphere.

One pass over the rows adds up their sum and their products in float64.

Shape suffixes:  N rows   D feature dimension   S sampled rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featbench.evaluate.features.selection import Selection
from featbench.evaluate.memory import rows_per_block
from featbench.evaluate.metrics import Z95, Estimate
from featbench.store.typing import Doubles, Floats, Ints

EPSILON = 1e-7
"""Added to each fraction of the spectrum in RankMe, as in the paper and in reptrix."""

FIRST_RANK, LAST_RANK = 11, 100
"""Eigenvalues that the power law is fitted to, as in reptrix; the largest ten are left out."""

SAMPLE = 4096
"""Most rows of the sample whose pairs give the uniformity."""

LEAST_UNIFORMITY = -8.0
"""That of rows in opposite directions."""

_PIECE = 8192
"""Rows converted to float64 at a time."""

_AT_ONCE = 512
"""Sampled rows that are compared with all others at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Label-free measures of one layer."""

    rankme: float
    """Effective rank of the features: exp of the entropy of their singular values divided by their sum."""

    rankme_covariance: float
    """The same of the eigenvalues of the covariance, as reptrix computes it; always lower."""

    alpha: float | None
    """Decay of the covariance's eigenvalues, the i-th as i ** -alpha; None with fewer than 13 of them."""

    uniformity: Estimate | None
    """Log of the mean of exp(-2 d^2) over pairs of rows of length 1: 0 if all are equal, lower if spread evenly.
    None with fewer than two rows that are not zeros."""

    num_sampled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Sums over rows, in float64."""

    num_rows: int
    sum_D: Doubles
    products_DD: Doubles
    """Sum of the outer products of the rows."""


def spectrum(rows: Selection, *, memory: int, on_rows: Callable[[int], None] = lambda rows: None) -> Spectrum:
    """Measure the spectrum of a layer's rows, and their uniformity.

    Parameters
    ----------
    rows : Selection
        Rows of one split.
    memory : int
        Bytes for the blocks that are read; D x D numbers come on top.
    on_rows : callable
        Called after each block with its number of rows.

    References
    ----------
    Garrido et al., "RankMe", ICML 2023, arXiv:2210.02885; Agrawal et al., "alpha-ReQ", NeurIPS 2022; Wang and Isola,
    "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere", ICML 2020,
    arXiv:2005.10242.
    """
    sample = sampled_places(len(rows))
    chosen_SD = np.empty((len(sample), rows.layer.dim), np.float32)
    moments = add_up(rows, memory=memory, sample=(rows.rows[sample], chosen_SD), on_rows=on_rows)
    singular, eigenvalues = singular_values(moments), covariance_eigenvalues(moments)
    return Spectrum(
        rankme=effective_rank(singular),
        rankme_covariance=effective_rank(eigenvalues),
        alpha=power_law(eigenvalues),
        uniformity=uniformity(chosen_SD),
        num_sampled=len(sample),
    )


def bytes_needed(dim: int) -> int:
    """Bytes that the products, their decomposition and the sample take."""
    return 8 * (4 * dim * dim + _PIECE * dim + 2 * SAMPLE * dim + 2 * _AT_ONCE * SAMPLE)


def sampled_places(num_rows: int) -> Ints:
    """Choose positions at random, always the same, in rising order; all of them if there are few."""
    if num_rows <= SAMPLE:
        return np.arange(num_rows, dtype=np.int64)
    return np.sort(np.random.default_rng(0).choice(num_rows, SAMPLE, replace=False)).astype(np.int64)


def add_up(
    rows: Selection, *, memory: int, sample: tuple[Ints, Floats], on_rows: Callable[[int], None] = lambda rows: None
) -> Moments:
    """Add up rows and their products, and pick the sampled rows on the way."""
    dim = rows.layer.dim
    sum_D, products_DD = np.zeros(dim), np.zeros((dim, dim))
    wanted, chosen_SD = sample
    for block in rows.blocks(rows_per_block(memory, dim=dim), unit_length=False):
        for start in range(0, len(block.rows), _PIECE):
            piece = block.features[start : start + _PIECE].astype(np.float64)
            sum_D += piece.sum(axis=0)
            products_DD += piece.T @ piece
        places = np.flatnonzero(np.isin(wanted, block.rows, assume_unique=True))
        chosen_SD[places] = block.features[np.searchsorted(block.rows, wanted[places])]
        on_rows(block.num_read)
    return Moments(num_rows=len(rows), sum_D=sum_D, products_DD=products_DD)


def singular_values(moments: Moments) -> Doubles:
    """Singular values of the rows, not centered, falling: min(N, D) of them."""
    return np.asarray(np.sqrt(_eigenvalues(moments.products_DD, moments.num_rows)))


def covariance_eigenvalues(moments: Moments) -> Doubles:
    """Eigenvalues of the covariance, falling: min(N, D) of them."""
    mean_D = moments.sum_D / moments.num_rows
    centered = moments.products_DD - moments.num_rows * np.outer(mean_D, mean_D)
    return _eigenvalues(centered, moments.num_rows) / max(1, moments.num_rows - 1)


def effective_rank(values: Doubles) -> float:
    """Exp of the entropy of values divided by their sum, with a small number added to each fraction; 0 if all are 0.

    Examples
    --------
    >>> round(effective_rank(np.array([2.0, 2.0, 2.0, 0.0])), 3)
    3.0
    """
    if not values.sum():
        return 0.0
    fractions = values / values.sum() + EPSILON
    return float(np.exp(-(fractions * np.log(fractions)).sum()))


def power_law(eigenvalues: Doubles) -> float | None:
    """Fit log(eigenvalue) = c - alpha log(rank), each rank weighted by its inverse; None with fewer than three.

    Examples
    --------
    >>> round(power_law(np.arange(1.0, 201) ** -1.5), 6)
    1.5
    """
    ranks = np.arange(FIRST_RANK, 1 + min(LAST_RANK, int((eigenvalues > 0).sum())))
    if len(ranks) < 3:
        return None
    x, y, weights = np.log(ranks), np.log(eigenvalues[ranks - 1]), 1 / ranks
    x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    return float(-(weights * x * y).sum() / (weights * x * x).sum())


def uniformity(features_SD: Floats) -> Estimate | None:
    """Log of the mean Gaussian potential of all pairs of rows, scaled to length 1; its interval by the jackknife.

    Examples
    --------
    >>> uniformity(np.array([[1, 0], [0, 1], [1, 0]], np.float32)).value
    -1.0626...
    """
    lengths = np.linalg.norm(features_SD.astype(np.float64), axis=1)
    rows_SD = features_SD[lengths > 0] / lengths[lengths > 0, None]
    count = len(rows_SD)
    if count < 2:
        return None
    totals = np.empty(count)
    for start in range(0, count, _AT_ONCE):
        squared = 2 - 2 * (rows_SD[start : start + _AT_ONCE] @ rows_SD.T)
        totals[start : start + _AT_ONCE] = np.exp(-2 * np.maximum(squared, 0)).sum(axis=1)
    totals -= 1  # a row with itself
    total = totals.sum()
    value = float(np.log(total / (count * (count - 1))))
    if count < 3:
        return Estimate(value, LEAST_UNIFORMITY, 0.0)
    without = np.log((total - 2 * totals) / ((count - 1) * (count - 2)))
    half = Z95 * float(np.sqrt((count - 1) * without.var()))
    return Estimate(value, max(LEAST_UNIFORMITY, value - half), min(0.0, value + half))


def _eigenvalues(symmetric_DD: Doubles, num_rows: int) -> Doubles:
    """The min(N, D) largest eigenvalues, falling; those within rounding errors of 0 are 0."""
    values = np.linalg.eigvalsh(symmetric_DD)[::-1][:num_rows]
    values = np.where(values > values[0] * len(symmetric_DD) * 2.0**-52, values, 0)
    return np.asarray(values)
