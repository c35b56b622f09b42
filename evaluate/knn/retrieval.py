"""Retrieval metrics, as in metric learning: how well neighbours of the same class rank.

Shape suffixes:  Q queries   K neighbours
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featbench.store.typing import Ints


def retrieval_metrics(
    labels_QK: Ints, query_labels_Q: Ints, num_relevant_Q: Ints, *, k: Sequence[int]
) -> dict[str, float | None]:
    """Compute retrieval metrics from lists of neighbours.

    Parameters
    ----------
    labels_QK : ndarray of shape (Q, K), dtype=int64
        Classes of each query's neighbours, nearest first; K >= all of `num_relevant_Q` and `k`.
    query_labels_Q : ndarray of shape (Q,), dtype=int64
        Class of each query.
    num_relevant_Q : ndarray of shape (Q,), dtype=int64
        R: database rows of that class. Queries with R = 0 do not count.
    k : sequence of int
        For recall@k.

    Returns
    -------
    dict
        `num_answerable`, the queries that count; `precision_at_1`; `r_precision`, the fraction of the R nearest
        that are of the class; `map_at_r`, the mean over these R ranks of the precision at each rank that is a hit;
        `recall_at_<k>`, the fraction of queries with at least one hit among the k nearest. All are fractions
        of 1, and None if no query counts.

    Raises
    ------
    ValueError
        If the lists are too short.

    References
    ----------
    Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, sec. 3.2, arXiv:2003.08505.

    Examples
    --------
    >>> scores = retrieval_metrics(np.array([[0, 1, 0]]), np.array([0]), np.array([2]), k=[1])
    >>> scores["r_precision"], scores["map_at_r"], scores["recall_at_1"]
    (0.5, 0.5, 1.0)
    """
    answerable = num_relevant_Q > 0
    if not answerable.any():
        names = ("precision_at_1", "r_precision", "map_at_r", *(f"recall_at_{each}" for each in k))
        return {"num_answerable": 0} | dict.fromkeys(names)
    num_neighbours = labels_QK.shape[1]
    needed = max(int(num_relevant_Q.max()), *k)
    if num_neighbours < needed:
        raise ValueError(f"lists must have {needed} neighbours; got {num_neighbours}")
    hits_QK = (labels_QK == query_labels_Q[:, None])[answerable]
    relevant = num_relevant_Q[answerable]
    places = np.arange(1, num_neighbours + 1)
    counted_QK = hits_QK & (places <= relevant[:, None])
    precision_QK = counted_QK.cumsum(axis=1) / places
    scores: dict[str, float | None] = {
        "num_answerable": int(answerable.sum()),
        "precision_at_1": float(hits_QK[:, 0].mean()),
        "r_precision": float((counted_QK.sum(axis=1) / relevant).mean()),
        "map_at_r": float(((precision_QK * counted_QK).sum(axis=1) / relevant).mean()),
    }
    recalls = {f"recall_at_{each}": float(hits_QK[:, :each].any(axis=1).mean()) for each in k}
    return scores | recalls
