"""Ranks that search together find what one finds, whoever comes, goes or dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.knn.classification import evaluate_knn
from featbench.evaluate.neighbours import cached_search
from featbench.evaluate.neighbours.approximate import search_approximately
from featbench.evaluate.neighbours.planning import Resources
from featbench.evaluate.neighbours.search import search
from featbench.store import FeatureSet, load_cached
from featbench.store.typing import Doubles, Ints
from tests.conftest import ROOT, make_features
from tests.forking import CONTEXT
from tests.reliability.ranks import wait_for


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


class RankOf:
    """A process that searches a feature set with others; it says what it does in a file."""

    def __init__(self, features: FeatureSet, shards: int, delay: float, index: str | None = None) -> None:
        self.log = features.path.with_name(f"{uuid.uuid4().hex}.log")
        self.process = CONTEXT.Process(target=_search, args=(features.path, shards, delay, index, self.log))
        self.process.start()

    @property
    def said(self) -> list[str]:
        """What it has done so far, and at last the accuracy."""
        return self.log.read_text().split() if self.log.exists() else []

    def finish(self) -> list[str]:
        """Wait for its end; returns what it has said."""
        self.process.join(60)
        assert self.process.exitcode == 0
        return self.said


def _search(path: Path, shards: int, delay: float, index: str | None, log: Path) -> None:
    """Search slowly, in a process of its own."""

    def slowly(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            print(what, file=out, flush=True)
            time.sleep(delay)
            return function(*arguments, **settings)

        return run

    with log.open("w") as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_search, "search", slowly("searching", search))
        patch.setattr(cached_search, "search_approximately", slowly("indexing", search_approximately))
        resources = Resources(num_shards=shards)
        print(evaluate_knn(FeatureSet.open(path), ["x"], k=[9], index=index, resources=resources)[0]["top1"], file=out)


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
    ranks = [RankOf(together, 3, 0.3) for _ in range(3)]
    said = [rank.finish() for rank in ranks]
    assert len({words[-1] for words in said}) == 1, "all report the same accuracy"
    assert sum(words.count("searching") for words in said) == 3, "each shard was searched once"
    assert_same(kept(alone), kept(together))


def test_an_index_is_made_by_one_rank(two: tuple[FeatureSet, FeatureSet]) -> None:
    _, together = two
    ranks = [RankOf(together, 3, 0.3, "IVF2,Flat") for _ in range(3)]
    said = [rank.finish() for rank in ranks]
    assert len({words[-1] for words in said}) == 1
    assert sum(words.count("indexing") for words in said) == 1
    kept(together)


def test_the_shard_of_a_rank_that_died_is_taken_by_another(two: tuple[FeatureSet, FeatureSet]) -> None:
    alone, together = two
    doomed = RankOf(together, 2, 60)
    wait_for(lambda: doomed.said == ["searching"], "the first rank does not search")
    other = RankOf(together, 2, 0)
    wait_for(lambda: other.said == ["searching"], "the second rank does not search")
    time.sleep(0.5)
    assert other.process.is_alive(), "it waits for the shard that is claimed"
    doomed.process.kill()
    doomed.process.join()
    assert other.finish()[:2] == ["searching", "searching"]
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
