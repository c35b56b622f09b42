"""Measure what the design promises, each against its baseline, side by side in one process.

    make benchmark                      all of them, about 15 minutes on 2 cores
    python -m benchmarks read search    some of them

Both of a pair run alternately, several times; the ratio is the median of the pairs' ratios, so that it does not
depend on a machine whose speed drifts.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clustering import clustering
from benchmarks.extraction import Noise, commands, compiled
from benchmarks.features import in_turns, made_features
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.knn import classification
from featbench.evaluate.memory import BLOCK_BYTES
from featbench.evaluate.neighbours.backends import choose_engine
from featbench.evaluate.neighbours.planning import SearchPlan
from featbench.evaluate.neighbours.search import search as streamed_search
from featbench.extract.data.sources import open_sources
from featbench.extract.decoders import BatchRows
from featbench.extract.extraction import extract_chunks
from featbench.extract.loading import batches
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.transform import Transform
from featbench.store import ChunkWriter, Manifest, Work, add_layers, open_or_create
from featbench.store.layers import layers_of
from featbench.store.layout import RowRange

BLOCK_MIB = 512


def main() -> None:
    chosen = sys.argv[1:] or list(MEASUREMENTS)
    table = Table(title=f"{platform.machine()}, {torch.get_num_threads()} threads, faiss {faiss.__version__}")
    for column in ("what", "ours", "yardstick", "ratio of medians", "target"):
        table.add_column(column)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        for name in chosen:
            for row in MEASUREMENTS[name](folder):
                print("  ".join(row), file=sys.stderr)
                table.add_row(*row)
    finally:
        shutil.rmtree(folder)
    Console(width=130).print(table)


def clustered(num_rows, dim, seed):
    """Make features with some structure: 100 centers and noise."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((100, dim), dtype=np.float32)
    values = random.standard_normal((num_rows, dim), dtype=np.float32)
    values += centers[np.arange(num_rows) % 100]
    return values


