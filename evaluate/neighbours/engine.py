"""The interface of search engines; see `featbench.evaluate.neighbours.backends` for the implementations.

Shape suffixes:  Q queries   R rows of one block   C candidates   D feature dimension
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from featbench.evaluate.neighbours.error_bounds import ErrorBound
from featbench.evaluate.neighbours.shortlist import Shortlist
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store.typing import Doubles, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """Queries, and how many neighbours to find by which similarity."""

    queries_QD: Floats
    """Scaled to length 1 under the cosine."""

    lengths_Q: Doubles
    """Their Euclidean lengths; under the cosine 1."""

    k: int
    similarity: Similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """For each query the rows that may be among its k nearest, in no particular order."""

    rows_QC: Ints
    """-1 beyond a query's last candidate."""

    scores_QC: Floats
    """As `featbench.evaluate.neighbours.error_bounds` defines them, less `shift_Q`; -inf beyond the last
    candidate.
    """

    floor_Q: Floats
    """Highest score, less `shift_Q`, that a row outside the candidates can have."""

    shift_Q: Doubles
    error: ErrorBound
    """Largest error of a score."""

    @classmethod
    def of(cls, shortlists: Sequence[Shortlist], *, shift_Q: Doubles, error: ErrorBound) -> Candidates:
        """Close the shortlists of consecutive groups of queries, and concatenate them."""
        for each in shortlists:
            each.close()
        longest = max(each.rows_QC.shape[1] for each in shortlists)
        rows_QC = np.full((len(shift_Q), longest), -1, np.int64)
        scores_QC = np.full(rows_QC.shape, -np.inf, np.float32)
        start = 0
        for each in shortlists:
            some = slice(start, start := start + len(each.floor_Q))
            rows_QC[some, : each.rows_QC.shape[1]] = each.rows_QC
            scores_QC[some, : each.rows_QC.shape[1]] = each.scores_QC
        floor_Q = np.concatenate([each.floor_Q for each in shortlists])
        return cls(rows_QC=rows_QC, scores_QC=scores_QC, floor_Q=floor_Q, shift_Q=shift_Q, error=error)

    def ceiling(self) -> Doubles:
        """True score that no row outside a query's list can exceed; infinite or NaN where there is no bound."""
        with np.errstate(invalid="ignore"):
            return self.floor_Q + self.shift_Q + self.error.of(self.floor_Q)


class Engine(Protocol):
    """Compares its queries with one block of the database after another, and keeps candidates.

    Whatever its precision, no score may be further from the true one than its error bound says.
    """

    def add(self, rows_R: Ints, features_RD: Floats, *, longest: float) -> None:
        """Compare with a block of at least one row; under the cosine its rows have length 1.

        `features_RD` may be overwritten once this returns. `longest` is the length of the longest row so far.
        """

    def close(self) -> Candidates:
        """Return the candidates among all rows; no block may be added afterwards."""
