"""Layers that are arrays in memory, searched and clustered like stored ones; nothing is written.

Shape suffixes:  N rows   D feature dimension
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.features.selection import Layer
from featbench.evaluate.results import LayerFacts
from featbench.store import Block
from featbench.store.layout import Grid, RowRange
from featbench.store.reader import OnRows, pieces_of
from featbench.store.typing import Floats

T = TypeVar("T")

ROWS_PER_CHUNK = 1024
"""Rows that are rescored together."""


class MemoryLayer:
    """A layer of one split that is an array; see `featbench.evaluate.features.selection.Layer`.

    Parameters
    ----------
    features : ndarray of shape (N, ...), dtype=float32
        Neither changed nor copied as a whole: blocks of it are copied.
    key : str
        Name of the layer in messages.
    rows_per_chunk : int
        Changes no result.
    """

    def __init__(self, features: Floats, *, key: str, rows_per_chunk: int = ROWS_PER_CHUNK) -> None:
        self._features_ND = features.reshape(len(features), -1)
        self.key = key
        self.num_rows, self.dim = self._features_ND.shape
        self._grid = Grid(num_rows=self.num_rows, rows_per_chunk=rows_per_chunk)

    @property
    def rows_per_chunk(self) -> int:
        return self._grid.rows_per_chunk

    def map_blocks(
        self,
        prepare: Callable[[Block], T],
        rows_per_block: int,
        chunks: range | None = None,
        on_rows: OnRows | None = None,
    ) -> Iterator[T]:
        """Yield what `prepare` makes of a copy of each block, while the next one is copied; see `LayerReader`."""
        spans = [
            slice(self._grid.rows(block[0]).start, self._grid.rows(block[-1]).stop)
            for block in self._grid.blocks(rows_per_block, chunks)
        ]
        longest = max(span.stop - span.start for span in spans)
        buffers = [np.empty((longest, self.dim), np.float32) for _ in spans[:2]]

        def copy(index: int) -> T:
            span = spans[index]
            block = buffers[index % 2][: span.stop - span.start]
            for start, piece in pieces_of(RowRange(start=span.start, stop=span.stop), block):
                np.copyto(piece, self._features_ND[start : start + len(piece)])
                if on_rows is not None:
                    on_rows(start, piece)
            return prepare(Block(start=span.start, features=block))

        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(copy, 0)
            for index in range(len(spans)):
                block = upcoming.result()
                if index + 1 < len(spans):
                    upcoming = ahead.submit(copy, index + 1)
                yield block

    def peek(self, chunk: int) -> Floats:
        """Return the rows of one chunk; read only."""
        rows = self._grid.rows(chunk)
        features = self._features_ND[rows.start : rows.stop]
        features.flags.writeable = False
        return features


def layer_in_memory(name: str, features: Mapping[str, Floats], *, source: str = "arrays in memory") -> EvalLayer:
    """Make a layer of arrays of train and val.

    Parameters
    ----------
    name : str
        Name of the layer.
    features : mapping of str to ndarray of shape (N, ...), dtype=float32
        By split.
    source : str
        Name of the features and of their weights in results.
    """
    layers: dict[str, Layer] = {split: MemoryLayer(values, key=f"{split}/{name}") for split, values in features.items()}
    facts = LayerFacts(
        features=source, layer=name, tap=None, pooling=None, dim=layers["train"].dim, weights=source, fingerprint=None
    )
    return EvalLayer(name=name, layers=layers, made_from={}, facts=facts)
