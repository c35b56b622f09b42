"""The core loop: every pending chunk, batch by batch, through the trunk into the store."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from featbench.extract.data.pictures import ImageSource
from featbench.extract.decoders import BatchRows
from featbench.extract.errors import DataError, ImageError
from featbench.extract.loading import Batch, batches
from featbench.extract.model.taps import Forward
from featbench.extract.passes import Features, passes_on
from featbench.extract.profile import Profile
from featbench.extract.transform import Transform
from featbench.store import BenchError, ChunkWriter, FeatureSet, Work
from featbench.store.typing import Bools, Floats, UInt64s

logger = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")
_Started = TypeVar("_Started")


@dataclass(slots=True)
class Extracted:
    """What one rank did."""

    rows: int = 0
    unreadable: int = 0
    """Images that could not be read and were skipped."""

    profile: Profile = field(default_factory=Profile)


def extract_chunks(
    features: FeatureSet,
    work: Iterable[Work],
    *,
    writer: ChunkWriter,
    trunk: Forward,
    sources: Mapping[str, ImageSource],
    transform: Transform,
    batch_size: int,
    device: torch.device,
    precision: str = "float32",
    workers: int = 0,
    on_error: str = "stop",
    image_size: tuple[int, int] | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_chunk: Callable[[Work], None] = lambda work: None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Extracted:
    """Compute and commit chunks; each counts as soon as it is on disk.

    Decoding, copies to and from a GPU, the forward pass and writing overlap. An error leaves all earlier chunks
    committed.

    Parameters
    ----------
    features : FeatureSet
        Contains the arrays of all layers.
    work : iterable of Work
        Chunks to write, and which of their layers; consumed one at a time, a few batches ahead.
    writer : ChunkWriter
        This rank's writer.
    trunk : callable
        Computes at least these layers on `device`: a `TappedTrunk`, or a compiled one.
    sources : mapping of str to ImageSource
        By split.
    transform : Transform
        From images to the input of the trunk.
    batch_size : int
        Images in a forward pass; batches never straddle chunks.
    device : torch.device
        Where the forward pass runs.
    precision : {"float32", "tf32", "bfloat16", "float16"}
        Precision of the forward pass; for bfloat16 and float16 it is run in autocast.
    workers : int
        Decoding processes.
    on_error : {"stop", "skip"}
        What to do about an unreadable image.
    image_size : (int, int), optional
        Height and width that every image must have after the transform.
    on_rows : callable
        Called with the number of rows after each batch.
    on_chunk : callable
        Called with each chunk once it is committed, in the writer's thread.
    is_stopping : callable
        Called after each chunk; if true, that chunk is committed and no other is started.

    Raises
    ------
    ImageError
        If an image can't be read and `on_error` is "stop".
    OutOfMemoryError
        If the host or the device runs out of memory.
    DecoderError
        If a decoding process dies.
    StoreError
        If a value can't be stored, or writing fails.
    """
    done = Extracted(profile=Profile(device=device.type, decoders=workers))
    profile = done.profile
    wanted = _batches_of(features, work, batch_size)
    loaded = batches(sources, wanted, transform=transform, workers=workers, pin_memory=device.type == "cuda")
    passes = passes_on(device, trunk, transform, precision, profile)

    def write(chunk: _Chunk) -> None:
        with profile.timed("writing"):
            writer.write(chunk.work, chunk.layers(), np.concatenate(chunk.valid), np.concatenate(chunk.digests))
        on_chunk(chunk.work)

    def start(batch: Batch) -> Callable[[], Features]:
        _note_unreadable(batch, done, on_error)
        _check_size(batch, image_size)
        if len(batch.unreadable) == len(batch.rows.rows):  # without any image, the size is not known
            return lambda: _nothing(features, batch)
        return passes.start(batch.pixels)

    writing: Future[None] | None = None
    chunk: _Chunk | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as background, closing(loaded), profile.timed("seconds"):
        for batch, result in _in_flight(_timed(loaded, profile), start, passes.ahead):
            chunk = chunk or _Chunk(batch.rows.work)
            chunk.add(batch, result())
            done.rows += len(batch.rows.rows)
            on_rows(len(batch.rows.rows))
            if writing is not None and (batch.rows.is_last or writing.done()):
                with profile.timed("waited_for_writing"):
                    writing.result()  # raises if writing failed
            if batch.rows.is_last:
                writing, chunk = background.submit(write, chunk), None
                if is_stopping():
                    break
        if writing is not None:
            with profile.timed("waited_for_writing"):
                writing.result()
    profile.rows = done.rows
    return done


def _timed(loaded: Generator[Batch, None, None], profile: Profile) -> Iterator[Batch]:
    """Time how long batches are waited for, and how long they took to decode."""
    while True:
        with profile.timed("waited_for_images"):
            batch = next(loaded, None)
        if batch is None:
            return
        profile.decoding += batch.seconds
        yield batch


def _in_flight(
    loaded: Iterator[_Loaded], start: Callable[[_Loaded], _Started], ahead: int
) -> Iterator[tuple[_Loaded, _Started]]:
    """Yield each batch with its result to wait for, once `ahead` batches after it have been started.

    Where one can't be loaded or started, those before it are yielded first: they may complete a chunk.
    """
    started: deque[tuple[_Loaded, _Started]] = deque()
    try:
        for batch in loaded:
            started.append((batch, start(batch)))
            if len(started) > ahead:
                yield started.popleft()
    except BenchError:
        yield from started
        raise
    yield from started


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What is computed of a chunk so far, batch by batch."""

    work: Work
    features: list[dict[str, Floats]] = field(default_factory=list)
    valid: list[Bools] = field(default_factory=list)
    digests: list[UInt64s] = field(default_factory=list)

    def add(self, batch: Batch, features: dict[str, Floats]) -> None:
        """Append a batch."""
        self.features.append(features)
        self.valid.append(np.array([index not in batch.unreadable for index in range(len(batch.rows.rows))]))
        self.digests.append(batch.digests)

    def layers(self) -> dict[str, Floats]:
        """Return the features of the whole chunk by layer."""
        return {name: np.concatenate([each[name] for each in self.features]) for name in self.work.layers}


