"""`featbench.diagnose` and `featbench.compare`: the numbers of the commands, on arrays and on stored features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

import featbench
from featbench.store.typing import Floats, Ints
from tests.conftest import Bench, make_features

WHERE = {"features", "layer", "tap", "pooling", "weights", "fingerprint", "other_features", "hubs", "deepest"}
"""Keys of records that say where features come from, or what rows are called."""

Split = tuple[dict[str, Floats], Ints]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Split]:
    """Two layers of three classes, in memory and as the feature set `mine`."""
    random = np.random.default_rng(2)
    centres = random.normal(size=(3, 8))
    found: dict[str, Split] = {}
    for split, count in (("train", 60), ("val", 30)):
        labels = np.arange(count) % 3
        rows = (centres[labels] + random.normal(size=(count, 8))).astype(np.float32)
        found[split] = {"a": rows, "b": rows[:, :5] ** 3}, labels
    found["val"][0]["a"][4] = found["train"][0]["a"][7]
    names = dict.fromkeys(found, ("0", "1", "2"))
    make_features(
        tmp_path / "features/mine", {s: each for s, (each, _) in found.items()},
        {s: labels for s, (_, labels) in found.items()}, class_names=names,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return found


def comparable(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key not in WHERE} for each in records]


def test_arrays_and_stored_features_give_the_records_of_the_command(data: dict[str, Split], bench: Bench) -> None:
    cameras = ["left" if row % 4 else "right" for row in range(29)] + [""]
    lines = [f"val/{row}.jpg,{camera}" for row, camera in enumerate(cameras)]
    Path("g.csv").write_text("\n".join(["path,camera", *lines]))
    command = bench(
        "diagnose", "mine", "--k", "3,5", "--group-by", "g.csv", "--suspects", "s.csv", "--share", "0.05", "--json"
    )
    assert command.returncode == 0, command.stderr
    expected = json.loads(command.stdout)
    settings: dict[str, Any] = {"k": (3, 5), "groups": {"camera": cameras}, "suspects": True, "share": 0.05}
    stored = featbench.diagnose(featbench.open("features/mine"), **settings)
    assert json.loads(json.dumps(stored.records)) == expected
    in_memory = featbench.diagnose(*data["train"], *data["val"], **settings)
    assert comparable(json.loads(json.dumps(in_memory.records))) == comparable(expected)
    assert [each.k for each in in_memory.calibration] == [3, 5, 3, 5]
    assert [each.hubness.num_antihubs for each in in_memory.hubness] == [
        each["num_antihubs"] for each in expected if each["task"] == "hubness"
    ]
    assert {(each.group, each.num_queries) for each in in_memory.groups} == {("left", 21), ("right", 8)}
    assert (len(in_memory.geometry), len(in_memory.suspects), len(in_memory.agreement)) == (2, 2, 1)
    (leak,) = (each for each in in_memory.suspects[0].suspects if each.kind == "leak")
    assert (leak.row, leak.other_row) == (4, 7)
    assert {each.without for each in in_memory.without} >= {"nothing", "all of them"}
    assert in_memory.depths is not None
    assert sum(in_memory.depths.num_queries) == 30
    assert len(in_memory.to_pandas()) == len(expected)
    assert repr(in_memory).startswith("Diagnosis of arrays in memory: calibration (4), hubness (4)")


def test_train_is_diagnosed_alone_and_without_labels(data: dict[str, Split]) -> None:
    found = featbench.diagnose(data["train"][0], leave_one_out=True, layers="a", k=3)
    assert not found.calibration
    assert not found.agreement
    assert found.depths is None
    assert found.hubness[0].hubness.num_antihubs >= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"duplicates": 2}, "duplicates must be a cosine"),
        ({"share": 0}, "share must be a fraction"),
        ({"k": 99}, "got 99"),
        ({"groups": {"camera": ["left"]}}, "one for each of the 30 rows of val"),
        ({"layers": "c"}, "no layer 'c'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data: dict[str, Split], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(featbench.BenchError, match=message):
        featbench.diagnose(*data["train"], *data["val"], **settings)


def test_two_results_are_compared_on_the_same_queries(data: dict[str, Split]) -> None:
    (train, train_labels), (val, val_labels) = data["train"], data["val"]
    one, other = (featbench.knn(train[layer], train_labels, val[layer], val_labels, k=3) for layer in "ab")
    found = featbench.compare(one, other)
    right = [np.asarray(each.predictions) == val_labels for each in (one, other)]
    lost, won = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (found.only_first, found.only_second) == (lost, won)
    assert found.value == pytest.approx(right[1].mean() - right[0].mean(), abs=1e-15)
    assert found.p_value == pytest.approx(binomtest(won, won + lost).pvalue, rel=1e-12)
    assert featbench.compare(one, one).p_value == 1
    with pytest.raises(featbench.BenchError, match="30 rows and 60"):
        featbench.compare(one, featbench.knn(train["a"], train_labels, leave_one_out=True, k=3))
    shifted = featbench.knn(train["a"], train_labels, val["a"], (val_labels + 1) % 3, k=3)
    with pytest.raises(featbench.BenchError, match="other labels"):
        featbench.compare(one, shifted)
    with pytest.raises(featbench.BenchError, match="no labels"):
        featbench.compare(one, featbench.knn(train["a"], None, val["a"], k=3))
