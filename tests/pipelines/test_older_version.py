"""What version 0.1.0 wrote still opens, answers from its caches, and can be extended.

`tests/data/version_0.1.0.tar.xz` holds two feature sets that it made: `extracted` (64 images of each split of
the digits, `res2` and `res3` of an untrained ResNet-18, chunks of 32 rows) and `imported` (80 + 40 rows of 16 numbers),
each with kept neighbours, a kept clustering and a kept approximate search. `version_0.1.0.json` holds what it printed.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from featbench.store import FeatureSet, verify
from featbench.store.verification import repair
from tests.conftest import Bench, Records

DATA = Path(__file__).resolve().parent.parent / "data"
QUESTIONS = {
    "knn": ("--k", "1,5,10", "--clusters", "5"),
    "leave_one_out": ("--k", "1,5", "--protocol", "vissl", "--leave-one-out", "--retrieval", "--per-class"),
}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The feature sets of version 0.1.0, in the store that commands look into."""
    with tarfile.open(DATA / "version_0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "features"


RENAMED = {
    "num_second_look": "num_rechecked", "taken_for": "most_confused_with", "taken_for_rate": "confusion_rate",
}  # fmt: skip
"""Keys of records that have other names today."""


def agrees(ours: dict, theirs: dict) -> bool:
    """Whether a record says all that the older one did; numbers may differ in their last digits."""
    theirs = {RENAMED.get(key, key): value for key, value in theirs.items()}
    if theirs["task"] == "kmeans":  # clusters are found anew, by a better search
        return ours.keys() >= theirs.keys() and ours["objective"] <= theirs["objective"] * (1 + 1e-6)
    numbers = {key: value for key, value in theirs.items() if isinstance(value, float)}
    others = {key: value for key, value in theirs.items() if key not in numbers}
    return ours | others == ours and {key: ours[key] for key in numbers} == pytest.approx(numbers, rel=1e-7)


@pytest.mark.parametrize("name", ["extracted", "imported"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_sets_and_kept_lists_of_version_0_1_0_give_the_same_numbers(
    older: Path, records: Records, name: str, question: str
) -> None:
    answers = records("--features", name, *QUESTIONS[question])
    expected = json.loads((DATA / "version_0.1.0.json").read_text())[name][question]
    assert len(answers) == len(expected)
    assert all(map(agrees, answers, expected))
    assert all(record["neighbours_reused"] for record in answers if record["task"] == "knn")


@pytest.mark.parametrize("name", ["extracted", "imported"])
def test_sets_of_version_0_1_0_verify_clean(older: Path, bench: Bench, name: str) -> None:
    result = bench("verify", older / name)
    assert (result.returncode, result.stderr) == (0, "")
    assert "no faults" in result.stdout


def test_a_layer_can_be_added_to_a_set_of_version_0_1_0(older: Path, bench: Bench) -> None:
    before = {split: FeatureSet.open(older / "extracted").layer(split, "res3").read() for split in ("train", "val")}
    settings = ("data.limit=64", "storage.rows_per_chunk=32", "extract.batch_size=16", "--name", "extracted")
    result = bench("extract", "digits", *settings, "--layers", "res2,res3,res4", "--quiet")
    assert result.returncode == 0, result.stderr
    features = FeatureSet.open(older / "extracted")
    assert features.layer("val", "res4").read().shape == (64, 256)
    assert all((features.layer(split, "res3").read() == before[split]).all() for split in before)
    assert bench("verify", older / "extracted").returncode == 0


def test_metadata_of_version_0_1_0_is_put_back_as_it_was(older: Path) -> None:
    """Its arrays have no names of dimensions, and its results are a group."""
    path = older / "imported"
    files = {file: file.read_bytes() for file in path.rglob("zarr.json") if file.parent != path}
    assert path / "results/zarr.json" in files
    files = {
        file: text for file, text in files.items() if "neighbours/" not in str(file) and "clusters/" not in str(file)
    }
    for file in files:
        file.unlink()
    (path / "journals/metadata.json").unlink()
    repair(path)
    assert all(file.read_bytes() == text for file, text in files.items())
    assert not list(verify(path))
