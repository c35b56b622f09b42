"""What every layer that stage two reads must do, wherever its rows are: tests to subclass for each kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featbench.evaluate.features.selection import Layer, Selection
from featbench.evaluate.neighbours.planning import SearchPlan
from featbench.evaluate.neighbours.search import search
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store import Block
from featbench.store.typing import Floats

NUM_ROWS, DIM = 70, 6


def same(block: Block) -> Block:
    return block


class LayerTests:
    """Tests of `featbench.evaluate.features.selection.Layer`; a subclass makes a layer of rows, and says what rows it
    then has.
    """

    def make(self, tmp_path: Path, rows: Floats, *, rows_per_chunk: int) -> Layer:
        """Make the layer under test of rows (N, D)."""
        raise NotImplementedError

    def expected(self, rows: Floats) -> Floats:
        """Rows that the layer must give."""
        return rows

    @pytest.fixture
    def rows(self) -> Floats:
        return np.random.default_rng(3).standard_normal((NUM_ROWS, DIM)).astype(np.float32)

    @pytest.fixture
    def layer(self, tmp_path: Path, rows: Floats) -> Layer:
        return self.make(tmp_path, rows, rows_per_chunk=16)

    def test_it_says_its_name_and_its_shape(self, layer: Layer, rows: Floats) -> None:
        assert (layer.num_rows, layer.dim) == self.expected(rows).shape
        assert isinstance(layer.key, str)
        assert layer.rows_per_chunk == 16

    @pytest.mark.parametrize("rows_per_block", [1, 16, 40, 1000])
    def test_blocks_are_all_rows_in_order_in_whole_chunks(
        self, layer: Layer, rows: Floats, rows_per_block: int
    ) -> None:
        blocks = [(block.start, block.features.copy()) for block in layer.map_blocks(same, rows_per_block)]
        assert np.array_equal(np.concatenate([features for _, features in blocks]), self.expected(rows))
        assert [start for start, _ in blocks] == list(np.cumsum([0, *(len(each) for _, each in blocks[:-1])]))
        assert all(start % 16 == 0 for start, _ in blocks)
        assert max(len(features) for _, features in blocks) <= max(16, rows_per_block)
        assert {features.dtype.name for _, features in blocks} == {"float32"}

    def test_consecutive_chunks_can_be_asked_for(self, layer: Layer, rows: Floats) -> None:
        blocks = [(block.start, block.features.copy()) for block in layer.map_blocks(same, 16, range(1, 3))]
        assert [start for start, _ in blocks] == [16, 32]
        assert np.array_equal(np.concatenate([features for _, features in blocks]), self.expected(rows)[16:48])

    def test_a_block_stays_as_it_is_until_the_next_one_is_asked_for(self, layer: Layer, rows: Floats) -> None:
        for block in layer.map_blocks(same, 16):
            assert np.array_equal(block.features, self.expected(rows)[block.start : block.start + len(block.features)])

    def test_what_prepare_makes_is_what_comes_and_it_may_change_the_rows(self, layer: Layer, rows: Floats) -> None:
        def prepare(block: Block) -> int:
            block.features[:] = 0
            return block.start

        assert list(layer.map_blocks(prepare, 16)) == [0, 16, 32, 48, 64]
        again = np.concatenate([block.features.copy() for block in layer.map_blocks(same, 16)])
        assert np.array_equal(again, self.expected(rows)), "the rows themselves are not changed"

    @pytest.mark.parametrize("rows_per_block", [1, 40, 1000])
    def test_every_row_is_handed_out_once_before_prepare_and_may_be_changed(
        self, layer: Layer, rows: Floats, rows_per_block: int
    ) -> None:
        seen: dict[int, Floats] = {}

        def on_rows(start: int, features: Floats) -> None:
            assert start not in seen
            seen[start] = features.copy()
            features[:] += 1

        def prepare(block: Block) -> Floats:
            assert any(block.start <= start < block.start + len(block.features) for start in seen)
            return block.features.copy()

        blocks = list(layer.map_blocks(prepare, rows_per_block, range(1, 5), on_rows))
        assert np.array_equal(np.concatenate(blocks), self.expected(rows)[16:] + 1)
        pieces = [seen[start] for start in sorted(seen)]
        assert np.array_equal(np.concatenate(pieces), self.expected(rows)[16:])
        assert sorted(seen) == [16, *(16 + np.cumsum([len(piece) for piece in pieces[:-1]])).tolist()]

    def test_an_error_of_prepare_comes_through(self, layer: Layer) -> None:
        def prepare(block: Block) -> None:
            raise RuntimeError("of prepare")

        with pytest.raises(RuntimeError, match="of prepare"):
            list(layer.map_blocks(prepare, 16))

    def test_peeking_gives_the_rows_of_a_chunk_to_the_bit(self, layer: Layer, rows: Floats) -> None:
        list(layer.map_blocks(same, 16))
        for chunk in range(5):
            assert np.array_equal(layer.peek(chunk), self.expected(rows)[16 * chunk : 16 * chunk + 16])

    @pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
    def test_a_search_finds_the_neighbours_of_a_loop_in_float64(
        self, layer: Layer, rows: Floats, similarity: Similarity
    ) -> None:
        database, queries = (
            Selection(layer=layer, rows=np.arange(0, NUM_ROWS, 2)),
            Selection(layer=layer, rows=np.arange(5)),
        )
        found = search(
            database, queries, k=7, similarity=similarity, plan=SearchPlan(rows_per_block=20, queries_at_once=3)
        )
        exact = self.expected(rows).astype(np.float64)
        for query, listed in enumerate(found.rows_QK):
            near = exact[::2] @ exact[query] / np.linalg.norm(exact[::2], axis=1) / np.linalg.norm(exact[query])
            if similarity == "euclidean":
                near = -np.linalg.norm(exact[::2] - exact[query], axis=1)
            assert listed.tolist() == (2 * np.argsort(-near, kind="stable")[:7]).tolist()
