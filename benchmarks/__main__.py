"""Measure what the design promises, each against its baseline, side by side in one process.

    make benchmark                      all of them, about an hour on 2 cores
    make benchmark SHORT=1              smaller sizes, about two minutes
    python -m benchmarks read search    some of them

A page in Markdown, its figures in JSON and its plots in SVG are written to docs/benchmarks (`--out`).

Both of a pair run alternately, several times; the ratio is the median of the pairs' ratios, so that it does not
depend on a machine whose speed drifts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

import faiss
import numpy as np
import torch

from benchmarks.clustering import clustering, measure
from benchmarks.extraction import Noise, commands, compiled
from benchmarks.features import clustered, in_turns, made_features
from benchmarks.page import Curve, Row, hardware, write
from benchmarks.scaling import growth, peers, ranks, written
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


def main(arguments=None):
    """Measure what is chosen, print a table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--short", action="store_true", help="smaller sizes, fewer repeats; figures are rougher")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder of the page")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(MEASUREMENTS))
    if unknown:
        parser.error(f"no measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    facts = hardware()
    rows, curves, failed, folder = [], [], [], Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        for name in options.names or (SHORT if options.short else MEASUREMENTS):
            try:
                for found in MEASUREMENTS[name](folder, options.short):
                    if isinstance(found, Curve):
                        curves.append(found)
                        continue
                    rows.append(Row(group=name, **dict(zip(COLUMNS, found, strict=True))))
                    print("  ".join(found), file=sys.stderr)
            except Exception:  # what was measured before, perhaps for an hour, is still written
                traceback.print_exc()
                failed.append(name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    command = "make benchmark" + (" SHORT=1" if options.short else "")
    if options.names:
        command = f"python -m benchmarks {' '.join(options.names)}" + (" --short" if options.short else "")
    stem = "_".join(["short" if options.short else "full", *options.names, time.strftime("%Y-%m-%d")])
    page = write(options.out, stem, rows, curves, facts, command=command)
    print(page.read_text())
    print(f"written to {page}", file=sys.stderr)
    if failed:
        sys.exit(f"failed, see above: {', '.join(failed)}")


COLUMNS = ("what", "ours", "yardstick", "ratio", "target")


def read(folder, short):
    """Read a layer from the store, and the same bytes from one flat file, both from the page cache."""
    values = clustered(16_384 if short else 131_072, 2048, 1)
    features = made_features(folder / "read", values, values[:1024])
    flat = folder / "flat.bin"
    values.tofile(flat)
    block = min(BLOCK_BYTES, values.nbytes)
    piece = np.empty((block // 4,), np.float32)
    everything = Selection(layer=features.layer("train", "x"), rows=np.arange(len(values)))

    def from_file():
        with flat.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass

    def from_store():
        for _ in features.layer("train", "x").blocks(block // (4 * 2048)):
            pass

    def scaled():
        for _ in everything.blocks(block // (4 * 2048), unit_length=True):
            pass

    size = values.nbytes / 2**30
    for what, run, target in (("read", from_store, ">= 0.8x"), ("read, rows scaled to length 1", scaled, "")):
        ours, theirs, ratio = in_turns(run, from_file, repeats=7)
        yield (
            f"store {what}, {size:.2g} GiB float32, checksums compared",
            f"{size / ours:.1f} GiB/s",
            f"readinto {size / theirs:.1f} GiB/s",
            f"{1 / ratio:.2f}x",
            target,
        )


def search(folder, short):
    """Search from the store, with rescoring and error bounds, and with faiss and everything in memory."""
    for dim, num_rows in ((512, 60_000), (2048, 20_000)) if short else ((512, 800_000), (2048, 300_000)):
        yield from _search(folder / f"search{dim}", num_rows, dim, repeats=1 if short else 3)


def _search(path, num_rows, dim, *, repeats):
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
        if precision == "auto" and engine.low is None:
            continue  # it is the same as the next one
        plan = SearchPlan(rows_per_block=BLOCK_BYTES // (4 * dim), queries_at_once=3000, engine=engine)
        ours, theirs, ratio = in_turns(
            lambda plan=plan: streamed_search(database, queries, k=200, similarity="cosine", plan=plan),
            lambda: index.search(val, 200),
            repeats=repeats,
        )
        what = f"kNN search, {num_rows:,} x {dim}, 3,000 queries, k = 200, {engine.low or 'float32'}"
        yield what, f"{ours:.2f} s", f"IndexFlatIP {theirs:.2f} s", f"{ratio:.2f}x", "<= 0.95x"


def sweep(folder, short):
    """Evaluate one more k or temperature on cached neighbours, and search."""
    num_rows, num_queries = (40_000, 3000) if short else (200_000, 10_000)
    features = made_features(folder / "sweep", clustered(num_rows, 512, 1), clustered(num_queries, 512, 2))
    start = time.perf_counter()
    classification.evaluate_knn(features, ["x"], k=[200])
    searched = time.perf_counter() - start
    ks, temperatures = range(1, 200, 20), [0.01 * i for i in range(1, 11)]
    start = time.perf_counter()
    records = classification.evaluate_knn(features, ["x"], k=list(ks), temperature=temperatures)
    each = (time.perf_counter() - start) / len(records)
    what = f"a further k or T (of {len(records)}), {num_queries:,} queries, {num_rows:,} x 512"
    yield what, f"{each:.3f} s", f"first search {searched:.2f} s", f"{each / searched:.4f}x", "<= 0.01x"


def extraction(folder, short):
    """Extract two layers, and run the bare forward pass of the same batches, images in memory."""
    cases = (("resnet50", ["res4", "res5"], 128), ("squeezenet1_0", ["features.12"], 512))
    for name, layers, num_rows in [("squeezenet1_0", ["features.12"], 128)] if short else cases:
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

        first, second, ratio = in_turns(ours, bare, repeats=1 if short else 3)
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


def kmeans(folder, short):
    """Cluster from the store, and with libraries that hold all rows in memory."""
    if not short:
        yield from clustering(folder)
        return
    with mock.patch("benchmarks.clustering.ROUNDS", 1):
        yield from measure(folder / "kmeans", 40_000, 64, 20)


def growing(folder, short):
    """Measure how searches grow, and what a second rank saves."""
    yield from growth(folder, short=short)
    if not short:
        yield from ranks(folder)


MEASUREMENTS = {
    "read": read,
    "write": lambda folder, short: written(folder, short=short),
    "search": search,
    "peers": lambda folder, short: peers(folder, short=short),
    "sweep": sweep,
    "kmeans": kmeans,
    "extraction": extraction,
    "safety": lambda folder, short: safety(folder),
    "compiled": lambda folder, short: compiled(folder),
    "commands": lambda folder, short: commands(folder),
    "growth": growing,
}

SHORT = ("read", "write", "search", "peers", "sweep", "kmeans", "extraction", "growth")
"""What is measured by default with `--short`; compiling and whole commands take too long for it."""

if __name__ == "__main__":
    main()
