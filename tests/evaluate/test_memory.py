"""Memory of stage two is planned, and does not grow with the database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featbench.evaluate.clustering.planning import plan_clusters
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.memory import free_memory, plan_blocks
from featbench.evaluate.neighbours import backends
from featbench.evaluate.neighbours.planning import Resources, SearchPlan, plan_search
from featbench.evaluate.neighbours.search import search
from featbench.evaluate.neighbours.shortlist import room_for
from featbench.store import (
    ChunkWriter,
    FeatureSet,
    LayerInfo,
    Manifest,
    SplitRows,
    add_layers,
    load_cached,
    open_or_create,
)
from tests.conftest import ROOT, Bench, make_features, needs_proc

MIB = 2**20
DIM = 256

MEASURE = """
import sys
from pathlib import Path
from featbench.evaluate.knn.classification import evaluate_knn
from featbench.evaluate.neighbours.planning import Resources
from featbench.store import FeatureSet
from tests.peak import peak_kb
resources = Resources(memory=int(sys.argv[2]) * 2**20)
print(evaluate_knn(FeatureSet.open(Path(sys.argv[1])), ["x"], k=[200], resources=resources)[0]["top1"])
print(peak_kb())
"""


def peak_mib(path: Path, memory_mib: int) -> float:
    command = [sys.executable, "-c", MEASURE, str(path), str(memory_mib)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1]) / 1024


@needs_proc
def test_a_database_ten_times_as_large_takes_no_more_than_was_allowed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    peaks = {}
    for num_rows in (20_000, 200_000):  # 20 and 195 MiB of features
        train = random.standard_normal((num_rows, DIM), dtype=np.float32)
        features = {"train": {"x": train}, "val": {"x": train[:500]}}
        labels = {"train": np.arange(num_rows) % 10, "val": np.arange(500) % 10}
        make_features(tmp_path / str(num_rows), features, labels, rows_per_chunk=1024)
        peaks[num_rows] = peak_mib(tmp_path / str(num_rows), 128)
    labels_and_paths = 200_000 * 100 / MIB
    assert peaks[200_000] < 128 + 300, f"{peaks} MiB"
    assert peaks[200_000] - peaks[20_000] < labels_and_paths + 64, f"{peaks} MiB"


@needs_proc
@pytest.mark.slow
def test_two_gigabytes_are_searched_within_one_with_the_same_answer(tmp_path: Path) -> None:
    """2,000,000 x 256 on disk, 2,000 queries, 1 GiB: below 1.3 GiB in all, and what is found with all in memory."""
    num_rows, num_queries = 2_000_000, 2_000
    made = tmp_path / "f"
    write_random(made, num_rows, num_queries)
    assert peak_mib(made, 1024) < 1.3 * 1024
    features = FeatureSet.open(made)
    entry = load_cached(features, "neighbours", next((made / "neighbours").glob("x-*")).name)
    assert entry
    kept, _ = entry
    database, queries = (
        Selection(layer=features.layer(split, "x"), rows=np.arange(count))
        for split, count in (("train", num_rows), ("val", num_queries))
    )
    all_at_once = SearchPlan(rows_per_block=num_rows, queries_at_once=num_queries)
    found = search(database, queries, k=200, similarity="cosine", plan=all_at_once)
    assert np.array_equal(found.rows_QK, kept["rows"])
    assert np.array_equal(found.similarities_QK, kept["similarities"])


def write_random(path: Path, num_rows: int, num_queries: int) -> FeatureSet:
    """A feature set of random rows, written chunk by chunk."""
    sizes = {"train": num_rows, "val": num_queries}
    rows = {
        split: SplitRows(labels=np.arange(n) % 10, paths=[""] * n, class_names=tuple("abcdefghij"))
        for split, n in sizes.items()
    }
    manifest = Manifest(
        made_from={}, dtype="float32", compression="none", rows_per_chunk=1024,
        splits={split: each.info() for split, each in rows.items()},
    )  # fmt: skip
    made = open_or_create(path, manifest, rows)
    add_layers(made, {"x": LayerInfo(tap="x", pooling=None, shape=(DIM,))})
    writer, random = ChunkWriter(made), np.random.default_rng(0)
    for work in made.pending(["x"]):
        count = len(made.grid(work.split).rows(work.chunk))
        writer.write(work, {"x": random.standard_normal((count, DIM), dtype=np.float32)}, np.ones(count, bool))
    return FeatureSet.open(path)


@pytest.mark.parametrize("memory", [100, 150, 300, 1000, 5000, 50_000])
@pytest.mark.parametrize("dim", [16, 2048, 100_000])
@pytest.mark.parametrize("num_queries", [10, 5000, 100_000])
def test_a_plan_fits_or_is_refused_with_the_memory_that_would_do(memory: int, dim: int, num_queries: int) -> None:
    sizes = {
        "num_rows": 10**6, "rows_per_chunk": 64, "dim": dim, "num_queries": num_queries, "k": 200,
        "room": room_for(200), "num_blocks": 3, "num_threads": 2,
    }  # fmt: skip
    try:
        rows_per_block, queries_at_once = plan_blocks(memory * MIB, **sizes)
    except EvaluationError as error:
        least = int(str(error).rpartition("--memory ")[2].partition("MiB")[0])
        assert least > memory
        plan_blocks(least * MIB, **sizes)
        return
    arrays = 3 * rows_per_block * dim * 4 + queries_at_once * dim * 16 + num_queries * 200 * 16
    assert arrays < memory * MIB
    assert rows_per_block % 64 == 0
    assert 1 <= queries_at_once <= num_queries


def test_free_memory_is_that_of_the_tightest_control_group(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    assert free_memory(tmp_path) == 8_000_000 * 1024
    write("proc/self/cgroup", "0::/slice/job\n")
    write("sys/fs/cgroup/slice/job/memory.max", "max\n")
    write("sys/fs/cgroup/slice/job/memory.current", "5\n")
    write("sys/fs/cgroup/slice/job/memory.stat", "inactive_file 3\n")
    assert free_memory(tmp_path) == 8_000_000 * 1024
    write("sys/fs/cgroup/slice/memory.max", str(2**30))
    write("sys/fs/cgroup/slice/memory.current", str(2**29))
    write("sys/fs/cgroup/slice/memory.stat", f"anon 7\ninactive_file {2**20}\nactive_file 9\n")
    assert free_memory(tmp_path) == 2**30 - 2**29 + 2**20, "the parent's limit counts, its page cache gives way"
    write("proc/self/cgroup", "7:cpu,memory:/a\n")
    write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000\n")
    write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "900\n")
    write("sys/fs/cgroup/memory/a/memory.stat", "inactive_file 5\ntotal_inactive_file 50\n")
    assert free_memory(tmp_path) == 150


def test_more_than_the_memory_is_refused_with_the_least_that_would_do(tmp_path: Path, bench: Bench) -> None:
    values = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    features = {split: {"x": values} for split in ("train", "val")}
    make_features(tmp_path / "features/f", features, {split: np.arange(50) % 2 for split in features})
    result = bench("evaluate", "--features", "f", "--memory", "1MiB", "--k", "5")
    assert result.returncode == 2
    assert "does not fit into 1 MiB" in result.stderr
    least = result.stderr.partition("--memory ")[2].split(",")[0]
    assert bench("evaluate", "--features", "f", "--memory", least, "--k", "5").returncode == 0
    result = bench("evaluate", "--features", "f", "--memory", "lots")
    assert result.returncode == 2
    assert "must be an amount of memory such as 8GiB" in result.stderr


def test_the_memory_of_torch_is_planned_for_and_bfloat16_left_out_if_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its libraries take more than a small search is allowed in all."""
    monkeypatch.setattr(backends, "multiplies_bfloat16", lambda: True)
    sizes = {
        "num_rows": 10**7, "rows_per_chunk": 64, "dim": 512, "num_queries": 10**4, "k": 20, "similarity": "cosine",
    }  # fmt: skip

    def planned(mib: int, precision: str) -> SearchPlan:
        return plan_search(Resources(memory=mib * MIB, device="cpu", precision=precision), **sizes)

    monkeypatch.setitem(sys.modules, "torch", sys)  # as if it were imported
    assert planned(300, "auto").engine.low == "bfloat16"
    monkeypatch.delitem(sys.modules, "torch")
    assert planned(300, "auto").engine.low is None
    assert planned(1000, "auto").engine.low == "bfloat16"
    with pytest.raises(EvaluationError, match="does not fit into 300 MiB") as refusal:
        planned(300, "low")
    least = int(str(refusal.value).rpartition("--memory ")[2].partition("MiB")[0])
    assert planned(least, "low").engine.low == "bfloat16"
    with pytest.raises(EvaluationError):
        planned(least - 1, "low")


