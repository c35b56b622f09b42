"""Shared neighbours, CKA and depth of predictions, against their definitions on whole kernels, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featbench.evaluate.diagnosis.agreement import Cka, Hsic, cka, hsic, overlap, prediction_depths
from featbench.evaluate.features.memory_layer import MemoryLayer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.rankings import cliques, holm
from featbench.store.typing import Doubles, Floats, Ints


def selection_of(features: Floats, rows: Ints, *, rows_per_chunk: int) -> Selection:
    return Selection(layer=MemoryLayer(features, key="x", rows_per_chunk=rows_per_chunk), rows=rows)


def biased(first_NN: Doubles, second_NN: Doubles) -> float:
    """Trace of K H L H."""
    center = np.eye(len(first_NN)) - 1 / len(first_NN)
    return float(np.trace(first_NN @ center @ second_NN @ center))


def unbiased(first_NN: Doubles, second_NN: Doubles) -> float:
    """Song et al. 2012, eq. 5."""
    count = len(first_NN)
    first, second = first_NN - np.diag(np.diag(first_NN)), second_NN - np.diag(np.diag(second_NN))
    one = np.ones(count)
    value = np.trace(first @ second) + one @ first @ one * (one @ second @ one) / (count - 1) / (count - 2)
    return float((value - 2 / (count - 2) * (one @ first @ second @ one)) / count / (count - 3))


def compared(first: Selection, second: Selection, *, memory: int) -> Cka:
    across, ours, theirs = (hsic(a, b, memory=memory) for a, b in ((first, second), (first, first), (second, second)))
    return cka(across, ours, theirs)


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize(("dim", "memory"), [(12, 2**12), (12, 2**30), (300, 2**16)])
def test_cka_is_that_of_whole_kernels(dim: int, memory: int, offset: float) -> None:
    """A large common offset changes nothing: the kernels of the definition are centered first here."""
    random = np.random.default_rng(0)
    first = (random.normal(size=(97, 8)) + offset).astype(np.float32)
    mixed = first.astype(np.float64) @ random.normal(size=(8, dim))
    second = (mixed + 2 * random.normal(size=(97, dim))).astype(np.float32)
    rows = np.flatnonzero(random.uniform(size=97) < 0.8)
    found = compared(
        selection_of(first, rows, rows_per_chunk=10), selection_of(second, rows, rows_per_chunk=16), memory=memory
    )
    exact = [each[rows].astype(np.float64) for each in (first, second)]
    kernels = [(each - each.mean(axis=0)) @ (each - each.mean(axis=0)).T for each in exact]
    for name, of in (("biased", biased), ("debiased", unbiased)):
        across, ours, theirs = (of(kernels[i], kernels[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
        assert getattr(found, name) == pytest.approx(across / (ours * theirs) ** 0.5, abs=1e-7), name


def test_rotated_and_scaled_features_are_alike_and_independent_ones_are_not() -> None:
    random = np.random.default_rng(1)
    first = random.normal(size=(200, 20)).astype(np.float32)
    rotation, _ = np.linalg.qr(random.normal(size=(20, 20)))
    every = np.arange(200)
    alike = (3 * first @ rotation).astype(np.float32)
    other = random.normal(size=(200, 20)).astype(np.float32)
    a, b, c = (selection_of(each, every, rows_per_chunk=64) for each in (first, alike, other))
    assert compared(a, b, memory=2**20).debiased == pytest.approx(1, abs=1e-6)
    assert abs(compared(a, c, memory=2**20).debiased) < 0.03
    assert compared(a, c, memory=2**20).biased > 0.05, "the biased estimate is not 0 for independent features"


def test_equal_rows_and_very_few_rows_have_no_cka() -> None:
    one = Hsic(biased=1.0, unbiased=None)
    assert cka(one, one, one) == Cka(biased=1.0, debiased=None)
    flat = selection_of(np.ones((9, 3), np.float32), np.arange(9), rows_per_chunk=4)
    assert compared(flat, flat, memory=2**20) == Cka(biased=None, debiased=None)


def lists_at_random(seed: int, *, num_queries: int = 60, k: int = 4, size: int = 25) -> Ints:
    random = np.random.default_rng(seed)
    weights = np.arange(1.0, size + 1)
    return np.stack([random.choice(size, k, replace=False, p=weights / weights.sum()) for _ in range(num_queries)])


def test_shared_neighbours_and_chance_are_those_of_sets_and_of_all_pairs_of_queries() -> None:
    first, second = lists_at_random(0), lists_at_random(1)
    second[:20] = first[:20, ::-1]
    found = overlap(first, second)
    shared = [len(set(a) & set(b)) / 4 for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert found.mean.value == pytest.approx(np.mean(shared), rel=1e-12)
    every_pair = [len(set(a) & set(b)) / 4 for a in first.tolist() for b in second.tolist()]
    assert found.chance == pytest.approx(np.mean(every_pair), rel=1e-12)
    assert found.corrected == pytest.approx((np.mean(shared) - np.mean(every_pair)) / (1 - np.mean(every_pair)))
    assert overlap(first, first).corrected == 1


def test_depth_is_the_first_layer_from_which_all_agree_with_the_last() -> None:
    predictions = np.random.default_rng(2).integers(2, size=(5, 100))
    expected = [next(depth for depth in range(5) if (column[depth:] == column[-1]).all()) for column in predictions.T]
    assert prediction_depths(predictions).tolist() == expected
    assert set(expected) == {0, 1, 2, 3, 4}


def test_holm_rejects_what_its_sequential_procedure_rejects() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        values = random.uniform(size=6) ** 3
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for number, place in enumerate(np.argsort(values)):
                if values[place] > level / (6 - number):
                    break
                rejected.add(int(place))
            assert set(np.flatnonzero(holm(values) <= level).tolist()) == rejected


def test_cliques_are_the_longest_runs_without_a_significant_pair() -> None:
    random = np.random.default_rng(4)
    for _ in range(100):
        pairs = {(i, j): float(random.uniform()) for i in range(5) for j in range(i + 1, 5)}
        alike = {
            (start, stop)
            for start in range(5)
            for stop in range(start + 1, 6)
            if all(pairs[i, j] >= 0.3 for i in range(start, stop) for j in range(i + 1, stop))
        }
        longest = {
            run for run in alike if not any(o != run and o[0] <= run[0] and o[1] >= run[1] for o in alike)
        }  # fmt: skip
        assert {(run.start, run.stop) for run in cliques(5, pairs, level=0.3)} == longest


def test_photographs_have_the_numbers_of_platonic_rep(shared: Path) -> None:
    """Expected: minyoungg/platonic-rep, metrics.py, mutual_knn, cka and unbiased_cka in float64, on test features."""
    features = np.load(shared / "reference/clothing_squeezenet/features_test.npz")
    expected = {(5, 10): (0.33763440860, 0.6278125, 0.61757858), (10, 12): (0.57607526882, 0.74878989, 0.7428203)}
    every = np.arange(372)
    lists = {}
    for layer in (5, 10, 12):
        unit = features[f"features_{layer}"].astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -2)
        lists[layer] = np.argsort(-cosines, axis=1)[:, :10]
    for (first, second), (shared_neighbours, plain, debiased) in expected.items():
        sides = (selection_of(features[f"features_{each}"], every, rows_per_chunk=100) for each in (first, second))
        found = compared(*sides, memory=2**24)
        assert found.biased == pytest.approx(plain, abs=1e-6)
        assert found.debiased == pytest.approx(debiased, abs=1e-6)
        assert overlap(lists[first], lists[second]).mean.value == pytest.approx(shared_neighbours, abs=1e-9)
