"""Search with faiss flat indexes: on a GPU, where the next block is copied while one is searched, or on the CPU.

Two indexes take turns: while one is searched, in a background thread, the other is filled with the next block. On a
GPU each has its own stream and temporary memory. There faiss multiplies float32 as
float32 (no TF32: `CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION`), and sums products of float16 in
float32; if it did not, `featbench.evaluate.neighbours.search` would notice it in the scores.

Shape suffixes:  Q queries   R rows of one block   K neighbours listed   D feature dimension
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import faiss
import numpy as np

from featbench.evaluate.neighbours.engine import Candidates, SearchRequest
from featbench.evaluate.neighbours.error_bounds import float16_error, float32_error
from featbench.evaluate.neighbours.shortlist import Shortlist, room_for
from featbench.store.typing import Floats, Ints

MAX_GPU_K = 2048
"""Most neighbours that faiss returns on a GPU."""

GPU_TEMPORARY_BYTES = 256 * 2**20
"""Bytes of temporary memory of each index on a GPU; faiss's default is 1.5 GiB or more."""

PINNED_BYTES = 64 * 2**20
"""Bytes of pinned host memory of each index, to copy from."""

EXTRA_NEIGHBOURS = 32
"""Neighbours to get beyond k: the last one is so far from the k-th that rounding seldom matters."""


class FlatEngine:
    """An `Engine` that searches a faiss flat index.

    Parameters
    ----------
    asked : SearchRequest
    make_index : callable
        Makes an index from dimension and metric; called twice.
    is_float16 : bool
        Whether the index stores rows in float16; cosine only.
    """

    def __init__(
        self, asked: SearchRequest, make_index: Callable[[int, int], Any], *, is_float16: bool = False
    ) -> None:
        self._asked = asked
        self._is_float16 = is_float16
        self._length = list_length(asked.k, is_float16=is_float16)
        dim = asked.queries_QD.shape[1]
        metric = faiss.METRIC_L2 if asked.similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
        self._indexes = cycle([make_index(dim, metric) for _ in range(2)])
        self._shortlist = Shortlist(len(asked.queries_QD), asked.k)
        self._background = ThreadPoolExecutor(1)
        self._running: _Running | None = None
        self._longest = 0.0

    def add(self, rows_R: Ints, features_RD: Floats, *, longest: float) -> None:
        """See `Engine`."""
        index = next(self._indexes)
        index.add(features_RD)
        self._take()
        self._longest = longest
        wanted = min(self._length, len(rows_R))
        found = self._background.submit(index.search, self._asked.queries_QD, wanted)
        self._running = _Running(index, rows_R, found)

    def close(self) -> Candidates:
        """See `Engine`."""
        self._take()
        self._background.shutdown()
        shift_Q = np.zeros(len(self._asked.queries_QD))
        return Candidates.of([self._shortlist], shift_Q=shift_Q, error=self._shortlist.error)

    def _take(self) -> None:
        """Wait for the running search, keep its results, and empty its index."""
        if self._running is None:
            return
        rows_R = self._running.rows_R
        scores_QK, places_QK = self._running.found.result()
        self._running.index.reset()  # now: freeing GPU memory waits for everything that runs there
        lengths_Q = self._asked.lengths_Q
        if self._asked.similarity == "euclidean":
            with np.errstate(over="ignore", invalid="ignore"):
                scores_QK = np.square(lengths_Q).astype(np.float32)[:, None] - scores_QK
        if self._is_float16:
            self._shortlist.error = float16_error(*self._asked.queries_QD.shape)
        else:
            dim = self._asked.queries_QD.shape[1]
            self._shortlist.error = float32_error(lengths_Q, self._longest, dim, self._asked.similarity)
        pairs = np.flatnonzero((scores_QK > self._shortlist.floor_Q[:, None]) & (places_QK >= 0))
        rows = rows_R[places_QK.reshape(-1)[pairs]]
        self._shortlist.take(pairs // scores_QK.shape[1], scores_QK.reshape(-1)[pairs], rows)
        if len(rows_R) > scores_QK.shape[1]:
            self._shortlist.raise_floor(scores_QK[:, -1])
        self._running = None


@dataclass(frozen=True, slots=True)
class _Running:
    """A running search."""

    index: Any
    rows_R: Ints
    found: Future[tuple[Floats, Ints]]


def list_length(k: int, *, is_float16: bool = False) -> int:
    """Neighbours to get from an index: more if its scores are less precise."""
    return room_for(k) if is_float16 else k + EXTRA_NEIGHBOURS


def gpu_index(number: int, *, is_float16: bool) -> Callable[[int, int], Any]:
    """Return a factory of indexes on this GPU."""

    def make(dim: int, metric: int) -> Any:
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(GPU_TEMPORARY_BYTES)
        resources.setPinnedMemory(PINNED_BYTES)
        config = faiss.GpuIndexFlatConfig()
        config.device, config.useFloat16 = number, is_float16
        return faiss.GpuIndexFlat(resources, dim, metric, config)

    return make
