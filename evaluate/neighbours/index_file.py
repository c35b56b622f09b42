"""A flat faiss index with ids as a file, written row by row: it can be larger than the memory.

The headers are those of an empty index that faiss itself has serialized, with the numbers of rows put in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import faiss

from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store.typing import Floats, Ints

_COUNT_AT = 8
"""Where the number of rows is in the header of an index: after its name and dimension."""


def write_flat_index(file: Any, blocks: Iterable[Floats], ids: Ints, *, dim: int, similarity: Similarity) -> None:
    """Write an `IndexIDMap` of an `IndexFlatIP`, or of an `IndexFlatL2` for euclidean.

    Parameters
    ----------
    file : binary file
        To write to.
    blocks : iterable of ndarray of shape (n, D), dtype=float32
        Rows in the order of `ids`; as many in all.
    ids : ndarray of shape (N,), dtype=int64
        What the index calls each row.
    dim : int
        D.
    similarity : {"cosine", "inner_product", "euclidean"}
        For the cosine, rows must have length 1.
    """
    make = faiss.IndexFlatL2 if similarity == "euclidean" else faiss.IndexFlatIP
    outer = bytes(faiss.serialize_index(faiss.IndexIDMap(make(dim))).data)
    inner = bytes(faiss.serialize_index(make(dim)).data)
    head = outer[: outer.index(inner)]
    count = struct.pack("<q", len(ids))
    for header in (head, inner[:-8]):  # an empty index ends with the number of its values, 0
        file.write(header[:_COUNT_AT] + count + header[_COUNT_AT + 8 :])
    file.write(struct.pack("<Q", len(ids) * dim))
    written = 0
    for block in blocks:
        file.write(block.astype("<f4", copy=False).tobytes())
        written += len(block)
    assert written == len(ids)
    file.write(count + ids.astype("<i8", copy=False).tobytes())
