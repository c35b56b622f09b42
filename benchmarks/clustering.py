"""k-means from the store under a memory limit, against libraries that hold all rows in memory.

    python -m benchmarks kmeans

All start from the same centroids and make as many iterations, in float32 units; only faiss.SuperKmeans, which is
approximate, chooses its own start. Ours runs in a process of its own, so that its peak memory is known. It reads all
rows once more than it iterates, and that is included.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import faiss
import numpy as np
from sklearn.cluster import KMeans

from benchmarks.features import made_features
from featbench.evaluate.clustering.kmeans import kmeans
from featbench.evaluate.clustering.planning import plan_clusters
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.memory import MIB
from featbench.evaluate.neighbours.planning import Resources
from featbench.store import FeatureSet
from featbench.store.typing import Floats
from tests.peak import peak_kb

Row = tuple[str, str, str, str, str]
"""What, ours, the yardstick, the ratio, the target."""

NUM_CLUSTERS = 1000

ROUNDS = 3
MEMORY = 1024 * MIB
ALLOWANCE = 300 * MIB
"""The interpreter and the libraries, which --memory does not count."""


def clustering(folder: Path) -> Iterator[Row]:
    """Measure one iteration of k-means, and the peak memory."""
    for num_rows, dim, iterations in ((1_000_000, 256, 20), (200_000, 2048, 10)):
        yield from measure(folder / f"kmeans{dim}", num_rows, dim, iterations)


def measure(path: Path, num_rows: int, dim: int, iterations: int) -> Iterator[Row]:
    """Measure one size; the rows must need more iterations than these (faiss makes 25 by default)."""
    train = _around_centers(num_rows, dim)
    start = train[np.random.default_rng(1).choice(num_rows, NUM_CLUSTERS, replace=False)]
    made_features(path, train, train[:1000])
    np.save(path / "start.npy", start)
    yardsticks = {"faiss.Kmeans": _faiss, "faiss.SuperKmeans (approximate)": _super, "scikit-learn": _sklearn}
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *yardsticks)}
    peaks = []
    for number in range(ROUNDS):
        ours, peak = _in_another_process(path, num_rows, iterations)
        seconds["ours"].append(ours)
        peaks.append(peak)
        for name, run in yardsticks.items():
            if number and name != "faiss.Kmeans":
                continue  # once is enough for what has no target
            began = time.perf_counter()
            run(train, start, iterations)
            seconds[name].append(time.perf_counter() - began)
    what = f"k-means iteration, {num_rows:,} x {dim:,}, {NUM_CLUSTERS:,} clusters, float32"
    ours = f"{median(seconds['ours']) / iterations:.2f} s"
    for name in yardsticks:
        ratio = median(a / b for a, b in zip(seconds["ours"], seconds[name]))  # noqa: B905
        target = "<= 1.1x" if name == "faiss.Kmeans" else ""
        yield what, ours, f"{name} {median(seconds[name]) / iterations:.2f} s", f"{ratio:.2f}x", target
    peak, most = max(peaks) / MIB, (MEMORY + ALLOWANCE) / MIB
    yield (
        "its peak memory",
        f"{peak:,.0f} MiB",
        f"--memory {MEMORY // MIB}MiB",
        f"{peak / most:.2f}x of both",
        (f"<= --memory + {ALLOWANCE // MIB} MiB"),
    )


def _around_centers(num_rows: int, dim: int) -> Floats:
    """Make features with some structure: 1,000 centers and noise."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((1000, dim), dtype=np.float32) / 2
    values = np.empty((num_rows, dim), np.float32)
    for at in range(0, num_rows, 2**15):
        block = values[at : at + 2**15]
        random.standard_normal(dtype=np.float32, out=block)
        block += centers[random.integers(1000, size=len(block))]
    return values


def _in_another_process(path: Path, num_rows: int, iterations: int) -> tuple[float, int]:
    """Return seconds and peak bytes."""
    command = [sys.executable, "-m", "benchmarks.clustering", str(path), str(num_rows), str(iterations)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = done.stdout.split()
    return float(seconds), 1024 * int(peak)


def _ours(path: Path, num_rows: int, iterations: int) -> None:
    """Run it in this process, and print seconds and peak memory."""
    data = Selection(layer=FeatureSet.open(path).layer("train", "x"), rows=np.arange(num_rows))
    settings = KmeansSettings(
        num_clusters=NUM_CLUSTERS, normalize=False, init=str(path / "start.npy"), iterations=iterations, tolerance=0
    )
    began = time.perf_counter()
    plan = plan_clusters(
        Resources(memory=MEMORY, device="cpu", precision="float32"), num_rows=num_rows,
        rows_per_chunk=data.layer.rows_per_chunk, dim=data.layer.dim, num_clusters=NUM_CLUSTERS,
    )  # fmt: skip
    found = kmeans(data, settings, plan=plan)
    seconds = time.perf_counter() - began
    assert found.iterations == iterations
    print(seconds, peak_kb())


def _faiss(train: Floats, start: Floats, iterations: int) -> None:
    found = faiss.Kmeans(train.shape[1], len(start), niter=iterations, max_points_per_centroid=len(train))
    found.train(train, init_centroids=start)
    assert len(found.obj) == iterations


def _super(train: Floats, start: Floats, iterations: int) -> None:
    found = faiss.SuperKmeans(train.shape[1], len(start), niter=iterations, max_points_per_centroid=len(train))
    found.train(train)


def _sklearn(train: Floats, start: Floats, iterations: int) -> None:
    found = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(train)
    assert found.n_iter_ == iterations


if __name__ == "__main__":
    _ours(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
