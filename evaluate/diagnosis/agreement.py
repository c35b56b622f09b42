"""How alike two representations of the same rows are: shared neighbours, linear CKA, and depth of predictions.

Shape suffixes:  N rows   Q queries   K neighbours   L layers   D, E feature dimensions
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featbench.evaluate.counting import OnRows
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.memory import rows_per_block
from featbench.evaluate.metrics import Estimate, mean_of
from featbench.store.typing import Doubles, Floats, Ints

_LISTS_AT_ONCE = 8192
"""Lists compared at a time."""

_PIECE = 4096
"""Rows converted to float64 at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Neighbours that two representations share."""

    mean: Estimate
    """Mean over the queries of the fraction of the k neighbours that both list."""

    chance: float
    """The same if the lists of one are given to the queries in random order: the mean over all orders, exactly."""

    @property
    def corrected(self) -> float:
        """What is shared beyond chance, of what could be: 1 if the lists are the same, 0 at chance."""
        return (self.mean.value - self.chance) / (1 - self.chance) if self.chance < 1 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hsic:
    """Hilbert-Schmidt independence criterion of two layers, up to a factor."""

    biased: float
    unbiased: float | None
    """None for fewer than 4 rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cka:
    """Linear centered kernel alignment: from 0 to 1, unchanged by rotations and by scaling."""

    biased: float | None
    """As first published; near 1 for any features with far more dimensions than rows. None if all rows of a layer are
    equal."""

    debiased: float | None
    """By the unbiased estimate of HSIC, which may be slightly below 0; None for fewer than 4 rows."""


def overlap(first_QK: Ints, second_QK: Ints) -> Overlap:
    """Compare the lists of two representations.

    Parameters
    ----------
    first_QK, second_QK : ndarray of shape (Q, K), dtype=int64
        Neighbours of the same queries, as rows of the same database; no row twice in a list.

    References
    ----------
    Huh et al., "The Platonic Representation Hypothesis", ICML 2024, arXiv:2405.07987 (mutual kNN).

    Examples
    --------
    >>> overlap(np.array([[0, 1], [2, 3]]), np.array([[1, 0], [3, 4]])).mean.value
    0.75
    """
    num_queries, k = first_QK.shape
    shared_Q = np.concatenate(
        [_shared(first_QK[at], second_QK[at]) for at in _slices(num_queries)] or [np.zeros(0, np.int64)]
    )
    size = int(max(first_QK.max(), second_QK.max())) + 1
    counts = [np.bincount(lists.ravel(), minlength=size).astype(np.float64) for lists in (first_QK, second_QK)]
    return Overlap(
        mean=mean_of(shared_Q / k, least=0.0, most=1.0), chance=float(counts[0] @ counts[1] / num_queries**2 / k)
    )


def hsic(first: Selection, second: Selection, *, memory: int, on_rows: OnRows = lambda rows: None) -> Hsic:
    """Estimate the dependence of two layers of the same rows, in one pass over both, in float64.

    Parameters
    ----------
    first, second : Selection
        The same number of rows.
    memory : int
        Bytes for blocks; D x E numbers come on top.
    on_rows : callable
        Called with the number of rows of each piece.

    References
    ----------
    Gretton et al., "Measuring Statistical Dependence with Hilbert-Schmidt Norms", ALT 2005; unbiased: Song et al.,
    "Feature Selection via Dependence Maximization", JMLR 2012, eq. 5. The kernels are inner products.
    """
    products = _Products.zeros(first.layer.dim, second.layer.dim)
    shifts: tuple[Doubles, Doubles] | None = None
    for x_ND, y_NE in _side_by_side(first, second, memory):
        # Subtracting any row changes no result, and keeps numbers small.
        shifts = shifts or (x_ND.mean(axis=0), y_NE.mean(axis=0))
        products.add(x_ND - shifts[0], y_NE - shifts[1])
        on_rows(len(x_ND))
    return Hsic(biased=products.hsic(), unbiased=products.unbiased_hsic())


def cka(across: Hsic, first: Hsic, second: Hsic) -> Cka:
    """Linear CKA from the dependence of two layers on one another, and of each on itself.

    References
    ----------
    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv:1905.00414;
    debiased: Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, arXiv:2010.15327.
    """
    return Cka(
        biased=_aligned(across.biased, first.biased, second.biased),
        debiased=_aligned(across.unbiased, first.unbiased, second.unbiased),
    )


def bytes_needed(first: int, second: int) -> int:
    """Bytes that the products of two layers of these dimensions take, with one piece of each."""
    return 24 * first * second + 16 * _PIECE * (first + second)