def test_a_search_that_shares_the_memory_with_an_index_says_what_both_need() -> None:
    sizes = {"num_rows": 10**6, "rows_per_chunk": 1024, "dim": 512, "num_queries": 10**4, "k": 20}

    def planned(mib: int, shares: int) -> SearchPlan:
        resources = Resources(memory=mib * MIB, device="cpu", precision="float32")
        return plan_search(resources, similarity="cosine", **sizes, memory_shares=shares)

    with pytest.raises(EvaluationError, match="does not fit into 50 MiB of memory, 1 of 2") as refusal:
        planned(100, 2)
    least = int(str(refusal.value).rpartition("--memory ")[2].partition("MiB")[0])
    assert planned(least, 2) == planned(least // 2, 1)


CLUSTER = """
import sys
from pathlib import Path
from featbench.evaluate.clustering.evaluation import evaluate_kmeans
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.neighbours.planning import Resources
from featbench.store import FeatureSet
from tests.peak import peak_kb
resources = Resources(memory=int(sys.argv[2]) * 2**20)
settings = KmeansSettings(iterations=2, init="random", restarts=1)
features = FeatureSet.open(Path(sys.argv[1]))
evaluate_kmeans(features, ["x"], clusters=[500], settings=settings, resources=resources, ami=False)
print(peak_kb())
"""


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("is_least", [True, False])
def test_rows_are_clustered_within_the_memory_that_was_allowed(is_least: bool, tmp_path: Path) -> None:
    """200,000 x 256, 195 MiB; the least amount that the message names does."""
    sizes = {"num_rows": 200_000, "rows_per_chunk": 1024, "dim": DIM, "num_clusters": 500}
    memory = 700
    if is_least:
        with pytest.raises(EvaluationError, match="does not fit into 1 MiB") as refusal:
            plan_clusters(Resources(memory=MIB, device="cpu"), **sizes)
        memory = int(str(refusal.value).rpartition("--memory ")[2].partition("MiB")[0])
        with pytest.raises(EvaluationError, match="does not fit"):
            plan_clusters(Resources(memory=(memory - 1) * MIB, device="cpu"), **sizes)
    assert plan_clusters(Resources(memory=memory * MIB, device="cpu"), **sizes).hold is not is_least
    write_random(tmp_path / "f", 200_000, 1000)
    command = [sys.executable, "-c", CLUSTER, str(tmp_path / "f"), str(memory)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) / 1024 < memory + 300
