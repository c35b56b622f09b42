"""Every peer's own predictions are met; where one differs, the reason is its own, and is the one given here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.knn.predictions import Predictions, predict
from featbench.evaluate.knn.protocols import PROTOCOLS
from featbench.evaluate.neighbours.distributed import shards_of
from featbench.evaluate.neighbours.search import merged, search
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store import FeatureSet
from featbench.store.typing import Bools, Doubles, Floats
from tests.conftest import make_features
from tests.evaluate.test_search import ENGINES, SIMILARITIES, assert_equal, cut, with_threads

K = (1, 5, 10, 20, 100, 200)
TEMPERATURES = (0.07, 0.1)
L2 = {
    "dino": "dino",
    "dino_nc1000": "dino",
    "dinov2": "dinov2",
    "lemniscate": "wu2018",
    "lightly": "lightly",
    "solo_cosine": "solo",
    "solo_euclidean": "solo_euclidean",
    "vissl": "wu2018",  # run with L2_NORM_FEATS on, so its similarity is the cosine
    "vissl_lowmem_n500": "wu2018",
}
RAW = {
    "solo_cosine": "solo",
    "solo_euclidean": "solo_euclidean",
    "vissl": "wu2018",
    "dinov2": "vissl",  # a softmax of inner products: VISSL's default rule without its overflow
}


@pytest.fixture(scope="module")
def digits(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    content = np.load(shared / "reference/digits/features.npz")
    features = {
        split: {kind: content[f"{kind}_{part}"].astype(np.float32) for kind in ("raw", "l2")}
        for split, part in (("train", "train"), ("val", "test"))
    }
    labels = {split: content[f"{part}_labels"] for split, part in (("train", "train"), ("val", "test"))}
    return make_features(tmp_path_factory.mktemp("digits") / "digits", features, labels, rows_per_chunk=128)


def settings(protocol: str) -> list[tuple[int, float | None]]:
    temperatures = TEMPERATURES if PROTOCOLS[protocol].temperature else (None,)
    return [(k, temperature) for k in K for temperature in temperatures]


def ours(digits: FeatureSet, kind: str, protocol: str, k: int, temperature: float | None) -> Predictions:
    return predict(
        digits, stored_layer(digits, kind), name=protocol, protocol=PROTOCOLS[protocol], k=k, temperature=temperature
    )


def ties_at(digits: FeatureSet, kind: str, protocol: str, k: int) -> Bools:
    """Queries whose last neighbour is as near as the next row, so that peers may take either."""
    similarities_QK = ours(digits, kind, protocol, k + 1, None).neighbours.similarities_QK
    return similarities_QK[:, -1] == similarities_QK[:, -2]


@pytest.mark.parametrize(("peer", "protocol"), L2.items())
def test_the_peers_classes_with_a_vote_are_ours_in_order(
    shared: Path, digits: FeatureSet, peer: str, protocol: str
) -> None:
    """For every query, k and temperature. Behind them peers list classes without a vote, in an order of their own."""
    predictions = np.load(shared / "reference/digits/peer_predictions_top5.npz")
    for k, temperature in settings(protocol):
        theirs = predictions[f"digits_l2|{peer}|k{k}_T{temperature}"].astype(np.int64)
        found = ours(digits, "l2", protocol, k, temperature).ranked_QT[: len(theirs)]
        assert np.array_equal(np.where(found >= 0, theirs, -1), found), f"k={k}, T={temperature}"


@pytest.mark.parametrize(("peer", "protocol"), RAW.items())
def test_on_raw_features_peers_differ_only_by_ties_and_votes_that_vanish(
    shared: Path, digits: FeatureSet, peer: str, protocol: str
) -> None:
    """Raw digits are whole numbers, so neighbours tie; and exp(-100) is 0 in DINOv2's float32, but no vote here is."""
    predictions = np.load(shared / "reference/digits/peer_predictions_top5.npz")
    for k, temperature in settings(protocol):
        theirs = predictions[f"digits_raw|{peer}|k{k}_T{temperature}"].astype(np.int64)
        found = ours(digits, "raw", protocol, k, temperature)
        counts = found.probabilities_QT > 1e-45
        differs = (np.where(counts, theirs, -1) != np.where(counts, found.ranked_QT, -1)).any(axis=1)
        ties = ties_at(digits, "raw", protocol, k)
        assert not (differs & ~ties).any(), f"k={k}, T={temperature}"
        assert differs.sum() <= 5


