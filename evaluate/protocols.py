"""Protocols: what a project means by "kNN accuracy", as a table.

A protocol fixes similarity and voting; its k and temperature are what that project uses unless told
otherwise. Preprocessing is part of a project's numbers too, but belongs to stage one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Similarity = Literal["cosine", "inner_product", "euclidean"]
Vote = Literal["exponential", "inverse_distance", "uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Similarity, voting, and the usual k and temperatures."""

    similarity: Similarity
    vote: Vote
    k: tuple[int, ...]
    temperature: tuple[float, ...]
    source: str


PROTOCOLS: Mapping[str, Protocol] = {
    "dino": Protocol(
        similarity="cosine",
        vote="exponential",
        k=(10, 20, 100, 200),
        temperature=(0.07,),
        source="facebookresearch/dino, eval_knn.py; DINOv2 votes by softmax(s / T), the same ranking",
    ),
    "wu2018": Protocol(
        similarity="cosine",
        vote="exponential",
        k=(200,),
        temperature=(0.07,),
        source="Wu et al. 2018, sec. 3.4, arXiv:1805.01978",
    ),
    "vissl": Protocol(
        similarity="inner_product",
        vote="exponential",
        k=(200,),
        temperature=(0.1,),
        source="facebookresearch/vissl, knn_utils.py with L2_NORM_FEATS off, its default, but without the overflow",
    ),
    "lightly": Protocol(
        similarity="cosine",
        vote="exponential",
        k=(200,),
        temperature=(0.1,),
        source="lightly-ai/lightly, knn_predict as used for ResNets",
    ),
    "solo": Protocol(
        similarity="cosine",
        vote="exponential",
        k=(20,),
        temperature=(0.07,),
        source="vturrisi/solo-learn, WeightedKNNClassifier with distance_fx=cosine",
    ),
    "solo_euclidean": Protocol(
        similarity="euclidean",
        vote="inverse_distance",
        k=(20,),
        temperature=(),
        source="vturrisi/solo-learn, WeightedKNNClassifier with distance_fx=euclidean",
    ),
    "majority": Protocol(
        similarity="cosine", vote="uniform", k=(1, 5, 20), temperature=(), source="Cover and Hart 1967: one vote each"
    ),
}
