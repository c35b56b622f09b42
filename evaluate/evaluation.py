"""What stage two does, in order: neighbours (cached), votes, accuracies; clusters (cached), metrics.

Results are flat records, one for each layer, k and temperature, and one for each clustering and
split, all with the same keys, so that they make a table as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from evaluate import metrics
from evaluate.kmeans import Clustering, assign, kmeans
from evaluate.labels import EvaluationError, Labelled, matched_labels
from evaluate.protocols import PROTOCOLS
from evaluate.search import Neighbours, search
from evaluate.selection import Selection, rows_per_block
from evaluate.vote import Ballot, vote_weights
from store import FeatureSet, load_cached, save_cached
from store.manifest import digest_of

logger = logging.getLogger(__name__)

Record = dict[str, Any]

ALGORITHM = 1
"""Enters the keys of cached results; raised when a change gives other numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Neighbours, and whether they had to be searched for."""

    neighbours: Neighbours
    reused: bool
    seconds: float


def evaluate_knn(
    features: FeatureSet,
    layers: Sequence[str],
    *,
    protocol: str = "dino",
    k: Sequence[int] | None = None,
    temperature: Sequence[float] | None = None,
    block_mib: int = 512,
    device: str = "auto",
    on_rows: Callable[[str, int], None] = lambda layer, rows: None,
) -> list[Record]:
    """Classify val by the weighted votes of its neighbours in train.

    Parameters
    ----------
    features : FeatureSet
        Has the layers, complete, in both splits.
    layers : sequence of str
        Names of layers.
    protocol : str
        A key of `PROTOCOLS`: similarity and voting.
    k : sequence of int, optional
        Neighbours that vote; the protocol's own by default. One search at the largest serves all.
    temperature : sequence of float, optional
        The protocol's own by default.
    block_mib : int
        MiB of database rows in memory at once.
    device : {"auto", "cpu", "gpu"}
        Where faiss searches.
    on_rows : callable
        Told layer and number of database rows after each block.

    Returns
    -------
    list of dict
        `top1`, `top5` (only classes with a vote count), `top5_filled` (classes without a vote appended
        by number, as peers do) and `mean_per_class`, fractions of 1, each with `_low` and `_high`, the
        ends of its 95% interval; and what they were computed from.

    Raises
    ------
    EvaluationError
        If k is larger than the number of database rows, or nothing has a label.
    """
    rule = PROTOCOLS[protocol]
    train, val, names = matched_labels(features)
    ks = _usable_k(k, rule.k, len(train.rows))
    temperatures: Sequence[float | None] = (temperature or rule.temperature) if rule.vote == "exponential" else (None,)
    if rule.vote != "exponential" and temperature:
        logger.warning("protocol %s votes without a temperature; %s has no effect", protocol, list(temperature))
    labels_N = _by_row(features, train)
    records = []
    for layer in layers:
        found = find_neighbours(
            features, layer, train=train, val=val, k=max(ks), similarity=rule.similarity,
            block_mib=block_mib, device=device, on_rows=partial(on_rows, layer),
        )  # fmt: skip
        neighbours = found.neighbours
        origin = _provenance(features, layer, train, val)
        ballot = Ballot.of(labels_N[neighbours.rows_QK[:, : max(ks)]], num_classes=len(names))
        for each_temperature in temperatures:
            weights_QK = vote_weights(neighbours.similarities_QK, vote=rule.vote, temperature=each_temperature)
            for each_k in ks:
                records.append(
                    origin
                    | {"task": "knn", "protocol": protocol, "similarity": rule.similarity, "vote": rule.vote}
                    | {"k": each_k, "temperature": each_temperature}
                    | _accuracies(ballot, weights_QK, val, k=each_k)
                    | {
                        "num_uncertain": neighbours.num_uncertain,
                        "seconds": found.seconds,
                        "neighbours_reused": found.reused,
                    }
                )
    return records


def find_neighbours(
    features: FeatureSet,
    layer: str,
    *,
    train: Labelled,
    val: Labelled,
    k: int,
    similarity: Any,
    block_mib: int = 512,
    device: str = "auto",
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Found:
    """Take the neighbours from the feature set, or search for them and keep them there.

    Kept lists serve every k up to their own; a larger k searches again. They are found by what they
    were computed from, down to the checksum of every chunk, so those of other features never match.
    """
    start = time.perf_counter()
    made_from = [features.digest(split, layer) for split in ("train", "val")]
    key = f"{layer}-{similarity}-{digest_of([ALGORITHM, similarity, *made_from])[:16]}"
    kept = load_cached(features, "neighbours", key)
    if kept and kept[0]["rows"].shape[1] >= k:
        arrays, facts = kept
        neighbours = Neighbours(
            rows_QK=arrays["rows"],
            similarities_QK=arrays["similarities"],
            queries=arrays["queries"],
            num_uncertain=facts["num_uncertain"],
        )
        return Found(neighbours=neighbours, reused=True, seconds=facts["seconds"])
    neighbours = search(
        Selection(layer=features.layer("train", layer), rows=train.rows),
        Selection(layer=features.layer("val", layer), rows=val.rows),
        k=k,
        similarity=similarity,
        rows_per_block=rows_per_block(features.layer_info(layer).dim, block_mib),
        device=device,
        on_rows=on_rows,
    )
    seconds = round(time.perf_counter() - start, 3)
    arrays = {"rows": neighbours.rows_QK, "similarities": neighbours.similarities_QK, "queries": neighbours.queries}
    facts = {"layer": layer, "similarity": similarity, "made_from": made_from, "k": k, "seconds": seconds}
    facts["num_uncertain"] = neighbours.num_uncertain
    save_cached(features, "neighbours", key, arrays, facts)
    return Found(neighbours=neighbours, reused=False, seconds=seconds)


def evaluate_kmeans(
    features: FeatureSet,
    layers: Sequence[str],
    *,
    clusters: Sequence[int | str],
    normalize: bool = True,
    iterations: int = 100,
    restarts: int = 10,
    seed: int = 0,
    block_mib: int = 512,
) -> list[Record]:
    """Cluster train by k-means and compare the clusters of both splits with the classes.

    Parameters
    ----------
    features, layers, block_mib
        As for `evaluate_knn`.
    clusters : sequence of int or "classes"
        Numbers of clusters.
    normalize, iterations, restarts, seed
        As for `evaluate.kmeans.kmeans`.

    Returns
    -------
    list of dict
        One for each layer, number of clusters and split, with the metrics of `evaluate.metrics.cluster_metrics`.

    Raises
    ------
    EvaluationError
        If there are more clusters than rows.
    """
    train, val, _ = matched_labels(features)
    settings = {"normalize": normalize, "iterations": iterations, "restarts": restarts, "seed": seed}
    records = []
    for layer in layers:
        origin = _provenance(features, layer, train, val)
        for wanted in clusters:
            count = len(np.unique(train.labels)) if wanted == "classes" else int(wanted)
            start = time.perf_counter()
            clusters_of, facts = _find_clusters(features, layer, count, train, val, settings, block_mib)
            seconds = round(time.perf_counter() - start, 3)
            for split, part in (("train", train), ("val", val)):
                records.append(
                    origin
                    | {"task": "kmeans", "protocol": "kmeans", "split": split, "clusters": count}
                    | metrics.cluster_metrics(clusters_of[split], part.labels)
                    | {"objective": facts["objective"], "iterations": facts["iterations"], "seconds": seconds}
                )
    return records


def uniform(records: Sequence[Record]) -> list[Record]:
    """Give all records the same keys, None where one does not apply."""
    keys = dict.fromkeys([*FIRST, *(key for record in records for key in record)])
    return [{key: record.get(key) for key in keys} for record in records]


FIRST = ("task", "features", "layer", "protocol", "k", "temperature", "top1", "top5", "clusters", "split")
"""Keys that every record has, in front."""


def _find_clusters(
    features: FeatureSet,
    layer: str,
    count: int,
    train: Labelled,
    val: Labelled,
    settings: dict[str, Any],
    block_mib: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    made_from = [features.digest(split, layer) for split in ("train", "val")]
    key = f"{layer}-{count}-{digest_of([ALGORITHM, count, settings, *made_from])[:16]}"
    kept = load_cached(features, "clusters", key)
    if kept:
        return kept
    rows = rows_per_block(features.layer_info(layer).dim, block_mib)
    data = {
        split: Selection(layer=features.layer(split, layer), rows=part.rows)
        for split, part in (("train", train), ("val", val))
    }
    found: Clustering = kmeans(data["train"], count, rows_per_block=rows, **settings)
    clusters_of = {
        split: assign(part, found, rows_per_block=rows, normalize=settings["normalize"]) for split, part in data.items()
    }
    facts = {
        "objective": found.objective,
        "iterations": found.iterations,
        "layer": layer,
        "made_from": made_from,
    } | settings
    save_cached(features, "clusters", key, clusters_of | {"centroids": found.centroids_KD}, facts)
    return dict(clusters_of), facts


def _accuracies(ballot: Ballot, weights_QK: Any, val: Labelled, *, k: int) -> Record:
    ranked = ballot.ranking(weights_QK, k=k)
    hits = ranked == val.labels[:, None]
    top1, top5 = hits[:, 0], hits.any(axis=1)
    behind = ballot.places_among_unvoted(val.labels, k=k)
    filled = top5 | ((behind >= 0) & (behind < 5 - ballot.num_voted(k=k)))
    record: Record = {}
    for name, estimate in (
        ("top1", metrics.proportion(top1)),
        ("top5", metrics.proportion(top5)),
        ("top5_filled", metrics.proportion(filled)),
        ("mean_per_class", metrics.mean_per_class(top1, val.labels)),
    ):
        values = asdict(estimate)
        record |= {name: values["value"], f"{name}_low": values["low"], f"{name}_high": values["high"]}
    return record


def _provenance(features: FeatureSet, layer: str, train: Labelled, val: Labelled) -> Record:
    info = features.layer_info(layer)
    return {
        "features": features.name,
        "layer": layer,
        "tap": info.tap,
        "pooling": info.pooling or "mean",
        "dim": info.dim,
        "weights": features.manifest.notes.get("weights", "unknown"),
        "fingerprint": features.manifest.fingerprint,
        "num_train": len(train.rows),
        "num_val": len(val.rows),
        "num_left_out": train.left_out + val.left_out,
        "num_classes": len(np.union1d(train.labels, val.labels)),
    }


def _usable_k(asked: Sequence[int] | None, usual: Sequence[int], num_rows: int) -> list[int]:
    """The asked-for k, all of which must fit; or those of the protocol's that do."""
    if asked:
        too_large = [k for k in asked if not 1 <= k <= num_rows]
        if too_large:
            raise EvaluationError(
                f"k must be in [1, {num_rows}], the labelled rows of train; got {', '.join(map(str, too_large))}"
            )
        return list(asked)
    fitting = [k for k in usual if k <= num_rows] or [num_rows]
    if len(fitting) < len(usual):
        logger.warning("train has %d labelled rows, so k is %s instead of the usual %s", num_rows, fitting, list(usual))
    return fitting


def _by_row(features: FeatureSet, part: Labelled) -> Any:
    """Labels by position in the split, -1 where a row does not take part."""
    labels = np.full(features.split("train").num_rows, -1, np.int64)
    labels[part.rows] = part.labels
    return labels
