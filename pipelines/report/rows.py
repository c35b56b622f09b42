"""Images to look at: hubs, near-duplicates between the splits, and images that were left out.

Shape suffixes:  Q queries   N rows of train
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featbench.evaluate.diagnosis.hubness import HUB_SIZE, hubness, largest_hubs
from featbench.evaluate.knn.classification import rounding_of_cosines
from featbench.pipelines.evaluation.diagnosis import NEAR_DUPLICATE
from featbench.pipelines.report.evaluations import Evaluated, Source
from featbench.pipelines.report.pictures import Pictures
from featbench.store.names import visible

MOST_HUBS = 12
MOST_PAIRS = 12
MOST_PATHS = 200


def hubs_content(evaluated: Evaluated, pictures: Pictures) -> dict[str, Any]:
    """Rows of train that are in most lists of the k nearest, and how uneven that is."""
    source = evaluated.view.source
    rows_N = source.labels.train.rows
    occurrences_N = evaluated.occurrences_N[rows_N]
    measured = hubness(occurrences_N, k=evaluated.k)
    return {
        "k": evaluated.k, "skewness": round(measured.skewness, 3), "hubs": measured.num_hubs,
        "antihubs": round(measured.antihub_rate, 4), "share": round(measured.hub_occurrence, 4),
        "least": HUB_SIZE * evaluated.k,
        "rows": [
            [pictures.place(source, "train", int(rows_N[at])), int(occurrences_N[at])]
            for at in largest_hubs(occurrences_N, most=MOST_HUBS)
        ],
    }  # fmt: skip


def duplicates_content(evaluated: Evaluated, pictures: Pictures) -> dict[str, Any] | None:
    """Queries whose nearest row of train is nearly the same; None if the similarity is not the cosine."""
    view = evaluated.view
    if view.protocol.similarity != "cosine":
        return None
    source = view.source
    bound = NEAR_DUPLICATE - rounding_of_cosines(view.layer.dim)
    found = np.flatnonzero(evaluated.nearest_Q >= bound)
    most_alike = found[np.argsort(-evaluated.nearest_Q[found], kind="stable")][:MOST_PAIRS]
    return {
        "threshold": NEAR_DUPLICATE,
        "count": len(found),
        "total": len(evaluated.nearest_Q),
        "pairs": [
            [
                pictures.place(source, source.queries.split, int(source.queries.rows[at])),
                pictures.place(source, "train", int(evaluated.rows_QK[at, 0])),
                round(float(evaluated.nearest_Q[at]), 6),
            ]
            for at in most_alike
        ],
    }


def left_out(source: Source) -> list[dict[str, Any]]:
    """Images of each split that could not be read, and the number of those without a label."""
    parts = []
    for split in source.features.manifest.splits:
        valid, labels = source.features.valid(split), source.features.labels(split)
        unreadable = np.flatnonzero(~valid)
        is_labelled = bool((labels >= 0).any())
        unlabelled = int((valid & (labels < 0)).sum()) if is_labelled else 0
        if len(unreadable) or unlabelled:
            paths = source.features.paths(split) if len(unreadable) else []
            parts.append(
                {
                    "set": source.features.name, "split": split,
                    "unreadable": len(unreadable), "unlabelled": unlabelled,
                    "paths": [visible(paths[row], keep="") for row in unreadable[:MOST_PATHS]],
                }
            )  # fmt: skip
    return parts


def rows_content(evaluated: Sequence[Evaluated], pictures: Pictures) -> list[dict[str, Any]]:
    """Hubs and near-duplicates of each view."""
    return [
        {"hubs": hubs_content(each, pictures), "duplicates": duplicates_content(each, pictures)} for each in evaluated
    ]
