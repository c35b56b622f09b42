"""Run on a GPU everything that needs one, compare it with the CPU or with float64, and write a page.

    python -m benchmarks.gpu_check                     with a CUDA device: under eight minutes
    python -m benchmarks.gpu_check --device cpu        a rehearsal without one: the same checks, smaller, on the CPU

Checked are extraction in every precision, compiled and not, against the CPU's features; `--gpus`; how near extraction
comes to the bare forward pass; searches with faiss on the GPU, in float32 and float16, against float64; and k-means.
What is absent (a device, faiss's GPU part, a second GPU) is skipped with the reason. It needs nothing beyond what
featbench itself needs: the images and the features are made here.

The results are one JSON file and one Markdown page in `--out`. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np
import torch
from PIL import Image

from featbench.evaluate.clustering.kmeans import kmeans
from featbench.evaluate.clustering.planning import plan_clusters
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.features.memory_layer import MemoryLayer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.neighbours.backends import choose_engine
from featbench.evaluate.neighbours.planning import Resources, SearchPlan
from featbench.evaluate.neighbours.search import search
from featbench.extract.config import ExtractConfig
from featbench.store import FeatureSet
from featbench.store.typing import Array, Doubles, Floats, Ints

MINUTES = 7.5
"""Checks that would begin later are skipped."""

TOLERANCES = {"float32": 1e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 2e-2}
"""By how much the cosine of a row with the CPU's float32 features may fall short of 1."""

LAYERS = ("res4", "res5")

PRECISIONS: tuple[str, ...] = get_args(ExtractConfig.model_fields["precision"].annotation)


class Skip(Exception):
    """Why a check can't run here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is computed."""

    trunk: str
    images: int
    """Images in train; val has a quarter as many."""

    database: int
    queries: int
    dim: int
    ks: tuple[int, ...]
    rows: int
    clusters: int
    forward_images: int
    batch: int


