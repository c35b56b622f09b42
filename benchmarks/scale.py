"""What a feature set of a million chunks and a thousand ranks costs, simulated on one machine.

    python -m benchmarks.scale                          a million chunks, a thousand journals; about five minutes
    python -m benchmarks.scale --chunks 10000           fewer

The journals are made: they have the records of nine tenths of the chunks, as if as many ranks had been stopped. No
chunk of features exists, since none of what is measured reads one. The file system is this machine's; each of its calls
that a network file system answers with a round trip is counted, and takes some time longer (`--delay-ms`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np

from featbench.store import FeatureSet, LayerInfo, Manifest, SplitRows, WorkQueue, add_layers, open_or_create
from featbench.store.layout import share
from featbench.store.paths import chunk_key, journal_key
from tests.peak import peak_kb

ROWS_PER_CHUNK = 1
"""So that labels and paths stay small; what is measured depends on the number of chunks alone."""

CALLS = ("open", "stat", "lstat", "pread", "preadv", "pwrite", "fsync", "scandir", "listdir", "mkdir", "replace")
"""Functions of `os` that go to the file system; locks are counted, too."""

NUM_CLAIMS = 50


def make(path: Path, *, num_chunks: int, num_ranks: int, num_layers: int, fraction: float) -> FeatureSet:
    """Make a feature set whose journals have a fraction of the chunks of each rank's share."""
    counts = {"train": num_chunks * ROWS_PER_CHUNK, "val": 100}
    rows = {
        split: SplitRows(labels=np.arange(count) % 1000, paths=Names(count), class_names=tuple(map(str, range(1000))))
        for split, count in counts.items()
    }
    manifest = Manifest(
        made_from={}, dtype="float32", compression="none", rows_per_chunk=ROWS_PER_CHUNK,
        splits={split: each.info() for split, each in rows.items()},
    )  # fmt: skip
    features = open_or_create(path, manifest, rows, digests=True)
    layers = {f"layer{number}": LayerInfo(tap="x", pooling=None, shape=(2048,)) for number in range(num_layers)}
    add_layers(features, layers)
    arrays = [("digests", 1), ("valid", 1), *((name, 2) for name in layers)]
    for rank in range(num_ranks):
        own = share(range(num_chunks), rank=rank, world_size=num_ranks)
        with (path / journal_key(rank)).open("ab") as journal:
            for chunk in own[: round(fraction * len(own))]:
                for name, ndim in arrays:
                    key = chunk_key(f"train/{name}", chunk, ndim)
                    text = f'{{"key":"{key}","size":8388612,"crc32c":{chunk * 2654435761 % 2**32}}}'.encode()
                    journal.write(b"%08x %b\n" % (google_crc32c.value(text), text))
    return FeatureSet.open(path)


class Names:
    """Paths of images, made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: Any) -> Any:
        """Paths of some rows, or of one."""
        if isinstance(rows, slice):
            return [f"n{row // 1300:08d}/{row:012d}.JPEG" for row in range(*rows.indices(self._count))]
        return f"n{rows // 1300:08d}/{rows:012d}.JPEG"

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(self._count))


@contextmanager
def delayed(seconds: float) -> Iterator[Counter[str]]:
    """Count the calls that go to the file system, and delay each; yields the counts."""
    counts: Counter[str] = Counter()

    def slow(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            time.sleep(seconds)
            return function(*arguments, **options)

        return call

    replaced = {name: slow(name, getattr(os, name)) for name in CALLS}
    with mock.patch.multiple(os, **replaced), mock.patch.object(fcntl, "fcntl", slow("lock", fcntl.fcntl)):
        yield counts


def timed(what: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def claims(path: Path, *, rank: int, world_size: int, delay_s: float) -> dict[str, float]:
    """Claim chunks as one rank of a run does, on a slow file system: seconds to the first, and of each other one."""
    features = FeatureSet.open(path)
    layers = list(features.manifest.layers)
    with features.lock("simulated") as lock:
        lock.share()
        queue = WorkQueue(features, layers, lock, rank=rank, world_size=world_size)
        with delayed(delay_s) as counts:
            start = time.perf_counter()
            handed = iter(queue)
            queue.release(next(handed))
            first, calls_before, seconds = time.perf_counter() - start, counts.total(), []
            for _ in range(NUM_CLAIMS):
                start = time.perf_counter()
                queue.release(next(handed))
                seconds.append(time.perf_counter() - start)
            calls = (counts.total() - calls_before) / NUM_CLAIMS
    return {"first_s": first, "first_calls": calls_before, "claim_s": statistics.median(seconds), "claim_calls": calls}


def measure(path: Path, *, num_ranks: int, delay_s: float) -> dict[str, float]:
    """Measure in this process, which should do nothing else, since its peak of memory is measured, too."""
    before, found = peak_kb(), {}
    opened: list[FeatureSet] = []
    found["open_s"] = timed(lambda: opened.append(FeatureSet.open(path)))
    features = opened[0]
    layers = list(features.manifest.layers)
    found["journals_s"] = timed(lambda: features.records)
    found["info_s"] = timed(
        lambda: [features.num_committed(split, name) for split in ("train", "val") for name in layers]
    )
    found["pending_s"] = timed(lambda: features.pending(layers))
    found["records"] = len(features.records)
    found |= claims(path, rank=num_ranks // 2, world_size=num_ranks, delay_s=delay_s)
    return found | {"memory_mib": (peak_kb() - before) / 1024}


SIZES = ((10_000, 10), (10_000, 1_000), (1_000_000, 10), (1_000_000, 1_000))
"""Chunks and ranks."""


def simulate(*, num_chunks: int, num_ranks: int, num_layers: int, delay_s: float) -> dict[str, float]:
    """Make a feature set and measure it in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-"))
    try:
        make(folder / "made", num_chunks=num_chunks, num_ranks=num_ranks, num_layers=num_layers, fraction=0.9)
        command = [sys.executable, "-m", "benchmarks.scale", "--path", str(folder / "made")]
        command += ["--ranks", str(num_ranks), "--delay-ms", str(1000 * delay_s)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found
    finally:
        shutil.rmtree(folder)


ROWS = {
    "records": "records in the journals",
    "open_s": "open, s",
    "journals_s": "read the journals, s",
    "info_s": "count what is written, s",
    "pending_s": "list pending chunks, s",
    "memory_mib": "memory of all that, MiB",
    "first_s": "a rank's start to its first chunk, delayed, s",
    "first_calls": "calls in it",
    "claim_s": "a further claim, delayed, s",
    "claim_calls": "calls in it",
}


def main() -> None:
    """Read the command line, simulate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, help="by default, several sizes are measured")
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--delay-ms", type=float, default=1.0)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    delay_s = options.delay_ms / 1000
    if options.path is not None:
        print(json.dumps(measure(options.path, num_ranks=options.ranks, delay_s=delay_s)))
        return
    sizes = SIZES if options.chunks is None else ((options.chunks, options.ranks),)
    columns = [
        simulate(num_chunks=chunks, num_ranks=ranks, num_layers=options.layers, delay_s=delay_s)
        for chunks, ranks in sizes
    ]
    print("| | " + " | ".join(f"{chunks:,} chunks, {ranks:,} ranks" for chunks, ranks in sizes) + " |")
    print("|---|" + "---|" * len(sizes))
    for name, text in ROWS.items():
        print(f"| {text} | " + " | ".join(f"{column[name]:,.4g}" for column in columns) + " |")


if __name__ == "__main__":
    main()
