"""Records of journals in arrays are the same as in a dictionary, whatever their keys and order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from featbench.store import FeatureSet, journal
from featbench.store.folder import Folder
from featbench.store.journal import Journal, JournalReader
from featbench.store.manifest import digest_of
from featbench.store.records import Record, Records
from tests.conftest import Arrays, make_features

ODD = [
    Record(key="train/x/c/007/0", size=9, crc32c=1),
    Record(key="train/x/c/99999999/0", size=9, crc32c=2),
    Record(key="train/x/c/3/1", size=9, crc32c=3),
    Record(key="train/x/c/4/0", size=0, crc32c=4),
    Record(key="train/x/c/5/0", size=2**32, crc32c=5),
    Record(key="train/x/c/6/0", size=9, crc32c=2**32),
    Record(key="train/x/c/6/0", size=-9, crc32c=-1),
    Record(key="train/c/8", size=9, crc32c=6),
    Record(key="zarr.json", size=9, crc32c=7),
]


def drawn(count: int) -> list[Record]:
    """Records of several arrays in any order, with some chunks more than once."""
    random = np.random.default_rng(0)
    arrays = [("train/x", "/0"), ("train/x.y", "/0/0/0"), ("val/x", "/0"), ("train/valid", "")]
    return [
        Record(
            key=f"{arrays[which][0]}/c/{chunk}{arrays[which][1]}", size=int(random.integers(1, 2**32)),
            crc32c=int(random.integers(2**32)),
        )
        for which, chunk in random.integers([0, 0], [4, 300], (count, 2)).tolist()
    ]  # fmt: skip


def as_dictionary(records: list[Record]) -> dict[str, Record]:
    return {record.key: record for record in records}


@pytest.mark.parametrize("one_by_one", [True, False])
def test_they_are_a_mapping_by_key_of_which_the_last_record_counts(tmp_path: Path, one_by_one: bool) -> None:
    given = drawn(500) + ODD + drawn(50)[::-1]
    expected = as_dictionary(given)
    if one_by_one:
        found = Records()
        for record in given:
            found.add(record)
    else:
        (tmp_path / "journals").mkdir()
        Journal(Folder(tmp_path), "journals/rank-00000.jsonl").append(given)
        found = JournalReader(tmp_path / "journals").update()
    assert dict(found) == expected
    assert len(found) == len(expected)
    assert found.num_bytes == sum(record.size for record in expected.values())
    for key, record in expected.items():
        assert key in found
        assert found[key] == record
    for missing in ("train/x/c/301/0", "train/x/c/1", "train/x", ""):
        assert missing not in found
    with pytest.raises(KeyError):
        found["train/x/c/301/0"]
    assert found.has_array(("train/x/", "nothing/"))
    assert not found.has_array(("train/x.z/", "train/vali/"))


def test_a_record_that_fits_no_table_replaces_one_that_did_and_the_other_way_round() -> None:
    small, large = (Record(key="train/x/c/5/0", size=size, crc32c=5) for size in (9, 2**32))
    for order in ([small, large], [large, small]):
        found = Records()
        for record in order:
            found.add(record)
        assert dict(found) == {small.key: order[-1]}


@pytest.mark.parametrize("batch", [1, 200, 10**6])
def test_many_journals_are_read_in_pieces_and_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(journal, "BATCH_BYTES", batch)
    (tmp_path / "journals").mkdir()
    given = drawn(200)
    for rank in range(40):
        Journal(Folder(tmp_path), f"journals/rank-{rank:05d}.jsonl").append(given[5 * rank : 5 * rank + 5])
    reader = JournalReader(tmp_path / "journals")
    assert dict(reader.update()) == as_dictionary(given)
    Journal(Folder(tmp_path), "journals/rank-00017.jsonl").append(ODD)
    assert dict(reader.update(trust_sizes=True)) == as_dictionary(given + ODD)


def test_a_journal_of_the_same_size_is_not_opened_if_sizes_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "journals").mkdir()
    Journal(Folder(tmp_path), "journals/rank-00000.jsonl").append(drawn(3))
    reader = JournalReader(tmp_path / "journals")
    reader.update()
    monkeypatch.setattr(journal, "open_regular", lambda path: pytest.fail("opened"))
    reader.update(trust_sizes=True)


def test_a_forged_journal_of_large_numbers_takes_no_memory_for_them(tmp_path: Path) -> None:
    """Pages that are never written to are not there: 300 arrays of 2^24 chunks would be 38 GiB."""
    found = Records()
    for number in range(300):
        found.add(Record(key=f"train/x{number}/c/{2**24 - 1}/0", size=9, crc32c=number))
    assert len(found._tables) == 300
    assert found["train/x7/c/16777215/0"].crc32c == 7


def test_the_digest_of_a_layer_is_that_of_all_its_records_as_json(tmp_path: Path, arrays: Arrays) -> None:
    """Neighbours and clusters kept by earlier versions are found by it."""
    features, labels = arrays
    made = make_features(tmp_path / "f", features, labels, rows_per_chunk=1)
    for split in ("train", "val"):
        for layer in ("res4", "res5"):
            wanted = (f"{split}/{layer}/", f"{split}/labels/", f"{split}/valid/")
            lines = [
                json.loads(line[9:])
                for path in made.journals.glob("rank-*.jsonl")
                for line in path.read_bytes().splitlines()
            ]
            expected = {line["key"]: [line["size"], line["crc32c"]] for line in lines if line["key"].startswith(wanted)}
            assert len(expected) > 20
            assert FeatureSet.open(made.path).digest(split, layer) == digest_of(expected)