def read(folder):
    """Read a layer from the store, and the same bytes from one flat file, both from the page cache."""
    values = clustered(131_072, 2048, 1)
    features = made_features(folder / "read", values, values[:1024])
    flat = folder / "flat.bin"
    values.tofile(flat)
    piece = np.empty((BLOCK_MIB * 2**20 // 4,), np.float32)

    def from_file():
        with flat.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass

    def from_store():
        for _ in features.layer("train", "x").blocks(BLOCK_MIB * 2**20 // (4 * 2048)):
            pass

    ours, theirs, ratio = in_turns(from_store, from_file, repeats=7)
    size = values.nbytes / 2**30
    yield (
        "store read, 1 GiB float32",
        f"{size / ours:.1f} GiB/s",
        f"readinto {size / theirs:.1f} GiB/s",
        f"{1 / ratio:.2f}x",
        ">= 0.8x",
    )


def search(folder):
    """Search from the store, with rescoring and error bounds, and with faiss and everything in memory."""
    for dim, num_rows in ((512, 800_000), (2048, 300_000)):
        yield from _search(folder / f"search{dim}", num_rows, dim)


def _search(path, num_rows, dim):
    train, val = clustered(num_rows, dim, 1), clustered(3000, dim, 2)
    features = made_features(path, train, val)
    for values in (train, val):
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(dim)
    index.add(train)
    database = Selection(layer=features.layer("train", "x"), rows=np.arange(num_rows))
    queries = Selection(layer=features.layer("val", "x"), rows=np.arange(3000))
    for precision in ("auto", "float32"):
        size = 3000 * num_rows * dim
        engine = choose_engine("cpu", precision, k=200, similarity="cosine", multiplications=size)
        plan = SearchPlan(rows_per_block=BLOCK_BYTES // (4 * dim), queries_at_once=3000, engine=engine)
        ours, theirs, ratio = in_turns(
            lambda plan=plan: streamed_search(database, queries, k=200, similarity="cosine", plan=plan),
            lambda: index.search(val, 200),
            repeats=3,
        )
        what = f"kNN search, {num_rows:,} x {dim}, 3,000 queries, k = 200, {engine.low or 'float32'}"
        yield what, f"{ours:.2f} s", f"IndexFlatIP {theirs:.2f} s", f"{ratio:.2f}x", "<= 1.15x"


def sweep(folder):
    """Evaluate one more k or temperature on cached neighbours, and search."""
    num_rows = 200_000
    features = made_features(folder / "sweep", clustered(num_rows, 512, 1), clustered(10_000, 512, 2))
    start = time.perf_counter()
    classification.evaluate_knn(features, ["x"], k=[200])
    searched = time.perf_counter() - start
    ks, temperatures = range(1, 200, 20), [0.01 * i for i in range(1, 11)]
    start = time.perf_counter()
    records = classification.evaluate_knn(features, ["x"], k=list(ks), temperature=temperatures)
    each = (time.perf_counter() - start) / len(records)
    what = f"a further k or T (of {len(records)}), 10,000 queries, {num_rows:,} x 512"
    yield what, f"{each:.3f} s", f"first search {searched:.2f} s", f"{each / searched:.4f}x", "<= 0.01x"


def extraction(folder):
    """Extract two layers, and run the bare forward pass of the same batches, images in memory."""
    for name, layers, num_rows in (("resnet50", ["res4", "res5"], 128), ("squeezenet1_0", ["features.12"], 512)):
        sources = {"train": Noise(num_rows), "val": Noise(32)}
        transform = Transform(resize=None, crop=224)
        trunk = build_trunk(name).to(memory_format=torch.channels_last)
        taps = TappedTrunk(trunk, name=name, layers=layers_of(layers))
        infos = taps.probe(torch.zeros(1, 3, 224, 224))
        chunk = Work(split="train", chunk=0, layers=("x",), valid=True)
        first = BatchRows(work=chunk, rows=RowRange(start=0, stop=32))
        pixels = next(iter(batches(sources, [first], transform=transform, workers=0))).pixels
        images = transform.scale(pixels, torch.device("cpu"))

        def ours(name=name, sources=sources, transform=transform, taps=taps, infos=infos, num_rows=num_rows):
            rows = {split: source.rows for split, source in sources.items()}
            manifest = Manifest(
                made_from={}, dtype="float32", compression="none", rows_per_chunk=128,
                splits={split: each.info() for split, each in rows.items()},
            )  # fmt: skip
            path = folder / f"extraction-{name}"
            shutil.rmtree(path, ignore_errors=True)
            features = add_layers(open_or_create(path, manifest, rows), infos)
            work = [item for item in features.pending(list(infos)) if item.split == "train"]
            extract_chunks(
                features, work, writer=ChunkWriter(features), trunk=taps, sources=sources, transform=transform,
                batch_size=32, device=torch.device("cpu"),
            )  # fmt: skip

        def bare(trunk=trunk, images=images, num_rows=num_rows):
            with torch.inference_mode():
                for _ in range(num_rows // 32):
                    trunk(images)

        first, second, ratio = in_turns(ours, bare, repeats=3)
        yield (
            f"extraction, {name}, CPU float32, images in memory",
            f"{num_rows / first:.1f} images/s",
            f"forward pass {num_rows / second:.1f} images/s",
            f"{1 / ratio:.2f}x",
            ">= 0.95x",
        )


class TimedWriter(ChunkWriter):
    """Measures the seconds spent writing."""

    seconds = 0.0

    def write(self, *arguments):
        start = time.perf_counter()
        written = super().write(*arguments)
        self.seconds += time.perf_counter() - start
        return written


def safety(folder):
    """Measure what fsync, checksums and journal cost an extraction, of photographs if BENCH_PHOTOS names a folder."""
    photographs = os.environ.get("BENCH_PHOTOS")
    if photographs:
        sources = open_sources(source="folder", root=Path(photographs), train_split="train", val_split="test")
        transform = Transform(resize=256, crop=224)
    else:
        sources = {"train": Noise(192), "val": Noise(192)}
        transform = Transform(resize=None, crop=224)
    taps = TappedTrunk(build_trunk("resnet50"), name="resnet50", layers=layers_of(["res4:AvgPool2d(8,3,0)", "res5"]))
    infos = taps.probe(torch.zeros(1, 3, 224, 224))
    rows = {split: source.rows for split, source in sources.items()}
    manifest = Manifest(
        made_from={}, dtype="float32", compression="none", rows_per_chunk=64,
        splits={split: each.info() for split, each in rows.items()},
    )  # fmt: skip

    def run():
        path = folder / "safety"
        shutil.rmtree(path, ignore_errors=True)
        features = add_layers(open_or_create(path, manifest, rows), infos)
        work = [item for item in features.pending(list(infos)) if item.split == "val"][:3]
        writer = TimedWriter(features)
        start = time.perf_counter()
        extract_chunks(
            features, work, writer=writer, trunk=taps, sources=sources, transform=transform, batch_size=32,
            device=torch.device("cpu"), workers=2 if photographs else 0,
        )  # fmt: skip
        return writer.seconds, time.perf_counter() - start

    def run_unsafe():
        with (
            mock.patch("os.fsync"),
            mock.patch("google_crc32c.value", return_value=0),
            mock.patch("featbench.store.journal.Journal.append"),
        ):
            return run()

    safe, unsafe = zip(*[(run(), run_unsafe()) for _ in range(6)][1:], strict=True)
    writing, total = map(statistics.median, zip(*safe, strict=True))
    plain = statistics.median(seconds for seconds, _ in unsafe)
    yield (
        f"writing with fsync, checksums, journal; resnet50, 192 {'photographs' if photographs else 'images in memory'}",
        f"{writing:.3f} s",
        f"without {plain:.3f} s",
        f"{(writing - plain) / total:.2%} of extraction's {total:.1f} s",
        "<= 5%",
    )


MEASUREMENTS = {
    "read": read, "search": search, "sweep": sweep, "kmeans": clustering, "extraction": extraction, "safety": safety,
    "compiled": compiled, "commands": commands,
}  # fmt: skip

if __name__ == "__main__":
    main()
