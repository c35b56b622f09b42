"""Any file of a feature set, changed in any way: never a traceback, never a wrong number, and a way back.

Files are flipped, cut, deleted, copied over others; JSON is changed with its syntax intact, and the lines of journals
with the checksum of the line. What a manifest says under a digest that is right is what it says, so of a set that
someone made up only this is asked: no traceback.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from featbench.evaluate.clustering.evaluation import evaluate_kmeans
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.knn.classification import evaluate_knn
from featbench.store import BenchError, FeatureSet, verify
from featbench.store.feature_set import feature_sets
from featbench.store.manifest import ATTRIBUTE, DIGEST, digest_of
from featbench.store.status import RankStatus, post, read_statuses
from featbench.store.typing import Floats, Ints, Json
from featbench.store.verification import repair
from tests.conftest import Arrays, make_features
from tests.reliability.disk import without_waiting

Features = dict[str, dict[str, Floats]]
Labels = dict[str, Ints]

NUMBERS = ("top1", "top5", "recall", "num_zero_rows", "objective", "nmi", "ari", "purity", "k", "layer", "split")


def made_with(features: Features, labels: Labels, path: Path) -> FeatureSet:
    made = make_features(path, features, labels)
    ask(made)
    made.save_result("2026", {"top1": 0.5})
    post(made.journals, RankStatus(run="r", rank=0, host="h", pid=1, state="done"))
    with made.lock():
        pass
    return made


def ask(made: FeatureSet) -> list[dict[str, Any]]:
    """Numbers of an exact search, an approximate one and a clustering, which are kept in the set."""
    records = evaluate_knn(made, ["res5"], k=[1, 3]) + evaluate_knn(made, ["res5"], k=[3], index="IVF4,Flat")
    records += evaluate_kmeans(made, ["res5"], clusters=[3], settings=KmeansSettings(restarts=2, iterations=5))
    return [{name: record[name] for name in NUMBERS if name in record} for record in records]


def change(path: Path, files: list[Path], dice: random.Random) -> str:
    """Change one file; returns in which way."""
    content = path.read_bytes()
    ways = ["flip", "cut", "delete", "copy of another", "a line twice", "zeros"]
    if path.suffix in (".json", ".jsonl") or path.name == "lock":
        ways += ["json"] * 6
    way = dice.choice(ways)
    if way == "flip" and content:
        changed = bytearray(content)
        changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
    elif way == "cut":
        path.write_bytes(content[: dice.randrange(len(content) + 1)])
    elif way == "delete":
        path.unlink()
    elif way == "copy of another":
        shutil.copy(dice.choice([file for file in files if file != path]), path)
    elif way == "a line twice":
        lines = content.splitlines(keepends=True) or [b""]
        path.write_bytes(content + dice.choice(lines))
    elif way == "json":
        path.write_bytes(with_json_changed(path, content, dice))
    else:
        path.write_bytes(bytes(len(content)))
    return way


def with_json_changed(path: Path, content: bytes, dice: random.Random) -> bytes:
    try:
        if path.suffix != ".jsonl":
            return json.dumps(edited(json.loads(content), dice), indent=2).encode()
        lines = content.splitlines()
        at = dice.randrange(len(lines))
        text = json.dumps(edited(json.loads(lines[at][9:]), dice), separators=(",", ":")).encode()
        lines[at] = f"{google_crc32c.value(text):08x} ".encode() + text
        return b"\n".join(lines) + b"\n"
    except ValueError:  # changed before
        return content[::-1]


STRANGE = [
    None,
    True,
    -1,
    0,
    1,
    7,
    0.94,
    2**70,
    float("nan"),
    "",
    "../../x",
    "a\x00b",
    "/etc/passwd",
    [],
    {},
    [[]],
    "é",
]


def edited(value: Json, dice: random.Random) -> Json:
    """Change one place of a JSON value: a digit, a key, a type; or leave something out, or add something."""
    if isinstance(value, dict) and value:
        key = dice.choice(sorted(value))
        return dice.choice(
            [
                {**value, key: edited(value[key], dice)},
                {**value, key: edited(value[key], dice)},
                {**value, key: edited(value[key], dice)},
                {name: each for name, each in value.items() if name != key},
                {(name + "x" if name == key else name): each for name, each in value.items()},
                {**value, "more": dice.choice(STRANGE)},
            ]
        )
    if isinstance(value, list) and value:
        at = dice.randrange(len(value))
        return dice.choice([[*value[:at], edited(value[at], dice), *value[at + 1 :]], value[:-1], [*value, value[-1]]])
    if isinstance(value, int | float) and not isinstance(value, bool) and dice.random() < 0.5:
        return value + dice.choice([1, -1, 0.25])
    if isinstance(value, str) and value and dice.random() < 0.5:
        at = dice.randrange(len(value))
        return value[:at] + dice.choice("09az/.") + value[at + 1 :]
    return dice.choice(STRANGE)


def use(
    path: Path, expected: list[dict[str, Any]], features: Features, labels: Labels, what: str
) -> collections.Counter[str]:
    """Do all that reads the set: a `BenchError` or what is right; anything else ends the test."""
    questions = {
        "ask": lambda: ask(FeatureSet.open(path)) == expected,
        "read": lambda: all(
            np.array_equal(FeatureSet.open(path).layer(split, layer).read(), values.reshape(len(values), -1))
            for split, layers in features.items()
            for layer, values in layers.items()
        ),
        "labels": lambda: all(np.array_equal(FeatureSet.open(path).labels(split), labels[split]) for split in labels),
        "paths": lambda: FeatureSet.open(path).paths("val")[3] == "val/3.jpg",
        "verify": lambda: list(verify(path)) is not None,
        "list": lambda: list(feature_sets(path.parent)) is not None,
        "statuses": lambda: read_statuses(path / "journals", "r") is not None,
        "lock": lambda: locked(FeatureSet.open(path)),
    }
    asked: collections.Counter[str] = collections.Counter()
    for name, question in questions.items():
        try:
            assert question(), f"{what}: {name} gave something else"
            asked["right"] += 1
        except BenchError:
            asked["refused"] += 1
    return asked


def locked(features: FeatureSet) -> bool:
    with features.lock():
        return True


@pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_no_change_of_a_file_gives_a_traceback_or_a_wrong_number(
    tmp_path: Path, arrays: Arrays, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    caplog.set_level(logging.CRITICAL)
    features, labels = arrays
    dice = random.Random(count)
    with without_waiting():
        intact = made_with(features, labels, tmp_path / "intact").path
        expected = ask(FeatureSet.open(intact))
        ways: collections.Counter[str] = collections.Counter()
        answers: collections.Counter[str] = collections.Counter()
        for number in range(count):
            path = tmp_path / "f"
            shutil.copytree(intact, path)
            files = sorted(file for file in path.rglob("*") if file.is_file())
            chosen = dice.choice([files, [file for file in files if "/c/" not in file.as_posix()]])
            target = dice.choice(chosen)
            way = change(target, files, dice)
            ways[way] += 1
            what = f"change {number}: {way} of {target.relative_to(path)}"
            answers += use(path, expected, features, labels, what)
            bring_back(path, expected, features, labels, what)
            shutil.rmtree(path)
    print(f"\n{count} changes, {dict(ways)}; answers: {dict(answers)}")
    assert answers["refused"] > 0


def bring_back(path: Path, expected: list[dict[str, Any]], features: Features, labels: Labels, what: str) -> None:
    """Repair and extract again, or replace where that is said to be the way: the numbers are the same again."""
    repair(path)
    make_features(path, features, labels)
    assert not list(verify(path)), what
    assert ask(FeatureSet.open(path)) == expected, what


@pytest.mark.parametrize("count", [10, pytest.param(120, marks=pytest.mark.slow)])
def test_no_set_that_someone_made_up_gives_a_traceback(
    tmp_path: Path, arrays: Arrays, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """With digests that are right, so that every value of manifest and copy is believed to be what was written."""
    caplog.set_level(logging.CRITICAL)
    features, labels = arrays
    dice = random.Random(count)
    answers: collections.Counter[str] = collections.Counter()
    with without_waiting():
        intact = made_with(features, labels, tmp_path / "intact").path
        for _ in range(count):
            path = tmp_path / "f"
            shutil.copytree(intact, path)
            make_up(path, dice)
            answers += use_made_up(path)
            shutil.rmtree(path)
    print(f"\n{count} sets, {dict(answers)}")
    assert min(answers["answered"], answers["refused"]) > 0


def make_up(path: Path, dice: random.Random) -> None:
    """Change the manifest, or the metadata of an array, and all digests of it."""
    document = json.loads((path / "zarr.json").read_bytes())
    content = document["attributes"][ATTRIBUTE]
    if dice.random() < 0.5:
        key = dice.choice(["splits", "layers", "metadata", "dtype", "rows_per_chunk", "compression"])
        content = content | {key: edited(content[key], dice)}
    else:
        key = dice.choice(sorted(content["metadata"]))
        file = path / key / "zarr.json"
        file.write_text(json.dumps(edited(json.loads(file.read_bytes()), dice)))
        content["metadata"][key] = hashlib.sha256(file.read_bytes()).hexdigest()
    document["attributes"] |= {ATTRIBUTE: content, DIGEST: digest_of(content)}
    (path / "zarr.json").write_text(json.dumps(document))


def use_made_up(path: Path) -> collections.Counter[str]:
    answers: collections.Counter[str] = collections.Counter()
    for question in (lambda: list(verify(path)), lambda: ask(FeatureSet.open(path)), lambda: repair(path)):
        try:
            question()
            answers["answered"] += 1
        except BenchError:
            answers["refused"] += 1
    return answers
