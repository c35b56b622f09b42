"""A shortlist loses no row that could be a neighbour, and its floor is true of every row that it lost."""

from __future__ import annotations

import numpy as np
import pytest

from featbench.evaluate.neighbours.error_bounds import ErrorBound
from featbench.evaluate.neighbours.shortlist import Shortlist, room_for
from featbench.store.typing import Doubles, Floats


def offered(scores_QN: Floats, *, k: int, errors_Q: Doubles, rows_at_once: int, relative: float = 0.0) -> Shortlist:
    """Offer all scores, some rows at a time; row n is called 10 n."""
    shortlist = Shortlist(len(scores_QN), k)
    shortlist.error = ErrorBound(absolute_Q=errors_Q, relative=relative)
    for at in range(0, scores_QN.shape[1], rows_at_once):
        piece = np.ascontiguousarray(scores_QN[:, at : at + rows_at_once])
        shortlist.offer(piece, 10 * np.arange(at, at + piece.shape[1]))
    shortlist.close()
    return shortlist


def made(kind: str, num_queries: int, num_rows: int) -> Floats:
    random = np.random.default_rng(3)
    scores = random.standard_normal((num_queries, num_rows)).astype(np.float32)
    if kind == "rising":  # every row is better than those before
        scores = np.sort(scores, axis=1)
    if kind == "falling":
        scores = -np.sort(-scores, axis=1)
    if kind == "ties":
        scores = random.integers(0, 4, scores.shape).astype(np.float32)
    if kind == "equal":
        scores[:] = 0.5
    if kind == "hostile":
        scores[0, ::3], scores[1, ::2], scores[2, 5:] = np.nan, np.inf, -np.inf
    return scores


@pytest.mark.parametrize("kind", ["random", "rising", "falling", "ties", "equal", "hostile"])
@pytest.mark.parametrize("error", [0.0, 0.05, np.inf])
@pytest.mark.parametrize("rows_at_once", [1, 100, 1024])
@pytest.mark.parametrize("k", [1, 20])
def test_what_is_lost_scored_no_more_than_the_floor(kind: str, error: float, rows_at_once: int, k: int) -> None:
    scores_QN = made(kind, 70, 2000)
    shortlist = offered(scores_QN, k=k, errors_Q=np.full(70, error), rows_at_once=rows_at_once)
    assert shortlist.rows_QC.shape[1] <= room_for(k)
    for scores, rows, found, floor in zip(
        scores_QN, shortlist.rows_QC, shortlist.scores_QC, shortlist.floor_Q, strict=True
    ):
        listed = rows[rows >= 0] // 10
        assert len(np.unique(listed)) == len(listed)
        assert np.array_equal(scores[listed], found[rows >= 0])
        lost = np.delete(scores, listed)
        assert not (lost > floor).any()


@pytest.mark.parametrize("rows_at_once", [7, 1024])
def test_every_row_within_two_errors_of_the_kth_score_is_kept(rows_at_once: int) -> None:
    scores_QN = made("random", 30, 3000)
    errors_Q = np.linspace(0, 0.02, 30)
    shortlist = offered(scores_QN, k=50, errors_Q=errors_Q, rows_at_once=rows_at_once)
    for scores, rows, error in zip(scores_QN, shortlist.rows_QC, errors_Q, strict=True):
        near = np.flatnonzero(scores >= np.sort(scores)[-50] - 2 * error)
        assert np.isin(10 * near, rows).all()
        assert len(near) >= 50


def test_relative_errors_widen_the_list_by_the_size_of_the_score() -> None:
    scores_QN = made("random", 5, 3000) + np.float32(100)
    narrow, wide = (
        offered(scores_QN, k=20, errors_Q=np.zeros(5), rows_at_once=500, relative=relative) for relative in (0.0, 0.001)
    )
    assert narrow.rows_QC.shape[1] == 20
    assert (wide.floor_Q < np.sort(scores_QN, axis=1)[:, -20] - 0.2).all()


def test_more_near_rows_than_there_is_room_for_raise_the_floor_to_what_was_dropped() -> None:
    shortlist = offered(made("equal", 3, 5000), k=10, errors_Q=np.full(3, 1.0), rows_at_once=512)
    assert (shortlist.floor_Q == 0.5).all()
    assert ((shortlist.rows_QC >= 0).sum(axis=1) >= 10).all()
