"""Ranks that a test can kill: real processes that run the real extraction, forked from one that has imported it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from featbench.pipelines.config.pipeline import Pipeline, make_pipeline
from featbench.pipelines.extraction.signals import Interrupted
from featbench.pipelines.ranks import Rank
from featbench.store import FeatureSet
from tests.forking import CONTEXT

NET = Path(__file__).with_name("net.py")


def small_pipeline(store: Path, name: str) -> Pipeline:
    """800 digits in 50 chunks of val and 50 of train, a few seconds' work."""
    return make_pipeline(
        {
            "name": name,
            "store": str(store),
            "data": {"source": "digits", "limit": 400},
            "transform": {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
            "model": {"trunk": f"{NET}:Net"},
            "weights": {"random_seed": 1},
            "layers": ["first", "second:AdaptiveAvgPool2d(2)"],
            "extract": {"batch_size": 8, "threads": 1, "workers": 0},
            "storage": {"rows_per_chunk": 8},
        },
        where="test",
    )


def start(pipeline: Pipeline, run: str, world_size: int) -> list[BaseProcess]:
    """Start the ranks of a run; returns their processes."""
    processes: list[BaseProcess] = [
        CONTEXT.Process(target=_work, args=(pipeline, Rank(run=run, rank=rank, world_size=world_size)))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[BaseProcess]) -> None:
    """Wait for ranks that must succeed."""
    for process in processes:
        process.join(300)
        assert process.exitcode == 0, f"a rank ended with {process.exitcode}"


def chunks_of(path: Path) -> dict[str, bytes]:
    """The bytes of every chunk; what a killed rank left half-written is none."""
    files = (file for file in path.rglob("c/**/*") if file.is_file() and file.suffix != ".partial")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def keys_journalled(path: Path) -> list[str]:
    """The key of every record of every journal, as often as it is there."""
    made = FeatureSet.open(path)
    return [
        line.split(b'"key":"')[1].split(b'"')[0].decode()
        for journal in made.journals.glob("*.jsonl")
        for line in journal.read_bytes().splitlines()
    ]


def committed(path: Path) -> int:
    """How many objects the journals have; none while there is no feature set."""
    return len(FeatureSet.open(path).records) if path.exists() else 0


def wait_for(condition: Callable[[], object], what: str, seconds: int = 90) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _work(pipeline: Pipeline, rank: Rank) -> None:
    from featbench.pipelines.extraction.job import prepare
    from featbench.pipelines.extraction.rank import run_rank

    logging.getLogger().setLevel(logging.ERROR)
    os.environ.pop("TORCHELASTIC_RUN_ID", None)
    try:
        run_rank(rank, prepare(pipeline), quiet=True)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