@pytest.mark.parametrize("peer", ["vissl_nol2", "dino", "lightly", "lemniscate"])
def test_peers_differ_on_raw_features_only_where_they_overflow(shared: Path, digits: FeatureSet, peer: str) -> None:
    """exp(s / T) is infinite in float32 beyond 88.7, and infinity times 0 is not a number."""
    predictions = np.load(shared / "reference/digits/peer_predictions_top5.npz")
    for k, temperature in settings("vissl"):
        theirs = predictions[f"digits_raw|{peer}|k{k}_T{temperature}"][:, 0]
        found = ours(digits, "raw", "vissl", k, temperature)
        overflows = found.neighbours.similarities_QK[:, 0] / temperature > 88.7
        assert overflows.all(), "inner products of these features are some thousands"
        assert ((theirs == found.ranked_QT[:, 0]) | overflows).all()
        assert (found.ranked_QT[:, 0] == found.labels_Q).mean() > 0.7 > 0.2 > (theirs == found.labels_Q).mean()


@pytest.mark.parametrize("kind", ["l2", "raw"])
def test_probabilities_are_dinov2s_at_its_largest_k(shared: Path, digits: FeatureSet, kind: str) -> None:
    """DINOv2 divides by the sum over its largest k only, so for smaller k its own do not add up to 1: ours do."""
    theirs = np.load(shared / "reference/digits/dinov2_probabilities.npz")
    protocol = "dinov2" if kind == "l2" else "vissl"
    for temperature in TEMPERATURES:
        for k in K:
            expected = theirs[f"digits_{kind}|dinov2|probas_k{k}_T{temperature}"].astype(np.float64)
            found = ours(digits, kind, protocol, k, temperature)
            probabilities = found.votes.probabilities(found.weights_QK, k=k)
            tolerance = 2e-4 if kind == "l2" else 0.02  # float32 inner products of thousands, divided by T
            clear = ~ties_at(digits, kind, protocol, k)
            expected_per_k = expected / expected.sum(axis=1, keepdims=True)
            assert np.allclose(probabilities[clear], expected_per_k[clear], atol=tolerance)
            if k == max(K):
                assert np.allclose(expected.sum(axis=1), 1, atol=1e-4)


def fixed_order(database: Floats, queries: Floats, similarity: Similarity) -> Doubles:
    """All similarities in float64, one query at a time, as their definition says."""
    database, queries = database.astype(np.float64), queries.astype(np.float64)
    lengths = [np.maximum(np.sqrt((each * each).sum(axis=1)), 1e-12) for each in (database, queries)]
    rows = []
    for query, length in zip(queries, lengths[1], strict=True):
        if similarity == "euclidean":
            rows.append(-np.sqrt(((database - query) ** 2).sum(axis=1)))
        else:
            products = (database * query).sum(axis=1)
            rows.append(products / (lengths[0] * length) if similarity == "cosine" else products)
    return np.array(rows)


@pytest.fixture(scope="module")
def clothing(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    features, labels = {}, {}
    for split, part in (("train", "train"), ("val", "test")):
        content = np.load(shared / f"reference/clothing_squeezenet/features_{part}.npz")
        features[split] = {name: content[name] for name in ("features_5", "features_12")}
        labels[split] = content["labels"]
    return make_features(tmp_path_factory.mktemp("clothing") / "clothing", features, labels, rows_per_chunk=256)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("source", ["raw", "l2", "features_5", "features_12"])
def test_lists_of_real_features_are_those_of_float64_to_the_bit(
    two_gpus: list[Any], digits: FeatureSet, clothing: FeatureSet, source: str, similarity: Similarity
) -> None:
    """With any engine, block size, queries at once, threads and ranks."""
    made = clothing if source.startswith("features") else digits
    readers = {split: made.layer(split, source) for split in ("train", "val")}
    database, queries = (Selection(layer=reader, rows=np.arange(reader.num_rows)) for reader in readers.values())
    queries = queries[3:33]
    truth = fixed_order(database.read(), queries.read(), similarity)
    rows = np.argsort(-truth, axis=1, kind="stable")[:, :200]
    expected = rows, np.take_along_axis(truth, rows, axis=1)
    for device, precision in ENGINES:
        for size, threads in (((10**6, 1000), 2), ((300, 20), 1)):
            with_threads(threads)
            plan = cut(*size, device=device, precision=precision)
            assert_equal(search(database, queries, k=200, similarity=similarity, plan=plan), *expected)
    for ranks in (2, 3):
        found = [
            search(shard, queries, k=200, similarity=similarity, plan=cut(500)) for shard in shards_of(database, ranks)
        ]
        assert_equal(merged(found, 200), *expected)