def prediction_depths(predictions_LQ: Ints) -> Ints:
    """For each query, the first layer from which on all layers predict what the last one does, shape (Q,).

    Parameters
    ----------
    predictions_LQ : ndarray of shape (L, Q), dtype=int64
        Predicted class by layer, in the order of the network.

    References
    ----------
    Baldock et al., "Deep Learning Through the Lens of Example Difficulty", NeurIPS 2021, arXiv:2106.09647.

    Examples
    --------
    >>> prediction_depths(np.array([[1, 1, 0], [0, 1, 1], [1, 1, 2]])).tolist()
    [2, 0, 2]
    """
    differs_LQ = predictions_LQ != predictions_LQ[-1]
    last = len(differs_LQ) - 1 - differs_LQ[::-1].argmax(axis=0)
    return np.where(differs_LQ.any(axis=0), last + 1, 0).astype(np.int64)


@dataclass(slots=True)
class _Products:
    """Sums over rows x and y that HSIC needs, for kernels x x' and y y'."""

    num_rows: int
    cross_DE: Doubles
    x_D: Doubles
    y_E: Doubles
    x_by_y_D: Doubles
    """Sum of x |y|^2."""

    y_by_x_E: Doubles
    squares: Doubles
    """Sums of |x|^2, |y|^2 and |x|^2 |y|^2."""

    @classmethod
    def zeros(cls, dim: int, other: int) -> _Products:
        return cls(0, np.zeros((dim, other)), *map(np.zeros, (dim, other, dim, other, 3)))

    def add(self, x_ND: Doubles, y_NE: Doubles) -> None:
        lengths_x, lengths_y = (np.einsum("nd,nd->n", each, each) for each in (x_ND, y_NE))
        self.num_rows += len(x_ND)
        self.cross_DE += x_ND.T @ y_NE
        self.x_D += x_ND.sum(axis=0)
        self.y_E += y_NE.sum(axis=0)
        self.x_by_y_D += lengths_y @ x_ND
        self.y_by_x_E += lengths_x @ y_NE
        self.squares += [lengths_x.sum(), lengths_y.sum(), lengths_x @ lengths_y]

    def hsic(self) -> float:
        """Squared norm of the centered cross products."""
        centered_DE = self.cross_DE - np.outer(self.x_D, self.y_E) / self.num_rows
        return float((centered_DE**2).sum())

    def unbiased_hsic(self) -> float | None:
        """Song et al. 2012, eq. 5, without the diagonals of the kernels; None for fewer than 4 rows."""
        count = self.num_rows
        if count < 4:
            return None
        x, y, both = self.squares
        trace = (self.cross_DE**2).sum() - both
        total_x, total_y = self.x_D @ self.x_D - x, self.y_E @ self.y_E - y
        rows = self.x_D @ self.cross_DE @ self.y_E - self.x_D @ self.x_by_y_D - self.y_E @ self.y_by_x_E + both
        value = trace + total_x * total_y / ((count - 1) * (count - 2)) - 2 * rows / (count - 2)
        return float(value / (count * (count - 3)))


def _aligned(across: float | None, ours: float | None, theirs: float | None) -> float | None:
    """HSIC of both divided by the geometric mean of each with itself; None if one does not vary."""
    if across is None or ours is None or theirs is None or not (ours > 0 and theirs > 0):
        return None
    return across / float(np.sqrt(ours) * np.sqrt(theirs))


def _shared(first_QK: Ints, second_QK: Ints) -> Ints:
    """Count the rows that both lists of each query hold."""
    both = np.sort(np.concatenate([first_QK, second_QK], axis=1), axis=1)
    return np.asarray((both[:, 1:] == both[:, :-1]).sum(axis=1), np.int64)


def _slices(count: int) -> list[slice]:
    return [slice(start, start + _LISTS_AT_ONCE) for start in range(0, count, _LISTS_AT_ONCE)]


def _side_by_side(first: Selection, second: Selection, memory: int) -> Iterator[tuple[Doubles, Doubles]]:
    """Yield the same rows of both, whatever the chunks of each, a few at a time."""
    dim = first.layer.dim + second.layer.dim
    streams = [_pieces(each, rows_per_block(memory // 2, dim=dim)) for each in (first, second)]
    left: list[Floats] = []
    while True:
        for place, stream in enumerate(streams):
            if len(left) <= place:
                left.append(next(stream, np.zeros((0, 0), np.float32)))
            elif not len(left[place]):
                left[place] = next(stream, left[place])
        count = min(len(left[0]), len(left[1]))
        if not count:
            return
        yield left[0][:count].astype(np.float64), left[1][:count].astype(np.float64)
        left = [each[count:] for each in left]


def _pieces(rows: Selection, size: int) -> Iterator[Floats]:
    for block in rows.blocks(size, unit_length=False):
        for start in range(0, len(block.rows), _PIECE):
            yield block.features[start : start + _PIECE]
