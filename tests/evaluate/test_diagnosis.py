"""Calibration, hubness, dimension and spectrum, against scikit-learn, SciPy and other projects' numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from featbench.evaluate.diagnosis.calibration import calibration, expected_error, expected_error_by_chance, reliability
from featbench.evaluate.diagnosis.dimension import twonn
from featbench.evaluate.diagnosis.hubness import hubness, largest_hubs, occurrences
from featbench.evaluate.diagnosis.spectrum import effective_rank, power_law, sampled_places, spectrum, uniformity
from featbench.evaluate.features.memory_layer import MemoryLayer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.metrics import auroc
from featbench.store.typing import Doubles, Floats, Ints


def votes_at_random(*, num_queries: int, k: int, num_classes: int) -> tuple[ClassVotes, Doubles, Ints]:
    """Lists whose neighbours are often of the query's class, with the class of each query."""
    random = np.random.default_rng(0)
    labels_Q = random.integers(num_classes, size=num_queries)
    labels_QK = np.where(
        random.uniform(size=(num_queries, k)) < 0.5,
        labels_Q[:, None],
        random.integers(num_classes, size=(num_queries, k)),
    )
    similarities_QK = -np.sort(-random.uniform(size=(num_queries, k)), axis=1)
    weights_QK = vote_weights(similarities_QK, vote="exponential", temperature=0.1)
    return ClassVotes.of(labels_QK, num_classes=num_classes), weights_QK, labels_Q


def dense_probabilities(votes: ClassVotes, weights_QK: Doubles, k: int, num_classes: int) -> Doubles:
    """Shape (Q, C), by a loop."""
    dense = np.zeros((len(weights_QK), num_classes))
    for query, (labels, weights) in enumerate(zip(votes.labels_QK, weights_QK, strict=True)):
        for label, weight in list(zip(labels, weights, strict=True))[:k]:
            dense[query, label] += weight
    return dense / dense.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_calibration_is_that_of_its_definitions_and_of_scikit_learn(k: int) -> None:
    votes, weights_QK, labels_Q = votes_at_random(num_queries=300, k=10, num_classes=6)
    found = calibration(votes, weights_QK, labels_Q, k=k)
    dense = np.minimum(dense_probabilities(votes, weights_QK, k, 6), 1)
    assert found.nll.value == pytest.approx(log_loss(labels_Q, dense, labels=range(6)), rel=1e-12)
    assert found.brier.value == pytest.approx(((dense - np.eye(6)[labels_Q]) ** 2).sum(1).mean(), rel=1e-12)
    confidence, is_right = dense.max(axis=1), dense.argmax(axis=1) == labels_Q
    assert found.mean_confidence == pytest.approx(confidence.mean(), rel=1e-12)
    assert found.auroc is not None
    assert found.auroc.value == pytest.approx(roc_auc_score(is_right, confidence), rel=1e-12)
    assert found.num_without_vote == (dense[np.arange(300), labels_Q] == 0).sum()
    gaps, shares = [], []
    for low in np.linspace(0, 1, 16):  # the last bin holds a confidence of 1 alone
        inside = (confidence >= low - 1e-12) & (confidence < low + 1 / 15 - 1e-12)
        if inside.any():
            gaps.append(abs(is_right[inside].mean() - confidence[inside].mean()))
            shares.append(inside.mean())
    assert found.ece.value == pytest.approx(np.dot(gaps, shares), rel=1e-9)
    assert found.rms_ce == pytest.approx(np.dot(np.square(gaps), shares) ** 0.5, rel=1e-9)
    assert found.max_ce == pytest.approx(max(gaps), rel=1e-9)
    assert sum(each.num_queries for each in found.bins) == 300


def test_calibration_is_that_of_torchmetrics() -> None:
    classification = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    votes, weights_QK, labels_Q = votes_at_random(num_queries=500, k=20, num_classes=7)
    found = calibration(votes, weights_QK, labels_Q, k=20)
    dense = torch.tensor(np.minimum(dense_probabilities(votes, weights_QK, 20, 7), 1))
    for norm, ours in (("l1", found.ece.value), ("l2", found.rms_ce), ("max", found.max_ce)):
        theirs = classification.multiclass_calibration_error(dense, torch.tensor(labels_Q), num_classes=7, norm=norm)
        assert ours == pytest.approx(float(theirs), abs=1e-6), norm


