"""Loading batches of images, in separate processes, in exactly the order of the work.

A batch consists of consecutive rows of one chunk. Chunks are cut into batches in the same way in every
run, so features never depend on how the work was divided or resumed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from featbench.extract.data.pictures import ImageSource
from featbench.extract.decoders import BatchRows, Decoders, Loaded
from featbench.extract.errors import DataError, ImageError
from featbench.extract.transform import Transform
from featbench.store.typing import Bytes, UInt64s

BATCHES_AHEAD = 3
"""Batches for each process that are submitted before they are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Images of consecutive rows of a chunk."""

    rows: BatchRows
    pixels: Tensor
    """uint8, shape (B, 3, H, W)."""

    digests: UInt64s
    """Shape (B,): digest of each image, see `featbench.extract.data.pictures`; 0 where it is missing."""

    unreadable: Mapping[int, str]
    """Why images are missing, by their position in the batch; their pixels mean nothing."""

    seconds: float = 0.0
    """How long they took to read, decode and transform."""


Note = tuple[list[int], dict[int, str], float]
"""Digests of the images of a batch, why images are missing, by position, and the seconds that they took."""


class _Images:
    """Loads the images of a batch; runs in a decoding process."""

    def __init__(self, sources: Mapping[str, ImageSource], transform: Transform) -> None:
        self._sources = sources
        self._transform = transform

    def __call__(self, batch: BatchRows) -> tuple[Bytes, Note]:
        start = time.perf_counter()
        images = [self._pixels(batch.split, row) for row in range(batch.rows.start, batch.rows.stop)]
        pixels, digests, unreadable = _collate(images)
        return pixels, (digests, unreadable, time.perf_counter() - start)

    def _pixels(self, split: str, row: int) -> tuple[Tensor, int] | str:
        """Pixels and digest of an image, or why there are none."""
        try:
            picture = self._sources[split].read(row)
            return self._transform.pixels(picture.image, name=picture.name), picture.digest
        except ImageError as error:
            return str(error)


def batches(
    sources: Mapping[str, ImageSource],
    wanted: Iterable[BatchRows],
    *,
    transform: Transform,
    workers: int,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Load batches, in order; closing the generator ends the processes.

    Parameters
    ----------
    sources : mapping of str to ImageSource
        By split.
    wanted : iterable of BatchRows
        Rows of each batch; consumed only as far ahead as keeps the processes busy.
    transform : Transform
        Resizing and cropping are done here, scaling later.
    workers : int
        Decoding processes; 0 decodes in this process.
    pin_memory : bool
        Whether the pixels will be copied to a GPU.

    Raises
    ------
    DataError
        If images have different sizes after the transform.
    DecoderError
        If a decoding process can't be started, or dies.
    OutOfMemoryError
        If a decoding process runs out of memory.
    """
    images = _Images(sources, transform)
    if not workers:
        for rows in wanted:
            pixels, note = images(rows)
            yield _batch(rows, torch.from_numpy(pixels), note)
        return
    coming = iter(wanted)
    first = list(islice(coming, workers))
    if not first:
        return
    with Decoders(images, workers=len(first), pin_memory=pin_memory) as decoders:
        submitted: deque[tuple[BatchRows, Future[Loaded]]] = deque()
        for rows in chain(first, coming):
            submitted.append((rows, decoders.submit(rows)))
            if len(submitted) > BATCHES_AHEAD * workers:
                yield _next(submitted)
        while submitted:
            yield _next(submitted)


def _next(submitted: deque[tuple[BatchRows, Future[Loaded]]]) -> Batch:
    """Wait for the batch that was submitted first."""
    rows, loaded = submitted.popleft()
    return _batch(rows, *loaded.result())


def _batch(rows: BatchRows, pixels: Tensor, note: Note) -> Batch:
    digests, unreadable, seconds = note
    numbers = np.array(digests, np.uint64)
    return Batch(rows=rows, pixels=pixels, digests=numbers, unreadable=unreadable, seconds=seconds)


def default_workers(sources: Mapping[str, ImageSource], num_ranks: int = 1) -> int:
    """Cores divided by the ranks on this host, at most 16; 0 if images are in memory."""
    if all(source.in_memory for source in sources.values()):
        return 0
    return min(max(1, usable_cores() // num_ranks), 16)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _collate(images: Sequence[tuple[Tensor, int] | str]) -> tuple[Bytes, list[int], dict[int, str]]:
    shapes = {tuple(image[0].shape) for image in images if isinstance(image, tuple)}
    if len(shapes) > 1:
        sizes = " and ".join(f"{height} x {width}" for _, height, width in sorted(shapes)[:2])
        raise DataError(
            f"images of different sizes after the transform ({sizes}) can't share a batch: set transform.crop, "
            f"or both sides of transform.resize"
        )
    shape = shapes.pop() if shapes else (3, 1, 1)
    pixels = np.zeros((len(images), *shape), dtype=np.uint8)
    digests, unreadable = [0] * len(images), {}
    for index, image in enumerate(images):
        if isinstance(image, tuple):
            pixels[index], digests[index] = image[0].numpy(), image[1]
        else:
            unreadable[index] = image
    return pixels, digests, unreadable
