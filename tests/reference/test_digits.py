"""With the same features, the answers are those of VISSL, DINO, DINOv2, solo-learn, lightly and lemniscate.

The reference material holds what the peers' own code answered, and an independent brute force in float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from featbench.evaluate.clustering.assignment import assign
from featbench.evaluate.clustering.contingency import Contingency
from featbench.evaluate.clustering.evaluation import evaluate_kmeans
from featbench.evaluate.clustering.kmeans import kmeans
from featbench.evaluate.clustering.metrics import cluster_metrics, cluster_sizes
from featbench.evaluate.clustering.planning import ClusterPlan
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.features.labels import matched_labels
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.features.selection import Selection
from featbench.evaluate.knn.classification import evaluate_knn
from featbench.evaluate.knn.vote import ClassVotes, vote_weights
from featbench.evaluate.neighbours.cached_search import find_neighbours
from featbench.store import FeatureSet
from tests.conftest import Bench

K = (1, 5, 10, 20, 100, 200)
TEMPERATURES = (0.07, 0.1)
PEERS = {
    "dino": "dino",
    "dinov2": "dino",
    "lightly": "lightly",
    "lemniscate": "wu2018",
    "solo_cosine": "solo",
    "vissl": "dino",  # run with L2_NORM_FEATS on, so its similarity is the cosine
}


@pytest.fixture(scope="module")
def digits(shared: Path) -> Path:
    return shared / "reference" / "digits"


@pytest.fixture
def imported(bench: Bench, digits: Path, tmp_path: Path) -> Callable[..., FeatureSet]:
    """The reference's features, imported by the command line: `raw` or `l2`."""

    def run(kind: str) -> FeatureSet:
        content = np.load(digits / "features.npz")
        for split, part in (("train", "train"), ("val", "test")):
            labels = content[f"{part}_labels"]
            np.savez(tmp_path / f"{split}.npz", features=content[f"{kind}_{part}"], labels=labels)
        result = bench("import", "--train", "train.npz", "--val", "val.npz", "--layer", kind, "--name", "digits")
        assert result.returncode == 0, result.stderr
        return FeatureSet.open(tmp_path / "features/digits")

    return run


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_predictions_are_those_of_a_brute_force_in_float64(
    imported: Callable[..., FeatureSet], digits: Path, temperature: float
) -> None:
    """For every query and k: all voted classes, in order, up to five."""
    reference = np.load(digits / "reference_float64.npz")
    features = imported("l2")
    train, val, names = matched_labels(features)
    neighbours = find_neighbours(
        features, stored_layer(features, "l2"), database=train, queries=val, k=200, similarity="cosine"
    ).neighbours
    assert np.abs(neighbours.similarities_QK - reference["l2_cosine_val"]).max() < 1e-6
    ballot = ClassVotes.of(train.labels[neighbours.rows_QK], num_classes=len(names))
    weights = vote_weights(neighbours.similarities_QK, vote="exponential", temperature=temperature)
    for k in K:
        ranked = ballot.ranking(weights, k=k)
        expected = reference[f"pred_l2_cosine_k{k}_T{temperature}"].astype(int)
        voted = reference[f"nclasses_l2_cosine_k{k}_T{temperature}"]
        assert (ballot.num_voted(k=k) == voted).all()
        expected[np.arange(5) >= voted[:, None]] = -1
        assert np.array_equal(ranked, expected), f"k={k}"


@pytest.mark.parametrize(("peer", "protocol"), PEERS.items())
def test_top1_and_filled_top5_are_the_peers_to_the_last_digit(
    imported: Callable[..., FeatureSet], digits: Path, peer: str, protocol: str
) -> None:
    results = json.loads((digits / "knn_peers.json").read_text())["digits_l2"][peer]["results"]
    records = evaluate_knn(imported("l2"), ["l2"], protocol=protocol, k=K, temperature=TEMPERATURES)
    assert len(records) == 12
    for record in records:
        theirs = results[f"k{record['k']}_T{record['temperature']}"]
        assert 100 * record["top1"] == pytest.approx(theirs["top1"], abs=1e-5)
        assert 100 * record["top5_filled"] == pytest.approx(theirs["top5_from_predictions"], abs=1e-5)
        if peer in ("dino", "solo_cosine") and record["k"] < 5:  # both cut top-5 to k
            assert 100 * record["top1"] == pytest.approx(theirs["top5"], abs=1e-5)


def test_solos_euclidean_protocol_gives_its_accuracies(imported: Callable[..., FeatureSet], digits: Path) -> None:
    results = json.loads((digits / "knn_peers.json").read_text())["digits_l2"]["solo_euclidean"]["results"]
    records = evaluate_knn(imported("l2"), ["l2"], protocol="solo_euclidean", k=K)
    for record in records:
        assert 100 * record["top1"] == pytest.approx(results[f"k{record['k']}_TNone"]["top1"], abs=1e-5)


