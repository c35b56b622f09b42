"""Layers are read back whatever the system returns at once, in little memory, and never beyond damage."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featbench.store.reader
from featbench.evaluate.features.selection import Selection
from featbench.store import DamagedError, FeatureSet
from featbench.store.typing import Floats
from tests.conftest import make_features

KINDS = [("float32", "none"), ("float16", "none"), ("float32", "zstd")]


def made_of(path: Path, values: Floats, *, rows_per_chunk: int, **settings: str) -> FeatureSet:
    features = {split: {"x": values} for split in ("train", "val")}
    labels = {split: np.zeros(len(values), int) for split in features}
    return make_features(path, features, labels, rows_per_chunk=rows_per_chunk, **settings)


@pytest.fixture
def values() -> Floats:
    return np.random.default_rng(0).standard_normal((29, 6)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "compression"), KINDS)
def test_peeking_returns_a_chunk_as_written(tmp_path: Path, values: Floats, dtype: str, compression: str) -> None:
    layer = made_of(tmp_path / "f", values, rows_per_chunk=8, dtype=dtype, compression=compression).layer("val", "x")
    expected = values.astype(dtype).astype(np.float32)
    for chunk in range(4):
        looked = layer.peek(chunk)
        assert looked.dtype == np.float32
        assert np.array_equal(looked, expected[chunk * 8 : chunk * 8 + 8])


@pytest.mark.parametrize(("dtype", "compression"), KINDS)
@pytest.mark.parametrize("change", [b"\0", None])
def test_peeking_refuses_a_chunk_of_another_size(
    tmp_path: Path, values: Floats, dtype: str, compression: str, change: bytes | None
) -> None:
    made = made_of(tmp_path / "f", values, rows_per_chunk=8, dtype=dtype, compression=compression)
    layer, path = made.layer("val", "x"), made.path / "val/x/c/1/0"
    content = path.read_bytes()
    path.write_bytes(content[:-4] if change is None else content + change)
    with pytest.raises(DamagedError, match=r"val/x, chunk 1: .*were written"):
        layer.peek(1)


@pytest.mark.parametrize("most", [1, 7, 100])
def test_reads_that_return_less_than_asked_are_continued(
    tmp_path: Path, values: Floats, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    layer = made_of(tmp_path / "f", values, rows_per_chunk=8).layer("val", "x")
    preadv = os.preadv
    # The last four bytes come at once: a file system does not tear so few apart.
    monkeypatch.setattr(
        os, "preadv", lambda file, into, at: preadv(file, into if len(into[0]) == 4 else [into[0][:most]], at)
    )
    assert np.array_equal(layer.read(), values)


@pytest.mark.parametrize("piece_bytes", [1, 50, 10**6])
def test_pieces_of_any_size_are_read_checked_and_handed_out(
    tmp_path: Path, values: Floats, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(featbench.store.reader, "PIECE_BYTES", piece_bytes)
    layer, seen = made_of(tmp_path / "f", values, rows_per_chunk=8).layer("val", "x"), {}

    def note(start: int, rows: Floats) -> None:
        seen.update({start + i: row for i, row in enumerate(rows.copy())})

    blocks = list(layer.map_blocks(lambda block: block.features.copy(), 16, on_rows=note))
    assert np.array_equal(np.concatenate(blocks), values)
    assert np.array_equal(np.stack([seen[row] for row in range(29)]), values)


def test_a_changed_byte_is_refused_in_whichever_piece_it_is(
    tmp_path: Path, values: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if what it turns the row into, once scaled, is not a number."""
    monkeypatch.setattr(featbench.store.reader, "PIECE_BYTES", 48)
    made = made_of(tmp_path / "f", values, rows_per_chunk=8)
    path = made.path / "val/x/c/1/0"
    content = path.read_bytes()
    for at in range(3, len(content) - 4, 24):
        path.write_bytes(content[:at] + bytes([0x7F, 0xC0])[:: 1 if at % 2 else -1] + content[at + 2 :])
        with pytest.raises(DamagedError, match=r"val/x, chunk 1: .*(checksum)"):
            for _ in Selection(layer=made.layer("val", "x"), rows=np.arange(29)).blocks(8, unit_length=True):
                pass


def test_a_file_that_ends_while_it_is_read_is_refused(
    tmp_path: Path, values: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, calls = made_of(tmp_path / "f", values, rows_per_chunk=8).layer("val", "x"), []

    def ended(file: int, into: list[memoryview], at: int) -> int:
        calls.append(at)
        assert len(calls) < 100, "asks for ever"
        return 0

    monkeypatch.setattr(os, "preadv", ended)
    with pytest.raises(DamagedError, match=r"val/x, chunk \d: .*cannot be read \(the file ends early\)"):
        layer.read()


def test_no_more_than_two_blocks_are_in_memory(tmp_path: Path) -> None:
    values = np.ones((4096, 256), np.float32)
    layer = made_of(tmp_path / "f", values, rows_per_chunk=512).layer("val", "x")
    block = 512 * 256 * 4
    tracemalloc.start()
    try:
        for _ in layer.blocks(512):
            assert tracemalloc.get_traced_memory()[0] < 2.5 * block
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows_per_block", [1, 8, 20, 29, 100])
def test_chunks_are_read_in_order_all_or_some(tmp_path: Path, values: Floats, rows_per_block: int) -> None:
    layer = made_of(tmp_path / "f", values, rows_per_chunk=8).layer("val", "x")
    for chunks in (range(0, 4), range(0, 1), range(1, 3), range(2, 4), range(3, 4)):
        blocks = list(layer.map_blocks(lambda block: (block.start, block.features.copy()), rows_per_block, chunks))
        assert blocks[0][0] == chunks.start * 8
        assert np.array_equal(np.concatenate([each for _, each in blocks]), values[chunks.start * 8 : chunks.stop * 8])


def test_every_failed_read_is_raised(tmp_path: Path, values: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are read ahead; one beyond the last would fail in a thread that nobody asks."""
    futures = []

    class Noted(ThreadPoolExecutor):
        def submit(self, *arguments: Callable[..., Any] | int, **settings: Any) -> Any:
            futures.append(super().submit(*arguments, **settings))
            return futures[-1]

    monkeypatch.setattr(featbench.store.reader, "ThreadPoolExecutor", Noted)
    layer = made_of(tmp_path / "f", values, rows_per_chunk=8).layer("val", "x")
    assert len([block.start for block in layer.blocks(8)]) == 4
    assert futures
    assert not [future.exception() for future in futures if future.exception()]