ON_GPU = Sizes(
    trunk="resnet50", images=512, database=200_000, queries=500, dim=512, ks=(200, 2016, 3000), rows=200_000,
    clusters=1000, forward_images=4096, batch=128,
)  # fmt: skip
ON_CPU = Sizes(
    trunk="resnet18", images=32, database=4000, queries=50, dim=32, ks=(20, 200), rows=4000, clusters=20,
    forward_images=32, batch=16,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one check."""

    name: str
    state: Literal["passed", "failed", "skipped"]
    detail: str
    """What was compared and found, or the reason."""

    seconds: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Bench:
    """What the checks share."""

    device: str
    sizes: Sizes
    folder: Path
    deadline: float
    """As `time.monotonic` counts."""

    reference: dict[str, dict[str, Floats]] = field(default_factory=dict)
    """Features of the CPU in float32, by split and layer."""

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU is to be used, or only rehearsed."""
        return self.device != "cpu"

    @property
    def search_device(self) -> str:
        """The same, as `--search-device` calls it."""
        return "gpu" if self.is_gpu else "cpu"


Result = tuple[bool, str, dict[str, float]]
"""Whether it is right, what was compared and found, and figures."""

Check = tuple[str, Callable[[], Result]]


def checks(bench: Bench) -> Iterator[Check]:
    """Yield all checks, the most important first."""
    for precision in PRECISIONS:
        yield f"extraction, {precision}", partial(extraction, bench, precision, "off")
    for k in bench.sizes.ks:
        for low in (False, True):
            name = f"search, {'float16' if low else 'float32'}, k = {k:,}"
            yield name, partial(searching, bench, k, low=low)
    yield "k-means", partial(clustering, bench)
    yield "extraction against the bare forward pass", partial(forward, bench)
    yield "--gpus", partial(ranks, bench)
    for precision in PRECISIONS:
        yield f"extraction, {precision}, compiled", partial(extraction, bench, precision, "on")


# ------------------------------------------------------------------------------------------------ stage one


def extraction(bench: Bench, precision: str, compiling: str) -> Result:
    """Extract photographs by the command, and compare every row with the CPU's features in float32."""
    if not bench.is_gpu and (compiling == "on" or precision == "float16"):
        raise Skip("rehearsed in the other precisions only: on a CPU it takes minutes, or does not exist")
    if not bench.reference:
        made = extracted(bench, "reference", "--device", "cpu", "--precision", "float32")
        bench.reference = {split: {name: rows_of(made, split, name) for name in LAYERS} for split in ("train", "val")}
    name = f"{precision}-{compiling}"
    start = time.perf_counter()
    made = extracted(
        bench, name, "--device", bench.device, "--precision", precision, "--compile", compiling, "--profile"
    )
    seconds = time.perf_counter() - start
    worst = max(
        float((1 - cosines(rows_of(made, split, layer), bench.reference[split][layer])).max())
        for split in ("train", "val")
        for layer in LAYERS
    )
    tolerance = TOLERANCES[precision]
    detail = f"1 - cosine with the CPU's float32 features is at most {worst:.1e} (allowed: {tolerance:.0e})"
    if compiling == "on":
        record = made.manifest.notes["computed"][LAYERS[-1]]
        detail += f"; {'compiled' if record['graph'] else 'runs eagerly'}: {record['reason']}"
    return worst <= tolerance, detail, {"one_minus_cosine": worst, "tolerance": tolerance, "command_s": seconds}


def ranks(bench: Bench) -> Result:
    """Extract with a rank for each GPU, and compare the chunks' bytes with those of a single process."""
    count = torch.cuda.device_count() if bench.is_gpu else 2
    option = ("--gpus", count) if bench.is_gpu else ("--ranks", count)
    alone = extracted(bench, "float32-off", "--device", bench.device, "--precision", "float32")
    together = extracted(bench, "ranks", *option, *(() if bench.is_gpu else ("--device", "cpu")))
    keys = [key for split in ("train", "val") for layer in LAYERS for key in alone.chunk_keys(split, layer)]
    different = [key for key in keys if (alone.path / key).read_bytes() != (together.path / key).read_bytes()]
    detail = f"{option[0]} {count}: {len(keys) - len(different)} of {len(keys)} chunks have the bytes of one process"
    return not different, detail + (f", not {different[0]}" if different else ""), {"ranks": count}


def forward(bench: Bench) -> Result:
    """Extract images that are in memory, and run the bare forward pass of as many."""
    from benchmarks.extraction import Noise, fresh
    from featbench.extract.extraction import extract_chunks
    from featbench.extract.model.taps import TappedTrunk
    from featbench.extract.model.trunks import build_trunk
    from featbench.extract.transform import Transform
    from featbench.store import ChunkWriter
    from featbench.store.layers import layers_of

    device, size = torch.device(bench.device), bench.sizes
    trunk = build_trunk(size.trunk)
    taps = TappedTrunk(trunk, name=size.trunk, layers=layers_of([LAYERS[-1]]))
    infos = taps.probe(torch.zeros(1, 3, 224, 224))
    trunk.to(device=device).to(memory_format=torch.channels_last)
    images = torch.rand(size.batch, 3, 224, 224).to(device, memory_format=torch.channels_last)
    sources = {"train": Noise(size.forward_images), "val": Noise(size.batch)}

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(size.forward_images // size.batch):
                trunk(images)
        if bench.is_gpu:
            torch.cuda.synchronize()

    def ours() -> None:
        features = fresh(bench.folder / "forward", sources, infos)
        work = [item for item in features.pending(list(infos)) if item.split == "train"]
        extract_chunks(
            features, work, writer=ChunkWriter(features), trunk=taps, sources=sources,
            transform=Transform(resize=None), batch_size=size.batch, device=device,
        )  # fmt: skip

    rates = {}
    for name, run in (("bare", bare), ("ours", ours)):
        run()
        start = time.perf_counter()
        run()
        rates[name] = size.forward_images / (time.perf_counter() - start)
    ratio = rates["ours"] / rates["bare"]
    detail = (
        f"{rates['ours']:,.0f} images/s with preparing and writing, {rates['bare']:,.0f} without: {ratio:.2f}x "
        f"(target: 0.95x; a figure, not a condition)"
    )
    return True, detail, {"images_per_s": rates["ours"], "bare_images_per_s": rates["bare"], "ratio": ratio}


def photographs(folder: Path, count: int) -> Path:
    """Make JPEG files of four classes: coarse colours and grain."""
    random = np.random.default_rng(0)
    for split, number_of in (("train", count), ("val", count // 4)):
        for number in range(number_of):
            path = folder / split / f"class{number % 4}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((320, 240))
            grain = random.integers(-8, 9, (240, 320, 1))
            Image.fromarray(np.clip(np.asarray(coarse, int) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def extracted(bench: Bench, name: str, *options: object) -> FeatureSet:
    """Run `bench extract`; a feature set of that name is completed, so a second call costs a start."""
    data = bench.folder / "photographs"
    if not data.exists():
        photographs(data, bench.sizes.images)
    command = [
        sys.executable, "-m", "featbench", "extract", "folder", "--data", data, f"model.trunk={bench.sizes.trunk}",
        "--random-weights", 0, "--layers", ",".join(LAYERS), "--batch-size", min(64, bench.sizes.batch),
        "--store", bench.folder / "features", "--name", name, *options,
    ]  # fmt: skip
    left = max(30.0, bench.deadline - time.monotonic())
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=left, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(map(str, command[1:]))}` ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return FeatureSet.open(bench.folder / "features" / name)


def rows_of(features: FeatureSet, split: str, layer: str) -> Floats:
    """Features of a layer, shape (N, D)."""
    return features.layer(split, layer).read()


def cosines(first_ND: Array, second_ND: Array) -> Doubles:
    """Cosine of each pair of rows, in float64."""
    first, second = first_ND.astype(np.float64), second_ND.astype(np.float64)
    products: Doubles = (first * second).sum(axis=1)
    found: Doubles = products / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
    return found


# ------------------------------------------------------------------------------------------------ stage two


def searching(bench: Bench, k: int, *, low: bool) -> Result:
    """Search with faiss on the GPU, and compare with all similarities in float64."""
    size = bench.sizes
    if bench.is_gpu and not _faiss_gpus():
        raise Skip("this faiss sees no GPU: install faiss-gpu, and a driver that it supports")
    database, queries = made(size.database, size.dim, seed=1), made(size.queries, size.dim, seed=2)
    engine = choose_engine(
        bench.search_device, "low" if low else "float32", k=k, similarity="cosine",
        multiplications=size.database * size.queries * size.dim,
    )  # fmt: skip
    plan = SearchPlan(rows_per_block=size.database // 3, queries_at_once=size.queries, engine=engine)
    selections = [
        Selection(layer=MemoryLayer(values, key="x"), rows=np.arange(len(values))) for values in (database, queries)
    ]
    start = time.perf_counter()
    found = search(selections[0], selections[1], k=k, similarity="cosine", plan=plan)
    seconds = time.perf_counter() - start
    is_right, furthest = _agrees(found.rows_QK, found.similarities_QK, database, queries)
    where = f"{engine}" + (f" (lists of {engine.too_long:,} are too long for a GPU)" if engine.too_long else "")
    detail = f"{where}: {size.queries:,} lists of {k:,} {'are' if is_right else 'ARE NOT'} those of float64"
    return (
        is_right,
        detail,
        {"search_s": seconds, "furthest_similarity": furthest, "rechecked": float(len(found.rechecked))},
    )


def _agrees(rows_QK: Ints, similarities_QK: Doubles, database: Floats, queries: Floats) -> tuple[bool, float]:
    """Whether lists have the largest cosines in float64; rows may only swap where these are equal to 1e-12."""
    database_ND = database.astype(np.float64)
    database_ND /= np.linalg.norm(database_ND, axis=1, keepdims=True)
    furthest = 0.0
    for query, rows_K, similarities_K in zip(queries, rows_QK, similarities_QK, strict=True):
        exact_N = database_ND @ (query.astype(np.float64) / np.linalg.norm(query.astype(np.float64)))
        best_K = np.sort(exact_N)[::-1][: len(rows_K)]
        if len(np.unique(rows_K)) < len(rows_K):
            return False, np.inf
        furthest = max(furthest, np.abs(exact_N[rows_K] - best_K).max(), np.abs(similarities_K - best_K).max())
    return bool(furthest < 1e-12), float(furthest)


def clustering(bench: Bench) -> Result:
    """Cluster on the GPU and on the CPU: every bit must be the same."""
    size = bench.sizes
    if bench.is_gpu and not _faiss_gpus():
        raise Skip("this faiss sees no GPU: install faiss-gpu, and a driver that it supports")
    rows = made(size.rows, size.dim, seed=3)
    data = Selection(layer=MemoryLayer(rows, key="x"), rows=np.arange(len(rows)))
    settings = KmeansSettings(num_clusters=size.clusters, iterations=5)
    found, seconds = {}, {}
    for where in ("cpu", bench.search_device if bench.is_gpu else "faiss-cpu"):
        resources = Resources(memory=2**31, device=where)
        plan = plan_clusters(
            resources, num_rows=size.rows, rows_per_chunk=data.layer.rows_per_chunk, dim=size.dim,
            num_clusters=size.clusters,
        )  # fmt: skip
        start = time.perf_counter()
        found[where] = kmeans(data, settings, plan=plan)
        seconds[where] = time.perf_counter() - start
    ours, other = found.values()
    is_equal = np.array_equal(ours.centroids_KD, other.centroids_KD) and ours.objective == other.objective
    detail = (
        f"centroids and objective {'are' if is_equal else 'ARE NOT'} those of the CPU, to the last bit: "
        + ", ".join(f"{where} {each:.1f} s" for where, each in seconds.items())
    )
    return is_equal, detail, {f"{where}_s": each for where, each in seconds.items()}


def made(num_rows: int, dim: int, *, seed: int) -> Floats:
    """Make rows around 100 centers."""
    centers = np.random.default_rng(0).standard_normal((100, dim), dtype=np.float32)
    random = np.random.default_rng(seed)
    return centers[random.integers(100, size=num_rows)] + random.standard_normal((num_rows, dim), dtype=np.float32)


def _faiss_gpus() -> int:
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


# ------------------------------------------------------------------------------------------------ the page


def run(check: Check, bench: Bench) -> Outcome:
    """Run one check; whatever goes wrong becomes its outcome."""
    name, function = check
    start = time.perf_counter()
    state: Literal["passed", "failed", "skipped"] = "skipped"
    figures: dict[str, float] = {}
    try:
        if bench.is_gpu and not torch.cuda.is_available():
            raise Skip("torch sees no CUDA device")
        if time.monotonic() > bench.deadline:
            raise Skip("the time is up; raise it with --minutes")
        is_right, detail, figures = function()
        state = "passed" if is_right else "failed"
    except Skip as reason:
        detail = str(reason)
    except Exception as error:  # the other checks go on, and the page says what happened
        state, detail = "failed", "".join(traceback.format_exception_only(error)).strip()
        print(traceback.format_exc(), file=sys.stderr)
    return Outcome(name=name, state=state, detail=detail, seconds=time.perf_counter() - start, figures=figures)


def machine(device: str) -> dict[str, str]:
    """Return what it ran on."""
    facts = {
        "device": device,
        "machine": platform.machine(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "faiss": f"{version('faiss-gpu') if _has('faiss-gpu') else faiss.__version__}, sees {_faiss_gpus()} GPU(s)",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["GPU"] = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        facts["CUDA"] = str(torch.version.cuda)
    return facts


def _has(package: str) -> bool:
    try:
        version(package)
    except ModuleNotFoundError:
        return False
    return True


def page(facts: dict[str, str], outcomes: list[Outcome]) -> str:
    """Return the Markdown page."""
    counts = {state: sum(each.state == state for each in outcomes) for state in ("passed", "failed", "skipped")}
    seconds = sum(each.seconds for each in outcomes)
    lines = [
        f"# GPU check: {', '.join(f'{count} {state}' for state, count in counts.items())}",
        "",
        f"`python -m benchmarks.gpu_check`, {time.strftime('%Y-%m-%d')}, {seconds:.0f} s.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "| check | result | seconds | |",
        "|---|---|---|---|",
    ]
    for each in outcomes:
        detail = each.detail.replace("\n", " ").replace("|", "\\|")
        lines.append(f"| {each.name} | {each.state} | {each.seconds:.1f} | {detail} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run all checks, write JSON and Markdown, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder of the two files")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="checks that would begin later are skipped")
    parser.add_argument("--only", default="", help="only the checks whose names contain this")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    bench = Bench(
        device=options.device, sizes=ON_CPU if options.device == "cpu" else ON_GPU, folder=folder,
        deadline=time.monotonic() + 60 * options.minutes,
    )  # fmt: skip
    outcomes = []
    try:
        for check in checks(bench):
            if options.only in check[0]:
                outcomes.append(run(check, bench))
                print(f"{outcomes[-1].state}: {outcomes[-1].name}: {outcomes[-1].detail}", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = machine(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"gpu_check_{time.strftime('%Y-%m-%d')}"
    content: dict[str, Any] = {"machine": facts, "checks": [dataclasses.asdict(each) for each in outcomes]}
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page(facts, outcomes))
    print(page(facts, outcomes))
    return int(any(each.state == "failed" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
