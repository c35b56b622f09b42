"""Ranks that search together find what one finds, whoever comes, goes or dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featbench.evaluate.knn.classification import evaluate_knn
from featbench.evaluate.neighbours.planning import Resources
from featbench.store import FeatureSet, load_cached
from featbench.store.typing import Doubles, Ints
from tests.conftest import ROOT, make_features

RANK = """
import sys, time
from pathlib import Path
from featbench.evaluate.neighbours import cached_search as neighbours
from featbench.evaluate.knn.classification import evaluate_knn
from featbench.evaluate.neighbours.planning import Resources
from featbench.store import FeatureSet
original = neighbours.search
def slow(*arguments, **settings):
    print("searching", flush=True)
    time.sleep(float(sys.argv[3]))
    return original(*arguments, **settings)
neighbours.search = slow
make = neighbours.search_approximately
def slowly(*arguments, **settings):
    print("indexing", flush=True)
    time.sleep(float(sys.argv[3]))
    return make(*arguments, **settings)
neighbours.search_approximately = slowly
features = FeatureSet.open(Path(sys.argv[1]))
print(evaluate_knn(features, ["x"], k=[9], index=sys.argv[4] or None,
                   resources=Resources(num_shards=int(sys.argv[2])))[0]["top1"])
"""


@pytest.fixture
def two(tmp_path: Path) -> tuple[FeatureSet, FeatureSet]:
    """The same features twice; the first has been searched by one process."""
    random = np.random.default_rng(0)
    features = {
        split: {"x": random.integers(-2, 3, (n, 3)).astype(np.float32)} for split, n in (("train", 200), ("val", 40))
    }
    labels = {split: np.arange(len(each["x"])) % 3 for split, each in features.items()}
    alone, together = (make_features(tmp_path / name, features, labels, rows_per_chunk=16) for name in "ab")
    evaluate_knn(alone, ["x"], k=[9])
    return alone, together


def kept(features: FeatureSet) -> dict[str, Doubles | Ints]:
    """The lists of the only search, and the names of everything else that lies there."""
    names = [path.name for path in (features.path / "neighbours").iterdir() if path.is_dir()]
    assert len(names) == 1, names
    return load_cached(features, "neighbours", names[0])[0]


def rank(features: FeatureSet, shards: int, delay: float, index: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RANK, str(features.path), str(shards), str(delay), index]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def assert_same(first: dict[str, Doubles | Ints], second: dict[str, Doubles | Ints]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name], second[name])


@pytest.mark.parametrize("shards", [2, 3, 50])
def test_one_process_may_search_all_shards(two: tuple[FeatureSet, FeatureSet], shards: int) -> None:
    alone, together = two
    evaluate_knn(together, ["x"], k=[9], resources=Resources(num_shards=shards))
    assert_same(kept(alone), kept(together))


def test_three_ranks_find_the_same_lists_to_the_bit(two: tuple[FeatureSet, FeatureSet]) -> None:
    alone, together = two
    ranks = [rank(together, 3, 0.3) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].split() for process in ranks]
    assert len({output[-1] for output in outputs}) == 1, "all report the same accuracy"
    assert sum(output.count("searching") for output in outputs) == 3, "each shard was searched once"
    assert_same(kept(alone), kept(together))


def test_an_index_is_made_by_one_rank(two: tuple[FeatureSet, FeatureSet]) -> None:
    _, together = two
    ranks = [rank(together, 3, 0.3, "IVF2,Flat") for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].split() for process in ranks]
    assert len({output[-1] for output in outputs}) == 1
    assert sum(output.count("indexing") for output in outputs) == 1
    kept(together)


def test_the_shard_of_a_rank_that_died_is_taken_by_another(two: tuple[FeatureSet, FeatureSet]) -> None:
    alone, together = two
    doomed = rank(together, 2, 60)
    assert doomed.stdout.readline() == "searching\n"
    other = rank(together, 2, 0)
    assert other.stdout.readline() == "searching\n"
    time.sleep(0.5)
    assert other.poll() is None, "it waits for the shard that is claimed"
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.wait()
    assert other.communicate(timeout=60)[0].split()[0] == "searching"
    assert_same(kept(alone), kept(together))


def test_the_ranks_of_a_launcher_share_the_search_and_the_first_reports(
    two: tuple[FeatureSet, FeatureSet], tmp_path: Path
) -> None:
    alone, together = two
    command = [sys.executable, "-m", "featbench", "evaluate", "--store", str(tmp_path), "--features", "b",
               "--k", "9", "--json", "--quiet"]  # fmt: skip
    launched = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **launched, "RANK": str(index), "LOCAL_RANK": str(index)},
        )
        for index in range(2)
    ]  # fmt: skip
    first, second = (process.communicate(timeout=60)[0] for process in ranks)
    assert [process.returncode for process in ranks] == [0, 0]
    assert second == "", "one rank speaks for all"
    assert json.loads(first)[0]["top1"] == evaluate_knn(alone, ["x"], k=[9])[0]["top1"]
    assert len(list((together.path / "results").glob("2*.json"))) == 1
    assert_same(kept(alone), kept(together))