def test_strict_top5_counts_only_classes_with_a_vote(imported: Callable[..., FeatureSet], digits: Path) -> None:
    reference = json.loads((digits / "reference_float64.json").read_text())
    for record in evaluate_knn(imported("l2"), ["l2"], k=K, temperature=TEMPERATURES):
        expected = reference[f"l2_cosine_k{record['k']}_T{record['temperature']}"]
        assert 100 * record["top5"] == pytest.approx(expected["top5_scored_only"], abs=1e-5)
        assert 100 * record["top5_filled"] == pytest.approx(expected["top5_stable_fill"], abs=1e-5)


def test_unnormalised_features_do_not_break_the_vote_as_they_break_the_peers(
    imported: Callable[..., FeatureSet], digits: Path
) -> None:
    """VISSL's default: inner products of some thousands overflow exp(s / T), and it answers 0 to 10 %."""
    results = json.loads((digits / "knn_peers.json").read_text())["digits_raw"]
    records = evaluate_knn(imported("raw"), ["raw"], protocol="vissl", k=K, temperature=TEMPERATURES)
    assert max(each["top1"] for each in results["vissl_nol2"]["results"].values()) < 12
    stable = results["dinov2"]["results"]
    for record in records:
        theirs = stable[f"k{record['k']}_T{record['temperature']}"]["top1"]
        assert 100 * record["top1"] == pytest.approx(theirs, abs=0.2)


@pytest.mark.parametrize(("kind", "normalize"), [("raw", False), ("l2", True)])
def test_kmeans_reaches_the_references_objective_and_scikit_learns_metrics(
    imported: Callable[..., FeatureSet], digits: Path, kind: str, normalize: bool
) -> None:
    reference = json.loads((digits / "kmeans.json").read_text())["results"]
    arrays = np.load(digits / "kmeans.npz")
    best = min(
        reference[f"digits_{kind}_train1200_{run}"]["inertia_float64_recomputed"]
        for run in ("sklearn", "faiss_niter20", "faiss_niter100_nredo10")
    )
    features = imported(kind)
    data = Selection(layer=features.layer("train", kind), rows=np.arange(1200))
    settings, plan = KmeansSettings(num_clusters=10, normalize=normalize), ClusterPlan(rows_per_block=500)
    found = kmeans(data, settings, plan=plan)
    assert found.objective <= 1.001 * best
    clusters = assign(data, found.centroids_KD, normalize=normalize, plan=plan).clusters_N
    points = data.read().astype(np.float64)
    if normalize:
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    squares = ((points[:, None] - found.centroids_KD[None]) ** 2).sum(2)
    assert (clusters == squares.argmin(1)).all()
    assert squares.min(1).sum() == pytest.approx(found.objective, rel=1e-9)

    name = f"digits_{kind}_train1200_sklearn"
    labels = features.labels("train")
    ours = cluster_metrics(Contingency.of(arrays[f"{name}_assign"].astype(np.int64), labels)).record()
    theirs = reference[name]
    for metric in ("nmi", "ami", "ari"):
        assert ours[metric] == pytest.approx(theirs[metric], abs=1e-9)
    assert 100 * ours["hungarian"] == pytest.approx(theirs["hungarian_acc"], abs=1e-9)
    assert 100 * ours["purity"] == pytest.approx(theirs["purity"], abs=1e-9)

    train, _ = evaluate_kmeans(features, [kind], clusters=[10], settings=settings)
    assert train["nmi"] == pytest.approx(normalized_mutual_info_score(labels, clusters))


def test_cluster_metrics_are_the_references_on_its_own_clusterings(digits: Path) -> None:
    """All of them: of 1,797 or 1,200 images, by scikit-learn and faiss, Euclidean and spherical."""
    reference = json.loads((digits / "kmeans.json").read_text())["results"]
    arrays, content = np.load(digits / "kmeans.npz"), np.load(digits / "features.npz")
    labels = np.concatenate([content["train_labels"], content["test_labels"]]).astype(np.int64)
    assert len(reference) == 14
    for name, theirs in reference.items():
        clusters = arrays[f"{name}_assign"].astype(np.int64)
        ours = cluster_metrics(Contingency.of(clusters, labels[: len(clusters)])).record()
        same = ("nmi", "ami", "ari", "homogeneity", "completeness")
        assert {key: ours[key] for key in same} == pytest.approx({key: theirs[key] for key in same}, abs=1e-9)
        assert 100 * ours["hungarian"] == pytest.approx(theirs["hungarian_acc"], abs=1e-9)
        assert 100 * ours["purity"] == pytest.approx(theirs["purity"], abs=1e-9)
        sizes = cluster_sizes(clusters, 10)
        assert [sizes.smallest, sizes.largest] == sorted(theirs["cluster_sizes_sorted"])[:: len(set(clusters)) - 1]
        assert 10 - sizes.num_empty == theirs["n_nonempty"]