def test_the_interval_of_the_expected_error_is_that_of_a_bootstrap() -> None:
    random = np.random.default_rng(3)
    confidence = random.uniform(0.3, 1, 2000)
    is_right = random.uniform(size=2000) < confidence - 0.15
    found = expected_error(confidence, is_right)
    draws = [expected_error(confidence[s], is_right[s]).value for s in random.integers(2000, size=(400, 2000))]
    assert (found.high - found.value) / 1.959964 == pytest.approx(np.std(draws), rel=0.12)
    assert found.low < found.value < found.high


def test_the_expected_error_of_a_calibrated_vote_is_that_of_simulation() -> None:
    random = np.random.default_rng(4)
    confidence = random.uniform(0.2, 1, 1000)
    draws = [expected_error(confidence, random.uniform(size=1000) < confidence).value for _ in range(400)]
    assert expected_error_by_chance(confidence) == pytest.approx(np.mean(draws), rel=0.05)


def test_a_confidence_of_one_has_a_bin_of_its_own() -> None:
    bins = reliability(np.array([0.95, 1.0, 1.0]), np.array([True, False, True]))
    assert [(each.num_queries, each.accuracy) for each in bins] == [(1, 1.0), (2, 0.5)]


def test_a_vote_that_is_always_right_has_no_auroc() -> None:
    votes = ClassVotes.of(np.array([[0], [1]]), num_classes=2)
    assert calibration(votes, np.ones((2, 1)), np.array([0, 1]), k=1).auroc is None


def test_auroc_and_its_interval_are_those_of_its_definition() -> None:
    random = np.random.default_rng(1)
    positives, negatives = np.round(random.normal(1, 1, 80), 1), np.round(random.normal(0, 1, 120), 1)
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    variance = wins.mean(axis=1).var(ddof=1) / 80 + wins.mean(axis=0).var(ddof=1) / 120
    found = auroc(positives, negatives)
    assert found.value == pytest.approx(wins.mean(), rel=1e-12)
    assert found.high - found.value == pytest.approx(1.959963984540054 * variance**0.5, rel=1e-12)
    labels = np.repeat([1, 0], [80, 120])
    assert found.value == pytest.approx(roc_auc_score(labels, np.concatenate([positives, negatives])), rel=1e-12)


def test_hubness_is_that_of_scikit_hubnesss_definitions() -> None:
    random = np.random.default_rng(2)
    rows = np.sort(random.choice(90, 60, replace=False))
    rows_QK = rows[(60 * random.uniform(size=(200, 5)) ** 2).astype(int)]
    counts = occurrences(rows_QK, rows, k=4)
    assert counts.tolist() == [(rows_QK[:, :4] == row).sum() for row in rows]
    found = hubness(counts, k=4)
    assert found.skewness == pytest.approx(stats.skew(counts), rel=1e-12)
    assert found.robin_hood == pytest.approx(0.5 * np.abs(counts - counts.mean()).sum() / counts.sum(), rel=1e-12)
    assert found.num_antihubs == (counts == 0).sum()
    assert found.hub_occurrence == pytest.approx(counts[counts >= 8].sum() / 4 / 200, rel=1e-12)
    assert counts[largest_hubs(counts, most=3)].tolist() == sorted(counts, reverse=True)[:3]


def test_lists_in_which_all_rows_are_alike_have_no_hubs() -> None:
    found = hubness(np.full(7, 3), k=3)
    assert (found.skewness, found.robin_hood, found.num_antihubs, found.num_hubs) == (0, 0, 0, 0)


@pytest.mark.parametrize("dimension", [2, 30])
def test_twonn_recovers_the_dimension_of_ratios_drawn_by_its_law(dimension: int) -> None:
    """In dimension d the ratio r of the two distances has the distribution 1 - r ** -d (Facco et al. 2017)."""
    missed = 0
    for seed in range(100):
        ratios = np.random.default_rng(seed).uniform(size=400) ** (-1 / dimension)
        found = twonn(np.full(400, 0.5), 0.5 * ratios)
        missed += not found.mle.low < dimension < found.mle.high
        assert found.linear == pytest.approx(dimension, rel=0.3)
    assert 1 <= missed <= 11, "an interval of 95% misses 5 of 100"


def test_twonn_finds_the_dimension_of_a_plane_in_more_dimensions() -> None:
    random = np.random.default_rng(3)
    rows = random.uniform(size=(500, 2)) @ random.normal(size=(2, 20))
    distances = np.sort(np.linalg.norm(rows[:, None] - rows, axis=2), axis=1)
    assert twonn(distances[:, 1], distances[:, 2]).mle.value == pytest.approx(2, abs=0.25)


