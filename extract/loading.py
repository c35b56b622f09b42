"""Loading batches of images, in processes of their own, in exactly the order of the work.

A batch is consecutive rows of one chunk, cut the same way in every run, so that a feature never
depends on how the work was split or resumed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from extract.data.images import ImageError
from extract.data.sources import DataError, ImageSource
from extract.transform import Transform
from store.layout import RowRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Images of consecutive rows; `unreadable[i]` says why image i is missing, its pixels mean nothing."""

    pixels: Tensor
    """uint8, shape (B, 3, H, W)."""

    unreadable: Mapping[int, str]


class _Images(Dataset[Any]):
    """Pixels of (split, row), or the reason why there are none: text for one image, an error for all."""

    def __init__(self, sources: Mapping[str, ImageSource], transform: Transform) -> None:
        self._sources = sources
        self._transform = transform

    def __getitem__(self, where: tuple[str, int]) -> Tensor | str | DataError:
        split, row = where
        try:
            return self._transform.pixels(self._sources[split].open(row))
        except ImageError as error:
            return str(error)
        except DataError as error:  # returned, since raising it here would bury its text in torch's
            return error


class _Pieces:
    """The rows of each batch, spelled out only when the loader asks: millions of them would take gigabytes."""

    def __init__(self, pieces: Iterable[tuple[str, RowRange]]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        for split, rows in self._pieces:
            yield [(split, row) for row in range(rows.start, rows.stop)]


def batches(
    sources: Mapping[str, ImageSource],
    pieces: Iterable[tuple[str, RowRange]],
    *,
    transform: Transform,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Load one batch for each piece, in order.

    Parameters
    ----------
    sources : mapping of str to ImageSource
        By split.
    pieces : iterable of (split, rows)
        What each batch holds; asked for as late as keeps the processes busy.
    transform : Transform
        Resizing and cropping happen here, scaling later.
    workers : int
        Processes that decode; 0 decodes in this one.
    pin_memory : bool
        Whether the pixels are bound for a GPU.

    Raises
    ------
    DataError
        If images have different sizes after the transform.
    """
    loader = DataLoader(
        _Images(sources, transform),
        batch_sampler=_Pieces(pieces),
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent,
        collate_fn=_collate,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )
    for pixels, unreadable in loader:
        if pixels is None:
            raise DataError(unreadable)
        yield Batch(pixels=pixels, unreadable=unreadable)


def default_workers(sources: Mapping[str, ImageSource], num_ranks: int = 1) -> int:
    """One process for each core, shared among the ranks of this host, at most 16; none where images are in memory."""
    if all(source.in_memory for source in sources.values()):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, cores // num_ranks), 16)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches the whole process group, but the parent still wants the batches of the chunk in hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _collate(images: list[Tensor | str | DataError]) -> tuple[Tensor | None, Any]:
    faults = [image for image in images if isinstance(image, DataError)]
    if faults:
        return None, str(faults[0])
    shapes = {tuple(image.shape) for image in images if isinstance(image, Tensor)}
    if len(shapes) > 1:
        sizes = " and ".join(f"{height} x {width}" for _, height, width in sorted(shapes)[:2])
        return None, (
            f"images of different sizes after the transform ({sizes}) can't share a batch: set transform.crop, "
            f"or both sides of transform.resize"
        )
    shape = shapes.pop() if shapes else (3, 1, 1)
    pixels = torch.zeros((len(images), *shape), dtype=torch.uint8)
    unreadable = {}
    for index, image in enumerate(images):
        if isinstance(image, Tensor):
            pixels[index] = image
        else:
            unreadable[index] = image
    return pixels, unreadable
