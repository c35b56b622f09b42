"""Stored, derived and in-memory layers all do what `LayerTests` asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featbench.evaluate.features.derived import DerivedLayer, Projection
from featbench.evaluate.features.memory_layer import MemoryLayer
from featbench.evaluate.features.selection import Layer
from featbench.store import LayerReader
from featbench.store.typing import Floats
from tests.conftest import make_features
from tests.evaluate.layers import LayerTests


def stored(tmp_path: Path, rows: Floats, rows_per_chunk: int, **form: str) -> LayerReader:
    labels = {"train": np.zeros(len(rows), int), "val": np.zeros(1, int)}
    made = make_features(
        tmp_path / "made", {"train": {"x": rows}, "val": {"x": rows[:1]}}, labels, rows_per_chunk=rows_per_chunk, **form
    )
    return made.layer("train", "x")


class TestStoredLayer(LayerTests):
    def make(self, tmp_path: Path, rows: Floats, *, rows_per_chunk: int) -> Layer:
        return stored(tmp_path, rows, rows_per_chunk)


class TestStoredLayerOfFewerDigits(LayerTests):
    """float16 in compressed chunks takes another way through the reader."""

    def make(self, tmp_path: Path, rows: Floats, *, rows_per_chunk: int) -> Layer:
        return stored(tmp_path, rows, rows_per_chunk, dtype="float16", compression="zstd")

    def expected(self, rows: Floats) -> Floats:
        return rows.astype(np.float16).astype(np.float32)


class TestDerivedLayer(LayerTests):
    def make(self, tmp_path: Path, rows: Floats, *, rows_per_chunk: int) -> Layer:
        projection = Projection(mean_D=np.full(rows.shape[1], 0.5))
        return DerivedLayer([MemoryLayer(rows, key="train/x", rows_per_chunk=rows_per_chunk)], projection)

    def expected(self, rows: Floats) -> Floats:
        return (rows - np.full(rows.shape[1], 0.5)).astype(np.float32)


class TestMemoryLayer(LayerTests):
    def make(self, tmp_path: Path, rows: Floats, *, rows_per_chunk: int) -> Layer:
        return MemoryLayer(rows, key="train/x", rows_per_chunk=rows_per_chunk)

    def test_the_array_is_not_copied_as_a_whole(self, rows: Floats) -> None:
        assert np.shares_memory(MemoryLayer(rows, key="x").peek(0), rows)

    def test_what_is_peeked_at_is_read_only(self, rows: Floats) -> None:
        with pytest.raises(ValueError, match="read-only"):
            MemoryLayer(rows, key="x").peek(0)[0, 0] = 1
        rows[0, 0] = 1  # the caller's own array is not