def _batches_of(features: FeatureSet, work: Iterable[Work], batch_size: int) -> Iterator[BatchRows]:
    """Cut chunks into batches, always in the same way, so that a resumed run computes the same."""
    for item in work:
        chunk = features.grid(item.split).rows(item.chunk)
        for rows in chunk.batches(batch_size):
            yield BatchRows(work=item, rows=rows, is_last=rows.stop == chunk.stop)


def _nothing(features: FeatureSet, batch: Batch) -> Features:
    """Features of a batch without any image, which are stored as NaN."""
    shapes = {name: features.layer_info(name).shape for name in batch.rows.work.layers}
    return {name: np.full((len(batch.rows.rows), *shape), np.nan, np.float32) for name, shape in shapes.items()}


def _check_size(batch: Batch, expected: tuple[int, int] | None) -> None:
    """Refuse images of another size than the first; after pooling the difference would not show."""
    size, rows = tuple(batch.pixels.shape[2:]), batch.rows.rows
    if expected is not None and size != expected and len(batch.unreadable) < len(rows):
        raise DataError(
            f"images of {size[0]} x {size[1]} pixels after the transform in rows {rows.start} to {rows.stop - 1}, the "
            f"first one had {expected[0]} x {expected[1]}: set transform.crop, or both sides of transform.resize"
        )


def _note_unreadable(batch: Batch, done: Extracted, on_error: str) -> None:
    for message in batch.unreadable.values():
        if on_error == "stop":
            raise ImageError(
                f"{message}. Replace or remove the file, or leave such images out with --on-error skip. "
                f"What was committed before is safe; the same command goes on from there."
            )
        logger.warning("left out: %s", message)
        done.unreadable += 1
