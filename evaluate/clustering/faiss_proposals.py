"""Candidates by a faiss flat index of the centroids: on a GPU, or on the CPU.

faiss lists the nearest centroids of each row, with squared distances in float32. If all that can be the nearest are
among them, given the largest error of a distance, the row is decided; other rows go to the next engine.

Shape suffixes:  N rows   K centroids   L listed centroids   D feature dimension
"""

from __future__ import annotations

from threading import Lock

import faiss
import numpy as np

from featbench.evaluate.clustering.proposals import Float32, Pairs, error_of_float64
from featbench.evaluate.clustering.rows import FramedRows
from featbench.evaluate.clustering.sums import ROWS_AT_ONCE
from featbench.evaluate.neighbours.backends import EngineChoice
from featbench.evaluate.neighbours.error_bounds import FLOAT32, relative_error
from featbench.evaluate.neighbours.faiss_engine import gpu_index
from featbench.store.typing import Doubles

_LISTED = 8
"""Centroids listed for each row."""

_NUMBERS_AT_ONCE = 2**21
"""Numbers of the rows that are searched together: 16 MiB in float64."""

_FEWEST_ROWS = 256
"""Fewest rows that are searched together."""

_LARGEST = 2.0**60
"""Largest length whose square, and a few times it, float32 holds."""


class FaissProposals:
    """`featbench.evaluate.clustering.proposals.Proposals` of faiss.

    Parameters
    ----------
    centroids_KD : ndarray of shape (K, D), dtype=float64
    engine : EngineChoice
        Which GPU, or the CPU.
    """

    def __init__(self, centroids_KD: Doubles, engine: EngineChoice) -> None:
        num_centroids, self._dim = centroids_KD.shape
        self._longest = float(np.sqrt(np.square(centroids_KD).sum(axis=1)).max())
        self.rows_at_once = int(np.clip(_NUMBERS_AT_ONCE // self._dim, _FEWEST_ROWS, ROWS_AT_ONCE))
        self._listed = min(_LISTED, num_centroids)
        self._lists_all = self._listed == num_centroids
        self._lock = Lock()  # an index on a GPU answers one thread at a time
        self._index = None
        if self._longest < _LARGEST:
            make = gpu_index(engine.gpu, is_float16=False) if engine.where == "gpu" else faiss.IndexFlat
            self._index = make(self._dim, faiss.METRIC_L2)
            self._index.add(centroids_KD.astype(np.float32))

    def propose(self, rows: FramedRows, top: int) -> Pairs:
        """See `Proposals`."""
        lengths_N = rows.lengths_N
        is_usable_N = lengths_N + self._longest < _LARGEST
        usable = np.flatnonzero(is_usable_N)
        if self._index is None or not len(usable):
            return Pairs(row_of_P=usable[:0], centroid_of_P=usable[:0], is_complete_N=np.zeros(len(rows), np.bool_))
        with self._lock:
            squares_NL, centroids_NL = self._index.search(rows.rounded()[usable], self._listed)
        squares_NL = squares_NL.astype(np.float64)
        farthest_N = lengths_N[usable] + self._longest
        error_N = relative_error(self._dim, FLOAT32) * np.square(farthest_N) + 3 * rows.off * farthest_N
        for lengths in (lengths_N[usable], np.array([self._longest])):
            error_N += 2 * error_of_float64(lengths, self._dim, Float32.smallest)
        bar_N = np.inf if self._listed <= top else squares_NL[:, top - 1] + 2 * error_N
        is_possible_NL = (centroids_NL >= 0) & (squares_NL <= np.reshape(bar_N, (-1, 1)))
        found, places = np.nonzero(is_possible_NL)
        is_complete_N = np.zeros(len(rows), np.bool_)
        is_complete_N[usable] = self._lists_all | ~is_possible_NL[:, -1]
        centroids_P = centroids_NL[found, places]
        order = np.lexsort((centroids_P, found))
        return Pairs(row_of_P=usable[found[order]], centroid_of_P=centroids_P[order], is_complete_N=is_complete_N)
