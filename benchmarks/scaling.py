"""How searches grow with rows, dimension, k and layers, how little memory does, and what a second rank saves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from benchmarks.features import clustered, in_turns, made_features
from benchmarks.page import Curve
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.memory import BLOCK_BYTES
from featbench.evaluate.neighbours.backends import choose_engine
from featbench.evaluate.neighbours.planning import SearchPlan
from featbench.evaluate.neighbours.search import search
from featbench.store import FeatureSet
from featbench.store.typing import Floats

Row = tuple[str, str, str, str, str]

MEASURED = """
import atexit, runpy
from tests.peak import peak_kb
atexit.register(lambda: print(peak_kb()))
runpy.run_module("featbench", run_name="__main__", alter_sys=True)
"""
"""Runs a command, and prints the peak of its memory in kB last."""


def searched(features: FeatureSet, *, num_rows: int, num_queries: int, k: int) -> None:
    """Search some rows of a stored layer `x` of train for the neighbours of some of val."""
    database = Selection(layer=features.layer("train", "x"), rows=np.arange(num_rows))
    queries = Selection(layer=features.layer("val", "x"), rows=np.arange(num_queries))
    dim = database.layer.dim
    engine = choose_engine("cpu", "auto", k=k, similarity="cosine", multiplications=num_rows * num_queries * dim)
    plan = SearchPlan(rows_per_block=BLOCK_BYTES // (4 * dim), queries_at_once=num_queries, engine=engine)
    search(database, queries, k=k, similarity="cosine", plan=plan)


def peers(folder: Path, *, short: bool) -> Iterator[Row]:
    """Search from the store, as DINO does with torch, and as scikit-learn does; both have everything in memory."""
    num_rows, dim, num_queries = (40_000, 256, 500) if short else (200_000, 512, 2000)
    k = 200
    train, val = clustered(num_rows, dim, 1), clustered(num_queries, dim, 2)
    features = made_features(folder / "peers", train, val)
    unit_train, unit_val = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (train, val))
    found = NearestNeighbors(algorithm="brute", metric="cosine").fit(train)

    def dino(train_ND: Floats = unit_train, val_QD: Floats = unit_val) -> None:
        """`knn_classifier` of DINO's eval_knn.py as far as the neighbours: a hundredth of the queries at a time."""
        bank, queries = torch.from_numpy(train_ND).t(), torch.from_numpy(val_QD)
        for some in queries.split(max(1, num_queries // 100)):
            torch.mm(some, bank).topk(k, largest=True, sorted=True)

    what = f"kNN search, {num_rows:,} x {dim}, {num_queries:,} queries, k = {k}"
    for name, run in (("torch.mm and topk", dino), ("scikit-learn", lambda: found.kneighbors(val, k))):
        ours, theirs, ratio = in_turns(
            lambda: searched(features, num_rows=num_rows, num_queries=num_queries, k=k), run, repeats=1 if short else 3
        )
        yield what, f"{ours:.2f} s", f"{name} {theirs:.2f} s", f"{ratio:.2f}x", ""


def growth(folder: Path, *, short: bool) -> Iterator[Curve]:
    """Measure searches of several sizes, one of which changes at a time, and the peak of memory."""
    num_rows, num_queries = (40_000, 300) if short else (400_000, 1000)
    sizes: dict[str, tuple[str, list[tuple[int, int, int]]]] = {
        "rows": ("rows of train", [(rows, 256, 100) for rows in (num_rows // 10, num_rows)]),
        "dimension": ("dimension", [(num_rows // 4, dim, 100) for dim in (64, 256, 1024)]),
        "k": ("k", [(num_rows, 256, k) for k in (1, 20, 200, 1000)]),
    }
    made = {dim: _made(folder, num_rows, num_queries, dim) for dim in (64, 256, 1024)}
    for name, (label, cases) in sizes.items():
        points = []
        for rows, dim, k in cases:
            searched(made[dim], num_rows=rows, num_queries=num_queries, k=k)
            start = time.perf_counter()
            searched(made[dim], num_rows=rows, num_queries=num_queries, k=k)
            points.append((float({"rows": rows, "dimension": dim, "k": k}[name]), time.perf_counter() - start))
        yield Curve(name=name, title=f"kNN search by {label}", x_label=label, y_label="seconds", points=tuple(points))
    points = [(float(rows), _peak_mib(folder, rows)) for rows in (num_rows // 10, num_rows)]
    yield Curve(
        name="memory", title="Peak memory of `bench evaluate --memory 512MiB`", x_label="rows of train of 256 numbers",
        y_label="MiB", points=tuple(points),
    )  # fmt: skip


def ranks(folder: Path) -> Iterator[Curve]:
    """Extract the embedded digits with one rank and with two, each with the threads that are left to it."""
    points = []
    for count in (1, 2):
        start = time.perf_counter()
        command = [
            sys.executable, "-m", "featbench", "extract", "digits", "--ranks", count, "--device", "cpu", "--quiet",
            "--store", folder / "ranks", "--name", f"ranks{count}",
        ]  # fmt: skip
        subprocess.run(list(map(str, command)), check=True)
        points.append((float(count), time.perf_counter() - start))
    yield Curve(
        name="ranks", title="`bench extract digits`, whole command", x_label="ranks", y_label="seconds",
        points=tuple(points),
    )  # fmt: skip


def written(folder: Path, *, short: bool) -> Iterator[Row]:
    """Write a layer to the store, with checksums, fsync and journal, and the same bytes to one file, with fsync."""
    values = clustered(16_384 if short else 131_072, 1024, 1)
    number = iter(range(100))

    def ours() -> None:
        made_features(folder / f"written{next(number)}", values, values[:1024])

    def theirs() -> None:
        with (folder / "written.bin").open("wb") as file:
            file.write(values.data)
            file.write(values[:1024].data)
            os.fsync(file.fileno())

    first, second, ratio = in_turns(ours, theirs, repeats=1 if short else 3)
    size = values.nbytes / 2**20
    what = f"store write, {size:,.0f} MiB float32, every chunk synced and journalled"
    yield what, f"{size / first:,.0f} MiB/s", f"one file {size / second:,.0f} MiB/s", f"{1 / ratio:.2f}x", ""


def _made(folder: Path, num_rows: int, num_queries: int, dim: int) -> FeatureSet:
    rows = num_rows if dim == 256 else num_rows // 4
    return made_features(folder / f"growth{dim}", clustered(rows, dim, 1), clustered(num_queries, dim, 2))


def _peak_mib(folder: Path, num_rows: int) -> float:
    name = f"peak{num_rows}"
    made_features(folder / name, clustered(num_rows, 256, 1), clustered(300, 256, 2))
    command = [sys.executable, "-c", MEASURED, "evaluate", "--features", name, "--store", folder, "--k", 20]
    command += ["--memory", "512MiB", "--quiet", "--json"]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1]) / 1024
