"""A disk that fills up at a random chunk, under one to three ranks."""

from __future__ import annotations

import os
import random
import subprocess
import uuid
from pathlib import Path

import pytest

from featbench.store import FeatureSet, verify
from tests.reliability.ranks import chunks_of, finish, small_pipeline, start

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root"),
]


@pytest.mark.parametrize("seed", range(6))
def test_a_full_disk_loses_nothing_and_space_resumes_it_with_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, bytes], seed: int
) -> None:
    dice = random.Random(seed)
    disk = tmp_path / "disk"
    disk.mkdir()
    size = dice.randint(600_000, sum(map(len, undisturbed.values())))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    try:
        pipeline = small_pipeline(disk, "full")
        ranks = start(pipeline, uuid.uuid4().hex, dice.randint(1, 3))
        for rank in ranks:
            rank.join(120)
        assert any(rank.exitcode for rank in ranks), "the disk was large enough"
        assert not list(disk.rglob("*.partial"))
        before = len(FeatureSet.open(disk / "full").records) if (disk / "full").exists() else 0
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        finish(start(pipeline, uuid.uuid4().hex, dice.randint(1, 3)))
        assert not list(verify(disk / "full"))
        assert chunks_of(disk / "full") == undisturbed
        assert len(FeatureSet.open(disk / "full").records) > before
    finally:
        subprocess.run(["umount", disk], check=True)
