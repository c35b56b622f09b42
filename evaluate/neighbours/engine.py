"""What an engine is asked, and what it proposes; see `featbench.evaluate.neighbours.backends` for those there are.

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
    """Queries, and how many neighbours of what kind each wants."""

    queries_QD: Floats
    """Of length 1 under the cosine."""

    lengths_Q: Doubles
    """Their Euclidean lengths; under the cosine 1."""

    k: int
    similarity: Similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """For each query the rows that may be among its k nearest, in no particular order."""

    rows_QC: Ints
    """-1 where a query has fewer candidates."""

    scores_QC: Floats
    """As `featbench.evaluate.neighbours.error_bounds` defines them, less `shift_Q`; -inf where there is no
    candidate.
    """

    floor_Q: Floats
    """No other row scored more, less `shift_Q`."""

    shift_Q: Doubles
    error: ErrorBound
    """How far a score can be from the true one."""

    @classmethod
    def of(cls, shortlists: Sequence[Shortlist], *, shift_Q: Doubles, error: ErrorBound) -> Candidates:
        """Put the lists of consecutive queries together, and close them."""
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
    """Compares its queries with block after block of the database, and keeps candidates.

    Whatever it computes with, no score may be further from the true one than its error says.
    """

    def add(self, rows_R: Ints, features_RD: Floats, *, longest: float) -> None:
        """Compare with a block, at least one row; under the cosine its rows have length 1.

        `features_RD` may be overwritten once this returns. `longest` is the length of the longest row so far.
        """

    def close(self) -> Candidates:
        """Return the candidates among all rows; nothing can be added then."""
