"""What happens to disks, at random: flipped bits, files cut short, files gone; in chunks, journals and metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featbench.store import FeatureSet, StoreError, verify
from featbench.store.typing import Floats, Ints
from featbench.store.verification import repair
from tests.conftest import Arrays, make_features


def content_of(path: Path) -> dict[str, bytes]:
    """The bytes that must come back: chunks and metadata. A journal may have its records in another order."""
    found = {}
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_file() and ("/c/" in name or name.endswith(".json")):
            found[name] = file.read_bytes()
    return found


@pytest.mark.parametrize("count", [9, pytest.param(300, marks=pytest.mark.slow)])
def test_random_damage_is_noticed_gives_no_wrong_number_and_is_repaired(
    tmp_path: Path, arrays: Arrays, count: int
) -> None:
    features, labels = arrays
    path = make_features(tmp_path / "f", features, labels).path
    before = content_of(path)
    random = np.random.default_rng(count)
    kinds = {"flip": 0, "cut": 0, "deletion": 0}
    for number in range(count):
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "lock")
        target = files[random.integers(len(files))]
        kind = damage(target, random)
        kinds[kind] += 1
        what = f"damage {number}: {kind} of {target.relative_to(path)}"
        assert list(verify(path)), f"{what} was not noticed"
        refuse_or_read_right(path, features, labels)
        repair(path)
        make_features(path, features, labels)
        assert not list(verify(path)), f"{what} was not repaired"
        assert content_of(path) == before, f"{what}: other bytes than before"
    assert min(kinds.values()) > 0


def damage(path: Path, random: np.random.Generator) -> str:
    """Flip one bit, cut the file short, or delete it."""
    content = bytearray(path.read_bytes())
    kind = ("flip", "cut", "deletion")[random.integers(3)]
    if kind == "flip":
        content[random.integers(len(content))] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: int(random.integers(len(content)))])
    else:
        path.unlink()
    return kind


def refuse_or_read_right(path: Path, features: dict[str, dict[str, Floats]], labels: dict[str, Ints]) -> None:
    try:
        made = FeatureSet.open(path)
    except StoreError:
        return
    for split, layers in features.items():
        for name, values in layers.items():
            try:
                assert np.array_equal(made.layer(split, name).read(), values.reshape(len(values), -1))
                assert np.array_equal(made.labels(split), labels[split])
            except StoreError:
                continue
