"""Whatever is asked of stage two, it answers, or says in one message why it can't."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from featbench.evaluate.config import EvaluateConfig
from featbench.pipelines.evaluation.run import evaluate
from featbench.pipelines.terminal.progress import Progress
from featbench.store import BenchError, FeatureSet
from tests.conftest import make_features

NUMBERS = (1, 2, 3, 0, -1, -(10**20), 7, 20, 21, 10**6, 2**31 - 1, 2**31, 2**63, 10**20, 0.5, 1e-320, 1e308, math.nan)
WORDS = ("", "classes", "10%", "0%", "1e9%", "100%", "\0", "é", "9" * 400, "x.yaml")
FACTORIES: tuple[str, ...] = (
    "Flat",
    "IVF2,Flat",
    "IVF99999999,Flat",
    "HNSW4",
    "HNSW999999",
    "PQ2x2",
    "PQ2x30",
    "SQ8",
    "LSH",
    "PCA2,Flat",
)
FACTORIES += (
    "PCA9,Flat",
    "IDMap,Flat",
    "NSG4",
    "IVF2_HNSW4,Flat",
    "RQ2x2",
    "SQ8,RFlat",
    "Pad8,Flat",
    "ITQ2,LSH",
    "BFlat",
)
PARAMETERS = (
    "",
    ":nprobe=1",
    ":nprobe=0",
    ":efSearch=10",
    ":efSearch=1e30",
    ":k_factor_rf=3",
    ":nprobe=-1",
    ":,",
    ":a=b",
)
TREE = {
    "knn": {
        "protocol": [("dino",), ("vissl",), ("solo_euclidean", "majority"), ("nobody",)],
        "k": [None, (1,), (3, 20), *((each,) for each in NUMBERS)],
        "temperature": [None, (0.07,), *((each,) for each in NUMBERS)],
        "leave_one_out": [False, True],
        "retrieval": [False, True],
        "per_class": [False, True],
        "duplicates": [None, None, 1, 0.9, *NUMBERS],
        "shots": [(), (1,), ("50%",), *((each,) for each in (*NUMBERS, *WORDS))],
        "tries": [1, 2, *NUMBERS],
        "seed": [0, *NUMBERS],
    },
    "kmeans": {
        "clusters": [(), (2,), ("classes",), *((each,) for each in (*NUMBERS, *WORDS))],
        "normalize": [False, True],
        "iterations": [5, *NUMBERS],
        "restarts": [1, *NUMBERS],
        "seed": [0, *NUMBERS],
    },
    "derive": {
        "concatenate": [False, True],
        "center": [False, True],
        "pca": [None, None, 1, 2, *NUMBERS],
        "whiten": [False, False, True],
    },
}


def settings(random: np.random.Generator) -> dict[str, Any]:
    """A configuration of which most is usual and some is not."""

    def pick(values: list[Any] | tuple[str, ...], usual: int = 2) -> Any:
        """One of the first, mostly."""
        return values[int(random.integers(usual if random.random() < 0.96 else len(values)))]

    made = {part: {name: pick(values) for name, values in each.items()} for part, each in TREE.items()}
    if random.random() < 0.4:
        made["index"] = pick(FACTORIES, len(FACTORIES)) + pick(PARAMETERS, len(PARAMETERS))
    if random.random() < 0.2:
        made["memory"] = pick(("1GiB", "200MiB", "1", "0", "9" * 400 + "GiB", "x"), 6)
    return made


def sets(folder: Path) -> Iterator[FeatureSet]:
    """Feature sets of 20 rows: ordinary ones, huge, tiny, equal, of zeros, and without labels."""
    values = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    labels = np.arange(20) % 3
    kinds = {"usual": values, "huge": values * np.float32(1e37), "tiny": values * np.float32(1e-42),
             "equal": values * 0 + 1, "zeros": values * 0, "unlabelled": values}  # fmt: skip
    for name, each in kinds.items():
        labels_of = dict.fromkeys(("train", "val"), labels * 0 - 1 if name == "unlabelled" else labels)
        names = dict.fromkeys(labels_of, () if name == "unlabelled" else ("a", "b", "c"))
        features = {split: {"x": each, "y": each[:, ::-1].copy()} for split in labels_of}
        yield make_features(folder / name, features, labels_of, class_names=names, rows_per_chunk=20)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("seed", range(2))
def test_every_question_is_answered_or_refused_in_one_message(tmp_path: Path, seed: int) -> None:
    made = list(sets(tmp_path))
    random = np.random.default_rng(seed)
    answered = 0
    for _ in range(20):
        asked = settings(random)
        try:
            config = EvaluateConfig(**asked)
        except ValidationError:
            continue
        features = made[int(random.integers(len(made)))]
        try:
            report = evaluate(features.path, config, progress=Progress(quiet=True))
        except BenchError:
            continue
        except Exception as error:
            pytest.fail(f"{features.name}: {asked}: {type(error).__name__}: {error}")
        json.dumps(report.records, allow_nan=False)
        answered += 1
    assert answered > 1