def test_duplicates_are_counted_and_left_out_of_the_dimension() -> None:
    ratios = np.random.default_rng(4).uniform(size=100) ** (-1 / 3)
    plain = twonn(np.ones(100), ratios)
    with_twins = twonn(np.append(np.ones(100), [0.0, 0.0]), np.append(ratios, [0.0, 1.0]))
    assert (with_twins.mle, with_twins.linear) == (plain.mle, plain.linear)
    assert (with_twins.num_used, with_twins.num_duplicates) == (100, 2)
    assert twonn(np.zeros(5), np.ones(5)).mle is None
    assert twonn(np.ones(5), np.ones(5)).mle is None, "grids, where all ratios are 1, have no finite estimate"


def selection_of(features: Floats) -> Selection:
    return Selection(layer=MemoryLayer(features, key="x", rows_per_chunk=64), rows=np.arange(len(features)))


@pytest.mark.parametrize("shape", [(300, 40), (30, 50)])
def test_the_spectrum_is_that_of_singular_values_in_float64(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(5)
    features = (random.normal(size=shape) * np.arange(1, shape[1] + 1) ** -1.2 + 0.3).astype(np.float32)
    found = spectrum(selection_of(features), memory=2**20)
    exact = features.astype(np.float64)
    singular = np.linalg.svd(exact, compute_uv=False)
    fractions = singular / singular.sum() + 1e-7
    assert found.rankme == pytest.approx(np.exp(-(fractions * np.log(fractions)).sum()), abs=1e-6)
    variances = np.linalg.svd(exact - exact.mean(axis=0), compute_uv=False) ** 2
    fractions = variances / variances.sum() + 1e-7
    assert found.rankme_covariance == pytest.approx(np.exp(-(fractions * np.log(fractions)).sum()), abs=1e-6)
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    potentials = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(unit) for b in unit[:i]]
    assert found.uniformity.value == pytest.approx(np.log(np.mean(potentials)), abs=1e-9)


def test_the_power_law_is_the_weighted_line_through_the_logarithms() -> None:
    eigenvalues = np.random.default_rng(6).uniform(0.5, 1, 150) * np.arange(1.0, 151) ** -0.8
    ranks = np.arange(11, 101)
    slope, _ = np.polyfit(np.log(ranks), np.log(eigenvalues[10:100]), 1, w=ranks**-0.5)
    assert power_law(eigenvalues) == pytest.approx(-slope, rel=1e-10)
    assert power_law(eigenvalues[:12]) is None


def test_features_of_zeros_have_a_spectrum_without_nan() -> None:
    found = spectrum(selection_of(np.zeros((20, 15), np.float32)), memory=2**20)
    assert (found.rankme, found.rankme_covariance, found.alpha, found.uniformity) == (0, 0, None, None)
    assert effective_rank(np.zeros(3)) == 0


def test_uniformity_has_the_interval_of_the_jackknife() -> None:
    features = np.random.default_rng(7).normal(size=(40, 5)).astype(np.float32)
    without = [uniformity(np.delete(features, i, axis=0)).value for i in range(40)]
    half = 1.959963984540054 * (39 * np.var(without)) ** 0.5
    found = uniformity(features)
    assert found.high - found.value == pytest.approx(half, rel=1e-6)


def test_the_sample_is_the_same_every_time_and_rising() -> None:
    places = sampled_places(10_000)
    assert len(np.unique(places)) == len(places) == 4096
    assert (np.diff(places) > 0).all()
    assert np.array_equal(places, sampled_places(10_000))


def test_photographs_have_the_numbers_of_other_projects(shared: Path) -> None:
    """Expected: scikit-dimension 0.5.0 (TwoNN, both methods), reptrix 0.1.0 and torch, all in float64."""
    features = np.load(shared / "reference/clothing_squeezenet/features_train.npz")["features_12"]
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    nearest = -np.partition(-cosines, 1, axis=1)[:, :2]
    found = twonn(*np.sqrt(2 - 2 * nearest).T)
    assert found.linear == pytest.approx(18.81455136077323, abs=1e-6)
    assert found.mle.value == pytest.approx(18.779676761750277, abs=1e-6)
    measured = spectrum(selection_of(features), memory=2**28)
    assert measured.rankme == pytest.approx(270.67732924, abs=1e-6)
    assert measured.rankme_covariance == pytest.approx(75.10334271564, abs=1e-6)
    assert measured.alpha == pytest.approx(1.3714351448, abs=1e-6)
    assert measured.uniformity.value == pytest.approx(-1.4605551161960, abs=1e-6)
