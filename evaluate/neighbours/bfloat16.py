"""Products in bfloat16 by torch: several times as fast as float32 on processors with instructions for it.

The only module of stage two that needs torch. Three things keep the error small, so that few rows can't be told from
the k-th neighbour: rows are centered, which shifts all scores of a query by one number; how far rounding moves each
query and row is measured, not assumed; and the rounding error of a product is relative to it.

Shape suffixes:  Q queries   R rows of one block   D feature dimension
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from featbench.evaluate.neighbours.engine import SearchRequest
from featbench.evaluate.neighbours.error_bounds import (
    BFLOAT16,
    FLOAT32,
    ErrorBound,
    added,
    float32_error,
    relative_error,
    rounded_error,
)
from featbench.evaluate.neighbours.tiled_engine import squares_of
from featbench.store.typing import Doubles, Floats

_ELEMENTS_AT_ONCE = 2**18
"""Elements rounded at a time: 1 MiB of float32, which fits in a core's cache."""


class Bfloat16Products:
    """`featbench.evaluate.neighbours.tiled_engine.Products` of rows and queries rounded to bfloat16, with sums in
    float32.
    """

    def __init__(self, asked: SearchRequest) -> None:
        self._asked = asked
        self._times = 2.0 if asked.similarity == "euclidean" else 1.0  # products in a score
        self._queries_QD, self._queries_off_Q = _rounded(asked.queries_QD)
        self.shift_Q = np.zeros(len(asked.queries_QD))
        self._centre_D: Floats | None = None
        self._room_RD = torch.empty((0, asked.queries_QD.shape[1]), dtype=torch.bfloat16)
        self._longest, self._off = 0.0, 0.0

    @contextmanager
    def workers(self, num_threads: int) -> Iterator[ThreadPoolExecutor]:
        """See `Products`."""
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
                yield workers
        finally:
            torch.set_num_threads(before)

    def load(self, features_RD: Floats, workers: ThreadPoolExecutor) -> None:
        """See `Products`."""
        if self._centre_D is None:
            self._centre_D = features_RD.mean(axis=0, dtype=np.float64).astype(np.float32)
            self.shift_Q = self._times * (self._asked.queries_QD @ self._centre_D.astype(np.float64))
        centre_D = self._centre_D
        if len(self._room_RD) < len(features_RD):
            self._room_RD = torch.empty(features_RD.shape, dtype=torch.bfloat16)
        rows_at_once = max(1, _ELEMENTS_AT_ONCE // features_RD.shape[1])

        def load_some(at: int) -> tuple[float, float]:
            with np.errstate(over="ignore"):  # makes the error infinite, so no list is certified
                centred_RD = features_RD[at : at + rows_at_once] - centre_D
            rounded_RD, off_R = _rounded(centred_RD)
            self._room_RD[at : at + len(rounded_RD)] = rounded_RD
            return float(squares_of(centred_RD).max()), float(off_R.max())

        for square, off in workers.map(load_some, range(0, len(features_RD), rows_at_once)):
            self._longest, self._off = max(self._longest, square**0.5), max(self._off, off)
        if self._times == 2:
            self._squares_R = squares_of(features_RD)

    def fill(self, queries: slice, rows: slice, scores_QR: Floats) -> None:
        """See `Products`."""
        torch.from_numpy(scores_QR).copy_(self._queries_QD[queries] @ self._room_RD[rows].T)
        if self._times == 2:
            with np.errstate(over="ignore", invalid="ignore"):
                scores_QR *= 2
                scores_QR -= self._squares_R[rows]

    def error(self, longest: float) -> ErrorBound:
        """See `Products`."""
        dim, lengths_Q = self._queries_QD.shape[1], self._asked.lengths_Q
        measured = 1 + relative_error(dim, FLOAT32)  # lengths are measured in float32
        row = measured * self._longest
        off = measured * self._off + FLOAT32 * row  # centering is rounded, too
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = rounded_error(lengths_Q, measured * self._queries_off_Q, row, off, dim, result=BFLOAT16)
            if self._times == 2:  # the score is not the product that was rounded
                rounded = ErrorBound(absolute_Q=rounded.absolute_Q + rounded.relative * 2 * lengths_Q * (row + off))
            return added(float32_error(lengths_Q, longest, dim, self._asked.similarity), rounded, self._times)


def _rounded(values: Floats) -> tuple[torch.Tensor, Doubles]:
    """Round rows to bfloat16; also returns how far each was moved."""
    exact = torch.from_numpy(values)
    rounded = exact.to(torch.bfloat16)
    off = torch.linalg.vector_norm(rounded.float() - exact, dim=1)
    return rounded, off.double().numpy()
