"""Fixtures: small datasets, small feature sets, the command line, and the shared reference material."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import typer.main
from PIL import Image

from featbench.__main__ import main
from featbench.store import ChunkWriter, FeatureSet, LayerInfo, Manifest, SplitRows, make_ready, open_or_create
from featbench.store.typing import Array, Bools, Floats, Ints
from tests.peak import STATUS

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("BENCH_SHARED", ROOT.parent / "shared"))

Bench = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command line with these arguments."""

Records = Callable[..., list[dict[str, Any]]]
"""Runs `bench evaluate` with these arguments and returns its records."""

Arrays = tuple[dict[str, dict[str, Floats]], dict[str, Ints]]
"""Features by split and layer, and labels by split."""

needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="reads the peak of memory from Linux's /proc")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference features, photographs and weights; they are not part of the repository."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"the reference material is not at {SHARED}; name its folder in BENCH_SHARED")
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def _no_catalogue_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _without_waiting() -> Iterator[None]:
    """Commands are made once for all tests, and no one waits for a disk, or long for a lock that another run holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # tests/reliability shows what a power cut would leave
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        patch.setattr("featbench.store.lock.PATIENCE_S", 0.2)
        yield


@pytest.fixture
def bench_process(tmp_path: Path) -> Bench:
    """Run the command line in a process of its own, in an empty folder."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "featbench", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    """Run the command line in an empty folder, within this process: importing torch takes seconds."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(list(map(str, arguments)), int(stop.value.code or 0), out, err)

    return run


@pytest.fixture
def records(bench: Bench) -> Records:
    """Run `bench evaluate --json` and return its records."""

    def run(*arguments: object) -> list[dict[str, Any]]:
        result = bench("evaluate", *arguments, "--json", "--quiet")
        assert result.returncode == 0, result.stderr
        found: list[dict[str, Any]] = json.loads(result.stdout)
        return found

    return run


def save_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    """Write one photograph-like image: smooth colours that depend on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of 3 classes: 5, 4 and 3 images of train, 3, 2 and 2 of val, of different sizes."""
    root = tmp_path / "photographs"
    seed = 0
    for split, counts in (("train", (5, 4, 3)), ("val", (3, 2, 2))):
        for name, count in zip(("cat", "dog's", "émeu bleu"), counts, strict=True):
            for index in range(count):
                save_image(root / split / name / f"{index:03d}.jpg", seed=seed, size=(40 + seed % 7, 30 + seed % 5))
                seed += 1
    return root


def make_features(
    path: Path,
    features: Mapping[str, Mapping[str, Array]],
    labels: Mapping[str, Array],
    *,
    class_names: Mapping[str, Sequence[str]] | None = None,
    rows_per_chunk: int = 8,
    dtype: str = "float32",
    compression: str = "none",
    valid: Mapping[str, Bools] | None = None,
    made_from: dict[str, Any] | None = None,
) -> FeatureSet:
    """Make a complete feature set of arrays: {split: {layer: (N, ...)}} and {split: (N,)}."""
    names = class_names or {
        split: tuple(f"class {i}" for i in range(int(each.max()) + 1)) for split, each in labels.items()
    }
    rows = {
        split: SplitRows(
            labels=np.asarray(each, np.int64),
            paths=[f"{split}/{i}.jpg" for i in range(len(each))],
            class_names=tuple(names[split]),
        )
        for split, each in labels.items()
    }
    manifest = Manifest(
        made_from=made_from or {"model": {"trunk": "fake"}},
        dtype=dtype,
        compression=compression,
        rows_per_chunk=rows_per_chunk,
        splits={split: each.info() for split, each in rows.items()},
        notes={"weights": "fake"},
    )
    made = open_or_create(path, manifest, rows)
    make_ready(
        made,
        rows,
        {name: LayerInfo(tap=name, pooling=None, shape=values.shape[1:]) for name, values in features["train"].items()},
    )
    write_pending(made, features, valid=valid)
    return FeatureSet.open(path)


def write_pending(
    features: FeatureSet,
    values: Mapping[str, Mapping[str, Array]],
    *,
    valid: Mapping[str, Bools] | None = None,
    limit: int | None = None,
) -> None:
    """Write the chunks that are missing, at most `limit` of them."""
    writer = ChunkWriter(features)
    for work in features.pending(list(values["train"]))[:limit]:
        rows = features.grid(work.split).rows(work.chunk)
        flags = np.ones(len(rows), np.bool_) if valid is None else valid[work.split][rows.start : rows.stop]
        writer.write(work, {name: array[rows.start : rows.stop] for name, array in values[work.split].items()}, flags)


@pytest.fixture
def arrays() -> Arrays:
    """Random features of two layers and labels: 50 rows of train, 21 of val."""
    random = np.random.default_rng(7)
    sizes = {"train": 50, "val": 21}
    features = {
        split: {
            "res4": random.standard_normal((n, 4, 2, 2)).astype(np.float32),
            "res5": random.standard_normal((n, 6)).astype(np.float32),
        }
        for split, n in sizes.items()
    }
    labels = {split: random.integers(0, 3, n) for split, n in sizes.items()}
    return features, labels


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two GPUs that are none: their indexes lie on the CPU; the settings of each that is made are noted."""
    made: list[Any] = []

    class Index:
        def __init__(self, resources: object, dim: int, metric: int, config: Any) -> None:
            self.index = faiss.IndexFlat(dim, metric)
            self.stored_as = np.float16 if config.useFloat16 else np.float32
            self.reset = self.index.reset
            made.append(config)

        def add(self, features: Floats) -> None:
            self.index.add(features.astype(self.stored_as).astype(np.float32))

        def search(self, queries: Floats, k: int) -> Any:
            return self.index.search(queries.astype(self.stored_as).astype(np.float32), k)

    class Resources:
        def setTempMemory(self, size: int) -> None:
            assert size <= 2**30

        def setPinnedMemory(self, size: int) -> None:
            assert size <= 2**30

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlat", Index, raising=False)
    return made
