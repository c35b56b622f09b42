"""Rows that take part come out in order, scaled and checked, whatever the pieces and blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featbench.evaluate.features import selection
from featbench.evaluate.features.selection import Selection
from tests.conftest import make_features


@pytest.mark.parametrize("rows_per_block", [8, 24, 1000])
@pytest.mark.parametrize("pieces", [64, 2**20])
@pytest.mark.parametrize("left_out", [[], [0], [3, 4, 5, 20, 49], list(range(8, 30))])
@pytest.mark.parametrize("unit_length", [False, True])
def test_rows_that_take_part_are_all_there_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows_per_block: int,
    pieces: int,
    left_out: list[int],
    unit_length: bool,
) -> None:
    monkeypatch.setattr(selection, "_PIECE_BYTES", pieces)
    values = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    valid = {"train": ~np.isin(np.arange(50), left_out), "val": np.ones(50, bool)}
    features = {split: {"x": values} for split in valid}
    made = make_features(tmp_path / "f", features, {split: np.zeros(50, int) for split in valid}, valid=valid)
    rows = np.flatnonzero(valid["train"])
    blocks = []
    for block in Selection(layer=made.layer("train", "x"), rows=rows).blocks(rows_per_block, unit_length=unit_length):
        blocks.append((block.rows, block.features.copy(), block.num_read, block.longest))
    assert np.array_equal(np.concatenate([block[0] for block in blocks]), rows)
    assert sum(block[2] for block in blocks) == 50
    lengths = np.linalg.norm(values[rows], axis=1)
    assert max(block[3] for block in blocks) == pytest.approx(lengths.max())
    expected = values[rows] / lengths[:, None] if unit_length else values[rows]
    assert np.allclose(np.concatenate([block[1] for block in blocks]), expected, rtol=1e-6)


def test_rows_too_short_for_float32_are_scaled_as_the_others_and_are_no_zeros(tmp_path: Path) -> None:
    """The square of 1e-30 is 0 in float32."""
    values = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    values[7] *= np.float32(1e-30)
    values[11] = 0
    features = {split: {"x": values} for split in ("train", "val")}
    made = make_features(tmp_path / "f", features, {split: np.zeros(20, int) for split in features})
    for rows in (np.arange(20), np.arange(8)):  # with a row of zeros, and without
        chosen = Selection(layer=made.layer("train", "x"), rows=rows)
        blocks = [
            (block.rows, block.features.copy(), block.zeros)
            for block in chosen.blocks(1000, unit_length=True, without_zeros=True)
        ]
        kept, scaled, zeros = (np.concatenate(each) for each in zip(*blocks, strict=True))
        assert np.array_equal(kept, rows[rows != 11])
        assert zeros.tolist() == [11][: int(11 in rows)]
        expected = values[kept] / np.linalg.norm(values[kept].astype(np.float64), axis=1, keepdims=True)
        assert np.allclose(scaled, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-45, 1e-41, 1e-38, 1e-30, 1e-20, 1e-13, 1e-12, 1.0, 1e18, 1e30, 1e38])
def test_rows_of_every_length_that_float32_can_have_are_scaled_to_length_1(size: float) -> None:
    """Whatever lies beside them: ordinary rows come out the same to the bit."""
    values = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    alone = values[1:].copy()
    values[0] = [size, -size, 0, size, 0, 0]
    expected = values / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    for each in (alone, values):
        selection.scale_to_unit_length(each, selection.lengths_of(each))
    assert np.allclose(values, expected, rtol=1e-6, atol=0)
    assert np.array_equal(values[1:], alone)


def test_lengths_do_not_overflow_where_float32_does() -> None:
    assert selection.lengths_of(np.full((1, 4), 3e38, np.float32)) == pytest.approx([6e38], rel=1e-6)
