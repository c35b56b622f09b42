"""Journals: lines that carry their checksum, durable when they are appended, numbered when they are damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from featbench.store import DamagedError
from featbench.store.folder import Folder
from featbench.store.journal import Journal, JournalReader, damaged_lines, journalled, rewrite_journals
from featbench.store.records import Record

RECORDS = [Record(key=f"train/x/c/{i}/0", size=100 + i, crc32c=2**32 - 1 - i) for i in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "journals").mkdir()
    return tmp_path / "journals/rank-00003.jsonl"


def opened(path: Path) -> Journal:
    """Open the journal of a feature set."""
    return Journal(Folder(path.parent.parent), f"journals/{path.name}")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes of the files and folders that reach the disk, in order."""
    inodes, fsync = [], os.fsync

    def noted(descriptor: int) -> None:
        inodes.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return inodes


def flip(path: Path, line: int) -> None:
    """Change one bit of one line, of which the first is 1."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1][:20] + bytes([lines[line - 1][20] ^ 1]) + lines[line - 1][21:]
    path.write_bytes(b"".join(lines))


def crc32c(content: bytes) -> int:
    """Castagnoli's polynomial, bit by bit."""
    register = 2**32 - 1
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 2**32 - 1


def test_a_line_is_the_checksum_of_its_text_and_the_text(path: Path) -> None:
    assert crc32c(b"123456789") == 0xE3069283, "the check value of CRC-32C"
    opened(path).append(RECORDS[:2])
    for line, record in zip(path.read_bytes().splitlines(), RECORDS, strict=False):
        assert line[:9] == b"%08x " % crc32c(line[9:])
        text = json.loads(line[9:])
        assert (text["key"], text["size"], text["crc32c"]) == (record.key, record.size, record.crc32c)


def test_a_new_journals_name_is_on_disk_once_its_first_records_are(path: Path, synced: list[int]) -> None:
    journal = opened(path)
    journal.append(RECORDS[:1])
    assert synced == [each.stat().st_ino for each in (path.parent.parent, path, path.parent)]
    journal.append(RECORDS[1:2])
    assert synced[3:] == [path.stat().st_ino], "the name is there already"


def test_an_intact_journal_is_left_alone_when_it_is_opened(path: Path, synced: list[int]) -> None:
    opened(path).append(RECORDS)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    synced.clear()
    opened(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert not synced


@pytest.mark.parametrize("torn", [1, 2, 30])
def test_what_follows_the_last_line_feed_is_cut_off(path: Path, torn: int) -> None:
    opened(path).append(RECORDS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:torn])
    opened(path)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:torn])
    opened(path).append(RECORDS[:2])
    assert path.read_bytes() == whole


def test_a_record_counts_once_its_line_is_complete(path: Path) -> None:
    opened(path).append(RECORDS[:3])
    whole = path.read_bytes()
    first, second, _ = whole.splitlines(keepends=True)
    reader = JournalReader(path.parent)
    for content, number in (
        (b"", 0),
        (first[:-1], 0),
        (first, 1),
        (first + second[:1], 1),
        (whole[:-1], 2),
        (whole, 3),
    ):
        path.write_bytes(content)
        assert list(reader.update().values()) == RECORDS[:number]


@pytest.mark.parametrize("line", [1, 2, 5])
def test_a_damaged_line_is_refused_by_its_number(path: Path, line: int) -> None:
    opened(path).append(RECORDS[:5])
    flip(path, line)
    with pytest.raises(DamagedError, match=rf"rank-00003\.jsonl: line {line} is not what was written"):
        JournalReader(path.parent).update()
    assert damaged_lines(path.parent) == [f"rank-00003.jsonl line {line}"]


@pytest.mark.parametrize("line", [4, 6])
def test_lines_are_numbered_from_the_beginning_though_only_new_ones_are_read(path: Path, line: int) -> None:
    opened(path).append(RECORDS[:3])
    reader = JournalReader(path.parent)
    reader.update()
    opened(path).append(RECORDS[3:4])
    if line > 4:
        reader.update()
    opened(path).append(RECORDS[4:])
    flip(path, line)
    with pytest.raises(DamagedError, match=f"line {line} is not what was written"):
        reader.update()


def test_rewriting_removes_damaged_lines_and_rejected_records(path: Path) -> None:
    opened(path).append(RECORDS[:4])
    flip(path, 2)
    dropped = rewrite_journals(Folder(path.parent.parent), lambda record: record.key != RECORDS[3].key)
    assert dropped == ["rank-00003.jsonl line 2", RECORDS[3].key]
    assert list(JournalReader(path.parent).update().values()) == [RECORDS[0], RECORDS[2]]


def test_a_journal_from_which_nothing_is_removed_is_not_rewritten(path: Path) -> None:
    opened(path).append(RECORDS)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    assert rewrite_journals(Folder(path.parent.parent), lambda record: True) == []
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("name", ["size", "crc32c"])
@pytest.mark.parametrize("value", ["100", 1.0, True, None])
def test_a_record_of_other_types_is_damage_though_its_checksum_is_right(path: Path, name: str, value: Any) -> None:
    text = json.dumps({"key": "train/x/c/0/0", "size": 100, "crc32c": 7, name: value}).encode()
    path.write_bytes(b"%08x %b\n" % (crc32c(text), text))
    assert damaged_lines(path.parent) == ["rank-00003.jsonl line 1"]


def test_arrays_are_journalled_by_the_second_part_of_their_keys(path: Path) -> None:
    keys = ["train/x/c/0/0", "val/y/c/3", "val/x/c/1/0", "zarr.json"]
    opened(path).append([Record(key=key, size=1, crc32c=1) for key in keys])
    assert journalled(path.parent) == {"x", "y"}
